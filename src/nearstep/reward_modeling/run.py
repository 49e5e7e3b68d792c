"""How settings, model and data become a training run: everything checked before any weight is loaded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from nearstep.common.errors import ConfigError
from nearstep.config.reward_model import RewardConfig
from nearstep.models.dtypes import DTYPES
from nearstep.models.limits import Limits
from nearstep.models.load import choose_tokenizer, family_of
from nearstep.models.quantised import check_quantised
from nearstep.reports.callbacks import check_callbacks, tracker_callbacks
from nearstep.reward_modeling.encoding import TextEncoder
from nearstep.reward_modeling.fit import checkpoint_of, require_trainer
from nearstep.reward_modeling.preparation import (
    RewardModelInTraining,
    choose_model,
    longest_text,
    prepare,
)
from nearstep.reward_modeling.saving import RewardModelSources
from nearstep.reward_modeling.scoring_rewards import choose_rewards
from nearstep.reward_modeling.training_examples import (
    Sources,
    TrainingExamples,
    encoded_examples,
    pair_examples,
    scored_examples,
)
from nearstep.reward_modeling.writing import Writer
from nearstep.rewards.build import RewardEntry
from nearstep.rewards.reading import EpisodeReader
from nearstep.scale.backend import Backend
from nearstep.scale.torch_backend import torch_backend


@dataclass(frozen=True)
class RewardRunInputs:
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
    examples: TrainingExamples
    trained: RewardModelInTraining
    callbacks: Sequence[Any]
    data_sources: RewardModelSources

    def introduction(self) -> list[str]:
        """What the user should read before the run."""
        return [*self.examples.sentences, *self.trained.notes, self._arithmetic()]

    @property
    def epochs(self) -> float:
        """Passes over the data, where max_steps is not given."""
        return self.config.num_train_epochs or self.examples.usual_epochs

    def _arithmetic(self) -> str:
        config, count = self.config, len(self.examples.train)
        unit = self.examples.unit
        processes = self.backend.world_size
        rows = config.per_device_train_batch_size * config.gradient_accumulation_steps * processes
        steps_of_a_pass = math.ceil(count / rows)
        steps = config.max_steps or math.ceil(steps_of_a_pass * self.epochs)
        return (
            f"{steps:,} steps of {rows} {unit} ({config.per_device_train_batch_size} × "
            f"{config.gradient_accumulation_steps} passes × {processes} processes), {steps / steps_of_a_pass:.2f} "
            f"passes over {count:,} {unit}."
        )


def assemble(config: RewardConfig, inputs: RewardRunInputs) -> RewardRun:
    """Build everything a run needs, cheap checks first.

    Raises ConfigError, DataError, RewardError or ModelError; nothing has been written then.
    """
    require_trainer()
    checkpoint_of(config)
    backend = torch_backend(use_cpu=config.use_cpu)
    check_callbacks(inputs.callbacks)
    trackers = tracker_callbacks(config.report_to, main=backend.rank == 0)
    model = choose_model(config, inputs.model)
    trusted = config.trust_remote_code
    tokenizer = choose_tokenizer(
        inputs.tokenizer, model, model_name_or_path=config.model_name_or_path, trust_remote_code=trusted
    )
    family = family_of(model, trust_remote_code=trusted)
    check_quantised(family, "model", trains=not config.use_peft and inputs.peft_config is None)
    limits = Limits.of(family, "the model")
    encoder = TextEncoder(EpisodeReader(tokenizer), limits.rows, longest_text(config, limits))
    examples = _examples(
        config, inputs, encoder, Writer(config, model, tokenizer, limits, DTYPES[config.dtype], backend)
    )
    trained = prepare(config, model, tokenizer, inputs.peft_config)
    origin = model if isinstance(model, str) else trained.inner.config.name_or_path or None
    return RewardRun(
        config,
        backend,
        tokenizer,
        examples,
        trained,
        [*trackers, *inputs.callbacks],
        RewardModelSources(origin, examples.names),
    )


def _examples(config: RewardConfig, inputs: RewardRunInputs, encoder: TextEncoder, writer: Writer) -> TrainingExamples:
    """From the data's own pairs, or from rewards of its texts. Raises ConfigError where there is neither."""
    sources = Sources(inputs.train_dataset, inputs.eval_dataset)
    rewards = choose_rewards(config, inputs.reward_funcs, writer.tokenizer, writer.backend)
    if rewards is not None:
        with rewards:
            return scored_examples(config, sources, encoder, rewards, writer)
    if config.objective == "regression":
        raise ConfigError("objective = regression learns scores, and no source gives any: pass reward_funcs")
    return encoded_examples(config, sources) or pair_examples(config, sources, encoder)
