"""Which object stands on each axis of the algorithm: the user's own, one from a file, or the one that a name means."""

from dataclasses import dataclass, fields

from nearstep.algorithm.advantage_rules import Advantage, advantage_name
from nearstep.algorithm.aggregation import LossAggregation
from nearstep.algorithm.by_reward import GAEByReward, RewardsHead
from nearstep.algorithm.correction import UNCORRECTED, CorrectionRule
from nearstep.algorithm.kl_controllers import KLController
from nearstep.algorithm.several_outputs import HasMembers
from nearstep.algorithm.trust_regions import TrustRegion
from nearstep.algorithm.value_heads import (
    LinearHead,
    ValueHead,
)
from nearstep.assembly.axis_checks import (
    fitting_advantage,
    fitting_aggregation,
    fitting_correction,
    fitting_kl_controller,
    fitting_schedule,
    fitting_trust_region,
    fitting_value_head,
    require_no_critic_phase,
)
from nearstep.assembly.corrections import CORRECTIONS, shipped_correction, with_veto
from nearstep.assembly.inputs import RunInputs
from nearstep.assembly.named_axes import (
    ADVANTAGES,
    COMPARE_PROBABILITIES,
    COMPARE_TOKENS,
    CRITIC_SCHEDULES,
    DIVERGENCE_RATIO_LIMIT,
    DIVERGENCE_REGIONS,
    KL_CONTROLLERS,
    LOSS_AGGREGATIONS,
    TRUST_REGIONS,
    VALUE_HEADS,
)
from nearstep.common.errors import ConfigError, shorten
from nearstep.common.plugins import load_object, made
from nearstep.config.ppo import PPOConfig
from nearstep.config.ppo_rules import critic_schedule_name, kl_controller_name, may_have_kl_penalty
from nearstep.config.value_head_rules import range_problems
from nearstep.training.schedules import CriticSchedule, PolicyOnly, WarmUp

OPEN_AXES = (
    "trust_region", "advantage", "kl_controller", "critic_schedule", "loss_aggregation", "value_head",
    "correction",
)  # of RunInputs  # fmt: skip


@dataclass(frozen=True)
class Axes:
    """The choice on each axis, checked."""

    trust_region: TrustRegion
    ratio_limit: float | None  # largest ratio that a token's loss counts with
    advantage: Advantage
    whiten_advantages: bool
    kl_controller: KLController
    kl_penalty: bool  # whether the KL may cost something in some update
    critic_schedule: CriticSchedule
    loss_aggregation: LossAggregation
    value_head: ValueHead
    correction: CorrectionRule
    notes: tuple[str, ...]  # what the user should know of objects of their own


def choose_axes(config: PPOConfig, inputs: RunInputs, updates: int, *, rewards: int = 1) -> Axes:
    """Every axis by the user's object, else by the settings, in a run with so many rewards. Raises ConfigError for what
    does not fit."""
    region = trust_region(config, inputs.trust_region)
    rule = advantage(config, inputs.advantage)
    controller = kl_controller(config, inputs.kl_controller, updates)
    schedule = critic_schedule(config, inputs.critic_schedule, rule, updates)
    aggregation = loss_aggregation(config, inputs.loss_aggregation)
    if config.ratio_level != "token" and isinstance(region, (*COMPARE_PROBABILITIES, *COMPARE_TOKENS)):
        compares_tokens = isinstance(region, COMPARE_TOKENS)
        what = "the ratios of a row's tokens" if compares_tokens else "distributions of single tokens"
        raise ConfigError(
            f"trust region {type(region).__name__} compares {what}: with ratio_level = {config.ratio_level} use one "
            "that looks at the ratio of a token alone, such as Clip"
        )
    if inputs.kl_controller is not None:
        _require_kl(config)
    kl_penalty = may_have_kl_penalty(config) or inputs.kl_controller is not None
    head = value_head(config, inputs.value_head, rule, kl_penalty=kl_penalty, rewards=rewards)
    return Axes(
        trust_region=region,
        ratio_limit=ratio_limit(config, region),
        advantage=rule,
        whiten_advantages=whitens(config, rule),
        kl_controller=controller,
        kl_penalty=kl_penalty,
        critic_schedule=schedule,
        loss_aggregation=aggregation,
        value_head=head,
        correction=correction(config, inputs.correction),
        notes=tuple(
            f"{name} is an object of your own: {type(found).__name__}."
            for name in OPEN_AXES
            if (found := vars(inputs)[name]) is not None
        ),
    )


