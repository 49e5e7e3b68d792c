"""One network of a planned run: made on the meta device, counted, and a pass traced, so that no weight is loaded."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from nearstep.common.errors import ConfigError
from nearstep.common.model_places import model_place
from nearstep.config.one_base import VF_LORA
from nearstep.config.planning import PlanConfig
from nearstep.models.adapter_folders import holds_adapters, read_adapters
from nearstep.models.adapters import add_adapters, lora_from, targets, with_head_trained
from nearstep.models.classifier import new_scalar_model
from nearstep.models.dtypes import DTYPES
from nearstep.models.load import check_folder, family_of
from nearstep.models.output_layers import HEAD_NAMES
from nearstep.models.own_code import code_arguments
from nearstep.models.roles import transformers_model
from nearstep.planning.passes import inner_share, pass_bytes
from nearstep.planning.quantities import PassBytes, PlannedNetwork, Weights
from nearstep.planning.sizes import dividing, packed_weights, size_of
from nearstep.training.eight_bit import SMALLEST


@dataclass
class PlannedModels:
    """Makes the networks of a run, one after the other."""

    config: PlanConfig
    is_gpu: bool
    notes: list[str]
    together: tuple[int, ...] = ()  # numbers of processes that might compute layers together

    @cached_property
    def passes(self) -> dict[tuple[str, bool], PassBytes]:
        """By family and whether there are adapters, so that networks alike are traced once."""
        return {}

    @cached_property
    def inner(self) -> dict[str, float]:
        """By family: what of a layer processes divide that compute it together."""
        return {}

    @cached_property
    def adapters(self) -> Any:
        """peft's configuration of the policy's adapters; None where all its weights learn."""
        place = model_place(self._policy_name())
        if self.config.use_peft:
            return lora_from(self.config)
        return read_adapters(place, "model", trust=self.config.trust).config if holds_adapters(place) else None

    def _policy_name(self) -> str:
        name = self.config.sft_model_path or self.config.model_name_or_path
        if name is None:
            raise ConfigError("no policy: set model_name_or_path")
        return name

    def policy(self) -> PlannedNetwork:
        """The network that is trained, its base in 4 bits where the settings say so."""
        name = self._policy_name()
        family = self._family(name, "model")
        model = self._causal(name, family, "model")
        packed = {}
        if self.config.load_in_4bit:
            packed = packed_weights(model, nested=self.config.use_bnb_nested_quant)
        adapted: nn.Module = model
        if self.adapters is not None:
            adapted = add_adapters(model, self.adapters, seed=self.config.seed)
        return self._network("policy", name, adapted, family, trains=True, adapters=self.adapters, packed=packed)

    def network(self, role: str, name: str, *, logits: bool, trains: bool = False) -> PlannedNetwork:
        """A network of its own, whole."""
        family = self._family(name, role)
        model = self._causal(name, family, role) if logits else self._scalar(family)
        return self._network(role, name, model, family, trains=trains)

    def critic_adapters(self, name: str) -> tuple[Weights, ...]:
        """What a critic on the policy's frozen weights has of its own: adapters and a head."""
        if self.adapters is None:
            raise ConfigError(
                "critic_trunk = adapter: the critic uses the frozen weights under the policy's adapters, and it has "
                "none. Set use_peft, or use critic_trunk = separate or shared"
            )
        model = self._scalar(self._family(name, "value_model"))
        chosen = copy.copy(self.adapters)
        changes = {"r": self.config.vf_lora_r, "lora_alpha": self.config.vf_lora_alpha}
        vars(chosen).update({each: value for each, value in changes.items() if value is not None})
        if self.config.vf_lora_target_modules is not None:
            chosen.target_modules = targets(self.config.vf_lora_target_modules, VF_LORA[2])
        heads = [each for each, _ in model.named_children() if each in HEAD_NAMES]
        chosen.task_type, chosen.modules_to_save = "SEQ_CLS", None
        adapted = add_adapters(model, with_head_trained(chosen, heads), seed=self.config.seed, role="value_model")
        return _counted(weight for weight in adapted.parameters() if weight.requires_grad)

    def reward_adapters(self, name: str) -> tuple[Weights, ...]:
        """What a reward model on the policy's frozen weights has of its own; its folder is small, and read."""
        tensors = read_adapters(model_place(name), "reward_model", trust=self.config.trust).tensors.values()
        return (Weights(sum(each.numel() for each in tensors), 4, trained=False),)

    def _family(self, name: str, role: str) -> PreTrainedConfig:
        place = model_place(name)
        check_folder(place, role)
        family = family_of(place, role=role, trust=self.config.trust)
        if "quantization_config" in family.to_dict():
            raise ConfigError(
                f"{role}: the weights of {name} are quantised already, and the plan does not know what memory "
                "their method takes. Plan the model that they were made of, with load_in_4bit for 4 bits"
            )
        return family

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
        self,
        role: str,
        name: str,
        model: nn.Module,
        family: PreTrainedConfig,
        *,
        trains: bool,
        adapters: Any = None,
        packed: dict[int, float] | None = None,
    ) -> PlannedNetwork:
        inner = transformers_model(model, role)
        head = inner.get_output_embeddings() if role not in ("value", "reward") else None
        if not trains:
            model.requires_grad_(False)
        known = family.to_dict()
        heads = int(family.num_attention_heads) if "num_attention_heads" in {*known, *family.attribute_map} else 1
        whole = role == "reward" or role in self.config.whole_roles
        sizes: tuple[int, ...] = (1,)
        divided = None
        if self.together and not whole:
            sizes, divided = dividing(model, role, self.together, experts=self.config.ep_size > 1)
        size = size_of(model, family, head, set(), packed)
        return PlannedNetwork(
            role=role,
            name=name,
            size=size if divided is None else size.with_divided(divided),
            passes=self._passes(family, adapters, divided=len(sizes) > 1),
            width=int(family.hidden_size),
            attention_width=heads * int(known.get("head_dim") or family.hidden_size // heads),
            vocabulary=0 if head is None else int(family.vocab_size),
            trains=trains,
            whole=whole,
            autocast=self.config.bf16,
            heads=heads,
            tensor_sizes=sizes,
        )

    def _passes(self, family: PreTrainedConfig, adapters: Any, *, divided: bool) -> PassBytes:
        number = str(sorted(family.to_dict().items(), key=lambda item: item[0]))
        bytes_each, key = DTYPES[self.config.dtype].itemsize, (number, adapters is not None)
        if key not in self.passes:
            found = pass_bytes(family, bytes_each, autocast=self.config.bf16, is_gpu=self.is_gpu, adapters=adapters)
            if not found.is_traced:
                self.notes.append(
                    f"Passes of {family.model_type} cannot be run without numbers: activations are by rule of thumb."
                )
            self.passes[key] = found
        if not divided:
            return self.passes[key]
        if number not in self.inner:
            self.inner[number] = inner_share(family, self.passes[key], bytes_each, is_gpu=self.is_gpu)
        return self.passes[key].dividing(self.inner[number])


def _counted(weights: Iterable[nn.Parameter]) -> tuple[Weights, ...]:
    """Weights that train, by their type."""
    kinds: dict[int, list[int]] = {}
    for weight in weights:
        kinds.setdefault(weight.element_size(), []).append(weight.numel())
    return tuple(
        Weights(sum(counts), size, trained=True, small=sum(each for each in counts if each < SMALLEST))
        for size, counts in sorted(kinds.items())
    )
