"""Which model the policy is drawn to: as given, and where it can be on the policy's own frozen weights."""

from pathlib import Path

from torch import nn

from nearstep.assembly.inputs import RunInputs
from nearstep.config.ppo import PPOConfig
from nearstep.models.adapter_folders import holds_adapters, put_on, read_adapters
from nearstep.models.adapters import (
    adapters_of,
    as_peft_model,
    is_adapted,
    trains_under_adapters,
    without_adapters,
)
from nearstep.models.dtypes import DTYPES
from nearstep.models.load import load_policy
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
    model = backend.stage(as_peft_model(given).requires_grad_(False))
    teacher = make_policy(model, role=ROLE, autocast=config.bf16, vocabulary=policy.vocabulary)
    return Reference(teacher, adapters_off=False)


def _on_policys_weights(name: str, policy: Policy, config: PPOConfig) -> nn.Module | None:
    """A folder of adapters on the weights under the policy's adapters, where these are frozen and of the same model."""
    if not is_adapted(policy.model) or not holds_adapters(name):
        return None
    folder = read_adapters(name, ROLE, trust=config.trust)
    own = adapters_of(policy.model).base_model_name_or_path
    if not own or folder.holds_everything or not _same_place(own, folder.base):
        return None
    if trains_under_adapters(policy.model):
        return None
    base = without_adapters(policy.model)
    layer = next(name for name, module in base.named_modules() if module is base.get_input_embeddings())
    if folder.rows(layer) not in (None, base.get_input_embeddings().weight.shape[0]):
        return None
    return put_on(base, folder)


def _same_place(one: str, other: str) -> bool:
    """Whether two names lead to one model: the same folder, or the same name on the hub."""
    return one == other or (Path(one).is_dir() and Path(one).resolve() == Path(other).resolve())
