"""The roles of models in PPO, and how a transformers model is made ready for one."""

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nearstep.algorithm.precision import wide
from nearstep.common.errors import ModelError
from nearstep.models.adapters import base_layer, check_adapted, trained_copy
from nearstep.models.forward.forward import CausalRole, ScalarRole, row_states
from nearstep.models.forward.head import Head
from nearstep.models.forward.own_pass import recompute_activations
from nearstep.models.forward.probing import probe_alone, probe_rows, relative_gap, rounding
from nearstep.models.head_bias import add_bias, stored_bias

HEAD_NAMES = ("score", "classifier")
ROUNDING_KL = 1e-6  # nats between two ways to compute one distribution in float32


@dataclass(frozen=True)
class Policy:
    """The causal model that is trained; `model` is what the user gave, maybe peft's wrapper around it.

    Trunk and head are looked up at every use: either may have been exchanged since, as peft does.
    """

    model: nn.Module
    autocast: bool = False

    @property
    def trunk(self) -> nn.Module:
        """The model without its head."""
        trunk: nn.Module = transformers_model(self.model, "model").base_model
        return trunk

    @property
    def head(self) -> Head:
        """The output layer."""
        return _head(transformers_model(self.model, "model"))

    @property
    def device(self) -> torch.device:
        """Where token ids must lie."""
        device: torch.device = transformers_model(self.model, "model").device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        dtype: torch.dtype = transformers_model(self.model, "model").dtype
        return dtype


@dataclass(frozen=True)
class Reference:
    """The frozen policy that the KL penalty measures from: a model of its own, or the policy with its adapters off."""

    policy: Policy
    adapters_off: bool

    @contextmanager
    def active(self) -> Iterator[Policy]:
        """The reference as a policy; adapters are on again afterwards, whatever happens inside."""
        if not self.adapters_off:
            yield self.policy
            return
        with self.policy.model.disable_adapter():  # type: ignore[operator]
            yield self.policy


@dataclass(frozen=True)
class Critic:
    """The model that predicts returns: a decoder trunk and a head with one output, looked up as those of `Policy`."""

    model: nn.Module
    autocast: bool = False

    @property
    def trunk(self) -> nn.Module:
        """The model without its head."""
        trunk: nn.Module = transformers_model(self.model, "value_model").base_model
        return trunk

    @property
    def head(self) -> nn.Module:
        """The layer with one output."""
        (head,) = _heads(transformers_model(self.model, "value_model"))
        return head


@dataclass(frozen=True)
class Models:
    """The roles of one run that the loop itself uses. Reward models belong to the rewards."""

    policy: Policy
    reference: Reference | None  # None where no KL is measured
    critic: Critic | None  # None where advantages need none

    @property
    def one_trunk(self) -> bool:
        """Whether the critic is a head on the policy's own trunk, so that one pass gives log-probs and values."""
        return self.critic is not None and self.critic.trunk is self.policy.trunk


def transformers_model(model: nn.Module, role: str) -> PreTrainedModel:
    """The transformers model itself, also where peft wraps it.

    Raises ModelError for anything else, and for adapters whose effect does not lie in the layers alone.
    """
    check_adapted(model, role)
    peft = sys.modules.get("peft")
    inner = model.get_base_model() if peft is not None and isinstance(model, peft.PeftModel) else model
    if not isinstance(inner, PreTrainedModel):
        raise ModelError(
            f"{role}: got a {type(model).__name__}, which is neither a transformers model nor a peft model around one. "
            "Pass a model made by from_pretrained, or its folder or hub name."
        )
    return inner


def make_policy(
    model: nn.Module, *, role: str = "model", autocast: bool = False, checkpointing: bool = False
) -> Policy:
    """Make a causal model ready: dropout off, packed attention on, the forward pass checked against the model's own.

    Raises ModelError if the model has no plain linear output layer, or if packed rows would not see what they see
    alone.
    """
    inner = transformers_model(model, role)
    output = inner.get_output_embeddings()
    if not isinstance(base_layer(output), nn.Linear):
        raise ModelError(
            f"{role}: {type(inner).__name__} has {type(output).__name__} where a linear output layer is needed. "
            "Use a causal language model (AutoModelForCausalLM)."
        )
    policy = Policy(model, autocast)
    expected = [probe_alone(inner, row) for row in probe_rows(inner)]
    _ready(inner, role, checkpointing)
    with torch.no_grad():
        _compare(policy.head.logits(_packed(Policy(model), inner)), torch.cat(expected), inner, role)
    return policy


def make_critic(
    model: nn.Module, *, role: str = "value_model", autocast: bool = False, checkpointing: bool = False
) -> Critic:
    """Make a classification model with one label ready to be a critic. Raises ModelError if it cannot be one."""
    inner = transformers_model(model, role)
    head = scalar_head(inner, role)
    if stored_bias(inner.config) is not None:
        add_bias(inner, head)
    expected = [probe_alone(inner.base_model, row) for row in probe_rows(inner)]
    _ready(inner, role, checkpointing)
    with torch.no_grad():
        _compare(_packed(Critic(model), inner), torch.cat(expected), inner, role)
    return Critic(model, autocast)


