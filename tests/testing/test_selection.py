"""The laws of samplers and gates: ours keep them, and broken ones are caught."""

from dataclasses import dataclass, field

import pytest
import torch

from nearstep.common.errors import ConformanceError
from nearstep.data.samplers import DifficultyPools, Passes
from nearstep.testing import gates, samplers
from nearstep.testing.kinds import kind_of
from nearstep.training.gates import MeanScore, ScoreRange, ValueGap

SAMPLERS = [Passes(), Passes(shuffle=False), DifficultyPools(), DifficultyPools((0.5,), (0.0, 1.0, 2.0))]
GATES = [ScoreRange(), ScoreRange(0.2, 0.7), MeanScore(0.0, 1.0), ValueGap(0.3), ValueGap(0.0, 0.5)]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_our_samplers_keep_the_laws(sampler):
    assert kind_of(sampler) == "sampler"
    result = samplers.check_sampler(sampler)
    assert result.not_offered == (() if isinstance(sampler, DifficultyPools) else ("metrics",))
    assert len(result.held) + len(result.not_offered) == len(samplers.LAWS)


@pytest.mark.parametrize("gate", GATES, ids=str)
def test_our_gates_keep_the_laws(gate):
    assert kind_of(gate) == "gate"
    skip = ("own_group",) if gate == ValueGap(0.0, 0.5) else ()
    result = gates.check_gate(gate, skip=skip)
    assert [name for name, _ in result.held] == [
        law.name for law in gates.LAWS if law.name not in (*skip, "metrics")
    ]  # it has none


class NotAll:
    def choose(self, draw):
        return [0] * draw.count


class OneTooHigh:
    def choose(self, draw):
        return [(draw.first + number) % (draw.prompts + 1) for number in range(draw.count)]


class Global:
    def choose(self, draw):
        return torch.randint(draw.prompts, (draw.count,)).tolist()


@dataclass
class Counts:
    """Its own counter, which nobody saves."""

    place: int = 0

    def choose(self, draw):
        self.place += draw.count
        return [(self.place + number) % draw.prompts for number in range(draw.count)]


@dataclass
class Learns(NotAll):
    best: float = 0.0

    def choose(self, draw):
        return [int(self.best * 10) % draw.prompts] * draw.count

    def seen(self, numbers, means):
        self.best = max([self.best, *means])


class LearnsAndSavesHalf(Learns):
    def state_dict(self):
        return {"best": self.best}

    def load_state_dict(self, state):
        self.best = max(self.best, state["best"])


class SavesKeys(Counts):
    def state_dict(self):
        return {"place": {self.place: True}}

    def load_state_dict(self, state):
        (self.place,) = state["place"]


@dataclass
class Shares:
    """Its state is what it goes on counting in."""

    counts: dict = field(default_factory=lambda: {"place": 0})

    def choose(self, draw):
        self.counts["place"] += draw.count
        return [(self.counts["place"] + number) % draw.prompts for number in range(draw.count)]

    def state_dict(self):
        return self.counts

    def load_state_dict(self, state):
        self.counts = dict(state)


class SavesAlone(Counts):
    def state_dict(self):
        return {"place": self.place}


@pytest.mark.parametrize(("broken", "law"), [
    (object, "protocol"), (OneTooHigh, "numbers"), (Global, "repeatable"), (Learns, "remembers"),
    (Counts, "round_trip"), (SavesKeys, "round_trip"), (LearnsAndSavesHalf, "goes_back"), (NotAll, "covers"),
    (Shares, "own_copy"), (SavesAlone, "remembers"),
])  # fmt: skip
def test_broken_samplers_are_caught(broken, law):
    with pytest.raises(ConformanceError, match=f"breaks the law '{law}'"):
        samplers.check_sampler(broken())


class Base:
    needs_values = False

    def keep(self, groups):
        return ~groups.scores.isnan().all(1)


class ByRow(Base):
    def keep(self, groups):
        return groups.scores > 0


class Random(Base):
    def keep(self, groups):
        return torch.rand(len(groups)) < 0.5


class Overwrites(Base):
    def keep(self, groups):
        groups.scores[groups.scores.isnan()] = 0
        return groups.scores.sum(1) > 0


@dataclass
class Moving(Base):
    """Above the mean of all that it has seen, which nobody saves."""

    seen: list = field(default_factory=list)

    def keep(self, groups):
        self.seen += groups.scores.nan_to_num().mean(1).tolist()
        return groups.scores.nan_to_num(-9).mean(1) > sum(self.seen) / max(len(self.seen), 1)


@dataclass
class Alternating(Base):
    """Every other round, which nobody saves."""

    rounds: int = 0

    def keep(self, groups):
        self.rounds += 1
        return torch.full((len(groups),), self.rounds % 2 == 0)


@dataclass
class SharesItsState(Base):
    """Keeps every second time, and its state is what it goes on writing into."""

    state: dict = field(default_factory=lambda: {"asked": 0})

    def keep(self, groups):
        self.state["asked"] += 1
        return super().keep(groups)

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = dict(state)


class NoneAtAll(Base):
    def keep(self, groups):
        return groups.scores.nan_to_num(1).mean(1) > 0.5


class First(Base):
    def keep(self, groups):
        return groups.scores[:, 0] > 0.5


class AboveTheMean(Base):
    def keep(self, groups):
        scores = groups.scores.nan_to_num(-9).mean(1)
        return scores > groups.scores.nanmean().nan_to_num(-8)


class ManyOnly(Base):
    def keep(self, groups):
        return torch.ones(max(len(groups), 1), dtype=torch.bool)


@pytest.mark.parametrize(("broken", "law"), [
    (object, "protocol"), (ByRow, "one_bool"), (ManyOnly, "few_groups"), (Random, "repeatable"),
    (Overwrites, "inputs_untouched"), (Moving, "round_trip"), (Alternating, "round_trip"),
    (SharesItsState, "own_copy"), (NoneAtAll, "nothing_scored"), (First, "order_of_rows"), (AboveTheMean, "own_group"),
])  # fmt: skip
def test_broken_gates_are_caught(broken, law):
    with pytest.raises(ConformanceError, match=f"breaks the law '{law}'"):
        gates.check_gate(broken())
