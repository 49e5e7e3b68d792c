"""Sampling with a gate: what fills the places of dropped groups, what trains, and that nothing breaks a run in two."""

import json
import math

import pytest
import torch

from nearstep import ConfigError
from nearstep.assembly.selection import for_engine
from nearstep.rollout.engine import Capabilities, EngineSettings
from nearstep.rollout.transformers_engine import TransformersEngine
from nearstep.training.experience import before_first_step, make_experience
from nearstep.training.finished_groups import first_returns, prompt_values
from nearstep.training.gates import ScoreRange
from nearstep.training.joining import ScoredRows, joined
from nearstep.training.sampling import sample
from nearstep.training.selection import Selection
from nearstep.training.state import State
from nearstep.training.update import update
from nearstep.types import Scores
from tests.checkpoint.saved_runs import assert_same_bits, everything, records, trainer_of
from tests.training.runs import PROMPTS, play, small_recipe

GROUPS = {"num_generations": 2, "advantage": "group_mean", "shuffle_dataset": False, "kl_coef": 0.0}
REFILL = {**GROUPS, "gate": "score_range", "gate_fill": "refill"}
REPLACE = {**GROUPS, "gate": "score_range", "gate_fill": "replace"}


def differing(*good):
    """A reward that tells the two answers to these prompts apart, and gives 1 to those of all others."""

    def told_apart(prompts, **columns):
        return [float(row % 2) if prompt in good else 1.0 for row, prompt in enumerate(prompts)]

    return told_apart


def one_update(folder, reward, **settings):
    recipe = small_recipe(folder, parts={"reward_funcs": (reward,)}, **settings)
    state = State()
    recipe.selection.restore(state)
    prompts = next(recipe.prompts.batches(after=0, until=1))
    state.begin_update()
    return recipe, state, sample(prompts, recipe, state)


def test_dropped_places_are_filled_by_the_next_prompts(tmp_path):
    """a, bc, def, ghij; bc and ghij go. klmno, pq come, and pq goes; r comes for it and goes; then stuvwx."""
    _, _, sampled = one_update(tmp_path, differing("a", "def", "klmno", "stuvwx"), **REFILL)
    prompts, rollout, scores = sampled.batch
    assert prompts.inputs == ["a", "a", "klmno", "klmno", "def", "def", "stuvwx", "stuvwx"]
    assert prompts.episodes == [0, 1, 8, 9, 4, 5, 14, 15]
    assert rollout.prompt_ids() == prompts.ids
    assert scores.total.tolist() == scores.parts["told_apart"].tolist() == [0.0, 1.0] * 4
    assert sampled.kept.tolist() == [True] * 8
    assert [rows.prompts.inputs[::2] for rows in sampled.dropped] == [["bc", "ghij"], ["pq"], ["r"]]
    assert [rows.prompts.episodes for rows in sampled.dropped] == [[2, 3, 6, 7], [10, 11], [12, 13]]
    assert sampled.episodes == 16
    numbers = sampled.metrics.numbers()
    assert (numbers["gate/dropped"], numbers["gate/empty"], numbers["gate/rounds"]) == (0.5, 0.0, 4)
    assert numbers["gate/scores"] == 12 / 16


def test_at_the_limit_what_was_dropped_last_trains_nothing(tmp_path):
    with pytest.warns(UserWarning, match=r"has not filled a batch after 1 further rounds \(refill_rounds\)"):
        recipe, state, sampled = one_update(tmp_path, differing("a", "klmno"), **REFILL, refill_rounds=1)
    assert sampled.batch[0].inputs[::2] == ["a", "klmno", "pq", "r"]  # for bc, def and ghij
    assert sampled.kept.tolist() == [True] * 4 + [False] * 4
    assert sampled.episodes == 14
    _, rollout, scores = sampled.batch
    experience = make_experience(rollout, scores, recipe, state, kept=sampled.kept)
    assert experience.trained.tolist() == sampled.kept.tolist()


def test_without_a_fill_dropped_groups_stay_and_train_nothing(tmp_path):
    _, _, sampled = one_update(tmp_path, differing("bc"), **GROUPS, gate="score_range")
    assert sampled.batch[0].inputs[::2] == PROMPTS[:4]
    assert sampled.kept.tolist() == [False, False, True, True, False, False, False, False]
    assert (sampled.episodes, sampled.dropped) == (8, ())


