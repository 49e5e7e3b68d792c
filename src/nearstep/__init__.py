"""PPO for language models: one loop, one trainer, independent axes."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nearstep.config import PPOConfig
    from nearstep.config_reward_modeling import RewardConfig
    from nearstep.errors import (
        ConfigError,
        ConformanceError,
        DataError,
        ModelError,
        NearstepError,
        RewardError,
        TrainingError,
    )
    from nearstep.presets import DecoupledPPOConfig, DivergencePPOConfig, TRLParityConfig
    from nearstep.reward_modeling.trainer import RewardModelTrainer
    from nearstep.trainer import PPOTrainer
    from nearstep.training.experience import make_experience
    from nearstep.training.update import update
    from nearstep.types import Experience, Metrics, Prompts, Rollout, Scores

__version__ = "0.1.0"

# Public names and where they live. Each is imported when it is first asked for: `import nearstep` stays light.
_HOMES = {
    "PPOConfig": "nearstep.config",
    "DecoupledPPOConfig": "nearstep.presets",
    "DivergencePPOConfig": "nearstep.presets",
    "TRLParityConfig": "nearstep.presets",
    "PPOTrainer": "nearstep.trainer",
    "RewardConfig": "nearstep.config_reward_modeling",
    "RewardModelTrainer": "nearstep.reward_modeling.trainer",
    "make_experience": "nearstep.training.experience",
    "update": "nearstep.training.update",
    "Prompts": "nearstep.types",
    "Rollout": "nearstep.types",
    "Scores": "nearstep.types",
    "Experience": "nearstep.types",
    "Metrics": "nearstep.types",
    "NearstepError": "nearstep.errors",
    "ConfigError": "nearstep.errors",
    "ConformanceError": "nearstep.errors",
    "DataError": "nearstep.errors",
    "ModelError": "nearstep.errors",
    "RewardError": "nearstep.errors",
    "TrainingError": "nearstep.errors",
}

__all__ = [
    "ConfigError",
    "ConformanceError",
    "DataError",
    "DecoupledPPOConfig",
    "DivergencePPOConfig",
    "Experience",
    "Metrics",
    "ModelError",
    "NearstepError",
    "PPOConfig",
    "PPOTrainer",
    "Prompts",
    "RewardConfig",
    "RewardError",
    "RewardModelTrainer",
    "Rollout",
    "Scores",
    "TRLParityConfig",
    "TrainingError",
    "__version__",
    "make_experience",
    "update",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return vars(import_module(_HOMES[name]))[name]


def __dir__() -> list[str]:
    return __all__
