"""Models in float16 that are passed as objects, as transformers loads them: what learns, and what only reads."""

import pytest
import torch

from nearstep.models.dtypes import without_slow_float16
from nearstep.training.frozen_passes import reference_logprobs
from tests.tiny import tiny_causal_lm, tiny_scalar_model
from tests.training.runs import play, small_recipe


def test_on_a_cpu_all_roles_compute_in_float32_and_the_reference_is_the_start(tmp_path):
    half = torch.float16
    parts = {
        "model": tiny_causal_lm().to(half), "ref_model": tiny_causal_lm().to(half),
        "teacher_model": tiny_causal_lm().to(half), "value_model": tiny_scalar_model().to(half),
        "reward_model": (tiny_scalar_model().to(half),), "reward_funcs": (),
    }  # fmt: skip
    recipe = small_recipe(tmp_path, parts=parts, teacher_coef=0.5)
    for role in ("model", "value_model"):
        assert f"{role}: float16 weights are trained and saved in float32" in recipe.introduction
    for role in ("ref_model", "teacher_model", "reward_model"):
        assert f"{role}: float16 weights are read in float32" in recipe.introduction
    models = [parts["model"], parts["ref_model"], parts["teacher_model"], parts["value_model"], *parts["reward_model"]]
    assert {weight.dtype for model in models for weight in model.parameters()} == {torch.float32}
    _, rollout, _ = play(recipe)
    torch.testing.assert_close(reference_logprobs(rollout, recipe), rollout.logprobs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("dtype", "device"), [(torch.float16, "cuda"), (torch.bfloat16, "cpu"), (torch.float32, "cpu")]
)
def test_others_keep_their_type(dtype, device):
    notes: list[str] = []
    model = without_slow_float16(torch.nn.Linear(2, 2).to(dtype), "ref_model", torch.device(device), notes)
    assert model.weight.dtype == dtype
    assert notes == []


def test_packed_weights_stay_as_they_are():
    model = torch.nn.Linear(2, 2).half()
    model.packed = torch.nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
    assert without_slow_float16(model, "ref_model", torch.device("cpu"), []).weight.dtype == torch.float16