def test_copies_take_the_numbers_of_the_groups_that_they_replace(tmp_path):
    recipe, state, sampled = one_update(tmp_path, differing("bc", "ghij"), **REPLACE)
    prompts, rollout, scores = sampled.batch
    experience = make_experience(rollout, scores, recipe, state, kept=sampled.kept)
    assert sampled.with_stand_ins(experience).prompt_numbers[8:].tolist() == [0, 0, 2, 2]
    trained = sampled.with_stand_ins(experience)
    trained = trained.select(trained.trained.nonzero().squeeze(-1))
    assert sorted(trained.prompt_numbers.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    sources = {place: prompts.ids[2 * kept] for place, kept in sampled.stand_ins.items()}
    assert set(sampled.stand_ins.values()) == {1, 3}
    for number, ids in zip(trained.prompt_numbers.tolist(), trained.rollout.prompt_ids(), strict=True):
        assert ids == sources.get(number, prompts.ids[2 * number])
    assert experience.rollout is rollout  # what is recorded and measured is what was sampled


def test_two_groups_twice_teach_what_two_groups_teach(tmp_path):
    """Means over tokens do not change where every row counts twice."""
    weights = []
    for name, fill in (("a", "replace"), ("b", "none")):
        recipe, state, sampled = one_update(
            tmp_path / name, differing("bc", "ghij"), **{**REPLACE, "gate_fill": fill, "optim": "sgd"}
        )
        _, rollout, scores = sampled.batch
        experience = make_experience(rollout, scores, recipe, state, kept=sampled.kept)
        update(sampled.with_stand_ins(experience), recipe.schedule.phases(1), recipe)
        weights.append(torch.cat([each.detach().flatten() for each in recipe.models.policy.model.parameters()]))
    start = torch.cat([p.detach().flatten() for p in small_recipe(tmp_path / "c").models.policy.model.parameters()])
    assert (weights[0] - start).abs().max() > 1e-5
    torch.testing.assert_close(*weights, atol=1e-7, rtol=0)


def test_dropped_rows_count_in_no_whitening(tmp_path):
    recipe, state, sampled = one_update(
        tmp_path, differing("bc"), **{**GROUPS, "advantage": "batch_normalized", "gate": "score_range"}
    )
    _, rollout, scores = sampled.batch
    experience = make_experience(rollout, scores, recipe, state, kept=sampled.kept)
    kept = sampled.kept.repeat_interleave(rollout.action_counts)
    assert experience.advantages[kept].mean().abs() < 1e-6
    assert experience.advantages[kept].std() == pytest.approx(1, rel=1e-4)
    assert not experience.advantages[~kept].any()


def test_an_update_of_which_nothing_is_kept_takes_no_step_and_is_finite(tmp_path):
    trainer = trainer_of(tmp_path, given={"reward_funcs": differing()}, **REFILL, refill_rounds=2)
    start = everything(trainer)
    with pytest.warns(UserWarning, match="gate ScoreRange has dropped all groups of an update: nothing is learned"):
        trainer.train()
    assert (trainer.state.steps.policy, trainer.state.episodes, trainer.state.update) == (0, 4 * 3 * 8, 4)
    assert_same_bits(everything(trainer), start)
    for line in trainer.history():
        assert (line["gate/empty"], line["gate/dropped"], line["gate/rounds"], line["response/left_out"]) == (
            1,
            1,
            3,
            1,
        )
        assert all(math.isfinite(number) for number in line.values())
    assert trainer.state.epoch == 4 * 3 * 4 / 8


def test_the_value_of_a_prompt_is_that_of_the_first_state(tmp_path):
    recipe = small_recipe(tmp_path, num_generations=2, max_tokens_per_microbatch=30)
    with torch.no_grad():
        recipe.models.critic.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    prompts, rollout, scores = play(recipe)
    _, states = before_first_step(rollout, recipe)
    first = rollout.action_counts.cumsum(0) - rollout.action_counts
    found = prompt_values(ScoredRows(prompts, rollout, scores), recipe)
    assert found.abs().max() > 1e-3
    torch.testing.assert_close(found, states.before_actions[first], atol=1e-5, rtol=1e-5)


def test_returns_are_discounted_to_the_prompt_by_hand(tmp_path):
    """γ = ½: token rewards of 1 at the first two actions, the score less the penalty for no end at the last of six."""
    recipe = small_recipe(tmp_path, gamma=0.5, missing_eos_penalty=1.0, batch_size=2)
    prompts, rollout, _ = play(recipe)
    assert rollout.action_counts.tolist() == [6, 6]
    dense = torch.tensor([1.0, 1.0, 0, 0, 0, 0] * 2)
    scores = Scores(torch.tensor([33.0, torch.nan]), dense=dense)
    found = first_returns(ScoredRows(prompts, rollout, scores), recipe, State())
    assert found[0] == 1 + 0.5 + 32 * 0.5**5
    assert found[1].isnan()


def test_rows_of_two_rounds_keep_what_belongs_to_them(tmp_path):
    recipe = small_recipe(tmp_path)
    rounds = []
    for number in (1, 2):
        prompts, rollout, _ = play(recipe, number)
        total = torch.arange(8.0) + 10 * number
        scores = Scores(
            total,
            {"a": total} if number == 1 else {"a": total, "b": total},
            extras={} if number == 1 else {"note": list("ABCDEFGH")},
            failures={"a": {1: f"round {number}"}},
            dense=None if number == 1 else torch.arange(float(len(rollout.logprobs))),
        )
        rounds.append(ScoredRows(prompts, rollout, scores))
    whole = joined(*rounds).select([9, 1, 0])
    first, second = rounds
    assert whole.prompts.inputs == [second.prompts.inputs[1], first.prompts.inputs[1], first.prompts.inputs[0]]
    assert whole.rollout.completion_ids() == [
        second.rollout.completion_ids()[1], first.rollout.completion_ids()[1], first.rollout.completion_ids()[0],
    ]  # fmt: skip
    assert whole.scores.total.tolist() == [21, 11, 10]
    assert whole.scores.parts["b"].nan_to_num(-1).tolist() == [21, -1, -1]
    assert whole.scores.extras == {"note": ["B", None, None]}
    assert whole.scores.failures == {"a": {0: "round 2", 1: "round 1"}}
    counts = second.rollout.action_counts
    start = int(counts[0])
    assert whole.scores.dense[: int(counts[1])].tolist() == [*map(float, range(start, start + int(counts[1])))]
    assert not whole.scores.dense[int(counts[1]) :].any()
    torch.testing.assert_close(
        first.with_rows([3], second.select([5])).rollout.logprobs,
        joined(first, second).select([0, 1, 2, 13, 4, 5, 6, 7]).rollout.logprobs,
    )


def half_right(completion_ids, **columns):
    return [float(ids[0] % 2) for ids in completion_ids]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {**REFILL, "shuffle_dataset": True, "sampler": "difficulty"},
        pytest.param({"gate": "value_gap", "gate_low": 0.4, "gate_fill": "refill"}, marks=pytest.mark.slow),
    ],
    ids=["scores", "values"],
)
def test_a_run_broken_off_inside_a_refill_goes_on_with_the_same_bits(tmp_path, settings):
    def of(folder, reward):
        return trainer_of(folder, given={"reward_funcs": reward}, total_episodes=16, **settings)

    unbroken = of(tmp_path / "unbroken", half_right)
    unbroken.train()
    calls = []

    def half_right_once_broken(completion_ids, **columns):
        calls.append(len(completion_ids))
        if len(calls) > 1 and len(completion_ids) < 8 and "broken" not in calls and broken.state.update == 2:
            calls.append("broken")
            raise KeyboardInterrupt
        return half_right(completion_ids)

    half_right_once_broken.__name__ = "half_right"
    broken = of(tmp_path / "broken", half_right_once_broken)
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    assert "broken" in calls, "no refill in update 2: take another seed"
    broken.train()
    assert_same_bits(everything(broken), everything(unbroken))
    assert broken.state == unbroken.state
    assert records(tmp_path / "broken") == records(tmp_path / "unbroken")
    dropped = [json.loads(line) for line in (tmp_path / "broken" / "dropped.jsonl").read_text().splitlines()]
    rollouts = [json.loads(line) for line in (tmp_path / "broken" / "rollouts.jsonl").read_text().splitlines()]
    episodes = sorted(line["episode"] for line in [*dropped, *rollouts])
    assert episodes == list(range(unbroken.state.episodes))
    assert dropped[0].keys() == rollouts[0].keys()


