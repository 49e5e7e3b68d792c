"""What each of several processes does in test_tensor_parallel: runs whose layers are computed by several together."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Phi3Config, Qwen3Config

from tests.scale.sharded_varieties import LORA, Variety, bfloat16, llama, mixture, play
from tests.scale.two_processes import dist_close
from tests.training.runs import low_ids

SIZES = {
    "vocab_size": 258, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 8, "eos_token_id": 256, "pad_token_id": 1, "bos_token_id": None,
}  # fmt: skip


def made(config, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


def wide_llama(dtype=torch.float64):
    """Four key-value heads; the id of padding is a token that rows have, whose embedding has no gradient."""
    return made(LlamaConfig(**SIZES), dtype)


def tied_llama():
    return made(LlamaConfig(**SIZES, tie_word_embeddings=True))


def qwen3():
    """Norms of heads, which each process uses on its own."""
    return made(Qwen3Config(**SIZES))


def gemma3():
    """Tied and scaled embeddings, windows, norms of heads."""
    return made(Gemma3TextConfig(**SIZES, sliding_window=8, layer_types=["sliding_attention", "full_attention"]))


def phi3():
    """Projections in one matrix, whose outputs are gathered."""
    return made(Phi3Config(**{**SIZES, "pad_token_id": 257}))


VARIETIES = {
    "llama": Variety(wide_llama, {"save_steps": 1}),
    "tied": Variety(tied_llama, {"critic_trunk": "shared"}),
    "qwen3": Variety(qwen3, {"save_steps": 1, "optim": "adamw_torch_fused"}),
    "gemma3": Variety(gemma3),
    "phi3": Variety(phi3),
    "checkpointing": Variety(qwen3, {"gradient_checkpointing": True}),
    "adapters": Variety(llama, {**LORA, "save_steps": 1}),
    "adapter_critic": Variety(llama, {**LORA, "critic_trunk": "adapter"}),
    "adapters_on_trunk": Variety(llama, {**LORA, "critic_trunk": "shared"}),
    "whole_critic": Variety(qwen3, {"whole_roles": ("reference", "value")}),
    "clipped": Variety(qwen3, {"max_grad_norm": 0.01, "optim": "sgd", "learning_rate": 1e-1}),
    "mixture": Variety(mixture, gap=1e-5),
    "experts": Variety(mixture, gap=1e-5),
    "bfloat16": Variety(bfloat16, {"bf16": False}, 1e-2),
    "autocast": Variety(lambda: llama(torch.float32), {"bf16": True}, 1e-2),
}


def main(where: str, names: str, saved_by_one: str, tensor: str, shard: str = "1", replicate: str = "") -> None:
    """Those varieties, on layers of `tensor` processes each; one that goes on from what a single process has saved."""
    layout = {"tp_size": int(tensor), "dp_shard": int(shard), "dp_replicate": int(replicate) if replicate else None}
    folder = Path(where)
    for name in names.split(","):
        experts = {"ep_size": int(tensor)} if name == "experts" else {}
        play(folder / name, VARIETIES[name], **layout, **experts)
    if saved_by_one:
        play(folder / "resumed", VARIETIES["llama"], resume=saved_by_one, **layout)
        play(folder / "counted", Variety(wide_llama), reward=counting(folder / "asked.txt"), **layout)
    dist_close()


def counting(file: Path):
    """A reward that notes how many rows it was asked about."""

    def low(completion_ids, **kwargs):
        with file.open("a") as asked:
            asked.write(f"{len(completion_ids)}\n")
        return low_ids(completion_ids, **kwargs)

    return low
