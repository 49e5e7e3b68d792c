"""A privileged critic reads columns of the data set that the policy never sees; everything else stays as it was."""

import dataclasses
import json

import pytest
import torch

from nearstep import ConfigError, DataError, ModelError, PPOConfig, PPOTrainer, TrainingError
from nearstep.models.forward.forward import rollout_values
from nearstep.training.experience import before_first_step, make_experience
from nearstep.training.schedules import Phase
from nearstep.training.update import improve
from nearstep.types import Prompts, Rollout
from tests.checkpoint.saved_runs import assert_same_bits, everything, records, trainer_of
from tests.lanes import slow
from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_scalar_model
from tests.training.runs import PROMPTS, low_ids, play, small_recipe

ROWS = [{"prompt": text, "reference": text * 2, "rubric": ["be short", "be kind"]} for text in PROMPTS]
READS = {"critic_columns": ["reference"]}


def recipe_of(folder, **changes):
    parts = {"train_dataset": ROWS, "value_model": tiny_scalar_model(), **changes.pop("parts", {})}
    return small_recipe(folder, parts=parts, **{**READS, **changes})


def decoded(rollout):
    return [byte_tokenizer().decode(ids) for ids in rollout.prompt_ids()]


def test_the_critic_reads_the_columns_before_the_prompt_and_the_policy_does_not(tmp_path):
    recipe = recipe_of(tmp_path)
    prompts, rollout, scores = play(recipe)
    experience = make_experience(rollout, scores, recipe, prompts=prompts)
    assert decoded(experience.rollout) == prompts.inputs
    assert decoded(experience.critic_rollout) == [f"reference: {text * 2}\n\n{text}" for text in prompts.inputs]
    assert experience.critic_rollout.completion_ids() == rollout.completion_ids()
    values = rollout_values(recipe.models.critic, experience.critic_rollout)
    torch.testing.assert_close(experience.values, values.before_actions)
    blind = make_experience(rollout, scores, dataclasses.replace(recipe, critic_text=None))
    assert (experience.values - blind.values).abs().max() > 1e-3
    assert torch.equal(experience.ref_logprobs, blind.ref_logprobs)
    assert blind.critic_leads is None


@pytest.mark.parametrize(("settings", "expected"), [
    ({}, "reference: abab\n\nab"),
    ({"critic_columns": ["rubric", "reference"]}, "rubric: be short\nbe kind\nreference: abab\n\nab"),
    ({"critic_template": "<{reference}> {prompt}!"}, "<abab> ab!"),
    ({"critic_template": "{reference}{{x}} {prompt}", "critic_columns": ["reference"]}, None),
    ({"critic_text_tokens": 3}, "refab"),
    ({"critic_template": "12{reference}{prompt}345", "critic_text_tokens": 4}, "1ab345"),
    ({"critic_template": "12{reference}{prompt}345", "critic_text_tokens": 2}, "ab34"),
])  # fmt: skip
def test_templates(tmp_path, settings, expected):
    row = [{"prompt": "ab", "reference": "abab", "rubric": ["be short", "be kind"]}]
    if expected is None:
        with pytest.raises(ConfigError, match=r"critic_template has \{x\}, which is none of critic_columns: add it"):
            recipe_of(tmp_path, parts={"train_dataset": row}, **settings)
        return
    recipe = recipe_of(tmp_path, parts={"train_dataset": row}, **settings)
    prompts, rollout, _ = play(recipe)
    leads = recipe.critic_text.leads(prompts, rollout)
    assert decoded(rollout.with_leads(leads))[0] == expected
    assert leads.cut.all() == ("critic_text_tokens" in settings)


def test_cells_of_every_kind(tmp_path):
    values = ["{prompt} {reference}", None, 3.5, ["a", "b"], {"role": "user"}, [1, 2], "ß", ""]
    rows = [{"prompt": "p", "reference": value} for value in values]
    recipe = recipe_of(
        tmp_path, parts={"train_dataset": rows}, shuffle_dataset=False, critic_template="{reference}|{prompt}"
    )
    prompts, rollout, _ = play(recipe)
    found = decoded(rollout.with_leads(recipe.critic_text.leads(prompts, rollout)))
    assert found == [
        "{prompt} {reference}|p", "|p", "3.5|p", "a\nb|p", '{"role": "user"}|p', "[1, 2]|p", "ß|p", "|p",
    ]  # fmt: skip


def text_of(recipe, **changes):
    return dataclasses.replace(recipe.critic_text, **changes)


def one_row(prompt, response):
    tokens = torch.tensor(prompt + response)
    return Rollout(
        tokens, torch.arange(len(tokens)) >= len(prompt), torch.tensor([len(tokens)]), -torch.ones(len(response)),
        torch.tensor([True]), torch.tensor([1]),
    )  # fmt: skip


