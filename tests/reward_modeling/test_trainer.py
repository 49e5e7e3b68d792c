"""Whole trainings on tiny models: what is learnt, what is left on disk, and that it scores as it did in memory."""

import json
import random

import numpy
import pytest
import torch
from peft import LoraConfig
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from nearstep.common.errors import ConfigError, DataError, ModelError, TrainingError
from nearstep.config.reward_model import RewardConfig
from nearstep.models.head_bias import add_bias
from nearstep.models.load import load_scalar_model
from nearstep.models.reward_model import make_scorer
from nearstep.reward_modeling.examples import Comparison, PreferenceLabel
from nearstep.reward_modeling.fit import callers_generators_kept
from nearstep.reward_modeling.trainer import RewardModelTrainer
from tests.lanes import slow
from tests.reward_modeling.world import base_folder, chats, pairs, trainer, write
from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_scalar_model


def rows_of(trained):
    return [row for comparison in trained.run.examples.train for row in comparison.rows]


def scores_of(folder, rows, dtype=torch.float32):
    model = load_scalar_model(str(folder), role="reward_model", dtype=dtype)
    return make_scorer(model, role="reward_model", pad_token_id=257, max_tokens=256).score(rows)


def scores_in_memory(trained, rows):
    with torch.no_grad():
        return trained.run.trained.reader.rewards([[row] for row in rows])


def weights(model):
    return {name: each.detach().clone() for name, each in model.named_parameters()}


# --- What is left


@pytest.mark.parametrize("kind", [slow("text"), "chat"])
def test_the_saved_folder_scores_as_the_model_did(tmp_path, kind):
    rows = pairs(20) if kind == "text" else chats(pairs(20))
    trained = trainer(tmp_path, rows)
    folder = trained.train()
    assert folder == tmp_path / "reward"
    read = rows_of(trained)
    torch.testing.assert_close(scores_of(folder, read), scores_in_memory(trained, read), atol=1e-6, rtol=0)
    assert {"config.json", "model.safetensors", "README.md", "tokenizer.json"} <= {
        file.name for file in folder.iterdir()
    }
    assert AutoTokenizer.from_pretrained(folder).eos_token_id == 256
    assert not list(tmp_path.glob(".*"))


def test_better_texts_have_the_mean_zero_and_plain_transformers_lacks_exactly_the_bias(tmp_path):
    trained = trainer(tmp_path, normalize="mean")
    folder = trained.train()
    chosen = [comparison.rows[0] for comparison in trained.run.examples.train]
    assert scores_of(folder, chosen).mean().item() == pytest.approx(0, abs=1e-5)
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    logits = plain(torch.tensor([chosen[0]])).logits[0, 0].item()
    assert logits + plain.config.head_bias == pytest.approx(scores_of(folder, chosen[:1]).item(), abs=1e-5)
    assert trained.report.normalized == "mean"
    assert "model.config.head_bias" in (folder / "README.md").read_text()


@pytest.mark.parametrize(("kind", "dtype"), [slow(("llama", torch.float32)), ("gpt_neox", torch.bfloat16)])
def test_the_folder_says_the_same_under_plain_transformers_in_padded_batches_too(tmp_path, kind, dtype):
    trained = trainer(tmp_path, model=tiny_causal_lm(kind))
    folder = trained.train()
    rows = [row[number % 4 :] for number, row in enumerate(rows_of(trained)[:8])]
    plain = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    padded = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        logits = plain(**padded).logits[:, 0].float()
    model = load_scalar_model(str(folder), role="reward_model", dtype=dtype)
    here = make_scorer(model, role="reward_model", pad_token_id=257, max_tokens=256).score(rows)
    torch.testing.assert_close(logits, here, atol=1e-5 if dtype == torch.float32 else 0.05, rtol=0)
    assert "head_bias" not in json.loads((folder / "config.json").read_text())


