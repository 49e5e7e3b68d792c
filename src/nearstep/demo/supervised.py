"""How the demo's policy is made: a small Llama that learns to summarise as people do."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

from nearstep.common.random_streams import stream, stream_seed
from nearstep.demo.batches import Descent, TokenGroup, batches_by_length, hidden_states, pack

LEARNING_RATE = 3e-3


@dataclass(frozen=True)
class ModelSize:
    """Shape of the policy and, under another head, of the reward model: half a million weights."""

    hidden: int = 96
    layers: int = 3
    heads: int = 3  # of 32, the least that vLLM takes on a CPU
    intermediate: int = 256


def new_policy(tokenizer: PreTrainedTokenizerBase, size: ModelSize, *, seed: int) -> PreTrainedModel:
    """A policy with random weights that depend on the seed alone."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        intermediate_size=size.intermediate,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = AutoModelForCausalLM.from_config(config)
    generator = stream(seed, "demo/policy weights")
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() == 2:
                std = 0.5 if weights is embedding else 1 / math.sqrt(weights.shape[1])
                weights.normal_(0.0, std, generator=generator)
    return model


def train_policy(
    model: PreTrainedModel,
    groups: Sequence[TokenGroup],
    *,
    batch_groups: int,
    seed: int,
    learning_rate: float = LEARNING_RATE,
) -> float:
    """One pass over the groups, in place; the mean loss of the last tenth of the steps, in nats per token."""
    rng = random.Random(stream_seed(seed, "demo/supervised order"))
    descent = Descent(model, len(groups) // batch_groups, learning_rate)
    losses = []
    model.train()
    for numbers in batches_by_length([group.tokens for group in groups], batch_groups, rng):
        loss = completion_loss(model, [groups[number] for number in numbers])
        descent.step(loss)
        losses.append(loss.item())
    model.eval()
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


def completion_loss(model: PreTrainedModel, groups: Sequence[TokenGroup]) -> Tensor:
    """Mean cross-entropy of the completions' tokens, EOS included, the prompts' tokens not."""
    batch = pack(groups)
    logits = model.get_output_embeddings()(hidden_states(model, batch)[batch.sources])
    return torch.nn.functional.cross_entropy(logits, batch.targets)
