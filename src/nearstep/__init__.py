"""PPO for language models: one loop, one trainer, independent axes."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nearstep.algorithm.advantage_rules import Credit, CreditInputs
    from nearstep.algorithm.aggregation import MinibatchCounts
    from nearstep.algorithm.correction import Correction, Corrections
    from nearstep.algorithm.kl_controllers import MeasuredKL
    from nearstep.algorithm.trust_regions import ActionRows, TokenLogprobs
    from nearstep.algorithm.value_heads import ValueTargets
    from nearstep.assembly.inputs import RunInputs
    from nearstep.assembly.run import assemble
    from nearstep.classic.factory import create_rl_trainer
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
    from nearstep.config.evaluation import EvalConfig
    from nearstep.config.judges import JudgeConfig
    from nearstep.config.ppo import PPOConfig
    from nearstep.config.recipes import DecoupledPPOConfig, DivergencePPOConfig, TRLParityConfig
    from nearstep.config.reward_model import RewardConfig
    from nearstep.data.samplers import Draw
    from nearstep.evaluation.run_eval import run_eval
    from nearstep.metrics import Metrics
    from nearstep.models.forward.action_logprobs import ActionLogprobs
    from nearstep.reports.run_records import RunRecords, read_run
    from nearstep.reward_modeling.trainer import RewardModelTrainer
    from nearstep.rewards.judging import load_judge
    from nearstep.rollout.engine import Capabilities, EngineSettings, GenerationSettings
    from nearstep.trainer import PPOTrainer
    from nearstep.training.experience import make_experience
    from nearstep.training.gates import FinishedGroups
    from nearstep.training.generation import generate
    from nearstep.training.loop import train
    from nearstep.training.recipe import Recipe
    from nearstep.training.schedules import Phase, RatioBand
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
    "create_rl_trainer": "nearstep.classic.factory",
    "read_run": "nearstep.reports.run_records",
    "RunRecords": "nearstep.reports.run_records",
    "RewardConfig": "nearstep.config.reward_model",
    "EvalConfig": "nearstep.config.evaluation",
    "run_eval": "nearstep.evaluation.run_eval",
    "RewardModelTrainer": "nearstep.reward_modeling.trainer",
    "JudgeConfig": "nearstep.config.judges",
    "load_judge": "nearstep.rewards.judging",
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
    # What the members of objects of your own are given and return.
    "ActionRows": "nearstep.algorithm.trust_regions",
    "TokenLogprobs": "nearstep.algorithm.trust_regions",
    "Credit": "nearstep.algorithm.advantage_rules",
    "CreditInputs": "nearstep.algorithm.advantage_rules",
    "MeasuredKL": "nearstep.algorithm.kl_controllers",
    "MinibatchCounts": "nearstep.algorithm.aggregation",
    "ValueTargets": "nearstep.algorithm.value_heads",
    "Correction": "nearstep.algorithm.correction",
    "Corrections": "nearstep.algorithm.correction",
    "Draw": "nearstep.data.samplers",
    "FinishedGroups": "nearstep.training.gates",
    "Phase": "nearstep.training.schedules",
    "RatioBand": "nearstep.training.schedules",
    "ActionLogprobs": "nearstep.models.forward.action_logprobs",
    # Errors.
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
    "ActionLogprobs",
    "ActionRows",
    "Capabilities",
    "CheckpointError",
    "ConfigError",
    "ConformanceError",
    "Correction",
    "Corrections",
    "Credit",
    "CreditInputs",
    "DataError",
    "DecoupledPPOConfig",
    "DivergencePPOConfig",
    "Draw",
    "EngineSettings",
    "EvalConfig",
    "Experience",
    "FinishedGroups",
    "GenerationSettings",
    "JudgeConfig",
    "MeasuredKL",
    "Metrics",
    "MinibatchCounts",
    "ModelError",
    "NearstepError",
    "PPOConfig",
    "PPOTrainer",
    "Phase",
    "Prompts",
    "RatioBand",
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
    "TokenLogprobs",
    "TrainingError",
    "ValueTargets",
    "__version__",
    "assemble",
    "create_rl_trainer",
    "generate",
    "load_judge",
    "make_experience",
    "read_run",
    "run_eval",
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
