"""What the plain PPO of the tests computes with: estimators, sums and a step, as textbooks have them."""

import torch
from torch import Tensor


def ids_of(record: dict) -> Tensor:
    return torch.tensor([record["prompt_ids"] + record["completion_ids"]])


def chosen(distribution: Tensor, record: dict) -> Tensor:
    return distribution.gather(1, torch.tensor(record["completion_ids"])[:, None]).squeeze(-1)


def kl(now: Tensor, ref: Tensor, estimator: str) -> Tensor:
    log_ratio = ref - now
    return {"k1": -log_ratio, "k2": log_ratio**2 / 2, "k3": log_ratio.exp() - 1 - log_ratio}[estimator]


def aggregate(of_rows: list[Tensor], rule: str, longest: int) -> Tensor:
    match rule:
        case "token_mean":
            return torch.cat(of_rows).mean()
        case "token_sum":
            return torch.cat(of_rows).sum()
        case "sequence_mean":
            return torch.stack([row.mean() for row in of_rows]).mean()
        case "sequence_sum":
            return torch.stack([row.sum() for row in of_rows]).mean()
    return torch.stack([row.sum() / longest for row in of_rows]).mean()


def gradient_of(losses: Tensor, now: Tensor) -> Tensor:
    return torch.autograd.grad(losses.sum(), now, retain_graph=True)[0]


def step(loss: Tensor, weights: list[Tensor], rate: float) -> None:
    """Plain gradient descent."""
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                weight -= rate * gradient


def mean(values) -> float:
    return float(torch.as_tensor(values, dtype=torch.float64).mean())
