"""Whether a run that goes on stands on what it began with: the same weights under the same names, the same data."""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from nearstep.checkpoint import files
from nearstep.checkpoint.resume import BEGUN, SETTINGS
from nearstep.common.errors import CheckpointError
from nearstep.models.adapters import is_adapted
from nearstep.models.roles import Models
from nearstep.models.stored_head import head_in_words, shown
from nearstep.reports.run_folder import checkpoints
from nearstep.scale.shards import whole_tensor

PROBES = 256  # numbers of each tensor that are looked at


def begin_of_run(
    models: Models,
    rows: int | None,
    data: str,
    *,
    updates: int,
    batch: int,
    gathered: Callable[[nn.Module], AbstractContextManager[object]] = nullcontext,
) -> dict[str, Any]:
    """What a run begins with, before a weight has moved: a hash of each role, rows and hash of its data, its length and
    the episodes of an update.

    The same however weights lie over processes, all of which call this; those are `gathered` whose tensors do not say
    it themselves.
    """
    roles: dict[str, nn.Module | None] = {
        "policy": models.policy.model,
        "reference": None if models.reference is None else models.reference.policy.model,
        "critic": None if models.critic is None else models.critic.model,
        "teacher": None if models.teacher is None else models.teacher.policy.model,
    }
    critic = models.critic
    hashes = {}
    for role, model in roles.items():
        if model is not None:
            with gathered(model):
                hashes[role] = _hash(model)
    adapters = is_adapted(models.policy.model)
    head = None if critic is None else head_in_words(critic.members[0].value_head)
    return {
        "weights": hashes, "adapters": adapters, "value_head": head, "rows": rows, "data": data, "updates": updates,
        "batch": batch,
    }  # fmt: skip


def batch_of_run(run: Path) -> int | None:
    """Episodes of an update of a run, as its checkpoints say; None where none does."""
    found = (files.read_json(folder / BEGUN).get("batch") for folder in checkpoints(run) if (folder / BEGUN).is_file())
    return next((batch for batch in found if isinstance(batch, int)), None)


def has_same_data(folder: Path, now: Mapping[str, Any]) -> bool:
    """Whether the run of a checkpoint began with the same data."""
    before = files.read_json(folder / BEGUN)
    return (before["rows"], before.get("data")) == (now["rows"], now["data"])


def has_same_batch(folder: Path, now: Mapping[str, Any]) -> bool:
    """Whether an update of the run of a checkpoint had as many episodes."""
    return bool(files.read_json(folder / BEGUN).get("batch") == now["batch"])


def check_same_head(folder: Path, now: Mapping[str, Any]) -> None:
    """Raise CheckpointError where the critic's outputs meant something else when they were saved, also in a fork."""
    begun = files.read_json(folder / BEGUN)
    before = begun.get("value_head")
    both_have_one = "critic" in begun["weights"] and "critic" in now["weights"]  # else the networks differ
    if both_have_one and before != now["value_head"]:
        raise CheckpointError(
            f"{folder}: the critic was trained with {shown(before)}, and this run reads it with "
            f"{shown(now['value_head'])}. Keep value_head and its settings: the layer's numbers mean something else"
        )


def check_begin(folder: Path, now: Mapping[str, Any], courses: str) -> list[str]:
    """What the user should know of a run that goes on from `folder`; `courses` are the learning rates' that depend on
    its length.

    Raises CheckpointError where it began with other weights or other data.
    """
    path = folder / BEGUN
    before = files.read_json(path)
    if before.get("adapters") != now["adapters"]:
        had, has = ("adapters", "none") if before.get("adapters") else ("no adapters", "some")
        raise CheckpointError(
            f"{folder}: the policy of this run was trained with {had}, and now it has {has}. Give the same "
            "peft_config (or use_peft and lora_… settings) as the run began with, or fork it"
        )
    other = [role for role, found in now["weights"].items() if before["weights"].get(role) != found]
    if other:
        raise CheckpointError(
            f"{folder}: the run began with another {' and another '.join(other)} than this one (the names may be the "
            "same, the weights are not). Give the models, and the adapters, that it began with, or fork it"
        )
    if before["rows"] != now["rows"]:
        raise CheckpointError(
            f"{folder}: the data had {before['rows']} rows, and has {now['rows']} now. Give the same data, or fork it"
        )
    if before.get("data") != now["data"]:
        raise CheckpointError(
            f"{folder}: the data has as many rows as when the run began, but not the same: prompts, their order, "
            "columns that rewards read, or texts of ptx_dataset_name have changed. Give the same data, or fork it"
        )
    batch = before.get("batch", files.read_json(folder / SETTINGS).get("batch_size"))
    if batch is not None and batch != now["batch"]:
        raise CheckpointError(
            f"{folder}: an update of this run has {batch} episodes, and now it would have {now['batch']} (without "
            "batch_size they are per_device_train_batch_size × gradient_accumulation_steps × processes). Give "
            f"--batch_size {batch}, or fork it"
        )
    if before["updates"] != now["updates"] and courses:
        return [
            f"the run had {before['updates']} updates and has {now['updates']} now: from here on its learning rate "
            f"takes the course of the new length ({courses})"
        ]
    return []


def _hash(model: nn.Module) -> str:
    """A hash of names, shapes and some numbers of every tensor: quick for any size, and other for other models."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        flat = whole_tensor(tensor).detach().flatten()
        probes = flat[:: max(1, flat.numel() // PROBES)].double().cpu().tolist()
        digest.update(f"{name} {list(tensor.shape)} {probes}".encode())
    return digest.hexdigest()
