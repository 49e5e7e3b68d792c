"""Which model the policy is drawn to: as given, and where it can be on the policy's own frozen weights."""

from torch import nn

from nearstep.assembly.inputs import RunInputs
from nearstep.config.ppo import PPOConfig
from nearstep.models.adapter_folders import holds_adapters, put_on, read_adapters
from nearstep.models.adapters import as_peft_model, is_adapted, without_adapters
from nearstep.models.dtypes import DTYPES, without_slow_float16
from nearstep.models.load import load_policy
from nearstep.models.one_base import why_apart
from nearstep.models.roles import Policy, Reference, make_policy
from nearstep.scale.backend import Backend

ROLE = "teacher_model"


def teacher_of(
    config: PPOConfig, inputs: RunInputs, policy: Policy, backend: Backend, notes: list[str]
) -> Reference | None:
    """The teacher, frozen; None without one. Raises ModelError for a model that cannot be one."""
    given = inputs.teacher_model if inputs.teacher_model is not None else config.teacher_model_path
    if given is None:
        return None
    if isinstance(given, str):
        shared = _on_policys_weights(given, policy, config)
        if shared is not None:
            notes.append("The teacher is its adapters on the frozen weights under the policy's: nothing is copied.")
        given = shared or load_policy(given, role=ROLE, dtype=DTYPES[config.dtype], trust=config.trust)
    given = without_slow_float16(as_peft_model(given), ROLE, backend.device, notes)
    model = backend.stage(given.requires_grad_(False))
    teacher = make_policy(model, role=ROLE, autocast=config.bf16, vocabulary=policy.vocabulary)
    return Reference(teacher, adapters_off=False)


def _on_policys_weights(name: str, policy: Policy, config: PPOConfig) -> nn.Module | None:
    """A folder of adapters on the weights under the policy's adapters, where these are frozen and of the same model."""
    if not is_adapted(policy.model) or not holds_adapters(name):
        return None
    folder = read_adapters(name, ROLE, trust=config.trust)
    return put_on(without_adapters(policy.model), folder) if why_apart(folder, policy.model) is None else None
