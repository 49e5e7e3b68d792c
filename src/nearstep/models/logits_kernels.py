"""What is read off logits on a CPU, and their gradient, in one pass each: float32, compiled by numba.

z stands for logits times a factor, the temperature's; a line holds those of one action.
"""

from typing import Any, TypeAlias

import numpy as np

from nearstep.models.cpu_loops import (
    Real,
    compiled,
    copy,
    exponentials,
    f4,
    inner_product,
    largest,
    scale,
    scale_by_line,
    scratch,
    total,
)
from nearstep.models.cpu_tiles import Floats

Ids: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"
PIECE = 512  # logits that are worked on together, in the nearest cache
IMPOSSIBLE = f4(-1e4)  # a finite log-probability whose probability is 0
NOTHING = f4(0)


@compiled()
def lowered(into: Floats, line: Floats, factor: Real, shift: Real) -> None:
    """factor · line − shift, where it is less IMPOSSIBLE; NaN stays NaN."""
    for j in range(len(line)):
        x = line[j] * factor - shift
        into[j] = IMPOSSIBLE if x < IMPOSSIBLE else x


@compiled()
def read(linear: Floats, asked: Ids, factor: Real, logprobs: Floats, entropy: Floats) -> None:
    """log p of the ids `asked` of every line, and −Σ p · log p; logits are left as they are.

    With s = Σ exp(z − max z), both come from one pass after that for the largest: log p = z − max z − log s, and the
    entropy is log s − Σ exp(z − max z) · (z − max z) / s.
    """
    room = scratch(2 * PIECE)
    for i in range(linear.shape[0]):
        line = linear[i]
        most = largest(line, f4(-np.inf)) * factor
        mass: Real = 0.0
        mean: Real = 0.0
        for start in range(0, len(line), PIECE):
            piece = line[start : start + PIECE]
            below, powers = room[: len(piece)], room[PIECE : PIECE + len(piece)]
            lowered(below, piece, factor, most)
            copy(powers, below)
            exponentials(powers, NOTHING)
            mass += total(powers)
            mean += inner_product(powers, below)
        log_mass = np.log(mass)
        for k in range(asked.shape[1]):
            logprobs[i, k] = np.float64(line[asked[i, k]] * factor - most) - log_mass
        entropy[i] = log_mass - mean / mass


@compiled()
def differentiate(
    linear: Floats,
    asked: Ids,
    factor: Real,
    sampled: Floats,
    entropy: Floats,
    of_asked: Floats,
    of_entropy: Floats,
) -> None:
    """Logits become their own gradient, from those of the log-probs `asked` and of the entropies.

    `sampled` is the log-prob of each line's first id, from which its normaliser is known. ∂ log p_a / ∂z is
    onehot_a − p, and ∂H / ∂z is −p · (log p + H). Where the entropy is not trained, `of_entropy` has no numbers.
    """
    room = scratch(PIECE)
    for i in range(linear.shape[0]):
        line = linear[i]
        normaliser = line[asked[i, 0]] * factor - sampled[i]
        whole = total(of_asked[i]) * factor
        for start in range(0, len(line), PIECE):
            piece = line[start : start + PIECE]
            lowered(piece, piece, factor, normaliser)
            if len(of_entropy) == 0:
                exponentials(piece, NOTHING)
                scale(piece, -whole)
            else:
                logprobs = room[: len(piece)]
                copy(logprobs, piece)
                exponentials(piece, NOTHING)
                scale_by_line(piece, logprobs, -of_entropy[i] * factor, -whole - of_entropy[i] * factor * entropy[i])
        for k in range(asked.shape[1]):
            line[asked[i, k]] += of_asked[i, k] * factor
