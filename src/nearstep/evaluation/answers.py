"""What is evaluated: answers to prompts, from the data, a file or a model, as texts and as token ids."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from nearstep.common.errors import DataError
from nearstep.data.mix import PromptMix
from nearstep.data.prompts import PromptSet
from nearstep.data.templates import TEMPLATES
from nearstep.evaluation.episodes import Episodes, rollout_of
from nearstep.evaluation.writing import CompletionWriter
from nearstep.models.stop_tokens import reply_end
from nearstep.rewards.decoding import completion_text
from nearstep.types import PromptInput, Prompts, Rollout


@dataclass(frozen=True)
class PromptAnswers:
    """One row per answer: its prompt, the ids of the answer with its end, its text, and the number of its prompt."""

    prompts: Prompts
    said: list[list[int]]
    finished: list[bool]  # where nothing says so, as if it had
    texts: list[str]
    groups: list[int]
    cut: int = 0  # rows of which something was left out
    dropped: int = 0  # rows that were left out
    ends_known: bool = True  # whether anything says which have ended

    def __len__(self) -> int:
        return len(self.said)

    @property
    def rollout(self) -> Rollout:
        """The rows as rewards and models read them; log-probs are not known and stand as 0."""
        return rollout_of(self.prompts.ids, self.said, self.finished)

    def select(self, rows: Sequence[int]) -> "PromptAnswers":
        """The given rows."""
        return replace(
            self,
            prompts=select_prompts(self.prompts, rows),
            said=[self.said[row] for row in rows],
            finished=[self.finished[row] for row in rows],
            texts=[self.texts[row] for row in rows],
            groups=[self.groups[row] for row in rows],
        )

    def batches(self, size: int) -> Iterator["PromptAnswers"]:
        """So many rows at a time."""
        for start in range(0, len(self), size):
            yield self.select(range(start, min(start + size, len(self))))

    def within(
        self, most: int | None, on_long: Literal["error", "drop", "cut_left"], tokenizer: PreTrainedTokenizerBase
    ) -> "PromptAnswers":
        """The rows that a model can read, of `most` tokens. Raises DataError naming the first that is longer.

        Of a row that is cut the last tokens of the prompt stay, one at least, and the first of the answer.
        """
        lengths = [len(ids) + len(said) for ids, said in zip(self.prompts.ids, self.said, strict=True)]
        long = [row for row, length in enumerate(lengths) if most is not None and length > most]
        if not long or most is None:
            return self
        if on_long == "error":
            raise DataError(
                f"{len(long)} of {len(self)} rows have more than {most} tokens with their answer; the first is row "
                f"{self.groups[long[0]]} with {lengths[long[0]]}. Set on_long_prompt to drop or cut_left"
            )
        if on_long == "drop":
            kept = self.select([row for row in range(len(self)) if row not in set(long)])
            return replace(kept, dropped=len(long))
        ids, said, texts, finished = list(self.prompts.ids), list(self.said), list(self.texts), list(self.finished)
        for row in long:
            if len(said[row]) >= most:
                said[row], finished[row] = said[row][: most - 1], False
                texts[row] = completion_text(said[row], False, tokenizer)
            ids[row] = ids[row][len(ids[row]) + len(said[row]) - most :]
        return replace(
            self, prompts=replace(self.prompts, ids=ids), said=said, texts=texts, finished=finished, cut=len(long)
        )

    def without_ends(self) -> "PromptAnswers":
        """The same rows, the tokens that end finished ones left out."""
        said = [ids[:-1] if done else ids for ids, done in zip(self.said, self.finished, strict=True)]
        return replace(self, said=said, finished=[False] * len(self))


def select_prompts(prompts: Prompts, rows: Sequence[int]) -> Prompts:
    """The given rows."""
    return Prompts(
        ids=[prompts.ids[row] for row in rows],
        inputs=[prompts.inputs[row] for row in rows],
        columns={name: [values[row] for row in rows] for name, values in prompts.columns.items()},
        episodes=[prompts.episodes[row] for row in rows],
    )


def answers_of_texts(
    prompts: Prompts, texts: Sequence[str], finished: Sequence[bool], groups: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
) -> PromptAnswers:  # fmt: skip
    """Texts as a policy would have written them: behind the prompt, and with its end where they have ended."""
    eos, mark = tokenizer.eos_token_id, reply_end(tokenizer)
    ends = [eos if isinstance(shown, str) or mark is None else mark for shown in prompts.inputs]
    ids = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    ended = [done and end is not None for done, end in zip(finished, ends, strict=True)]
    said = [[*text, *([end] if done else [])] for text, end, done in zip(ids, ends, ended, strict=True)]
    return PromptAnswers(prompts, said, ended, list(texts), list(groups))


def answers_in_data(prompts: PromptSet) -> PromptAnswers | None:
    """The answers that the data holds; None where it holds none. Rows without one are left out and counted."""
    taken = PromptMix((prompts,)).take(range(len(prompts)), range(len(prompts)))
    found = [answer_of(value) for value in taken.columns.get("reference", [None] * len(prompts))]
    rows = [row for row, answer in enumerate(found) if answer is not None]
    if not rows:
        return None
    answers = [answer for answer in found if answer is not None]
    made = answers_of_texts(
        select_prompts(taken, rows),
        [text for text, _ in answers],
        [done for _, done in answers],
        rows,
        prompts.tokenizer,
    )
    return replace(made, dropped=len(prompts) - len(rows))


def answers_of_file(batches: Iterator[Episodes], tokenizer: PreTrainedTokenizerBase) -> PromptAnswers:
    """The completions of a file; rows with the same prompt, and the same `row` where there is one, belong together."""
    episodes = list(batches)
    columns = list(dict.fromkeys(name for each in episodes for name in each.prompts.columns))
    prompts = Prompts(
        ids=[ids for each in episodes for ids in each.prompts.ids],
        inputs=[shown for each in episodes for shown in each.prompts.inputs],
        columns={
            name: [v for each in episodes for v in each.prompts.columns.get(name, [None] * len(each.prompts))]
            for name in columns
        },
        episodes=[number for each in episodes for number in each.prompts.episodes],
    )
    said = [ids for each in episodes for ids in each.rollout.completion_ids()]
    finished = [done for each in episodes for done in each.rollout.finished.tolist()]
    texts = [completion_text(ids, done, tokenizer) for ids, done in zip(said, finished, strict=True)]
    rows = prompts.columns.get("row", [None] * len(said))
    keys = [(prompt_key(shown), str(row)) for shown, row in zip(prompts.inputs, rows, strict=True)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return PromptAnswers(prompts, said, finished, texts, [numbers[key] for key in keys])


def written_answers(writer: CompletionWriter, prompts: PromptSet) -> PromptAnswers:
    """What the model writes to every prompt, as often as the settings say."""
    parts = list(writer.write(prompts))
    columns = parts[0].prompts.columns
    joined = Prompts(
        ids=[ids for part in parts for ids in part.prompts.ids],
        inputs=[shown for part in parts for shown in part.prompts.inputs],
        columns={name: [value for part in parts for value in part.prompts.columns[name]] for name in columns},
        episodes=[number for part in parts for number in part.prompts.episodes],
    )
    said = [ids for part in parts for ids in part.rollout.completion_ids()]
    finished = [done for part in parts for done in part.rollout.finished.tolist()]
    texts = [completion_text(ids, done, prompts.tokenizer) for ids, done in zip(said, finished, strict=True)]
    return PromptAnswers(joined, said, finished, texts, [number for part in parts for number in part.numbers])


def answer_of(value: object) -> tuple[str, bool] | None:
    """The text of an answer in the data, and whether it has ended; None where there is none.

    It may be a text, a mapping with `text`, messages that end with the assistant's, or a list: then its first entry.
    """
    if isinstance(value, list | tuple):
        messages = bool(value) and isinstance(value[-1], Mapping) and "content" in value[-1]
        return answer_of(value[-1]["content"] if messages else value[0]) if value else None
    if isinstance(value, Mapping):
        found = value.get("text")
        return (found, value.get("finished") is not False) if isinstance(found, str) and found else None
    return (value, True) if isinstance(value, str) and value else None


def prompt_key(shown: PromptInput) -> str:
    """What tells prompts apart."""
    return shown if isinstance(shown, str) else repr([(each.get("role"), each.get("content")) for each in shown])


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer of bytes, for files that are evaluated without any model."""
    vocabulary = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>")
    tokenizer.chat_template = TEMPLATES["chatml"]
    return tokenizer
