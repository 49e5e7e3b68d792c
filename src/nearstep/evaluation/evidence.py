"""What an evaluation has to go by, each part made when a metric first asks for it: answers, scores, pairs."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from nearstep.common.errors import ConfigError, DataError
from nearstep.common.model_places import model_place
from nearstep.common.telling import tell
from nearstep.config.evaluation import EvalConfig
from nearstep.data.prompts import PromptSet
from nearstep.data.table import Table
from nearstep.data.templates import style_of
from nearstep.evaluation.answers import (
    PromptAnswers,
    answer_of,
    answers_in_data,
    answers_of_file,
    answers_of_texts,
    byte_tokenizer,
    prompt_key,
    written_answers,
)
from nearstep.evaluation.episodes import read_episodes
from nearstep.evaluation.metrics.figures import Bootstrap
from nearstep.evaluation.preference_data import (
    ManyAnswers,
    ScoredPair,
    holds_pairs,
    is_rewardbench_2,
    read_pairs,
    read_rewardbench_2,
)
from nearstep.evaluation.prompt_file import FILES, PromptLimit, read_prompts, read_rows
from nearstep.evaluation.scoring import AnswerScores, OwnScorer, RewardScorer
from nearstep.evaluation.text_model import TextModel
from nearstep.evaluation.writing import CompletionWriter


@dataclass
class Evidence:
    """The inputs of the settings. `notes` collects what the user should know of them."""

    config: EvalConfig
    notes: list[str] = field(default_factory=list)

    @property
    def bootstrap(self) -> Bootstrap:
        """How intervals are drawn."""
        return Bootstrap(self.config.seed, self.config.bootstrap_draws)

    @cached_property
    def model(self) -> TextModel | None:
        """The model that is evaluated, if there is one."""
        config = self.config
        if config.model is None:
            return None
        base = config.base_model if config.model_path is not None else None
        return TextModel.of(config.model, config, base=base, prompt_type=config.prompt_type)

    @cached_property
    def reference(self) -> TextModel | None:
        """The model that is measured from."""
        name = self.config.reference_model_path
        return None if name is None or self.model is None else self.model.beside(name, "reference_model_path")

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's; bytes where there is no model."""
        return byte_tokenizer() if self.model is None else self.model.tokenizer

    @cached_property
    def table(self) -> Table | None:
        """The rows of dataset_name."""
        return None if self.config.dataset_name is None else read_rows(self.config, self.config.seed)

    @cached_property
    def prompts(self) -> PromptSet | None:
        """The prompts of the rows, for the model to answer."""
        if self.table is None or self.model is None or is_rewardbench_2(self.table):
            return None
        limit = PromptLimit(None, "error")  # answers tell how much room there is
        prompts = read_prompts(self.table, self.model, self.config, limit)
        self.notes += prompts.report.sentences()
        return prompts

    @cached_property
    def data_answers(self) -> PromptAnswers | None:
        """The answers in the data, as far as the model can read them; of a file of completions these, without data."""
        if self.model is None:
            return None
        found = answers_in_data(self.prompts) if self.prompts is not None else None
        if found is None and self.table is None and self.config.completions is not None:
            found = self.answers
        return None if found is None else self._readable(found, "answers")

    @cached_property
    def writer(self) -> CompletionWriter | None:
        """How the model writes."""
        return (
            None
            if self.model is None
            else CompletionWriter.of(self.model, self.config, self.config.chat_template_kwargs)
        )

    @cached_property
    def answers(self) -> PromptAnswers | None:
        """The completions that are judged: those of a file, or else what the model writes to the prompts."""
        if self.config.completions is not None:
            return self._of_file(self.config.completions)
        if self.writer is None or self.prompts is None or self.table is None:
            return None
        return self._written(self.writer, self.table)

    @cached_property
    def readable_answers(self) -> PromptAnswers | None:
        """The same, as far as the model can read them; None without a model."""
        return None if self.answers is None or self.model is None else self._readable(self.answers, "completions")

    @cached_property
    def scorer(self) -> RewardScorer | None:
        """The rewards of the settings."""
        if not self.config.has_rewards:
            return None
        columns = list(self.answers.prompts.columns) if self.table is None and self.answers is not None else None
        if columns is None and self.table is not None:
            columns = list({*self.table.columns, *(() if self.prompts is None else self.prompts.columns)})
        return RewardScorer(self.config, self.tokenizer, columns or [])

    @cached_property
    def scores(self) -> AnswerScores | None:
        """The rewards of the completions."""
        return None if self.scorer is None or self.answers is None else self.scorer.answers(self.answers)

    @cached_property
    def own_scorer(self) -> OwnScorer | None:
        """What stands in for rewards on pairs."""
        return None if self.model is None else OwnScorer(self.model, self.reference, self.config)

    @cached_property
    def pairs(self) -> Sequence[ScoredPair]:
        """The preference pairs of the rows; none where the rows are none, or are not meant as such."""
        config, table = self.config, self.table
        if (
            table is None
            or config.data_task_type in ("sft", "prompts")
            or not holds_pairs(table, config.dataset_format)
        ):
            return []
        pairs, notes = read_pairs(table, config.dataset_format, config.on_bad_row, style_of(config.prompt_type))
        self.notes += notes
        return pairs

    @cached_property
    def many_answers(self) -> Sequence[ManyAnswers]:
        """The rows of a RewardBench 2 file."""
        if self.table is None or not is_rewardbench_2(self.table):
            return []
        return read_rewardbench_2(self.table, style_of(self.config.prompt_type))

    @cached_property
    def references(self) -> list[str | None]:
        """The text in the column `reference` of each completion's row, of several the first."""
        found = [answer_of(value) for value in self._column("reference")]
        return [None if each is None else each[0] for each in found]

    @cached_property
    def cells(self) -> tuple[str, list[object]] | None:
        """The column that says what is right, by its name: `answer`, or else `reference`; None where there is none."""
        for name in ("answer", "reference"):
            values = [_cell(value) for value in self._column(name)]
            if any(value is not None for value in values):
                return name, values
        return None

    @cached_property
    def other_side(self) -> list[str | None] | None:
        """What stands on the other side of each completion: of a file, or written by another model to the prompts."""
        against, answers = self.config.against, self.answers
        if against is None or answers is None:
            return None
        others = self._of_file(against) if _is_file(against) else self._of_model(against)
        texts: dict[str, list[str]] = {}
        for shown, text in zip(others.prompts.inputs, others.texts, strict=True):
            texts.setdefault(prompt_key(shown), []).append(text)
        taken: dict[str, int] = {}
        found: list[str | None] = []
        for shown in answers.prompts.inputs:
            key = prompt_key(shown)
            number = taken[key] = taken.get(key, -1) + 1
            there = texts.get(key, [])
            found.append(there[number] if number < len(there) else None)
        if not any(text is not None for text in found):
            raise DataError(f"against = {against}: it has none of the prompts that are evaluated")
        return found

    def score_texts(self, texts: Sequence[str], rows: Sequence[int]) -> list[float]:
        """The rewards of other texts to the prompts of some completions."""
        assert self.answers is not None
        assert self.scorer is not None
        asked = self.answers.select(rows)
        other = answers_of_texts(asked.prompts, texts, [True] * len(rows), asked.groups, self.tokenizer)
        return self.scorer.answers(other).totals

    def _of_file(self, name: str) -> PromptAnswers:
        file = read_episodes(name, self.tokenizer, batch_size=self.config.batch_size)
        if self.model is None and "completion_ids" in file.table.columns:
            raise ConfigError(f"{name} holds token ids, as records of a run do: give model_path, whose ids they are")
        return replace(answers_of_file(file.batches(), self.tokenizer), ends_known=file.ends_known)

    def _of_model(self, name: str) -> PromptAnswers:
        config = self.config
        if self.table is None:
            raise ConfigError("against names a model, and dataset_name no prompts for it: give a file of completions")
        model = TextModel.of(name, config, prompt_type=config.prompt_type, role="against")
        return self._written(CompletionWriter.of(model, config, config.chat_template_kwargs), self.table)

    def _written(self, writer: CompletionWriter, table: Table) -> PromptAnswers:
        """What a model writes to the prompts of a table."""
        config, model = self.config, writer.model
        limits = (model.limits.positions, config.max_length)
        most = min((limit for limit in limits if limit is not None), default=None)
        room = None if most is None else most - config.response_length
        if room is not None and room < 1:
            raise ConfigError(
                f"response_length = {config.response_length} leaves no room for a prompt in {most} tokens: lower it, "
                "or raise max_length as far as the model's positions allow"
            )
        prompts = read_prompts(table, model, config, PromptLimit(room, config.on_long_prompt))
        self.notes += [sentence for sentence in prompts.report.sentences() if sentence not in self.notes]
        self.notes.append(f"{model.place} writes {config.num_generations} completion(s) of each prompt: {writer.how}.")
        tell(f"writing {len(prompts) * config.num_generations} completions …")
        return written_answers(writer, prompts)

    def _readable(self, answers: PromptAnswers, what: str) -> PromptAnswers:
        """Rows that the model, and the reference, can read whole or cut; what was done is told."""
        assert self.model is not None
        config, models = self.config, [self.model] + ([self.reference] if self.reference is not None else [])
        limits = [config.max_length, *(model.limits.positions for model in models)]
        most = min((limit for limit in limits if limit is not None), default=None)
        found = answers.within(most, config.on_long_prompt, self.model.tokenizer)
        if found.cut:
            self.notes.append(f"{found.cut} of {len(answers)} {what} were cut with their prompts to {most} tokens.")
        if found.dropped > answers.dropped or (found.dropped and found is not answers):
            self.notes.append(f"{found.dropped} of {len(answers)} {what} were left out: longer than {most} tokens.")
        return found

    def _column(self, name: str) -> Sequence[object]:
        if self.answers is None:
            return []
        return self.answers.prompts.columns.get(name, [None] * len(self.answers))


def _cell(value: object) -> object:
    """A cell as the built-in rewards take it: texts, numbers, lists of these."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(entry, str | int | float) for entry in value):
        return list(value)
    found = answer_of(value)
    return None if found is None else found[0]


def _is_file(name: str) -> bool:
    return name.endswith(FILES) or (Path(name).is_file() and not Path(model_place(name)).is_dir())
