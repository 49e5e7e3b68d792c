"""What one of several processes does in test_deepspeed: runs of three updates whose networks train under DeepSpeed."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch

from nearstep.models.forward import action_logprobs
from nearstep.scale.torch_backend import torch_backend
from nearstep.training.loop import train
from nearstep.training.state import State
from tests.scale.two_processes import dist_close
from tests.tiny import tiny_causal_lm
from tests.training.runs import low_ids, small_recipe

torch.set_num_threads(1)

SHARED = {
    "batch_size": 9, "num_mini_batches": 4, "total_episodes": 27, "per_device_train_batch_size": 2, "num_ppo_epochs": 1,
    "response_length": 8, "num_generations": 3, "learning_rate": 3e-4, "optim": "adamw_torch",
    # Gradients of keys' biases are rounding alone; Adam would make steps of them.
    "adam_epsilon": 1e-5,
}  # fmt: skip
LORA = {"use_peft": True, "lora_r": 4, "lora_target_modules": ("q_proj", "down_proj")}
HELD_OUT = [{"prompt": f"q{number}" * number} for number in range(1, 8)]


@dataclass(frozen=True)
class Variety:
    """A run, and how far its weights may be from those of one process."""

    family: str = "llama"
    dtype: torch.dtype = torch.float32
    settings: dict = field(default_factory=dict)
    gap: float = 1e-5
    chunked: bool = False  # log-probs in several chunks of a head's calls
    held_out: list | None = None


VARIETIES = {
    "llama": Variety(settings={"save_steps": 1}),
    "tied": Variety("gpt2", settings={"save_steps": 1}),
    "decoupled": Variety("gpt2", settings={"critic": "decoupled", "vf_learning_rate": 1e-3, "num_vf_epochs": 2}),
    "chunked": Variety("gpt2", chunked=True),
    "checkpointing": Variety(settings={"gradient_checkpointing": True}),
    "adapters": Variety(settings={**LORA, "save_steps": 1}),
    "whole_critic": Variety("gpt2", settings={"whole_roles": ("value", "reference")}),
    "clipped": Variety("gpt2", settings={"max_grad_norm": 0.01, "optim": "sgd", "learning_rate": 1e-1}),
    # Gradients here have norms of 3 to 5: more than DeepSpeed cuts to by itself.
    "unclipped": Variety("gpt2", settings={"max_grad_norm": None}),
    "hardly_clipped": Variety("gpt2", settings={"max_grad_norm": 3.0}),
    "fused": Variety("gpt2", settings={"optim": "adamw_torch_fused", "weight_decay": 0.1}),
    "evaluated": Variety("gpt2", settings={"eval_steps": 1, "eval_on_start": True, "anchor": "recomputed"},
                         held_out=HELD_OUT),
    # A weight that rounds the other way is 1/256 away; few do.
    "bfloat16": Variety(dtype=torch.bfloat16, settings={"bf16": False, "save_steps": 1}, gap=1e-2),
    "autocast": Variety(settings={"bf16": True}, gap=1e-2),
}  # fmt: skip


def main(where: str, names: str, stage: str, resume: str = "") -> None:
    """Those varieties under a stage of ZeRO; `resume` is a folder of runs to go on from, each after its update 1."""
    torch_backend(use_cpu=True)  # processes meet once: a run that closed its group would wait for a second meeting
    for name in names.split(","):
        settings = dict(zip(("zero_stage", "deepspeed"), under(Path(where), int(stage)), strict=True))
        if resume:
            settings |= {"zero_stage": int(stage), "deepspeed": None}  # small weights stay whole, as is the default
            settings["resume"] = str(Path(resume) / name / "checkpoint-1")
        play(Path(where) / name, VARIETIES[name], **settings)
    dist_close()


def under(folder: Path, stage: int) -> tuple[int | None, str | None]:
    """A stage as a setting; ZeRO-3 by a file in which no weight is so small that it stays whole."""
    if stage == 2:
        return stage, None
    place = folder / f"deepspeed{os.environ['RANK']}.json"
    folder.mkdir(parents=True, exist_ok=True)
    of_zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
    place.write_text(json.dumps({"zero_optimization": of_zero, "steps_per_print": 9}))
    return None, str(place)


def play(folder: Path, variety: Variety, **changes) -> None:
    """Three updates; the weights after them are those of the folders that the run leaves."""
    action_logprobs.LOGITS_HELD["cpu"] = 1 if variety.chunked else 2**24
    model = tiny_causal_lm(variety.family, dtype=variety.dtype)
    given = {"model": model, "reward_funcs": (low_ids,), "eval_dataset": variety.held_out}
    recipe = small_recipe(folder, parts=given, **{**SHARED, **variety.settings, **changes})
    state = State()
    with recipe.report.reporter as reporter:
        train(recipe, state)
        recipe.checkpoint.save_final(state)
        reporter.end()
    recipe.backend.close()
