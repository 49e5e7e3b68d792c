"""How a trunk is called: what is asked of it goes by name, what it gives is read by name."""

from collections.abc import Mapping
from inspect import signature

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from nearstep.models.attention.interface import AttentionPlan
from nearstep.models.forward.own_pass import own_pass, recomputing

CACHES = ("past_key_values", "cache_params", "state")  # how families call what they give and take


def hidden_states(
    trunk: nn.Module,
    tokens: Int[Tensor, " tokens"],
    positions: Int[Tensor, "1 tokens"],
    plan: AttentionPlan,
    *,
    autocast: bool = False,
) -> Float[Tensor, "tokens width"]:
    """The last hidden state of every token of a packed input.

    Neither a mask nor a cache may be given to the model here: with either, transformers lets packed rows attend to each
    other without a word.
    """
    with own_pass(trunk), torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=autocast):
        output = trunk(
            input_ids=tokens[None],
            position_ids=positions,
            attention_mask=None,
            attention_plan=plan,
            **_asked(trunk),
        )
    return last_states(output).squeeze(0)


def masked_states(
    trunk: nn.Module,
    ids: Int[Tensor, "rows width"],
    mask: Int[Tensor, "rows width"] | None,
    *,
    autocast: bool = False,
) -> Float[Tensor, "rows *rest"]:
    """The last hidden state of every place of rows side by side, as the model computes them by itself.

    [rows, width, size] for what may play a role; what else a model gives is refused by the proofs in `probing`.
    A module that is not transformers' is called with ids and mask, in this order.
    """
    with recomputing(trunk), torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=autocast):
        if isinstance(trunk, PreTrainedModel):
            return last_states(trunk(input_ids=ids, attention_mask=mask, **_asked(trunk)))
        states = last_states(trunk(ids, torch.ones_like(ids) if mask is None else mask))
    return states[..., None] if states.dim() == 2 else states  # a critic may give one number a token


def cached_states(
    trunk: PreTrainedModel,
    ids: Int[Tensor, "rows new"],
    mask: Int[Tensor, "rows width"],
    cache: Mapping[str, object],
    *,
    autocast: bool = False,
) -> tuple[Float[Tensor, "rows size"], dict[str, object]]:
    """The last hidden state of every row's newest token, and the model's own cache with all of them, by its name.

    Padding lies on the left. `cache` is empty where rows begin.
    """
    named = dict(cache)
    if "position_ids" in signature(type(trunk).forward).parameters:
        named["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    seen = None if "cache_params" in cache else mask  # a recurrent state that has begun reads no mask
    with recomputing(trunk), torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=autocast):
        output = trunk(input_ids=ids, attention_mask=seen, **named, **{**_asked(trunk), "use_cache": True})
    return last_states(output)[:, -1], {name: output[name] for name in CACHES if name in output}


def last_states(output: object) -> Tensor:
    """What a trunk gave of every token: its states; its logits where it is a whole model.

    Never by position: a mixture of experts puts its balancing loss first.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, ModelOutput) and "logits" not in output:
        states: Tensor = output["last_hidden_state"]
        return states
    logits: Tensor = output.logits  # type: ignore[attr-defined]
    return logits


def _asked(trunk: nn.Module) -> dict[str, bool]:
    """What is asked of a forward pass, whatever the model's configuration has as its defaults."""
    asked = {"use_cache": False, "return_dict": True, "output_hidden_states": False, "output_attentions": False}
    if isinstance(trunk, PreTrainedModel) and "output_router_logits" in vars(trunk.config):
        asked["output_router_logits"] = False
    return asked
