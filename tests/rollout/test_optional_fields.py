"""What few engines record: several turns or rows of an episode, versions of actions, inputs beside tokens."""

from copy import copy
from dataclasses import replace

import pytest
import torch

from nearstep.algorithm.trust_regions import ActionRows
from nearstep.common.errors import ModelError, TrainingError
from nearstep.models.distribution import Sampling
from nearstep.models.forward.layout import RowTokens
from nearstep.rollout.checks import check_rollout
from nearstep.rollout.engine import GenerationSettings, rollout_of_rows
from nearstep.training.replay import RolloutFolder
from nearstep.training.rollout_origin import RolloutOrigin
from nearstep.types import CriticLeads, Prompts, Rollout, Scores

PROMPTS = Prompts(ids=[[5, 6], [8]], inputs=["", ""], columns={}, episodes=[10, 11])
SETTINGS = GenerationSettings(Sampling(0.7), response_length=4, stop_ids=(2,), seed=0)
# Episode 10 has two rows and in the second two turns: 5 6|7 2, then 5 7|3 (9) 2; episode 11 has one: 8|4 2.
GOOD = Rollout(
    tokens=torch.tensor([5, 6, 7, 2, 5, 7, 3, 9, 2, 8, 4, 2]),
    is_action=torch.tensor([0, 0, 1, 1, 0, 0, 1, 0, 1, 0, 1, 1]).bool(),
    row_lengths=torch.tensor([4, 5, 3]),
    logprobs=-torch.arange(1.0, 7.0),
    finished=torch.tensor([True, True, True]),
    policy_version=torch.tensor([2, 3, 3]),
    action_versions=torch.tensor([2, 3, 3, 4, 3, 3]),
    episodes=torch.tensor([10, 10, 11]),
    model_inputs={"pixel_values": [torch.ones(2, 3), None, torch.zeros(1)]},
)


def checked(**changes):
    found = copy(GOOD)
    vars(found).update(changes)  # past the shape checks that the tests switch on: users have none
    return check_rollout(found, PROMPTS, engine="E", limits=[4, 4], top_tokens=0, newest=4, vocabulary=None)


def test_what_fits_passes_untouched():
    assert checked() is not GOOD
    assert check_rollout(GOOD, PROMPTS, engine="E", limits=[4, 4], top_tokens=0, newest=4, vocabulary=None) is GOOD


@pytest.mark.parametrize(("changes", "said"), [
    ({"episodes": torch.tensor([10, 11, 10])}, r"rows are of the episodes \[10, 11, 10\], and \[10, 11\] were asked"),
    ({"episodes": torch.tensor([10, 10, 12])}, r"\[10, 12\], and \[10, 11\] were asked"),
    ({"episodes": torch.tensor([10, 11])}, r"episodes is torch.int64 of shape \[2\]; record one whole number for each"),
    ({"episodes": None}, "row_lengths has 3 rows for 2 prompts"),
    ({"finished": torch.tensor([False, True, True])}, r"row 0 \(episode 10\) has finished = false and another segment"),
    ({"tokens": GOOD.tokens.index_fill(0, torch.tensor(0), 4)}, r"row 0 \(episode 10\) begins with \[4, 6\]"),
    ({"is_action": GOOD.is_action.index_fill(0, torch.tensor([4, 5]), True), "logprobs": -torch.arange(1.0, 9.0),
      "action_versions": None}, r"row 1 \(episode 10\) is a later segment without"),
    ({"tokens": torch.cat([GOOD.tokens, torch.tensor([1])]), "row_lengths": torch.tensor([4, 5, 4]),
      "is_action": torch.cat([GOOD.is_action, torch.tensor([False])])},
     r"row 2 \(episode 11\) ends with a token that is no action"),
    ({"action_versions": torch.tensor([2, 3])}, r"action_versions is torch.int64 of shape \[2\]; .* of the 6 actions"),
    ({"action_versions": torch.tensor([2, 3, 4, 4, 3, 3])},
     r"row 1 \(episode 10\) is of policy version 3, and the oldest of its actions of 4"),
    ({"action_versions": torch.tensor([2, 3, 3, 5, 3, 3])},
     r"row 1 \(episode 10\) has an action of policy version 5, and 4"),
    ({"model_inputs": {"pixel_values": [None]}}, r"model_inputs\['pixel_values'\] is .*; record a list with one"),
    ({"model_inputs": {"pixel.values": [None] * 3}}, r"model_inputs has the name 'pixel.values'"),
    ({"model_inputs": [1]}, r"model_inputs is \[1\]; record a mapping by name, or None"),
])  # fmt: skip
def test_what_does_not_fit_is_named(changes, said):
    with pytest.raises(TrainingError, match=f"engine E: .*{said}"):
        checked(**changes)


