"""From which weights a critic starts beside a reward model: its own, where it reads the policy's ids."""

import pytest

from tests.tiny import byte_tokenizer, tiny_scalar_model
from tests.training.runs import small_recipe

FROM_REWARD = "The critic starts from the reward model."
FROM_TRUNK = "The reward model has another tokenizer, so the critic starts from the policy's trunk"


@pytest.mark.parametrize(("policys", "rewards", "said"), [
    ({"pad": None}, {}, FROM_REWARD),  # TRL's scripts add [PAD] before rewards are learned
    ({}, {"pad": None}, FROM_TRUNK),
    ({}, {"shift": 7}, FROM_TRUNK),
])  # fmt: skip
def test_a_reward_model_that_reads_the_policys_ids_is_the_start(policys, rewards, said, tmp_path):
    parts = {
        "tokenizer": byte_tokenizer(**policys), "reward_tokenizer": byte_tokenizer(**rewards),
        "reward_model": (tiny_scalar_model(),), "reward_funcs": (),
    }  # fmt: skip
    assert said in small_recipe(tmp_path, parts=parts).introduction
