"""Which settings a PPO run has, by subject, and what each does."""

from dataclasses import dataclass
from typing import Literal

from nearstep.config.auxiliary import AuxiliarySettings
from nearstep.config.axes import (
    ADVANTAGES,
    CRITIC_SCHEDULES,
    KL_CONTROLLERS,
    LOSS_AGGREGATIONS,
    listed,
)
from nearstep.config.batches import BatchSettings
from nearstep.config.correction import CorrectionSettings
from nearstep.config.critic_text import CriticTextSettings
from nearstep.config.critic_training import CriticTrainingSettings
from nearstep.config.data import DataSettings, PromptSettings
from nearstep.config.engines import EngineChoice
from nearstep.config.evaluating import EvaluationSettings
from nearstep.config.one_base import OneBaseSettings
from nearstep.config.regions import TrustRegionSettings
from nearstep.config.rewards import RewardSettings
from nearstep.config.saving import SavingSettings
from nearstep.config.scaling import ScalingSettings
from nearstep.config.selection import SelectionSettings
from nearstep.config.settings import Settings, option
from nearstep.config.several_critics import SeveralCriticsSettings
from nearstep.config.shared import ModelSettings, OptimizerSettings, ReportSettings, RunSettings
from nearstep.config.staleness import StalenessSettings
from nearstep.config.turns import TurnSettings
from nearstep.config.value_heads import ValueHeadSettings


@dataclass(frozen=True, kw_only=True)
class RoleSettings(Settings):
    """The other models of PPO."""

    sft_model_path: str | None = option(
        None, "weights of the policy, if not those of model_name_or_path", is_place=True
    )
    ref_model_path: str | None = option(
        None, "frozen reference; if not given, a copy of the policy as it starts", is_place=True
    )
    value_model_path: str | None = option(
        None,
        "critic with one label, or one saved with the same value_head; if not given, started from the reward model, "
        "else from the policy's trunk",
        is_place=True,
    )
    random_reward_head: bool = option(
        False, "for a first try: a reward model without a trained head gets a random one, whose scores mean nothing"
    )


@dataclass(frozen=True, kw_only=True)
class SamplingSettings(Settings):
    """How responses are sampled."""

    response_length: int = option(53, "most tokens of a response", at_least=1)
    max_length: int | None = option(
        None, "most tokens of prompt and response together: behind a long prompt the response is shorter", at_least=2
    )
    do_sample: bool = option(
        True, "sample responses; false takes the most probable token each time, by which PPO explores nothing"
    )
    temperature: float = option(0.7, "of sampling and of every log-probability", above=0)
    top_p: float = option(
        1.0,
        "sample from the smallest set of tokens with this probability; log-probs alike",
        above=0,
        at_most=1,
    )
    top_k: int = option(0, "sample from this many most probable tokens, 0 for all; log-probs alike", at_least=0)
    stop_token: str | None = option(
        "auto",
        "what ends a response. auto: every end that tokenizer, generation config and chat template mean; eos: the "
        "tokenizer's EOS alone; or the text of one token; 'none' for no stop",
    )
    stop_token_id: tuple[int, ...] | None = option(
        None, "ids of the tokens that end a response, instead of stop_token", at_least=0
    )
    num_generations: int = option(1, "responses sampled for each prompt", at_least=1)


@dataclass(frozen=True, kw_only=True)
class ScoreSettings(Settings):
    """What becomes of a score."""

    missing_eos_penalty: float | None = option(
        None, "subtracted from the score of a response that did not end itself", at_least=0
    )
    non_eos_penalty: bool = option(False, "replace the score of a response that did not end itself")
    penalty_reward_value: float = option(-1.0, "the score that non_eos_penalty puts in place")
    normalize_scores: Literal["none", "scale", "shift_and_scale"] = option(
        "none", "divide scores by the standard deviation of all scores so far, with or without taking their mean away"
    )
    normalize_scores_apart: bool = option(
        False,
        "normalize_scores by reward: each by the moments of its own values so far, before its weight, instead of the "
        "sum by those of the sum",
    )
    reward_clip: float | None = option(None, "scores are cut to ± this", above=0)
    overlong_buffer: int | None = option(
        None, "last tokens before response_length over which a penalty rises from 0 to overlong_penalty", at_least=1
    )
    overlong_penalty: float = option(1.0, "overlong_buffer: what is subtracted at response_length", above=0)


