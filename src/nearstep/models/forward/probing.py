"""What a model is proved to do before it is used: how its logits come about, and how rows may lie in a forward pass."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from nearstep.common.errors import ModelError
from nearstep.models.adapters import base_layer
from nearstep.models.forward.head import Head, LogitShape, OwnLogits
from nearstep.models.forward.layout import PackedRows, PaddedRows, RowLayout, RowTokens
from nearstep.models.forward.own_cache import OwnCache
from nearstep.models.forward.trunk import masked_states

LENGTHS, LEAD = (5, 4, 3), 2  # the first two rows begin alike
# What a forward pass raises that is asked for something which its model does not know.
UNFIT = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def probe_rows(vocabulary: int, device: torch.device) -> list[Tensor]:
    """Three short rows of token ids."""
    tokens = (torch.arange(sum(LENGTHS), device=device) * 7 + 3) % vocabulary
    rows = list(tokens.split(LENGTHS))
    rows[1][:LEAD] = rows[0][:LEAD]
    return rows


@torch.no_grad()
def prove_reading(model: PreTrainedModel, role: str) -> LogitShape | OwnLogits:
    """How the model's logits come about: a linear layer on its trunk's states with a known shape after it, or else.

    Raises ModelError for a model that does not give a logit for every token of its vocabulary, at every token.
    """
    vocabulary = model.config.get_text_config().vocab_size
    row, *_ = probe_rows(vocabulary, model.device)
    own = _alone(model, row, role)
    if own.dim() != 2 or len(own) != len(row) or own.shape[1] < vocabulary:
        raise ModelError(
            f"{role}: {type(model).__name__} gives {list(own.shape)} for {len(row)} ids where logits of {vocabulary} "
            "tokens are needed after each. Use a causal language model (AutoModelForCausalLM)."
        )
    linear = model.get_output_embeddings()
    layer = base_layer(linear)
    if model.base_model is model or not isinstance(layer, nn.Linear):
        return OwnLogits(own.shape[-1])
    states = _alone(model.base_model, row, role)
    if states.shape[-1] != layer.in_features or states.dtype != layer.weight.dtype:
        return OwnLogits(own.shape[-1])
    for shape in _shapes(model.config.get_text_config()):
        # The same operations on the same numbers: there is next to nothing to round.
        if relative_gap(Head(linear, shape.scale, shape.softcap).logits(states), own) <= rounding(own.dtype) / 100:
            return shape
    return OwnLogits(own.shape[-1])


def _shapes(config: PreTrainedConfig) -> Iterator[LogitShape]:
    """What the configurations of transformers' families ask for, the most special first."""
    known = vars(config)
    scales = [known.get("logit_scale"), known.get("lm_head_multiplier"), known.get("logits_scaling")]
    numbers = [float(scale) for scale in scales if isinstance(scale, int | float) and scale]
    caps = [known.get("final_logit_softcapping"), known.get("logits_soft_cap")]
    for scale in (*numbers, *(1 / number for number in numbers), 1.0):
        for cap in (*(cap for cap in caps if cap), None):
            yield LogitShape(scale, cap)


@torch.no_grad()
def own_vocabulary(model: nn.Module, role: str) -> int:
    """How many logits a module of the user's own gives a token. Raises ModelError where it gives none."""
    logits = _of_two_tokens(model, role)
    if logits.dim() != 3 or logits.shape[:2] != (1, 2) or logits.shape[2] < 2:
        raise ModelError(
            f"{role}: {type(model).__name__} gives {list(logits.shape)} for ids of [1, 2]. Its forward(ids, mask) must "
            "give logits [rows, width, vocabulary], or an object with such .logits."
        )
    return logits.shape[2]


@torch.no_grad()
def check_one_number(model: nn.Module, role: str) -> None:
    """Raises ModelError where a module of the user's own does not give one number a token."""
    found = _of_two_tokens(model, role)
    if tuple(found.shape) != (1, 2, 1):
        raise ModelError(
            f"{role}: {type(model).__name__} gives {list(found.shape)} for ids of [1, 2]. Its forward(ids, mask) must "
            "give one number a token, [rows, width]."
        )


def _of_two_tokens(model: nn.Module, role: str) -> Tensor:
    device = next(model.parameters()).device
    try:
        return masked_states(model, torch.zeros(1, 2, dtype=torch.long, device=device), None)
    except UNFIT as error:
        raise ModelError(
            f"{role}: {type(model).__name__} is no transformers model, so it is called as model(ids, mask), both of "
            f"shape [rows, width]; that failed ({type(error).__name__}: {error})."
        ) from error