def scalar_head(model: PreTrainedModel, role: str) -> nn.Linear:
    """The output layer with one label, under the names that transformers' classification models use.

    Where peft trains it whole, this is its trained copy.
    """
    heads = [base_layer(head) for head in _heads(model)]
    if len(heads) != 1 or not isinstance(heads[0], nn.Linear):
        raise ModelError(
            f"{role}: {type(model).__name__} has no linear head named score or classifier. Use a model of "
            "AutoModelForSequenceClassification or AutoModelForTokenClassification with num_labels=1."
        )
    if heads[0].out_features != 1:
        raise ModelError(
            f"{role}: {type(model).__name__} has {heads[0].out_features} labels, one is needed. Load it with "
            "num_labels=1 if its head was trained with one, or train a model that gives one number."
        )
    return heads[0]


def _heads(model: PreTrainedModel) -> list[nn.Module]:
    """What stands under the names of heads."""
    return [trained_copy(child) for name, child in model.named_children() if name in HEAD_NAMES]


def output_layer(model: PreTrainedModel, role: str) -> nn.Linear:
    """The layer from which the one number of a classification model comes, of decoders and encoders alike."""
    heads = _heads(model)
    layers = [layer for head in heads for layer in head.modules() if isinstance(layer, nn.Linear)]
    final = [layer for layer in layers if layer.out_features == 1]
    if len(final) != 1:
        raise ModelError(
            f"{role}: {type(model).__name__} has {len(final)} layers with one output in its head, one is needed. Use a "
            "model of AutoModelForSequenceClassification with num_labels=1."
        )
    return final[0]


def frozen_copy(policy: Policy) -> Reference:
    """A reference that stays what the policy is now; weights of the policy that do not learn are shared, not copied."""
    frozen: dict[int, object] = {id(weight): weight for weight in policy.model.parameters() if not weight.requires_grad}
    model = copy.deepcopy(policy.model, frozen).requires_grad_(False)
    return Reference(replace(policy, model=model), adapters_off=False)


def without_fresh_adapters(policy: Policy) -> Reference | None:
    """The policy with its adapters off, if they change nothing yet; else None, as for adapters that begin at random or
    change the weights under them (PiSSA)."""
    inner = transformers_model(policy.model, "model")
    reference = Reference(policy, adapters_off=True)
    with torch.no_grad():
        now = wide(policy.head.logits(_packed(policy, inner))).log_softmax(-1)
        with reference.active():
            off = wide(policy.head.logits(_packed(policy, inner))).log_softmax(-1)
    kl = (now.exp() * (now - off)).sum(-1).max()
    return reference if kl <= ROUNDING_KL else None


def _head(model: PreTrainedModel) -> Head:
    """The output layer, with what some families do to their logits after it."""
    config, linear = model.config, model.get_output_embeddings()
    match config.model_type:
        case "gemma2" | "gemma3_text" | "gemma3":
            return Head(linear, softcap=config.get_text_config().final_logit_softcapping)
        case "cohere" | "cohere2":
            return Head(linear, scale=config.logit_scale)
        case "granite" | "granitemoe":
            return Head(linear, scale=1 / config.logits_scaling)
    return Head(linear)


def _ready(model: PreTrainedModel, role: str, checkpointing: bool) -> None:
    """Dropout off (2403.17031, detail 7), checkpointing as asked; the attention can be exchanged for a pass of ours."""
    model.eval()
    if not model.base_model._can_set_attn_implementation():
        raise ModelError(
            f"{role}: {type(model).__name__} does not let its attention be chosen (transformers' "
            "AttentionInterface), which packed "
            "rows need. Families like Llama, Qwen, Mistral, Gemma, GPT-NeoX and GPT-2 do."
        )
    if checkpointing:
        recompute_activations(model)


def _packed(role: CausalRole | ScalarRole, model: PreTrainedModel) -> Tensor:
    """Final states of the probe's rows, packed."""
    rows = probe_rows(model)
    return row_states(role, torch.cat(rows), torch.tensor([len(row) for row in rows], device=model.device))


def _compare(ours: Tensor, theirs: Tensor, model: PreTrainedModel, role: str) -> None:
    """Two rows packed must give what each gives alone, up to rounding."""
    gap = relative_gap(ours, theirs)
    if not gap <= rounding(ours.dtype):
        raise ModelError(
            f"{role}: {type(model).__name__} gives other numbers for packed rows than for each row alone (relative gap "
            f"{gap:.2g}), so its family cannot be trained here without error. Please report the family "
            f"({model.config.model_type})."
        )
