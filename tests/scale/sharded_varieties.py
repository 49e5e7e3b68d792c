"""What networks in pieces may be: families, adapters, types; the same run on one process or on many."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, MambaConfig, Qwen3MoeConfig

from nearstep.training.loop import train
from nearstep.training.state import State
from tests.scale.two_processes import dist_close, whole_weights
from tests.tiny import tiny_causal_lm
from tests.training.runs import low_ids, small_recipe

torch.set_num_threads(1)

SHARED = {
    "batch_size": 9, "num_mini_batches": 4, "total_episodes": 27, "per_device_train_batch_size": 2, "num_ppo_epochs": 1,
    "response_length": 8, "num_generations": 3, "learning_rate": 3e-4, "optim": "adamw_torch",
}  # fmt: skip
LORA = {"use_peft": True, "lora_r": 4, "lora_target_modules": ("q_proj", "down_proj")}


def llama(dtype=torch.float64):
    return tiny_causal_lm("llama", dtype=dtype)


def bfloat16():
    return llama(torch.bfloat16)


def tied():
    return tiny_causal_lm("gpt2", dtype=torch.float64)


def mixture(dtype=torch.float32):
    """Of experts, whose products know no float64."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=258, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2,
        eos_token_id=256, pad_token_id=257, bos_token_id=None,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


def recurrent(dtype=torch.float64):
    """Rows are padded, and several passes go through a trunk at once."""
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=258, hidden_size=32, state_size=4, num_hidden_layers=2, eos_token_id=256, pad_token_id=257,
        bos_token_id=None,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


@dataclass(frozen=True)
class Variety:
    """A run, and how far its weights may be from those of one process."""

    model: object
    settings: dict = field(default_factory=dict)
    gap: float = 1e-5  # norms of Llama and others compute in float32


VARIETIES = {
    "llama": Variety(llama, {"save_steps": 1}),
    "checkpointing": Variety(llama, {"gradient_checkpointing": True}),
    "adapters": Variety(llama, {**LORA, "save_steps": 1}),
    "adapter_critic": Variety(llama, {**LORA, "critic_trunk": "adapter"}),
    "adapters_on_trunk": Variety(llama, {**LORA, "critic_trunk": "shared"}),
    "whole_reference": Variety(tied, {"whole_roles": ("reference", "value")}, 1e-10),
    "recomputed": Variety(tied, {"anchor": "recomputed", "kl_exact_rows": 2, "record_token_rows": 2}, 1e-10),
    # Minibatches in which one of the critics has no row: it takes no step, and Adam's moments stay.
    "critics": Variety(tied, {"critic_models": 2, "advantage_mask_share": 0.2, "learning_rate": 3e-3}, 1e-10),
    "mixture": Variety(mixture, gap=1e-5),
    "recurrent": Variety(recurrent),
    # A weight that rounds the other way is 1/256 away; few do.
    "bfloat16": Variety(bfloat16, {"bf16": False}, 1e-2),
    "autocast": Variety(lambda: llama(torch.float32), {"bf16": True}, 1e-2),
    "clipped": Variety(tied, {"max_grad_norm": 0.01, "optim": "sgd", "learning_rate": 1e-1}, 1e-10),
    "fused": Variety(tied, {"optim": "adamw_torch_fused"}, 1e-10),
}


def main(where: str, names: str, shard: str, replicate: str = "") -> None:
    """Those varieties, on pieces over `shard` processes."""
    layout = {"dp_shard": int(shard), "dp_replicate": int(replicate) if replicate else None}
    for name in names.split(","):
        play(Path(where) / name, VARIETIES[name], **layout)
    dist_close()


def play(folder: Path, variety: Variety, reward=low_ids, **layout) -> None:
    """Three updates, and the weights after them."""
    given = {"model": variety.model(), "reward_funcs": (reward,)}
    recipe = small_recipe(folder, parts=given, **{**SHARED, **variety.settings, **layout})
    state = State()
    with recipe.report.reporter as reporter:
        train(recipe, state)
        recipe.checkpoint.save_final(state)
        reporter.end()
    models = {"policy": whole_weights(recipe.models.policy.model), "value": whole_weights(recipe.models.critic.model)}
    if recipe.backend.rank == 0:
        torch.save(models, folder / "weights.pt")