def test_refused_with_the_reason(tmp_path):
    for settings, said in (
        ({"gate": "score_range"}, "compares responses to one prompt: num_generations must be at least 2"),
        ({**GROUPS, "gate": "value_gap", "gate_low": 0.1}, "reads the critic, and advantage = group_mean has none"),
        ({"gate": "value_gap"}, "needs gate_low or gate_share, or both"),
        ({"gate": "mean_score"}, "needs gate_low or gate_high"),
        ({"gate": "mean_score", "gate_low": 0.5, "gate_high": 0.5}, "every group would be dropped"),
        ({"gate": "value_gap", "gate_share": 0.5, "gate_fill": "refill"}, "would never be done"),
        ({"gate": "score_rang"}, "did you mean score_range"),
        ({"sampler": "difficulty", "pool_weights": (1.0, 2.0)}, "pool_weights has 2 entries: 2 pool_borders make 3"),
        ({"sampler": "difficulty", "pool_borders": (0.8, 0.2)}, "each must be above the one before"),
        ({"sampler": "shuffled", "streaming": True}, "a stream has none: its rows come as they are read"),
    ):
        with pytest.raises(ConfigError, match=said):
            small_recipe(tmp_path, **settings)


def test_settings_without_effect_are_told(tmp_path):
    with pytest.warns(UserWarning, match="has no effect") as told:
        recipe = small_recipe(
            tmp_path, sampler="in_order", shuffle_dataset=False, pool_borders=(0.5,), gate_low=0.1, gate_fill="refill"
        )
    said = {str(each.message) for each in told}
    assert {
        "pool_borders has no effect with sampler = in_order",
        "shuffle_dataset has no effect with sampler = in_order",
        "gate_low has no effect with gate = none",
    } <= said
    assert "gate_fill = refill has no effect without a gate." in recipe.introduction


