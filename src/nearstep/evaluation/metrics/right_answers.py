"""How often answers are right: accuracy, pass@k, avg@n, maj@n, from several answers to each prompt."""

from collections.abc import Hashable, Sequence
from math import comb

from nearstep.evaluation.metrics.figures import Bootstrap, Figure, grouped, mean, share

NOTHING = "no prompt has a reference, so nothing is right or wrong"


def accuracy(right: Sequence[bool | None], prompts: Sequence[int], bootstrap: Bootstrap) -> Figure:
    """The share of right answers over all rows, which is avg@n where each prompt has n; None: nobody knows."""
    return share([None if each is None else float(each) for each in right], prompts, bootstrap, why=NOTHING)


def pass_at_k(right: Sequence[bool | None], prompts: Sequence[int], k: int, bootstrap: Bootstrap) -> Figure:
    """The mean over prompts of 1 − C(n − c, k) / C(n, k): unbiased, c of n answers being right.

    Prompts with fewer than k answers are left out and counted. Source: Chen et al. 2021 (2107.03374), equation 1.
    """
    groups = _known(right, prompts)
    values = [None if len(group) < k else pass_probability(len(group), sum(group), k) for group in groups]
    why = f"no prompt has {k} answers" if groups else NOTHING
    return share(values, range(len(values)), bootstrap, why=why)


def pass_probability(n: int, c: int, k: int) -> float:
    """The probability that k of n answers, of which c are right, hold a right one."""
    return 1 - comb(n - c, k) / comb(n, k)


def majority(
    right: Sequence[bool | None], answers: Sequence[Hashable], prompts: Sequence[int], bootstrap: Bootstrap
) -> Figure:
    """maj@n: whether the most frequent answer of a prompt is right; answers with as many votes share (2203.11171).

    Rows without an answer (None) have no vote; a prompt without any vote is wrong.
    """
    rows = [(vote, flag) for vote, flag in zip(answers, right, strict=True)]
    groups = [group for group in grouped(rows, prompts) if all(flag is not None for _, flag in group)]
    values = [majority_result([vote for vote, _ in group], [bool(flag) for _, flag in group]) for group in groups]
    return mean(values, range(len(values)), bootstrap, why=NOTHING)


def majority_result(answers: Sequence[Hashable], right: Sequence[bool]) -> float:
    """1 if the answer with the most votes is right, shared between answers with as many; 0 without a vote."""
    votes: dict[Hashable, list[bool]] = {}
    for answer, flag in zip(answers, right, strict=True):
        if answer is not None:
            votes.setdefault(answer, []).append(flag)
    most = max(map(len, votes.values()), default=0)
    ahead = [flags for flags in votes.values() if len(flags) == most]
    # The same answer is right or wrong whoever gives it; where a rule wavers, its own majority counts.
    return sum(2 * sum(flags) > len(flags) for flags in ahead) / len(ahead) if ahead else 0.0


def _known(right: Sequence[bool | None], prompts: Sequence[int]) -> list[list[bool]]:
    """The answers of each prompt of which it is known whether they are right; prompts without any go."""
    groups = [[flag for flag in group if flag is not None] for group in grouped(right, prompts)]
    return [group for group in groups if group]