def test_bos_stays_first_and_rows_end_where_the_critic_can_read_no_more(tmp_path):
    recipe = recipe_of(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = "<eos>"
    bos = tokenizer.bos_token_id
    prompts = Prompts([[bos, 7]], ["x"], {"reference": ["abcdef"]}, [0])
    rollout = one_row([bos, 7], [1, 2, 3])
    text = text_of(recipe, tokenizer=tokenizer, before="{reference}", behind="", response_length=4)
    assert text.leads(prompts, rollout).tokens.tolist() == [bos, *tokenizer("abcdef")["input_ids"], 7]
    for positions, kept in ((12, 6), (11, 5), (7, 1), (6, 0), (3, 0)):
        leads = dataclasses.replace(text, positions=positions).leads(prompts, rollout)
        assert leads.lengths.tolist() == [2 + kept]  # 2 of the prompt, 4 for the response
        assert leads.cut.tolist() == [kept < 6]
    longer = dataclasses.replace(text, positions=12).leads(prompts, one_row([bos, 7], [1] * 6))
    assert longer.lengths.tolist() == [2 + 4]  # a response with what was heard in it may be longer


def test_the_critics_positions_are_its_limit_and_its_limit_is_told(tmp_path):
    rows = [{"prompt": text, "reference": "x" * 600} for text in PROMPTS]
    recipe = recipe_of(tmp_path, parts={"train_dataset": rows})
    prompts, rollout, scores = play(recipe)
    with pytest.warns(UserWarning, match="the text that the critic reads from critic_columns is too long"):
        experience = make_experience(rollout, scores, recipe, prompts=prompts)
    longest = experience.critic_rollout.row_lengths + 6 - rollout.action_counts
    assert (longest == 512).all()
    assert experience.critic_leads.cut.all()


@pytest.mark.parametrize("schedule", [slow({}), {"critic": "decoupled", "vf_learning_rate": 1e-3}])
def test_micro_batches_hold_the_critics_rows_and_change_no_gradient(tmp_path, schedule):
    """By hand: rows of about 30 tokens for the critic, 7 for the policy, 40 tokens at a time."""
    steps = {}
    for most in (40, 10_000):
        recipe = recipe_of(
            tmp_path / str(most), dtype=torch.float64, max_tokens_per_microbatch=most, learning_rate=0.0,
            parts={"value_model": tiny_scalar_model("gpt2", dtype=torch.float64),
                   "model": tiny_causal_lm("gpt2", dtype=torch.float64)}, **schedule,
        )  # fmt: skip
        prompts, rollout, scores = play(recipe)
        experience = make_experience(rollout, scores, recipe, prompts=prompts)
        parts = list(experience.split(most, 99))
        assert all(len(part) == 1 or int(part.critic_rollout.row_lengths.sum()) <= most for part in parts)
        assert len(parts) > 1 or most > 40
        metrics, _ = improve(experience, Phase(1, 1, policy=True, critic=True), recipe, first=True)
        steps[most] = metrics.numbers()
    assert steps[40].keys() == steps[10_000].keys()
    for name, number in steps[40].items():
        assert number == pytest.approx(steps[10_000][name], rel=1e-9, abs=1e-12), name


def test_the_update_learns_from_what_the_critic_reads(tmp_path):
    """Rows that only their reference tells apart: a critic that reads it tells their scores apart, and no other."""
    rows = [{"prompt": "same", "reference": "good" if number % 2 else "evil"} for number in range(8)]

    def known(reference, **kwargs):
        return [1.0 if each == "good" else -1.0 for each in reference]

    found = {}
    for name, columns in (("reads", ["reference"]), ("blind", [])):
        recipe = recipe_of(
            tmp_path / name, critic_columns=columns, critic="decoupled", vf_learning_rate=1e-2, num_vf_epochs=8,
            parts={"train_dataset": rows, "reward_funcs": (known,), "value_model": tiny_scalar_model()},
            learning_rate=0.0, cliprange_value=9.0, kl_coef=0.0,
        )  # fmt: skip
        prompts, rollout, scores = play(recipe)
        for update in range(1, 7):
            experience = make_experience(rollout, scores, recipe, prompts=prompts)
            improve(experience, Phase(update, 1, policy=False, critic=True), recipe, first=False)
        values = make_experience(rollout, scores, recipe, prompts=prompts).values
        targets = scores.total.repeat_interleave(rollout.action_counts)
        found[name] = float((values - targets).square().mean())
    assert found["reads"] < 0.3 * found["blind"]


def test_without_the_prompts_it_says_what_it_needs(tmp_path):
    recipe = recipe_of(tmp_path)
    _, rollout, scores = play(recipe)
    with pytest.raises(TrainingError, match=r"pass them, make_experience\(.*, prompts=prompts\)"):
        make_experience(rollout, scores, recipe)


def forbidden(*given, **named):
    raise AssertionError("no model is loaded before this is refused")


def test_columns_that_are_not_there_are_refused_before_any_model(tmp_path, monkeypatch):
    monkeypatch.setattr("nearstep.assembly.run.build_models", forbidden)
    with pytest.raises(DataError, match=r"has no column 'refrence' beside its prompts; did you mean reference\?"):
        recipe_of(tmp_path, critic_columns=["refrence"])
    with pytest.raises(DataError, match=r"no column 'prompt' beside its prompts; .* There is 'reference', 'rubric'\."):
        recipe_of(tmp_path, critic_columns=["prompt"])


@pytest.mark.parametrize(("settings", "said"), [
    ({"critic_trunk": "shared"}, "with critic_trunk = shared both read in one pass: use critic_trunk = separate or"),
    ({"critic_columns": ["a", "a"]}, "critic_columns names a more than once"),
    ({"critic_template": "{reference}"}, "critic_template has {prompt} 0 times: write it once"),
    ({"critic_template": "{prompt}{prompt}{reference}"}, "critic_template has {prompt} 2 times"),
    ({"critic_template": "{prompt}"}, "critic_template has no {reference}, and critic_columns names it"),
    ({"critic_template": "{prompt}{reference}{refrence}"}, "did you mean {reference}?"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_refused(settings, said):
    with pytest.raises(ConfigError) as error:
        PPOConfig(**{**READS, **settings})
    assert said in str(error.value)


@pytest.mark.parametrize(("settings", "said"), [
    ({"critic_template": "{prompt}"}, "critic_template has no effect without critic_columns"),
    ({"critic_text_tokens": 3}, "critic_text_tokens has no effect without critic_columns"),
    ({**READS, "advantage": "batch_normalized"}, "critic_columns has no effect with advantage = batch_normalized"),
])  # fmt: skip
def test_settings_without_effect_are_told(settings, said):
    with pytest.warns(UserWarning, match=said):
        PPOConfig(**settings)


def test_a_critic_of_another_tokenizer_is_refused(tmp_path):
    tiny_scalar_model().save_pretrained(tmp_path / "other")
    byte_tokenizer(shift=5).save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="value_model"):
        recipe_of(tmp_path / "run", parts={"value_model": str(tmp_path / "other")})


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_bits_and_its_records_show_the_policys_side(tmp_path):
    given = {"train_dataset": ROWS}
    shared = {**READS, "log_rollouts": True, "total_episodes": 16, "given": given}
    whole = trainer_of(tmp_path / "whole", **shared)
    whole.train()
    trainer_of(tmp_path / "broken", **{**shared, "total_episodes": 8}).train()
    rest = trainer_of(tmp_path / "broken", resume="auto", **shared)
    rest.train()
    assert_same_bits(everything(rest), everything(whole))
    assert records(tmp_path / "whole") == records(tmp_path / "broken")
    lines = [json.loads(line) for line in (tmp_path / "whole" / "rollouts.jsonl").read_text().splitlines()]
    assert {line["prompt"] for line in lines} <= set(PROMPTS)
    assert "The critic reads what the policy does not, around the first prompt (…): 'reference: " in (
        whole.recipe.introduction
    )


@pytest.mark.slow
def test_a_replay_reads_the_columns_again(tmp_path):
    shared = {**READS, "save_steps": None, "total_episodes": 16, "given": {"train_dataset": ROWS}}
    first = trainer_of(tmp_path / "first", dump_rollouts=str(tmp_path / "rollouts"), **shared)
    first.train()
    again = trainer_of(tmp_path / "again", replay_rollouts=str(tmp_path / "rollouts"), **shared)
    again.train()
    assert_same_bits(everything(again), everything(first))


def test_with_adapters_the_critic_reads_it_too(tmp_path):
    recipe = recipe_of(tmp_path, use_peft=True, critic_trunk="adapter", parts={"value_model": None})
    prompts, rollout, scores = play(recipe)
    experience = make_experience(rollout, scores, recipe, prompts=prompts)
    improve(experience, Phase(1, 1, policy=True, critic=True), recipe, first=True)
    _, states = before_first_step(rollout, recipe, experience.critic_leads)
    assert states.before_actions.shape == rollout.logprobs.shape


def test_a_trainer_takes_it_like_any_setting(tmp_path):
    config = PPOConfig(output_dir=str(tmp_path), total_episodes=8, per_device_train_batch_size=8, response_length=4,
                       critic_columns="reference", use_cpu=True, num_sample_generations=0)  # fmt: skip
    trainer = PPOTrainer(config, byte_tokenizer(), tiny_causal_lm(), reward_funcs=low_ids, train_dataset=ROWS)
    assert trainer.train().metrics[0]["val/critic_text_cut"] == 0.0
