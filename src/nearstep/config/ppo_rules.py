"""Which settings clash, and which have no effect beside others."""

from collections.abc import Iterator

from nearstep.config.auxiliary import auxiliary_problems, auxiliary_remarks
from nearstep.config.axes import (
    ADVANTAGES,
    CRITIC_RULES,
    CRITIC_SCHEDULES,
    GROUP_RULES,
    KL_CONTROLLERS,
    LOSS_AGGREGATIONS,
    RULES_BY_PART,
    TRUST_REGIONS,
    is_own,
    name_problems,
)
from nearstep.config.correction import correction_problems, correction_remarks
from nearstep.config.critic_text import critic_text_problems, critic_text_remarks
from nearstep.config.critic_training import CRITIC_TRAINING
from nearstep.config.critic_training_rules import critic_training_problems, critic_training_remarks
from nearstep.config.data import data_problems, prompt_problems, prompt_remarks
from nearstep.config.engines import engine_problems, engine_remarks
from nearstep.config.evaluating import evaluation_problems
from nearstep.config.one_base import VF_LORA
from nearstep.config.regions import region_problems, region_remarks
from nearstep.config.responses import response_problems, response_remarks
from nearstep.config.rewards import compares_groups, reward_problems, reward_remarks
from nearstep.config.sections import AllSettings, KLSettings
from nearstep.config.selection import selection_problems, selection_remarks
from nearstep.config.settings import Problem, without_effect
from nearstep.config.several_critics import SEVERAL_CRITICS
from nearstep.config.shared import LORA
from nearstep.config.turns import turn_remarks
from nearstep.config.value_head_rules import value_head_problems, value_head_remarks
from nearstep.config.value_heads import VALUE_HEAD_SETTINGS

CRITIC_SETTINGS = (
    "value_model_path", "lam", "lam_critic", "bootstrap_truncated", "score_position", "critic", "critic_schedule",
    "critic_trunk", "cliprange_value", "vf_coef", "vf_learning_rate", "num_vf_epochs", "vf_update_frequency",
    "vf_warmup_updates", "vf_warmup_lam", "lam_length_alpha", "critic_columns",
    *VALUE_HEAD_SETTINGS, *SEVERAL_CRITICS, *CRITIC_TRAINING, *VF_LORA,
)  # fmt: skip


def clashes(config: AllSettings) -> Iterator[Problem]:
    """Settings that contradict each other. Types and limits are checked before."""
    yield from data_problems(config)
    yield from prompt_problems(config, config.dataset_name, config.total_episodes)
    yield from selection_problems(config, streaming=config.streaming, num_generations=config.num_generations)
    if config.gate == "value_gap" and _no_critic(config):
        yield Problem(
            f"gate = value_gap reads the critic, and advantage = {config.advantage} has none", ("gate", "advantage")
        )
    yield from reward_problems(config)
    yield from evaluation_problems(config, config.eval_steps)
    yield from _stop_problems(config)
    yield from _batch_problems(config)
    yield from _group_problems(config)
    yield from _axis_problems(config)
    yield from _kl_problems(config)
    yield from response_problems(config)
    yield from region_problems(config)
    yield from correction_problems(config)
    yield from auxiliary_problems(config)
    yield from _critic_problems(config)
    if not _no_critic(config):
        yield from value_head_problems(config, kl_penalty=may_have_kl_penalty(config))
        own, schedule = is_own(config.advantage), critic_schedule_name(config)
        yield from critic_training_problems(config, schedule=schedule, own_advantage=own)
    yield from critic_text_problems(config, trunk=config.critic_trunk)
    yield from _advantage_problems(config)
    yield from engine_problems(config, use_cpu=config.use_cpu)
    if config.bf16 and config.dtype == "float64":
        yield Problem("bf16 computes in bfloat16 and dtype = float64 asks for more: give one", ("bf16", "dtype"))


