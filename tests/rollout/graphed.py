"""Models that decode, plainly and from graphs."""

import torch

from nearstep.models.distribution import Sampling
from nearstep.rollout.decode_graphs import GraphedDecoding
from nearstep.rollout.decoding import PlainDecoding
from nearstep.rollout.engine import EngineSettings, GenerationSettings
from nearstep.rollout.slot_cache import SlotCache
from nearstep.rollout.transformers_engine import LiveBatch, TransformersEngine
from nearstep.types import Prompts
from tests.models.test_roles_and_loading import family
from tests.tiny import tiny_causal_lm

STOPS = (3, 7, 11, 50)
PROMPTS = [[number] * (number % 5 + 1) for number in range(1, 12)] + [[5, 6, 7]] * 3
FAMILIES = [
    ("llama", {}), ("gpt2", {}), ("gpt_neox", {}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
    ("mistral", {"sliding_window": 3}), ("gemma2", {"sliding_window": 3}), ("gemma3_text", {"sliding_window": 3}),
    ("qwen3", {}), ("olmo2", {}), ("phi3", {}), ("cohere", {}),
]  # fmt: skip


def model_of(kind, changes):
    return tiny_causal_lm(kind) if kind in ("llama", "gpt2", "gpt_neox") else family(kind, **changes)


def play(policy, capture=None, *, prompts=PROMPTS, top_k=3, limits=None, max_rows=6, max_tokens=16384, **changes):
    given = {"sampling": Sampling(0.9), "response_length": 15, "stop_ids": STOPS, "seed": 0, **changes}
    generation = GenerationSettings(**given, top_tokens=top_k, limits=None if limits is None else tuple(limits))
    built_from = EngineSettings(max_rows=max_rows, max_tokens=max_tokens, decode_graphs=capture is not None)
    engine = TransformersEngine(built_from, new_capture=lambda device: capture)
    engine.load(policy, version=0)
    whole = Prompts(ids=prompts, inputs=["" for _ in prompts], columns={}, episodes=list(range(len(prompts))))
    return engine.generate(whole, generation)


def assert_same(found, expected, tolerance=1e-6):
    assert found.completion_ids() == expected.completion_ids()
    torch.testing.assert_close(found.logprobs, expected.logprobs, atol=tolerance, rtol=0)
    assert torch.equal(found.finished, expected.finished)
    assert torch.equal(found.top.ids, expected.top.ids)
    torch.testing.assert_close(found.top.logprobs, expected.top.logprobs, atol=tolerance, rtol=0)


def decodings(policy, capture, *, slots=5, width=30):
    """Three rows in five slots, ready to decode: plainly, and from graphs over a cache with the same contents."""
    batches = []
    for graphed in (False, True):
        cache = SlotCache(slots, width)
        decoding = GraphedDecoding.of(policy, cache, capture) if graphed else PlainDecoding(policy, cache)
        batches.append(LiveBatch(policy, 16384, cache, decoding))
    for batch in batches:
        batch.enter([0, 1, 2], [[5, 6, 7], [8], [9, 10, 11, 12]])
    return batches
