"""The trainer as a user meets it: whole runs, what they leave, which models may be left out, what is refused."""

import ast
import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

import nearstep
from examples import own_loop
from nearstep import ConfigError, DataError, DecoupledPPOConfig, ModelError, PPOConfig, PPOTrainer, RewardError
from nearstep.checkpoint import export
from nearstep.common.errors import TrainingError
from nearstep.training.state import Steps
from tests.lanes import slow
from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_scalar_model
from tests.training.runs import PROMPTS, learner, learning, low_ids, settings

ROWS = [{"prompt": text} for text in PROMPTS]


def trainer_of(folder, *, config=None, **given):
    parts = {
        "processing_class": byte_tokenizer(), "model": tiny_causal_lm(), "reward_funcs": low_ids, "train_dataset": ROWS,
        **given,
    }  # fmt: skip
    return PPOTrainer(args=config or settings(folder), **parts)


def test_saved_folders_open_with_plain_from_pretrained_in_a_fresh_process(tmp_path):
    trainer = trainer_of(tmp_path)
    output = trainer.train()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = [trainer.model(ids).logits, trainer.value_model(ids).logits]
    script = (
        "import torch, sys\n"
        "from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer\n"
        f"policy = AutoModelForCausalLM.from_pretrained({str(output.policy)!r})\n"
        f"value = AutoModelForSequenceClassification.from_pretrained({str(output.value)!r})\n"
        f"assert len(AutoTokenizer.from_pretrained({str(output.policy)!r})) == 258\n"
        "ids = torch.tensor([[5, 6, 7, 8]])\n"
        f"torch.save([policy(ids).logits, value(ids).logits], {str(tmp_path / 'found.pt')!r})\n"
        "assert 'nearstep' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    for ours, theirs in zip(expected, torch.load(tmp_path / "found.pt"), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_what_a_run_leaves(tmp_path):
    config = settings(tmp_path, num_sample_generations=2, save_steps=1, save_total_limit=2)
    output = trainer_of(tmp_path, config=config).train()
    assert (output.updates, output.episodes) == (3, 24)
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [entry["update"] for entry in metrics] == [1, 2, 3]
    rollouts = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text().splitlines()]
    assert [record["episode"] for record in rollouts] == list(range(24))
    assert rollouts[0]["prompt"] in PROMPTS
    assert "low_ids" in rollouts[0]["scores"]
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3"}
    assert "nearstep" in (tmp_path / "policy" / "README.md").read_text()
    assert len({json.loads(line)["update"] for line in (tmp_path / "samples.jsonl").read_text().splitlines()}) == 2


def test_folders_of_others_are_neither_counted_nor_deleted(tmp_path):
    """A run of before is not written into, and a folder that somebody else named is no checkpoint (E3, E4)."""
    before = [tmp_path / name for name in ("checkpoint-8", "checkpoint-best")]
    for folder in before:
        folder.mkdir()
        (folder / "kept.txt").touch()
    trainer = trainer_of(tmp_path, config=settings(tmp_path, save_steps=1, save_total_limit=1))
    with pytest.raises(ConfigError, match="holds a run up to update 8"):
        trainer.train()
    before[0].rename(tmp_path / "elsewhere")
    trainer.train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-best"}
    assert (tmp_path / "elsewhere" / "kept.txt").exists()
    assert (tmp_path / "checkpoint-best" / "kept.txt").exists()


@pytest.mark.parametrize(("pad", "named"), [slow(("<pad>", 257)), ("<eos>", None)])
def test_the_critics_folder_names_padding_but_never_eos(tmp_path, pad, named):
    trainer_of(tmp_path, processing_class=byte_tokenizer(pad=pad)).train()
    assert json.loads((tmp_path / "value" / "config.json").read_text())["pad_token_id"] == named


def test_a_checkpoint_is_there_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    """The disk fails between policy and critic (E5)."""
    write = export.write_model

    def failing(target, *rest, **named):
        if target.name == "value":
            raise OSError("no space left on device")
        write(target, *rest, **named)

    monkeypatch.setattr(export, "write_model", failing)
    with pytest.raises(TrainingError, match="no space left on device"):
        trainer_of(tmp_path, config=settings(tmp_path, save_steps=1)).train()
    assert not list(tmp_path.glob("*checkpoint*"))


@pytest.mark.parametrize("name", [
    "eps", "objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward",
    "objective/scores",
    "policy/approxkl_avg", "policy/clipfrac_avg", "loss/policy_avg", "loss/value_avg", "val/clipfrac_avg",
    "policy/entropy_avg", "val/ratio", "val/ratio_var", "val/num_eos_tokens", "lr", "episode", "val/explained_variance",
    "response/length_mean", "response/truncated", "policy/grad_norm", "value/grad_norm", "tokens_per_second",
    "time/generate", "time/score", "time/experience", "time/update", "reward/low_ids",
])  # fmt: skip
def test_every_metric_is_there(name, finished_run):
    for line in (finished_run / "metrics.jsonl").read_text().splitlines():
        assert isinstance(json.loads(line)[name], float | int), name


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer_of(folder).train()
    return folder


