"""How settings, model and data become a training run: everything checked before any weight is loaded."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from nearstep.common.errors import ConfigError
from nearstep.common.given import (
    given_adapters,
    given_callbacks,
    given_model,
    given_reward_functions,
    given_tokenizer,
    is_named,
    places_or,
    unnamed,
)
from nearstep.common.hub import check_hub
from nearstep.common.telling import tell
from nearstep.config.launcher import check_launch
from nearstep.config.reward_model import RewardConfig
from nearstep.models.adapters import REWARD_TASKS, check_peft_config, lora_from
from nearstep.models.dtypes import DTYPES
from nearstep.models.limits import Limits
from nearstep.models.load import family_of
from nearstep.models.quantised import check_quantised
from nearstep.models.tokenizers import choose_tokenizer
from nearstep.reports.callbacks import tracker_callbacks
from nearstep.reports.settings_file import GivenInPython
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
from nearstep.rewards.reading import EpisodeReader
from nearstep.scale.backend import Backend
from nearstep.scale.torch_backend import torch_backend
from nearstep.training.warm_ups import learning_rate_notes


@dataclass(frozen=True)
class RewardRunInputs:
    """What the user passed, whatever it is; `checked` says what it may be. What is None comes from the settings."""

    tokenizer: Any = None
    model: Any = None
    train_dataset: object = None
    eval_dataset: object = None
    peft_config: Any = None
    callbacks: Any = ()
    reward_funcs: Any = ()

    def checked(self) -> "RewardRunInputs":
        """See the same of PPO's inputs. Raises ConfigError for an argument that is none of what it may be."""
        return RewardRunInputs(
            given_tokenizer(self.tokenizer, "processing_class"),
            given_model(self.model, "model"),
            places_or(self.train_dataset),
            places_or(self.eval_dataset),
            given_adapters(self.peft_config),
            given_callbacks(self.callbacks),
            given_reward_functions(self.reward_funcs),
        )

    def in_words(self, config: RewardConfig) -> GivenInPython:
        """What the settings would say of these inputs, which are checked, and which of them are objects."""
        words: dict[str, object] = {}
        given = {"model_name_or_path": self.model, "dataset_name": self.train_dataset}
        given |= {"eval_dataset_name": self.eval_dataset}
        words |= {name: value for name, value in given.items() if value is not None and is_named(value)}
        if functions := [each for each in self.reward_funcs if isinstance(each, str)]:
            words["reward_funcs"] = [*functions, *config.reward_funcs]
        objects = {"processing_class": self.tokenizer, "model": self.model, "train_dataset": self.train_dataset}
        objects |= {"eval_dataset": self.eval_dataset, "peft_config": self.peft_config}
        objects |= {f"callbacks[{number}]": each for number, each in enumerate(self.callbacks)}
        objects |= {f"reward_funcs[{number}]": each for number, each in enumerate(self.reward_funcs)}
        return GivenInPython(words, unnamed(objects))


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
    given: GivenInPython

    def introduction(self) -> list[str]:
        """What the user should read before the run."""
        warm_up = learning_rate_notes(self.config, self._steps)
        return [*self.examples.sentences, *self.trained.notes, self._arithmetic(), *warm_up]

    @property
    def epochs(self) -> float:
        """Passes over the data, where max_steps is not given."""
        return self.config.num_train_epochs or self.examples.usual_epochs

    @property
    def _rows(self) -> int:
        config = self.config
        return config.per_device_train_batch_size * config.gradient_accumulation_steps * self.backend.world_size

    @property
    def _steps_of_a_pass(self) -> int:
        return math.ceil(len(self.examples.train) / self._rows)

    @property
    def _steps(self) -> int:
        return self.config.max_steps or math.ceil(self._steps_of_a_pass * self.epochs)

    def _arithmetic(self) -> str:
        config, count, unit = self.config, len(self.examples.train), self.examples.unit
        return (
            f"{self._steps:,} steps of {self._rows} {unit} ({config.per_device_train_batch_size} × "
            f"{config.gradient_accumulation_steps} passes × {self.backend.world_size} processes), "
            f"{self._steps / self._steps_of_a_pass:.2f} "
            f"passes over {count:,} {unit}."
        )


def assemble(config: RewardConfig, inputs: RewardRunInputs) -> RewardRun:
    """Build everything a run needs, cheap checks first.

    Raises ConfigError, DataError, RewardError or ModelError; nothing has been written then.
    """
    require_trainer()
    check_launch(os.environ, config)
    inputs = inputs.checked()
    checkpoint_of(config)
    backend = torch_backend(use_cpu=config.use_cpu)
    trackers = tracker_callbacks(config.report_to, main=backend.rank == 0)
    if inputs.peft_config is not None:
        check_peft_config(inputs.peft_config, REWARD_TASKS)
    elif config.use_peft:
        lora_from(config)
    tell("reading the data …")
    model = choose_model(config, inputs.model)
    trusted = config.trust
    tokenizer = choose_tokenizer(inputs.tokenizer, model, model_name_or_path=config.model_name_or_path, trust=trusted)
    family = family_of(model, trust=trusted)
    check_quantised(family, "model", trains=not config.use_peft and inputs.peft_config is None)
    limits = Limits.of(family, "the model")
    if config.push_to_hub and backend.rank == 0:
        check_hub(config.hub_model_id or Path(config.output_dir).resolve().name)
    reader = EpisodeReader(tokenizer, config.chat_template_kwargs)
    encoder = TextEncoder(reader, limits.rows, longest_text(config, limits))
    examples = _examples(
        config, inputs, encoder, Writer(config, model, tokenizer, family, limits, DTYPES[config.dtype], backend)
    )
    if config.normalize == "level" and examples.kind == "pairwise":
        raise ConfigError("normalize = level keeps the level of scores, and this data is pairs, which have none")
    tell("loading the model …")
    trained = prepare(config, model, tokenizer, inputs.peft_config)
    origin = model if isinstance(model, str) else trained.inner.config.name_or_path or None
    run = RewardRun(
        config,
        backend,
        tokenizer,
        examples,
        trained,
        [*trackers, *inputs.callbacks],
        RewardModelSources(origin, examples.names),
        inputs.in_words(config),
    )
    run.introduction()  # raises where nothing would be learned
    return run


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
