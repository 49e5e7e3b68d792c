"""Every decoder family of transformers, in each role and each way in which people bring it."""

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from nearstep.common.errors import ModelError
from nearstep.models.roles import make_policy
from tests.families.checks import VARIANTS, can_recompute, check_critic, check_policy, check_scorer, tiny_policy
from tests.families.tiny_families import NO_TRUNK, NOT_CAUSAL, NOT_IN_BFLOAT16, NOT_TRAINED, WITHOUT

LEFT_OUT = {*WITHOUT, *NOT_CAUSAL, *NOT_TRAINED}
FAMILIES = [kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind not in LEFT_OUT]
DOZEN = (
    "bloom",
    "falcon",
    "gemma2",
    "gpt2",
    "gpt_oss",
    "gptj",
    "llama",
    "mamba",
    "mixtral",
    "mpt",
    "diffllama",
    "stablelm",
)


@pytest.mark.parametrize("kind", DOZEN)
def test_a_dozen_families_in_every_role(kind, tmp_path):
    check_policy(kind, VARIANTS[0], tmp_path)
    check_critic(kind)
    check_scorer(kind)


# Layers of these share weights: peft gives each layer adapters of its own, and merging adds all to the one weight.
NOT_ADAPTED = ("zamba", "zamba2")
# It keeps the states of its last pass, with their gradients, and so cannot be copied.
NOT_COPIED = ("recurrent_gemma",)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_as_people_bring_it(kind, variant, tmp_path):
    if variant.run.get("gradient_checkpointing") and not can_recompute(kind):
        with pytest.raises(ModelError, match=r"gradient_checkpointing: .* has no layers"):
            check_policy(kind, variant, tmp_path)
        return
    if variant.saved_as is torch.bfloat16 and kind in NOT_IN_BFLOAT16:
        with pytest.raises(RuntimeError, match="BFloat16"):  # in transformers' own code for longer rows
            check_policy(kind, variant, tmp_path)
        return
    if variant.adapters and kind in (*NOT_ADAPTED, *NOT_COPIED):
        pytest.skip("its adapters cannot be merged")
    check_policy(kind, variant, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_as_critic_and_reward_model(kind):
    if kind in NO_TRUNK:
        with pytest.raises(ModelError, match="does not say which part of it is its trunk"):
            check_critic(kind)
        return
    check_critic(kind)
    check_scorer(kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", NOT_CAUSAL)
def test_what_is_not_causal_is_refused(kind):
    with pytest.raises(ModelError, match="not causal"):
        make_policy(tiny_policy(kind))