@dataclass(frozen=True, kw_only=True)
class KLSettings(Settings):
    """How the policy is held near its reference."""

    kl_coef: float = option(0.05, "weight of the per-token KL penalty", at_least=0)
    kl_estimator: Literal["k1", "k2", "k3", "abs"] = option("k1", "how a token's KL is estimated from its log-probs")
    kl_in: Literal["reward", "loss"] = option(
        "reward", "reward: the penalty is subtracted at every token; loss: it is a term of the loss, and needs k2 or k3"
    )
    kl_controller: str = option(
        "auto",
        f"what moves kl_coef: {listed(KL_CONTROLLERS)}; auto is adaptive with kl_target, scheduled with kl_coef_final, "
        "else fixed",
        is_place=True,
    )
    kl_target: float | None = option(
        None, "adaptive: objective/kl to be kept; kl_coef then adapts after every update", above=0
    )
    kl_horizon: int = option(10000, "adaptive: episodes over which kl_coef adapts", at_least=1)
    kl_coef_final: float | None = option(None, "scheduled: weight of the penalty in the last update", at_least=0)
    kl_schedule: Literal["linear", "cosine"] = option("linear", "scheduled: the way from kl_coef to kl_coef_final")
    measure_kl: bool | None = option(
        None, "load a reference and measure the KL to it; if not given, where kl_coef > 0 or a reference is named"
    )
    kl_exact_rows: int = option(
        0,
        "rows of each update (of each process) on which the KL is also summed over the whole vocabulary, as "
        "objective/kl_exact: two further forward passes of these rows",
        at_least=0,
    )


@dataclass(frozen=True, kw_only=True)
class AdvantageSettings(Settings):
    """Which action deserves what."""

    score_position: Literal["last_token", "after_eos"] = option(
        "last_token", "step that gets the score; after_eos is TRL's way"
    )
    whiten_rewards: bool = option(False, "scale per-token rewards to unit variance, mean kept")
    whiten_advantages: bool | None = option(
        None,
        "shift and scale advantages to mean 0 and variance 1, over all processes; if not given, where there is a "
        "critic, and for batch_normalized",
    )
    gamma: float = option(1.0, "discount per token", at_least=0, at_most=1)
    lam: float = option(0.95, "lambda of generalised advantage estimation", at_least=0, at_most=1)
    lam_length_alpha: float | None = option(
        None, "lambda of the policy by length, 1 − 1 / (this × tokens), instead of lam; 0.05 is usual", above=0
    )
    lam_critic: float | None = option(
        None, "lambda of the critic's targets, if other than lam (1 is the plain return)", at_least=0, at_most=1
    )
    bootstrap_truncated: bool = option(
        False, "value the state where a response was cut off, instead of ending it with 0"
    )
    advantage: str = option(
        "gae",
        f"{listed(ADVANTAGES)}. gae needs a critic, and so do turn_gae, which counts turns of a response instead of "
        "tokens, and gae_by_reward, whose critic has a value for each of several rewards; the others named here have "
        "none: a row against its group, or returns against the batch",
        is_place=True,
    )


@dataclass(frozen=True, kw_only=True)
class PolicySettings(Settings):
    """How the policy learns from a rollout."""

    num_ppo_epochs: int = option(4, "passes over each rollout", at_least=1)
    num_mini_batches: int = option(1, "optimizer steps in each pass", at_least=1)
    entropy_coef: float = option(0.0, "weight of the entropy of the policy, added to what is maximised", at_least=0)
    loss_aggregation: str = option(
        "token_mean",
        f"how token losses of a minibatch add up: {listed(LOSS_AGGREGATIONS)}. In this order: mean of tokens; mean of "
        "rows of their mean, sum, or sum divided by response_length; plain sum",
        is_place=True,
    )
    mask_truncated_completions: bool = option(False, "nothing is learned from responses that were cut off")
    max_broken_updates: int = option(
        3,
        "updates in a row whose gradient may not be finite, and whose step is left out, before the run ends",
        at_least=1,
    )
    early_stop_kl: float | None = option(
        None, "no further epoch once policy/approxkl_avg of one is above 1.5 × this", above=0
    )
    ratio_cap: float | None = option(
        None,
        "largest ratio that a token's loss counts with; if not given 20 for divergences, no limit for the others",
        above=0,
    )


