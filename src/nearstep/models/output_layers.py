"""The layer from which a classification model's numbers come: where it is, and how many it gives."""

import torch
from torch import nn
from transformers import PreTrainedModel

from nearstep.common.errors import ModelError
from nearstep.models.adapters import base_layer, trained_copy
from nearstep.models.head_bias import forget_bias, stored_bias

HEAD_NAMES = ("score", "classifier")


def scalar_head(model: PreTrainedModel, role: str) -> nn.Linear:
    """The output layer with one label, see `linear_head`."""
    return linear_head(model, role, 1)


def linear_head(model: PreTrainedModel, role: str, outputs: int) -> nn.Linear:
    """The output layer with so many labels, under the names that transformers' classification models use.

    Where peft trains it whole, this is its trained copy.
    """
    heads = [base_layer(head) for head in named_heads(model)]
    if len(heads) != 1 or not isinstance(heads[0], nn.Linear):
        raise ModelError(
            f"{role}: {type(model).__name__} has no linear head named score or classifier. Use a model of "
            f"AutoModelForSequenceClassification or AutoModelForTokenClassification with num_labels={outputs}."
        )
    found = heads[0].out_features
    if found != outputs:
        needed = "one is needed" if outputs == 1 else f"the value head has {outputs} outputs"
        raise ModelError(
            f"{role}: {type(model).__name__} has {found} label{'s' * (found != 1)}, {needed}. Load it with "
            f"num_labels={outputs} if its head was trained with {'one' if outputs == 1 else 'as many'}, or train a "
            f"model that gives {'one number' if outputs == 1 else 'as many'}."
        )
    return heads[0]


def named_heads(model: PreTrainedModel) -> list[nn.Module]:
    """What stands under the names of heads."""
    return [trained_copy(child) for name, child in model.named_children() if name in HEAD_NAMES]


def output_layer(model: PreTrainedModel, role: str, outputs: int = 1) -> nn.Linear:
    """The layer from which the numbers of a classification model come, of decoders and encoders alike."""
    heads = named_heads(model)
    layers = [layer for head in heads for layer in head.modules() if isinstance(layer, nn.Linear)]
    final = [layer for layer in layers if layer.out_features == outputs]
    if len(final) != 1:
        words = "one output" if outputs == 1 else f"{outputs} outputs"
        raise ModelError(
            f"{role}: {type(model).__name__} has {len(final)} layers with {words} in its head, one is needed. Use a "
            f"model of AutoModelForSequenceClassification with num_labels={outputs}."
        )
    return final[0]


def exchange_head(model: PreTrainedModel, role: str, outputs: int, *, at_zero: bool) -> None:
    """Put a linear layer with so many outputs in the place of the one-label head: zeros, or that head once for each.

    A bias that only the configuration keeps is repeated with it, or forgotten where the layer begins at zero.
    """
    old = scalar_head(model, role)
    if at_zero and stored_bias(model.config) is not None:
        forget_bias(model, old)
    new = nn.Linear(
        old.in_features, outputs, bias=old.bias is not None, device=old.weight.device, dtype=old.weight.dtype
    )
    with torch.no_grad():
        for fresh, former in zip(new.parameters(), old.parameters(), strict=True):
            fresh.copy_(torch.zeros_like(fresh) if at_zero else former.expand_as(fresh))
    (name,) = (name for name, child in model.named_children() if name in HEAD_NAMES)
    model.set_submodule(name, new)
    model.config.num_labels = outputs
    if "num_labels" in vars(model):
        model.num_labels = outputs
