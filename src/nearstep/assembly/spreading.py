"""How the networks of a run come to lie over its processes, once all of them are ready and before any learns."""

from dataclasses import replace

from nearstep.models.forward.forward import PassRunner
from nearstep.models.roles import Critic, Models, Policy, Reference
from nearstep.scale.backend import Backend, RoleNetwork


def spread_over(backend: Backend, models: Models) -> Models:
    """The same roles, their weights where they will compute, and their passes run by the backend."""
    roles: dict[str, Policy | Critic] = {"policy": models.policy}
    if models.reference is not None:
        roles["reference"] = models.reference.policy
    if models.critic is not None:
        roles["value"] = models.critic
    if models.teacher is not None:
        roles["teacher"] = models.teacher.policy
    networks = {role: RoleNetwork(found.model, found.layout.token_by_token) for role, found in roles.items()}
    runners = backend.spread(networks)
    return Models(
        replace(models.policy, run=runners["policy"]),
        _run_by(models.reference, runners.get("reference")),
        None if models.critic is None else replace(models.critic, run=runners["value"]),
        _run_by(models.teacher, runners.get("teacher")),
    )


def _run_by(frozen: Reference | None, runner: PassRunner | None) -> Reference | None:
    if frozen is None or runner is None:
        return frozen
    return replace(frozen, policy=replace(frozen.policy, run=runner))