class Forgetful:
    """A sampler that learns and saves nothing."""

    def choose(self, draw):
        return [0] * draw.count

    def seen(self, numbers, means):
        pass


def test_gates_and_episodes_of_several_rows_are_refused_before_a_run():
    class InRows(TransformersEngine):
        def capabilities(self):
            return Capabilities(several_rows=True)

    engine = InRows(EngineSettings(max_rows=8, max_tokens=1024))
    assert for_engine(Selection(), engine) == Selection()
    with pytest.raises(ConfigError, match="gate ScoreRange looks at episodes of one row, and the engine InRows gives"):
        for_engine(Selection(gate=ScoreRange()), engine)


def test_a_sampler_that_would_forget_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"sampler Forgetful .* lacks state_dict\(\) or load_state_dict\(state\)"):
        small_recipe(tmp_path, parts={"sampler": Forgetful()})


def test_without_sampler_and_gate_everything_trains_and_nothing_is_remembered(tmp_path):
    recipe, state, sampled = one_update(tmp_path, differing("a"), num_generations=2)
    assert sampled.kept.all()
    assert sampled.metrics.numbers() == {}
    assert (recipe.selection.state_dict(), state.selection) == (None, None)


@pytest.mark.slow
def test_a_fork_with_another_gate_keeps_what_the_sampler_knows_and_one_with_other_data_does_not(tmp_path, capfd):
    learned = {"sampler": "difficulty", "total_episodes": 8, "shuffle_dataset": True}
    trainer_of(tmp_path / "first", given={"reward_funcs": half_right}, **learned).train()
    fork = {"fork_from": str(tmp_path / "first" / "checkpoint-1"), **learned, "total_episodes": 16}
    known = []
    for name, changed in (
        ("gate", {"gate": "mean_score", "gate_low": -1.0}),
        ("data", {"given": {"train_dataset": [{"prompt": text} for text in "abcdefgh"]}}),
    ):
        given = {"reward_funcs": half_right, **changed.pop("given", {})}
        forked = trainer_of(tmp_path / name, given=given, **fork, **changed)
        forked.recipe.checkpoint.load(forked.state)
        forked.recipe.selection.restore(forked.state)
        known.append(len(forked.recipe.selection.sampler.state_dict()["numbers"]))
    assert known == [8, 0]
    said = capfd.readouterr().err
    assert said.count("sampler DifficultyPools begins anew: the checkpoint is of another one, or of other data") == 1
