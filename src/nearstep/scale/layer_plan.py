"""Which weights of networks are divided over processes that compute together, and how: read off their families' plans,
and checked before anything is divided."""

import re
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from torch import nn
from transformers import PreTrainedModel

from nearstep.common.errors import ConfigError, ModelError
from nearstep.models.adapters import base_layer
from nearstep.models.roles import inner_model

COLUMNS = frozenset({"colwise", "colwise_gather_output", "colwise_rep"})
ROWS = frozenset({"rowwise", "rowwise_rep", "rowwise_split_input"})
VOCABULARY = "embedding_rowwise"
SUMMED = "replicated_with_grad_allreduce"  # a norm of heads, whole on each process
EXPERTS = "ep_dispatch_experts"
OF_EXPERTS = "grouped_gemm"  # of their weights, experts along the first side
OF_WEIGHTS = frozenset({"packed_colwise", "packed_rowwise", OF_EXPERTS, "replicate"})
PROVEN = COLUMNS | ROWS | OF_WEIGHTS | {VOCABULARY, SUMMED, EXPERTS, "moe_tp_experts"}
NO_GRADIENT_OF_ITS_OWN = frozenset({SUMMED, EXPERTS, "moe_tp_experts", "replicate"})  # styles that divide no weight
INSTEAD = "give dp_shard in the place of tp_size, or name the role in whole_roles"


@dataclass(frozen=True)
class LayerPlan:
    """Styles of transformers for modules and for their own weights."""

    hooks: Mapping[nn.Module, str]
    weights: Mapping[nn.Module, Mapping[str, str]]
    shared: frozenset[int]  # ids of weights that lie in several modules

    @staticmethod
    def of(networks: Sequence[tuple[str, nn.Module]], processes: int, *, experts: bool) -> "LayerPlan":
        """That of networks by their role, for so many processes; with `experts` each holds whole ones of a mixture.
        Networks beside the policy that are no mixtures are divided as without.

        Raises ModelError for a network that cannot be divided so.
        """
        hooks: dict[nn.Module, str] = {}
        weights: dict[nn.Module, dict[str, str]] = defaultdict(dict)
        for role, network in networks:
            inner = inner_model(network)
            rules = _rules(inner, role, processes, experts=experts)
            for name, module in inner.named_modules():
                for target, style, own in _styles_at(module, _generic(name), rules, role):
                    hooks |= {target: style} if style is not None and style not in OF_WEIGHTS else {}
                    weights[target] |= own
        return _without_tied_ends(hooks, weights, [network for _, network in networks])


def require_transformers() -> None:
    """Raise ConfigError where transformers has no styles that train rightly together with FSDP2."""
    if find_spec("transformers.distributed") is None or find_spec("transformers.distributed.expert_parallel") is None:
        raise ConfigError("tp_size: transformers 5.23 or newer is needed: pip install -U transformers")


def _rules(model: nn.Module, role: str, processes: int, *, experts: bool) -> dict[str, str]:
    """The plan of one network: generic name of a module or weight → style."""
    kind = type(model).__name__
    plan: dict[str, str] = dict(model.tp_plan or {}) if isinstance(model, PreTrainedModel) else {}
    if not isinstance(model, PreTrainedModel) or not any(style in COLUMNS | ROWS for style in plan.values()):
        raise ModelError(f"{role}: tp_size = {processes}: {kind} brings no plan of how to divide it; {INSTEAD}")
    of_experts = dict(model.ep_plan or {}) if experts else {}
    # The policy is the mixture that was meant; a critic or reference of another family may well be dense.
    if of_experts or (experts and role == "policy"):
        if not of_experts:
            raise ModelError(
                f"{role}: ep_size = {processes}: {kind} brings no plan for experts; leave ep_size out, or name the "
                "role in whole_roles"
            )
        _check_experts(model, role, processes, of_experts)
        inside = tuple(f"{name}." for name in of_experts)
        plan = {name: style for name, style in plan.items() if not name.startswith(inside)} | of_experts
    unknown = sorted(set(plan.values()) - PROVEN)
    if unknown:
        raise ModelError(
            f"{role}: tp_size = {processes}: the plan of {kind} divides by {', '.join(unknown)}, which is not proven "
            f"to train here; {INSTEAD}"
        )
    _check_heads(model, role, processes, plan)
    return plan