@torch.no_grad()
def prove_layout(trunk: nn.Module, vocabulary: int, device: torch.device, role: str) -> RowLayout:
    """How rows may lie so that each gives what it gives alone: packed if possible, else padded.

    Raises ModelError for a trunk that gives other numbers in both layouts, that is not causal, or that draws numbers.
    """
    rows = probe_rows(vocabulary, device)
    alone = [_alone(trunk, row, role) for row in rows]
    random = relative_gap(_alone(trunk, rows[0], role), alone[0])
    if not random <= rounding(alone[0].dtype):
        raise ModelError(
            f"{role}: {type(trunk).__name__} is random: for the same tokens it gives other numbers each time (relative "
            f"gap {random:.2g}). Switch the noise off. It is in evaluation mode here, so look for dropout that asks "
            "no mode: F.dropout with training=True, a module whose train() always goes into training mode, hooks."
        )
    ahead = relative_gap(_alone(trunk, rows[0][:LEAD], role), alone[0][:LEAD])
    if not ahead <= rounding(alone[0].dtype):
        raise ModelError(
            f"{role}: {type(trunk).__name__} is not causal: what it gives for a token depends on the tokens after it "
            f"(relative gap {ahead:.2g}). Use a decoder; BERT and its like are decoders where their configuration "
            "says is_decoder = true."
        )
    whole = torch.cat(alone)
    not_packed = _why_not_packed(trunk, rows, whole)
    if not_packed is None:
        return PackedRows()
    not_padded = _problem(PaddedRows(not_packed), trunk, rows, whole)
    if not_padded is None:
        return PaddedRows(not_packed, own_cache=_goes_on(trunk, rows, alone))
    raise ModelError(
        f"{role}: {type(trunk).__name__} cannot be trained here without error. Packed, {not_packed}; padded, "
        f"{not_padded}. Please report the family."
    )


def _alone(model: nn.Module, row: Tensor, role: str) -> Float[Tensor, "*rest"]:
    """What a model gives for one row by itself. Raises ModelError where it cannot."""
    try:
        return masked_states(model, row[None], None)[0]
    except torch.OutOfMemoryError:
        raise
    except UNFIT as error:
        dtype = next(model.parameters()).dtype
        raise ModelError(
            f"{role}: {type(model).__name__} with weights of {dtype} cannot compute {len(row)} tokens by itself "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0][:200]})"
        ) from error


def _why_not_packed(trunk: nn.Module, rows: Sequence[Tensor], alone: Float[Tensor, "tokens width"]) -> str | None:
    """None where packed rows are right."""
    if not isinstance(trunk, PreTrainedModel):
        return "a module that is not transformers' is given ids and mask only"
    if not trunk._can_set_attn_implementation():
        return f"the attention of {type(trunk).__name__} cannot be exchanged"
    return _problem(PackedRows(), trunk, rows, alone)


def _problem(
    layout: RowLayout, trunk: nn.Module, rows: Sequence[Tensor], alone: Float[Tensor, "tokens width"]
) -> str | None:
    """What is wrong with a layout for a trunk."""
    tokens, lengths = torch.cat(list(rows)), torch.tensor(LENGTHS, device=alone.device)
    leads = torch.tensor([LEAD, LEAD, 1], device=alone.device)
    every = torch.arange(len(tokens), device=alone.device)
    try:
        found = layout.states(trunk, RowTokens(tokens, lengths, leads), every, autocast=False)
    except torch.OutOfMemoryError:
        raise
    except UNFIT as error:
        return f"{type(trunk).__name__} fails ({type(error).__name__}: {str(error).partition(chr(10))[0][:200]})"
    gap = relative_gap(found, alone)
    if gap <= rounding(alone.dtype):
        return None
    return f"{type(trunk).__name__} gives other numbers than for each row alone (relative gap {gap:.2g})"


def _goes_on(trunk: nn.Module, rows: Sequence[Tensor], alone: Sequence[Tensor]) -> bool:
    """Whether rows that begin padded on the left go on from the model's own cache as they do alone."""
    if not isinstance(trunk, PreTrainedModel):
        return False
    try:
        cache, states = OwnCache.begin(trunk, [row[:-2].tolist() for row in rows], rows[0].device, autocast=False)
        found = [states, *(cache.step(torch.stack([row[place] for row in rows])) for place in (-2, -1))]
    except torch.OutOfMemoryError:
        raise
    except UNFIT:
        return False
    expected = torch.stack([states[-3:] for states in alone], dim=1)
    return relative_gap(torch.stack(found), expected) <= rounding(expected.dtype)


def relative_gap(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a share of the largest number."""
    gap = (ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp(min=1e-6)
    return float(gap)


def rounding(dtype: torch.dtype) -> float:
    """A relative gap that another order of the same operations may make."""
    return 1e-3 if dtype in (torch.float32, torch.float64) else 0.1
