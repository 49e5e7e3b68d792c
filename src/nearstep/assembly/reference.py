"""Which policy a KL is measured to: the one that is given, or the policy as it starts."""

from nearstep.assembly.inputs import RunInputs
from nearstep.common.errors import ModelError
from nearstep.config.ppo import PPOConfig
from nearstep.models.adapters import (
    is_adapted,
    trains_under_adapters,
)
from nearstep.models.dtypes import DTYPES, without_slow_float16
from nearstep.models.load import load_policy
from nearstep.models.roles import (
    Policy,
    Reference,
    frozen_copy,
    make_policy,
    without_fresh_adapters,
)
from nearstep.scale.backend import Backend


def reference_of(
    config: PPOConfig,
    inputs: RunInputs,
    policy: Policy,
    backend: Backend,
    notes: list[str],
    *,
    kl_penalty: bool,
    fresh_adapters: bool,
) -> Reference | None:
    """The reference as given, else the policy as it starts: with the run's own adapters off, or a frozen copy.

    None where no KL is measured.
    """
    given = inputs.ref_model if inputs.ref_model is not None else config.ref_model_path
    if config.measure_kl is False or (config.measure_kl is None and not kl_penalty and given is None):
        if inputs.ref_model is not None:
            raise ModelError("ref_model: with measure_kl = false nothing would read it; leave one of the two out")
        notes.append("No KL is measured: kl_coef = 0, so no reference is loaded (measure_kl = true measures it).")
        return None
    if isinstance(given, str):
        given = load_policy(given, role="ref_model", dtype=DTYPES[config.dtype], trust=config.trust)
    if given is not None:
        given = without_slow_float16(given, "ref_model", backend.device, notes)
        model = backend.stage(given.requires_grad_(False))
        reference = make_policy(model, role="ref_model", autocast=config.bf16, vocabulary=policy.vocabulary)
        return Reference(reference, adapters_off=False)
    if not is_adapted(policy.model):
        return frozen_copy(policy)
    # Adapters that came with the policy may have learned, and a probe need not reach all that they change.
    fixed = fresh_adapters and not trains_under_adapters(policy.model)
    off = without_fresh_adapters(policy) if fixed else None
    notes.append(
        "The reference is the policy with its adapters off."
        if off is not None
        else "The reference is the policy as it starts: a copy of its adapters on the same frozen weights."
    )
    return off or frozen_copy(policy)
