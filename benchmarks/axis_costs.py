"""What a value head and a trust region cost: the update's processor seconds as a ratio to clip with a linear head.

    python -m benchmarks.axis_costs [--rounds 5]      # about 5 minutes of one processor core

One rollout, one policy, one trunk for all critics, in one process: each round takes an update of every member of both
axes in turn, and the base again between them. A member's number is the median over rounds of its seconds over those of
the base beside it. Ratios are of CPU seconds, which move little when the machine is shared. Writes
benchmarks/results/axis_costs.md.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from benchmarks.harness.machine import machine
from benchmarks.harness.results import RESULTS, table, write_results
from benchmarks.harness.workload import Workload, arbitrary_reward, causal_model, text_of, tokenizer
from nearstep import PPOConfig, Recipe, RunInputs, assemble, make_experience, update
from nearstep.algorithm.several_outputs import EnsembleHead, QuantileHead
from nearstep.algorithm.value_heads import BCEHead, BoundedHead, HLGaussHead, LinearHead, ValueHead
from nearstep.assembly.named_axes import TRUST_REGIONS
from nearstep.models.roles import make_critic
from nearstep.models.shared_trunk import classifier_around
from nearstep.training.generation import generate
from nearstep.training.optimizers import Learners, make_learner
from nearstep.training.schedules import Phase
from nearstep.types import Experience

WORK = Workload("axes", "ppo", rows=8, longest_prompt=48, generations=4, response_length=48)
LIMIT = 1.05  # of every member but the ensemble
RANGE = (-1.0, 7.0)
HEADS: dict[str, ValueHead] = {
    "bounded": BoundedHead(*RANGE), "bce": BCEHead(*RANGE), "hl_gauss, 51 bins": HLGaussHead(*RANGE),
    "hl_gauss, 255 bins": HLGaussHead(*RANGE, bins=255), "quantile, 32": QuantileHead(32),
    "quantile, 200": QuantileHead(200), "ensemble, 2": EnsembleHead(2), "ensemble, 8": EnsembleHead(8),
}  # fmt: skip
BASE_EVERY = 4


def base_recipe(folder: Path, work: Workload) -> Recipe:
    """A run with a separate critic and a linear head, whose engine records top tokens."""
    config = PPOConfig(
        output_dir=str(folder), trust_region="topk_tv", num_generations=work.generations, kl_coef=0.0,
        response_length=work.response_length, batch_size=work.rows, total_episodes=work.rows, num_ppo_epochs=1,
        learning_rate=1e-6, stop_token=None, use_cpu=True, num_sample_generations=0, log_rollouts=False,
    )  # fmt: skip
    rows = [{"prompt": text_of(ids)} for ids in work.prompts()]
    return assemble(
        config,
        RunInputs(
            tokenizer=tokenizer(work), model=causal_model(work), reward_funcs=(arbitrary_reward,), train_dataset=rows
        ),
    )


def with_heads(base: Recipe, work: Workload) -> Iterator[tuple[str, Recipe]]:
    """The run with every head, on one trunk."""
    trunk = causal_model(work, seed=3)
    for name, head in {"linear": LinearHead(), **HEADS}.items():
        critic = make_critic(classifier_around(trunk, work.pad, head), value_head=head)
        learner = make_learner(critic.model, base.config, base.config.learning_rate, updates=1)
        models = replace(base.models, critic=critic)
        region = TRUST_REGIONS["clip"](base.config)
        yield name, replace(base, models=models, learners=Learners(base.learners.policy, learner), trust_region=region)


def seconds_of(recipe: Recipe, experience: Experience) -> float:
    """Processor seconds of one epoch of policy and critic."""
    phases = [Phase(update=1, epochs=1, policy=True, critic=True)]
    began = time.process_time()
    update(experience, phases, recipe)
    return time.process_time() - began


def measured(folder: Path, work: Workload, rounds: int) -> dict[str, list[float]]:
    """Ratios of every member, one for each round."""
    base = base_recipe(folder, work)
    prompts = base.prompts.batch(1)  # type: ignore[attr-defined]  # the data room's source
    base.engine.load(base.models.policy, version=1)
    rollout = generate(prompts, base, version=1)
    with base.rewards.early(prompts) as early:
        experience = make_experience(rollout, base.rewards(prompts, rollout, early), base)
    plain = replace(experience, rollout=replace(rollout, top=None), old_top=None)
    heads = dict(with_heads(base, work))
    linear = heads.pop("linear")
    members: dict[str, tuple[Recipe, Experience]] = {f"head: {name}": (each, plain) for name, each in heads.items()}
    for name, made in TRUST_REGIONS.items():
        region = made(base.config)
        member = replace(linear, trust_region=region)
        members[f"region: {name}"] = (member, experience if region.top_k else plain)
    seconds_of(linear, plain)  # warm up
    found: dict[str, list[float]] = {name: [] for name in members}
    names = list(members)
    for number in range(rounds):
        turn = names[number % len(names) :] + names[: number % len(names)]
        for start in range(0, len(turn), BASE_EVERY):
            before = seconds_of(linear, plain)
            spent = {name: seconds_of(*members[name]) for name in turn[start : start + BASE_EVERY]}
            beside = (before + seconds_of(linear, plain)) / 2
            for name, seconds in spent.items():
                found[name].append(seconds / beside)
    return found


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        found = measured(Path(place), WORK, rounds)
    rows = [
        [name, f"{median(ratios):.3f}", f"{min(ratios):.3f}", f"{max(ratios):.3f}"] for name, ratios in found.items()
    ]
    intro = [
        f"By `python -m benchmarks.axis_costs --rounds {rounds}`: one epoch of policy and critic with 10 M weights",
        f"each, {WORK.rows} responses, in CPU seconds",
        f"over those of clip with a linear head in the same round. The target is at most {LIMIT}, but for ensembles. "
        "Top-K regions also read the",
        "recorded tokens. Clip against itself says how far a ratio is off by chance.",
    ]
    title = "# What value heads and trust regions cost"
    page = "\n".join([title, "", *intro, "", table(["member", "median", "least", "largest"], rows)])
    write_results(RESULTS, "axis_costs", {"ratios": found}, page, machine())
    print(page)


if __name__ == "__main__":
    main()
