"""What each of several processes does in test_sequences: runs whose rows lie over processes, of several families."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, Phi3Config, PhiConfig, Qwen3Config

from tests.scale import two_processes
from tests.scale.sharded_varieties import LORA, Variety, llama, play, recurrent, tied

SIZES = {
    "vocab_size": 258, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "eos_token_id": 256, "pad_token_id": 257, "bos_token_id": None,
}  # fmt: skip
FLOAT64 = 1e-10  # of families that compute in float64 throughout


def of_family(config):
    """A model of a family."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).double().eval()


def qwen3():
    """Norms on queries and keys, and fewer heads of keys than four processes."""
    return of_family(Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8))


def windowed():
    """Tokens see the last five, in every layer."""
    window = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}
    return of_family(Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=8, **window))


def neox():
    """Queries, keys and values in one projection."""
    return of_family(GPTNeoXConfig(**SIZES))


def phi():
    """Rotary positions on a part of each head, attention beside the MLP."""
    return of_family(PhiConfig(**SIZES))


# Rows of a minibatch lie otherwise on each process; a limit of tokens that one row alone exceeds.
LONG = {"max_tokens_per_microbatch": 6}
VARIETIES = {
    "gpt2": Variety(tied, gap=FLOAT64),
    "llama": Variety(llama, {"save_steps": 1}),  # as qwen3: its norms compute in float32
    "qwen3": Variety(qwen3, LONG),
    "windowed": Variety(windowed),
    "neox": Variety(neox, LONG, FLOAT64),
    "phi": Variety(phi, gap=FLOAT64),
    "checkpointing": Variety(tied, {"gradient_checkpointing": True, **LONG}, FLOAT64),
    "adapters": Variety(llama, LORA),
    "adapter_critic": Variety(llama, {**LORA, "critic_trunk": "adapter"}),
    "one_trunk": Variety(tied, two_processes.ONE_TRUNK, FLOAT64),
    "entropy": Variety(tied, {"entropy_coef": 0.1, "trust_region": "topk_tv", "z_loss_coef": 0.01}, FLOAT64),
    "critics": Variety(tied, {"critic_models": 2, "learning_rate": 3e-3}, FLOAT64),
    "autocast": Variety(lambda: llama(torch.float32), {"bf16": True}, 1e-2),
}


def longrope():
    """Other rotary positions in rows of more than eight tokens."""
    factors = [1.0] * 4
    scaling = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": factors, "long_factor": factors}
    sizes = {**SIZES, "original_max_position_embeddings": 8, "max_position_embeddings": 512}
    return of_family(Phi3Config(**sizes, rope_parameters=scaling))


REFUSED = {
    "recurrent": Variety(recurrent),
    "longrope": Variety(longrope),
    "three_heads": Variety(lambda: of_family(GPTNeoXConfig(**{**SIZES, "hidden_size": 24, "num_attention_heads": 3}))),
}


def main(where: str, names: str, sp_size: str, shard: str = "1", saved: str = "") -> None:
    """Those varieties, with rows over `sp_size` processes and weights in pieces over `shard`."""
    for name in names.split(","):
        resume = {"resume": saved} if saved else {}
        variety = (VARIETIES | REFUSED)[name]
        play(Path(where) / name, variety, sp_size=int(sp_size), dp_shard=int(shard), **resume)
    two_processes.dist_close()
