"""The page of the Python interface: every public name, its text from the docstring (mkdocstrings reads the source)."""

from collections.abc import Mapping

import nearstep

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Training": ("PPOTrainer", "create_rl_trainer"),
    "Reward models and judges": ("RewardModelTrainer", "load_judge"),
    "Evaluation and records": ("run_eval", "read_run", "RunRecords"),
    "A loop of your own": (
        "assemble", "RunInputs", "Recipe", "State", "train", "generate", "make_experience", "update",
    ),
    "What flows": ("Prompts", "Rollout", "Scores", "Experience", "Metrics"),
    "What objects of your own are given": (
        "ActionRows", "TokenLogprobs", "ActionLogprobs", "Credit", "CreditInputs", "MeasuredKL", "MinibatchCounts",
        "ValueTargets", "Correction", "Corrections", "Draw", "FinishedGroups", "Phase", "RatioBand",
        "Capabilities", "EngineSettings", "GenerationSettings",
    ),
    "Errors": (
        "NearstepError", "ConfigError", "ConformanceError", "DataError", "CheckpointError", "ModelError", "RewardError",
        "TrainingError",
    ),
}  # fmt: skip
# Their fields are settings, which have pages of their own.
CONFIGURATIONS: Mapping[str, str] = {
    "PPOConfig": "[settings](settings.md)", "DecoupledPPOConfig": "[recipe](recipes/decoupled.md)",
    "DivergencePPOConfig": "[recipe](recipes/divergence.md)", "TRLParityConfig": "[recipe](recipes/trl_parity.md)",
    "RewardConfig": "[nearstep reward](commands.md#reward)", "EvalConfig": "[nearstep eval](commands.md#eval)",
    "JudgeConfig": "[judges](judges.md)",
}  # fmt: skip
HEAD = """# Python

Every name here is imported from `nearstep`: `from nearstep import PPOConfig, PPOTrainer`. Classes that are not on this page may change
in any release ([deprecation](deprecation.md)). `nearstep.testing` has the laws of each axis ([extending](extending.md)), `nearstep.classic`
TRL's `step` ([TRL 0.7 to 0.11](migrations/trl_classic.md)).

## Configurations

Frozen dataclasses of keywords. They check themselves, and name all problems at once.
"""


def page() -> str:
    """The page docs/api.md."""
    parts = [HEAD, *(f"- `{name}`: {where}" for name, where in CONFIGURATIONS.items()), ""]
    for title, names in GROUPS.items():
        parts += [f"## {title}", "", *(f"::: {home(name)}" for name in names), ""]
    return "\n".join(parts)


def home(name: str) -> str:
    """Where a public name is defined, in full."""
    found = vars(nearstep)["_HOMES"][name]
    return f"{found}.{name}"
