"""What trackers and users' callbacks may read of a run's settings: the part of `TrainingArguments` they use."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

from nearstep.common.secrets import public_settings
from nearstep.config.ppo import PPOConfig
from nearstep.reports.best import BestMetric


class Arguments(SimpleNamespace):
    """Every field of `PPOConfig`, and what transformers' callbacks read besides (checked with 5.23)."""

    def to_dict(self) -> dict[str, object]:
        """All settings; tuples as lists, as JSON has them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    def to_sanitized_dict(self) -> dict[str, object]:
        """All settings; what is no plain value as text."""
        plain = (bool, int, float, str)
        return {name: value if isinstance(value, plain) else str(value) for name, value in self.to_dict().items()}

    def to_json_string(self) -> str:
        """All settings as JSON."""
        return json.dumps(self.to_dict(), indent=2)


def arguments_view(config: PPOConfig, best: BestMetric, *, has_eval: bool, world_size: int, rank: int) -> Arguments:
    """The settings as callbacks expect them.

    `metric_for_best_model` has the name that transformers' `EarlyStoppingCallback` looks for, the score on the
    evaluation prompts if none is set.
    Nothing is uploaded that nobody asked for: trackio keeps its records on this machine.
    """
    settings = public_settings(dataclasses.asdict(config))
    settings["run_name"] = config.run_name or Path(config.output_dir).resolve().name
    strategies = {
        "logging_strategy": "steps",
        "logging_first_step": False,
        "eval_strategy": "steps" if has_eval else "no",
        "eval_delay": 0,
        "save_strategy": "no" if config.save_steps is None else "steps",
        "do_train": True,
        "do_eval": has_eval,
        "load_best_model_at_end": False,
        "metric_for_best_model": best.name,
        "greater_is_better": best.greater,
        "resume_from_checkpoint": None,
    }
    place = {"world_size": world_size, "process_index": rank, "should_save": rank == 0}
    trackio = {
        "project": "nearstep",
        "hub_private_repo": None,
        "trackio_space_id": None,
        "trackio_bucket_id": None,
        "trackio_static_space_id": False,
    }
    return Arguments(**{**settings, **strategies, **place, **trackio})
