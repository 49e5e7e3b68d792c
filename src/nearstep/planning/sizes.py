"""How many weights a network has, of which type and which of them train: counted on the meta device."""

from collections.abc import Iterable, Mapping, Sequence

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from nearstep.common.errors import ModelError
from nearstep.planning.quantities import NetworkSize, Weights
from nearstep.scale.layer_plan import LayerPlan
from nearstep.training.eight_bit import SMALLEST

EXPERTS_EACH_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


# Of a weight in 4 bits: its half byte, and the scale of every 64; nested, that in a byte with a scale for every 256.
FOUR_BIT, NESTED = 0.5 + 4 / 64, 0.5 + 1 / 64 + 4 / (64 * 256)


def size_of(
    model: nn.Module,
    config: PreTrainedConfig,
    head: nn.Module | None,
    known: set[int],
    packed: Mapping[int, float] | None = None,
) -> NetworkSize:
    """Count the weights of a model that are not in `known`, and add them to it. `packed`: bytes that each of some takes
    in memory."""
    packed = packed or {}
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
    kinds: dict[tuple[int, bool, float | None], list[int]] = {}
    for weight in new:
        kinds.setdefault((weight.element_size(), weight.requires_grad, packed.get(id(weight))), []).append(
            weight.numel()
        )
    known |= {id(weight) for weight in new}
    return NetworkSize(
        weights=tuple(
            Weights(sum(counts), size, trained, of_packed, sum(each for each in counts if each < SMALLEST))
            for (size, trained, of_packed), counts in sorted(kinds.items(), key=str)
        ),
        layer_weights=max((_total(layer.parameters()) for layer in layers), default=_total(every)),
        outside_weights=sum(weight.numel() for weight in every if id(weight) not in in_layers) if layers else 0,
        token_weights=dense + round(all_experts * _expert_share(config)),
        expert_weights=all_experts,
        head_weights=_total(heads),
        largest_packed=max((weight.numel() for weight in every if id(weight) in packed), default=0),
    )


def packed_weights(model: PreTrainedModel, *, nested: bool) -> dict[int, float]:
    """Which weights bitsandbytes packs into 4 bits, of all linear layers but the head, and what each of them takes."""
    head, each = model.get_output_embeddings(), NESTED if nested else FOUR_BIT
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | Conv1D) and module is not head]
    return {id(layer.weight): each for layer in layers}


def dividing(model: nn.Module, role: str, sizes: Sequence[int], *, experts: bool) -> tuple[tuple[int, ...], int]:
    """How many processes may compute the layers of a network together, of those asked about, 1 among them; and how many
    of its weights they divide."""
    found, divided = [1], 0
    for size in sizes:
        try:
            plan = LayerPlan.of([(role, model)], size, experts=experts)
        except ModelError:
            continue
        found.append(size)
        own = {id(weight): weight.numel() for module, names in plan.weights.items()
               for name, weight in module.named_parameters(recurse=False) if name in names}  # fmt: skip
        divided = sum(own.values())
    return tuple(found), divided


def _total(weights: Iterable[nn.Parameter]) -> int:
    return sum(weight.numel() for weight in weights)


def _expert_share(config: PreTrainedConfig) -> float:
    """Experts that a token goes to, of all; 1 where the configuration does not say."""
    known = config.to_dict()
    chosen = next((known[name] for name in EXPERTS_EACH_TOKEN if known.get(name)), None)
    there = next((known[name] for name in EXPERTS if known.get(name)), None)
    return min(1.0, chosen / there) if chosen and there else 1.0
