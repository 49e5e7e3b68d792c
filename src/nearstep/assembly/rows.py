"""What the user should know of the way in which the models of a run read their rows."""

from transformers import PreTrainedModel

from nearstep.models.attention.choice import kernel_of_model
from nearstep.models.roles import Models, inner_model, transformers_model


def how_rows_run(models: Models, *, autocast: bool) -> list[str]:
    """In a line each: which attention packed rows have, and which roles are padded, and why."""
    policy, reference, critic, teacher = models.policy, models.reference, models.critic, models.teacher
    others = {
        "reference": None if reference is None else reference.policy.layout,
        "critic": None if critic is None else critic.members[0].layout,
        "teacher": None if teacher is None else teacher.policy.layout,
    }
    notes = [
        f"The {name} {layout.note}"
        for name, layout in others.items()
        if layout is not None and layout.note is not None and layout != policy.layout
    ]
    if policy.layout.note is not None:
        return [f"The policy {policy.layout.note}", *notes]
    kernel = kernel_of_model(transformers_model(policy.model, "model"), autocast=autocast)
    return [f"Attention over packed rows: {kernel.value}.", *notes]


def own_modules(models: Models) -> dict[str, str]:
    """The classes of saved models that are modules of the user's own, by the name of their folder."""
    saved = {"policy": models.policy.model, "value": None if models.critic is None else models.critic.members[0].model}
    inner = {name: inner_model(model) for name, model in saved.items() if model is not None}
    return {name: type(model).__name__ for name, model in inner.items() if not isinstance(model, PreTrainedModel)}
