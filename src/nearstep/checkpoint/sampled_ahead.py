"""What becomes of prompts and rows that a checkpoint had under way, where a run goes on from it or is forked."""

from collections.abc import Mapping
from typing import Any

from nearstep.checkpoint import files
from nearstep.checkpoint.resume import SETTINGS, Resumed, settings_at_defaults
from nearstep.checkpoint.snapshot import Snapshot
from nearstep.checkpoint.start import has_same_batch, has_same_data
from nearstep.training.shared_ahead import SampledAhead

# What the order of prompts depends on, beside the data and the batch.
DRAWN_BY = (
    "seed", "num_generations", "sampler", "shuffle_dataset", "dataset_weights", "streaming", "shuffle_buffer",
)  # fmt: skip


def take_up(
    ahead: SampledAhead | None, snapshot: Snapshot, resumed: Resumed, kept: Mapping[str, Any], begun: Mapping[str, Any]
) -> str | None:
    """Let `ahead` begin with what was under way; what the user should know, if anything.

    A run that goes on has the rows that had ended. A fork may sample otherwise: it asks for all of them again. Where it
    draws prompts in another order, or does not sample ahead, it begins behind as many as its parent has trained on.
    """
    if snapshot.ahead is None:
        return None
    values, rows = snapshot.ahead
    if not resumed.is_fork:
        if ahead is not None:
            ahead.recall(values, rows)
        return None
    if ahead is not None and _draws_alike(resumed, kept, begun):
        ahead.recall(values, {})
        return None
    if not values["under_way"]:
        return None
    return (
        f"{resumed.folder} had {len(values['under_way'])} prompts under way (max_staleness), and this fork draws its "
        "own: some of them may be left out, or others played twice. With the parent's data, batch, seed and "
        "max_staleness a fork plays each once"
    )


def _draws_alike(resumed: Resumed, kept: Mapping[str, Any], begun: Mapping[str, Any]) -> bool:
    before = settings_at_defaults() | files.read_json(resumed.folder / SETTINGS)
    return (
        has_same_data(resumed.folder, begun)
        and has_same_batch(resumed.folder, begun)
        and all(before.get(name) == kept.get(name) for name in DRAWN_BY)
    )
