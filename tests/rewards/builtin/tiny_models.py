"""Tiny encoders and classifiers with a tokenizer of whole words, saved as folders."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

WORDS = [
    "the", "cat", "sat", "on", "a", "mat", "dog", "barks", "loudly", "it", "is", "good", "bad", "awful", "fine", "not",
    "sky", "blue", "red", "rain", "falls", "today", ".", ",", "!", "?",
]  # fmt: skip
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def word_tokenizer(longest: int = 64) -> PreTrainedTokenizerFast:
    """One token per word, lower case, framed as BERT frames texts and pairs."""
    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=longest, model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def bert_config(**options) -> BertConfig:
    """Two layers, 16 wide."""
    return BertConfig(
        vocab_size=len(SPECIAL + WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=64, **options,
    )  # fmt: skip


def save_classifier(folder: Path, labels: list[str], *, problem_type: str | None = None, longest: int = 64) -> str:
    """A random classifier with these labels; weights large enough that its answers differ."""
    torch.manual_seed(3)
    config = bert_config(num_labels=len(labels), problem_type=problem_type)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    model = BertForSequenceClassification(config)
    _spread(model)
    model.save_pretrained(folder)
    word_tokenizer(longest).save_pretrained(folder)
    return str(folder)


def save_encoder(folder: Path, longest: int = 64) -> str:
    """A random encoder without a pooling layer."""
    torch.manual_seed(4)
    model = BertModel(bert_config(), add_pooling_layer=False)
    _spread(model)
    model.save_pretrained(folder)
    word_tokenizer(longest).save_pretrained(folder)
    return str(folder)


def _spread(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() > 1:
                weights.mul_(15.0)