def trust_region(config: PPOConfig, own: object = None) -> TrustRegion:
    """How far a step may go. Raises ConfigError for an object that is no trust region."""
    if own is None and config.trust_region in TRUST_REGIONS:
        return TRUST_REGIONS[config.trust_region](config)
    return fitting_trust_region(*own_object("trust region", "trust_region", config, config.trust_region, own))


def ratio_limit(config: PPOConfig, region: TrustRegion) -> float | None:
    """The largest ratio that counts: ratio_cap if given, else 20 for divergences and none for the others."""
    if config.ratio_cap is None and isinstance(region, DIVERGENCE_REGIONS):
        return DIVERGENCE_RATIO_LIMIT
    return config.ratio_cap


def advantage(config: PPOConfig, own: object = None) -> Advantage:
    """Which action deserves what. Raises ConfigError for an object that is no rule for it."""
    if own is None and config.advantage in ADVANTAGES:
        return ADVANTAGES[config.advantage](config)
    found, what = own_object("advantage", "advantage", config, config.advantage, own)
    if config.baseline_fallback != "none":
        raise ConfigError(
            f"baseline_fallback belongs to advantage = gae, and this is {what}: leave it out, and put the rule into "
            "nearstep.algorithm.baselines.ExplainedBaseline(rule)"
        )
    return fitting_advantage(found, what, config.num_generations)


def whitens(config: PPOConfig, rule: Advantage) -> bool:
    """Whether advantages are whitened: as given, else where there is a critic, and for batch_normalized."""
    if config.whiten_advantages is not None:
        return config.whiten_advantages
    return rule.needs_critic or config.advantage == "batch_normalized"


def kl_controller(config: PPOConfig, own: object, updates: int) -> KLController:
    """What the KL to the reference costs. Raises ConfigError for an object that is no controller."""
    name = kl_controller_name(config)
    if own is None and name in KL_CONTROLLERS:
        return KL_CONTROLLERS[name](config)
    found, what = own_object("KL controller", "kl_controller", config, name, own)
    return fitting_kl_controller(found, what, updates)


def critic_schedule(config: PPOConfig, own: object, rule: Advantage, updates: int) -> CriticSchedule:
    """When policy and critic train. Raises ConfigError for what is no schedule, or trains what is not there."""
    name = critic_schedule_name(config)
    epochs = config.num_ppo_epochs if name == "joint" else config.num_vf_epochs
    if own is None and name in CRITIC_SCHEDULES:
        if not rule.needs_critic:
            return PolicyOnly(config.num_ppo_epochs)
        chosen = CRITIC_SCHEDULES[name](config, updates)
    else:
        found, what = own_object("critic schedule", "critic_schedule", config, name, own)
        if config.vf_reweight != "none":
            raise ConfigError(f"vf_reweight: a {what} says so itself, by Phase(…, reweight=RatioBand()); leave it out")
        chosen = fitting_schedule(found, what, updates)
        if not rule.needs_critic:
            require_no_critic_phase(chosen, what, f"advantage {advantage_name(rule)}", updates)
            return chosen
    if config.vf_warmup_updates == 0:
        return chosen
    return WarmUp(chosen, config.vf_warmup_updates, epochs, config.vf_warmup_until)


def loss_aggregation(config: PPOConfig, own: object = None) -> LossAggregation:
    """How token losses add up. Raises ConfigError for an object that is no aggregation."""
    if own is None and config.loss_aggregation in LOSS_AGGREGATIONS:
        return LOSS_AGGREGATIONS[config.loss_aggregation](config)
    return fitting_aggregation(
        *own_object("loss aggregation", "loss_aggregation", config, config.loss_aggregation, own)
    )


