"""How settings, model and data become a training run: everything checked before any weight is loaded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from nearstep.config_reward_modeling import RewardConfig
from nearstep.errors import ConfigError
from nearstep.judging import RewardEntry
from nearstep.models.load import choose_tokenizer, family_of
from nearstep.reports.callbacks import check_callbacks, tracker_callbacks
from nearstep.reward_modeling.encoding import TextEncoder
from nearstep.reward_modeling.fit import checkpoint_of, require_trainer
from nearstep.reward_modeling.judges import choose_judges
from nearstep.reward_modeling.lessons import Lessons, Sources, encoded_lessons, judged_lessons, pair_lessons
from nearstep.reward_modeling.preparation import (
    DTYPES,
    Pupil,
    choose_model,
    longest_text,
    prepare,
)
from nearstep.reward_modeling.saving import Origins
from nearstep.reward_modeling.writing import Writer
from nearstep.rewards.reading import EpisodeReader
from nearstep.scale.backend import Backend
from nearstep.scale.torch_backend import torch_backend


@dataclass(frozen=True)
class Parts:
    """What the user passed as objects (or as folders and hub names). What is None is made from the settings."""

    tokenizer: PreTrainedTokenizerBase | None = None
    model: nn.Module | str | None = None
    train_dataset: object = None
    eval_dataset: object = None
    peft_config: Any = None
    callbacks: Sequence[Any] = ()
    reward_funcs: Sequence[RewardEntry] = ()


@dataclass(frozen=True)
class RewardRun:
    """The parts of a run; nothing has been trained or written yet."""

    config: RewardConfig
    backend: Backend
    tokenizer: PreTrainedTokenizerBase
    lessons: Lessons
    pupil: Pupil
    callbacks: Sequence[Any]
    origins: Origins

    def introduction(self) -> list[str]:
        """What the user should read before the run."""
        return [*self.lessons.sentences, *self.pupil.notes, self._arithmetic()]

    @property
    def epochs(self) -> float:
        """Passes over the data, where max_steps is not given."""
        return self.config.num_train_epochs or self.lessons.usual_epochs

    def _arithmetic(self) -> str:
        config, count = self.config, len(self.lessons.train)
        unit = self.lessons.unit
        processes = self.backend.world_size
        rows = config.per_device_train_batch_size * config.gradient_accumulation_steps * processes
        steps_of_a_pass = math.ceil(count / rows)
        steps = config.max_steps or math.ceil(steps_of_a_pass * self.epochs)
        return (
            f"{steps:,} steps of {rows} {unit} ({config.per_device_train_batch_size} × "
            f"{config.gradient_accumulation_steps} passes × {processes} processes), {steps / steps_of_a_pass:.2f} "
            f"passes over {count:,} {unit}."
        )


def assemble(config: RewardConfig, parts: Parts) -> RewardRun:
    """Build everything a run needs, cheap checks first.

    Raises ConfigError, DataError, RewardError or ModelError; nothing has been written then.
    """
    require_trainer()
    checkpoint_of(config)
    backend = torch_backend(use_cpu=config.use_cpu)
    check_callbacks(parts.callbacks)
    trackers = tracker_callbacks(config.report_to, main=backend.rank == 0)
    model = choose_model(config, parts.model)
    trusted = config.trust_remote_code
    tokenizer = choose_tokenizer(
        parts.tokenizer, model, model_name_or_path=config.model_name_or_path, trust_remote_code=trusted
    )
    family = family_of(model, trust_remote_code=trusted)
    encoder = TextEncoder(EpisodeReader(tokenizer), family.vocab_size, longest_text(config, family))
    lessons = _lessons(config, parts, encoder, Writer(config, model, tokenizer, family, DTYPES[config.dtype], backend))
    pupil = prepare(config, model, tokenizer, parts.peft_config)
    origin = model if isinstance(model, str) else pupil.inner.config.name_or_path or None
    return RewardRun(
        config, backend, tokenizer, lessons, pupil, [*trackers, *parts.callbacks], Origins(origin, lessons.names)
    )


def _lessons(config: RewardConfig, parts: Parts, encoder: TextEncoder, writer: Writer) -> Lessons:
    """From the data's own pairs, or from what rewards say of its texts. Raises ConfigError where neither is there."""
    sources = Sources(parts.train_dataset, parts.eval_dataset)
    judges = choose_judges(config, parts.reward_funcs, writer.tokenizer, writer.backend)
    if judges is not None:
        with judges:
            return judged_lessons(config, sources, encoder, judges, writer)
    if config.objective == "regression":
        raise ConfigError("objective = regression learns scores, and nobody gives any: pass reward_funcs")
    return encoded_lessons(config, sources) or pair_lessons(config, sources, encoder)
