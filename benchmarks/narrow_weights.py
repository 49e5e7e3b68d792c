"""What a weight costs in memory: float32, bfloat16 with masters, bfloat16 alone, and autocast over float32.

    python -m benchmarks.narrow_weights

One optimizer step of a policy of 20 M weights, no critic and no reference, in two micro-batches of four short rows, so
that activations weigh little. Every allocation is counted as torch's profiler saw it. For a CPU; the bytes of weights,
gradients and moments are the same on a GPU.
"""

import platform
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tests.memory import peak_bytes
from tests.training.runs import play, small_recipe
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from nearstep.training.experience import make_experience
from nearstep.training.optimizers import Learner
from nearstep.training.schedules import Phase
from nearstep.training.update import improve

KINDS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (torch.float32, {}),
    "bf16 = true, weights float32": (torch.float32, {"bf16": True}),
    "bfloat16, float32 masters": (torch.bfloat16, {}),
    "bfloat16, master_weights = false": (torch.bfloat16, {"master_weights": False}),
}
STEP = Phase(1, 1, policy=True, critic=False)


def policy(dtype: torch.dtype) -> PreTrainedModel:
    """A Llama of 20 M weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8000, hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6,
        num_key_value_heads=6, max_position_embeddings=512, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).to(dtype)
    return model


def held_tensors(model: PreTrainedModel, learner: Learner) -> Iterator[Tensor]:
    """Weights, masters and moments, each once."""
    yield from {id(weight): weight for weight in (*model.parameters(), *learner.parameters)}.values()
    for of_weight in learner.optimizer.state.values():
        yield from (of_weight["exp_avg"], of_weight["exp_avg_sq"])


def measure(folder: Path, dtype: torch.dtype, changes: dict[str, Any]) -> list[str]:
    """Bytes for each weight between steps, and at most within one; CPU seconds of the second step after it."""
    model = policy(dtype)
    count = sum(weight.numel() for weight in model.parameters())
    recipe = small_recipe(
        folder, parts={"model": model}, advantage="leave_one_out", num_generations=4, kl_coef=0.0, response_length=64,
        per_device_train_batch_size=4, batch_size=8, stop_token=None, learning_rate=3e-6, **changes,
    )  # fmt: skip
    _, rollout, scores = play(recipe)
    experience, learner = make_experience(rollout, scores, recipe), recipe.learners.policy
    improve(experience, STEP, recipe, first=False)  # Adam's moments are there from now on
    learner.free_gradients()
    held = sum(tensor.numel() * tensor.element_size() for tensor in held_tensors(model, learner))
    within = peak_bytes(lambda: improve(experience, STEP, recipe, first=False))
    began = time.process_time()
    improve(experience, STEP, recipe, first=False)
    seconds = time.process_time() - began
    return [f"{held / count:.1f}", f"{(held + within) / count:.1f}", f"{seconds:.2f}"]


def main() -> None:
    """Measure every kind and print a table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(f"{platform.machine()}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    print(
        "| weights | bytes per weight between steps | most within a step | CPU seconds of a step |\n|---|---|---|---|"
    )
    for name, (dtype, changes) in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {name} | {' | '.join(measure(Path(folder), dtype, changes))} |", flush=True)


if __name__ == "__main__":
    main()
