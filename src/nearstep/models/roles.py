"""The roles of models in PPO, and how a transformers model is made ready for one."""

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from nearstep.algorithm.precision import wide
from nearstep.algorithm.value_heads import LinearHead, ValueHead
from nearstep.common.errors import ModelError
from nearstep.models.adapters import check_adapted
from nearstep.models.forward.forward import PassRunner, as_it_is
from nearstep.models.forward.head import Head, LogitShape, OwnLogits, Same
from nearstep.models.forward.layout import PackedRows, RowLayout, RowTokens
from nearstep.models.forward.own_pass import recompute_activations
from nearstep.models.forward.probing import (
    check_one_number,
    own_vocabulary,
    probe_rows,
    prove_layout,
    prove_reading,
)
from nearstep.models.head_bias import add_bias, stored_bias
from nearstep.models.offload import Offload
from nearstep.models.output_layers import linear_head, named_heads
from nearstep.models.stored_head import head_in_words, is_linear, require_head, shown

ROUNDING_KL = 1e-6  # nats between two ways to compute one distribution in float32


@dataclass(frozen=True)
class Policy:
    """The causal model that is trained; `model` is what the user gave, maybe peft's wrapper around it.

    Trunk and head are looked up at every use: either may have been exchanged since, as peft does.
    """

    model: nn.Module
    autocast: bool = False
    layout: RowLayout = field(default_factory=PackedRows)
    reading: LogitShape | OwnLogits = field(default_factory=LogitShape)
    vocabulary: int | None = None  # ids from this on have no probability; None where all logits count
    run: PassRunner = as_it_is

    @property
    def trunk(self) -> nn.Module:
        """The model without its head; the whole model where this gives its logits itself."""
        if isinstance(self.reading, OwnLogits):
            return inner_model(self.model)
        trunk: nn.Module = transformers_model(self.model, "model").base_model
        return trunk

    @property
    def head(self) -> Head:
        """The output layer."""
        if isinstance(self.reading, OwnLogits):
            return Head(Same(self.reading.vocabulary), known=self.vocabulary)
        linear = transformers_model(self.model, "model").get_output_embeddings()
        return Head(linear, self.reading.scale, self.reading.softcap, self.vocabulary)

    @property
    def device(self) -> torch.device:
        """Where token ids must lie."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        dtype: torch.dtype = next(self.trunk.parameters()).dtype
        return dtype


@dataclass(frozen=True)
class Reference:
    """A frozen policy, the reference or a teacher: a model of its own, or the policy with its adapters off."""

    policy: Policy
    adapters_off: bool
    idle: Offload = field(default_factory=Offload)

    @contextmanager
    def active(self) -> Iterator[Policy]:
        """The reference as a policy; adapters are on again afterwards, whatever happens inside."""
        with self.policy.model.disable_adapter() if self.adapters_off else self.idle.here():  # type: ignore[operator]
            yield self.policy


@dataclass(frozen=True)
class Critic:
    """The model that predicts returns: a decoder trunk and a linear layer, looked up as those of `Policy`, and what
    that layer's outputs mean.

    A module of the user's own gives its numbers itself: it is its own trunk.
    """

    model: nn.Module
    autocast: bool = False
    layout: RowLayout = field(default_factory=PackedRows)
    value_head: ValueHead = field(default_factory=LinearHead)
    run: PassRunner = as_it_is

    @property
    def trunk(self) -> nn.Module:
        """The model without its head."""
        inner = inner_model(self.model)
        trunk: nn.Module = inner.base_model if isinstance(inner, PreTrainedModel) else inner
        return trunk

    @property
    def head(self) -> nn.Module:
        """The layer that gives the outputs."""
        inner = inner_model(self.model)
        if not isinstance(inner, PreTrainedModel):
            return Same(1)
        (head,) = named_heads(inner)
        return head

    @property
    def members(self) -> "tuple[Critic, ...]":
        """Itself."""
        return (self,)


@dataclass(frozen=True)
class Critics:
    """Several critics with a model each, every one trained on other responses to a prompt; the value is their mean."""

    members: tuple[Critic, ...]
    model: nn.ModuleList  # those of the members, in this order


@dataclass(frozen=True)
class Models:
    """The roles of one run that the loop itself uses. Reward models belong to the rewards."""

    policy: Policy
    reference: Reference | None  # None where no KL is measured
    critic: Critic | Critics | None  # None where advantages need none
    teacher: Reference | None = None  # the frozen policy that this one is drawn to; None without distillation

    @property
    def one_trunk(self) -> bool:
        """Whether the critic is a head on the policy's own trunk, so that one pass gives log-probs and values."""
        return isinstance(self.critic, Critic) and self.critic.trunk is self.policy.trunk


def inner_model(model: nn.Module) -> nn.Module:
    """The model itself, also where peft wraps it."""
    peft = sys.modules.get("peft")
    inner: nn.Module = model.get_base_model() if peft is not None and isinstance(model, peft.PeftModel) else model
    return inner


def transformers_model(model: nn.Module, role: str) -> PreTrainedModel:
    """The transformers model itself, also where peft wraps it.

    Raises ModelError for anything else, and for adapters whose effect does not lie in the layers alone.
    """
    check_adapted(model, role)
    inner = inner_model(model)
    if not isinstance(inner, PreTrainedModel):
        raise ModelError(
            f"{role}: got a {type(model).__name__}, which is neither a transformers model nor a peft model around one. "
            "Pass a model made by from_pretrained, or its folder or hub name."
        )
    return inner


