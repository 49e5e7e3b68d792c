"""Which networks a run would have, by its settings: each made on the meta device, so that no weight is loaded."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from nearstep.common.errors import ConfigError
from nearstep.common.model_places import model_place
from nearstep.config.axes import CRITIC_RULES, is_own
from nearstep.config.planning import PlanConfig
from nearstep.config.ppo_rules import may_have_kl_penalty
from nearstep.models.adapter_folders import holds_adapters
from nearstep.models.adapters import add_adapters, lora_from
from nearstep.models.classifier import new_scalar_model
from nearstep.models.dtypes import DTYPES
from nearstep.models.load import check_folder, family_of
from nearstep.models.own_code import code_arguments
from nearstep.models.roles import transformers_model
from nearstep.planning.passes import pass_bytes
from nearstep.planning.quantities import NetworkSize, PassBytes, PlannedNetwork, Weights
from nearstep.planning.sizes import size_of
from nearstep.rewards.builtin.spec import meaning


@dataclass
class _Networks:
    """Those of a run, one after the other: each knows what the ones before it have loaded."""

    config: PlanConfig
    is_gpu: bool
    notes: list[str]

    @cached_property
    def passes(self) -> dict[str, PassBytes]:
        """By family and type, so that networks alike are traced once."""
        return {}

    def policy(self) -> PlannedNetwork:
        name = self.config.sft_model_path or self.config.model_name_or_path
        if name is None:
            raise ConfigError("no policy: set model_name_or_path")
        family = self._family(name, "model")
        model = self._causal(name, family, "model")
        if self.config.use_peft:
            model = add_adapters(model, lora_from(self.config), seed=self.config.seed)
        elif holds_adapters(model_place(name)):
            self.notes.append(
                f"{name} holds adapters: it is planned as a whole model that trains; give use_peft for adapters"
            )
        return self._network("policy", name, model, family, trains=True)

    def network(self, role: str, name: str, *, logits: bool, trains: bool = False) -> PlannedNetwork:
        family = self._family(name, role)
        model = self._causal(name, family, role) if logits else self._scalar(family)
        return self._network(role, name, model, family, trains=trains)

    def _family(self, name: str, role: str) -> PreTrainedConfig:
        place = model_place(name)
        check_folder(place, role)
        return family_of(place, role=role, trust=self.config.trust)

    def _causal(self, name: str, family: PreTrainedConfig, role: str) -> PreTrainedModel:
        allowed = code_arguments(model_place(name), role, self.config.trust)["trust_remote_code"]
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                family, dtype=DTYPES[self.config.dtype], trust_remote_code=allowed
            )
        return model

    def _scalar(self, family: PreTrainedConfig) -> PreTrainedModel:
        one = copy.deepcopy(family)
        one.num_labels = 1
        with torch.device("meta"):
            return new_scalar_model(one, DTYPES[self.config.dtype])

    def _network(
        self, role: str, name: str, model: nn.Module, family: PreTrainedConfig, *, trains: bool
    ) -> PlannedNetwork:
        inner = transformers_model(model, role)
        head = inner.get_output_embeddings() if role != "value" and role != "reward" else None
        if not trains:
            model.requires_grad_(False)
        known = family.to_dict()
        heads = int(family.num_attention_heads) if "num_attention_heads" in {*known, *family.attribute_map} else 1
        return PlannedNetwork(
            role=role,
            name=name,
            size=size_of(model, family, head, set()),
            passes=self._passes(family),
            width=int(family.hidden_size),
            attention_width=heads * int(known.get("head_dim") or family.hidden_size // heads),
            vocabulary=0 if head is None else int(family.vocab_size),
            trains=trains,
            whole=role == "reward" or role in self.config.whole_roles,
            autocast=self.config.bf16,
        )

    def _passes(self, family: PreTrainedConfig) -> PassBytes:
        number = str(sorted(family.to_dict().items(), key=lambda item: item[0]))
        if number not in self.passes:
            found = pass_bytes(
                family, DTYPES[self.config.dtype].itemsize, autocast=self.config.bf16, is_gpu=self.is_gpu
            )
            if not found.is_traced:
                self.notes.append(
                    f"Passes of {family.model_type} cannot be run without numbers: activations are by rule of thumb."
                )
            self.passes[number] = found
        return self.passes[number]


def planned_networks(config: PlanConfig, *, is_gpu: bool) -> tuple[list[PlannedNetwork], list[str]]:
    """The networks of a run by its settings, and what the user should know of how they were chosen.

    Raises ConfigError and ModelError for models that are not there, or that cannot have their role.
    """
    notes: list[str] = []
    made = _Networks(config, is_gpu, notes)
    policy = made.policy()
    if config.critic_trunk == "adapter":
        policy = replace(policy, layer_by_layer=False)  # it shares single weights with the critic
    found = [policy, *_references(config, made, policy)]
    rewards = [made.network("reward", name, logits=False) for name in _reward_models(config)]
    found += [*_critic(config, made, policy, rewards), *rewards]
    if config.teacher_model_path is not None:
        found.append(made.network("teacher", config.teacher_model_path, logits=True))
    return found, notes


def _reward_models(config: PlanConfig) -> list[str]:
    given = [] if config.reward_model_path is None else [config.reward_model_path]
    return [*given, *(entry for entry in config.reward_funcs if meaning(entry) == "model")]


def _references(config: PlanConfig, made: _Networks, policy: PlannedNetwork) -> Iterator[PlannedNetwork]:
    """What the KL is measured to: a model of its own, or the policy with its adapters off."""
    penalty = may_have_kl_penalty(config)
    if config.measure_kl is False or (config.measure_kl is None and not penalty and config.ref_model_path is None):
        return
    if config.ref_model_path is not None:
        yield made.network("reference", config.ref_model_path, logits=True)
        return
    frozen = replace(policy, role="reference", trains=False, whole="reference" in config.whole_roles)
    if config.use_peft:
        yield replace(frozen, size=_nothing(policy.size), weights_of_policy=True, whole=policy.whole)
        return
    yield replace(frozen, size=_frozen(policy.size))


def _critic(
    config: PlanConfig, made: _Networks, policy: PlannedNetwork, rewards: list[PlannedNetwork]
) -> Iterator[PlannedNetwork]:
    """The critic as the settings choose it: given, else from the reward model, else from the policy's trunk."""
    if config.advantage not in CRITIC_RULES and not is_own(config.advantage):
        return
    if is_own(config.advantage):
        made.notes.append(f"advantage = {config.advantage} is planned as one with a critic.")
    if config.critic_trunk == "shared":
        head = (Weights(policy.width, policy.size.bytes_each, trained=True),)
        size = replace(_nothing(policy.size), weights=head, head_weights=policy.width)
        yield replace(policy, role="value", size=size, vocabulary=0, on_policy=True)
        return
    if config.critic_trunk == "adapter":
        own = tuple(each for each in policy.size.weights if each.trained)
        size = replace(policy.size, weights=own, head_weights=policy.width)
        yield replace(policy, role="value", size=size, vocabulary=0, weights_of_policy=True, layer_by_layer=False)
        return
    name = config.value_model_path
    if name is None:
        start = next((each for each in rewards), None)
        name = policy.name if start is None else start.name
        made.notes.append(
            "The critic is planned as large as " + ("the policy." if start is None else f"the reward model {name}.")
        )
    yield replace(made.network("value", name, logits=False, trains=True), copies=config.critic_models)


def _nothing(size: NetworkSize) -> NetworkSize:
    return replace(size, weights=())


def _frozen(size: NetworkSize) -> NetworkSize:
    return replace(size, weights=tuple(replace(each, trained=False) for each in size.weights))
