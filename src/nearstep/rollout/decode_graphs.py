"""Decoding steps that are captured once and replayed, so that a GPU does not wait for the launch of every kernel.

A captured step always computes with the same memory and the same shapes. So its inputs and outputs have fixed places,
and steps are captured for a few sizes only: a step takes the next larger one. What is too much of it are free slots,
which write a key and a value that no row sees before it has written its own there, and places beyond a row's length,
which are masked as always.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearstep.common.errors import ConfigError, ModelError
from nearstep.models.roles import Policy
from nearstep.rollout.decoding import next_logits
from nearstep.rollout.slot_cache import SlotCache

Work: TypeAlias = Callable[[], None]
Capture: TypeAlias = Callable[[Work], Work]  # gives what repeats the work on the same memory, without its Python

WIDTH_STEP = 256


@dataclass(frozen=True)
class GraphedDecoding:
    """Decoding by replay. `graphs` are known by rows and width, and captured when they are first needed."""

    policy: Policy
    cache: SlotCache
    capture: Capture
    tokens: Int[Tensor, " slots"]
    lengths: Int[Tensor, " slots"]
    output: Float[Tensor, "slots vocabulary"]
    graphs: dict[tuple[int, int], Work] = field(default_factory=dict)

    @staticmethod
    def of(policy: Policy, cache: SlotCache, capture: Capture) -> "GraphedDecoding":
        """Make the places of inputs and outputs."""
        tokens = torch.zeros(cache.slots, dtype=torch.long, device=policy.device)
        dtype = torch.promote_types(policy.dtype, torch.float32)  # also what autocast gives fits without loss
        output = torch.empty(cache.slots, policy.head.vocabulary, dtype=dtype, device=policy.device)
        return GraphedDecoding(policy, cache, capture, tokens, tokens.clone(), output)

    def logits(self, tokens: Int[Tensor, " live"], lengths: Sequence[int]) -> Float[Tensor, "live vocabulary"]:
        """See Decoding.logits."""
        live, slots = len(lengths), self.cache.slots
        self.tokens[:live] = tokens
        self.lengths.copy_(torch.tensor([*lengths, *[0] * (slots - live)]))
        size = rows_captured(live, slots), width_captured(max(lengths) + 1, self.cache.width)
        if size not in self.graphs:
            self.graphs[size] = self._captured(*size)
        self.graphs[size]()
        return self.output[:live]

    def _captured(self, rows: int, width: int) -> Work:
        step = partial(self._step, rows, width)
        step()  # In its first run kernels are loaded and libraries set themselves up, which cannot be captured.
        try:
            return self.capture(step)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ModelError(
                f"decode_graphs: a decoding step of {type(self.policy.model).__name__} could not be captured as a CUDA "
                f"graph ({str(error).partition(chr(10))[0]}). Either its forward pass waits for numbers from the GPU, "
                "as dynamic rotary embeddings and some mixtures of experts do, or this torch and driver do not go "
                "together. Leave decode_graphs out."
            ) from error

    def _step(self, rows: int, width: int) -> None:
        # Without autocast's cache every replay casts the weights as they are. From the cache it would take, if they
        # had been cast before, copies that are freed when the surrounding autocast ends.
        with torch.autocast(self.tokens.device.type, enabled=False, cache_enabled=False):
            logits = next_logits(self.policy, self.cache, self.tokens[:rows], self.lengths[:rows], width=width)
            self.output[:rows] = logits


def rows_captured(live: int, slots: int) -> int:
    """The number of rows for which a step is captured: a power of two, or all slots."""
    return min(1 << (live - 1).bit_length(), slots)


def width_captured(width: int, widest: int) -> int:
    """The number of places for which a step is captured: a multiple of WIDTH_STEP, or the widest there can be."""
    return min(-(-width // WIDTH_STEP) * WIDTH_STEP, widest)


def require_gpu(device: torch.device) -> None:
    """Raises ConfigError where there is nothing to replay graphs on."""
    if device.type != "cuda":
        raise ConfigError(
            f"decode_graphs = true replays CUDA graphs, and the policy is on the {device.type}. Leave it out, or run "
            "where torch finds a GPU (torch.cuda.is_available())."
        )


def cuda_graph_capture(device: torch.device) -> Capture:
    """Captures CUDA graphs that share their memory: one is replayed at a time. Raises ConfigError without a GPU."""
    require_gpu(device)
    pool = torch.cuda.graph_pool_handle()

    def capture(work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            work()
        return graph.replay

    return capture
