"""How runs end badly: nothing that comes after the last step costs the models, and the error says where they lie."""

import huggingface_hub
import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from nearstep import ConfigError, ModelError, PPOTrainer, RewardConfig, RewardModelTrainer, TrainingError
from nearstep.cli.main import main
from tests.lanes import slow
from tests.reward_modeling.world import pairs
from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_scalar_model
from tests.training.runs import PROMPTS, low_ids, settings

ROWS = [{"prompt": text} for text in PROMPTS]


def trainer_of(folder, *, changes=None, **given):
    parts = {
        "processing_class": byte_tokenizer(), "model": tiny_causal_lm(), "value_model": tiny_scalar_model(),
        "reward_funcs": low_ids, "train_dataset": ROWS, **given,
    }  # fmt: skip
    return PPOTrainer(args=settings(folder, total_episodes=8, **(changes or {})), **parts)


def reward_trainer(folder, **changes):
    return RewardModelTrainer(
        RewardConfig(output_dir=str(folder), use_cpu=True, num_train_epochs=1.0, **changes),
        byte_tokenizer(), tiny_causal_lm("gpt2"), pairs(12),
    )  # fmt: skip


def same_weights(folder, model):
    found = AutoModelForCausalLM.from_pretrained(folder)
    return all(torch.equal(a, b) for a, b in zip(found.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("made", [trainer_of, slow(reward_trainer)])
def test_what_cannot_be_saved_is_refused_before_the_first_step(tmp_path, made):
    trainer = made(tmp_path)
    trainer.model.config.mine = object()
    with pytest.raises(ModelError, match=r"^model: this cannot be saved: the configuration \(TypeError"):
        trainer.train()
    assert not any(path.is_dir() or path.name == "rollouts.jsonl" for path in tmp_path.iterdir())


def test_a_wrong_generation_config_is_refused_before_the_first_step(tmp_path):
    model = tiny_causal_lm()
    model.generation_config.do_sample, model.generation_config.temperature = False, 0.5
    with pytest.raises(ModelError, match=r"the generation config .*temperature"):
        trainer_of(tmp_path, model=model).train()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [slow("policy"), "value"])
def test_a_file_under_the_name_of_a_model_is_told_before_the_first_step(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(TrainingError, match=f"{name} is a file"):
        trainer_of(tmp_path).train()
    assert (tmp_path / name).read_text() == "mine"


class Spoils(TrainerCallback):
    """Makes the generation config unsaveable in the middle of the run."""

    def on_step_end(self, args, state, control, model=None, **_):
        model.generation_config.do_sample, model.generation_config.temperature = False, 0.5


def test_what_cannot_be_saved_at_the_end_costs_nothing_else(tmp_path):
    trainer = trainer_of(tmp_path, callbacks=[Spoils()])
    with pytest.raises(TrainingError, match=r"policy holds the weights, but not the generation config"):
        trainer.train()
    assert same_weights(tmp_path / "policy", trainer.model)
    assert (tmp_path / "value" / "model.safetensors").is_file()


class Fails(TrainerCallback):
    """A tracker that falls over once the update is done."""

    def __init__(self, error):
        self.error = error

    def on_log(self, *_, **__):
        raise self.error


def test_a_failure_after_the_last_step_costs_no_weights(tmp_path):
    trainer = trainer_of(tmp_path / "a", callbacks=[Fails(RuntimeError("no tracker"))])
    with pytest.raises(RuntimeError, match="no tracker") as caught:
        trainer.train()
    assert caught.value.__notes__ == [f"The models as they are after update 1 lie in {tmp_path / 'a'}."]
    assert same_weights(tmp_path / "a" / "policy", trainer.model)
    trainer = trainer_of(tmp_path / "b", callbacks=[Fails(TrainingError("no disk."))])
    with pytest.raises(TrainingError, match=r"^no disk\. The models as they are after update 1 lie in"):
        trainer.train()
    assert same_weights(tmp_path / "b" / "policy", trainer.model)


@pytest.mark.slow
def test_a_failure_within_an_update_saves_nothing(tmp_path):
    def falls(**_):
        raise RuntimeError("no reward")

    with pytest.raises(Exception, match="no reward"):
        trainer_of(tmp_path, reward_funcs=falls).train()
    assert not (tmp_path / "policy").exists()


def test_a_reward_model_that_cannot_be_measured_is_saved(tmp_path, monkeypatch):
    trainer = reward_trainer(tmp_path)

    def falls(self, scorer):
        raise RuntimeError("no measure")

    monkeypatch.setattr(RewardModelTrainer, "_measure", falls)
    with pytest.raises(RuntimeError, match="no measure") as caught:
        trainer.train()
    assert str(tmp_path / "reward") in caught.value.__notes__[0]
    assert (tmp_path / "reward" / "model.safetensors").is_file()


# --- the hub


class Hub:
    """A hub on which this user may do what is said."""

    def __init__(self, *, fails=None, error=None):
        self.fails, self.error, self.calls = fails, error, []

    def __call__(self):
        return self

    def __getattr__(self, name):
        def call(*args, **keywords):
            self.calls.append(name)
            if name == self.fails:
                raise self.error
            return type("Address", (), {"repo_id": "me/policy", "__str__": lambda self: "https://hub/me/policy"})()

        return call


@pytest.fixture
def online(monkeypatch):
    """The tests run in offline mode."""
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)


PUSHED = {"push_to_hub": True, "hub_model_id": "me/policy"}
NO_TOKEN = huggingface_hub.errors.LocalTokenNotFoundError("Token is required, but no token found.")


@pytest.mark.parametrize("made", [
    lambda folder: trainer_of(folder, changes=PUSHED), lambda folder: reward_trainer(folder, **PUSHED),
])  # fmt: skip
@pytest.mark.parametrize(("fails", "error", "words"), [
    ("whoami", NO_TOKEN, "no token found"), ("auth_check", OSError("403"), "403"),
    slow(("whoami", ConnectionError("no route"), "ConnectionError: no route")),
    slow(("create_repo", ValueError("Repo id must use alphanumeric"), "Repo id")),
])  # fmt: skip
@pytest.mark.usefixtures("online")
def test_an_upload_that_could_not_succeed_is_refused_before_the_run(tmp_path, monkeypatch, made, fails, error, words):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub(fails=fails, error=error))
    with pytest.raises(
        ConfigError, match=f"push_to_hub: the run could not be uploaded to 'me/policy': .*{words}.*hf auth"
    ):
        made(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_offline_mode_is_the_reason_that_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"push_to_hub: .*HF_HUB_OFFLINE is set"):
        trainer_of(tmp_path, changes=PUSHED)


