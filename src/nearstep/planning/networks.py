"""Which networks a run would have, by its settings, and what each shares with those before it."""

from collections.abc import Iterator
from dataclasses import replace

from nearstep.config.axes import CRITIC_RULES, is_own
from nearstep.config.planning import PlanConfig
from nearstep.config.ppo_rules import may_have_kl_penalty
from nearstep.planning.network_models import PlannedModels
from nearstep.planning.quantities import NetworkSize, PlannedNetwork, Weights
from nearstep.rewards.builtin.spec import meaning


def planned_networks(
    config: PlanConfig, *, is_gpu: bool, together: tuple[int, ...] = ()
) -> tuple[list[PlannedNetwork], list[str]]:
    """The networks of a run by its settings, and what the user should know of how they were chosen. `together`: so many
    processes might compute their layers together.

    Raises ConfigError and ModelError for models that are not there, or that cannot have their role.
    """
    notes: list[str] = []
    made = PlannedModels(config, is_gpu, notes, together)
    policy = made.policy()
    if config.critic_trunk == "adapter":
        policy = replace(policy, layer_by_layer=False)  # it shares single weights with the critic
    found = [policy, *_references(config, made, policy)]
    rewards = [_reward(config, made, policy, name) for name in _reward_models(config)]
    found += [*_critic(config, made, policy, rewards), *rewards]
    if config.teacher_model_path is not None:
        found.append(made.network("teacher", config.teacher_model_path, logits=True))
    return found, notes


def _reward_models(config: PlanConfig) -> list[str]:
    given = [] if config.reward_model_path is None else [config.reward_model_path]
    return [*given, *(entry for entry in config.reward_funcs if meaning(entry) == "model")]


def _reward(config: PlanConfig, made: PlannedModels, policy: PlannedNetwork, name: str) -> PlannedNetwork:
    """A reward model, of its own or as adapters on the policy's frozen weights."""
    if config.reward_trunk == "separate":
        return made.network("reward", name, logits=False)
    size = replace(policy.size, weights=made.reward_adapters(name), head_weights=policy.width)
    return replace(
        policy, role="reward", name=name, size=size, vocabulary=0, trains=False, weights_of_policy=True, whole=True
    )


def _references(config: PlanConfig, made: PlannedModels, policy: PlannedNetwork) -> Iterator[PlannedNetwork]:
    """What the KL is measured to: a model of its own, or the policy with its adapters off."""
    penalty = may_have_kl_penalty(config)
    if config.measure_kl is False or (config.measure_kl is None and not penalty and config.ref_model_path is None):
        return
    if config.ref_model_path is not None:
        yield made.network("reference", config.ref_model_path, logits=True)
        return
    frozen = replace(policy, role="reference", trains=False, whole="reference" in config.whole_roles)
    if config.use_peft:
        yield replace(frozen, size=_nothing(policy.size), weights_of_policy=True, whole=policy.whole)
    elif made.adapters is not None:  # that have learned: a copy of these, on the same weights
        own = tuple(each for each in policy.size.weights if each.trained)
        size = _frozen(replace(policy.size, weights=own))
        yield replace(frozen, size=size, weights_of_policy=True, whole=policy.whole)
    else:
        yield replace(frozen, size=_frozen(policy.size))


def _critic(
    config: PlanConfig, made: PlannedModels, policy: PlannedNetwork, rewards: list[PlannedNetwork]
) -> Iterator[PlannedNetwork]:
    """The critic as the settings choose it: given, else from the reward model, else from the policy's trunk."""
    if config.advantage not in CRITIC_RULES and not is_own(config.advantage):
        return
    if is_own(config.advantage):
        made.notes.append(f"advantage = {config.advantage} is planned as one with a critic.")
    if config.critic_trunk == "shared":
        head = (Weights(policy.width, policy.size.bytes_each, trained=True),)
        size = replace(_nothing(policy.size), weights=head, head_weights=policy.width)
        yield replace(policy, role="value", size=size, vocabulary=0, on_policy=True)
        return
    if config.critic_trunk == "adapter":
        size = replace(policy.size, weights=made.critic_adapters(policy.name), head_weights=policy.width)
        yield replace(policy, role="value", size=size, vocabulary=0, weights_of_policy=True, layer_by_layer=False)
        return
    name = config.value_model_path
    if name is None:
        start = next((each for each in rewards), None)
        name = policy.name if start is None else start.name
        made.notes.append(
            "The critic is planned as large as " + ("the policy." if start is None else f"the reward model {name}.")
        )
    yield replace(made.network("value", name, logits=False, trains=True), copies=config.critic_models)


def _nothing(size: NetworkSize) -> NetworkSize:
    return replace(size, weights=())


def _frozen(size: NetworkSize) -> NetworkSize:
    return replace(size, weights=tuple(replace(each, trained=False) for each in size.weights))
