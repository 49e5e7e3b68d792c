"""Texts that are learned by heart: rows of token ids, back to back, of which all but their beginning is predicted."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from nearstep.algorithm.ragged import places_in_row, row_numbers, take_rows
from nearstep.types import Rollout


@dataclass(frozen=True)
class TextRows:
    """Rows of texts; a row's first `given` tokens are read and not predicted, 1 at least."""

    tokens: Int[Tensor, " tokens"]
    lengths: Int[Tensor, " rows"]
    given: Int[Tensor, " rows"]

    @staticmethod
    def of(texts: Sequence[tuple[Sequence[int], int]], longest: int) -> "TextRows":
        """Texts as ids and how many of them are given.

        A text longer than `longest` becomes several rows. Each of them begins with the last token of the one before,
        so that every token but the given ones is predicted once; pieces in which nothing is predicted are left out.
        """
        tokens: list[Tensor] = []
        given: list[int] = []
        for ids, first in texts:
            first = max(1, first)
            for start in range(0, max(1, len(ids) - 1), longest - 1):
                piece = ids[start : start + longest]
                if len(piece) > (known := max(1, first - start)):
                    tokens.append(torch.tensor(piece, dtype=torch.int32))
                    given.append(known)
        joined = torch.cat(tokens) if tokens else torch.empty(0, dtype=torch.int32)
        lengths = torch.tensor([len(piece) for piece in tokens], dtype=torch.int64)
        return TextRows(joined, lengths, torch.tensor(given, dtype=torch.int64))

    @staticmethod
    def joined(parts: Sequence["TextRows"]) -> "TextRows":
        """The rows of all parts, in order."""
        return TextRows(*(torch.cat([vars(part)[name] for part in parts]) for name in ("tokens", "lengths", "given")))

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def predicted(self) -> Int[Tensor, " rows"]:
        """Tokens of each row that are predicted."""
        return self.lengths - self.given

    def digest(self) -> str:
        """A hash of all of them."""
        digest = hashlib.sha256(self.tokens.int().numpy().tobytes())
        digest.update(self.lengths.numpy().tobytes())
        digest.update(self.given.numpy().tobytes())
        return digest.hexdigest()

    def select(self, rows: Sequence[int]) -> "TextRows":
        """Some of the rows, in the given order."""
        chosen = torch.tensor(rows, dtype=torch.int64)
        return TextRows(self.tokens[take_rows(self.lengths, chosen)], self.lengths[chosen], self.given[chosen])

    def as_rollout(self, device: torch.device) -> Rollout:
        """The same as rows of a rollout, whose actions are the tokens to be predicted."""
        is_action = places_in_row(self.lengths) >= self.given[row_numbers(self.lengths)]
        rows = torch.zeros_like(self.lengths)
        return Rollout(
            tokens=self.tokens.long().to(device),
            is_action=is_action.to(device),
            row_lengths=self.lengths.to(device),
            logprobs=torch.zeros(int(is_action.sum()), device=device),
            finished=torch.ones_like(rows, dtype=torch.bool).to(device),
            policy_version=rows.to(device),
        )