def test_same_seed_same_run_whatever_the_global_generators_do_r01(tmp_path):
    class Meddler(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            torch.manual_seed(state.global_step)
            torch.rand(7)

    plain, meddled = trainer_of(tmp_path / "a"), trainer_of(tmp_path / "b", callbacks=[Meddler()])
    plain.train()
    meddled.train()
    for ours, theirs in ((plain.model, meddled.model), (plain.value_model, meddled.value_model)):
        assert all(torch.equal(w, theirs.state_dict()[name]) for name, w in ours.state_dict().items())
    files = [(tmp_path / name / "rollouts.jsonl").read_text() for name in "ab"]
    assert files[0] == files[1]


@pytest.mark.slow
def test_learning_lifts_an_easy_reward(tmp_path):
    trainer_of(tmp_path, config=learning(tmp_path), model=learner()).train()
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["objective/scores"] < 0.6
    assert metrics[-1]["objective/scores"] > 0.95


def test_small_data_sets_wrap_around_d4(tmp_path, capsys):
    trainer_of(tmp_path, train_dataset=ROWS[:3]).train()
    assert "prompts repeat" in capsys.readouterr().out


def test_reward_model_of_another_tokenizer_and_a_function_beside_it_d17_d18(tmp_path):
    byte_tokenizer(shift=9).save_pretrained(tmp_path / "scorer")
    tiny_scalar_model("gpt_neox").save_pretrained(tmp_path / "scorer")
    config = settings(tmp_path / "run", reward_weights=(0.5, 2.0))
    output = trainer_of(tmp_path / "run", reward_model=str(tmp_path / "scorer"), config=config).train()
    record = json.loads((tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()[0])
    assert set(record["scores"]) == {"scorer", "low_ids"}
    expected = 0.5 * record["scores"]["scorer"] + 2 * record["scores"]["low_ids"]
    assert record["total_score"] == pytest.approx(expected, rel=1e-5)
    assert output.policy.is_dir()


@pytest.mark.slow
def test_critic_starts_from_the_reward_model_of_the_same_tokenizer(tmp_path):
    scorer = tiny_scalar_model()
    trainer = trainer_of(tmp_path, reward_model=scorer, reward_funcs=())
    assert all(torch.equal(w, scorer.state_dict()[name]) for name, w in trainer.value_model.state_dict().items())
    trainer.train()
    assert not all(torch.equal(w, scorer.state_dict()[name]) for name, w in trainer.value_model.state_dict().items())


def test_adapters_train_and_the_reference_is_the_base(tmp_path):
    base = tiny_causal_lm()
    untouched = copy.deepcopy(base)
    config = settings(tmp_path, use_peft=True, lora_target_modules=("q_proj", "v_proj"), learning_rate=1e-2)
    trainer = trainer_of(tmp_path, model=base, config=config)
    output = trainer.train()
    ids = torch.tensor([[5, 6, 7]])
    with trainer.recipe.models.reference.active() as reference:
        torch.testing.assert_close(reference.model(ids).logits, untouched(ids).logits, atol=1e-5, rtol=0)
    tuned = trainer.model(ids).logits
    assert not torch.allclose(tuned, untouched(ids).logits, atol=1e-3)
    torch.testing.assert_close(
        AutoModelForCausalLM.from_pretrained(output.policy)(ids).logits, tuned, atol=1e-4, rtol=0
    )
    assert (output.policy.parent / "policy_adapter" / "adapter_config.json").is_file()


def test_adapters_are_on_again_after_an_error_d36(tmp_path):
    trainer = trainer_of(tmp_path, config=settings(tmp_path, use_peft=True, lora_target_modules=("q_proj",)))
    with torch.no_grad():
        for name, weights in trainer.model.named_parameters():
            if "lora_B" in name:
                weights.add_(1)
    ids = torch.tensor([[5, 6, 7]])
    before = trainer.model(ids).logits

    def fail_while_adapters_are_off():
        with trainer.recipe.models.reference.active() as reference:
            assert not torch.allclose(reference.model(ids).logits, before)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail_while_adapters_are_off()
    assert torch.equal(trainer.model(ids).logits, before)


@pytest.mark.parametrize("config", [slow(PPOConfig), DecoupledPPOConfig])
def test_the_quick_starts_of_older_documentation_run_with_the_import_changed(tmp_path, config):
    """Folders, a pad token added by hand, ids made by `map`, every model given as an object."""
    from datasets import load_dataset

    tiny_causal_lm("gpt_neox").save_pretrained(tmp_path / "pythia")
    byte_tokenizer(pad=None).save_pretrained(tmp_path / "pythia")
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({**row, "other": 1}) for row in ROWS))

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "pythia", padding_side="left")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    scorer = AutoModelForSequenceClassification
    dataset = load_dataset("json", data_files=str(tmp_path / "prompts.jsonl"), split="train")

    def tokenize(element):
        return {"input_ids": tokenizer(element["prompt"], padding=False)["input_ids"]}

    trainer = PPOTrainer(
        args=config(
            output_dir=str(tmp_path / "out"), learning_rate=3e-6, vf_learning_rate=1e-4, per_device_train_batch_size=2,
            gradient_accumulation_steps=4, total_episodes=24, num_ppo_epochs=4, response_length=8,
        ),
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(tmp_path / "pythia"),
        ref_model=AutoModelForCausalLM.from_pretrained(tmp_path / "pythia"),
        reward_model=scorer.from_pretrained(tmp_path / "pythia", num_labels=1),
        value_model=scorer.from_pretrained(tmp_path / "pythia", num_labels=1),
        train_dataset=dataset.map(tokenize, batched=True, remove_columns=dataset.column_names),
    )  # fmt: skip
    assert trainer.train().updates == 3
    assert trainer.state.steps == Steps(12, 12 if config is PPOConfig else 3)


