"""A policy of a few thousand weights and prompts of a few tokens, for the laws of engines and backends."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from nearstep.common.random_streams import stream
from nearstep.types import Prompts

VOCABULARY = 24
STOP_IDS = (2, 9)
PROMPTS = ([5], [6, 7, 8], [9, 2, 9, 2], [5], [13] * 9)
SPREAD = 0.6  # weights so large that some tokens are likely and others are not


def small_model(seed: int = 0, head_dim: int = 8) -> PreTrainedModel:
    """A random Llama of two layers, which depends on seed and width of the attention heads alone."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=head_dim,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=STOP_IDS[0],
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():  # making a model draws from the global generator, which is not ours
        model = LlamaForCausalLM(config)
    reset_weights(model, seed)
    return model.eval()


def reset_weights(model: torch.nn.Module, seed: int) -> None:
    """Give every matrix the weights that belong to the seed."""
    draws = stream(seed, "conformance/weights")
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() == 2:
                weights.copy_(torch.randn(weights.shape, generator=draws) * SPREAD)


def prompts_of(rows: list[int]) -> Prompts:
    """The prompts with these numbers; the number is the episode, too."""
    ids = [list(PROMPTS[row]) for row in rows]
    return Prompts(ids=ids, inputs=["" for _ in rows], columns={}, episodes=list(rows))