def test_rows_of_an_episode_have_its_limit_each():
    with pytest.raises(TrainingError, match=r"row 0 \(episode 10\) has 2 actions; record at least 1 and at most 1"):
        check_rollout(GOOD, PROMPTS, engine="E", limits=[1, 4], top_tokens=0, newest=4, vocabulary=None)


def test_selected_rows_keep_all_of_it():
    found = GOOD.select(torch.tensor([2, 0]))
    assert found.action_versions.tolist() == [3, 3, 2, 3]
    assert found.episodes.tolist() == [11, 10]
    assert [None if each is None else each.shape[0] for each in found.model_inputs["pixel_values"]] == [1, 2]
    assert GOOD.select(torch.tensor([1])).model_inputs == {"pixel_values": [None]}


def test_versions_are_those_of_the_rows_where_nobody_says_more():
    assert GOOD.versions.tolist() == [2, 3, 3, 4, 3, 3]
    assert replace(GOOD, action_versions=None).versions.tolist() == [2, 2, 3, 3, 3, 3]
    rows = ActionRows(GOOD.action_counts, GOOD.policy_version)
    assert rows.versions.tolist() == [2, 2, 3, 3, 3, 3]
    assert replace(rows, action_versions=GOOD.action_versions).versions.tolist() == [2, 3, 3, 4, 3, 3]


def test_rows_of_episodes():
    assert GOOD.turn_starts.tolist() == [True, False, True, True, True, False]
    assert GOOD.segment_counts.tolist() == [2, 1]
    assert GOOD.ends_episode.tolist() == [False, True, True]
    assert GOOD.last_segments().completion_ids() == [[3, 9, 2], [4, 2]]
    assert GOOD.last_segments().completion_actions() == [[True, False, True], [True, True]]
    whole = GOOD.by_episode()
    assert whole.action_counts.tolist() == [4, 2]
    assert whole.policy_version.tolist() == [2, 3]
    assert whole.turn_starts.tolist() == GOOD.turn_starts.tolist()
    alone = replace(GOOD, episodes=None)
    assert alone.last_segments() is alone
    assert alone.by_episode() is alone
    assert alone.segment_counts.tolist() == [1, 1, 1]


def test_other_leads_leave_everything_from_the_first_action_on():
    leads = CriticLeads(torch.tensor([1, 1, 1, 8]), torch.tensor([3, 0, 1]), torch.zeros(3, dtype=torch.bool))
    found = GOOD.with_leads(leads)
    assert found.tokens.tolist() == [1, 1, 1, 7, 2, 3, 9, 2, 8, 4, 2]
    assert found.is_action.int().tolist() == [0, 0, 0, 1, 1, 1, 0, 1, 0, 1, 1]
    assert found.row_lengths.tolist() == [5, 3, 3]
    assert found.actions.tolist() == GOOD.actions.tolist()
    assert leads.select(torch.tensor([2, 0])).tokens.tolist() == [8, 1, 1, 1]


def test_a_response_may_be_given_with_what_was_heard_in_it():
    found = rollout_of_rows(
        PROMPTS, [[3, 9, 2], [4, 2]], [torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -4.0])], [True, True], 1,
        chosen=[[True, False, True], [True, True]],
    )  # fmt: skip
    assert found.is_action.int().tolist() == [0, 0, 1, 0, 1, 0, 1, 1]
    assert found.actions.tolist() == [3, 2, 4, 2]


def test_inputs_beside_tokens_are_refused_where_a_model_would_have_to_read_them():
    with pytest.raises(ModelError, match="the rollout has pixel_values beside its tokens"):
        RowTokens.of(GOOD)
    RowTokens.of(replace(GOOD, model_inputs=None))


def test_written_rollouts_keep_all_of_it(tmp_path):
    folder = RolloutFolder(tmp_path, 0, RolloutOrigin(1, 2, "", 0, {}))
    folder.write(7, 0, GOOD, Scores(torch.tensor([1.0, 2.0])))
    found = folder.rollout(7, 0, torch.device("cpu"))
    for name in ("action_versions", "episodes", "tokens", "policy_version"):
        assert torch.equal(vars(found)[name], vars(GOOD)[name]), name
    (values,) = found.model_inputs.values()
    assert [None if each is None else each.tolist() for each in values] == [[[1.0] * 3] * 2, None, [0.0]]
    folder.write(8, 0, replace(GOOD, action_versions=None, episodes=None, model_inputs=None), Scores(torch.zeros(3)))
    plain = folder.rollout(8, 0, torch.device("cpu"))
    assert (plain.action_versions, plain.episodes, plain.model_inputs) == (None, None, None)
