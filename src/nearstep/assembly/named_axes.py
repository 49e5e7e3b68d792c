"""Which object each name on an axis of the algorithm stands for, made from the settings."""

from collections.abc import Callable, Mapping

from nearstep.algorithm.advantage_rules import GAE, GDPO, Advantage, AgainstGroup, DiscountedReturn
from nearstep.algorithm.aggregation import LossAggregation, SequenceMean, SequenceSum, TokenMean, TokenSum
from nearstep.algorithm.baselines import ExplainedBaseline
from nearstep.algorithm.by_reward import GAEByReward
from nearstep.algorithm.kl_controllers import AdaptiveKL, FixedKL, KLController, ScheduledKL
from nearstep.algorithm.row_regions import CPPO, SAT, TRM, VACO
from nearstep.algorithm.several_outputs import EnsembleHead, QuantileHead
from nearstep.algorithm.soft_regions import CISPO, DIS, DRPO, SAPO, SPO
from nearstep.algorithm.trust_regions import BinaryKL, BinaryTV, Clip, TopKKL, TopKTV, TrustRegion, Unbounded
from nearstep.algorithm.turn_rules import TurnGAE
from nearstep.algorithm.value_heads import BCEHead, BoundedHead, HLGaussHead, LinearHead, ValueHead
from nearstep.config.ppo import PPOConfig
from nearstep.training.schedules import CriticSchedule, Decoupled, Joint, RatioBand

TV_THRESHOLD, KL_THRESHOLD = 0.15, 0.05  # 2602.04879, sanity test
DIVERGENCE_REGIONS = (BinaryTV, BinaryKL, TopKTV, TopKKL)
COMPARE_PROBABILITIES = (*DIVERGENCE_REGIONS, DRPO, CPPO, TRM)  # of single tokens
COMPARE_TOKENS = (SAT,)  # of a row, which have one ratio at other levels
DIVERGENCE_RATIO_LIMIT = 20.0

# Every name of config.axes has its line here; a test compares the two.
TRUST_REGIONS: Mapping[str, Callable[[PPOConfig], TrustRegion]] = {
    "clip": lambda c: Clip(*_clip_range(c), c.dual_clip),
    "binary_tv": lambda c: BinaryTV(*_thresholds(c, TV_THRESHOLD)),
    "binary_kl": lambda c: BinaryKL(*_thresholds(c, KL_THRESHOLD)),
    "topk_tv": lambda c: TopKTV(*_thresholds(c, TV_THRESHOLD), c.divergence_top_k),
    "topk_kl": lambda c: TopKKL(*_thresholds(c, KL_THRESHOLD), c.divergence_top_k),
    "unbounded": lambda _: Unbounded(),
    "spo": lambda c: SPO(_either(c.region_threshold, SPO.threshold)),
    "drpo": lambda c: DRPO(_either(c.region_threshold, DRPO.threshold)),
    "sapo": lambda c: SAPO(c.sapo_tau, c.sapo_tau_negative),
    "dis": lambda c: DIS(_either(c.region_low, DIS.low), _either(c.region_high, DIS.high)),
    "cispo": lambda c: CISPO(_either(c.region_low, CISPO.low), _either(c.region_high, CISPO.high)),
    "cppo": lambda c: CPPO(_either(c.region_threshold, CPPO.threshold), c.cppo_floor),
    "trm": lambda c: TRM(_either(c.region_threshold, TRM.threshold)),
    "vaco": lambda c: VACO(_either(c.region_threshold, VACO.threshold)),
    "sat": lambda c: SAT(*_clip_range(c), c.sat_share, c.sat_contraction),
}
ADVANTAGES: Mapping[str, Callable[[PPOConfig], Advantage]] = {
    "gae": lambda c: _with_fallback(c, _gae(c)),
    "turn_gae": lambda c: TurnGAE(
        c.turn_gamma, c.turn_lam, c.lam_critic, warmup_updates=c.vf_warmup_updates, warmup_lam=c.vf_warmup_lam
    ),
    "gae_by_reward": lambda c: GAEByReward(_gae(c)),
    "group_mean": lambda _: AgainstGroup("group_mean"),
    "group_normalized": lambda _: AgainstGroup("group_normalized"),
    "leave_one_out": lambda _: AgainstGroup("leave_one_out"),
    "gdpo": lambda _: GDPO(),
    "batch_normalized": lambda c: DiscountedReturn(c.gamma),
}
KL_CONTROLLERS: Mapping[str, Callable[[PPOConfig], KLController]] = {
    "fixed": lambda c: FixedKL(c.kl_coef),
    "adaptive": lambda c: AdaptiveKL(c.kl_coef, c.kl_target or 0.0, c.kl_horizon),
    "scheduled": lambda c: ScheduledKL(c.kl_coef, c.kl_coef_final or 0.0, c.kl_schedule),
}
CRITIC_SCHEDULES: Mapping[str, Callable[[PPOConfig, int], CriticSchedule]] = {
    "joint": lambda c, _: Joint(c.num_ppo_epochs),
    "decoupled": lambda c, updates: Decoupled(
        c.num_ppo_epochs, c.num_vf_epochs, c.vf_update_frequency, updates, _reweight(c)
    ),
}
LOSS_AGGREGATIONS: Mapping[str, Callable[[PPOConfig], LossAggregation]] = {
    "token_mean": lambda _: TokenMean(),
    "sequence_mean": lambda _: SequenceMean(),
    "sequence_sum": lambda _: SequenceSum(),
    "sequence_sum_norm": lambda c: SequenceSum(c.response_length),
    "token_sum": lambda _: TokenSum(),
}
VALUE_HEADS: Mapping[str, Callable[[PPOConfig], ValueHead]] = {
    "linear": lambda c: LinearHead(c.cliprange_value),
    "bounded": lambda c: BoundedHead(*_value_range(c)),
    "bce": lambda c: BCEHead(*_value_range(c)),
    "hl_gauss": lambda c: HLGaussHead(*_value_range(c), c.value_bins, c.value_sigma),
    "quantile": lambda c: QuantileHead(c.value_quantiles, c.value_huber),
    "ensemble": lambda c: EnsembleHead(c.value_members),
}


def _gae(config: PPOConfig) -> GAE:
    return GAE(
        config.gamma,
        config.lam,
        config.lam_length_alpha,
        config.lam_critic,
        warmup_updates=config.vf_warmup_updates,
        warmup_lam=config.vf_warmup_lam,
    )


def _with_fallback(config: PPOConfig, rule: Advantage) -> Advantage:
    return rule if config.baseline_fallback == "none" else ExplainedBaseline(rule, config.gamma)


def _reweight(config: PPOConfig) -> RatioBand | None:
    return None if config.vf_reweight == "none" else RatioBand(config.vf_reweight_low, config.vf_reweight_high)


def _clip_range(config: PPOConfig) -> tuple[float, float]:
    return config.cliprange, _either(config.cliprange_high, config.cliprange)


def _either(given: float | None, default: float) -> float:
    return default if given is None else given


def _thresholds(config: PPOConfig, default: float) -> tuple[float, float]:
    return _either(config.divergence_low, default), _either(config.divergence_high, default)


def _value_range(config: PPOConfig) -> tuple[float, float]:
    low, high = config.value_min, config.value_max
    assert low is not None, "the settings were checked"
    assert high is not None, "the settings were checked"
    return low, high
