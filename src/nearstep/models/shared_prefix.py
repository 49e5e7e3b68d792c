"""How rows that begin alike are read with their common beginning once: a prompt and its two answers cost one prompt.

A group is a prefix and its branches, back to back in a packed input. Every branch continues at the position where the
prefix ends, and sees the prefix and itself. The numbers are those of the rows read alone, up to rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearstep.models.attention import LayerInput, attend_causally, attend_where


@dataclass(frozen=True)
class Group:
    """Lengths of a prefix, 0 for none, and of the branches that follow it; none of these is empty."""

    prefix: int
    branches: tuple[int, ...]


@dataclass(frozen=True)
class SharedPrefixes:
    """The attention plan of groups that lie back to back: prefix, then its branches."""

    groups: tuple[Group, ...]

    def attend(self, layer: LayerInput) -> Float[Tensor, "1 heads tokens value_width"]:
        """Causal attention in every prefix; every branch attends to its prefix and, causally, to itself."""
        lengths = [length for group in self.groups for length in (group.prefix, *group.branches)]
        queries, keys, values = (each.split(lengths, dim=2) for each in (layer.query, layer.key, layer.value))
        outputs, place = [], 0
        for group in self.groups:
            query, key, value = queries[place], keys[place], values[place]
            if group.prefix:
                outputs.append(attend_causally(query, key, value, layer))
            for branch in range(place + 1, place + 1 + len(group.branches)):
                whole_key = torch.cat([key, keys[branch]], dim=2)
                whole_value = torch.cat([value, values[branch]], dim=2)
                outputs.append(_attend_branch(queries[branch], whole_key, whole_value, layer))
            place += 1 + len(group.branches)
        return torch.cat(outputs, dim=2)


def _attend_branch(query: Tensor, key: Tensor, value: Tensor, layer: LayerInput) -> Tensor:
    """The last tokens of a row over the whole row."""
    length, before = query.shape[2], key.shape[2] - query.shape[2]
    if before == 0:
        return attend_causally(query, key, value, layer)
    places = torch.arange(before, before + length, device=query.device)
    distance = places[:, None] - torch.arange(before + length, device=query.device)[None, :]
    visible = (distance >= 0) & (distance < (layer.window or before + length))
    return attend_where(query, key, value, visible, layer)


@dataclass(frozen=True)
class PackedGroups:
    """Groups as one packed input, and where each row ends in it."""

    tokens: Int[Tensor, " tokens"]
    positions: Int[Tensor, "1 tokens"]
    plan: SharedPrefixes
    row_ends: Int[Tensor, " rows"]  # index into `tokens` of every row's last token


def pack_groups(groups: Sequence[Sequence[Sequence[int]]], device: torch.device) -> PackedGroups:
    """Pack rows of ids, group by group; what all rows of a group begin with is written once."""
    tokens: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    shapes = []
    for rows in groups:
        shared = shared_length(rows)
        tokens += rows[0][:shared]
        positions += range(shared)
        for row in rows:
            tokens += row[shared:]
            positions += range(shared, len(row))
            ends.append(len(tokens) - 1)
        shapes.append(Group(shared, tuple(len(row) - shared for row in rows)))
    return PackedGroups(
        torch.tensor(tokens, device=device),
        torch.tensor(positions, device=device)[None],
        SharedPrefixes(tuple(shapes)),
        torch.tensor(ends, device=device),
    )


def shared_length(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with, less what leaves every row a token of its own; 0 for a single row."""
    if len(rows) == 1:
        return 0
    alike = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*rows, strict=False))
    return min(sum(1 for _ in alike), min(map(len, rows)) - 1)
