"""Which settings the training of a reward model has, what each does, and which combinations are refused."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from nearstep.config.data import DataSettings, data_problems
from nearstep.config.old_names import OF_REWARD_MODELS, OldNames
from nearstep.config.rewards import LocalRewardSettings, RewardSettings, reward_problems, reward_remarks
from nearstep.config.settings import Problem, Settings, accepts_old_names, option, sections, without_effect
from nearstep.config.shared import LORA, ModelSettings, OptimizerSettings, ReportSettings, RunSettings

PAIRWISE = ("center_rewards_coefficient", "label_smoothing", "margin_coefficient", "min_score_gap")


@dataclass(frozen=True, kw_only=True)
class TextSettings(Settings):
    """How long texts may be, and which are kept for the report."""

    max_length: int | None = option(
        None, "longest text in tokens, prompt and answer together; the model's limit if not given", at_least=1
    )
    on_long_text: Literal["error", "drop"] = option(
        "error", "what happens to a longer text: stop and name it, or leave it out and count it; none is ever cut"
    )
    held_out_share: float = option(
        0.1,
        "share of the data that is kept from training for the report, where no evaluation data is given",
        at_least=0,
        below=1,
    )


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings(Settings):
    """What the model learns from a label or a score."""

    objective: Literal["auto", "pairwise", "regression"] = option(
        "auto", "pairwise: the better of two texts; regression: the score of each; auto: regression where rewards score"
    )
    center_rewards_coefficient: float | None = option(
        None,
        "pairwise: weight of the squared mean reward of a pair, which pulls rewards to 0; 0.01 is usual",
        at_least=0,
    )
    label_smoothing: float = option(0.0, "pairwise: share of labels that are taken to be wrong", at_least=0, below=0.5)
    margin_coefficient: float = option(
        1.0, "pairwise: weight of the margins that the data gives; 0 for none", at_least=0
    )
    min_score_gap: float = option(
        0.0, "pairwise: texts whose scores differ by this or less make no pair, where rewards score", at_least=0
    )
    normalize: Literal["none", "mean", "mean_and_std", "level"] = option(
        "none",
        "a constant in the folder that only nearstep adds: rewards of the better texts have mean 0, or also "
        "deviation 1; level: regression has the level of the scores",
    )


@dataclass(frozen=True, kw_only=True)
class WritingSettings(Settings):
    """How the model itself writes the texts to be scored, where the data has prompts only, or there is no data."""

    num_texts: int = option(512, "texts that are written where there is no data at all", at_least=2)
    num_generations: int = option(2, "texts that are written for each prompt", at_least=1)
    response_length: int = option(64, "most tokens of a text", at_least=1)
    temperature: float = option(1.0, "of sampling", above=0)


@dataclass(frozen=True, kw_only=True)
class StepSettings(Settings):
    """How many steps there are, and how many rows in each."""

    num_train_epochs: float | None = option(
        None,
        "passes over the data; if not given 1 for pairs, on which reward models soon overfit, 3 for scores",
        above=0,
    )
    max_steps: int | None = option(None, "optimizer steps, instead of num_train_epochs", at_least=1)
    per_device_train_batch_size: int = option(
        8, "pairs (or texts) that a process holds in one forward and backward pass", at_least=1
    )
    gradient_accumulation_steps: int = option(1, "passes whose gradients make one step", at_least=1)
    per_device_eval_batch_size: int = option(32, "pairs (or texts) that a process scores at a time", at_least=1)


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings(Settings):
    """Which weights are kept, and from where a run goes on."""

    load_best_model_at_end: bool = option(
        False, "keep the weights of the best evaluation, by accuracy (regression: by loss), instead of the last"
    )
    resume_from_checkpoint: str | None = option(
        None, "folder checkpoint-N of a run with the same settings and data, from which this one goes on", is_place=True
    )


@accepts_old_names
@dataclass(frozen=True, kw_only=True)
class RewardConfig(
    # Fields stand in the opposite order: dataclasses read their bases from the last to the first.
    CheckpointSettings,
    ReportSettings,
    OptimizerSettings,
    StepSettings,
    WritingSettings,
    ObjectiveSettings,
    RewardSettings,
    TextSettings,
    DataSettings,
    ModelSettings,
    RunSettings,
):
    """All settings of the training of a reward model, flat and frozen.

    Field names are those of TRL's `RewardConfig` where it had the setting. Unknown names, wrong types and clashing
    values are refused with a `ConfigError` that lists every problem at once. An update is one optimizer step.
    """

    old_names: ClassVar[OldNames] = OF_REWARD_MODELS

    learning_rate: float = option(1e-4, "peak step size; 1e-5 and less for large models without adapters", at_least=0)
    logging_steps: int = option(10, "updates between two entries of the metrics", at_least=1)

    def problems(self) -> Iterator[Problem]:
        """Settings that clash. Types and limits are checked before."""
        yield from data_problems(self)
        yield from reward_problems(self)
        if self.bf16 and self.dtype == "float64":
            yield Problem("bf16 computes in bfloat16 and dtype = float64 asks for more: give one", ("bf16", "dtype"))
        if self.normalize == "level" and self.objective == "pairwise":
            yield Problem(
                "normalize = level keeps the level of scores, and pairs have none", ("normalize", "objective")
            )
        if self.load_best_model_at_end and (self.eval_steps is None or self.save_steps != self.eval_steps):
            yield Problem(
                "load_best_model_at_end chooses among saved weights that were evaluated: give eval_steps, and the same "
                "number as save_steps",
                ("load_best_model_at_end", "eval_steps", "save_steps"),
            )

    def remarks(self) -> Iterator[str]:
        """Settings without effect."""
        yield from reward_remarks(self)
        yield from without_effect(
            self,
            ("without use_peft", not self.use_peft, LORA),
            ("beside max_steps", self.max_steps is not None, ("num_train_epochs",)),
            ("with a constant learning rate", self.lr_scheduler_type == "constant", ("warmup_steps",)),
            ("with optim = sgd", self.optim == "sgd", ("adam_beta1", "adam_beta2", "adam_epsilon")),
            ("with objective = regression", self.objective == "regression", PAIRWISE),
            ("beside evaluation data", self._has_evaluation_data(), ("held_out_share",)),
            ("without save_steps", self.save_steps is None, ("save_total_limit",)),
            ("without push_to_hub", not self.push_to_hub, ("hub_model_id",)),
        )

    def _has_evaluation_data(self) -> bool:
        return bool(self.eval_dataset_name) or self.dataset_test_split is not None


SECTIONS = sections(
    ("Run", RunSettings),
    ("Model", ModelSettings),
    ("Data", DataSettings),
    ("Texts", TextSettings),
    ("Reward sources", LocalRewardSettings),
    ("Objective", ObjectiveSettings),
    ("Writing", WritingSettings),
    ("Steps", StepSettings),
    ("Optimizer", OptimizerSettings),
    ("Reports", ReportSettings),
    ("Checkpoints", CheckpointSettings),
)  # the sections of `--help`: title, first setting
