"""How the roles of a run stand on one base model, in how many bits it lies, and what is kept off the device."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nearstep.config.model_loading import LoadingSettings
from nearstep.config.settings import Problem, option, without_effect

VF_LORA = ("vf_lora_r", "vf_lora_alpha", "vf_lora_target_modules")


@dataclass(frozen=True, kw_only=True)
class OneBaseSettings(LoadingSettings):
    """Adapters of several roles on the policy's frozen weights, and the memory that these weights take."""

    reward_trunk: Literal["separate", "adapter"] = option(
        "separate",
        "separate: a reward model is a model of its own; adapter: it comes as a folder of adapters, which are put on "
        "the frozen weights under the policy's adapters",
    )
    vf_lora_r: int | None = option(None, "rank of the critic's adapters; as the policy's if not given", at_least=1)
    vf_lora_alpha: int | None = option(
        None, "scale of the critic's adapters (alpha / rank); as the policy's if not given", at_least=1
    )
    vf_lora_target_modules: tuple[str, ...] | None = option(
        None, "modules that get adapters of the critic; as the policy's if not given"
    )
    load_in_4bit: bool = option(
        False, "load the weights under the policy's adapters in 4 bits (QLoRA, bitsandbytes); computed in dtype"
    )
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = option("nf4", "load_in_4bit: which 16 numbers a weight may be")
    use_bnb_nested_quant: bool = option(
        False, "load_in_4bit: store the scale of every 64 weights in 8 bits too, 0.4 bits less for each weight"
    )
    offload_roles: tuple[Literal["reference", "teacher", "reward", "value"], ...] = option(
        (), "roles whose weights are in the host's memory while they do not compute: reference, teacher, reward, value"
    )
    gradient_checkpointing_every: int = option(
        1, "gradient_checkpointing: recompute every n-th layer alone; the others keep their activations", at_least=1
    )


def one_base_problems(
    config: OneBaseSettings, *, critic_trunk: str, divided_by: str | None, optim: str
) -> Iterator[Problem]:
    """Settings of one base that contradict each other or the rest."""
    roles = config.offload_roles
    if "reward" in roles and config.reward_trunk == "adapter":
        yield Problem(
            "offload_roles: with reward_trunk = adapter the reward model has the policy's weights, which stay: leave "
            "reward out",
            ("offload_roles", "reward_trunk"),
        )
    if "value" in roles and critic_trunk != "separate":
        yield Problem(
            f"offload_roles: with critic_trunk = {critic_trunk} the critic has the policy's weights, which stay: leave "
            "value out",
            ("offload_roles", "critic_trunk"),
        )
    if divided_by is not None:
        yield from _in_pieces(config, optim, divided_by)


def _in_pieces(config: OneBaseSettings, optim: str, divided_by: str) -> Iterator[Problem]:
    """What does not go together with weights in pieces over processes."""
    rules = {
        "offload_roles": (bool(config.offload_roles), "moves whole networks", "leave it out: pieces are small"),
        "load_in_4bit": (config.load_in_4bit, "packs several weights into one number", "leave one of the two out"),
        "reward_trunk": (
            config.reward_trunk == "adapter", "= adapter scores with the policy's weights, which are in pieces then",
            "use reward_trunk = separate",
        ),
        "optim": (optim == "adamw_8bit", "= adamw_8bit keeps moments in blocks of 256", "use adamw_torch_fused"),
    }  # fmt: skip
    for name, (is_set, why, advice) in rules.items():
        if is_set:
            yield Problem(
                f"{name} {why}, and {divided_by} deals weights or moments out over processes: {advice}",
                (name, divided_by),
            )


def one_base_remarks(config: OneBaseSettings, *, critic_trunk: str, checkpointing: bool) -> Iterator[str]:
    """Settings of one base without effect."""
    yield from without_effect(
        config,
        ("without critic_trunk = adapter", critic_trunk != "adapter", VF_LORA),
        ("without load_in_4bit", not config.load_in_4bit, ("bnb_4bit_quant_type", "use_bnb_nested_quant")),
        ("without gradient_checkpointing", not checkpointing, ("gradient_checkpointing_every",)),
    )
