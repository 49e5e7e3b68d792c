"""Which settings of the critic's training clash, and which have no effect beside others."""

from collections.abc import Iterator

from nearstep.config.sections import AllSettings
from nearstep.config.settings import Problem, without_effect


def critic_training_problems(config: AllSettings, *, schedule: str, own_advantage: bool) -> Iterator[Problem]:
    """Combinations that are refused, in a run that has a critic; `schedule` says when it trains."""
    if config.vf_reweight == "ratio" and schedule != "decoupled":
        way_out = (
            "them: give critic = decoupled"
            if schedule == "joint"
            else f"them: critic_schedule = {schedule} says so itself, by Phase(…, reweight=RatioBand())"
        )
        yield Problem(
            "vf_reweight = ratio weighs states by what the policy's steps have changed, so the critic must train after "
            + way_out,
            ("vf_reweight", "critic", "critic_schedule", "advantage"),
        )
    if config.vf_warmup_until is not None and config.vf_warmup_updates == 0:
        yield Problem(
            "vf_warmup_until ends a start of the critic alone early, and vf_warmup_updates = 0 has none: give the most "
            "updates that the policy may wait",
            ("vf_warmup_until", "vf_warmup_updates", "advantage"),
        )
    if config.baseline_fallback != "none" and config.advantage == "turn_gae":
        yield Problem(
            "baseline_fallback compares returns of tokens, and advantage = turn_gae has those of turns: use gae",
            ("baseline_fallback", "advantage"),
        )
    if config.vf_pretrain_rollouts is not None and config.critic_columns:
        yield Problem(
            "vf_pretrain_rollouts has no columns of the data set, which the critic reads with critic_columns: leave "
            "one out",
            ("vf_pretrain_rollouts", "critic_columns"),
        )
    if config.vf_pretrain_rollouts is not None and config.normalize_scores_apart:
        yield Problem(
            "normalize_scores_apart scales every reward by itself, and vf_pretrain_rollouts has their sums alone: "
            "leave one out",
            ("vf_pretrain_rollouts", "normalize_scores_apart"),
        )
    if config.baseline_fallback != "none" and own_advantage:
        yield Problem(
            "baseline_fallback belongs to advantage = gae: put your own rule into "
            "nearstep.algorithm.baselines.ExplainedBaseline(rule)",
            ("baseline_fallback", "advantage"),
        )


def critic_training_remarks(config: AllSettings, *, has_critic: bool) -> Iterator[str]:
    """Settings without effect beside others."""
    policy_course = config.lr_scheduler_type
    constant = (config.vf_lr_scheduler_type or policy_course) == "constant"
    rises = not constant and config.vf_lr_warmup_steps is None and has_critic  # the critic's, over warmup_steps
    yield from without_effect(
        config,
        ("with a constant learning rate", policy_course == "constant" and not rises, ("warmup_steps",)),
    )
    if has_critic:
        yield from without_effect(
            config,
            ("without vf_reweight = ratio", config.vf_reweight == "none", ("vf_reweight_low", "vf_reweight_high")),
            ("without vf_pretrain_rollouts", config.vf_pretrain_rollouts is None, ("vf_pretrain_epochs",)),
            (
                "with fork_from, for the critic is that of the checkpoint",
                config.fork_from is not None,
                ("vf_pretrain_rollouts", "vf_pretrain_epochs"),
            ),
            ("with a constant learning rate of the critic", constant, ("vf_lr_warmup_steps",)),
        )
