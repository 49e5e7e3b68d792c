"""The configuration of a PPO run: all its settings, with the combinations that are refused."""

from collections.abc import Iterator
from dataclasses import dataclass

from nearstep.config import ppo_rules as config_rules
from nearstep.config.auxiliary import AuxiliarySettings
from nearstep.config.batches import BatchSettings
from nearstep.config.correction import CorrectionSettings
from nearstep.config.critic_text import CriticTextSettings
from nearstep.config.critic_training import CriticTrainingSettings
from nearstep.config.data import DataSettings, PromptSettings
from nearstep.config.deepspeed import zero_problems
from nearstep.config.engines import EngineChoice
from nearstep.config.evaluating import EvaluationSettings, evaluation_remarks
from nearstep.config.model_loading import loading_problems
from nearstep.config.one_base import OneBaseSettings, one_base_problems, one_base_remarks
from nearstep.config.regions import TrustRegionSettings
from nearstep.config.rewards import LocalRewardSettings
from nearstep.config.saving import SavingSettings
from nearstep.config.scaling import ScalingSettings, divided_by
from nearstep.config.sections import (
    AdvantageSettings,
    AllSettings,
    CriticSettings,
    EpisodeReportSettings,
    KLSettings,
    PolicySettings,
    RoleSettings,
    SamplingSettings,
    ScoreSettings,
)
from nearstep.config.selection import SelectionSettings
from nearstep.config.settings import Problem, accepts_old_names, sections
from nearstep.config.several_critics import SeveralCriticsSettings
from nearstep.config.shared import ModelSettings, OptimizerSettings, ReportSettings, RunSettings
from nearstep.config.staleness import StalenessSettings, staleness_problems, staleness_remarks
from nearstep.config.turns import TurnSettings
from nearstep.config.value_heads import ValueHeadSettings


@accepts_old_names
@dataclass(frozen=True, kw_only=True)
class PPOConfig(AllSettings):
    """All settings of a PPO run, flat and frozen.

    Field names are those of TRL's `PPOConfig` where it had the setting. Unknown names, wrong types and
    clashing values are refused with a `ConfigError` that lists every problem at once.
    """

    def problems(self) -> Iterator[Problem]:
        """Settings that clash. Types and limits are checked before."""
        yield from config_rules.clashes(self)
        yield from staleness_problems(
            self, sampler=self.sampler, gate_fill=self.gate_fill, replay_rollouts=self.replay_rollouts
        )
        yield from zero_problems(self, trunk=self.critic_trunk, critics=self.critic_models)
        yield from one_base_problems(
            self, critic_trunk=self.critic_trunk, divided_by=divided_by(self), optim=self.optim
        )
        yield from loading_problems(
            self,
            dtype=self.dtype,
            targets=self.lora_target_modules,
            modules_to_save=self.lora_modules_to_save,
            quant_type=self.bnb_4bit_quant_type if self.load_in_4bit else None,
            divided_by=divided_by(self),
            engine=self.engine,
        )
        yield from self.problems_of_saving(divided_by(self))

    def remarks(self) -> Iterator[str]:
        """Settings without effect, and one whose effect surprises."""
        yield from config_rules.remarks(self)
        yield from evaluation_remarks(self, keep_best=self.keep_best)
        yield from staleness_remarks(self)
        yield from self.remarks_of_saving(divided_by(self))
        yield from one_base_remarks(self, critic_trunk=self.critic_trunk, checkpointing=self.gradient_checkpointing)


SECTIONS = sections(
    ("Run", RunSettings),
    ("Models", ModelSettings),
    ("One base", OneBaseSettings),
    ("Processes", ScalingSettings),
    ("Roles", RoleSettings),
    ("Data", DataSettings),
    ("Prompts", PromptSettings),
    ("Selection", SelectionSettings),
    ("Sampling", SamplingSettings),
    ("Engine", EngineChoice),
    ("Staleness", StalenessSettings),
    ("Reward", LocalRewardSettings),
    ("Score", ScoreSettings),
    ("KL", KLSettings),
    ("Advantage", AdvantageSettings),
    ("Turns", TurnSettings),
    ("Policy", PolicySettings),
    ("Engine and trainer", CorrectionSettings),
    ("Trust region", TrustRegionSettings),
    ("Auxiliary losses", AuxiliarySettings),
    ("Critic", CriticSettings),
    ("Value head", ValueHeadSettings),
    ("Several critics", SeveralCriticsSettings),
    ("Critic's training", CriticTrainingSettings),
    ("Privileged critic", CriticTextSettings),
    ("Batches", BatchSettings),
    ("Optimizer", OptimizerSettings),
    ("Reports", ReportSettings),
    ("Evaluation", EvaluationSettings),
    ("Episodes", EpisodeReportSettings),
    ("Checkpoints", SavingSettings),
)  # the sections of `--help`: title, first setting
