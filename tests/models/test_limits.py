"""How many tokens a model reads and which ids it knows: what the configuration tells is what the model does."""

import re
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel

from nearstep.models.limits import COUNTING_FROM_PADDING, Limits
from nearstep.models.vocabulary import known_ids
from tests.tiny import byte_tokenizer, tiny_config

TEXT = {
    "vocab_size": 60, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 20, "pad_token_id": 1,
}  # fmt: skip
CHANGES = {
    "gpt2": {"n_embd": 16, "n_head": 2, "n_layer": 1, "n_positions": 20},
    "longformer": {"attention_window": 4},
    "luke": {"entity_vocab_size": 4, "entity_emb_size": 4},
    "mpnet": {"pad_token_id": 3},  # its table begins after 1 all the same
    "opt": {"ffn_dim": 16, "word_embed_proj_dim": 16},
    "mpt": {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 20},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "distilbert": {"dim": 16, "n_heads": 2, "n_layers": 1, "hidden_dim": 16},
}
FAMILIES = (
    "bert", "camembert", "data2vec-text", "distilbert", "electra", "gpt2", "ibert", "longformer", "luke", "mpnet",
    "mpt", "opt", "biogpt", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_model_reads_as_many_tokens_as_its_limits_say_and_not_one_more(kind):
    config = AutoConfig.for_model(kind, **{**TEXT, **CHANGES.get(kind, {})})
    positions = Limits.of(config).positions
    assert positions == (18 if kind in COUNTING_FROM_PADDING else 20)
    model = AutoModel.from_config(config).eval()
    model(torch.full((1, positions), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, positions + 1), 5))


def test_every_family_that_counts_from_its_padding_id_is_known():
    sources = Path(transformers.__file__).parent / "models"
    counting = {
        path.parent.name
        for path in sources.glob("*/modeling_*.py")
        if re.search(r"def create_position_ids_from_input_ids", text := path.read_text())
        and re.search(r"self\.position_embeddings = (nn\.Embedding|QuantEmbedding)", text)
    }
    known = {name.replace("-", "_").removesuffix("_text_model").removesuffix("_text") for name in COUNTING_FROM_PADDING}
    assert counting - known <= {"evolla", "pp_doclayout_v2"}  # of proteins and of pages


def test_decoders_without_a_table_have_the_positions_of_their_configuration_or_none():
    assert Limits.of(tiny_config("llama")) == Limits(512, 258, "the policy")
    assert Limits.of(AutoConfig.for_model("bloom", vocab_size=60)).positions is None
    assert Limits.of(tiny_config("gpt2")).positions == 512  # its own name for it is n_positions


def test_ids_known_count_added_tokens_wherever_they_stand():
    tokenizer = byte_tokenizer()
    assert known_ids(tokenizer) == 258
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>"]})
    assert known_ids(tokenizer) == 259
