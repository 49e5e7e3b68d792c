"""A tiny configuration of every decoder family that transformers ships, and why some families have none here."""

from transformers import AutoConfig, PreTrainedConfig

# Under whichever of these names a family keeps its sizes. Windows are shorter than the rows of the tests.
SMALL = {
    "vocab_size": 258, "bos_token_id": None, "eos_token_id": 256, "pad_token_id": 257,
    "is_decoder": True, "max_position_embeddings": 512, "n_positions": 512, "max_seq_len": 512, "n_ctx": 512,
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "embed_dim", "n_embed", "word_embed_proj_dim", "embedding_size",
         "embedding_dim", "attention_hidden_size", "lru_width"), 32,
    ),
    **dict.fromkeys(
        ("intermediate_size", "ffn_hidden_size", "ffn_dim", "d_inner", "n_inner", "dff", "d_ff", "decoder_ffn_dim",
         "encoder_ffn_dim"), 48,
    ),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "shared_experts_intermediate_size"), 24
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers",
         "num_encoder_layers", "num_decoder_layers"), 2,
    ),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads",
         "num_encoder_attention_heads", "num_decoder_attention_heads"), 4,
    ),
    **dict.fromkeys(("num_kv_heads", "num_key_value_heads", "n_head_kv"), 2),
    **dict.fromkeys(("head_dim", "d_head", "d_kv", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim"), 8),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(
        ("n_group", "topk_group", "first_k_dense_replace", "n_shared_experts", "num_shared_experts", "num_dense_layers",
         "mamba_n_groups", "n_groups"), 1,
    ),
    **dict.fromkeys(
        ("sliding_window", "attention_window_size", "window_size", "attention_chunk_size", "rotary_dim",
         "mamba_d_state", "mamba_d_conv", "mamba_dt_rank", "time_step_rank", "state_size", "ssm_state_size",
         "linear_conv_kernel_dim"), 4,
    ),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 8),
    "mamba_expand": 2, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_num_heads": 4, "mamba_head_dim": 16,
    "linear_num_heads": 4, "linear_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "kv_lora_rank": 8, "q_lora_rank": 16, "index_head_dim": 16, "index_n_heads": 32, "index_topk": 4,
    "vocab_size_per_layer_input": 258, "hidden_size_per_layer_input": 8, "word_embedding_proj_dim": 32,
}  # fmt: skip
# What a family asks for beside.
EQUAL_HEADS = (
    "axk1", "axk2", "bailing_hybrid", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa",
    "kimi_linear", "longcat_flash", "minicpm3", "youtu", "zamba", "zamba2",
)  # fmt: skip
HYBRIDS = {
    "attention_hidden_size": 64,
    "attention_head_dim": 16,
    "layers_block_type": ["linear_attention", "hybrid"] * 2,
}
KINDS = ("full_attention", "sliding_attention")
CHANGES: dict[str, dict[str, object]] = {
    **{kind: {"num_key_value_heads": 4} for kind in EQUAL_HEADS},
    **{kind: {"bos_token_id": 0} for kind in ("cwm", "modernbert-decoder")},
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {
        "layer_types": list(KINDS),
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in KINDS},
    },
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {
        "num_hidden_layers": 4, "layer_types": [*KINDS, *KINDS], "num_kv_shared_layers": 2, "intermediate_size": 48,
        "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0], "laurel_rank": 4,
    },
    "flint": {"mlp_only_layers": [0]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hy_v4": {"index_topk": 64},  # a PAD token has an embedding of 0, and ties between zeros fall anyhow
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"], "indexer_n_heads": 2, "indexer_kv_heads": 1,
        "indexer_head_dim": 8, "indexer_budget": 8, "indexer_compress_ratio": 2, "hc_lowrank": 8, "ple_embed_dim": 8,
        "ngram_vocab_size_base": 100,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds": False},
    "roc_bert": {
        "pronunciation_vocab_size": 258, "shape_vocab_size": 258, "pronunciation_embed_dim": 8, "shape_embed_dim": 8,
    },
    "xlstm": {"num_blocks": 2},
    "xmod": {"default_language": "en_XX"},
    "zamba": {**HYBRIDS, "num_key_value_heads": 4, "num_hidden_layers": 4, "n_mamba_heads": 2},
    "zamba2": {
        **HYBRIDS, "num_key_value_heads": 4, "num_hidden_layers": 4, "n_mamba_heads": 4, "mamba_headdim": 16,
        "hybrid_layer_ids": [1, 3],
    },
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
SAME = {"gemma3n": "gemma3n_text", "qwen4_exp": "qwen4_exp_text"}
# No tiny configuration of a decoder of text alone.
DECODER_OF_TWO = "the decoder of an encoder-decoder model, which is refused"
WITHOUT: dict[str, str] = {
    **dict.fromkeys(
        (
            "bart",
            "bigbird_pegasus",
            "blenderbot",
            "blenderbot-small",
            "marian",
            "mbart",
            "mvp",
            "pegasus",
            "plbart",
            "prophetnet",
            "trocr",
            "whisper",
        ),
        DECODER_OF_TWO,
    ),
    **dict.fromkeys(("git", "mllama", "phi4_multimodal"), "it has no part that reads text alone"),
    **dict.fromkeys(("musicgen", "musicgen_melody", "moshi"), "its tokens are sounds"),
    "dbrx": "its configuration lacks what its attention reads (rope_theta)",
    **dict.fromkeys(("dots3_note", "dots3_note_text"), "its configuration keeps sizes for single layers of 46"),
    "emu3": "AutoModelForCausalLM does not make its text part",
    "blt": "it reads bytes in patches, with models of its own for them",
    "gemma4_assistant": "it drafts for another model",
}
# In these a token sees those after it, whatever is_decoder says.
NOT_CAUSAL = ("cpmant", "xlm", "xlnet")
NOT_IN_BFLOAT16 = ("xlstm",)  # its own forward pass fails in it, on a CPU
NO_TRUNK = ("llama4", "llama4_text")  # their base_model_prefix names no part of them: no head can be put on them
NOT_TRAINED = {"reformer": "its backward pass wants training mode, in which dropout is on"}


def tiny_family_config(kind: str, **changes: object) -> PreTrainedConfig:
    """The text part of a family, with every size small and one layer of each kind, or two."""
    text = AutoConfig.for_model(kind).get_text_config(decoder=True)
    known = {**text.to_dict(), **dict.fromkeys(type(text).attribute_map)}
    small = {name: size for name, size in SMALL.items() if name in known}
    if known.get("sliding_window", 0) is None:
        small.pop("sliding_window", None)
    if kinds := known.get("layer_types"):
        each = list(dict.fromkeys(kinds))
        small["layer_types"] = each if len(each) > 1 else each * 2
        small["num_hidden_layers"] = len(small["layer_types"])
    if known.get("mlp_layer_types"):
        each = list(dict.fromkeys(known["mlp_layer_types"]))
        small["mlp_layer_types"] = (each * 9)[: small["num_hidden_layers"]]
    return type(text)(num_labels=1, **{**small, **CHANGES.get(SAME.get(kind, kind), {}), **changes})
