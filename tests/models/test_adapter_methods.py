"""peft's methods: each that fits is proved on noise, packed, merged and switched off; each other is refused by name."""

import copy

import peft
import pytest
import torch
from packaging.version import Version
from transformers import AutoModelForCausalLM, MixtralConfig

from nearstep import ModelError, PPOConfig
from nearstep.algorithm.value_heads import LinearHead
from nearstep.models.adapter_methods import METHODS
from nearstep.models.adapters import (
    POLICY_TASKS,
    add_adapters,
    check_peft_config,
    lora_from,
    with_adapters_merged,
    without_adapters,
)
from nearstep.models.forward.forward import row_states
from nearstep.models.roles import make_policy
from nearstep.models.shared_trunk import critic_under_adapters
from tests.lanes import sampled
from tests.tiny import tiny_causal_lm
from tests.training.runs import play, small_recipe

TASK = {"task_type": "CAUSAL_LM"}
ON = {"target_modules": ["q_proj", "o_proj"], **TASK}
IDS = torch.tensor([5, 6, 7, 3, 4])

OTHER_METHODS = [
    peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, **ON), peft.LoHaConfig(r=2, **ON),
    peft.LoKrConfig(r=2, **ON), peft.OFTConfig(oft_block_size=4, **ON), peft.BOFTConfig(boft_block_size=4, **ON),
    peft.HRAConfig(r=2, **ON), peft.VeraConfig(r=2, target_modules=["q_proj"], **TASK),
    peft.VBLoRAConfig(r=2, vector_length=4, num_vectors=8, topk=2, target_modules=["q_proj"], **TASK),
    peft.RandLoraConfig(r=2, **ON), peft.FourierFTConfig(n_frequency=8, **ON),
    peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], **TASK),
    peft.LNTuningConfig(**TASK), peft.TrainableTokensConfig(token_indices=[3, 4], **TASK),
    peft.C3AConfig(block_size=8, **ON), peft.WaveFTConfig(n_frequency=64, **ON), peft.DeloraConfig(r=2, **ON),
    peft.MissConfig(r=2, **ON), peft.ShiraConfig(r=2, **ON), peft.OSFConfig(**ON), peft.RoadConfig(group_size=8, **ON),
    peft.GraloraConfig(r=2, **ON),
    # Younger than the lowest peft that is taken.
    *(vars(peft)[name](r=2, **ON) for name in ("HiraConfig",) if name in vars(peft)),
]  # fmt: skip

LORA = {
    "plain": {}, "DoRA": {"use_dora": True}, "rsLoRA": {"use_rslora": True}, "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"}, "orthogonal": {"init_lora_weights": "orthogonal"},
    "all linear": {"target_modules": "all-linear"}, "a pattern": {"target_modules": r".*\.(q|k)_proj"},
    "embeddings": {"target_modules": ["embed_tokens"]}, "the head": {"target_modules": ["lm_head"]},
    "DoRA on all": {"target_modules": ["embed_tokens", "lm_head", "q_proj"], "use_dora": True},
    "tokens": {"trainable_token_indices": [3, 4]}, "embeddings whole": {"modules_to_save": ["embed_tokens"]},
    "the head whole": {"modules_to_save": ["lm_head"]}, "both whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "norms whole": {"modules_to_save": ["norm"]}, "bias": {"bias": "all"},
    "ranks": {"rank_pattern": {"layers.0.self_attn.q_proj": 4}, "alpha_pattern": {"v_proj": 9}},
    "layers": {"layers_to_transform": [1]},
    "tied kept": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": 1},
}  # fmt: skip
TIED = ("all linear", "embeddings", "the head", "DoRA on all", "tokens", "embeddings whole", "the head whole",
        "both whole", "tied kept")  # fmt: skip


def start(*, tied=False):
    model = tiny_causal_lm()
    with torch.no_grad():
        model.model.embed_tokens.weight[257] = 1.0  # PAD is a row of zeros, which DoRA divides by
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    return model


def lora(**changes):
    return peft.LoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj"], **TASK, **changes})


@torch.no_grad()
def moved(model):
    """Noise on all that trains, as training would leave it."""
    draws = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.add_(0.3 * torch.randn(weight.shape, generator=draws))
    return model


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS[None]).logits[0]