def value_head(config: PPOConfig, own: object, rule: Advantage, *, kl_penalty: bool, rewards: int = 1) -> ValueHead:
    """What the critic's outputs mean; a linear head where there is no critic. Raises ConfigError for an object that is
    no head, or that has a range which the returns have not."""
    if not rule.needs_critic:
        if own is not None:
            raise ConfigError(f"value_head: advantage {advantage_name(rule)} has no critic; leave it out")
        return LinearHead(config.cliprange_value)
    if isinstance(rule, GAEByReward):
        return _head_by_reward(config, own, rewards)
    if own is None and config.value_head in VALUE_HEADS:
        head, what = VALUE_HEADS[config.value_head](config), f"value_head = {config.value_head}"
    else:
        found, what = own_object("value head", "value_head", config, config.value_head, own)
        head = fitting_value_head(found, what)
    if config.critic_models == 1 and not isinstance(head, HasMembers):
        for name in ("advantage_mask_share", "entropy_mask_share"):
            if vars(config)[name] > 0:
                raise ConfigError(
                    f"{name} goes by how far the members of a critic disagree, and {what} has none: set critic_models "
                    "= 2 or value_head = ensemble, or give a head of your own by_member(outputs)"
                )
    if head.value_range is not None:
        problem = next(range_problems(config, what, kl_penalty=kl_penalty), None)
        if problem is not None:
            raise ConfigError(problem.text)
    return head


def _head_by_reward(config: PPOConfig, own: object, rewards: int) -> RewardsHead:
    """A value for each reward. Raises ConfigError beside another head, and where there is one reward."""
    if own is not None:
        raise ConfigError(
            "value_head: with advantage gae_by_reward the critic has a value for each reward; leave it out"
        )
    if rewards < 2:
        raise ConfigError("advantage = gae_by_reward is for several rewards, and the run has one: use advantage = gae")
    weights = config.reward_weights or (1.0,) * rewards
    if len(weights) != rewards:
        raise ConfigError(f"reward_weights has {len(weights)} numbers for {rewards} rewards: give one for each")
    return RewardsHead(tuple(weights))


def correction(config: PPOConfig, own: object = None) -> CorrectionRule:
    """What corrects for an engine that is not quite the trainer.

    Raises ConfigError for an object that is no correction, and for one that would have nothing to correct.
    """
    if config.anchor == "sampled":
        if own is not None:
            raise ConfigError(
                "correction: with anchor = sampled the ratio is π/μ itself, and there is nothing to correct: set "
                "anchor = recomputed or interpolated"
            )
        return UNCORRECTED
    if own is None and config.correction in CORRECTIONS:
        chosen = shipped_correction(config)
    else:
        chosen = fitting_correction(*own_object("correction", "correction", config, config.correction, own))
    return with_veto(chosen) if config.correction_veto else chosen


def critic_learning_rate(config: PPOConfig) -> float:
    """Peak step size of the critic."""
    return config.learning_rate if config.vf_learning_rate is None else config.vf_learning_rate


def own_object(kind: str, setting: str, config: PPOConfig, name: str, own: object) -> tuple[object, str]:
    """The user's object and what messages call it: the one that was passed, else the one in the file.

    Raises ConfigError where both are given, or the file has none.
    """
    if own is None:
        return load_object(name, kind=kind, error=ConfigError), f"{kind} {name!r}"
    named = vars(config)[setting]
    if named != next(field.default for field in fields(config) if field.name == setting):
        raise ConfigError(f"{setting}: an object was passed, and the settings say {setting} = {named}: give one")
    if isinstance(own, str):
        raise ConfigError(
            f"{setting} = {shorten(own)} is a name, and an object is expected here: give the object, or put the name "
            f"into the settings, PPOConfig({setting}={shorten(own)})"
        )
    found = made(own, setting, ConfigError)
    return found, f"{kind} {type(found).__name__}"


def _require_kl(config: PPOConfig) -> None:
    """The rules of kl_coef, for a controller that was passed as an object."""
    if config.measure_kl is False:
        raise ConfigError("kl_controller: a KL penalty needs the KL, and measure_kl = false: leave one of the two out")
    if config.kl_in == "loss" and config.kl_estimator in ("k1", "abs"):
        raise ConfigError("kl_in = loss needs kl_estimator = k2 or k3: the gradient of k1 is 0 on average")
