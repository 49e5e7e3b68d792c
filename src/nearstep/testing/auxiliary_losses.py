"""The laws of auxiliary losses."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nearstep.assembly.auxiliary_checks import attributes_problem, made_up_experience, made_up_logprobs
from nearstep.models.forward.action_logprobs import ActionLogprobs
from nearstep.testing.kinds import lacks
from nearstep.testing.law import CheckResult, Law, hold
from nearstep.training.auxiliary import AuxiliaryLoss, count_problem, sum_problem
from nearstep.types import Experience

CLOSE = 1e-9
SPLITS = ([[0], [1], [2]], [[0, 1], [2]], [[2], [0, 1]])
EXTREMES = (-60.0, 0.0)  # log-probs of tokens that are all but impossible, and certain as far as rounding goes


def check_auxiliary_loss(loss: Any, *, skip: Sequence[str] = ()) -> CheckResult:
    """Hold an auxiliary loss to its laws. Raises ConformanceError with the first that is broken."""
    return hold(f"auxiliary loss {type(loss).__name__}", loss, LAWS, skip)


def _protocol(loss: AuxiliaryLoss) -> str | None:
    return lacks(loss, "auxiliary_loss") or attributes_problem(loss)


def _one_sum(loss: AuxiliaryLoss) -> str | None:
    rows = made_up_experience()
    found = loss.loss(rows, made_up_logprobs(rows, loss))
    problem = count_problem(float(loss.count(rows))) or sum_problem(found)
    if problem is None and not math.isfinite(float(found[0].detach())):
        return f"the sum of three ordinary rows is {float(found[0].detach()):g}"
    return problem


def _adds_up(loss: AuxiliaryLoss) -> str | None:
    whole = made_up_experience()
    total, count = _total(loss, whole), float(loss.count(whole))
    for split in SPLITS:
        parts = [whole.select(torch.tensor(rows)) for rows in split]
        counts, totals = (sum(float(each(part)) for part in parts) for each in (loss.count, lambda p: _total(loss, p)))
        if not math.isclose(counts, count, rel_tol=CLOSE, abs_tol=CLOSE):
            return f"count is {count:g} for three rows, and {counts:g} for the same in parts {split}"
        if not math.isclose(totals, total, rel_tol=CLOSE, abs_tol=CLOSE):
            return f"the sum is {total:g} for three rows, and {totals:g} for the same in parts {split}"
    return None


def _no_rows(loss: AuxiliaryLoss) -> str | None:
    none = made_up_experience().select(torch.empty(0, dtype=torch.long))
    count, total = float(loss.count(none)), _total(loss, none)
    return None if count == 0 and total == 0 else f"count is {count:g} and the sum {total:g} for no rows"


def _finite(loss: AuxiliaryLoss) -> str | None:
    rows = made_up_experience()
    for value in EXTREMES:
        now = _with_sampled(made_up_logprobs(rows, loss), torch.full_like(rows.old_logprobs, value))
        total, gradients = _differentiated(loss, rows, now)
        if not math.isfinite(total) or not all(bool(each.isfinite().all()) for each in gradients):
            return f"where every log-prob is {value:g} the sum is {total:g}, or a gradient is not finite"
    return None


def _through_now(loss: AuxiliaryLoss) -> str | None:
    rows = made_up_experience()
    count: object = loss.count(rows)
    if isinstance(count, Tensor) and count.requires_grad:
        return "count carries a gradient"
    total, gradients = _differentiated(loss, rows, made_up_logprobs(rows, loss))
    moves = any(bool(each.any()) for each in gradients)
    return None if moves else f"no log-prob gets a gradient from a sum of {total:g}"


def _repeatable(loss: AuxiliaryLoss) -> str | None:
    rows = made_up_experience()
    once, again = ((float(loss.count(rows)), _total(loss, rows)) for _ in range(2))
    return None if once == again else f"{once} and then {again} for the same rows"


def _inputs_untouched(loss: AuxiliaryLoss) -> str | None:
    rows, before = made_up_experience(), made_up_experience()
    now = made_up_logprobs(rows, loss)
    kept = now.sampled.detach().clone()
    loss.count(rows)
    loss.loss(rows, now)
    changed = [
        name for name, value in vars(rows).items() if isinstance(value, Tensor) and not value.equal(vars(before)[name])
    ]
    if not torch.equal(now.sampled.detach(), kept):
        changed.append("now.sampled")
    return f"{', '.join(changed)} was changed in place" if changed else None


def _total(loss: AuxiliaryLoss, rows: Experience) -> float:
    return float(loss.loss(rows, made_up_logprobs(rows, loss))[0].detach())


def _with_sampled(now: ActionLogprobs, sampled: Tensor) -> ActionLogprobs:
    return ActionLogprobs(sampled.requires_grad_(), now.entropy, now.top, now.log_normalizers)


def _differentiated(loss: AuxiliaryLoss, rows: Experience, now: ActionLogprobs) -> tuple[float, list[Tensor]]:
    """The sum, and its gradients on what the policy says now; none where it is no function of that."""
    total, _ = loss.loss(rows, now)
    if not total.requires_grad:
        return float(total), []
    read = [now.sampled, *([] if now.log_normalizers is None else [now.log_normalizers])]
    found = torch.autograd.grad(total, read, allow_unused=True)
    return float(total.detach()), [each for each in found if each is not None]


LAWS: tuple[Law[AuxiliaryLoss], ...] = (
    Law("protocol", "it has name, coef, needs_log_normalizers, count(experience) and loss(micro, now)", _protocol),
    Law("one_sum", "count is a finite number from 0 on, loss one finite float and Metrics", _one_sum),
    Law(
        "adds_up",
        "count and sum of rows are those of their parts together, so that micro-batches change nothing",
        _adds_up,
    ),
    Law("no_rows", "for no rows count and sum are 0", _no_rows),
    Law("finite", "sum and gradients are finite for log-probs of any size", _finite),
    Law("through_now", "the policy gets a gradient, through `now`; count carries none", _through_now),
    Law("repeatable", "the same rows have the same count and sum again", _repeatable),
    Law("inputs_untouched", "what it is given stays as it is", _inputs_untouched),
)