def test_pairs_have_no_level_to_keep(tmp_path):
    with pytest.raises(ConfigError, match="normalize = level keeps the level of scores, and this data is pairs"):
        trainer(tmp_path, normalize="level")


@pytest.mark.slow
@pytest.mark.parametrize("normalize", [slow("none"), "mean_and_std"])
def test_other_scales(tmp_path, normalize):
    trained = trainer(tmp_path, normalize=normalize)
    scores = scores_of(trained.train(), [comparison.rows[0] for comparison in trained.run.examples.train])
    if normalize == "none":
        assert abs(scores.mean().item()) > 0.05
    else:
        assert (scores.mean().item(), scores.std(correction=0).item()) == pytest.approx((0, 1), abs=1e-4)


def test_the_report_is_on_screen_and_on_disk(tmp_path, capsys):
    trained = trainer(tmp_path, pairs(40, margin=1.5))
    trained.train()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["objective"] == "pairwise"
    assert report["steps"] == 8
    unseen = len(trained.run.examples.held_out)
    assert report["trained_on"] == len(trained.run.examples.train) == 40 - unseen
    assert report["held_out"]["pairs"] == unseen
    assert sum(band["pairs"] for band in report["held_out"]["by_reward_gap"]) == unseen
    assert report["held_out"]["by_label_gap"][0]["low"] == 1.5
    printed = capsys.readouterr().out
    for words in (
        f"{unseen} unseen pairs",
        "calibration error",
        "By gap of rewards",
        "By gap of labels",
        "8 steps of 4 pairs (4 × 1 passes × 1 processes)",
        str(tmp_path),
    ):
        assert words in printed
    assert f"{report['held_out']['accuracy']:.1%}" in printed
    card = (tmp_path / "reward" / "README.md").read_text()
    assert "accuracy on unseen pairs" in card
    assert "head_bias" not in card


def test_metrics_are_recorded(tmp_path):
    trainer(tmp_path, pairs(40), eval_steps=4).train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "loss" in line]
    assert [line["step"] for line in logged] == [2, 4, 6, 8]
    assert {"accuracy", "margin", "mean_reward", "min_reward", "max_reward", "learning_rate", "grad_norm", "epoch"} <= (
        logged[0].keys()
    )
    assert logged[0]["min_reward"] < logged[0]["mean_reward"] < logged[0]["max_reward"]
    evaluated = [line for line in lines if "eval_accuracy" in line]
    assert [line["step"] for line in evaluated] == [4, 8]


@pytest.mark.slow
def test_no_report_without_held_out_pairs(tmp_path, capsys):
    trained = trainer(tmp_path, held_out_share=0.0)
    trained.train()
    assert trained.report.held_out is None
    assert json.loads((tmp_path / "report.json").read_text())["held_out"] is None
    assert "there will be no report" in capsys.readouterr().out


def test_evaluation_data_of_its_own(tmp_path):
    trained = trainer(tmp_path, pairs(20), eval_dataset=pairs(6, seed=1), held_out_share=0.1)
    assert (len(trained.run.examples.train), len(trained.run.examples.held_out)) == (20, 6)


@pytest.mark.slow
def test_passes_are_those_that_are_made(tmp_path):
    # 7 pairs in steps of 4 are two steps, the second of three pairs.
    trained = trainer(tmp_path, pairs(7), held_out_share=0.0, num_train_epochs=2.0)
    assert "4 steps of 4 pairs (4 × 1 passes × 1 processes), 2.00 passes over 7 pairs." in trained.run.introduction()
    trained.train()
    assert trained.report.steps == 4


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"metrics\.jsonl cannot be written: .* Give another place"):
        trainer(tmp_path / "file" / "out").train()


# --- What is learnt


@pytest.mark.slow
def test_it_learns_which_letters_are_liked(tmp_path):
    trained = trainer(
        tmp_path, pairs(300), num_train_epochs=3.0, learning_rate=3e-3, per_device_train_batch_size=16,
        eval_dataset=pairs(200, seed=1),
    )  # fmt: skip
    trained.train()
    assert trained.report.held_out.accuracy > 0.7