def remarks(config: AllSettings) -> Iterator[str]:
    """Settings without effect, and one whose effect surprises."""
    yield from response_remarks(config)
    adam = ("adam_beta1", "adam_beta2", "adam_epsilon")
    adaptive, adapts = ("kl_target", "kl_horizon"), kl_controller_name(config) == "adaptive"
    course, has_course = ("kl_coef_final", "kl_schedule"), kl_controller_name(config) == "scheduled"
    yield from reward_remarks(config)
    yield from prompt_remarks(config, config.dataset_name)
    yield from selection_remarks(config, shuffle_dataset=config.shuffle_dataset)
    yield from _critic_remarks(config)
    yield from critic_training_remarks(config, has_critic=not _no_critic(config))
    yield from region_remarks(config)
    yield from turn_remarks(config, config.advantage)
    yield from critic_text_remarks(config)
    yield from correction_remarks(config, config.engine, config.max_staleness)
    yield from auxiliary_remarks(config)
    yield from engine_remarks(config, response_length=config.response_length)
    yield from without_effect(
        config,
        ("without use_peft", not config.use_peft, LORA),
        ("without non_eos_penalty", not config.non_eos_penalty, ("penalty_reward_value",)),
        ("beside total_episodes", config.total_episodes is not None, ("num_train_epochs",)),
        ("beside batch_size", config.batch_size is not None, ("gradient_accumulation_steps",)),
        ("with optim = sgd", config.optim == "sgd", adam),
        (f"with advantage = {config.advantage}", _no_critic(config), CRITIC_SETTINGS),
        (f"with advantage = {config.advantage}", config.advantage in GROUP_RULES, ("gamma",)),
        (
            f"with advantage = {config.advantage}",
            is_own(config.advantage),
            ("gamma", "lam", "lam_critic", "lam_length_alpha", "vf_warmup_lam"),
        ),
        ("without normalize_scores", config.normalize_scores == "none", ("normalize_scores_apart",)),
        ("without overlong_buffer", config.overlong_buffer is None, ("overlong_penalty",)),
        ("with kl_coef = 0", not may_have_kl_penalty(config), ("kl_in",)),
        ("without kl_target", config.kl_target is None, ("kl_horizon",)),
        ("without kl_coef_final", config.kl_coef_final is None, ("kl_schedule",)),
        (f"with kl_controller = {config.kl_controller}", not adapts and config.kl_target is not None, adaptive),
        (f"with kl_controller = {config.kl_controller}", not has_course and config.kl_coef_final is not None, course),
        (f"with kl_controller = {config.kl_controller}", is_own(config.kl_controller), ("kl_coef",)),
        ("with measure_kl = false", config.measure_kl is False, ("ref_model_path", "kl_estimator")),
        ("with one epoch", config.num_ppo_epochs == 1, ("early_stop_kl",)),
        ("without save_steps", config.save_steps is None, ("save_total_limit",)),
        ("where no row is recorded", not (config.log_rollouts or config.record_token_rows), ("rollouts_max_mib",)),
        ("without push_to_hub", not config.push_to_hub, ("hub_model_id",)),
    )


def _critic_remarks(config: AllSettings) -> Iterator[str]:
    decoupled = ("num_vf_epochs", "vf_update_frequency")
    if not _no_critic(config):
        yield from value_head_remarks(config)
    yield from without_effect(
        config,
        (
            "without vf_warmup_updates and vf_pretrain_rollouts",
            config.advantage in CRITIC_RULES and config.vf_warmup_updates == 0 and config.vf_pretrain_rollouts is None,
            ("vf_warmup_lam",),
        ),
        (
            "with critic = joint",
            critic_schedule_name(config) == "joint" and not _no_critic(config),
            decoupled,
        ),
        (
            "with critic = decoupled, whose loss has an optimizer of its own",
            critic_schedule_name(config) == "decoupled",
            ("vf_coef",),
        ),
    )


def _stop_problems(config: AllSettings) -> Iterator[Problem]:
    stops = ("stop_token", "stop_token_id")
    if config.stop_token not in (None, "auto", "eos") and config.stop_token_id is not None:
        yield Problem("stop_token and stop_token_id both say what ends a response: give one", stops)
    if config.stop_token_id == ():
        yield Problem("stop_token_id is empty: give an id, or stop_token = none for no stop", ("stop_token_id",))
    penalties = {
        "missing_eos_penalty": config.missing_eos_penalty not in (None, 0),
        "non_eos_penalty": config.non_eos_penalty,
    }
    if all(penalties.values()):
        yield Problem("missing_eos_penalty subtracts and non_eos_penalty replaces: give one", tuple(penalties))
    for name, is_set in penalties.items():
        if is_set and config.stop_token is None and config.stop_token_id is None:
            yield Problem(f"{name} needs a stop token: without one it would hit every response", (name, *stops))
    if config.mask_truncated_completions and config.stop_token is None and config.stop_token_id is None:
        yield Problem(
            "mask_truncated_completions needs a stop token: without one every response is cut off",
            ("mask_truncated_completions", *stops),
        )
    if config.overlong_buffer is not None and config.overlong_buffer > config.response_length:
        yield Problem(
            f"overlong_buffer = {config.overlong_buffer} is more than response_length = {config.response_length}",
            ("overlong_buffer", "response_length"),
        )


def kl_controller_name(config: KLSettings) -> str:
    """What moves kl_coef, where `auto` says: by what else is set."""
    if config.kl_controller != "auto":
        return config.kl_controller
    if config.kl_target is not None:
        return "adaptive"
    return "fixed" if config.kl_coef_final is None else "scheduled"


def may_have_kl_penalty(config: KLSettings) -> bool:
    """Whether the KL to the reference may cost something in some update of the run."""
    name = kl_controller_name(config)
    return config.kl_coef > 0 or is_own(name) or (name == "scheduled" and (config.kl_coef_final or 0) > 0)


def critic_schedule_name(config: AllSettings) -> str:
    """When policy and critic train: critic_schedule, else critic."""
    return config.critic if config.critic_schedule is None else config.critic_schedule


