"""How learning rates rise and fall there, in updates here."""

import math
from collections.abc import Mapping

from nearstep.migration.draft import SettingsDraft, rows_of_update

ROUNDED_UP = ("trl", "trl_dppo", "decoupled_draft")  # transformers' way with a share
OPENRLHF_RISE = 0.03  # of the optimizer steps, where the file says nothing


def shares(special: Mapping[str, object], draft: SettingsDraft, library: str) -> None:
    """Rises that are a share of the run become updates, where the file tells how many the run has."""
    for kind, name in (("warmup_share", "warmup_steps"), ("critic_warmup_share", "vf_lr_warmup_steps")):
        if kind in special and name not in draft.settings:
            _rise(name, special[kind], draft, up=library in ROUNDED_UP)
    if library == "openrlhf" and "warmup_share" not in special:
        updates = _updates(draft)
        if updates is None:
            draft.told.append(
                "OpenRLHF lets the learning rate rise over 3% of the steps unless told: give warmup_steps, in updates"
            )
        else:
            _rise("warmup_steps", OPENRLHF_RISE, draft, up=False)


def _rise(name: str, share: object, draft: SettingsDraft, *, up: bool) -> None:
    number, updates = draft.number(share), _updates(draft)
    if number == 0:
        return
    if number is None or updates is None:
        draft.lose("share of the steps in which the rate rises", share, f"give {name}, in updates")
        return
    rises = math.ceil(number * updates) if up else int(number * updates)
    draft.told.append(f"{name} = {share} × {updates} updates, rounded {'up' if up else 'down'}: {rises}")
    if rises:
        draft.settings[name] = rises


def _updates(draft: SettingsDraft) -> int | None:
    """Of the run; None where the number of prompts decides."""
    episodes, rows = draft.whole(draft.settings.get("total_episodes")), rows_of_update(draft)
    return None if not episodes or not rows else max(1, episodes // rows)


def scheduler(value: object, draft: SettingsDraft) -> None:
    """A cosine that ends above 0 ends at 0 here."""
    if value == "cosine_with_min_lr":
        draft.told.append("lr_scheduler_type: the cosine ends at 0.1 of the rate there (min_lr), at 0 here")
        value = "cosine"
    draft.settings["lr_scheduler_type"] = value


def with_a_rise(settings: Mapping[str, object]) -> dict[str, object]:
    """A constant rate that rises first has a name of its own here."""
    found = dict(settings)
    for course, steps in (("lr_scheduler_type", "warmup_steps"), ("vf_lr_scheduler_type", "vf_lr_warmup_steps")):
        if found.get(course) == "constant" and str(found.get(steps, 0)) not in ("0", "0.0"):
            found[course] = "constant_with_warmup"
    return found
