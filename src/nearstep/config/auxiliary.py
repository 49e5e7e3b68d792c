"""What the policy minimises beside PPO's loss: settings of auxiliary losses, and which of them clash or do nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nearstep.config.axes import is_own
from nearstep.config.settings import Problem, Settings, option, without_effect


@dataclass(frozen=True, kw_only=True)
class AuxiliarySettings(Settings):
    """Terms of the policy's loss beside PPO's, each divided by a count of its own."""

    auxiliary_losses: tuple[str, ...] = option(
        (), "losses of your own that are added to the policy's, each as file.py:Name", is_place=True
    )
    nll_coef: float = option(
        0.0, "weight of −log π of the tokens of good rows, the mean over all of them; 0.1 in VAPO", at_least=0
    )
    nll_min_score: float = option(1.0, "nll_coef: a row is good whose score, as the rewards gave it, is at least this")
    nll_reward: str | None = option(
        None, "nll_coef: the part of the reward, by its name in the metrics, that is looked at instead of the score"
    )
    z_loss_coef: float = option(
        0.0,
        "weight of (log Σ exp)² of the policy's own logits at every action, before the temperature; 1e-4 in PaLM",
        at_least=0,
    )
    teacher_model_path: str | None = option(
        None, "teacher whose distribution the policy is drawn to: a model or adapters, same tokenizer", is_place=True
    )
    teacher_coef: float = option(1.0, "teacher: weight of log π − log π_teacher of every action", above=0)
    teacher_in: Literal["advantage", "loss"] = option(
        "advantage", "teacher: its gap is subtracted from every advantage, after whitening; or its k2 is a loss"
    )
    ptx_dataset_name: tuple[str, ...] = option(
        (), "texts whose likelihood is raised beside PPO (PPO-ptx): files, folders or hub names", is_place=True
    )
    ptx_dataset_config: str | None = option(None, "ptx: configuration of the hub data set or folder")
    ptx_dataset_split: str = option("train", "ptx: split of the data set")
    ptx_text_column: str = option(
        "text", "ptx: column of whole texts; without it rows are prompts with an answer, which alone is predicted"
    )
    ptx_coef: float = option(27.8, "ptx: weight of −log π, the mean over the tokens of a step; InstructGPT's", above=0)
    ptx_batch_size: int | None = option(
        None, "ptx: rows of each optimizer step, over all processes; as many as episodes if not given", at_least=1
    )
    ptx_row_length: int | None = option(
        None, "ptx: longest row in tokens, a longer text is several; 1024 or the model's positions if not given",
        at_least=2,
    )  # fmt: skip


TEACHER_SETTINGS = ("teacher_coef", "teacher_in")
PTX_SETTINGS = (
    "ptx_dataset_config", "ptx_dataset_split", "ptx_text_column", "ptx_coef", "ptx_batch_size", "ptx_row_length",
)  # fmt: skip


def auxiliary_problems(config: AuxiliarySettings) -> Iterator[Problem]:
    """Names of losses that are no place in a file."""
    for name in config.auxiliary_losses:
        if not is_own(name):
            yield Problem(
                f"auxiliary_losses = {name!r}: write a loss of your own as file.py:Name; those that are built in have "
                "settings of their own (nll_coef, z_loss_coef, teacher_model_path, ptx_dataset_name)",
                ("auxiliary_losses",),
            )


def auxiliary_remarks(config: AuxiliarySettings) -> Iterator[str]:
    """Settings without effect. What may also be given as an object is looked at where that is known."""
    yield from without_effect(config, ("without nll_coef", config.nll_coef == 0, ("nll_min_score", "nll_reward")))


def remarks_without(config: AuxiliarySettings, *, teacher: bool, texts: bool) -> Iterator[str]:
    """Settings without effect where there is no teacher, and where there are no texts."""
    yield from without_effect(
        config,
        ("without a teacher", not teacher, TEACHER_SETTINGS),
        ("without ptx_dataset_name", not texts, PTX_SETTINGS),
    )
