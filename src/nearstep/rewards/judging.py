"""Which judge the settings name, and the one object that rewards, evaluation and users hold."""

import math
import re
from collections.abc import Awaitable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from nearstep.common.errors import ConfigError, RewardError, shorten
from nearstep.common.messages import PromptInput
from nearstep.common.plugins import load_object, need_package
from nearstep.config.judges import JudgeConfig, is_url
from nearstep.judges.function import FunctionJudge
from nearstep.judges.prompt import JudgePrompt, load_prompt
from nearstep.judges.protocol import Graded, JudgeSource, Pair, PairVerdict, TextGrade, Usage, Vote
from nearstep.rewards.judge_spec import judge_config
from nearstep.rewards.remote.event_loop import EventLoop

if TYPE_CHECKING:
    from nearstep.rewards.protocol import RewardSource

T = TypeVar("T")

WHO = "such as file.py:name, the folder of a model, or http://host/v1#model"


class Judge:
    """What compares two texts or grades one, whatever stands behind it."""

    def __init__(self, source: JudgeSource) -> None:
        self.source = source

    @property
    def name(self) -> str:
        """Under which it is reported."""
        return self.source.name

    @property
    def usage(self) -> Usage:
        """What was asked so far, and what it cost."""
        return self.source.usage

    @cached_property
    def _event_loop(self) -> EventLoop:
        return EventLoop()

    def compare(self, prompt: PromptInput, a: str, b: str) -> PairVerdict:
        """Which of two answers to a prompt is better. A failure stands in what is returned."""
        return self.compare_all([Pair(prompt, a, b)])[0]

    def grade(self, prompt: PromptInput, answer: str, rubric: str | None = None) -> TextGrade:
        """How good an answer is, by `rubric` or the judge's own. A failure stands in what is returned."""
        return self.grade_all([Graded(prompt, answer, rubric)])[0]

    def compare_all(self, pairs: Sequence[Pair]) -> list[PairVerdict]:
        """The same for many pairs at once, in their order."""
        self.source.prepare()
        return self._awaited(self.source.compare_all(pairs))

    def grade_all(self, questions: Sequence[Graded]) -> list[TextGrade]:
        """The same for many answers at once. Raises ConfigError where the judge only compares."""
        if not self.source.grades:
            raise ConfigError(f"judge {self.name!r} compares and does not grade")
        self.source.prepare()
        return self._awaited(self.source.grade_all(questions))

    def _awaited(self, answers: list[T] | Awaitable[list[T]]) -> list[T]:
        return answers if isinstance(answers, list) else self._event_loop.gather([answers])[0]


class RewardJudge:
    """A reward model, or any source of rewards that needs no column, as a judge; see JudgeSource.

    P(a is better) = σ(r(a) − r(b)), as Bradley and Terry have it; a grade is the reward.
    """

    grades = True

    def __init__(self, config: JudgeConfig) -> None:
        assert config.judge is not None
        self.name, self.usage = config.judge.rstrip("/").rpartition("/")[2], Usage()
        self._config = config

    def prepare(self) -> None:
        """Load the model. Raises ModelError where it cannot be read."""
        self._source  # noqa: B018

    def compare_all(self, pairs: Sequence[Pair]) -> list[PairVerdict]:
        """Each text is read once, in no order."""
        texts = [(pair.prompt, text) for pair in pairs for text in (pair.a, pair.b)]
        rewards = self._rewards(texts)
        return [_by_rewards(a, b) for a, b in zip(rewards[::2], rewards[1::2], strict=True)]

    def grade_all(self, questions: Sequence[Graded]) -> list[TextGrade]:
        """The reward of every answer; a reward model knows no rubric."""
        rewards = self._rewards([(one.prompt, one.answer) for one in questions])
        return [TextGrade((each,)) if isinstance(each, float) else TextGrade(failure=str(each)) for each in rewards]

    def _rewards(self, texts: Sequence[tuple[PromptInput, str]]) -> list[float | RewardError]:
        from nearstep.rewards.ask import OnError, SourceCaller
        from nearstep.rewards.batch import RewardBatch
        from nearstep.rewards.values import total

        self.usage.questions += len(texts)
        rows = len(texts)
        batch = RewardBatch(
            prompts=[prompt for prompt, _ in texts],
            completions=[
                text if isinstance(prompt, str) else [{"role": "assistant", "content": text}] for prompt, text in texts
            ],
            prompt_ids=[[]] * rows,
            completion_ids=[[]] * rows,
            finished=[True] * rows,
            columns={},
            episodes=list(range(rows)),
        )
        caller = SourceCaller([self._source], [self.name], OnError("drop", largest_failed_share=1.0), EventLoop())
        (result,) = caller.ask(batch)
        nothing = RewardError(f"judge {self.name!r} has no reward for it")
        return [
            value if isinstance(value, RewardError) else nothing if value is None else total(value)
            for value in result.values
        ]

    @cached_property
    def _source(self) -> "RewardSource":
        from nearstep.models.dtypes import DTYPES, on_device
        from nearstep.rewards.build import (
            NO_POLICY,
            RewardModelOptions,
            load_reward_model,
            model_source,
            reward_tokenizer,
        )

        config = self._config
        assert config.judge is not None
        options = RewardModelOptions(
            DTYPES[config.dtype], config.trust, config.bf16, config.max_tokens_per_microbatch,
            on_device(use_cpu=config.use_cpu), config.seed,
        )  # fmt: skip
        model = load_reward_model(config.judge, options)
        assert model is not None
        tokenizer = reward_tokenizer(model, None, None, trust=config.trust)
        return model_source(model, tokenizer, NO_POLICY, options)