@pytest.mark.slow
def test_centring_holds_rewards_near_zero_without_normalisation(tmp_path):
    def mean(name, coefficient):
        model = tiny_scalar_model()
        add_bias(model, model.score)
        torch.nn.init.constant_(model.score.bias, 5.0)
        options = {"normalize": "none", "learning_rate": 0.03, "num_train_epochs": 3.0}
        trained = trainer(tmp_path / name, model=model, center_rewards_coefficient=coefficient, **options)
        trained.train()
        return abs(scores_in_memory(trained, rows_of(trained)).mean().item())

    assert mean("centred", 1.0) < 0.5 * mean("free", None)


# --- What changes no number


def trained_weights(folder, **changes):
    trained = trainer(folder, model=tiny_causal_lm("gpt2", dtype=torch.float64), dtype="float64", **changes)
    trained.train()
    return weights(trained.model)


@pytest.mark.slow
def test_gradient_accumulation_changes_no_weight(tmp_path):
    # 16 pairs of 20 are trained on: three full steps of five and a rest of one.
    one = trained_weights(tmp_path / "a", per_device_train_batch_size=5)
    two = trained_weights(tmp_path / "b", per_device_train_batch_size=1, gradient_accumulation_steps=5)
    for name, each in one.items():
        torch.testing.assert_close(two[name], each, atol=1e-9, rtol=1e-9)


@pytest.mark.slow
def test_pad_may_be_eos(tmp_path):
    one = trained_weights(tmp_path / "a")
    two = trained_weights(tmp_path / "b", processing_class=byte_tokenizer(pad="<eos>"))
    for name, each in one.items():
        assert torch.equal(two[name], each)
    # Plain transformers must not take EOS for padding: it reads the last token of one row, and refuses several.
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "b" / "reward")
    assert model.config.pad_token_id is None


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    whole = trained_weights(tmp_path / "whole", save_steps=2)
    resumed = trained_weights(tmp_path / "rest", resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for name, each in whole.items():
        torch.testing.assert_close(resumed[name], each, atol=1e-12, rtol=1e-12)


def test_the_callers_random_numbers_are_his(tmp_path):
    def seeded():
        for seed in (random.seed, numpy.random.seed, torch.manual_seed):
            seed(1)

    def drawn():
        return numpy.random.rand(), torch.rand(1).item()

    seeded()
    expected = drawn()
    policy = tiny_causal_lm()
    seeded()
    trainer(tmp_path, model=policy).train()
    assert drawn() == expected
    # Python's own generator serves the type checker of the tests too, so it is looked at by itself.
    seeded()
    state = random.getstate()
    with callers_generators_kept():
        random.seed(2)
    assert random.getstate() == state


# --- Starts


def test_from_folders_and_files(tmp_path):
    base = base_folder(tmp_path / "base")
    data = write(tmp_path / "pairs.jsonl", pairs(20))
    config = RewardConfig(
        output_dir=tmp_path / "out", model_name_or_path=base, dataset_name=data, use_cpu=True, max_steps=2,
    )  # fmt: skip
    folder = RewardModelTrainer(config).train()
    assert "started from" in (folder / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["steps"] == 2


@pytest.mark.slow
def test_a_reward_model_may_go_on_learning(tmp_path):
    first = trainer(tmp_path / "first")
    folder = first.train()
    second = trainer(tmp_path / "second", model=str(folder), learning_rate=0.0, normalize="none")
    assert second.run.trained.notes == ["The model has a head already, which goes on learning."]
    rows = rows_of(first)
    torch.testing.assert_close(scores_of(second.train(), rows), scores_of(folder, rows), atol=1e-6, rtol=0)


@pytest.mark.slow
def test_an_encoder_becomes_a_reward_model(tmp_path):
    from tokenizers import processors
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    encoder = BertForMaskedLM(
        BertConfig(
            vocab_size=270, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64,
        )
    )  # fmt: skip
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"cls_token": "<cls>", "sep_token": "<sep>"})
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<cls> $A <sep>", special_tokens=[("<cls>", cls), ("<sep>", sep)]
    )
    trained = trainer(tmp_path, model=encoder, processing_class=tokenizer)
    folder = trained.train()
    rows = rows_of(trained)
    assert all(row[0] == cls and row[-1] == sep for row in rows)
    torch.testing.assert_close(scores_of(folder, rows), scores_in_memory(trained, rows), atol=1e-6, rtol=0)
    assert "head_bias" not in json.loads((folder / "config.json").read_text())


