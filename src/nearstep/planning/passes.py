"""What a forward pass holds of every token: the pass itself, run on tensors without numbers, layer by layer.

Bytes are those of the tensors that torch would make for this family; nothing is computed, so that any size will do.
"""

import copy
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from nearstep.models.adapters import add_adapters
from nearstep.models.attention.interface import LayerInput, Segment, Segments
from nearstep.models.forward.trunk import hidden_states
from nearstep.planning.quantities import PassBytes

TOKENS = 256  # of a traced pass; all that is read off it grows with them
LONGEST_PERIOD = 12  # of layers that come in turns


def pass_bytes(
    config: PreTrainedConfig, bytes_each: int, *, autocast: bool, is_gpu: bool, adapters: Any = None
) -> PassBytes:
    """Trace a pass of the trunk of a family with few layers, and with some more; with `adapters`, a configuration of
    peft, on weights that do not learn. By rule of thumb where the family cannot be run without numbers (its passes
    branch on what they compute, or it brings code of its own)."""
    layers = int(config.num_hidden_layers)
    first, period = _first_and_period(config)
    if first + period > layers:
        first, period = 0, layers
    try:
        dtype = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[bytes_each]
        few = _Trace.of(_with_layers(config, first), dtype, autocast, is_gpu, adapters) if first else _Trace()
        more = _Trace.of(_with_layers(config, first + period), dtype, autocast, is_gpu, adapters)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError):
        return _by_rule(config, bytes_each)
    kept, calls = (more.kept - few.kept) / period, (more.calls - few.calls) / period
    repeated = layers - first - period
    return PassBytes(
        layers=layers,
        layer=kept if first else more.kept / layers,
        outside=max(0.0, few.kept - first * kept) if first else 0.0,
        states=more.states,
        working=more.working,
        largest=more.largest,
        cache=more.cache + repeated * (more.cache - few.cache) / period,
        layer_calls=calls,
        outside_calls=max(0.0, few.calls - first * calls),
    )


def _first_and_period(config: PreTrainedConfig) -> tuple[int, int]:
    """How many layers the small model has, and after how many the kinds of layers repeat."""
    known = config.to_dict()
    kinds = list(known.get("layer_types") or ())
    period = next(
        (n for n in range(1, LONGEST_PERIOD) if all(a == b for a, b in zip(kinds, kinds[n:], strict=False))), 1
    )
    dense = known.get("first_k_dense_replace") or 0  # DeepSeek's first layers have no experts
    return max(1, int(dense)) if period == 1 else period, period


def inner_share(config: PreTrainedConfig, passes: PassBytes, bytes_each: int, *, is_gpu: bool) -> float:
    """Share of what a layer keeps that processes divide which compute it together: a layer of half the heads and half
    the inner width is traced beside a whole one. 0, all is on each, where a head's width follows from their number."""
    known = config.to_dict()
    halved = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "moe_intermediate_size")
    halves = {name: known[name] // 2 for name in halved if isinstance(known.get(name), int) and known[name] > 1}
    if not passes.is_traced or known.get("head_dim") is None or "num_attention_heads" not in halves:
        return 0.0
    whole = _with_layers(config, max(1, int(known.get("first_k_dense_replace") or 0)))
    half = copy.deepcopy(whole)
    for name, value in halves.items():
        setattr(half, name, value)
    half.head_dim = known["head_dim"]
    try:
        dtype = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[bytes_each]
        gap = _Trace.of(whole, dtype, False, is_gpu).kept - _Trace.of(half, dtype, False, is_gpu).kept
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError):
        return 0.0
    return float(min(1.0, max(0.0, 2 * gap / (int(whole.num_hidden_layers) * passes.layer))))


