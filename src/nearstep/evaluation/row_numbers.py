"""The numbers of an evaluation: means with their standard errors, and shares of wins with an interval, by prompt.

Responses to one prompt are alike, so that prompts are what is counted: a prompt's value is the mean over its responses.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from nearstep.common.intervals import wilson
from nearstep.evaluation.eval_answers import EvaluatedRow, Opponents, ScoredAnswer


def evaluation_numbers(rows: Sequence[EvaluatedRow], others: Sequence[Opponents]) -> dict[str, int | float]:
    """All numbers by name; `others` are what each row is compared with. What was never counted is absent."""
    scores = [(row.row, row.answer.score) for row in rows]
    numbers = _mean("objective/scores", scores)
    known = [score for _, score in scores if score is not None]
    if known:
        numbers["objective/scores_std"] = float(np.std(known))
    numbers |= _mean("objective/kl", [(row.row, row.kl) for row in rows])
    numbers |= _mean("response/length_mean", [(row.row, float(row.length)) for row in rows])
    if rows:
        numbers["response/length_max"] = max(row.length for row in rows)
    numbers |= _mean("response/truncated", [(row.row, float(not row.finished)) for row in rows])
    numbers |= _parts("reward/", [row.parts for row in rows])
    numbers |= _mean("judge/scores", [(row.row, row.answer.judge) for row in rows])
    numbers |= _parts("judge/reward/", [row.judge_parts for row in rows])
    for name, answers in (
        ("start", [other.start for other in others]),
        ("reference", [other.reference for other in others]),
    ):
        pairs = list(zip(rows, answers, strict=True))
        numbers |= _win_rate(
            f"win_rate/{name}", [(row.row, row.answer.score, _of(answer, "score")) for row, answer in pairs]
        )
        numbers |= _win_rate(
            f"judge/win_rate/{name}", [(row.row, row.answer.judge, _of(answer, "judge")) for row, answer in pairs]
        )
    return numbers


def _of(answer: ScoredAnswer | None, which: str) -> float | None:
    if answer is None:
        return None
    return answer.score if which == "score" else answer.judge


def _parts(prefix: str, parts: Sequence[Mapping[str, float | None]]) -> dict[str, int | float]:
    names = dict.fromkeys(name for row in parts for name in row)
    found = {name: [value for row in parts if (value := row.get(name)) is not None] for name in names}
    return {f"{prefix}{name}": float(np.mean(values)) for name, values in found.items() if values}


def _mean(name: str, values: Iterable[tuple[int, float | None]]) -> dict[str, int | float]:
    """The mean over responses, its standard error by prompt (from two prompts on), and the number of prompts."""
    known = [(prompt, value) for prompt, value in values if value is not None]
    if not known:
        return {}
    by_prompt = _by_prompt(known)
    numbers = {name: math.fsum(value for _, value in known) / len(known)}
    if len(by_prompt) > 1:
        numbers[f"{name}_stderr"] = float(np.std(by_prompt, ddof=1)) / math.sqrt(len(by_prompt))
    return {**numbers, f"{name}_n": len(by_prompt)}


def _win_rate(name: str, pairs: Iterable[tuple[int, float | None, float | None]]) -> dict[str, int | float]:
    """The share of wins, a tie counting ½, and its Wilson interval over prompts."""
    wins = [
        (prompt, 0.5 if ours == theirs else float(ours > theirs))
        for prompt, ours, theirs in pairs
        if ours is not None and theirs is not None
    ]
    if not wins:
        return {}
    by_prompt = _by_prompt(wins)
    share = math.fsum(by_prompt) / len(by_prompt)
    low, high = wilson(share, len(by_prompt))
    return {name: share, f"{name}_low": low, f"{name}_high": high, f"{name}_n": len(by_prompt)}


def _by_prompt(values: Sequence[tuple[int, float]]) -> list[float]:
    grouped: dict[int, list[float]] = {}
    for prompt, value in values:
        grouped.setdefault(prompt, []).append(value)
    return [math.fsum(each) / len(each) for each in grouped.values()]
