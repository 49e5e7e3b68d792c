"""PPO for language models: one loop, one trainer, independent axes."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nearstep.assembly.inputs import RunInputs
    from nearstep.assembly.run import assemble
    from nearstep.common.errors import (
        CheckpointError,
        ConfigError,
        ConformanceError,
        DataError,
        ModelError,
        NearstepError,
        RewardError,
        TrainingError,
    )
    from nearstep.config.ppo import PPOConfig
    from nearstep.config.recipes import DecoupledPPOConfig, DivergencePPOConfig, TRLParityConfig
    from nearstep.config.reward_model import RewardConfig
    from nearstep.metrics import Metrics
    from nearstep.reports.run_records import RunRecords, read_run
    from nearstep.reward_modeling.trainer import RewardModelTrainer
    from nearstep.rollout.engine import Capabilities, EngineSettings, GenerationSettings
    from nearstep.trainer import PPOTrainer
    from nearstep.training.experience import make_experience
    from nearstep.training.generation import generate
    from nearstep.training.loop import train
    from nearstep.training.recipe import Recipe
    from nearstep.training.state import State
    from nearstep.training.update import update
    from nearstep.types import Experience, Prompts, Rollout, Scores

__version__ = "0.1.0"

# Public names and where they live. Each is imported when it is first asked for: `import nearstep` stays light.
_HOMES = {
    "PPOConfig": "nearstep.config.ppo",
    "DecoupledPPOConfig": "nearstep.config.recipes",
    "DivergencePPOConfig": "nearstep.config.recipes",
    "TRLParityConfig": "nearstep.config.recipes",
    "PPOTrainer": "nearstep.trainer",
    "read_run": "nearstep.reports.run_records",
    "RunRecords": "nearstep.reports.run_records",
    "RewardConfig": "nearstep.config.reward_model",
    "RewardModelTrainer": "nearstep.reward_modeling.trainer",
    "assemble": "nearstep.assembly.run",
    "RunInputs": "nearstep.assembly.inputs",
    "Recipe": "nearstep.training.recipe",
    "State": "nearstep.training.state",
    "train": "nearstep.training.loop",
    "generate": "nearstep.training.generation",
    "make_experience": "nearstep.training.experience",
    "update": "nearstep.training.update",
    "Capabilities": "nearstep.rollout.engine",
    "EngineSettings": "nearstep.rollout.engine",
    "GenerationSettings": "nearstep.rollout.engine",
    "Prompts": "nearstep.types",
    "Rollout": "nearstep.types",
    "Scores": "nearstep.types",
    "Experience": "nearstep.types",
    "Metrics": "nearstep.metrics",
    "NearstepError": "nearstep.common.errors",
    "ConfigError": "nearstep.common.errors",
    "ConformanceError": "nearstep.common.errors",
    "DataError": "nearstep.common.errors",
    "CheckpointError": "nearstep.common.errors",
    "ModelError": "nearstep.common.errors",
    "RewardError": "nearstep.common.errors",
    "TrainingError": "nearstep.common.errors",
}

__all__ = [
    "Capabilities",
    "CheckpointError",
    "ConfigError",
    "ConformanceError",
    "DataError",
    "DecoupledPPOConfig",
    "DivergencePPOConfig",
    "EngineSettings",
    "Experience",
    "GenerationSettings",
    "Metrics",
    "ModelError",
    "NearstepError",
    "PPOConfig",
    "PPOTrainer",
    "Prompts",
    "Recipe",
    "RewardConfig",
    "RewardError",
    "RewardModelTrainer",
    "Rollout",
    "RunInputs",
    "RunRecords",
    "Scores",
    "State",
    "TRLParityConfig",
    "TrainingError",
    "__version__",
    "assemble",
    "generate",
    "make_experience",
    "read_run",
    "train",
    "update",
]


def __getattr__(name: str) -> object:
    if name in ("DPPOConfig", "DPPOTrainer"):
        from nearstep.config.old_names import DPPO

        raise ImportError(f"{name}: {DPPO}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return vars(import_module(_HOMES[name]))[name]


def __dir__() -> list[str]:
    return __all__
