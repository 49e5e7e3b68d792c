"""One run of the stability benchmark: PPO with an engine that drifts, and what is measured on the way."""

import copy
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from benchmarks.drift.engine import DriftingEngine
from benchmarks.drift.task import is_right, questions, tokenizer
from nearstep import PPOConfig, make_experience, update
from nearstep.algorithm.kl import kl_estimate
from nearstep.assembly.inputs import RunInputs
from nearstep.assembly.run import assemble
from nearstep.common.errors import TrainingError
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.training.generation import generate
from nearstep.training.recipe import Recipe
from nearstep.training.state import State
from nearstep.types import Rollout


@dataclass(frozen=True)
class Regime:
    """How hard it is made: the task, the steps, and how the engine differs from the trainer."""

    stale_by: int = 0  # updates that the engine's weights are behind
    precision: torch.dtype | None = None  # what the engine's matrices are rounded to
    learning_rate: float = 6e-4
    updates: int = 60
    length: int = 8  # letters to be sorted
    supervised_steps: int = 1000
    slips: float = 0.15
    prompts: int = 512
    batch_size: int = 128
    num_generations: int = 8
    num_mini_batches: int = 4

    @property
    def drift(self) -> str:
        """How the engine differs from the trainer, in words; empty where it does not."""
        stale = f"the engine {self.stale_by} updates behind" if self.stale_by else ""
        name = str(self.precision).removeprefix("torch.")
        return ", ".join(filter(None, [stale, f"the engine's matrices in {name}" if self.precision else ""]))


@dataclass(frozen=True)
class Moment:
    """An update: mean reward; trainer against engine before it, as mean |π − μ| and KL(μ ‖ π); tokens dropped in it."""

    reward: float
    gap: float
    kl: float
    dropped: float
    entropy: float


def play(regime: Regime, settings: Mapping[str, object], start: nn.Module, seed: int) -> list[Moment]:
    """The updates of a run; fewer than asked for where a gradient was not finite."""
    with tempfile.TemporaryDirectory() as folder:
        r = new_recipe(regime, settings, start, seed, folder)
        moments: list[Moment] = []
        state = State()
        for number, prompts in enumerate(r.prompts.batches(after=0, until=regime.updates), start=1):
            state.begin_update()
            rollout = generate(prompts, r, version=number)
            scores = r.rewards(prompts, rollout)
            gap, kl = drift(rollout, r)
            experience = make_experience(rollout, scores, r, state)
            try:
                metrics, _ = update(experience, r.schedule.phases(number), r)
            except TrainingError:
                break
            r.learners.end_update()
            dropped = metrics.by_name["policy/clipfrac_avg"]
            moments.append(
                Moment(
                    reward=float(scores.total.mean()),
                    gap=gap,
                    kl=kl,
                    dropped=float(dropped.sum / dropped.count),
                    entropy=-float(rollout.logprobs.mean()),
                )
            )
        return moments


def new_recipe(regime: Regime, settings: Mapping[str, object], start: nn.Module, seed: int, folder: str) -> Recipe:
    """nearstep on the task, its engine wrapped; group-mean advantages without standard deviation, no KL penalty."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a limit of 10⁶ is how "no limit" is said
        config = PPOConfig(
            output_dir=folder, seed=seed, use_cpu=True, response_length=regime.length + 2, temperature=1.0,
            kl_coef=0.0, advantage="group_mean", num_generations=regime.num_generations, num_ppo_epochs=1,
            batch_size=regime.batch_size, num_mini_batches=regime.num_mini_batches,
            total_episodes=regime.updates * regime.batch_size, per_device_train_batch_size=regime.batch_size,
            local_rollout_forward_batch_size=regime.batch_size, learning_rate=regime.learning_rate,
            lr_scheduler_type="constant", num_sample_generations=0, **settings,
        )  # fmt: skip
    asked = [{"prompt": question} for question in questions(regime.prompts, regime.length, seed=seed + 1000)]
    parts = RunInputs(tokenizer=tokenizer(), model=copy.deepcopy(start), reward_funcs=(is_right,), train_dataset=asked)
    r = assemble(config, parts)
    return replace(r, engine=DriftingEngine(r.engine, regime.precision, regime.stale_by))


@torch.no_grad()
def drift(rollout: Rollout, r: Recipe) -> tuple[float, float]:
    """The trainer's policy as it stands against what the engine recorded: mean |π − μ|, and KL(μ ‖ π) by k3."""
    now = rollout_logprobs(r.models.policy, rollout, r.sampling).sampled
    gap = (now.exp() - rollout.logprobs.exp()).abs().mean()
    return float(gap), float(kl_estimate(rollout.logprobs, now, "k3").mean())