def test_comparisons_of_ids_are_taken_as_they_are(tmp_path):
    def several(number):
        start = [number, 7]
        labels = (PreferenceLabel(0, 1), PreferenceLabel(0, 2, margin=0.5), PreferenceLabel(1, 2, preference=0.5))
        return Comparison((([*start, 1, 256]), [*start, 2, 256], [*start, 3]), labels)

    trained = trainer(tmp_path, [several(number) for number in range(8, 38)])
    assert trained.run.examples.unit == "comparisons"
    trained.train()
    kept = len(trained.run.examples.held_out)
    found = trained.report.held_out
    assert (found.pairs, found.ties) == (2 * kept, kept)
    with pytest.raises(DataError, match="give both alike"):
        trainer(tmp_path, [several(8)], eval_dataset=pairs(3))


# --- Adapters


@pytest.mark.parametrize("given", [{"use_peft": True, "lora_r": 2}, slow({"peft_config": LoraConfig(r=2)})])
def test_adapters_are_saved_with_their_head_and_merged(tmp_path, given):
    base = base_folder(tmp_path / "base")
    trained = trainer(tmp_path / "out", model=str(base), **given)
    start = weights(trained.run.trained.inner)
    folder = trained.train()
    rows = rows_of(trained)
    expected = scores_in_memory(trained, rows)
    torch.testing.assert_close(scores_of(folder, rows), expected, atol=1e-6, rtol=1e-6)
    adapter = tmp_path / "out" / "reward_adapter"
    torch.testing.assert_close(scores_of(adapter, rows), expected, atol=1e-6, rtol=1e-6)
    with safe_open(adapter / "adapter_model.safetensors", "pt") as tensors:
        assert "base_model.model.score.weight" in tensors.keys()  # noqa: SIM118
    frozen = [name for name, each in trained.run.trained.inner.named_parameters() if not each.requires_grad]
    assert any("q_proj" in name for name in frozen)
    after = weights(trained.run.trained.inner)
    assert all(torch.equal(start[name], after[name]) for name in frozen)