@pytest.mark.usefixtures("online")
def test_an_upload_that_fails_at_the_end_tells_where_the_model_lies(tmp_path, monkeypatch, capsys):
    hub = Hub(fails="upload_folder", error=ConnectionError("cable"))
    monkeypatch.setattr("huggingface_hub.HfApi", hub)
    trainer = trainer_of(tmp_path, changes=PUSHED)
    assert hub.calls == ["whoami", "create_repo", "auth_check"]
    with pytest.raises(
        TrainingError, match=r"upload to 'me/policy' failed: ConnectionError: cable.*lies in .*policy: hf up"
    ):
        trainer.train()
    assert "Done" in capsys.readouterr().out
    assert same_weights(tmp_path / "policy", trainer.model)


@pytest.mark.usefixtures("online")
def test_the_command_line_tells_it_without_a_traceback(tmp_path, monkeypatch, capsys):
    tiny_causal_lm().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    monkeypatch.setattr("huggingface_hub.HfApi", Hub(fails="upload_folder", error=ConnectionError("cable")))
    words = ["ppo", "--model_name_or_path", tmp_path / "model", "--dataset_name", tmp_path / "rows.jsonl",
             "--reward_funcs", "length", "--output_dir", tmp_path / "out", "--total_episodes", 1, "--use_cpu",
             "--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 1, "--num_mini_batches", 1,
             "--response_length", 4, "--push_to_hub", "--hub_model_id", "me/policy"]  # fmt: skip
    assert main([str(word) for word in words]) == 1
    told = capsys.readouterr().err
    assert "upload to 'me/policy' failed" in told
    assert "Traceback" not in told
