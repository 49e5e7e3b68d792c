"""Which weights of a model do not train, by patterns of their names."""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from nearstep.common.errors import ModelError

SHOWN = 3


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Take from training every weight whose name a pattern matches, and say how many these are.

    Raises ModelError for a pattern that matches no weight which trains, naming those nearest to it, and where none
    would be left.
    """
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    chosen: dict[str, nn.Parameter] = {}
    for pattern in patterns:
        matched = {name: weight for name, weight in trained.items() if fnmatchcase(name, pattern)}
        if not matched:
            raise ModelError(
                f"vf_frozen = {pattern!r} matches no weight of the critic that trains. A pattern is held against whole "
                f"names, such as {', '.join(_near(pattern, list(trained)))}; * stands for anything"
            )
        chosen |= matched
    if not chosen:
        return []
    if len(chosen) == len(trained):
        raise ModelError(f"vf_frozen = {', '.join(patterns)} matches all weights of the critic: nothing would train")
    for weight in chosen.values():
        weight.requires_grad_(False)
    numbers = sum(weight.numel() for weight in chosen.values())
    of = sum(weight.numel() for weight in trained.values())
    return [f"Of the critic's {of:,} weights {numbers:,} do not train (vf_frozen, {len(chosen)} tensors)."]


def _near(pattern: str, names: Sequence[str]) -> list[str]:
    """Names that look like a pattern: those with a part like its longest, else the first."""
    word = max(pattern.replace("?", "*").split("*"), key=len).strip(".")
    parts = sorted({part for name in names for part in name.split(".")})
    alike = difflib.get_close_matches(word.rpartition(".")[2], parts, n=SHOWN, cutoff=0.4)
    near = [name for part in alike for name in names if part in name.split(".")]
    return list(dict.fromkeys([*near, *names]))[:SHOWN]
