"""Batches that are sampled ahead, over a stand-in for the generation process: order, age, drops, memory, metrics."""

from dataclasses import dataclass, field

import pytest
import torch

from nearstep import ConfigError, PPOConfig, PPOTrainer
from nearstep.models.distribution import Sampling
from nearstep.rollout.ahead.messages import FinishedRow, RowsBegun, Worked
from nearstep.rollout.ahead.window import StalenessRule
from nearstep.rollout.engine import GenerationSettings
from nearstep.training.ahead import RolloutStream
from nearstep.training.clock import Clock
from nearstep.training.finished_ahead import age_metrics, newest_alike
from nearstep.types import Prompts, Rollout
from tests.tiny import byte_tokenizer, tiny_causal_lm

CPU = torch.device("cpu")
SETTINGS = GenerationSettings(Sampling(), response_length=4, stop_ids=(), seed=0)


@dataclass
class Draws:
    """Prompt number n has the ids [n + 1]; two responses each, two prompts a batch."""

    begun_at: list = field(default_factory=list)

    def batches(self, *, after, until, played=None):
        self.begun_at.append(played)
        number = played
        for _ in range(until - after):
            episodes = [2 * n + again for n in (number, number + 1) for again in (0, 1)]
            ids = [[1 + episode // 2] for episode in episodes]
            yield Prompts(ids, ["" for _ in ids], {"row": [ids[0] for ids in ids]}, episodes)
            number += 2

    def numbers(self, episodes):
        return [episode // 2 for episode in episodes]

    def again(self, numbers, episodes):
        return Prompts([[1 + number] for number in numbers], ["" for _ in numbers], {}, list(episodes))


@dataclass
class Link:
    """Answers the prompts that it is told not to hold back, each with two tokens of the weights that are there."""

    held: set = field(default_factory=set)  # numbers of prompts
    moves: bool = True
    sent: int | None = None
    runs: bool = False
    asked: list = field(default_factory=list)
    open: list = field(default_factory=list)
    abandoned: list = field(default_factory=list)
    starts: int = 0
    said: list = field(default_factory=list)
    state: str = "process 1 runs"

    def start(self):
        self.runs, self.sent, self.open, self.starts = True, None, [], self.starts + 1

    def publish(self, version):
        first, self.sent = self.sent is None, version
        return first or self.moves

    def has_moved(self):
        return self.moves

    def give(self, prompts):
        self.asked.append(list(prompts.episodes))
        rows = zip(prompts.episodes, prompts.ids, strict=True)
        self.open += [(episode, ids, self.sent) for episode, ids in rows]
        self.said.append(RowsBegun(list(prompts.episodes), self.sent))

    def abandon(self, episodes):
        self.abandoned += episodes
        self.open = [row for row in self.open if row[0] not in episodes]

    def hear(self, wait=None):
        said, self.said = self.said, []
        for row in [*self.open]:
            episode, ids, version = row
            if episode // 2 not in self.held:
                self.open.remove(row)
                said.append(row_of(episode, ids, [version, self.sent]))
        if wait is not None and not said:
            self.held.clear()  # what is waited for comes
        return [*said, Worked(1.0, 3.0)]

    def close(self):
        self.runs = False


def row_of(episode, ids, versions):
    count = len(versions)
    return FinishedRow(
        episode, False, torch.tensor([*ids, *range(20, 20 + count)]), torch.tensor([False, *[True] * count]),
        torch.full((count,), -1.0), torch.tensor(versions),
    )  # fmt: skip


def stream(link=None, draws=None, staleness=1, share=1.0, drops=False):
    rule = StalenessRule(staleness, 2, share, drops)
    return RolloutStream(draws or Draws(), link or Link(), rule, 2, Clock(CPU), CPU)


def numbers(prompts):
    return [ids[0] - 1 for ids in prompts.ids][::2]


def test_prompts_are_given_out_ahead_and_none_that_no_update_trains_on():
    found = stream(link := Link(), staleness=2)
    batches = [numbers(prompts) for prompts in found.batches(after=0, until=4)]
    assert batches == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [len(asked) // 2 for asked in link.asked] == [6, 2]  # S + 1 batches, and then one, until eight are out
    assert not link.runs


def test_a_batch_is_the_answers_to_its_prompts_with_their_versions():
    found = stream(staleness=1)
    run = found.batches(after=0, until=3)
    next(run)
    prompts = next(run)  # given out before update 1, and ended by then
    rollout = found.rollout(prompts, SETTINGS)
    assert rollout.prompt_ids() == prompts.ids == [[3], [3], [4], [4]]
    assert rollout.versions.tolist() == [1] * 8
    numbers_now = found.metrics(rollout).numbers()
    assert {name: numbers_now[f"staleness/{name}"] for name in ("age", "age_max", "versions", "dropped", "idle")} == {
        "age": 1.0, "age_max": 1.0, "versions": 1.0, "dropped": 0.0, "idle": 0.75,
    }  # fmt: skip


def test_what_has_ended_overtakes_and_what_would_be_too_old_is_waited_for():
    found = stream(link := Link(held={0}))
    run = found.batches(after=0, until=3)
    assert numbers(next(run)) == [1, 2]
    prompts = next(run)  # prompt 0 was begun by version 1: update 2 is its last
    assert numbers(prompts) == [0, 3]
    rollout = found.rollout(prompts, SETTINGS)
    assert rollout.versions.tolist() == [1, 2, 1, 2, 1, 1, 1, 1]
    assert rollout.policy_version.tolist() == [1, 1, 1, 1]
    metrics = found.metrics(rollout).numbers()
    assert metrics["staleness/waited"] == 1.0
    assert (metrics["staleness/age_oldest"], metrics["staleness/age_newest"]) == (1.0, 0.5)
    assert metrics["staleness/versions"] == 1.5
    assert link.abandoned == []


def test_what_would_be_too_old_is_dropped_and_counted():
    found = stream(link := Link(held={0}), drops=True)
    run = found.batches(after=0, until=3)
    assert numbers(next(run)) == [1, 2]
    assert numbers(next(run)) == [3, 4]
    assert (found.dropped, link.abandoned) == (2, [0, 1])
    assert numbers(next(run)) == [5, 6]
    assert found.dropped == 0


def test_while_weights_stand_still_any_age_is_allowed():
    """As in the critic's warm-up: the versions rise, and the weights are the same."""
    found = stream(Link(held={0}, moves=False), drops=True, staleness=1)
    run = found.batches(after=0, until=6)
    assert [numbers(next(run)) for _ in range(2)] == [[1, 2], [0, 3]]  # the window is full, and nothing too old
    assert (found.dropped, found.link.abandoned) == (0, [])


def test_the_newest_version_of_the_same_weights():
    assert [newest_alike(version, [1, 4, 6], 9) for version in (1, 2, 3, 4, 5, 6, 8)] == [3, 3, 3, 5, 5, 9, 9]
    assert newest_alike(1, [1], 1) == 1


def test_ages_by_hand():
    """Two rows at update 5, by versions [3, 4, 4] and [5]: ages 2, 1, 1 and 0."""
    rollout = Rollout(
        torch.tensor([1, 2, 2, 2, 1, 2]), torch.tensor([False, True, True, True, False, True]), torch.tensor([4, 2]),
        torch.full((4,), -1.0), torch.tensor([True, True]), torch.tensor([3, 5]),
        action_versions=torch.tensor([3, 4, 4, 5]),
    )  # fmt: skip
    found = {name: metric.number() for name, metric in age_metrics(rollout, 5).items()}
    assert found == {
        "staleness/age": 1.0, "staleness/age_max": 2.0, "staleness/age_oldest": 1.0, "staleness/age_newest": 0.5,
        "staleness/versions": 1.5,
    }  # fmt: skip


def test_a_run_that_goes_on_has_the_rows_that_had_ended_and_asks_for_the_others_again():
    found = stream(Link(held={1, 4}), staleness=2)
    run = found.batches(after=0, until=9)
    assert numbers(next(run)) == [0, 2]
    values, tensors = found.memory()
    again = stream(link := Link(), draws := Draws(), staleness=2)
    again.recall(values, tensors)
    prompts = next(again.batches(after=1, until=9, played=2))
    assert link.asked == [[2, 3, 8, 9], [12, 13, 14, 15]]  # prompts 1 and 4, then two new ones
    assert draws.begun_at == [0, 6]  # at the border of the batch that holds prompt 1, then where the run had come to
    assert numbers(prompts) == [1, 3]
    assert again.rollout(prompts, SETTINGS).versions.tolist() == [2, 2, 2, 2, 1, 1, 1, 1]


def test_no_prompt_is_lost_or_trained_on_twice_where_a_run_goes_on():
    seen, values, tensors = [], None, {}
    for update in range(6):  # broken off after every update
        found = stream(Link(held={update, update + 3}), staleness=2, share=0.5)
        if values is not None:
            found.recall(values, tensors)
        seen += numbers(next(found.batches(after=update, until=9, played=2 * update)))
        values, tensors = found.memory()
    assert len(seen) == 12
    assert sorted([*seen, *values["under_way"]]) == list(range(values["drawn"] - values["reserve"]))


def test_a_fork_asks_for_all_that_was_under_way_again_and_for_each_prompt_once():
    parent = stream(Link(held={0, 3}), staleness=2)
    run = parent.batches(after=0, until=9)
    trained = [*numbers(next(run)), *numbers(next(run))]
    values, _ = parent.memory()
    fork = stream(link := Link(), staleness=1)
    fork.recall(values, {})  # its parent's rows may be of other settings
    run = fork.batches(after=2, until=6, played=4)
    first = next(run)
    assert link.asked[0] == [episode for number in values["under_way"] for episode in (2 * number, 2 * number + 1)]
    assert fork.rollout(first, SETTINGS).versions.tolist() == [3] * 8
    trained += [*numbers(first), *(number for prompts in run for number in numbers(prompts))]
    assert sorted(trained) == list(range(12))


def test_an_update_that_was_broken_off_plays_its_batch_again():
    found = stream(link := Link(held={0}), staleness=1)
    run = found.batches(after=0, until=4)
    first = next(run)
    rollout = found.rollout(first, SETTINGS)
    run.close()
    found.close()
    again = next(found.batches(after=0, until=4))
    assert link.starts == 2
    assert numbers(again) == numbers(first)
    assert torch.equal(found.rollout(again, SETTINGS).tokens, rollout.tokens)


class Learning:
    """A sampler that sees scores."""

    def choose(self, draw):
        return [0] * draw.count

    def seen(self, numbers, means):
        pass

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def trainer(tmp_path, settings, **parts):
    given = {"output_dir": str(tmp_path), "total_episodes": 16, "max_staleness": 1, "use_cpu": True, **settings}
    rows = [{"prompt": text} for text in ("a", "bc", "def", "ghij")]
    return PPOTrainer(
        PPOConfig(**given), byte_tokenizer(), tiny_causal_lm(), train_dataset=rows, reward_funcs="length", **parts
    )


@pytest.mark.parametrize(
    ("settings", "parts", "problem"),
    [
        ({"gate": "score_range", "gate_fill": "refill", "num_generations": 2}, {}, "gate_fill = refill samples anew"),
        ({"sampler": "difficulty"}, {}, "sampler = difficulty draws by the scores"),
        ({}, {"sampler": Learning()}, "sampler Learning learns from the scores"),
        ({"replay_rollouts": "somewhere"}, {}, "replay_rollouts generates nothing"),
        ({}, {"engine": lambda settings: None}, "cannot of an object of this process"),
        ({"engine": "vllm_server", "engine_url": ("http://127.0.0.1:1",)}, {}, "different weights into one server"),
    ],
)
def test_what_cannot_run_ahead_is_refused_with_what_else_would_do(settings, parts, problem, tmp_path):
    with pytest.raises(ConfigError, match=problem):
        trainer(tmp_path, settings, **parts)


def test_without_staleness_nothing_runs_beside_the_trainer(tmp_path):
    recipe = trainer(tmp_path, {"max_staleness": 0}).recipe
    assert recipe.ahead is None
    assert not isinstance(recipe.prompts, RolloutStream)
