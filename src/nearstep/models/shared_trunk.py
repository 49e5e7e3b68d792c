"""How a critic stands on the policy's own weights: as a head on its trunk, or under adapters of its own."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from nearstep.algorithm.value_heads import ValueHead
from nearstep.common.errors import ModelError
from nearstep.models.adapters import add_adapters, is_adapted, with_adapters_merged, with_head_trained, without_adapters
from nearstep.models.forward.head import OwnLogits
from nearstep.models.head_bias import add_bias
from nearstep.models.load import new_classifier
from nearstep.models.output_layers import HEAD_NAMES, linear_head
from nearstep.models.roles import Critic, Policy, transformers_model
from nearstep.models.stored_head import remember_head
from nearstep.models.trl_heads import TrlHead

ROLE = "value_model"
PACKED = ("is_loaded_in_4bit", "is_loaded_in_8bit")  # where peft looks before it puts adapters over packed weights


def critic_on_trunk(
    policy: Policy, pad_token_id: int | None, value_head: ValueHead, start: TrlHead | None = None
) -> Critic:
    """A critic that is one linear layer on the policy's trunk, zero or `start` at first; its model holds that trunk, no
    copy. Raises ModelError for a start of another width."""
    if isinstance(policy.reading, OwnLogits):
        raise ModelError(
            f"{ROLE}: the logits of {type(policy.model).__name__} are read off the whole model, so no head of a critic "
            "can share its pass. Use critic_trunk = separate."
        )
    model = classifier_around(transformers_model(policy.model, "model"), pad_token_id, value_head)
    if start is not None:
        _begin_with(start, model)
    return Critic(model, policy.autocast, policy.layout, value_head)


@torch.no_grad()
def _begin_with(start: TrlHead, model: PreTrainedModel) -> None:
    """Put a stored head in the place of the zeros, its bias too."""
    head = linear_head(model, ROLE, 1)
    start.check(head.in_features)
    head.weight.copy_(start.weight)
    if start.bias is not None:
        add_bias(model, head)
        assert head.bias is not None
        head.bias.copy_(start.bias)


def classifier_around(
    model: PreTrainedModel, pad_token_id: int | None, value_head: ValueHead, *, role: str = ROLE
) -> PreTrainedModel:
    """A classification model with a label for each output around the trunk of `model` itself, its head zero."""
    with torch.device("meta"):
        classifier = new_classifier(model, pad_token_id, role=role, outputs=value_head.outputs)
    if type(classifier.base_model) is not type(model.base_model):
        raise ModelError(
            f"{role}: {type(classifier).__name__} has another kind of trunk than {type(model).__name__}, so it cannot "
            "use the policy's. Use a model of its own (critic_trunk, reward_trunk = separate)."
        )
    classifier.add_module(classifier.base_model_prefix, model.base_model)
    vars(classifier).update({name: True for name in PACKED if name in vars(model)})
    head = linear_head(classifier, role, value_head.outputs).to_empty(device=model.device)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    remember_head(classifier.config, value_head)
    return classifier.eval()


def critic_under_adapters(
    policy: nn.Module, peft_config: Any, pad_token_id: int | None, value_head: ValueHead, *, seed: int
) -> nn.Module:
    """A critic on the frozen weights under the policy's adapters, with fresh adapters and a head of its own.

    Raises ModelError where the policy trains some of those weights themselves.
    """
    learned = {id(parameter) for parameter in policy.parameters() if parameter.requires_grad}
    classifier = classifier_around(without_adapters(policy), pad_token_id, value_head)
    shared = [name for name, parameter in classifier.named_parameters() if id(parameter) in learned]
    if shared:
        raise ModelError(
            f"{ROLE}: the policy's adapters train {shared[0]} itself (as with bias = all), so it cannot be the "
            "critic's base. Leave that out, or use critic_trunk = separate or shared."
        )
    own = copy.copy(peft_config)
    own.task_type, own.modules_to_save = "SEQ_CLS", None
    heads = [name for name, _ in classifier.named_children() if name in HEAD_NAMES]
    return add_adapters(classifier, with_head_trained(own, heads), seed=seed, role=ROLE)


def whole_critic(critic: Critic, merged_policy: PreTrainedModel | None, *, in_place: bool = False) -> PreTrainedModel:
    """The critic as a plain classification model: adapters merged, its own and those of a policy whose trunk it is on;
    `in_place` its own without a copy, as `with_adapters_merged` has it.

    `merged_policy` is the policy with its adapters merged, None where it has none or the trunk is not shared.
    """
    if is_adapted(critic.model):
        return with_adapters_merged(critic.model, in_place=in_place)
    model = transformers_model(critic.model, ROLE)
    if merged_policy is None:
        return model
    plain = classifier_around(merged_policy, model.config.pad_token_id, critic.value_head)
    linear_head(plain, ROLE, critic.value_head.outputs).load_state_dict(critic.head.state_dict())
    return plain
