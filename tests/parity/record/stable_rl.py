"""Records what the authors of Divergence PPO do with a token: which ones they drop, loss and gradient of the others.

Their formulas (sail-sg/Stable-RL at 22ce6d3: verl/trainer/ppo/core_algos.py, verl/workers/actor/utils.py) are written
out again in NumPy, in float32 as there, since their code needs a GPU stack to be imported. Imports nothing of nearstep.

    python -m tests.parity.record.stable_rl --output tests/parity/recorded/stable_rl.npz
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.parity.record.writing import write

ROWS, LENGTH, VOCABULARY, TOP = 12, 32, 24, 5
EPSILON = np.float32(1e-8)  # theirs, in the binary KL
SMALLEST = np.float32(1e-12)  # theirs, for the mass outside the top tokens
EDGES = (1e-6, 1e-4, 1e-2, 0.3, 0.7, 0.99, 1 - 1e-4, 1 - 1e-6)

# Thresholds by mode, low and high. In the ablations a threshold may be the probability from which a token is common.
THRESHOLDS = {
    "dppo_binary_tv": ((0.15, 0.15), (0.05, 0.3)),
    "dppo_binary_kl": ((0.05, 0.05), (0.01, 0.2)),
    "dppo_topk_tv": ((0.15, 0.15), (0.05, 0.3)),
    "dppo_topk_kl": ((0.05, 0.05), (0.01, 0.2)),
    "dppo_binary_tv_recompute": ((0.15, 0.15), (0.05, 0.3)),
    "dppo_binary_kl_recompute": ((0.05, 0.05), (0.01, 0.2)),
    "ppo": ((0.2, 0.2), (0.2, 0.28)),
    "ppo_recompute": ((0.2, 0.2), (0.2, 0.28)),
    "ppo_ablation_positive": ((0.2, 0.1), (0.2, 0.5)),
    "ppo_ablation_negative": ((0.1, 0.28), (0.5, 0.28)),
    "ppo_ablation_both": ((0.1, 0.1), (0.3, 0.5)),
    "pg_no_mask": ((0.0, 0.0),),
}
RATIO_CAPS = (np.inf, 10.0, 1.5)


@dataclass(frozen=True)
class Tokens:
    """Log-probs of the sampled and of the top tokens, [rows, length (, top)]: now, at rollout, and computed anew."""

    now: NDArray[np.float32]
    rollout: NDArray[np.float32]
    recomputed: NDArray[np.float32]
    now_top: NDArray[np.float32]
    rollout_top: NDArray[np.float32]
    advantages: NDArray[np.float32]
    mask: NDArray[np.bool_]


def draw() -> Tokens:
    """Policies from nearly equal to far apart; in the first rows a token's probability jumps between all edges."""
    draws = np.random.default_rng(0)
    sharpness = np.linspace(0.3, 4, LENGTH)[None, :, None]
    rollout = log_softmax(draws.normal(size=(ROWS, LENGTH, VOCABULARY)) * sharpness)
    distance = np.linspace(0.02, 1.5, ROWS)[:, None, None]
    now = log_softmax(rollout + distance * draws.normal(size=rollout.shape))
    recomputed = log_softmax(rollout + 0.15 * draws.normal(size=rollout.shape))
    sampled = np.array([[draws.choice(VOCABULARY, p=np.exp(place)) for place in row] for row in rollout])

    pairs = [(old, new) for old in EDGES for new in EDGES]
    for number, (old, new) in enumerate(pairs):
        place = divmod(number, LENGTH)
        rollout[place] = _with_probability(rollout[place], sampled[place], old)
        now[place] = _with_probability(now[place], sampled[place], new)
        recomputed[place] = _with_probability(recomputed[place], sampled[place], 0.9 * old)

    advantages = draws.normal(size=(ROWS, LENGTH))
    advantages[:, ::11] = 0
    top_ids = _top_ids(rollout, sampled)
    lengths = draws.integers(4, LENGTH + 1, size=(ROWS, 1))
    lengths[: len(pairs) // LENGTH] = LENGTH
    chosen = [np.take_along_axis(policy, sampled[..., None], -1)[..., 0] for policy in (now, rollout, recomputed)]
    top = [np.take_along_axis(policy, top_ids, -1) for policy in (now, rollout)]
    arrays = [array.astype(np.float32) for array in (*chosen, *top, advantages)]
    return Tokens(*arrays, np.arange(LENGTH) < lengths)


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural log of the softmax over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _with_probability(logprobs: NDArray[np.float64], token: int, probability: float) -> NDArray[np.float64]:
    """The distribution with `token` set to a probability, the others scaled to the rest."""
    others = 1 - np.exp(logprobs[token])
    changed = logprobs + np.log((1 - probability) / others)
    changed[token] = np.log(probability)
    return changed


def _top_ids(rollout: NDArray[np.float64], sampled: NDArray[np.int64]) -> NDArray[np.int64]:
    """The most probable tokens at rollout; the sampled one takes the place of the least if it is not among them."""
    ids = np.argsort(-rollout, axis=-1, kind="stable")[..., :TOP]
    missing = ~(ids == sampled[..., None]).any(-1)
    ids[..., -1] = np.where(missing, sampled, ids[..., -1])
    return ids


def binary_kl(old: NDArray[np.float32], now: NDArray[np.float32]) -> NDArray[np.float32]:
    """KL of "this token or another", from log-probs."""
    q, p = np.exp(old), np.exp(now)
    return q * (old - now) + (1 - q) * np.log((1 - q + EPSILON) / (1 - p + EPSILON))


def top_divergences(t: Tokens) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """KL and TV over the top tokens and one bucket for the rest."""
    q, p = np.exp(t.rollout_top), np.exp(t.now_top)
    q_rest, p_rest = (np.maximum(1 - mass.sum(-1), SMALLEST) for mass in (q, p))
    kl = (q * (t.rollout_top - t.now_top)).sum(-1) + q_rest * (np.log(q_rest) - np.log(p_rest))
    return kl, (np.abs(q - p).sum(-1) + np.abs(q_rest - p_rest)) / 2


def dropped(mode: str, t: Tokens, low: float, high: float) -> NDArray[np.bool_]:
    """The tokens without gradient: one rule where the advantage is above 0, another for the rest."""
    p, q, old = np.exp(t.now), np.exp(t.rollout), np.exp(t.recomputed)
    ratio, old_ratio = np.exp(t.now - t.rollout), np.exp(t.now - t.recomputed)
    match mode:
        case "dppo_binary_tv":
            rising, falling = p - q > high, p - q < -low
        case "dppo_binary_tv_recompute":
            rising, falling = p - old > high, p - old < -low
        case "dppo_binary_kl":
            rising, falling = _outside(binary_kl(t.rollout, t.now), p, q, low, high)
        case "dppo_binary_kl_recompute":
            rising, falling = _outside(binary_kl(t.recomputed, t.now), p, old, low, high)
        case "dppo_topk_kl":
            rising, falling = _outside(top_divergences(t)[0], p, q, low, high)
        case "dppo_topk_tv":
            rising, falling = _outside(top_divergences(t)[1], p, q, low, high)
        case "ppo":
            rising, falling = ratio > 1 + high, ratio < 1 - low
        case "ppo_recompute":
            rising, falling = old_ratio > 1 + high, old_ratio < 1 - low
        case "ppo_ablation_positive":
            rising, falling = (ratio > 1.28) & (q >= high), ratio < 1 - low
        case "ppo_ablation_negative":
            rising, falling = ratio > 1 + high, (ratio < 0.8) & (q >= low)
        case "ppo_ablation_both":
            rising, falling = (ratio > 1.28) & (q >= high), (ratio < 0.8) & (q >= low)
        case "pg_no_mask":
            rising = falling = np.zeros_like(p, dtype=bool)
        case _:
            raise ValueError(mode)
    return np.where(t.advantages > 0, rising, falling)


def _outside(
    divergence: NDArray[np.float32], p: NDArray[np.float32], q: NDArray[np.float32], low: float, high: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    return (divergence > high) & (p > q), (divergence > low) & (p < q)


@dataclass(frozen=True)
class Outcome:
    """Of a mode with its thresholds and its cap of the ratio: tokens kept, mean loss, and its gradient by log π."""

    kept: NDArray[np.bool_]
    loss: np.float32
    gradient: NDArray[np.float32]


def outcome(mode: str, t: Tokens, low: float, high: float, cap: float) -> Outcome:
    """Their loss −A · min(π/μ, C) · kept · log π, its mean over the tokens of all rows, and the mean's gradient.

    The ratio is that to the rollout in every mode, also where the mask looks at log-probs computed anew.
    """
    kept = t.mask & ~dropped(mode, t, low, high)
    ratio = np.minimum(np.exp(np.minimum(t.now - t.rollout, np.float32(20))), np.float32(cap))
    gradient = -t.advantages * ratio * kept / np.float32(t.mask.sum())
    return Outcome(kept, (gradient * t.now)[t.mask].sum(dtype=np.float32), gradient)


def cases() -> Iterator[tuple[str, float, float, float]]:
    """Every mode, thresholds, and cap of the ratio."""
    for mode, thresholds in THRESHOLDS.items():
        for low, high in thresholds:
            for cap in RATIO_CAPS:
                yield mode, low, high, cap


def main() -> None:
    """Write the tokens, and the outcome of every case under mode/low/high/cap."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_args().output
    tokens = draw()
    arrays = dict(vars(tokens))
    for mode, low, high, cap in cases():
        found = outcome(mode, tokens, low, high, cap)
        arrays |= {f"{mode}/{low}/{high}/{cap}/{name}": array for name, array in vars(found).items()}
    write(output, arrays, packages=("numpy",))


if __name__ == "__main__":
    main()
