"""Which settings `nearstep eval` has: what is evaluated, on what, by which metrics."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from nearstep.common.spelling import nearest
from nearstep.config.data import data_name_problems
from nearstep.config.generating import (
    DataFileSettings,
    DecodingSettings,
    ModelRunSettings,
    sampling_problems,
    sampling_remarks,
)
from nearstep.config.old_names import OF_EVALUATION, OldNames
from nearstep.config.rewards import LocalRewardSettings, RewardSettings, reward_count, reward_problems, reward_remarks
from nearstep.config.settings import Problem, Settings, accepts_old_names, option, sections, without_effect

METRICS = (
    "perplexity", "reward_accuracy", "rewardbench", "reward", "kl", "entropy", "win_rate", "accuracy", "rouge", "bleu",
    "diversity", "length",
)  # fmt: skip
OTHER_NAMES = {
    "bits_per_byte": "perplexity",
    "preference_accuracy": "reward_accuracy", "reward_margin": "reward_accuracy", "implicit_reward": "reward_accuracy",
    "reward_bench": "rewardbench", "reward_mean": "reward", "kl_divergence": "kl", "log_ratio": "kl",
    "policy_entropy": "entropy", "lc_win_rate": "win_rate",
    "math_accuracy": "accuracy", "exact_match": "accuracy", "pass_at_k": "accuracy", "pass@k": "accuracy",
    "avg@k": "accuracy", "maj@k": "accuracy", "repetition": "diversity",
}  # fmt: skip
RULES = {"text": "exact_match", "math": "math_answer", "code": "code_tests"}  # by task_type: what makes an answer right


@dataclass(frozen=True, kw_only=True)
class EvaluatedSettings(Settings):
    """What is evaluated, and where the results go."""

    model_path: str | None = option(
        None,
        "the model: a folder, a hub name, adapters, a run, or a checkpoint as RUN@UPDATE or RUN/checkpoint-UPDATE",
        is_place=True,
    )
    base_model: str | None = option(
        None,
        "the model under a folder of adapters, where it is another than the one that they name; alone, the model",
        is_place=True,
    )
    completions: str | None = option(
        None, "a file of completions (nearstep generate) to evaluate instead of what the model writes", is_place=True
    )
    reference_model_path: str | None = option(
        None, "kl, and reward_accuracy without rewards: the model that is measured from", is_place=True
    )
    against: str | None = option(
        None, "win_rate: the other side beside references, a file of completions or a model", is_place=True
    )
    output_dir: str = option(
        "eval_results", "folder for eval_results.json and, where the model writes, completions.jsonl", is_place=True
    )
    json: bool = option(False, "print the results as JSON instead of a table")


@dataclass(frozen=True, kw_only=True)
class MetricSettings(Settings):
    """By what it is evaluated."""

    metrics: tuple[str, ...] = option(
        (), f"which of {', '.join(METRICS)}; whatever model, data and rewards allow if not given"
    )
    task_type: Literal["text", "math", "code"] = option(
        "text",
        "what makes a completion right: the column reference or answer word for word, the same by mathematics, or "
        "passing the tests of its row",
    )
    correctness: str | None = option(
        None,
        "accuracy: the reward function that is 1 for right completions, built-in or file.py:name, instead of that of "
        "task_type",
        is_place=True,
    )
    data_task_type: Literal["auto", "sft", "preference", "prompts"] = option(
        "auto",
        "what the rows must hold: prompts with an answer, preference pairs, or prompts alone; auto takes what is there",
    )
    k_list: tuple[int, ...] | None = option(
        None, "pass@k for these k; 1 and the number of completions of a prompt if not given", at_least=1
    )
    count_end: bool = option(True, "perplexity: the end of a finished answer counts as one of its tokens")
    max_length: int | None = option(
        None, "most tokens of prompt and completion together; the model's positions if not given", at_least=2
    )
    on_long_prompt: Literal["error", "drop", "cut_left"] = option(
        "cut_left",
        "what happens to rows that are longer: stop and name them, leave them out, or keep the last tokens of the "
        "prompt (and the first of an answer that alone is too long); they are counted",
    )
    bootstrap_draws: int = option(1000, "draws of prompts behind each interval", at_least=100)


@dataclass(frozen=True, kw_only=True)
class HarnessSettings(Settings):
    """Benchmarks of lm-evaluation-harness."""

    lm_eval: tuple[str, ...] = option(
        (), "tasks of lm-evaluation-harness to run on the model, by its own program (nearstep[eval])"
    )
    lm_eval_python: str | None = option(
        None, "the Python that has lm_eval, where it is installed in an environment of its own", is_place=True
    )
    lm_eval_include: str | None = option(None, "a folder with task files of your own for lm_eval", is_place=True)


@accepts_old_names
@dataclass(frozen=True, kw_only=True)
class EvalConfig(
    HarnessSettings, ModelRunSettings, DecodingSettings, RewardSettings, DataFileSettings, MetricSettings,
    EvaluatedSettings,
):  # fmt: skip
    """Settings of `nearstep eval` and `run_eval`."""

    old_names: ClassVar[OldNames] = OF_EVALUATION

    @property
    def model(self) -> str | None:
        """The model that is evaluated."""
        return self.model_path or self.base_model

    @property
    def wanted(self) -> tuple[str, ...]:
        """The metrics that are asked for, by their names here; none where it is left to the inputs."""
        return tuple(dict.fromkeys(OTHER_NAMES.get(name, name) for name in self.metrics))

    @property
    def has_rewards(self) -> bool:
        """Whether the settings name a reward."""
        return reward_count(self) > 0

    def problems(self) -> Iterator[Problem]:
        """Settings that clash, or lack what the metrics need."""
        yield from data_name_problems(self.dataset_format, self.prompt_type)
        yield from sampling_problems(self)
        yield from reward_problems(self)
        for name in self.metrics:
            if name not in METRICS and name not in OTHER_NAMES:
                near = nearest(name, [*METRICS, *OTHER_NAMES])
                meant = f"did you mean {near}?" if near else f"there are {', '.join(METRICS)}"
                yield Problem(f"metrics: there is none called {name}; {meant}", ("metrics",))
        if self.reference_model_path is None and "kl" in self.wanted:
            yield Problem("metrics = kl needs reference_model_path", ("metrics", "reference_model_path"))
        if self.model is None and self.wanted:
            for name in {"kl", "entropy", "perplexity"} & set(self.wanted):
                yield Problem(f"metrics = {name} needs model_path", ("metrics", "model_path"))
        if self.completions is None and self.k_list and max(self.k_list) > self.num_generations:
            text = f"k_list: pass@{max(self.k_list)} needs num_generations = {max(self.k_list)} or more"
            yield Problem(text, ("k_list", "num_generations"))
        if self.lm_eval and self.model is None:
            yield Problem("lm_eval needs model_path", ("lm_eval", "model_path"))

    def remarks(self) -> Iterator[str]:
        """Settings without effect, and metrics under other names."""
        yield from (
            f"metrics {name} is called {OTHER_NAMES[name]} here" for name in self.metrics if name in OTHER_NAMES
        )
        yield from sampling_remarks(self)
        yield from reward_remarks(self)
        yield from without_effect(
            self,
            ("without lm_eval", not self.lm_eval, ("lm_eval_python", "lm_eval_include")),
            ("with correctness", self.correctness is not None, ("task_type",)),
        )


EVAL_SECTIONS = sections(
    ("What is evaluated", EvaluatedSettings),
    ("Metrics", MetricSettings),
    ("Data", DataFileSettings),
    ("Rewards", LocalRewardSettings),
    ("Sampling", DecodingSettings),
    ("Models", ModelRunSettings),
    ("lm-evaluation-harness", HarnessSettings),
)