@dataclass(frozen=True, kw_only=True)
class CriticSettings(Settings):
    """When and how the critic learns."""

    critic: Literal["joint", "decoupled"] = option(
        "joint", "joint: policy and critic take every step together; decoupled: the critic trains after the policy"
    )
    critic_schedule: str | None = option(
        None, f"when policy and critic train, in place of critic: {listed(CRITIC_SCHEDULES)}", is_place=True
    )
    critic_trunk: Literal["separate", "shared", "adapter"] = option(
        "separate",
        "separate: the critic is a model of its own; shared: a value head on the policy's trunk, one pass for both; "
        "adapter: adapters of its own on the frozen weights under the policy's adapters",
    )
    cliprange_value: float = option(0.2, "linear head: how far a value may move from its value at rollout", above=0)
    vf_coef: float = option(0.1, "joint: weight of the value loss", at_least=0)
    vf_learning_rate: float | None = option(
        None, "peak step size of the critic (shared trunk: of its head); learning_rate if not given", at_least=0
    )
    num_vf_epochs: int = option(1, "decoupled: passes of the critic over a rollout", at_least=1)
    vf_update_frequency: int = option(
        1, "decoupled: the critic trains on every Nth rollout, and on the last", at_least=1
    )
    vf_warmup_updates: int = option(
        0, "first updates in which only the critic trains (shared trunk: its head)", at_least=0
    )
    vf_warmup_lam: float = option(
        1.0, "lambda of the critic's targets in those updates; 1 is the Monte-Carlo return", at_least=0, at_most=1
    )


@dataclass(frozen=True, kw_only=True)
class EpisodeReportSettings(Settings):
    """What is shown and recorded of the episodes."""

    log_style: Literal["dashboard", "line", "two_line"] = option(
        "dashboard",
        "what is shown of an update. dashboard: live on a terminal, a line elsewhere; line: the headline; two_line: "
        "the losses of policy and critic",
    )
    health_checks: bool = option(
        True, "hold every logged update against the rules of docs/health.md; what they find is told and recorded"
    )
    num_sample_generations: int = option(10, "tables of sample completions in the run; 0 for none", at_least=0)
    log_rollouts: bool = option(True, "write every episode to rollouts.jsonl")
    dump_rollouts: str | None = option(None, "folder for every rollout with all that training needs of it, as tensors")
    replay_rollouts: str | None = option(
        None, "train from the rollouts and scores in this folder, as dump_rollouts left them, instead of generating"
    )
    rollouts_max_mib: float | None = option(
        None, "size at which rollouts.jsonl and tokens.jsonl each take no more rows, in MiB; no limit if not given",
        above=0,
    )  # fmt: skip
    record_token_rows: int = option(
        2, "rows of each logged update that tokens.jsonl has token by token, the first of largest mean |A|; 0 for none",
        at_least=0, at_most=64,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AllSettings(
    # Fields stand in the opposite order: dataclasses read their bases from the last to the first.
    SavingSettings,
    EpisodeReportSettings,
    EvaluationSettings,
    ReportSettings,
    OptimizerSettings,
    BatchSettings,
    CriticTextSettings,
    CriticTrainingSettings,
    SeveralCriticsSettings,
    ValueHeadSettings,
    CriticSettings,
    AuxiliarySettings,
    TrustRegionSettings,
    CorrectionSettings,
    PolicySettings,
    TurnSettings,
    AdvantageSettings,
    KLSettings,
    ScoreSettings,
    RewardSettings,
    StalenessSettings,
    EngineChoice,
    SamplingSettings,
    SelectionSettings,
    PromptSettings,
    DataSettings,
    RoleSettings,
    ScalingSettings,
    OneBaseSettings,
    ModelSettings,
    RunSettings,
):
    """All settings of a PPO run."""
