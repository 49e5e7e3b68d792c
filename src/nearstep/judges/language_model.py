"""A causal language model of this machine as a judge: the probabilities of the answers that it might give."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nearstep.algorithm.ragged import row_groups
from nearstep.common.errors import ConfigError, ModelError
from nearstep.config.judges import JudgeConfig
from nearstep.judges.prompt import IN_A_TOKEN, LETTERS, JudgePrompt, Question
from nearstep.judges.protocol import (
    Failed,
    Graded,
    Pair,
    PairVerdict,
    Reading,
    TextGrade,
    Usage,
    different,
    with_equal_texts,
)
from nearstep.models.distribution import Sampling
from nearstep.models.dtypes import DTYPES, on_device
from nearstep.models.forward.action_logprobs import action_logprobs
from nearstep.models.forward.forward import states_of
from nearstep.models.forward.layout import RowTokens
from nearstep.models.limits import Limits
from nearstep.models.load import check_folder, load_policy
from nearstep.models.roles import Policy, make_policy, transformers_model
from nearstep.models.tokenizers import load_tokenizer

ROLE = "judge"
ANSWER = "\n\nAnswer:"  # what a question in plain text ends with


@dataclass(frozen=True)
class Choices:
    """A question as token ids, and the ids of each answer that is weighed."""

    ids: list[int]
    answers: list[list[int]]


@dataclass(frozen=True)
class Place:
    """Where the log-probability of one token is read: in a row, behind a position."""

    choice: tuple[int, int]  # question and answer
    row: int
    position: int
    token: int


class LanguageModelJudge:
    """See JudgeSource. It writes nothing: P(A) / (P(A) + P(B)), in both orders, by float32 log-probabilities."""

    grades = True

    def __init__(self, config: JudgeConfig, prompt: JudgePrompt) -> None:
        """Nothing is loaded before `prepare`. Raises ModelError where there is no such folder, ConfigError for grades
        of two digits.
        """
        assert config.judge is not None
        check_folder(config.judge, ROLE)
        if prompt.highest > 9:
            raise ConfigError(f"highest_grade = {prompt.highest}: a local judge weighs one digit, so grades go up to 9")
        self.name, self.usage = config.judge.rstrip("/").rpartition("/")[2], Usage()
        self._config, self._prompt = config, prompt

    def prepare(self) -> None:
        """Load model and tokenizer. Raises ModelError where they cannot be read."""
        self._policy, self._tokenizer  # noqa: B018

    def compare_all(self, pairs: Sequence[Pair]) -> list[PairVerdict]:
        """Every pair in both orders."""
        questions = [
            self._prompt.compare(pair, IN_A_TOKEN, swapped=swapped)
            for pair in different(pairs)
            for swapped in (False, True)
        ]
        first = [_chance_of_first(weights) for weights in self._weigh(questions, LETTERS)]
        orders = zip(first[::2], first[1::2], strict=True)
        return with_equal_texts(pairs, (PairVerdict.of_orders([one], [other]) for one, other in orders))

    def grade_all(self, questions: Sequence[Graded]) -> list[TextGrade]:
        """The mean of all grades, each weighed by its probability."""
        numbers = range(self._prompt.lowest, self._prompt.highest + 1)
        asked = [self._prompt.grade(one, IN_A_TOKEN) for one in questions]
        weighed = self._weigh(asked, [str(number) for number in numbers])
        return [TextGrade.of([_mean(numbers, weights)]) for weights in weighed]

    def _weigh(self, questions: Sequence[Question], answers: Sequence[str]) -> "list[list[float] | Failed]":
        """The probabilities of the answers among themselves, for each question."""
        self.usage.questions += len(questions)
        choices = [self._read(question, answers) for question in questions]
        most = Limits.of(transformers_model(self._policy.model, ROLE).config).positions
        longest = [len(one.ids) + max(map(len, one.answers)) for one in choices]
        fits = [number for number, length in enumerate(longest) if most is None or length <= most]
        logprobs = dict(zip(fits, self._logprobs([choices[number] for number in fits]), strict=True))
        return [
            logprobs[number].softmax(-1).tolist()
            if number in logprobs
            else Failed(f"judge {self.name!r} reads at most {most} tokens, and the question has {longest[number]}")
            for number in range(len(choices))
        ]

    @torch.no_grad()
    def _logprobs(self, choices: Sequence[Choices]) -> list[Tensor]:
        """The log-probability of each answer, [answers], for each question; answers of one token share a row."""
        rows: dict[tuple[int, ...], int] = {}
        places = []
        for number, one in enumerate(choices):
            for answer, ids in enumerate(one.answers):
                row = rows.setdefault((*one.ids, *ids[:-1]), len(rows))
                positions = range(len(one.ids) - 1, len(one.ids) - 1 + len(ids))
                places += [Place((number, answer), row, at, token) for at, token in zip(positions, ids, strict=True)]
        listed = list(rows)
        found = [torch.zeros(len(one.answers), dtype=torch.float64) for one in choices]
        for group in row_groups([len(row) for row in listed], self._config.max_tokens_per_microbatch, len(listed)):
            here = [place for place in places if place.row in group]
            for place, logprob in zip(
                here, self._group([listed[row] for row in group], here, group.start), strict=True
            ):
                found[place.choice[0]][place.choice[1]] += logprob
        return found

    def _group(self, rows: Sequence[Sequence[int]], places: Sequence[Place], first: int) -> list[float]:
        device = self._policy.device
        lengths = torch.tensor([len(row) for row in rows], device=device)
        starts = (lengths.cumsum(0) - lengths).tolist()
        read = torch.tensor([starts[place.row - first] + place.position for place in places], device=device)
        tokens = torch.tensor([token for row in rows for token in row], device=device)
        states = states_of(self._policy, RowTokens(tokens, lengths, torch.zeros_like(lengths)), read)
        asked = torch.tensor([place.token for place in places], device=device)
        logprobs: list[float] = action_logprobs(self._policy.head, states, asked, Sampling()).sampled.tolist()
        return logprobs

    def _read(self, question: Question, answers: Sequence[str]) -> Choices:
        tokenizer = self._tokenizer
        if self._is_chat:
            message = [{"role": "user", "content": question.whole}]
            text = tokenizer.apply_chat_template(
                message, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
            start, space = [], ""
        else:
            text, start, space = question.whole + ANSWER, self._start, " "
        ids = _encoded(tokenizer, text)
        return Choices([*start, *ids], [self._behind(text, ids, space + answer) for answer in answers])

    def _behind(self, text: str, ids: list[int], answer: str) -> list[int]:
        """The ids of an answer behind a text; where a token would reach over the border, those of the answer alone."""
        both = _encoded(self._tokenizer, text + answer)
        return (
            both[len(ids) :] if both[: len(ids)] == ids and len(both) > len(ids) else _encoded(self._tokenizer, answer)
        )

    @property
    def _is_chat(self) -> bool:
        has_template = self._tokenizer.chat_template is not None
        if self._config.judge_form == "chat" and not has_template:
            raise ModelError(f"judge: {self._config.judge!r} has no chat template: set judge_form = plain")
        return has_template and self._config.judge_form != "plain"

    @cached_property
    def _start(self) -> list[int]:
        """The special tokens that the tokenizer puts before any text, such as BOS."""
        encoded = self._tokenizer("a", return_special_tokens_mask=True)
        marked = zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
        return [token for token, _ in takewhile(lambda pair: pair[1] == 1, marked)]

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        assert self._config.judge is not None
        return load_tokenizer(self._config.judge, role=ROLE, trust=self._config.trust)

    @cached_property
    def _policy(self) -> Policy:
        assert self._config.judge is not None
        model = load_policy(
            self._config.judge,
            role=ROLE,
            dtype=DTYPES[self._config.dtype],
            trust=self._config.trust,
        )
        frozen = on_device(use_cpu=self._config.use_cpu)(model).requires_grad_(False)
        return make_policy(frozen, role=ROLE, autocast=self._config.bf16)


def _encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _chance_of_first(weights: list[float] | Failed) -> Reading:
    return weights if isinstance(weights, Failed) else weights[0]


def _mean(numbers: Sequence[int], weights: list[float] | Failed) -> Reading:
    if isinstance(weights, Failed):
        return weights
    return sum(number * weight for number, weight in zip(numbers, weights, strict=True))