def _by_rewards(a: float | RewardError, b: float | RewardError) -> PairVerdict:
    if isinstance(a, RewardError) or isinstance(b, RewardError):
        return PairVerdict(failure=str(a if isinstance(a, RewardError) else b))
    difference = a - b
    tail = math.exp(-abs(difference))
    return PairVerdict((Vote((1.0 if difference >= 0 else tail) / (1.0 + tail)),))


def load_judge(judge: JudgeConfig | str | Path) -> Judge:
    """The judge that settings, a YAML file of them, or a name as `judge` takes it stand for; models are loaded later.

    Raises ConfigError for settings that cannot be, a file or key that is not there, ModelError for a folder that is
    none.
    """
    config = judge if isinstance(judge, JudgeConfig) else judge_config(str(judge))
    if config.judge is None:
        raise ConfigError(f"no judge is named: give judge, {WHO}")
    kind = kind_of_judge(config)
    if kind == "function":
        return Judge(_function(config, config.judge))
    if kind == "reward_model":
        return Judge(RewardJudge(config))
    prompt = _prompt(config)
    if kind == "url":
        need_package("httpx2", "remote", f"judge {shorten(config.judge)}", ConfigError)
        from nearstep.judges.remote import RemoteJudge

        return Judge(RemoteJudge(config, prompt))
    from nearstep.judges.language_model import LanguageModelJudge

    return Judge(LanguageModelJudge(config, prompt))


def _function(config: JudgeConfig, spec: str) -> JudgeSource:
    found = load_object(spec, kind="judge", error=ConfigError)
    if isinstance(found, JudgeSource):
        return found
    return FunctionJudge(found, spec.rpartition(":")[2], None if config.rubric is None else _prompt(config).rubric)


def _prompt(config: JudgeConfig) -> JudgePrompt:
    return load_prompt(
        config.judge_prompt, rubric=config.rubric, lowest=config.lowest_grade, highest=config.highest_grade
    )


def kind_of_judge(config: JudgeConfig) -> str:
    """What a judge is: as the settings say, else by its name and, for a model, its configuration.

    Raises ModelError for a folder or hub name that is none, ConfigError for a model whose class says neither.
    """
    assert config.judge is not None
    if config.judge_kind != "auto":
        return config.judge_kind
    if is_url(config.judge):
        return "url"
    if re.search(r"\.py:\w+$", config.judge):
        return "function"
    from nearstep.models.load import names_of_classes

    names = names_of_classes(config.judge, role="judge", trust=config.trust)
    if any("CausalLM" in name or "LMHead" in name or "ConditionalGeneration" in name for name in names):
        return "language_model"
    if any("Classification" in name or "Reward" in name or "ScalarModel" in name for name in names):
        return "reward_model"
    raise ConfigError(
        f"judge {config.judge!r}: its configuration names {', '.join(names) or 'no class'}, which tells neither a "
        "language model nor a reward model: set judge_kind"
    )