def _no_critic(config: AllSettings) -> bool:
    """Whether the rule for advantages is known to need none; one of the user's says so itself, when it is loaded."""
    return config.advantage not in CRITIC_RULES and not is_own(config.advantage)


def _axis_problems(config: AllSettings) -> Iterator[Problem]:
    yield from name_problems("trust_region", config.trust_region, TRUST_REGIONS)
    yield from name_problems("advantage", config.advantage, ADVANTAGES)
    yield from name_problems("kl_controller", config.kl_controller, KL_CONTROLLERS)
    yield from name_problems("critic_schedule", critic_schedule_name(config), CRITIC_SCHEDULES)
    yield from name_problems("loss_aggregation", config.loss_aggregation, LOSS_AGGREGATIONS)
    if config.critic == "decoupled" and config.critic_schedule not in (None, "decoupled"):
        yield Problem(
            f"critic = decoupled and critic_schedule = {config.critic_schedule} both say when the critic trains: "
            "give one",
            ("critic", "critic_schedule"),
        )


def _advantage_problems(config: AllSettings) -> Iterator[Problem]:
    if config.advantage in GROUP_RULES and config.num_generations < 2:
        yield Problem(
            f"advantage = {config.advantage} compares responses to one prompt: num_generations must be at least 2",
            ("advantage", "num_generations"),
        )
    changed = {
        "normalize_scores": config.normalize_scores != "none", "reward_clip": config.reward_clip is not None,
        "non_eos_penalty": config.non_eos_penalty, "whiten_rewards": config.whiten_rewards,
    }  # fmt: skip
    for name in (name for name, is_set in changed.items() if config.advantage in RULES_BY_PART and is_set):
        yield Problem(
            f"advantage = {config.advantage} normalises every part of the reward apart, and {name} changes their sum: "
            "leave it out",
            ("advantage", name),
        )
    if config.advantage == "batch_normalized" and config.whiten_advantages is False:
        yield Problem(
            "advantage = batch_normalized is the whitened return: leave whiten_advantages out",
            ("advantage", "whiten_advantages"),
        )


def _group_problems(config: AllSettings) -> Iterator[Problem]:
    if config.num_generations < 2 and any(map(compares_groups, config.reward_funcs)):
        yield Problem(
            "a judge against the group compares responses to one prompt: num_generations must be at least 2",
            ("reward_funcs", "num_generations"),
        )


def _kl_problems(config: KLSettings) -> Iterator[Problem]:
    name, penalty = kl_controller_name(config), may_have_kl_penalty(config)
    if config.kl_in == "loss" and penalty and config.kl_estimator in ("k1", "abs"):
        yield Problem(
            "kl_in = loss needs kl_estimator = k2 or k3: the gradient of k1 is 0 on average", ("kl_in", "kl_estimator")
        )
    if name == "adaptive" and config.kl_coef == 0:
        yield Problem("kl_target adapts kl_coef by a factor, and kl_coef = 0 stays 0", ("kl_target", "kl_coef"))
    for controller, needed, given in (
        ("adaptive", "kl_target", config.kl_target),
        ("scheduled", "kl_coef_final", config.kl_coef_final),
    ):
        if name == controller and given is None:
            yield Problem(f"kl_controller = {controller} needs {needed}", ("kl_controller", needed))
    if config.kl_controller == "auto" and config.kl_target is not None and config.kl_coef_final is not None:
        yield Problem(
            "kl_target makes kl_coef adapt and kl_coef_final gives it a course: give one",
            ("kl_target", "kl_coef_final"),
        )
    if config.measure_kl is False and penalty:
        yield Problem("a KL penalty needs the KL: set kl_coef = 0, or measure_kl = true", ("measure_kl", "kl_coef"))


def _critic_problems(config: AllSettings) -> Iterator[Problem]:
    trunk = config.critic_trunk
    if trunk == "shared" and critic_schedule_name(config) == "decoupled" and not _no_critic(config):
        yield Problem(
            "critic = decoupled trains the critic apart from the policy, and with critic_trunk = shared they have one "
            "trunk: use critic = joint, or critic_trunk = separate or adapter",
            ("critic", "critic_trunk", "advantage"),
        )
    if trunk == "shared" and config.value_model_path is not None:
        yield Problem(
            "value_model_path is a model of its own, and with critic_trunk = shared the critic is made from the "
            "policy's weights: give one",
            ("value_model_path", "critic_trunk"),
        )


def _batch_problems(config: AllSettings) -> Iterator[Problem]:
    rows = config.batch_size
    if rows is not None and rows % config.num_generations != 0:
        yield Problem(
            f"batch_size = {rows} is no multiple of num_generations = {config.num_generations}",
            ("batch_size", "num_generations"),
        )
    if rows is not None and config.num_mini_batches > rows:
        yield Problem(
            f"num_mini_batches = {config.num_mini_batches} is more than batch_size = {rows} rows",
            ("batch_size", "num_mini_batches"),
        )
