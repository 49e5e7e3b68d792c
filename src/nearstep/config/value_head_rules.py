"""Which settings of the critic's head clash, and which have no effect. A head with a range needs returns with one."""

from collections.abc import Iterator

from nearstep.config.axes import RANGED_HEADS, VALUE_HEADS, name_problems
from nearstep.config.sections import AllSettings
from nearstep.config.settings import Problem, without_effect


def range_problems(config: AllSettings, head: str, *, kl_penalty: bool) -> Iterator[Problem]:
    """Why returns have no range that could be declared, for a head that has one."""
    if config.kl_in == "reward" and kl_penalty:
        yield Problem(
            f"{head} holds values in a range, and kl_in = reward (kl_coef = {config.kl_coef:g}) subtracts a KL "
            "penalty without a limit at every token: use kl_in = loss (with kl_estimator = k2 or k3), or kl_coef = 0",
            ("value_head", "kl_in", "kl_coef", "kl_target", "kl_coef_final", "kl_controller"),
        )
    if config.whiten_rewards:
        yield Problem(
            f"{head} holds values in a range, and whiten_rewards divides rewards by another number in every update: "
            "leave it out",
            ("value_head", "whiten_rewards"),
        )
    if config.normalize_scores != "none" and config.reward_clip is None:
        yield Problem(
            f"{head} holds values in a range, and normalize_scores = {config.normalize_scores} gives scores none: set "
            "reward_clip as well, which cuts them to ± that",
            ("value_head", "normalize_scores", "reward_clip"),
        )


def value_head_problems(config: AllSettings, *, kl_penalty: bool) -> Iterator[Problem]:
    """Combinations that are refused, where there is a critic."""
    head, named = config.value_head, f"value_head = {config.value_head}"
    yield from name_problems("value_head", head, VALUE_HEADS)
    if head in RANGED_HEADS:
        yield from range_problems(config, named, kl_penalty=kl_penalty)
        yield from _declared_range(config, named)
    if head == "ensemble" and config.num_generations < config.value_members:
        yield Problem(
            f"{named} trains each of value_members = {config.value_members} heads on other responses of every prompt: "
            f"num_generations must be at least {config.value_members}",
            ("value_head", "value_members", "num_generations"),
        )
    if config.vf_frozen and config.critic_trunk == "shared":
        yield Problem(
            "vf_frozen: with critic_trunk = shared all but the critic's head are the policy's weights, and train with "
            "it: use critic_trunk = separate or adapter",
            ("vf_frozen", "critic_trunk"),
        )
    yield from _several_critics_problems(config)
    if config.advantage == "gae_by_reward":
        yield from _by_reward_problems(config)


def _several_critics_problems(config: AllSettings) -> Iterator[Problem]:
    count = config.critic_models
    if count > 1 and config.num_generations < count:
        yield Problem(
            f"critic_models = {count} trains each critic on other responses to every prompt: num_generations must be "
            f"at least {count}",
            ("critic_models", "num_generations"),
        )
    if count > 1 and config.critic_trunk != "separate":
        yield Problem(
            f"critic_models = {count} are models of their own, and with critic_trunk = {config.critic_trunk} the "
            "critic is made from the policy's weights: use critic_trunk = separate, or value_head = ensemble",
            ("critic_models", "critic_trunk"),
        )
    if count > 1 and config.value_head == "ensemble":
        yield Problem(
            f"critic_models = {count} and value_head = ensemble both make the value a mean of several: give one",
            ("critic_models", "value_head"),
        )


def _by_reward_problems(config: AllSettings) -> Iterator[Problem]:
    """What a critic with a value for each reward cannot do beside it."""
    clashes = {
        "value_head": (config.value_head != "linear", "the critic has a head of its own then, a value for each reward"),
        "critic_models": (config.critic_models > 1, "one critic has a value for each reward"),
        "score_position": (config.score_position == "after_eos", "rewards stand on the last token"),
        "baseline_fallback": (config.baseline_fallback != "none", "it belongs to advantage = gae"),
        "vf_pretrain_rollouts": (config.vf_pretrain_rollouts is not None, "these have the sums of rewards alone"),
    }
    for name, (is_set, why) in clashes.items():
        if is_set:
            yield Problem(f"{name} and advantage = gae_by_reward: {why}. Leave one out", (name, "advantage"))


def _declared_range(config: AllSettings, named: str) -> Iterator[Problem]:
    low, high = config.value_min, config.value_max
    if low is None or high is None:
        yield Problem(
            f"{named} needs value_min and value_max: the least and the largest return of a response, after everything "
            "that is done to scores. A reward without limits is given some by reward_clip",
            ("value_head", "value_min", "value_max"),
        )
        return
    if low >= high:
        yield Problem(f"value_min = {low:g} must be below value_max = {high:g}", ("value_min", "value_max"))
        return
    limits, width = ("value_min", "value_max"), high - low
    if config.non_eos_penalty and not low <= config.penalty_reward_value <= high:
        yield Problem(
            f"penalty_reward_value = {config.penalty_reward_value:g} lies outside value_min = {low:g} and value_max = "
            f"{high:g}, so the critic could not learn it",
            ("penalty_reward_value", "non_eos_penalty", *limits),
        )
    penalties = {"missing_eos_penalty": config.missing_eos_penalty or 0.0}
    if config.overlong_buffer is not None:
        penalties["overlong_penalty"] = config.overlong_penalty
    for name, size in penalties.items():
        if size >= width:  # a reward of one number alone would fit beside a penalty as wide as the range
            yield Problem(
                f"{name} = {size:g} takes all that lies between value_min = {low:g} and value_max = {high:g}: "
                "the range is that of returns with their penalties, so lower value_min",
                (name, *limits),
            )


def value_head_remarks(config: AllSettings) -> Iterator[str]:
    """Settings of other heads than the chosen one."""
    head, chosen = config.value_head, f"with value_head = {config.value_head}"
    yield from without_effect(
        config,
        (chosen, head not in RANGED_HEADS, ("value_min", "value_max")),
        (chosen, head != "hl_gauss", ("value_bins", "value_sigma")),
        (chosen, head != "quantile", ("value_quantiles", "value_huber")),
        (chosen, head != "ensemble", ("value_members",)),
        (f"{chosen}, which does not clip values", head != "linear", ("cliprange_value",)),
        ("with advantage = gae_by_reward", config.advantage == "gae_by_reward", ("cliprange_value",)),
        ("without entropy_coef", config.entropy_coef == 0, ("entropy_mask_share",)),
    )