def _check_experts(model: PreTrainedModel, role: str, processes: int, plan: Mapping[str, str]) -> None:
    """Count them in the weights, whatever a family's configuration calls their number."""
    for name, weight in model.named_parameters():
        if plan.get(_generic(name)) == OF_EXPERTS and len(weight) % processes:
            raise ModelError(f"{role}: ep_size = {processes} does not divide its {len(weight)} experts; {INSTEAD}")


def _check_heads(model: PreTrainedModel, role: str, processes: int, plan: Mapping[str, str]) -> None:
    if not any(style == "colwise" and "attn" in name for name, style in plan.items()):
        return
    config = model.config.get_text_config()
    for setting, what in (("num_attention_heads", "attention heads"), ("num_key_value_heads", "key-value heads")):
        heads = vars(config).get(config.attribute_map.get(setting, setting))
        if isinstance(heads, int) and heads % processes:
            raise ModelError(
                f"{role}: tp_size = {processes} does not divide its {heads} {what}: a process has whole heads. Give "
                f"a tp_size that does, and dp_shard for the rest; or name the role in whole_roles"
            )


def _styles_at(
    module: nn.Module, name: str, rules: Mapping[str, str], role: str
) -> list[tuple[nn.Module, str | None, dict[str, str]]]:
    """What a module of this generic name, or what adapters put around it, is given: hook, and styles of its weights."""
    style = rules.get(name)
    layer = base_layer(module)
    assert isinstance(layer, nn.Module), "the layer under adapters is a module"
    if layer is module:
        own = {weight: found for weight, _ in module.named_parameters(recurse=False)
               if (found := rules.get(f"{name}.{weight}", style)) is not None}  # fmt: skip
        if style in COLUMNS | ROWS:
            _check_linear(module, name, role)
        return [(module, style, _dividing(own))] if own or style is not None else []
    if style is None:
        return []
    if style not in COLUMNS | ROWS and style != VOCABULARY:
        raise ModelError(f"{role}: tp_size: adapters on {name} have no place in its plan; {INSTEAD}")
    return [(each, style, _dividing(dict.fromkeys(_names(each), style))) for each in _parts(module, layer, style, role)]


def _parts(module: nn.Module, layer: nn.Module, style: str, role: str) -> Sequence[nn.Module]:
    """The layer under adapters, and which of the adapters' own is divided as it is: of LoRA the matrix on the side
    that is divided. A layer that peft trains in a copy stays whole."""
    peft = sys.modules["peft"]
    if isinstance(module, peft.utils.other.AuxiliaryTrainingWrapper):
        return []
    if not isinstance(module, peft.tuners.lora.LoraLayer) or len(module.lora_magnitude_vector):
        raise ModelError(
            f"{role}: tp_size: of adapters only LoRA is divided, without use_dora, and this is "
            f"{type(module).__name__}; {INSTEAD}"
        )
    _check_linear(layer, "under adapters", role)
    if isinstance(layer, nn.Embedding):
        return [layer]
    matrices = module.lora_B if style in COLUMNS else module.lora_A
    return [layer, *matrices.values()]


def _check_linear(module: nn.Module, name: str, role: str) -> None:
    plain = isinstance(module, nn.Linear | nn.Embedding) and module.weight.is_floating_point()
    if not plain and "experts" not in name:
        raise ModelError(
            f"{role}: tp_size: {name} is a {type(module).__name__}, whose weights (quantised ones are such) cannot be "
            f"divided; {INSTEAD}"
        )


def _dividing(own: Mapping[str, str]) -> dict[str, str]:
    return {name: style for name, style in own.items() if style not in NO_GRADIENT_OF_ITS_OWN}


def _names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters(recurse=False)]


def _generic(name: str) -> str:
    """Numbers of layers as plans write them."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def _without_tied_ends(
    hooks: dict[nn.Module, str], weights: dict[nn.Module, dict[str, str]], networks: Sequence[nn.Module]
) -> LayerPlan:
    """The same but for weights that several modules share of which not all divide them alike: these stay whole."""
    owners: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for module in dict.fromkeys(module for network in networks for module in network.modules()):
        for name, weight in module.named_parameters(recurse=False):
            owners[id(weight)].append((module, name))
    for places in owners.values():
        sides = Counter(_side(weights.get(module, {}).get(name)) for module, name in places)
        if len(sides) > 1:
            for module, _ in places:
                weights.pop(module, None)
                hooks.pop(module, None)
    shared = frozenset(weight for weight, places in owners.items() if len(places) > 1)
    return LayerPlan(hooks, weights, shared)


def _side(style: str | None) -> str | None:
    """Along which side a style divides a matrix."""
    return "rows" if style in COLUMNS or style == VOCABULARY else style