def test_evaluation_covers_all_rows_and_comes_when_due_d16(tmp_path):
    config = settings(tmp_path, eval_steps=2, local_rollout_forward_batch_size=3)
    trainer_of(tmp_path, config=config, eval_dataset=ROWS[:5]).train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [entry["update"] for entry in lines if "eval/objective/scores" in entry] == [2, 3]


@pytest.mark.slow
def test_a_callback_may_stop_the_run(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2

    assert trainer_of(tmp_path, callbacks=[Stop()]).train().updates == 2


def test_own_loop_example(tmp_path):
    tiny_causal_lm().save_pretrained(tmp_path / "policy")
    byte_tokenizer().save_pretrained(tmp_path / "policy")
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    assert len(own_loop.main(str(tmp_path / "policy"), str(tmp_path / "prompts.jsonl"))) == 3


def test_own_loop_needs_public_names_only():
    tree = ast.parse(Path(own_loop.__file__).read_text())
    imported = {node.module: node.names for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    ours = {module: names for module, names in imported.items() if module.startswith("nearstep")}
    assert list(ours) == ["nearstep"]
    assert {name.name for name in ours["nearstep"]} <= set(nearstep.__all__)
    plain = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert not any(name.startswith("nearstep") for name in plain)


def folder_with(tmp_path, *models):
    for model in models:
        model.save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize(("given", "error", "words"), [
    ({"train_dataset": []}, DataError, "train_dataset"),
    ({"train_dataset": None}, ConfigError, "no prompts"),
    ({"train_dataset": [{"text": "a"}]}, DataError, "prompt"),
    ({"train_dataset": [{"prompt": "a"}, {"prompt": ""}]}, DataError, "row"),
    ({"train_dataset": [{"prompt": "x" * 600}]}, DataError, "600 tokens"),
    ({"model": "/no/such/folder"}, ModelError, "model"),
    ({"reward_model": "./missing"}, ModelError, "reward_model"),
    ({"reward_model": tiny_scalar_model(labels=3)}, ModelError, "3 labels"),
    ({"reward_model": tiny_causal_lm()}, ModelError, "reward_model"),
    ({"reward_funcs": ()}, ConfigError, "no reward"),
    ({"reward_funcs": "missing.py:f"}, RewardError, "missing.py"),
    ({"reward_funcs": lambda answers: [0.0]}, RewardError, "answers"),
    ({"value_model": tiny_causal_lm()}, ModelError, "value_model"),
])  # fmt: skip
def test_bad_input_is_named_and_nothing_is_written(tmp_path, given, error, words):
    with pytest.raises(error, match=words):
        trainer_of(tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("returned", "words"), [
    ([float("nan")] * 8, "nan"), ([1.0] * 7, "7"), slow((["good"] * 8, "good")), slow(([float("inf")] * 8, "inf")),
    slow(([None] * 8, "row")),
])  # fmt: skip
def test_bad_rewards_name_the_function(tmp_path, returned, words):
    def scorer(completions, **kwargs):
        return returned

    with pytest.raises(RewardError, match=f"(?is)(scorer.*{words}|{words}.*scorer)"):
        trainer_of(tmp_path, reward_funcs=scorer).train()


def test_one_object_in_two_roles_is_refused(tmp_path):
    model = tiny_causal_lm()
    with pytest.raises(ModelError, match="model and ref_model are the same object"):
        trainer_of(tmp_path, model=model, ref_model=model)
    scorer = tiny_scalar_model()
    with pytest.raises(ModelError, match="value_model and reward_model are the same object"):
        trainer_of(tmp_path, value_model=scorer, reward_model=scorer)


def test_too_many_minibatches(tmp_path):
    with pytest.raises(ConfigError, match="num_mini_batches = 9"):
        trainer_of(tmp_path, config=settings(tmp_path, num_mini_batches=9))


@pytest.mark.slow
def test_save_model_writes_the_policy_where_it_is_told(tmp_path):
    trainer = trainer_of(tmp_path / "run")
    trainer.train()
    trainer.save_model(tmp_path / "kept")
    ids = torch.tensor([[5, 6, 7]])
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "kept")(ids).logits
    torch.testing.assert_close(found, trainer.model(ids).logits, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_a_run_that_is_stopped_early_ends_with_an_evaluation(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2

    trainer_of(tmp_path, callbacks=[Stop()], eval_dataset=ROWS[:3]).train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [entry["update"] for entry in lines if "eval/objective/scores" in entry] == [2]
