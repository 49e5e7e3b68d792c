"""Records a run of TRL's DPPOTrainer on the tiny world: what every optimizer step was given, its loss, the weights.

TRL's code runs as it is; only the loss is wrapped. No gradient clipping, a constant learning rate, the whole rollout in
every step. All prompts are of one length: this trainer counts positions from the padding on, and rotary angles of other
positions, though the same in theory, are other float32 numbers.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import TrainerCallback
from trl.experimental.dppo import DPPOConfig, DPPOTrainer

from tests.parity.record import world
from tests.parity.record.scenarios import DIVERGENCE
from tests.parity.record.writing import write

GIVEN = (
    "prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "sampling_per_token_logps",
    "sampling_topk_logps", "sampling_topk_token_ids",
)  # fmt: skip
GENERATIONS = 8


@dataclass
class Recorder(TrainerCallback):
    """Arrays by `<update>/<name>` for a rollout, `<update>/<epoch>/<name>` for a step; weights are those after it."""

    epochs: int
    arrays: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0

    def watch(self, trainer: DPPOTrainer) -> None:
        """Look over the trainer's shoulder from now on."""
        trainer._compute_loss = self._at_loss(trainer, trainer._compute_loss)
        trainer.add_callback(self)

    def _at_loss(self, trainer: DPPOTrainer, compute_loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def record(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
            loss = compute_loss(model, inputs)
            update, epoch = divmod(self.steps, self.epochs)
            if epoch == 0:
                self.arrays |= {f"{update + 1}/{name}": inputs[name].clone() for name in GIVEN if name in inputs}
            dropped = trainer._metrics["train"]["mask_ratio/overall_mean"][-1]
            self.arrays[f"{update + 1}/{epoch}/loss"] = loss.detach().clone()
            self.arrays[f"{update + 1}/{epoch}/dropped"] = torch.tensor(dropped)
            self.steps += 1
            return loss

        return record

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        """Keep the weights after the last step of a rollout."""
        if state.global_step % self.epochs == 0:
            self.keep_weights(state.global_step // self.epochs, model)

    def keep_weights(self, update: int, model: nn.Module) -> None:
        """The policy."""
        weights = model.state_dict().items()
        self.arrays |= {f"{update}/weights/policy/{name}": tensor.clone() for name, tensor in weights}


def low_words(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Share of words with a low number."""
    return [sum(token < 15 for token in ids) / max(1, len(ids)) for ids in completion_ids]


def new_trainer(options: argparse.Namespace, folder: str) -> DPPOTrainer:
    """TRL's trainer over the tiny world."""
    threshold = {"tv": 0.15, "kl": 0.05}[options.divergence.rsplit("_", 1)[1]]
    config = DPPOConfig(
        output_dir=folder, per_device_train_batch_size=options.rows, gradient_accumulation_steps=1,
        num_generations=GENERATIONS, num_iterations=DIVERGENCE["num_ppo_epochs"],
        max_steps=options.updates * DIVERGENCE["num_ppo_epochs"], max_completion_length=world.RESPONSE_LENGTH,
        learning_rate=DIVERGENCE["learning_rate"], lr_scheduler_type="constant", max_grad_norm=0.0,
        optim=DIVERGENCE["optim"], adam_epsilon=DIVERGENCE["adam_epsilon"], weight_decay=0.0, temperature=1.0,
        beta=0.0, divergence_type=options.divergence, divergence_topk=DIVERGENCE["divergence_top_k"],
        epsilon=threshold, epsilon_high=threshold, bf16=False, use_cpu=True, gradient_checkpointing=False,
        report_to="none", save_strategy="no", disable_tqdm=True, logging_strategy="no", seed=0,
    )  # fmt: skip
    dtype = {"float32": torch.float32, "float64": torch.float64}[options.dtype]
    words = [" ".join(f"w{token}" for token in ids) for ids in world.prompts(4 * options.rows, length=5)]
    return DPPOTrainer(
        model=world.causal_model(options.width, seed=1, dtype=dtype),
        reward_funcs=low_words,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": words}),
        processing_class=world.tokenizer(),
    )


def main() -> None:
    """Run TRL and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--divergence", choices=("binary_tv", "binary_kl", "topk_tv", "topk_kl"), required=True)
    parser.add_argument("--updates", type=int, default=24)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    recorder = Recorder(DIVERGENCE["num_ppo_epochs"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = new_trainer(options, folder)
        recorder.keep_weights(0, trainer.model)
        recorder.watch(trainer)
        trainer.train()
    write(options.output, recorder.arrays)


if __name__ == "__main__":
    main()
