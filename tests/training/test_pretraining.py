"""A critic trains on the rollouts of another run before the first update: once, alone, on what they were worth."""

import json
import re
import shutil

import pytest
import torch

from nearstep import ConfigError, DataError, RunInputs, TrainingError
from nearstep.assembly.replay import replay_row
from nearstep.scale.torch_backend import TorchBackend
from nearstep.training.experience import make_experience
from nearstep.training.pretraining import EXPLAINED, LOSS, pretrain_critic
from nearstep.training.state import State
from nearstep.training.stored_rollouts import StoredRollouts
from nearstep.types import Scores
from tests.checkpoint.saved_runs import ROWS, assert_same_bits, everything, records, trainer_of
from tests.tiny import byte_tokenizer, tiny_causal_lm
from tests.training.runs import low_ids, settings, small_recipe

RATES = {"vf_learning_rate": 1e-2, "kl_coef": 0.0}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Two updates of eight rows, of another policy."""
    folder = tmp_path_factory.mktemp("stored") / "rollouts"
    other = tiny_causal_lm(seed=3, layers=1)
    trainer_of(
        folder.parent / "run", model=other, save_steps=None, total_episodes=16, dump_rollouts=str(folder)
    ).train()
    return folder


def recipe_of(folder, stored, *, parts=None, **changes):
    parts = {"model": tiny_causal_lm(layers=1), **(parts or {})}
    return small_recipe(folder, vf_pretrain_rollouts=str(stored), parts=parts, **{**RATES, **changes})


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_the_critic_trains_alone_and_comes_to_explain_what_is_stored(tmp_path, stored, capfd):
    recipe, state = recipe_of(tmp_path, stored, vf_pretrain_epochs=8, num_mini_batches=2), State()
    critic, policy = weights(recipe.models.critic.model), weights(recipe.models.policy.model)
    numbers = pretrain_critic(recipe, state).numbers()
    assert torch.equal(weights(recipe.models.policy.model), policy)
    assert not torch.equal(weights(recipe.models.critic.model), critic)
    assert (state.steps.critic, state.steps.policy, state.update) == (8 * 2 * 2, 0, 0)
    assert numbers[EXPLAINED] > 0.3
    said = re.findall(
        r"pass (\d) of 8: 4 steps, value loss (\S+), explained variance (\S+) before them", capfd.readouterr().err
    )
    assert [int(number) for number, *_ in said] == [*range(1, 9)]
    assert float(said[-1][1]) == pytest.approx(numbers[LOSS], rel=1e-3)
    assert float(said[-1][1]) < float(said[0][1])
    assert pretrain_critic(recipe, state).numbers() == {}  # it is done once
    assert not torch.equal(weights(recipe.models.critic.model), critic)


def test_the_rate_is_at_its_peak_though_the_course_begins_at_zero(tmp_path, stored):
    recipe = recipe_of(tmp_path, stored, lr_scheduler_type="linear", warmup_steps=2)
    critic = weights(recipe.models.critic.model)
    assert recipe.learners.critic.learning_rate == 0
    pretrain_critic(recipe, State())
    assert not torch.equal(weights(recipe.models.critic.model), critic)
    assert recipe.learners.critic.learning_rate == 0


def test_targets_are_whole_returns_by_this_runs_settings(tmp_path, stored):
    recipe = recipe_of(tmp_path, stored, lam=0.5, missing_eos_penalty=2.0)
    rollout, scores = StoredRollouts.of(stored).share(2, recipe.backend)
    rows = make_experience(rollout, scores, recipe, State())
    expected = scores.total - 2.0 * (~rollout.finished)
    torch.testing.assert_close(rows.returns, expected.repeat_interleave(rollout.action_counts))
    partly = make_experience(rollout, scores, recipe, State(update=1)).returns
    assert (partly - rows.returns).abs().max() > 1e-2


def test_rows_are_those_that_were_dumped(tmp_path, stored):
    recipe = recipe_of(tmp_path, stored)
    rollout, scores = StoredRollouts.of(stored).share(1, recipe.backend)
    assert scores.total.tolist() == pytest.approx(low_ids(rollout.completion_ids()))
    assert rollout.policy_version.tolist() == [1] * 8


def test_all_rounds_of_an_update_count(tmp_path, stored):
    folder = shutil.copytree(stored, tmp_path / "rounds")
    for kind in ("safetensors", "json"):
        shutil.copy(folder / f"update-000001.rank-0.{kind}", folder / f"update-000002.round-1.rank-0.{kind}")
    recipe = recipe_of(tmp_path, folder)
    found = StoredRollouts.of(folder)
    first, second, both = (StoredRollouts.of(place).share(*of) for place, of in (
        (stored, (1, recipe.backend)), (stored, (2, recipe.backend)), (folder, (2, recipe.backend)),
    ))  # fmt: skip
    assert (found.updates, len(both[0])) == ((1, 2), 16)
    assert torch.equal(both[0].tokens, torch.cat([second[0].tokens, first[0].tokens]))
    assert torch.equal(both[1].total, torch.cat([second[1].total, first[1].total]))


@pytest.mark.slow
def test_a_run_that_goes_on_does_not_pretrain_again(tmp_path, stored):
    """Its rollouts may even be gone."""
    folder = shutil.copytree(stored, tmp_path / "rollouts")
    changed = {"vf_pretrain_rollouts": str(folder), "total_episodes": 16, **RATES}
    unbroken = trainer_of(tmp_path / "run", model=tiny_causal_lm(layers=1), **changed)
    unbroken.train()
    expected, written = everything(unbroken), records(tmp_path / "run")
    first, second = written["metrics.jsonl"]
    assert (first["value/optimizer_steps"], second["value/optimizer_steps"]) == (2 + 2, 2 + 4)
    assert EXPLAINED in first
    assert EXPLAINED not in second
    replayed = replay_row(unbroken.recipe.config, tmp_path / "run", update=1, row=0, inputs=inputs()).tokens
    shutil.rmtree(folder)
    first_checkpoint = str(tmp_path / "run" / "checkpoint-1")
    resumed = trainer_of(tmp_path / "run", model=tiny_causal_lm(layers=1), resume=first_checkpoint, **changed)
    resumed.train()
    assert_same_bits(everything(resumed), expected)
    assert resumed.state == unbroken.state
    assert records(tmp_path / "run") == written
    assert replayed[0].value != 0  # as that of a critic's head that has not trained would be


def inputs():
    return RunInputs(
        tokenizer=byte_tokenizer(), model=tiny_causal_lm(layers=1), reward_funcs=(low_ids,), train_dataset=ROWS
    )


def test_without_a_critic_nothing_happens(tmp_path, stored):
    with pytest.warns(UserWarning, match="vf_pretrain_rollouts has no effect with advantage = group_mean"):
        recipe = recipe_of(tmp_path, stored, advantage="group_mean", num_generations=2)
    state = State()
    assert pretrain_critic(recipe, state).numbers() == {}
    assert not state.critic_is_pretrained


def test_rollouts_without_scores_teach_nothing(tmp_path, stored, monkeypatch):
    recipe, share = recipe_of(tmp_path, stored), StoredRollouts.share

    def unscored(self, update, backend):
        rollout, scores = share(self, update, backend)
        return rollout, Scores(torch.full_like(scores.total, torch.nan))

    monkeypatch.setattr(StoredRollouts, "share", unscored)
    with pytest.raises(TrainingError, match=r"no optimizer step could be taken in pass 1 \(0 were left out\)"):
        pretrain_critic(recipe, State())


def edited(stored, folder, **changes):
    copy = shutil.copytree(stored, folder)
    origin = json.loads((copy / "rollouts.json").read_text())
    (copy / "rollouts.json").write_text(json.dumps({**origin, **changes}))
    return copy


@pytest.mark.parametrize(("changed", "said"), [
    ({"response_length": 7}, "have response_length = 6, and this run has 7: a response that was cut off there"),
    ({"num_mini_batches": 9, "batch_size": 16}, "have 8 rows in an update, too few for 9 minibatches"),
    ({"parts": {"tokenizer": byte_tokenizer(shift=3)}}, "were written with another tokenizer: their ids mean other"),
])  # fmt: skip
def test_rollouts_that_do_not_fit_are_refused_before_any_model_is_loaded(tmp_path, stored, monkeypatch, changed, said):
    monkeypatch.setattr("nearstep.assembly.run.build_models", forbidden)
    with pytest.raises(ConfigError, match=re.escape(said)):
        recipe_of(tmp_path, stored, **changed)


def forbidden(*given):
    raise AssertionError("a refusal loads nothing")


def test_what_is_no_whole_folder_is_refused(tmp_path, stored, monkeypatch):
    monkeypatch.setattr("nearstep.assembly.run.build_models", forbidden)
    older = edited(stored, tmp_path / "older", tokenizer=None)
    with pytest.raises(ConfigError, match="do not say whose tokens they are, for an older version wrote them"):
        recipe_of(tmp_path, older)
    halved = edited(stored, tmp_path / "halved", processes=2)
    with pytest.raises(DataError, match=r"rollouts of update 1, and those of process 1 are not among them"):
        recipe_of(tmp_path, halved)
    with pytest.raises(DataError, match=r"has no rollouts\.json: it is no folder that dump_rollouts has written"):
        recipe_of(tmp_path, tmp_path)
    damaged = shutil.copytree(stored, tmp_path / "damaged")
    (damaged / "update-000002.rank-0.safetensors").write_bytes(b"x")
    with pytest.raises(DataError, match=r"vf_pretrain_rollouts: .*update-000002\.rank-0\.safetensors cannot be read"):
        recipe_of(tmp_path, damaged)
    emptied = shutil.copytree(stored, tmp_path / "emptied")
    for path in emptied.glob("update-*"):
        path.unlink()
    with pytest.raises(DataError, match="has no rollouts"):
        recipe_of(tmp_path, emptied)


def test_rows_that_the_models_cannot_read_are_refused(tmp_path, stored, monkeypatch):
    monkeypatch.setattr("nearstep.training.stored_rollouts.StoredRollouts.longest_row", lambda self: 513)
    with pytest.raises(ConfigError, match="have a row of 513 tokens, and the models of this run read 512 at most"):
        recipe_of(tmp_path, stored)


def test_a_fork_says_that_it_does_not_pretrain(tmp_path):
    with pytest.warns(UserWarning, match="vf_pretrain_rollouts has no effect with fork_from, for the critic"):
        settings(tmp_path, vf_pretrain_rollouts="somewhere", fork_from="elsewhere")


@pytest.mark.slow
def test_rewards_of_tokens_are_dealt_with_their_rows(tmp_path):
    def counted(completion_ids, **columns):
        return [[float(place + row) for place in range(len(ids))] for row, ids in enumerate(completion_ids)]

    folder = tmp_path / "dense"
    given = {"save_steps": None, "total_episodes": 8, "dump_rollouts": str(folder)}
    trainer_of(tmp_path / "run", model=tiny_causal_lm(layers=1), given={"reward_funcs": counted}, **given).train()
    whole, *parts = (
        StoredRollouts.of(folder).share(1, TorchBackend(rank, processes, torch.device("cpu")))
        for rank, processes in ((0, 1), (0, 2), (1, 2))
    )
    assert [len(rollout) for rollout, _ in parts] == [4, 4]
    assert torch.equal(torch.cat([scores.dense for _, scores in parts]), whole[1].dense)
    assert all(len(scores.dense) == len(rollout.logprobs) for rollout, scores in parts)
