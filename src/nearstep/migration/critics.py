"""What a file says of the critic: how often it trains, and where there is none."""

from collections.abc import Mapping

from nearstep.migration.draft import SettingsDraft
from nearstep.migration.foreign import LIBRARIES

WITHOUT_CRITIC = ("group_mean", "group_normalized", "leave_one_out", "batch_normalized", "gdpo")
OF_A_CRITIC = (
    "vf_learning_rate", "cliprange_value", "lam", "vf_coef", "vf_lr_scheduler_type", "vf_lr_warmup_steps",
    "vf_warmup_updates", "num_vf_epochs", "critic",
)  # fmt: skip
AGGREGATIONS = LIBRARIES["verl"].names.values["loss_aggregation"]
ONE_OPTIMIZER = "policy and critic have one optimizer here, but for the learning rate"


def without_critic(draft: SettingsDraft, defaults: Mapping[str, object]) -> dict[str, object]:
    """The defaults without those of a critic, where advantages need none; what the file says of it is lost."""
    advantage = draft.settings.get("advantage", defaults.get("advantage"))
    if advantage not in WITHOUT_CRITIC:
        return dict(defaults)
    for name in OF_A_CRITIC:
        if name in draft.settings:
            draft.lose(name, draft.settings.pop(name), f"advantage = {advantage} has no critic")
    return {name: value for name, value in defaults.items() if name not in OF_A_CRITIC}


def critic_steps(special: Mapping[str, object], draft: SettingsDraft, defaults: Mapping[str, object]) -> None:
    """verl's critic has passes, minibatches, a limit of gradients and a decay of its own."""
    epochs = draft.settings.get("num_ppo_epochs", defaults.get("num_ppo_epochs", 1))
    if "critic_epochs" in special and not _same(special["critic_epochs"], epochs, draft):
        draft.settings |= {"critic": "decoupled", "num_vf_epochs": special["critic_epochs"]}
        draft.told.append("the critic has passes of its own: critic = decoupled trains it after the policy")
    rises = "warmup_steps" in draft.settings
    if rises or "lr_scheduler_type" in draft.settings:  # the critic's own course is constant there unless told
        draft.settings.setdefault("vf_lr_scheduler_type", "constant")
    if rises and draft.settings["vf_lr_scheduler_type"] != "constant":
        draft.settings.setdefault("vf_lr_warmup_steps", 0)
    own = (
        ("critic_mini", special.get("mini_prompts", 256)),
        ("critic_aggregation", draft.settings.get("loss_aggregation", "token_mean")),
        ("critic_clip", draft.settings.get("max_grad_norm", 1.0)),
        ("critic_decay", draft.settings.get("weight_decay", defaults.get("weight_decay", 0.0))),
        ("critic_checkpointing", draft.settings.get("gradient_checkpointing", True)),
    )
    names = {"critic_mini": "critic.ppo_mini_batch_size", "critic_clip": "critic.grad_clip",
             "critic_aggregation": "critic.loss_agg_mode", "critic_decay": "critic.optim.weight_decay",
             "critic_checkpointing": "critic.model.enable_gradient_checkpointing"}  # fmt: skip
    for kind, shared in own:
        given = AGGREGATIONS.get(str(special.get(kind)), special.get(kind))
        if kind in special and not _same(given, shared, draft):
            draft.lose(names[kind], special[kind], ONE_OPTIMIZER)


def _same(one: object, other: object, draft: SettingsDraft) -> bool:
    """Whether two values mean the same, 1e-2 and 0.01 too."""
    numbers = draft.number(one), draft.number(other)
    return numbers[0] == numbers[1] if None not in numbers else str(one).lower() == str(other).lower()
