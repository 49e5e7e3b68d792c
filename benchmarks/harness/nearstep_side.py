"""nearstep on a workload, measured: its own trainer, with a meter in the place of its clock and planned lengths."""

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from benchmarks.harness.floor import measure_rates
from benchmarks.harness.meter import Meter, memory_of
from benchmarks.harness.workload import (
    LengthPlan,
    Workload,
    arbitrary_reward,
    causal_model,
    scalar_model,
    tokenizer,
)
from nearstep import PPOConfig, PPOTrainer
from nearstep.config.recipes import DIVERGENCE
from nearstep.models.roles import Policy
from nearstep.rollout.engine import Capabilities, GenerationSettings, RolloutEngine, RowEnded
from nearstep.training.generation import generate
from nearstep.training.loop import train
from nearstep.training.recipe import Recipe
from nearstep.training.state import State
from nearstep.types import Prompts, Rollout


@dataclass
class PlannedLengths:
    """An engine whose rows end where the plan says, through the limits that every engine takes."""

    engine: RolloutEngine
    plan: LengthPlan

    def load(self, policy: Policy, version: int) -> None:
        """Hand the policy on."""
        self.engine.load(policy, version)

    def capabilities(self) -> Capabilities:
        """Those of the engine, but for telling of rows."""
        return replace(self.engine.capabilities(), row_ended=False)

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()

    def generate(self, prompts: Prompts, settings: GenerationSettings, row_ended: RowEnded | None = None) -> Rollout:
        """Generate with the planned limits."""
        lengths = self.plan.lengths(prompts.ids)
        rollout = self.engine.generate(prompts, replace(settings, limits=tuple(lengths)))
        assert rollout.action_counts.tolist() == lengths, "a response did not end as planned"
        return rollout


def new_recipe(workload: Workload, folder: str) -> Recipe:
    """The trainer's recipe with the options that TRL is given, and otherwise its own defaults."""
    divergence = {**DIVERGENCE, "trust_region": workload.trust_region, "advantage": "group_normalized"}
    if workload.trust_region.startswith("topk"):
        divergence["divergence_top_k"] = workload.top_k
    trunk = "adapter" if workload.adapters else "shared" if workload.shared_trunk else "separate"
    config = PPOConfig(
        output_dir=folder, total_episodes=workload.updates * workload.rows, stop_token="none",
        per_device_train_batch_size=workload.micro_rows,
        gradient_accumulation_steps=workload.rows // workload.micro_rows, num_ppo_epochs=workload.epochs,
        num_generations=workload.generations, response_length=workload.response_length, num_sample_generations=0,
        use_cpu=workload.device == "cpu", seed=0, use_peft=workload.adapters, critic_trunk=trunk,
        decode_graphs=workload.decode_graphs,
        **(divergence if workload.kind == "dppo" else {}),
    )  # fmt: skip
    with_critic = workload.kind == "ppo"
    own_critic = with_critic and trunk == "separate"
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer(workload),
        model=causal_model(workload),
        reward_model=scalar_model(workload, seed=2) if with_critic else None,
        value_model=scalar_model(workload, seed=3) if own_critic else None,
        reward_funcs=() if with_critic else arbitrary_reward,
        train_dataset=[{"input_ids": ids} for ids in workload.prompts()],
    )
    return trainer.recipe


def run(workload: Workload, meter: Meter) -> None:
    """Train or generate, and measure."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = new_recipe(workload, folder)
        engine = PlannedLengths(recipe.engine, LengthPlan.of(workload))
        recipe = replace(recipe, engine=engine, clock=meter, report=replace(recipe.report, clock=meter))
        meter.start()
        if workload.kind == "rollout":
            run_rollout(workload, recipe, meter)
        else:
            with recipe.report.reporter as reporter:
                reporter.begin(recipe.batch.table(), recipe.introduction)
                train(recipe, State())
        meter.mark(None)


def run_rollout(workload: Workload, recipe: Recipe, meter: Meter) -> None:
    """Only the engine."""
    for number, prompts in enumerate(recipe.prompts.batches(after=0, until=workload.updates)):
        with meter("generate"):
            generate(prompts, recipe, version=number)


def main() -> None:
    """Run a workload and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", required=True, help="a Workload as JSON")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    workload = Workload(**json.loads(options.workload))
    meter = Meter(memory_of(workload.device), workload.device)
    before = measure_rates(workload.dtype, workload.device)
    run(workload, meter)
    rates = before.mean(measure_rates(workload.dtype, workload.device))
    options.output.write_text(json.dumps(meter.record() | {"rates": asdict(rates)}))


if __name__ == "__main__":
    main()
