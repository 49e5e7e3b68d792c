"""What the user passes in Python beside the settings."""

from dataclasses import dataclass, fields, replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nearstep.common.given import (
    entries,
    given_adapters,
    given_callbacks,
    given_model,
    given_reward_functions,
    given_reward_models,
    given_tokenizer,
    is_named,
    place_or,
    places_or,
    unnamed,
)
from nearstep.config.ppo import PPOConfig
from nearstep.models.tokenizers import load_tokenizer
from nearstep.models.trl_heads import TrlHead
from nearstep.reports.settings_file import GivenInPython
from nearstep.rewards.build import reward_tokenizer

SEVERAL = ("reward_model", "reward_funcs", "callbacks", "auxiliary_losses")
# Where a name that was passed stands in the settings.
SETTINGS = {
    "ref_model": "ref_model_path", "value_model": "value_model_path", "engine": "engine",
    "train_dataset": "dataset_name", "eval_dataset": "eval_dataset_name", "teacher_model": "teacher_model_path",
    "ptx_dataset": "ptx_dataset_name",
}  # fmt: skip


@dataclass(frozen=True)
class RunInputs:
    """What the user passed, whatever it is; `checked` says what it may be. What is None comes from the settings."""

    tokenizer: Any = None
    model: Any = None
    ref_model: Any = None
    value_model: Any = None
    reward_model: Any = None
    reward_tokenizer: Any = None
    reward_funcs: Any = ()
    train_dataset: object = None
    eval_dataset: object = None
    peft_config: Any = None
    value_peft_config: Any = None
    callbacks: Any = ()
    trust_region: object = None  # the axes: objects of their protocols, or classes to be made without arguments
    advantage: object = None
    kl_controller: object = None
    critic_schedule: object = None
    loss_aggregation: object = None
    value_head: object = None
    correction: object = None
    sampler: object = None
    gate: object = None
    engine: object = None
    auxiliary_losses: Any = ()
    teacher_model: Any = None
    ptx_dataset: object = None
    trunk_head: TrlHead | None = None  # what a value head on the policy's trunk starts from, instead of zeros

    def checked(self, config: PPOConfig) -> "RunInputs":
        """The same with places written out, lists for one object, and classes made.

        Raises ConfigError for an argument that is none of what it may be, ModelError where no tokenizer is.
        """
        reader, role = given_tokenizer(self.reward_tokenizer, "reward_processing_class"), "reward_processing_class"
        return replace(
            self,
            tokenizer=given_tokenizer(self.tokenizer, "processing_class"),
            model=given_model(self.model, "model"),
            ref_model=given_model(self.ref_model, "ref_model"),
            value_model=given_model(self.value_model, "value_model"),
            reward_model=given_reward_models(self.reward_model),
            reward_tokenizer=load_tokenizer(reader, role=role, trust=config.trust)
            if isinstance(reader, str)
            else reader,
            reward_funcs=given_reward_functions(self.reward_funcs),
            train_dataset=places_or(self.train_dataset),
            eval_dataset=places_or(self.eval_dataset),
            peft_config=given_adapters(self.peft_config),
            value_peft_config=given_adapters(self.value_peft_config, "value_peft_config"),
            callbacks=given_callbacks(self.callbacks),
            engine=place_or(self.engine),
            auxiliary_losses=entries(self.auxiliary_losses),
            teacher_model=given_model(self.teacher_model, "teacher_model"),
            ptx_dataset=places_or(self.ptx_dataset),
        )

    def in_words(self, config: PPOConfig) -> GivenInPython:
        """What the settings would say of these inputs, which are checked, and which of them are objects."""
        words: dict[str, object] = {}
        parts: dict[str, object] = {}
        for argument in fields(self):
            given = vars(self)[argument.name]
            for number, each in enumerate(given) if argument.name in SEVERAL else [(None, given)]:
                parts[argument.name if number is None else f"{argument.name}[{number}]"] = each
            if argument.name in SETTINGS and is_named(given):
                words[SETTINGS[argument.name]] = given
        rewards = (*self.reward_model, *self.reward_funcs)
        named = [each for each in rewards if isinstance(each, str)]
        if self.reward_model and named and rewards[0] == named[0]:
            words["reward_model_path"] = named.pop(0)
        if named:
            words["reward_funcs"] = [*named, *config.reward_funcs]
        policy = self.model if isinstance(self.model, str) else config.sft_model_path or config.model_name_or_path
        if isinstance(self.tokenizer, str):  # it is read from model_name_or_path, and may lie elsewhere than the policy
            words |= {"model_name_or_path": self.tokenizer, "sft_model_path": policy}
        elif isinstance(self.model, str):
            words["sft_model_path" if config.model_name_or_path else "model_name_or_path"] = policy
        return GivenInPython(words, unnamed(parts))


def reader_of(
    reward_model: PreTrainedModel, config: PPOConfig, inputs: RunInputs, policy: PreTrainedTokenizerBase
) -> PreTrainedTokenizerBase:
    """The tokenizer that a reward model reads with."""
    trusted = config.trust
    return reward_tokenizer(reward_model, inputs.reward_tokenizer, policy, trust=trusted)
