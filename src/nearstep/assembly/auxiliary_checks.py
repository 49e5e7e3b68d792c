"""Whether an object of the user's is an auxiliary loss: tried on a few made-up rows, before any training."""

import math

import torch

from nearstep.common.errors import ConfigError, shorten
from nearstep.models.forward.action_logprobs import ActionLogprobs
from nearstep.training.auxiliary import AuxiliaryLoss, count_problem, sum_problem
from nearstep.types import Experience, Rollout

MEMBERS = ("name", "coef", "needs_log_normalizers", "count", "loss")
COUNTS = (3, 1, 2)  # actions of each row


def fitting_auxiliary_loss(found: object, what: str) -> AuxiliaryLoss:
    """The object, tried on three rows. Raises ConfigError where it is no auxiliary loss."""
    missing = [name for name in MEMBERS if name not in dir(found)]
    if missing:
        raise ConfigError(
            f"{what} has no {', '.join(missing)}: it needs name, coef, needs_log_normalizers (true or false), "
            "count(experience) and loss(micro, now)"
        )
    assert isinstance(found, AuxiliaryLoss)
    problem = attributes_problem(found)
    if problem is not None:
        raise ConfigError(f"{what}: {problem}")
    experience = made_up_experience()
    try:
        count = float(found.count(experience))
        total: object = found.loss(experience, made_up_logprobs(experience, found))
    except Exception as error:
        raise ConfigError(f"{what} failed on three made-up rows: {type(error).__name__}: {error}") from error
    problem = count_problem(count) or sum_problem(total)
    if problem is not None:
        raise ConfigError(f"{what} on three made-up rows: {problem}")
    return found


def attributes_problem(loss: AuxiliaryLoss) -> str | None:
    """What is wrong with name, weight and flag."""
    name, coef, flag = loss.name, loss.coef, loss.needs_log_normalizers
    if not isinstance(name, str) or not name or "/" in name:
        return f"name is {shorten(name)}; it is a word without a /, and is logged as auxiliary/<name>"
    if isinstance(coef, bool) or not isinstance(coef, int | float) or not math.isfinite(coef) or coef == 0:
        return f"coef is {shorten(coef)}; it is a finite number other than 0"
    return None if isinstance(flag, bool) else f"needs_log_normalizers is {shorten(flag)}; it is True or False"


def made_up_experience(dtype: torch.dtype = torch.float64) -> Experience:
    """Three rows with 3, 1 and 2 actions behind prompts of 2, 1 and 3 tokens; every field is there, rows 0 and 2 are
    good."""
    counts, prompts = torch.tensor(COUNTS), torch.tensor([2, 1, 3])
    actions = int(counts.sum())
    lengths = counts + prompts
    is_action = torch.cat([torch.arange(int(n)) >= int(p) for n, p in zip(lengths, prompts, strict=True)])
    recorded = torch.linspace(-3, -0.1, actions, dtype=dtype)
    rows, spread = torch.linspace(-1, 1, 3, dtype=dtype), torch.linspace(-1, 1, actions, dtype=dtype)
    rollout = Rollout(
        tokens=torch.arange(int(lengths.sum())),
        is_action=is_action,
        row_lengths=lengths,
        logprobs=recorded,
        finished=torch.tensor([True, False, True]),
        policy_version=torch.ones(3, dtype=torch.long),
    )
    return Experience(
        rollout=rollout,
        prompt_numbers=torch.arange(3),
        sample_numbers=torch.zeros(3, dtype=torch.long),
        scores=rows,
        old_logprobs=recorded,
        old_top=None,
        importance=torch.ones_like(recorded),
        ref_logprobs=recorded - 0.1,
        values=spread / 2,
        rewards=spread / 4,
        raw_advantages=spread,
        advantages=spread,
        returns=spread * 2,
        final_values=torch.zeros_like(rows),
        final_returns=torch.zeros_like(rows),
        train_final=torch.zeros(3, dtype=torch.bool),
        trained=torch.ones(3, dtype=torch.bool),
        kl_coef=0.1,
        good=torch.tensor([True, False, True]),
        teacher_logprobs=recorded.flip(0),
    )


def made_up_logprobs(experience: Experience, loss: AuxiliaryLoss, *, shift: float = 0.2) -> ActionLogprobs:
    """What the policy says of these rows now, with gradients: a little other than at rollout."""
    sampled = (experience.old_logprobs - shift).requires_grad_()
    normalizers = (3 * experience.values + 0.5).requires_grad_() if loss.needs_log_normalizers else None
    return ActionLogprobs(sampled, -experience.old_logprobs, None, normalizers)