def _with_layers(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    small = copy.deepcopy(config)
    small.num_hidden_layers = layers
    kinds = config.to_dict().get("layer_types")
    if kinds:
        small.layer_types = list(kinds[:layers])
    return small


def _by_rule(config: PreTrainedConfig, bytes_each: int) -> PassBytes:
    """As a Llama of the same widths keeps it: about 16 states, three of the inner width, and the heads."""
    known = config.to_dict()
    width, layers = int(config.hidden_size), int(config.num_hidden_layers)
    inner = int(known.get("intermediate_size") or 4 * width)
    largest = float(bytes_each * max(inner, width))
    return PassBytes(
        layers, bytes_each * (16.0 * width + 4 * inner), bytes_each * 4.0 * width, float(bytes_each * width),
        bytes_each * (4.0 * width + 3 * inner), largest, 2.0 * layers * width * bytes_each, 50.0, 20.0, is_traced=False,
    )  # fmt: skip


@dataclass(frozen=True)
class _Trace:
    """What one pass of a small model took, in bytes for each token."""

    kept: float = 0.0
    states: float = 0.0
    working: float = 0.0
    largest: float = 0.0
    cache: float = 0.0
    calls: float = 0.0

    @staticmethod
    def of(
        config: PreTrainedConfig, dtype: torch.dtype, autocast: bool, is_gpu: bool, adapters: Any = None
    ) -> "_Trace":
        with FakeTensorMode():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
            trunk = model.base_model.eval()
            if adapters is not None:
                add_adapters(model, adapters, seed=0)  # into the layers of the model itself
            with_gradients = _traced(trunk, autocast, is_gpu, nullcontext)
            without = _traced(trunk, autocast, is_gpu, torch.no_grad)
        seen, states = with_gradients
        return _Trace(
            kept=seen.live / TOKENS,
            states=states.nbytes / TOKENS,
            working=without[0].peak / TOKENS,
            largest=seen.largest / TOKENS,
            cache=seen.cache / TOKENS,
            calls=float(without[0].calls),
        )


def _traced(trunk: Any, autocast: bool, is_gpu: bool, gradients: Callable[[], Any]) -> "tuple[_Living, Tensor]":
    tokens, positions = torch.zeros(TOKENS, dtype=torch.long), torch.arange(TOKENS)
    living = _Living({each.untyped_storage()._cdata for each in (*trunk.parameters(), *trunk.buffers())})
    with gradients(), living:
        states = hidden_states(trunk, tokens, positions[None], _Attention(living, is_gpu), autocast=autocast)
    return living, states


class _Living(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, those of weights and their casts left out."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weights, self.known = weights, set[int]()
        self.copies: list[Tensor] = []
        self.live = self.peak = self.largest = self.calls = self.cache = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.calls += not func.is_view
        if func is torch.ops.aten._to_copy.default and args[0].untyped_storage()._cdata in self.weights:
            self.copies.append(found)  # autocast's, of a weight: as many however many tokens there are
            self.weights.add(found.untyped_storage()._cdata)
        for each in tree_leaves(found):
            if isinstance(each, Tensor):
                self._meet(each.untyped_storage())
        self.peak = max(self.peak, self.live)
        return found

    def _meet(self, storage: torch.UntypedStorage) -> None:
        number = storage._cdata
        if number in self.weights or number in self.known:
            return
        size = storage.nbytes()
        self.known.add(number)
        self.live += size
        self.largest = max(self.largest, size)
        weakref.finalize(storage, self._lose, number, size)

    def _lose(self, number: int, size: int) -> None:
        self.known.discard(number)
        self.live -= size


@dataclass(frozen=True)
class _Attention:
    """Attention as it is run: row by row on a CPU, in one flash kernel on a GPU; keys and values are counted."""

    living: _Living
    is_gpu: bool
    rows: Segments = field(default_factory=lambda: Segments((Segment(TOKENS),)))

    def attend(self, layer: LayerInput) -> Tensor:
        """See AttentionPlan.attend."""
        self.living.cache += layer.key.nbytes + layer.value.nbytes
        if not self.is_gpu or layer.softcap is not None:
            return self.rows.attend(layer)
        mixed: Tensor = _Flash.apply(layer.query, layer.key, layer.value)  # type: ignore[no-untyped-call]
        return mixed


class _Flash(torch.autograd.Function):
    """Keeps what flash attention keeps: query, key, value, output, and one number for each query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mixed = query.new_empty(*query.shape[:3], value.shape[3])
        ctx.save_for_backward(query, key, value, mixed, query.new_empty(query.shape[:3], dtype=torch.float32))
        return mixed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
