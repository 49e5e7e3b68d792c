"""A folder in another type than the run's: it is told, for the screen and the model card."""

import torch

from nearstep.assembly.policy_folder import type_note, wider_type
from nearstep.config.ppo import PPOConfig
from tests.tiny import tiny_causal_lm


def test_a_folder_in_bfloat16_that_trains_in_float32_is_told(tmp_path):
    model = tiny_causal_lm(layers=1)
    model.save_pretrained(tmp_path / "wide")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "narrow")
    plain, narrow = PPOConfig(), PPOConfig(dtype="bfloat16")
    assert wider_type(str(tmp_path / "narrow"), plain) == "bfloat16"
    assert wider_type(str(tmp_path / "wide"), narrow) == "float32"
    for place, config in ((str(tmp_path / "narrow"), narrow), (str(tmp_path / "wide"), plain), (model, plain)):
        assert wider_type(place, config) is None
    model.half().save_pretrained(tmp_path / "half")
    assert type_note(wider_type(str(tmp_path / "half"), plain), plain).endswith("too small for float16.")
    assert type_note("bfloat16", plain).startswith(
        "The policy's folder is in bfloat16: it is trained and saved in float32. dtype = bfloat16 keeps its type"
    )