@pytest.mark.slow
def test_bfloat16_learns_through_masters_which_a_resumed_run_goes_on_with(tmp_path):
    """At a rate below the distance of bfloat16 numbers; a float16 object becomes float32."""

    def run(name, **changes):
        model = tiny_causal_lm("gpt2", dtype=torch.bfloat16)
        trained = trainer(tmp_path / name, model=model, learning_rate=1e-5, **changes)
        trained.train()
        return trained, weights(trained.model)

    trained, whole = run("whole", save_steps=2)
    assert any("float32 masters" in note for note in trained.run.introduction())
    state = torch.load(tmp_path / "whole" / "checkpoint-2" / "optimizer.pt", weights_only=True)
    assert {master.dtype for master in state["master_weights"]} == {torch.float32}
    assert {of["exp_avg_sq"].dtype for of in state["state"].values()} == {torch.float32}
    layers = torch.cat([master.flatten() for master in state["master_weights"] if len(master) not in (258, 512)])
    assert (layers != layers.bfloat16()).float().mean() > 0.9  # steps that bfloat16 would have lost
    _, resumed = run("rest", resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert all(torch.equal(resumed[name], each) for name, each in whole.items())
    with pytest.warns(UserWarning, match="most weights never change"):
        run("pure", master_weights=False)
    halves = trainer(tmp_path / "halves", model=tiny_causal_lm("gpt2", dtype=torch.float16))
    assert any("float16 weights are trained and saved in float32" in note for note in halves.run.introduction())
    assert all(weight.dtype == torch.float32 for weight in halves.model.parameters())


@pytest.mark.slow
def test_checkpoints_of_adapters_hold_what_learns_and_can_be_resumed(tmp_path):
    base = base_folder(tmp_path / "base", kind="gpt2", dtype=torch.float64)

    def run(name, **changes):
        trained = trainer(tmp_path / name, model=str(base), dtype="float64", use_peft=True, lora_r=2, **changes)
        trained.train()
        return weights(trained.model)

    whole = run("whole", save_steps=2, save_total_limit=1)
    (kept,) = (tmp_path / "whole").glob("checkpoint-*")
    assert kept.name == "checkpoint-4"
    with safe_open(kept / "model.safetensors", "pt") as tensors:
        names = list(tensors.keys())
    assert any("lora_A" in name for name in names)
    assert not any("base_layer" in name or "wte" in name for name in names)
    resumed = run("rest", max_steps=5, resume_from_checkpoint=str(kept))
    assert resumed.keys() == whole.keys()


def test_adapters_for_another_task_are_refused(tmp_path):
    with pytest.raises(ModelError, match="its task_type is CAUSAL_LM"):
        trainer(tmp_path, peft_config=LoraConfig(r=2, task_type="CAUSAL_LM"))


# --- Callbacks, evaluation


def test_callbacks_see_the_run(tmp_path):
    seen = []

    class Watcher(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **others):
            seen.append(logs)

        def on_evaluate(self, args, state, control, metrics=None, **others):
            seen.append(metrics)
            control.should_training_stop = True

    trained = trainer(tmp_path, pairs(40), eval_steps=4, callbacks=[Watcher()])
    trained.train()
    assert "accuracy" in seen[0]
    assert any("eval_accuracy" in each for each in seen)
    assert trained.report.steps == 4


@pytest.mark.slow
def test_the_best_weights_are_kept(tmp_path):
    # The labels of what is evaluated contradict those of what is learnt: the first evaluation is the best.
    rows = pairs(80)
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows[:40]]
    options = {"eval_dataset": turned, "learning_rate": 3e-3, "num_train_epochs": 2.0, "eval_steps": 2, "save_steps": 2}
    trained = trainer(tmp_path / "best", rows, load_best_model_at_end=True, **options)
    trained.train()
    lines = [json.loads(line) for line in (tmp_path / "best" / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line["eval_accuracy"] for line in lines if "eval_accuracy" in line]
    assert max(evaluated) > evaluated[-1]
    assert trained.report.held_out.accuracy == pytest.approx(max(evaluated))


@pytest.mark.slow
def test_tensorboard_is_told(tmp_path):
    trainer(tmp_path, report_to=("tensorboard",)).train()
    assert list((tmp_path / "runs").rglob("events*")) or list(tmp_path.rglob("events*"))


# --- What is refused, before anything is written


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model": None}, ConfigError, "no model"),
        ({"train_dataset": None}, ConfigError, "no data"),
        ({"train_dataset": [{"prompt": "a"}]}, DataError, "holds no preferences"),
        ({"model": tiny_scalar_model(labels=2)}, ModelError, "2 labels|0 layers"),
        ({"max_length": 4096}, ConfigError, "more than the model's 512 positions"),
        ({"resume_from_checkpoint": "nowhere"}, ConfigError, "there is no checkpoint"),
        ({"report_to": ("tensorbord",)}, ConfigError, "did you mean tensorboard"),
        ({"callbacks": [print]}, ConfigError, r"callbacks\[0\]: got the function print"),
    ],
)
def test_refusals(tmp_path, changes, error, words):
    with pytest.raises(error, match=words):
        trainer(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()
