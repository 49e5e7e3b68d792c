"""A policy's weights as another program reads them: adapters merged, under the names that model folders have."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from nearstep.common.errors import ModelError
from nearstep.models.adapters import is_adapted, with_adapters_merged
from nearstep.models.forward.forward import as_it_is
from nearstep.models.roles import Policy, inner_model


def whole_model(policy: Policy, engine: str) -> PreTrainedModel:
    """The policy's model; of one with adapters, a copy with their effect in its weights.

    Raises ModelError for what no other program could load.
    """
    inner = inner_model(policy.model)
    if not isinstance(inner, PreTrainedModel):
        raise ModelError(
            f"model: engine = {engine} loads models of transformers by their configuration, and a "
            f"{type(inner).__name__} has none. Use engine = transformers, which samples from the module itself"
        )
    if policy.dtype == torch.float64:
        raise ModelError(
            f"model: engine = {engine} computes in float32 at most, and the policy has float64. Use dtype = float32, "
            "or engine = transformers"
        )
    if not is_adapted(policy.model):
        return inner
    if policy.run is not as_it_is:
        raise ModelError(
            f"model: engine = {engine} is given adapters merged into a copy of the policy, and weights that lie over "
            "processes (dp_shard) have none. Name the policy in whole_roles, or use engine = transformers"
        )
    tied = inner.config.get_text_config().tie_word_embeddings
    merged = with_adapters_merged(policy.model)
    if tied and not merged.config.get_text_config().tie_word_embeddings:
        raise ModelError(
            f"model: adapters on one of two tied embeddings make them two matrices, which engine = {engine} has no "
            "place for. Leave the embeddings out of lora_target_modules, or use engine = transformers"
        )
    return merged


def folder_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Weights by the names of a model folder; one that two names share stands once. Nothing is copied where names
    alone differ."""
    found: dict[str, Tensor] = {}
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, tensor in _tensors(model):
        key = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        found[name] = tensor.detach()
    converted: dict[str, Tensor] = revert_weight_conversion(model, found)
    return converted


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """What a state dict has. To ask for one would put weights that are gathered back into pieces (FSDP2)."""
    yield from model.named_parameters(remove_duplicate=False)
    for place, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{place}.{name}" if place else name, buffer


def write_configuration(model: PreTrainedModel, folder: Path) -> None:
    """The folder of a model without weights and tokenizer."""
    model.config.save_pretrained(folder)
