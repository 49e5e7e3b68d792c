"""Roles that do not fit each other are refused before any weight is loaded; padded vocabularies fit."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from nearstep import ConfigError, ModelError
from nearstep.common.errors import TrainingError
from nearstep.models.distribution import Sampling
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.models.roles import make_policy
from nearstep.rollout.checks import check_rollout
from nearstep.training.experience import make_experience
from nearstep.training.generation import generate
from nearstep.training.schedules import Phase
from nearstep.training.update import update
from tests.lanes import sampled, slow
from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_config, tiny_scalar_model
from tests.training.runs import play, small_recipe


def folder(path, *, model, tokenizer=None, without_weights=False):
    model.save_pretrained(path)
    if tokenizer is not None:
        tokenizer.save_pretrained(path)
    if without_weights:  # whoever loads them fails: what is wrong must be found before
        for weights in path.glob("*.safetensors"):
            weights.unlink()
    return str(path)


def with_few_rows(model_class):
    """Embeddings for 200 ids."""
    config = tiny_config(vocab_size=200)
    config.eos_token_id = config.pad_token_id = None
    return model_class.from_config(config)


def padded(rows=320):
    """A policy that would sample ids beyond the tokenizer's 258 nearly always."""
    model = tiny_causal_lm(vocab_size=rows)
    with torch.no_grad():
        model.lm_head.weight[258:] *= 5
    return model


@pytest.mark.parametrize("role", [slow("ref_model"), "value_model", slow("reward_model")])
def test_rows_that_only_round_an_embedding_up_may_differ_and_are_never_sampled(role, tmp_path):
    make = tiny_causal_lm if role == "ref_model" else tiny_scalar_model
    given = {role: make(vocab_size=288)} | ({"reward_funcs": ()} if role == "reward_model" else {})
    recipe = small_recipe(tmp_path, parts={"model": padded(), **given}, response_length=24)
    for number in (1, 2):
        _, rollout, scores = play(recipe, update=number)
        assert rollout.tokens.max() < 258
        # The trainer's distribution is the engine's: the first ratio is 1.
        ours = rollout_logprobs(recipe.models.policy, rollout, recipe.sampling).sampled
        torch.testing.assert_close(ours, rollout.logprobs, atol=1e-4, rtol=0)
        update(make_experience(rollout, scores, recipe), [Phase(1, 1, policy=True, critic=True)], recipe)


def test_probabilities_of_the_ids_that_are_tokens_add_up_to_one_and_no_gradient_reaches_the_others():
    model = padded()
    policy = make_policy(model, vocabulary=258)
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    by_hand = (hidden @ model.lm_head.weight[:258].T).log_softmax(-1)
    torch.testing.assert_close(policy.head.logits(hidden).log_softmax(-1), by_hand)
    assert policy.head.vocabulary == 258
    policy.head.logits(hidden).logsumexp(-1).sum().backward()
    assert model.lm_head.weight.grad[:258].any()
    assert not model.lm_head.weight.grad[258:].any()


