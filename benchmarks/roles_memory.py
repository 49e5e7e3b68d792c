"""What four roles hold in memory: whole models, adapters on one base, a base in 4 bits, moments in a byte; and what
activations take where layers are computed again.

    python -m benchmarks.roles_memory            # with bitsandbytes: pip install 'nearstep[quant]'

Weights and moments are counted, not estimated: every storage that policy, critic, reference, reward model and their
optimizers hold after an optimizer step, each once, with the scales of packed weights. The bytes are the same on every
device. Activations: the largest sum of allocations within one optimizer step, as torch's profiler saw it on the CPU.
"""

import argparse
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import torch
from tests.memory import peak_bytes
from tests.tiny import byte_tokenizer
from tests.training.runs import PROMPTS, play, settings
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

from benchmarks.harness.machine import machine
from benchmarks.harness.results import RESULTS, table, write_results
from nearstep.assembly.inputs import RunInputs
from nearstep.assembly.run import assemble
from nearstep.models.offload import tensors_of
from nearstep.training.experience import make_experience
from nearstep.training.recipe import Recipe
from nearstep.training.schedules import Phase
from nearstep.training.update import improve

STEP = Phase(1, 1, policy=True, critic=True)
ROLES = ("policy", "critic", "reference", "reward", "moments")
SIZE = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 4}

LORA = {"use_peft": True, "lora_r": 8, "lora_target_modules": ("all-linear",)}
ONE = {**LORA, "critic_trunk": "adapter", "reward_trunk": "adapter"}
HALF = {"dtype": "bfloat16"}
KINDS: dict[str, dict[str, Any]] = {
    "four whole models, float32": {},
    "the same, optim = adamw_8bit": {"optim": "adamw_8bit"},
    "LoRA policy; critic and reward model whole": LORA,
    "the same, critic_trunk = adapter": {**LORA, "critic_trunk": "adapter"},
    "one base: and reward_trunk = adapter": ONE,
    "one base, bfloat16": {**ONE, **HALF},
    "one base, load_in_4bit, bfloat16": {**ONE, **HALF, "load_in_4bit": True},
    "the same, use_bnb_nested_quant": {**ONE, **HALF, "load_in_4bit": True, "use_bnb_nested_quant": True},
    "the same, optim = adamw_8bit too": {
        **ONE, **HALF, "load_in_4bit": True, "use_bnb_nested_quant": True, "optim": "adamw_8bit",
    },
}  # fmt: skip
LAYERS = {"none": {}} | {
    f"every {n}": {"gradient_checkpointing": True, "gradient_checkpointing_every": n} for n in (4, 2, 1)
}


def make_models(folder: Path) -> None:
    """A Llama of 8 million weights, and a reward model over it: its adapters, and whole."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258, max_position_embeddings=512, num_key_value_heads=4, bos_token_id=None, eos_token_id=256,
        pad_token_id=257, **SIZE,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=1)
    lora = peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS", modules_to_save=["score"])
    peft.get_peft_model(model, lora).save_pretrained(folder / "reward")
    byte_tokenizer().save_pretrained(folder / "reward")


def recipe_of(folder: Path, models: Path, changes: dict[str, Any]) -> Recipe:
    """A run on these models: eight rows of up to 40 tokens."""
    names = {"model_name_or_path": str(models / "base"), "reward_model_path": str(models / "reward")}
    inputs = RunInputs(train_dataset=[{"prompt": text} for text in PROMPTS])
    return assemble(settings(folder, **{**names, "response_length": 32, **changes}), inputs)


def storages(tensors: Iterator[Tensor] | list[Tensor]) -> dict[int, int]:
    """Bytes of each storage, by its place."""
    return {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}


def of_network(model: nn.Module) -> dict[int, int]:
    """What a network holds, the scales of packed weights included."""
    scales: list[Tensor] = []
    for module in model.modules():
        state = module.weight.quant_state if "quant_state" in vars(module) else None
        while state is not None:  # nested: the scales have scales
            scales += [each for each in (state.absmax, state.code, state.offset) if isinstance(each, Tensor)]
            state = state.state2
    return storages([*tensors_of(model), *scales])


def held(recipe: Recipe) -> dict[str, int]:
    """Bytes of each role that no role before it holds."""
    (source,) = recipe.rewards.sources
    reference, learners = recipe.models.reference, [recipe.learners.policy, recipe.learners.critic]
    moments = [
        each
        for learner in learners
        for state in learner.optimizer.state.values()
        for each in state.values()
        if isinstance(each, Tensor)
    ]
    masters = [each for learner in learners for each in learner.masters.masters]
    networks = {
        "policy": of_network(recipe.models.policy.model),
        "critic": of_network(recipe.models.critic.model),
        "reference": of_network(reference.policy.model),
        "reward": of_network(source._scorer.model),
        "moments": storages([*moments, *masters]),
    }
    known: set[int] = set()
    found = {}
    for role, places in networks.items():
        found[role] = sum(size for place, size in places.items() if place not in known)
        known |= places.keys()
    return found


def one_step(recipe: Recipe) -> Any:
    """What runs one optimizer step on a rollout that is there already."""
    _, rollout, scores = play(recipe)
    experience = make_experience(rollout, scores, recipe)
    return lambda: improve(experience, STEP, recipe, first=True)


def main() -> None:
    """Measure and write benchmarks/results/roles_memory.{json,md}."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found: dict[str, dict[str, Any]] = {"roles": {}, "activations": {}}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_models(folder)
        for number, (name, changes) in enumerate(KINDS.items()):
            recipe = recipe_of(folder / f"run{number}", folder, changes)
            one_step(recipe)()
            found["roles"][name] = held(recipe)
        for name, changes in LAYERS.items():
            step = one_step(recipe_of(folder / f"layers {name}", folder, {**ONE, **changes}))
            step()  # the optimizer's moments are there from now on
            found["activations"][name] = peak_bytes(step)
    write(found)


def write(found: dict[str, dict[str, Any]]) -> None:
    """Both files."""
    mib = 2**20
    whole = sum(next(iter(found["roles"].values())).values())
    rows = [
        [name, *(f"{held[role] / mib:.2f}" for role in ROLES), f"{sum(held.values()) / mib:.1f}",
         f"{sum(held.values()) / whole:.3f}"]
        for name, held in found["roles"].items()
    ]  # fmt: skip
    first = next(iter(found["activations"].values()))
    layers = [[name, f"{size / mib:.1f}", f"{size / first:.2f}"] for name, size in found["activations"].items()]
    page = "\n\n".join(
        [
            "# What four roles hold",
            "By `python -m benchmarks.roles_memory`. A Llama of 8 layers, 256 wide, 258 tokens. MiB after an optimizer "
            "step that each role holds and none before it in its line, masters among the moments. Gradients and "
            "activations come on top.",
            table(["roles", *ROLES, "MiB", "of four whole models"], rows).rstrip(),
            "Largest sum of allocations within an optimizer step of policy and critic on one base, 8 rows of up to 40 "
            "tokens:",
            table(["layers recomputed", "MiB", "of none"], layers).rstrip(),
        ]
    )
    write_results(RESULTS, "roles_memory", found, page, machine())


if __name__ == "__main__":
    main()
