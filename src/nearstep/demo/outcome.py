"""Whether PPO worked: a judge that counts facts compares a policy's summaries with those of people."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from nearstep.demo.facts import Facts, Slot
from nearstep.demo.judge import ShareOfFacts, judge
from nearstep.demo.world import Summary
from nearstep.models.distribution import Sampling
from nearstep.models.load import load_policy
from nearstep.models.roles import make_policy
from nearstep.models.tokenizers import load_tokenizer
from nearstep.reports.fitting import Column, fitting_tables
from nearstep.rollout.engine import EngineSettings, GenerationSettings, play
from nearstep.rollout.transformers_engine import TransformersEngine
from nearstep.types import Prompts

TEMPERATURE = 0.7


@dataclass(frozen=True)
class HeldOut:
    """A post that no training saw, what it tells, and a person's summary."""

    prompt: str
    facts: Facts
    reference: Summary


@dataclass(frozen=True)
class DemoOutcome:
    """How the summaries of one policy did against those of people."""

    preferred: ShareOfFacts
    right_facts: float  # per summary
    wrong_facts: float
    words: float
    finished: float  # share


def read_held_out(path: Path) -> list[HeldOut]:
    """The posts that `prepare_world` set aside."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        HeldOut(row["prompt"], {Slot(name): value for name, value in row["facts"].items()}, Summary(**row["reference"]))
        for row in rows
    ]


def evaluate(folder: Path, held_out: Sequence[HeldOut], *, response_length: int, seed: int) -> DemoOutcome:
    """Let the policy in `folder` summarise every post once, at temperature 0.7, and judge."""
    summaries = summarise(folder, [post.prompt for post in held_out], response_length=response_length, seed=seed)
    ours = [judge(post.facts, summary) for post, summary in zip(held_out, summaries, strict=True)]
    people = [judge(post.facts, post.reference) for post in held_out]
    wins = sum(a.points > b.points for a, b in zip(ours, people, strict=True))
    ties = sum(a.points == b.points for a, b in zip(ours, people, strict=True))
    count = len(held_out)
    return DemoOutcome(
        preferred=ShareOfFacts(wins, ties, count),
        right_facts=sum(counted.right for counted in ours) / count,
        wrong_facts=sum(counted.wrong for counted in ours) / count,
        words=sum(len(summary.text.split()) for summary in summaries) / count,
        finished=sum(summary.finished for summary in summaries) / count,
    )


def summarise(folder: Path, prompts: Sequence[str], *, response_length: int, seed: int) -> list[Summary]:
    """One summary for every prompt."""
    tokenizer = load_tokenizer(str(folder))
    stops = (tokenizer.eos_token_id,)
    settings = GenerationSettings(Sampling(TEMPERATURE), response_length, stops, seed)
    engine = TransformersEngine(EngineSettings())
    engine.load(make_policy(load_policy(str(folder), role="policy", dtype=torch.float32)), 0)
    batch = Prompts(tokenizer(list(prompts))["input_ids"], list(prompts), {}, list(range(len(prompts))))
    rollout = play(engine, batch, settings).last_segments()
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in rollout.completion_ids()]
    return [Summary(text, finished) for text, finished in zip(texts, rollout.finished.tolist(), strict=True)]


def outcome_tables(outcomes: dict[str, DemoOutcome], width: int) -> list[Table]:
    """One line per policy; several tables where the columns do not fit into `width` beside each other."""
    intervals = [outcome.preferred.interval() for outcome in outcomes.values()]
    columns = {
        "preferred": [f"{outcome.preferred.value:.1%}" for outcome in outcomes.values()],
        "95 % interval": [f"{low:.1%} – {high:.1%}" for low, high in intervals],
        "facts right": [f"{outcome.right_facts:.2f}" for outcome in outcomes.values()],
        "facts wrong": [f"{outcome.wrong_facts:.2f}" for outcome in outcomes.values()],
        "words": [f"{outcome.words:.1f}" for outcome in outcomes.values()],
        "finished": [f"{outcome.finished:.0%}" for outcome in outcomes.values()],
    }
    policies = Column("policy", list(outcomes), "left")
    return fitting_tables(policies, [Column(name, cells) for name, cells in columns.items()], width)
