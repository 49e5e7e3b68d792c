"""How many weights a network has, of which type and which of them train: counted on the meta device."""

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from nearstep.planning.quantities import NetworkSize, Weights

EXPERTS_EACH_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def size_of(model: nn.Module, config: PreTrainedConfig, head: nn.Module | None, known: set[int]) -> NetworkSize:
    """Count the weights of a model that are not in `known`, and add them to it."""
    new = [weight for weight in model.parameters() if id(weight) not in known]
    every = list(model.parameters())
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    within = {id(inner) for layer in layers for inner in layer.modules() if inner is not layer}
    layers = [layer for layer in layers if id(layer) not in within]
    in_layers = {id(weight) for layer in layers for weight in layer.parameters()}
    embeddings = [
        each for module in model.modules() if isinstance(module, nn.Embedding) for each in module.parameters()
    ]
    heads = [] if head is None else [weight for weight in head.parameters() if weight.dim() == 2]
    outside = {id(weight) for weight in (*embeddings, *heads)}
    experts = [weight for name, weight in model.named_parameters() if ".experts." in name]
    all_experts = sum(weight.numel() for weight in experts)
    dense = sum(weight.numel() for weight in every if id(weight) not in outside) - all_experts
    kinds = {(weight.element_size(), weight.requires_grad): 0 for weight in new}
    for weight in new:
        kinds[weight.element_size(), weight.requires_grad] += weight.numel()
    known |= {id(weight) for weight in new}
    return NetworkSize(
        weights=tuple(Weights(count, size, trained) for (size, trained), count in sorted(kinds.items())),
        layer_weights=max((_total(layer.parameters()) for layer in layers), default=_total(every)),
        outside_weights=sum(weight.numel() for weight in every if id(weight) not in in_layers) if layers else 0,
        token_weights=dense + round(all_experts * _expert_share(config)),
        expert_weights=all_experts,
        head_weights=_total(heads),
    )


def _total(weights: Iterable[nn.Parameter]) -> int:
    return sum(weight.numel() for weight in weights)


def _expert_share(config: PreTrainedConfig) -> float:
    """Experts that a token goes to, of all; 1 where the configuration does not say."""
    known = config.to_dict()
    chosen = next((known[name] for name in EXPERTS_EACH_TOKEN if known.get(name)), None)
    there = next((known[name] for name in EXPERTS if known.get(name)), None)
    return min(1.0, chosen / there) if chosen and there else 1.0
