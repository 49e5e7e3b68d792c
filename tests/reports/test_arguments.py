"""Trackers and callbacks of transformers find every setting that they read."""

import ast
import inspect
import json
import textwrap

import pytest
from transformers import EarlyStoppingCallback
from transformers.integrations import INTEGRATION_TO_CALLBACK
from transformers.trainer_callback import DefaultFlowCallback

from nearstep.config.ppo import PPOConfig
from nearstep.reports.arguments import arguments_view
from nearstep.reports.best import BestMetric


def _read_by(kind: type) -> set[str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "args"
        and isinstance(node.ctx, ast.Load)
    }


@pytest.mark.parametrize("kind", [*INTEGRATION_TO_CALLBACK.values(), DefaultFlowCallback, EarlyStoppingCallback])
def test_the_arguments_have_what_each_callback_of_transformers_reads(kind):
    view = arguments_view(PPOConfig(), BestMetric("loss", False, False), has_eval=True, world_size=1, rank=0)
    assert _read_by(kind) <= set(dir(view))


def test_arguments_are_the_settings_and_plain_json(tmp_path):
    config = PPOConfig(output_dir=str(tmp_path / "tldr"), kl_coef=0.1, report_to=("tensorboard", "wandb"))
    view = arguments_view(config, BestMetric("loss", False, False), has_eval=False, world_size=4, rank=2)
    assert (view.kl_coef, view.run_name, view.world_size, view.process_index) == (0.1, "tldr", 4, 2)
    loaded = json.loads(view.to_json_string())
    assert loaded["report_to"] == ["tensorboard", "wandb"]
    assert loaded == view.to_dict()
    assert (view.metric_for_best_model, view.greater_is_better) == ("loss", False)
    assert all(isinstance(value, bool | int | float | str) for value in view.to_sanitized_dict().values())