def test_a_reference_that_was_padded_otherwise_gives_a_kl_of_zero(tmp_path):
    """The same model in two paddings: what lies beyond the tokens changes nothing."""
    model, wider = tiny_causal_lm(), tiny_causal_lm()
    torch.manual_seed(0)
    wider.resize_token_embeddings(300, mean_resizing=False)
    recipe = small_recipe(tmp_path, parts={"model": wider, "ref_model": model})
    _, rollout, scores = play(recipe)
    experience = make_experience(rollout, scores, recipe)
    torch.testing.assert_close(experience.ref_logprobs, rollout.logprobs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("role", ["ref_model", "value_model"])
@pytest.mark.parametrize("as_folder", [True, False])
def test_another_familys_tokens_are_refused_with_an_example(role, as_folder, tmp_path):
    make = tiny_causal_lm if role == "ref_model" else tiny_scalar_model
    path = folder(tmp_path / "other", model=make(), tokenizer=byte_tokenizer(shift=7), without_weights=as_folder)
    given = path
    if not as_folder:
        given = make()
        given.config.name_or_path = path
    with pytest.raises(ModelError, match=rf"{role}: .*id 0 is '\(' there and '!' to the policy.*256 of 256"):
        small_recipe(tmp_path / "run", parts={role: given})


def test_tokens_that_were_added_may_differ(tmp_path):
    """A fine-tuned policy has tokens that its base does not know, or renamed reserved ones."""
    tokenizer, older = byte_tokenizer(), byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>"]})
    older.add_special_tokens({"additional_special_tokens": ["<reserved>"]})
    path = folder(tmp_path / "base", model=tiny_causal_lm(vocab_size=320), tokenizer=older)
    parts = {"model": tiny_causal_lm(vocab_size=320), "ref_model": path, "tokenizer": tokenizer}
    assert small_recipe(tmp_path / "run", parts=parts).models.reference is not None


@pytest.mark.parametrize("role", ["ref_model", "value_model"])
def test_fewer_rows_than_the_policy_writes_are_refused(role, tmp_path):
    short = with_few_rows(AutoModelForCausalLM if role == "ref_model" else AutoModelForSequenceClassification)
    path = folder(tmp_path / role, model=short, without_weights=True)
    for given in (path, short):
        with pytest.raises(
            ModelError, match=rf"{role}: it has embeddings for 200 token ids, and the policy writes 258"
        ):
            small_recipe(tmp_path / "run", parts={role: given})


def test_a_reward_model_that_reads_the_policys_ids_needs_their_rows(tmp_path):
    path = folder(
        tmp_path / "rm",
        model=with_few_rows(AutoModelForSequenceClassification),
        tokenizer=byte_tokenizer(),
        without_weights=True,
    )
    with pytest.raises(ModelError, match="reward_model: it has embeddings for 200 token ids"):
        small_recipe(tmp_path / "run", parts={"reward_model": path, "reward_funcs": ()})


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_role_with_the_fewest_positions_limits_the_prompts(kind, tmp_path):
    config = tiny_config(kind)
    config.max_position_embeddings = 12
    reference = type(tiny_causal_lm(kind))(config)
    with pytest.raises(ConfigError, match=r"ref_model has 12 positions: .*response_length = 12 together are more"):
        small_recipe(tmp_path, parts={"ref_model": reference}, response_length=12)
    assert small_recipe(tmp_path, parts={"ref_model": reference}, response_length=4)


@pytest.mark.parametrize("region", ["topk_tv", slow("topk_kl")])
def test_more_top_tokens_than_there_are_are_refused_and_all_of_them_are_not(region, tmp_path):
    parts = {"model": tiny_causal_lm(vocab_size=320)}
    with pytest.raises(ConfigError, match=r"259 most probable tokens \(divergence_top_k\), and the tokenizer has 258"):
        small_recipe(tmp_path, parts=parts, trust_region=region, divergence_top_k=259)
    recipe = small_recipe(tmp_path, parts=parts, trust_region=region, divergence_top_k=258)
    prompts = recipe.prompts.batch(1)
    rollout = generate(prompts, recipe, version=1)
    update(
        make_experience(rollout, recipe.rewards(prompts, rollout), recipe),
        [Phase(1, 1, policy=True, critic=True)],
        recipe,
    )
    assert all(weight.isfinite().all() for weight in recipe.models.policy.model.parameters())


QUANTISED = [
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes"),
    ({"quant_method": "gptq", "bits": 4}, "gptq"),
    ({"quant_method": "awq", "bits": 4}, "awq"),
    ({"quant_method": "of the future"}, "of the future"),
    ({"quant_method": "bitnet"}, "cannot learn"),
]


@pytest.mark.parametrize(("settings", "words"), sampled(QUANTISED, 3))
@pytest.mark.parametrize("role", ["model", "ref_model", "value_model", "reward_model"])
def test_quantised_folders_are_refused_by_name(role, settings, words, tmp_path):
    if words == "cannot learn" and role in ("ref_model", "reward_model"):
        pytest.skip("frozen roles may be quantised")
    make = tiny_causal_lm if role in ("model", "ref_model") else tiny_scalar_model
    path = folder(tmp_path / role, model=make(), tokenizer=byte_tokenizer(), without_weights=True)
    config = tmp_path / role / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": settings}))
    given = {role: path} | ({"reward_funcs": ()} if role == "reward_model" else {})
    with pytest.raises(ModelError, match=rf"^{role}: its weights are quantised .*{words}"):
        small_recipe(tmp_path / "run", parts=given)
    shutil.rmtree(path)


def test_an_engine_that_samples_what_is_no_token_is_named(tmp_path):
    recipe = small_recipe(tmp_path)
    prompts, rollout, _ = play(recipe)
    with pytest.raises(TrainingError, match=r"engine mine sampled the id \d+ at token .*settings\.vocabulary"):
        check_rollout(
            rollout, prompts, engine="mine", limits=[6] * len(prompts), top_tokens=0, newest=1,
            vocabulary=int(rollout.actions.max()),
        )  # fmt: skip
    assert recipe.generation.vocabulary == 258
    assert recipe.sampling == Sampling()
