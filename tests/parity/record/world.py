"""The tiny models, tokenizer and prompts that TRL and nearstep are both given. Imports neither of them.

Ids 0 to 29 are words, then <eos>, <pad>. Of rows of 12 response tokens about half end themselves.
"""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCABULARY, EOS, PAD = 32, 30, 31
RESPONSE_LENGTH = 12


def tokenizer() -> PreTrainedTokenizerFast:
    """Words w0 … w29, and left padding, which TRL needs."""
    vocabulary = {f"w{number}": number for number in range(EOS)}
    core = Tokenizer(models.WordLevel(vocabulary | {"<eos>": EOS, "<pad>": PAD}, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>", padding_side="left")


def config(width: int) -> LlamaConfig:
    """A Llama of two layers."""
    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=width + width // 2, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, num_labels=1,
        bos_token_id=None, eos_token_id=EOS, pad_token_id=PAD, tie_word_embeddings=False,
    )  # fmt: skip


def causal_model(width: int, seed: int, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random policy that never says <pad>: TRL takes a sampled <pad> for padding."""
    torch.manual_seed(seed)
    model = _spread(LlamaForCausalLM(config(width)))
    head = nn.Linear(width, VOCABULARY, bias=True)
    with torch.no_grad():
        head.weight.copy_(model.lm_head.weight)
        head.bias.zero_()
        head.bias[PAD] = -1e4
        head.bias[EOS] = 1.0
    model.lm_head = head
    return model.to(dtype)


def scalar_model(width: int, seed: int, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random critic or reward model."""
    torch.manual_seed(seed)
    return _spread(LlamaForSequenceClassification(config(width))).to(dtype)


def prompts(count: int, *, length: int | None = None) -> list[list[int]]:
    """Prompts of 2 to 7 words, or all of one length."""
    draws = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 8, (count,), generator=draws).tolist() if length is None else [length] * count
    return [torch.randint(0, EOS, (length,), generator=draws).tolist() for length in lengths]


def _spread(model: PreTrainedModel) -> PreTrainedModel:
    """Larger weights than a fresh model has, so that distributions and values are far from uniform."""
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() > 1:
                weights.mul_(8.0)
    return model