def prove(model, config):
    before = logits(model)
    adapted = moved(add_adapters(model, config, seed=0).eval())
    expected = logits(adapted)
    assert (expected - before).abs().max() > 0.05
    policy = make_policy(adapted)
    ours = policy.head.logits(row_states(policy, IDS, torch.tensor([5])))
    torch.testing.assert_close(ours.detach(), expected, atol=1e-4, rtol=1e-4)
    ours.square().sum().backward()
    without = [name for name, weight in adapted.named_parameters() if weight.requires_grad and weight.grad is None]
    assert without == []
    merged = with_adapters_merged(adapted)
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(adapted), expected, atol=0, rtol=0)  # the copy was merged, not this
    if config.peft_type == "LORA" and config.init_lora_weights in ("pissa", "olora"):
        return merged, expected  # these take a part out of the weights
    torch.testing.assert_close(logits(without_adapters(adapted)), before, atol=1e-5, rtol=1e-5)
    with adapted.disable_adapter():
        torch.testing.assert_close(logits(adapted), before, atol=1e-5, rtol=1e-5)
    return merged, expected


def test_every_method_that_fits_is_proved_here():
    here = {name for name in METHODS if name in peft.PeftType.__members__}
    assert {config.peft_type.value for config in OTHER_METHODS} | {"LORA"} == here


@pytest.mark.parametrize("config", sampled(OTHER_METHODS, 3), ids=lambda config: config.peft_type.value)
def test_packed_merged_and_off_are_right_with_every_method(config):
    check_peft_config(config, POLICY_TASKS)
    if config.peft_type.value == "TRAINABLE_TOKENS" and Version(peft.__version__) < Version("0.21"):
        with pytest.raises(ModelError, match="the adapters cannot be merged"):  # peft's layer cannot be copied there
            prove(start(), copy.deepcopy(config))
        return
    prove(start(), copy.deepcopy(config))


