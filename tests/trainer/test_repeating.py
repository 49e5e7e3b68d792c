"""A run again: from the run.yaml that it left, by calling train() once more, and after it was broken off."""

import json

import pytest
import torch
import yaml
from transformers import TrainerCallback

from nearstep import PPOConfig, PPOTrainer, RewardConfig, RewardModelTrainer
from nearstep.cli.main import main
from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_scalar_model
from tests.training.runs import PROMPTS, low_ids, settings

ROWS = [{"prompt": text} for text in PROMPTS]
OF_THE_CLOCK = ("seconds", "eps", "tokens_per_second", "time/")


def metrics_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: number for name, number in line.items() if not name.startswith(OF_THE_CLOCK)} for line in lines]


def weights_of(folder):
    return [(folder / role / "model.safetensors").read_bytes() for role in ("policy", "value")]


@pytest.fixture
def places(tmp_path):
    tiny_causal_lm(layers=1).save_pretrained(tmp_path / "policy")
    tiny_scalar_model(layers=1).save_pretrained(tmp_path / "scorer")
    for folder in ("policy", "scorer"):
        byte_tokenizer().save_pretrained(tmp_path / folder)
    rows = [{"question": text, "answer": "x"} for text in PROMPTS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "mine.py").write_text(
        "def same(completions, **others):\n    return [float(len(c)) for c in completions]\n"
    )
    return tmp_path


def test_run_yaml_repeats_a_run_bit_for_bit(places, monkeypatch):
    monkeypatch.chdir(places)
    flags = (
        "--model_name_or_path policy --dataset_name prompts.jsonl --columns prompt=question --use_cpu --kl_target 6.5 "
        "--reward_funcs mine.py:same length:minimum_words=1 --reward_model_path scorer --reward_weights 1 1e-3 0.1 "
        "--total_episodes 16 --response_length 6 --learning_rate 3e-4 --stop_token_id 256 257 --lam_critic 1 "
        "--num_sample_generations 0 --max_grad_norm none --whiten_advantages false --seed 7"
    )
    assert main(["ppo", "--recipe", "decoupled", *flags.split(), "--output_dir", "first"]) == 0
    assert main(["ppo", "--config", "first/run.yaml", "--output_dir", "second"]) == 0
    assert metrics_of(places / "first") == metrics_of(places / "second")
    assert weights_of(places / "first") == weights_of(places / "second")
    written = yaml.safe_load((places / "first" / "run.yaml").read_text())
    assert written.keys() == vars(PPOConfig()).keys()  # every setting, not only those that were changed
    again = yaml.safe_load((places / "second" / "run.yaml").read_text())
    assert again == written | {"output_dir": "second"}
    assert PPOConfig(**written) == PPOConfig(**again | {"output_dir": "first"})  # and in Python


@pytest.mark.slow
def test_names_that_were_passed_in_python_are_settings_and_objects_are_told(places):
    PPOTrainer(
        settings(places / "first", total_episodes=8, columns={"prompt": "question"}),
        places / "policy", tiny_causal_lm(layers=1), None,
        [places / "scorer", low_ids], str(places / "prompts.jsonl"), reward_funcs=f"{places}/mine.py:same",
    ).train()  # fmt: skip
    text = (places / "first" / "run.yaml").read_text()
    written = yaml.safe_load(text)
    assert written["model_name_or_path"] == f"{places}/policy"
    assert written["reward_model_path"] == f"{places}/scorer"
    assert written["reward_funcs"] == [f"{places}/mine.py:same"]
    assert written["dataset_name"] == f"{places}/prompts.jsonl"
    assert "#   model: an object of LlamaForCausalLM\n" in text
    assert "#   reward_model[1]: the function low_ids\n" in text
    assert text.count("\n#   ") == 2


def test_run_yaml_holds_no_secret(places, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "hf_canary")
    trainer = PPOTrainer(
        settings(places / "out", reward_url="http://127.0.0.1:9/score", reward_url_token_env="MY_TOKEN"),
        byte_tokenizer(), tiny_causal_lm(layers=1), train_dataset=ROWS,
    )  # fmt: skip
    trainer.recipe.report.begin("", trainer.state)
    text = (places / "out" / "run.yaml").read_text()
    assert "MY_TOKEN" in text
    assert "canary" not in text


