"""How the networks of a run come to lie over its processes, once all of them are ready and before any learns."""

from dataclasses import replace

from nearstep.assembly.sequences import require_rows_over_processes
from nearstep.models.forward.forward import PassRunner
from nearstep.models.roles import Critic, Critics, Models, Policy, Reference
from nearstep.scale.backend import Backend, RoleNetwork


def spread_over(backend: Backend, models: Models) -> Models:
    """The same roles, their weights where they will compute, and their passes run by the backend.

    Raises ConfigError or ModelError where rows are to lie over processes (sp_size), and those of a network cannot.
    """
    critics = () if models.critic is None else models.critic.members
    roles: dict[str, Policy | Critic] = {"policy": models.policy}
    if models.reference is not None:
        roles["reference"] = models.reference.policy
    roles |= {_critic(number): member for number, member in enumerate(critics)}
    if models.teacher is not None:
        roles["teacher"] = models.teacher.policy
    networks = {
        name: RoleNetwork(found.model, found.layout.token_by_token, "value" if isinstance(found, Critic) else name)
        for name, found in roles.items()
    }
    runners = backend.spread(networks)
    members = tuple(replace(member, run=runners[_critic(number)]) for number, member in enumerate(critics))
    spread = Models(
        replace(models.policy, run=runners["policy"]),
        _run_by(models.reference, runners.get("reference")),
        replace(models.critic, members=members) if isinstance(models.critic, Critics) else next(iter(members), None),
        _run_by(models.teacher, runners.get("teacher")),
    )
    require_rows_over_processes(spread, backend)
    return spread


def _critic(number: int) -> str:
    return f"critic {number + 1}"


def _run_by(frozen: Reference | None, runner: PassRunner | None) -> Reference | None:
    if frozen is None or runner is None:
        return frozen
    return replace(frozen, policy=replace(frozen.policy, run=runner))