def make_policy(
    model: nn.Module,
    *,
    role: str = "model",
    autocast: bool = False,
    checkpointing: int = 0,
    vocabulary: int | None = None,
) -> Policy:
    """Make a causal model ready: dropout off, its forward pass here proved to give what it gives by itself.

    Its distribution is over the ids below `vocabulary`, which a tokenizer knows, in sampling as in training: rows that
    only round the embedding up (Qwen 2.5 has 152,064 for 151,665 tokens) get no probability. None for all of them.
    A module that is no transformers model maps ids and mask, both [rows, width], to logits. With `checkpointing` = n
    every n-th layer is recomputed in the backward pass. Raises ModelError for an
    encoder-decoder model, and for one whose rows would not give what they give alone.
    """
    inner = _ready(model, role)
    reading: LogitShape | OwnLogits
    if isinstance(inner, PreTrainedModel):
        reading, rows = prove_reading(inner, role), inner.config.get_text_config().vocab_size
    else:
        rows = own_vocabulary(inner, role)
        reading = OwnLogits(rows)
    policy = Policy(model, autocast, reading=reading, vocabulary=vocabulary)
    policy = replace(policy, layout=prove_layout(policy.trunk, rows, policy.device, role))
    if checkpointing:
        _recompute(inner, role, checkpointing)
    return policy


def make_critic(
    model: nn.Module,
    *,
    role: str = "value_model",
    autocast: bool = False,
    checkpointing: int = 0,
    value_head: ValueHead | None = None,
) -> Critic:
    """Make a classification model ready to be a critic. Raises ModelError if it cannot be one.

    It has one label, or as many as `value_head` has outputs. A module that is no transformers model maps ids and mask,
    both [rows, width], to one number a token, which is the value.
    """
    value_head = LinearHead() if value_head is None else value_head
    inner = _ready(model, role)
    vocabulary = 2
    if isinstance(inner, PreTrainedModel):
        require_head(inner.config, value_head, f"{role}: the {type(inner).__name__}")
        vocabulary, head = inner.config.get_text_config().vocab_size, linear_head(inner, role, value_head.outputs)
        if stored_bias(inner.config) is not None:
            add_bias(inner, head)
    else:
        if not is_linear(value_head):
            raise ModelError(
                f"{role}: a {type(inner).__name__} gives the value itself, and the value head "
                f"{shown(head_in_words(value_head))} would read other numbers from it. Use value_head = linear, or a "
                "transformers model."
            )
        check_one_number(inner, role)
    critic = Critic(model, autocast, value_head=value_head)
    device = next(model.parameters()).device
    critic = replace(critic, layout=prove_layout(critic.trunk, vocabulary, device, role))
    if checkpointing:
        _recompute(inner, role, checkpointing)
    return critic


def _ready(model: nn.Module, role: str) -> nn.Module:
    """The model under a wrapper, dropout off (2403.17031, detail 7)."""
    inner = inner_model(model)
    if isinstance(inner, PreTrainedModel):
        decoder_config(inner.config, role)
    model.eval()
    return inner


def decoder_config(config: PreTrainedConfig, role: str) -> PreTrainedConfig:
    """The configuration of a decoder. Raises ModelError for that of an encoder-decoder model."""
    if config.is_encoder_decoder:
        raise ModelError(
            f"{role}: {config.model_type} is an encoder-decoder model. It reads the prompt in another part than the "
            "one that answers, and nothing here feeds that part. Use a decoder (AutoModelForCausalLM)."
        )
    return config


def _recompute(model: nn.Module, role: str, every: int) -> None:
    """Gradient checkpointing. Raises ModelError where there is no layer that could be recomputed."""
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not isinstance(model, PreTrainedModel) or not layers:
        raise ModelError(
            f"{role}: gradient_checkpointing: {type(model).__name__} has no layers that are made to be computed again "
            "(transformers' GradientCheckpointingLayer). Leave it out, or lower max_tokens_per_microbatch."
        )
    recompute_activations(model, every)


def frozen_copy(policy: Policy) -> Reference:
    """A reference that stays what the policy is now; weights of the policy that do not learn are shared, not copied."""
    frozen: dict[int, object] = {id(weight): weight for weight in policy.model.parameters() if not weight.requires_grad}
    model = copy.deepcopy(policy.model, frozen).requires_grad_(False)
    return Reference(replace(policy, model=model), adapters_off=False)


def without_fresh_adapters(policy: Policy) -> Reference | None:
    """The policy with its adapters off, if they change nothing yet; else None, as for adapters that begin at random or
    change the weights under them (PiSSA)."""
    reference = Reference(policy, adapters_off=True)
    now = _probe_logprobs(policy)
    with reference.active():
        off = _probe_logprobs(policy)
    kl = (now.exp() * (now - off)).sum(-1).max()
    return reference if kl <= ROUNDING_KL else None


@torch.no_grad()
def _probe_logprobs(policy: Policy) -> Float[Tensor, "tokens vocabulary"]:
    ids = probe_rows(policy.head.vocabulary, policy.device)
    tokens, lengths = torch.cat(ids), torch.tensor([len(row) for row in ids], device=policy.device)
    rows, every = RowTokens(tokens, lengths, torch.zeros_like(lengths)), torch.arange(len(tokens), device=policy.device)
    states = policy.layout.states(policy.trunk, rows, every, autocast=False)
    return wide(policy.head.logits(states)).log_softmax(-1)