@pytest.mark.slow
def test_run_yaml_of_a_reward_model_repeats_it(places, monkeypatch):
    monkeypatch.chdir(places)
    rows = [{"prompt": text, "chosen": "abc", "rejected": "xyz"} for text in PROMPTS]
    (places / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    trainer = RewardModelTrainer(
        RewardConfig(output_dir="first", use_cpu=True, max_steps=2, report_to=()), model="policy",
        train_dataset="pairs.jsonl",
    )  # fmt: skip
    folder = trainer.train()
    there = {path: path.stat().st_mtime_ns for path in places.rglob("*")}
    with pytest.warns(UserWarning, match="the run is over: the reward model is in"):
        assert trainer.train() == folder
    assert {path: path.stat().st_mtime_ns for path in places.rglob("*")} == there
    assert main(["reward", "--config", "first/run.yaml", "--output_dir", "second"]) == 0
    first, second = ((places / name / "reward" / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second


class Breaks(TrainerCallback):
    """Ctrl-C in the middle of an update, once."""

    def __init__(self, update):
        self.update = update

    def on_step_begin(self, args, state, control, **others):
        if state.global_step == self.update - 1 and self.update:
            self.update = 0
            raise KeyboardInterrupt


def small(folder, **given):
    return PPOTrainer(
        args=settings(folder, num_sample_generations=0), processing_class=byte_tokenizer(),
        model=tiny_causal_lm(layers=1), reward_funcs=low_ids, train_dataset=ROWS, **given,
    )  # fmt: skip


def test_a_second_train_says_that_the_run_is_over_and_moves_nothing(tmp_path):
    trainer = small(tmp_path)
    output = trainer.train()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.warns(UserWarning, match="the run is over: its 3 updates are done"):
        assert trainer.train() is output
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.slow
def test_a_run_that_was_broken_off_goes_on_in_the_same_files_as_if_it_had_not_been(tmp_path):
    whole, broken = small(tmp_path / "a"), small(tmp_path / "b", callbacks=Breaks(2))
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    assert broken.train().updates == 3
    assert metrics_of(tmp_path / "b") == metrics_of(tmp_path / "a")
    rollouts = [(tmp_path / name / "rollouts.jsonl").read_text() for name in "ab"]
    assert rollouts[0] == rollouts[1]
    assert weights_of(tmp_path / "b") == weights_of(tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == sorted(
        path.name for path in (tmp_path / "a").iterdir()
    )


@pytest.mark.slow
def test_a_callback_that_stops_a_run_leaves_updates_with_which_it_goes_on(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **others):
            control.should_training_stop = state.global_step >= 2

    trainer = small(tmp_path, callbacks=Stop)
    assert trainer.train().updates == 2
    assert trainer.train().updates == 3
    assert [line["update"] for line in metrics_of(tmp_path)] == [1, 2, 3]


def test_the_metrics_come_back_as_they_were_recorded(tmp_path):
    output = small(tmp_path, eval_dataset=ROWS[:2]).train()
    recorded = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [dict(line) for line in output.metrics] == recorded
    assert [line["update"] for line in output.metrics] == [1, 2, 3, 3]
    frame = output.frame()
    assert len(frame) == 4
    assert frame["objective/scores"].notna().tolist() == [True, True, True, False]
    assert frame["eval/objective/scores"].notna().tolist() == [False, False, False, True]


def test_an_update_that_was_broken_off_leaves_no_trace_in_the_state(tmp_path):
    trainer = small(tmp_path)
    trainer.state.begin_update()
    trainer.state.score_moments += trainer.state.score_moments.of(torch.ones(3), trainer.recipe.backend.add_up)
    trainer.state.kl_coef = 9.0
    trainer.state.take_back_unfinished()
    fresh = type(trainer.state)()
    assert trainer.state == fresh
