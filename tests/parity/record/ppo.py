"""Records updates of TRL's PPOTrainer on the tiny world: what it computed from a rollout, its losses, its weights.

TRL's code runs as it is. Only `accelerator.backward` and `get_reward` are wrapped: at every optimizer step the wrapper
looks at what the training loop holds then. Every scenario is set up so that known defects of TRL do not meet it: one
minibatch without gradient accumulation, <pad> apart from <eos> and never sampled, rows of left-padded prompts. TRL
ignores max_grad_norm.
"""

import argparse
import inspect
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from tests.parity.record import world
from tests.parity.record.scenarios import SCENARIOS
from tests.parity.record.writing import write

ROLLOUT = ("query_responses", "sequence_lengths", "padding_mask", "padding_mask_p1", "logprobs", "ref_logprobs")
EXPERIENCE = ("values", "scores", "rewards", "advantages", "returns")


@dataclass
class Recorder(TrainerCallback):
    """Arrays by `<update>/<name>`; the weights are those after the update."""

    arrays: dict[str, Tensor] = field(default_factory=dict)
    raw_scores: Tensor | None = None

    def watch(self, trainer: PPOTrainer) -> None:
        """Look over the trainer's shoulder from now on."""
        trainer.accelerator.backward = self._at_backward(trainer.accelerator.backward)
        ppo_trainer.get_reward = self._at_reward(ppo_trainer.get_reward)
        trainer.add_callback(self)

    def _at_reward(self, get_reward: Callable[..., Any]) -> Callable[..., Any]:
        def judge(*given: Any) -> Any:
            result = get_reward(*given)
            self.raw_scores = result[1].clone()  # the reward model is asked last, after the critic
            return result

        return judge

    def _at_backward(self, backward: Callable[..., None]) -> Callable[..., None]:
        def record(loss: Tensor) -> None:
            held = inspect.currentframe().f_back.f_locals
            update, epoch = held["update"], held["ppo_epoch_idx"]
            if epoch == 0:
                self.arrays |= {f"{update}/{name}": held[name].clone() for name in (*ROLLOUT, *EXPERIENCE)}
                self.arrays |= {f"{update}/raw_scores": self.raw_scores}
                self.arrays |= {f"{update}/context_length": torch.tensor(held["context_length"])}
            self.arrays |= {f"{update}/{epoch}/{name}": loss for name, loss in losses(held).items()}
            backward(loss)

        return record

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **others: Any) -> None:
        """Keep the weights, and the learning rate of the next update."""
        self.keep_weights(f"{state.global_step}/weights/", model)
        rate = others["optimizer"].param_groups[0]["lr"]
        self.arrays[f"{state.global_step}/next_learning_rate"] = torch.tensor(rate, dtype=torch.float64)

    def keep_weights(self, prefix: str, model: nn.Module) -> None:
        """Policy and critic."""
        for role, network in (("policy", model.policy), ("value", model.value_model)):
            state = network.state_dict().items()
            self.arrays |= {f"{prefix}{role}/{name}": weights.clone() for name, weights in state}


def losses(held: dict[str, Any]) -> dict[str, Tensor]:
    """The losses of one step, from the names that TRL's loop gives to its parts."""
    actions = ~held["padding_mask"][held["micro_batch_inds"]]
    largest = torch.maximum(held["pg_losses"].abs(), held["pg_losses2"].abs())
    named = {
        "pg_loss": held["pg_loss"],
        "abs_pg_loss": largest[actions].mean(),
        "vf_loss": held["vf_loss"],
        "pg_clipped": (held["pg_losses2"] > held["pg_losses"])[actions].double().mean(),
        "vf_clipped": held["vf_clipfrac"],
    }
    return {name: loss.detach().clone() for name, loss in named.items()}


def new_trainer(scenario: str, *, updates: int, rows: int, width: int, dtype: torch.dtype, folder: str) -> PPOTrainer:
    """TRL's trainer over the tiny world."""
    config = PPOConfig(
        output_dir=folder, total_episodes=updates * rows, per_device_train_batch_size=rows,
        gradient_accumulation_steps=1, num_mini_batches=1, local_rollout_forward_batch_size=rows,
        response_length=world.RESPONSE_LENGTH, stop_token="eos", temperature=1.0, num_sample_generations=0,
        report_to="none", save_strategy="no", use_cpu=True, bf16=False, gradient_checkpointing=False,
        disable_tqdm=True, seed=0, **SCENARIOS[scenario],
    )  # fmt: skip
    return PPOTrainer(
        args=config,
        processing_class=world.tokenizer(),
        model=world.causal_model(width, seed=1, dtype=dtype),
        ref_model=world.causal_model(width, seed=2, dtype=dtype),
        reward_model=world.scalar_model(width, seed=3, dtype=dtype),
        value_model=world.scalar_model(width, seed=4, dtype=dtype),
        train_dataset=Dataset.from_dict({"input_ids": world.prompts(4 * rows)}),
        eval_dataset=Dataset.from_dict({"input_ids": world.prompts(rows)}),
    )


def main() -> None:
    """Run TRL and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", choices=SCENARIOS, required=True)
    parser.add_argument("--updates", type=int, default=1)
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    np.random.seed(0)  # TRL shuffles rows with it and leaves it unseeded
    dtype = {"float32": torch.float32, "float64": torch.float64}[options.dtype]
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as folder:
        trainer = new_trainer(
            options.scenario, updates=options.updates, rows=options.rows, width=options.width, dtype=dtype,
            folder=folder,
        )  # fmt: skip
        recorder.keep_weights("0/weights/", trainer.model)
        reference = trainer.ref_model.state_dict().items()
        recorder.arrays |= {f"0/weights/reference/{name}": weights.clone() for name, weights in reference}
        recorder.watch(trainer)
        trainer.train()
    write(options.output, recorder.arrays)


if __name__ == "__main__":
    main()
