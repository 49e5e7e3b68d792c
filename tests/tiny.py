"""Tiny models and tokenizers that the tests make for themselves: nothing can be downloaded."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer(*, pad: str | None = "<pad>", chat: bool = True, shift: int = 0) -> PreTrainedTokenizerFast:
    """One token per byte, then <eos>, <pad>. `pad="<eos>"` shares them; `shift` reorders the ids (another family)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet = alphabet[shift:] + alphabet[:shift]
    vocabulary = {token: number for number, token in enumerate(alphabet)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token=pad)
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_config(kind: str = "llama", *, vocab_size: int = 258, labels: int = 1, layers: int = 2) -> PreTrainedConfig:
    """32 wide; with two layers about 40,000 weights."""
    shared = {
        "vocab_size": vocab_size,
        "num_labels": labels,
        "bos_token_id": None,
        "eos_token_id": 256,
        "pad_token_id": 257,
    }
    if kind == "llama":
        return LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, **shared,
        )  # fmt: skip
    if kind == "gpt_neox":
        return GPTNeoXConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4, rotary_pct=0.5,
            max_position_embeddings=512, hidden_dropout=0.1, attention_dropout=0.1, classifier_dropout=0.1, **shared,
        )  # fmt: skip
    if kind == "gpt2":
        return GPT2Config(n_embd=32, n_layer=layers, n_head=4, n_positions=512, **shared)
    raise ValueError(kind)


def tiny_causal_lm(
    kind: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **options
) -> PreTrainedModel:
    """A random policy; weights larger than usual so that its distributions are far from uniform."""
    torch.manual_seed(seed)
    return _spread(AutoModelForCausalLM.from_config(tiny_config(kind, **options))).to(dtype)


def tiny_scalar_model(
    kind: str = "llama", *, seed: int = 1, dtype: torch.dtype = torch.float32, **options
) -> PreTrainedModel:
    """A random critic or reward model."""
    torch.manual_seed(seed)
    return _spread(AutoModelForSequenceClassification.from_config(tiny_config(kind, **options))).to(dtype)


def _spread(model: PreTrainedModel) -> PreTrainedModel:
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.dim() > 1:
                weights.mul_(12.0 if "head" in name or "embed_out" in name else 4.0)
    return model.eval()