@pytest.mark.parametrize("kind", sampled(LORA, 3))
def test_packed_merged_and_off_are_right_with_every_kind_of_lora(kind):
    config = lora(**LORA[kind])
    check_peft_config(config, POLICY_TASKS)
    prove(start(), config)
    assert config.target_modules == lora(**LORA[kind]).target_modules  # the user's configuration stays as it is


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings`", "ignore:Model with `tie_word_embeddings`")
@pytest.mark.parametrize("kind", sampled(TIED, 3))
def test_tied_embeddings_are_saved_apart_exactly_where_they_have_parted(kind, tmp_path):
    """Adapters on a tied head merged into the shared weight would change the embeddings too."""
    merged, expected = prove(start(tied=True), lora(**LORA[kind]))
    assert merged.config.tie_word_embeddings == (kind in ("all linear", "tokens", "tied kept"))
    merged.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "kind", ["all linear", "embeddings", "tokens", "embeddings whole", "norms whole", "DoRA on all"]
)
def test_a_critic_under_adapters_stands_on_the_weights_as_they_were(kind):
    """Also where the policy trains a copy of one whole: the critic has the frozen one."""
    model = start()
    before = copy.deepcopy(model.model)
    adapted = moved(add_adapters(model, lora(**LORA[kind]), seed=0))
    critic = critic_under_adapters(adapted, lora(**LORA[kind]), 257, LinearHead(0.2), seed=0)
    states = critic.get_base_model().model(input_ids=IDS[None]).last_hidden_state
    torch.testing.assert_close(states, before(input_ids=IDS[None]).last_hidden_state, atol=1e-5, rtol=1e-5)
    learns = {id(weight) for weight in critic.parameters() if weight.requires_grad}
    assert learns.isdisjoint({id(weight) for weight in adapted.parameters()})


def test_biases_that_train_beside_adapters_do_not_move_the_reference(tmp_path):
    """peft cannot switch them off, so the reference is a copy."""
    config = lora(bias="all", target_modules=["query_key_value"])
    recipe = small_recipe(tmp_path, parts={"model": tiny_causal_lm("gpt_neox"), "peft_config": config})
    reference = recipe.models.reference
    assert not reference.adapters_off
    before = logits(reference.policy.model)
    moved(recipe.models.policy.model)
    torch.testing.assert_close(logits(reference.policy.model), before, atol=0, rtol=0)


def test_parameters_of_experts_take_adapters():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MixtralConfig(
        vocab_size=258, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
    ))  # fmt: skip
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    prove(model.eval(), lora(target_modules=["q_proj"], target_parameters=names))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            peft.PromptTuningConfig(num_virtual_tokens=4, **TASK),
            r"PromptTuningConfig \(PROMPT_TUNING\).*virtual tokens",
        ),
        (peft.PrefixTuningConfig(num_virtual_tokens=4, **TASK), r"PrefixTuningConfig \(PREFIX_TUNING\)"),
        (peft.PromptEncoderConfig(num_virtual_tokens=4, **TASK), r"PromptEncoderConfig \(P_TUNING\)"),
        (peft.MultitaskPromptTuningConfig(num_virtual_tokens=4, num_tasks=2, **TASK), "MULTITASK_PROMPT_TUNING"),
        (peft.AdaptionPromptConfig(adapter_len=2, adapter_layers=1, **TASK), r"AdaptionPromptConfig.*added to weights"),
        (peft.PolyConfig(r=2, **ON), r"PolyConfig \(POLY\).*number of a task"),
        (peft.XLoraConfig(hidden_size=32, adapters={}, **TASK), r"XLoraConfig \(XLORA\)"),
        (peft.LilyConfig(r=2, **ON), r"LilyConfig \(LILY\) does not fit: nobody has proved"),
        (lora(alora_invocation_tokens=[3]), "alora_invocation_tokens is set"),
        (lora(layer_replication=[(0, 2), (0, 2)]), "layer_replication is set"),
        (lora(init_lora_weights="pissa_niter_4"), "'pissa_niter_4' draws at random"),
        (lora(init_lora_weights="eva"), "'eva' needs data"),
        (lora(task_type="SEQ_CLS"), "its task_type is SEQ_CLS.*Use None or CAUSAL_LM"),
        ({"r": 8}, r"peft_config: got \{'r': 8\} \(dict\)"),
        ("lora", r"peft_config: got 'lora' \(str\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_before_anything_loads(tmp_path, config, words):
    with pytest.raises(ValueError, match=f"peft_config.*{words}" if "peft_config" not in words else words):
        small_recipe(tmp_path, parts={"model": str(tmp_path / "is not read"), "peft_config": config})


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_dora_over_a_row_of_zeros_is_refused(module):
    """Merged it would be a row of NaN: silently in the embeddings, where nothing reads PAD here."""
    model = tiny_causal_lm()
    with torch.no_grad():
        getattr(model.model, module, model.lm_head).weight[257] = 0.0
    with pytest.raises(ModelError, match=f"{module} has a row of zeros"):
        add_adapters(model, lora(use_dora=True, target_modules=[module, "q_proj"]), seed=0)


@pytest.mark.parametrize("trunk", ["separate", "shared", "adapter"])
def test_a_tied_head_with_trained_tokens_runs(tmp_path, trunk):
    """Head and embeddings share the tokens' own rows, and so does the log-prob of a whole run."""
    recipe = small_recipe(
        tmp_path, critic_trunk=trunk, parts={"model": start(tied=True), "peft_config": lora(**LORA["tokens"])}
    )
    assert recipe.models.policy.head.vocabulary == 258
    play(recipe)


def test_a_peft_model_with_prompts_is_refused_in_every_role(tmp_path):
    prompted = peft.get_peft_model(start(), peft.PromptTuningConfig(num_virtual_tokens=4, **TASK))
    for role in ("model", "ref_model"):
        with pytest.raises(ModelError, match=rf"{role}: PromptTuningConfig \(PROMPT_TUNING\) does not fit"):
            small_recipe(tmp_path, parts={role: prompted})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (lora(lora_bias=True), "cannot be merged into the weights, as saving does: Impossible to merge LoRA.*no bias"),
        (lora(target_modules=["nope"]), "peft could not add the adapters: .*nope"),
        (peft.C3AConfig(block_size=256, **ON), "peft could not add the adapters: The block size"),
    ],
)
def test_adapters_that_cannot_be_put_on_or_merged_are_refused_with_pefts_reason(config, words):
    with pytest.raises(ModelError, match=words):
        add_adapters(start(), config, seed=0)


@pytest.mark.parametrize(
    ("words", "targets"),
    [
        (None, None), (["q_proj", "v_proj"], {"q_proj", "v_proj"}),
        (["layers.0.self_attn.q_proj"], {"layers.0.self_attn.q_proj"}), (["all-linear"], "all-linear"),
        ("all-linear", "all-linear"), ([r".*\.(q|v)_proj"], r".*\.(q|v)_proj"), ([r"a{1,2}.*"], r"a{1,2}.*"),
    ],
)  # fmt: skip
def test_modules_are_named_as_on_pefts_page(words, targets):
    found = lora_from(PPOConfig(use_peft=True, lora_target_modules=words)).target_modules
    assert found == targets


def test_all_linear_stands_alone(tmp_path):
    with pytest.raises(ValueError, match="all-linear alone"):
        small_recipe(tmp_path, use_peft=True, lora_target_modules=["all-linear", "lm_head"])


def test_layers_that_share_a_weight_take_no_adapters_of_their_own():
    """As in Zamba, whose attention is one block in several places: merged, its weight would get the adapter of each."""

    def sharing():
        model = start()
        one, two = (layer.self_attn.q_proj for layer in model.model.layers)
        two.weight = one.weight
        return model

    with pytest.raises(ModelError, match=r"q_proj and .*q_proj are one weight with an adapter each"):
        add_adapters(sharing(), lora(target_modules=["q_proj"]), seed=0)
    add_adapters(sharing(), lora(target_modules=["v_proj"]), seed=0)
