"""A run that stops anywhere and goes on ends with the same bits: weights, moments, records."""

import json

import pytest
from peft import LoraConfig

from nearstep import CheckpointError, ConfigError, PPOConfig
from nearstep.checkpoint.resume import FREE_SETTINGS, require_same_settings, settings_to_keep
from tests.checkpoint.saved_runs import ROWS, assert_same_bits, everything, records, trainer_of
from tests.lanes import slow
from tests.tiny import tiny_causal_lm

LORA = {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")}
RUNS = {
    "joint": {},
    "decoupled": {"critic": "decoupled", "vf_update_frequency": 2, "vf_warmup_updates": 1},
    "divergence": {"trust_region": "topk_tv", "divergence_top_k": 4},
    "groups": {"advantage": "group_normalized", "num_generations": 2},
    "corrected": {"anchor": "recomputed", "correction": "mis", "advantage": "gdpo", "num_generations": 2},
    "apart": {"normalize_scores": "scale", "normalize_scores_apart": True},
    "scores": {"normalize_scores": "shift_and_scale", "kl_target": 0.1, "lr_scheduler_type": "cosine"},
    "shared": {"critic_trunk": "shared"},
    "lora": {"given": LORA},
    "adapter": {"given": LORA, "critic_trunk": "adapter"},
    "bfloat16": {"model": "bfloat16"},
    "refill": {
        "num_generations": 2, "advantage": "group_mean", "gate": "score_range", "gate_low": 0.1, "gate_fill": "refill",
        "sampler": "difficulty", "pool_borders": (0.4, 0.6),
    },
    "replace": {"gate": "value_gap", "gate_low": 0.1, "gate_fill": "replace"},
}  # fmt: skip

# After which updates a run goes on always; after the others, and of the other kinds, in the slow lane.
ALWAYS = {"joint": (2,), "decoupled": (2,), "lora": (1,), "refill": (2,)}


def made(folder, kind, **more):
    changed = {**RUNS[kind], **more}
    if changed.pop("model", None):
        changed["model"] = tiny_causal_lm().bfloat16()
    return trainer_of(folder, **changed)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The whole run of a kind, its folder, and all that it ended with; each runs once."""
    known = {}

    def run(kind):
        if kind not in known:
            folder = tmp_path_factory.mktemp(kind)
            trainer = made(folder, kind)
            trainer.train()
            known[kind] = folder, trainer.state, everything(trainer), records(folder)
        return known[kind]

    return run


@pytest.mark.parametrize(
    ("kind", "update"),
    [
        pytest.param(kind, update, marks=[] if update in ALWAYS.get(kind, ()) else pytest.mark.slow)
        for kind in RUNS
        for update in (1, 2, 3)
    ],
)
def test_a_run_goes_on_from_every_update_with_the_same_bits(unbroken, kind, update):
    folder, state, expected, written = unbroken(kind)
    resumed = made(folder, kind)
    resumed.train(resume_from_checkpoint=folder / f"checkpoint-{update}")
    assert_same_bits(everything(resumed), expected)
    assert resumed.state == state
    assert records(folder) == written


@pytest.mark.slow
def test_more_episodes_go_on_where_the_run_ended(tmp_path):
    trainer_of(tmp_path).train()
    longer = trainer_of(tmp_path, total_episodes=48, resume="auto")
    assert longer.train().updates == 6
    assert [line["update"] for line in records(tmp_path)["metrics.jsonl"]] == [1, 2, 3, 4, 5, 6]


def test_other_settings_are_listed_old_and_new(tmp_path):
    trainer_of(tmp_path).train()
    with pytest.raises(ConfigError, match=r"gamma: 1.0 → 0.9\n  kl_coef: 0.05 → 0.5\n.*nearstep fork"):
        trainer_of(tmp_path, resume="auto", kl_coef=0.5, gamma=0.9)


@pytest.mark.slow
def test_a_new_run_does_not_write_into_another(tmp_path):
    trainer_of(tmp_path).train()
    before = records(tmp_path)
    with pytest.raises(ConfigError, match="holds a run up to update 4: give --resume auto"):
        trainer_of(tmp_path).train()
    assert records(tmp_path) == before


@pytest.mark.slow
def test_no_checkpoint_is_a_new_run_for_auto_and_an_error_for_true(tmp_path):
    assert trainer_of(tmp_path / "new", resume="auto").train().updates == 4
    with pytest.raises(CheckpointError, match="holds no checkpoint to go on from"):
        trainer_of(tmp_path / "none").train(resume_from_checkpoint=True)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [slow(1), 2, slow(3)])
def test_a_run_goes_on_around_an_epochs_end(tmp_path, stop):
    """Eight prompts, four an update: an epoch ends after update 2 and after update 4."""
    unbroken = trainer_of(tmp_path / "unbroken", batch_size=4, total_episodes=16)
    unbroken.train()
    trainer_of(tmp_path / "stopped", batch_size=4, total_episodes=4 * stop, lr_scheduler_type="constant").train()
    resumed = trainer_of(tmp_path / "stopped", batch_size=4, total_episodes=16, resume="auto")
    assert resumed.train().updates == 4
    assert_same_bits(everything(resumed), everything(unbroken))
    assert records(tmp_path / "stopped") == records(tmp_path / "unbroken")


@pytest.mark.slow
def test_a_run_that_is_over_does_nothing_and_a_shorter_one_is_refused(tmp_path):
    first = trainer_of(tmp_path)
    first.train()
    before = records(tmp_path)
    again = trainer_of(tmp_path, resume="auto")
    assert again.train().updates == 4
    assert_same_bits(everything(again), everything(first))
    assert records(tmp_path) == before
    with pytest.raises(ConfigError, match="stands after update 4, and this run has 3 updates"):
        trainer_of(tmp_path, resume="auto", total_episodes=24).train()


def test_free_settings_are_settings():
    assert PPOConfig.types.keys() >= FREE_SETTINGS


def test_a_run_that_died_before_its_first_checkpoint_begins_its_records_again(tmp_path):
    unbroken = trainer_of(tmp_path / "unbroken")
    unbroken.train()
    died = trainer_of(tmp_path / "died", resume="auto", save_steps=None)
    with died.recipe.report as report:  # the kernel, too, lets go of what a process had
        report.begin("", died.state)
    (tmp_path / "died" / "metrics.jsonl").write_text('{"update": 1, "episode": 8}\n{"update": 2, "epi')
    again = trainer_of(tmp_path / "died", resume="auto", save_steps=None)
    again.train()
    assert records(tmp_path / "died") == records(tmp_path / "unbroken")
    other = trainer_of(tmp_path / "died", resume="auto", save_steps=None, kl_coef=0.5)
    other.train()
    assert (tmp_path / "died" / "metrics.1.jsonl").exists()


def test_other_weights_under_the_same_settings_are_refused_and_more_updates_are_told(tmp_path, capfd):
    trainer_of(tmp_path, lr_scheduler_type="linear").train()
    other = tiny_causal_lm()
    other.lm_head.weight.data[0, 0] += 1
    with pytest.raises(CheckpointError, match="began with another policy and another reference than"):
        trainer_of(tmp_path, model=other, lr_scheduler_type="linear", resume="auto").train()
    with pytest.raises(CheckpointError, match="the data had 8 rows, and has 4 now"):
        trainer_of(
            tmp_path, lr_scheduler_type="linear", resume="auto", given={"train_dataset": [{"prompt": "a"}] * 4}
        ).train()
    for changed in ({"train_dataset": ROWS[::-1]}, {"train_dataset": [{**row, "answer": "b"} for row in ROWS]}):
        with pytest.raises(CheckpointError, match="the data has as many rows as when the run began, but not the same"):
            trainer_of(tmp_path, lr_scheduler_type="linear", resume="auto", given=changed).train()
    with pytest.raises(CheckpointError, match=r"was trained with no adapters, and now it has some\. Give the same"):
        trainer_of(tmp_path, lr_scheduler_type="linear", resume="auto", given=LORA).train()
    capfd.readouterr()
    trainer_of(tmp_path, lr_scheduler_type="linear", resume="auto", total_episodes=48).train()
    said = capfd.readouterr().err
    assert f"going on from {tmp_path / 'checkpoint-4'}, after update 4" in said
    assert "the run had 4 updates and has 6 now: from here on its learning rate takes the course" in said


@pytest.mark.slow
def test_a_damaged_checkpoint_that_is_passed_over_is_told(tmp_path, capfd):
    trainer_of(tmp_path).train()
    path = tmp_path / "checkpoint-4" / "training" / "policy.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    trainer_of(tmp_path, resume="auto").train()
    said = capfd.readouterr().err
    assert "checkpoint-4 is passed over: " in said
    assert "going on from" in said


def test_names_given_in_python_are_settings_too(tmp_path):
    tiny_causal_lm().save_pretrained(tmp_path / "one")
    tiny_causal_lm().save_pretrained(tmp_path / "two")
    trainer_of(tmp_path / "run", model=str(tmp_path / "one")).train()
    with pytest.raises(ConfigError, match=r"model_name_or_path: .*one.* → .*two"):
        trainer_of(tmp_path / "run", model=str(tmp_path / "two"), resume="auto")


def test_a_checkpoint_of_an_earlier_version_has_the_names_and_defaults_of_its_time(tmp_path):
    now = settings_to_keep(PPOConfig(anchor="recomputed", correction_high=1.5), {})
    before = {name: value for name, value in now.items() if not name.startswith("correction")}
    (tmp_path / "settings.json").write_text(json.dumps(before | {"importance_cap": 1.5, "importance_rule": "truncate"}))
    require_same_settings(tmp_path, now)
    (tmp_path / "settings.json").write_text(json.dumps(before | {"importance_cap": 1.2, "importance_rule": "mask"}))
    with pytest.raises(ConfigError, match=r"'mask' → 'truncate'\n  correction_high: 1.2 → 1.5\nA run that goes on"):
        require_same_settings(tmp_path, now)


def test_a_value_that_has_another_name_now_is_the_same(tmp_path):
    now = settings_to_keep(PPOConfig(ratio_level="row"), {})
    (tmp_path / "settings.json").write_text(json.dumps(now | {"ratio_level": "sequence"}))
    require_same_settings(tmp_path, now)
