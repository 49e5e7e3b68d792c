"""Whether the models of a run fit each other, told by configurations and tokenizers before any weight is loaded."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nearstep.assembly.inputs import RunInputs
from nearstep.assembly.one_base import check_rewards_on_base
from nearstep.assembly.policy_folder import wants_new_adapters
from nearstep.common.errors import ConfigError, ModelError
from nearstep.config.ppo import PPOConfig
from nearstep.models.adapter_folders import holds_adapters
from nearstep.models.adapters import check_adapted, is_adapted
from nearstep.models.critic_folders import critics_in, require_as_many
from nearstep.models.limits import Limits
from nearstep.models.load import check_folder, family_of
from nearstep.models.quantised import check_four_bit, check_quantised
from nearstep.models.roles import inner_model
from nearstep.models.unsloth_loading import check_unsloth
from nearstep.models.vocabulary import check_same_ends, check_same_ids, known_ids, tokenizer_beside
from nearstep.rewards.build import NamedFunction, RewardSpec
from nearstep.rewards.identity import reads_ids_of


def fitting_limits(
    config: PPOConfig,
    inputs: RunInputs,
    tokenizer: PreTrainedTokenizerBase,
    policy: nn.Module | str,
    family: PreTrainedConfig,
) -> Limits:
    """Positions of the role that has the fewest, and the ids of the tokenizer for which the policy has rows.

    Reference, teacher and critic read what the policy wrote. Raises ModelError for one that knows fewer ids, or for
    which they are other tokens, and for quantised weights that cannot be loaded or cannot learn.
    """
    for role, model in (("model", policy), ("ref_model", inputs.ref_model), ("value_model", inputs.value_model),
                        ("teacher_model", inputs.teacher_model)):  # fmt: skip
        if isinstance(model, nn.Module):
            check_adapted(model, role)
    trains_whole = not wants_new_adapters(config, inputs) and not _is_adapted(policy)
    check_quantised(family, "model", trains=trains_whole)
    merges = isinstance(policy, str) and _is_adapted(policy) and wants_new_adapters(config, inputs)
    if config.model_loader == "unsloth":
        check_unsloth(
            is_object=not isinstance(policy, str), adapts=not trains_whole,
            own_adapters=inputs.peft_config is not None, merges=merges, on_cpu=config.use_cpu,
        )  # fmt: skip
    if config.load_in_4bit:
        check_four_bit(family, is_object=not isinstance(policy, str), has_adapters=not trains_whole, merges=merges)
    limits = Limits.of(family)
    limits = replace(limits, rows=min(limits.rows, known_ids(tokenizer)))
    others = {
        "teacher_model": inputs.teacher_model if inputs.teacher_model is not None else config.teacher_model_path,
        "ref_model": inputs.ref_model if inputs.ref_model is not None else config.ref_model_path,
        "value_model": inputs.value_model if inputs.value_model is not None else config.value_model_path,
    }
    if config.critic_trunk != "separate":
        del others["value_model"]  # on the policy's trunk there is none to give
    for role, given in others.items():
        folders = critics_in(given) if role == "value_model" else []
        require_as_many(given, folders, config.critic_models)
        given = folders[0] if folders else given
        if given is not None and given != policy and _is_readable(given):
            limits = _narrowed(limits, role, given, tokenizer, config)
    return limits


def check_reward_models(
    config: PPOConfig,
    inputs: RunInputs,
    specs: Sequence[RewardSpec],
    tokenizer: PreTrainedTokenizerBase,
    limits: Limits,
) -> None:
    """Raises ModelError for quantised weights that cannot be loaded, and where too few rows stand behind ids that a
    reward model reads as the policy wrote them; raises for reward_trunk = adapter as `check_rewards_on_base` does."""
    check_rewards_on_base(config, specs)
    for given in specs:
        if isinstance(given, NamedFunction) or not _is_readable(given):
            continue
        family = _family(given, "reward_model", config)
        check_quantised(family, "reward_model", trains=False)
        own = inputs.reward_tokenizer or _tokenizer_of(given, "reward_model", config)
        if own is not None and reads_ids_of(own, tokenizer):
            _check_rows(Limits.of(family, "reward_model"), limits.rows)


def require_tokens(top_k: int, known: int) -> None:
    """Raise ConfigError where a trust region compares more tokens than there are."""
    if top_k > known:
        raise ConfigError(
            f"the trust region compares the {top_k} most probable tokens (divergence_top_k), and the tokenizer has "
            f"{known}"
        )


def _narrowed(
    limits: Limits, role: str, given: nn.Module | str, tokenizer: PreTrainedTokenizerBase, config: PPOConfig
) -> Limits:
    """The limits of all roles so far and of this one."""
    family = _family(given, role, config)
    check_quantised(family, role, trains=role == "value_model" and not _is_adapted(given))
    own = _tokenizer_of(given, role, config)
    if own is not None:
        check_same_ids(own, tokenizer, role)
        if role == "teacher_model":
            check_same_ends(own, tokenizer, role)
    found = Limits.of(family, role)
    _check_rows(found, limits.rows)
    if found.positions is not None and (limits.positions is None or found.positions < limits.positions):
        return replace(limits, positions=found.positions, role=role)
    return limits


def _check_rows(limits: Limits, ids: int) -> None:
    if limits.rows < ids:
        raise ModelError(
            f"{limits.role}: it has embeddings for {limits.rows:,} token ids, and the policy writes {ids:,}: it could "
            f"not read id {limits.rows:,}. Take a {limits.role} with the policy's vocabulary."
        )


def _family(given: nn.Module | str, role: str, config: PPOConfig) -> PreTrainedConfig:
    if isinstance(given, str):
        check_folder(given, role)
    return family_of(given, role=role, trust=config.trust)


def _tokenizer_of(given: nn.Module | str, role: str, config: PPOConfig) -> PreTrainedTokenizerBase | None:
    """The tokenizer where a model came from, if it is still there."""
    name = given if isinstance(given, str) else family_of(given).name_or_path
    if not name or (not isinstance(given, str) and not Path(name).is_dir()):
        return None
    return tokenizer_beside(name, role, trust=config.trust)


def _is_adapted(model: nn.Module | str) -> bool:
    return holds_adapters(model) if isinstance(model, str) else is_adapted(model)


def _is_readable(given: nn.Module | str) -> bool:
    """A module of the user's own has no configuration to read."""
    return isinstance(given, str) or isinstance(inner_model(given), PreTrainedModel)
