"""Records TRL's Divergence PPO: its masks, its loss and the loss's gradient, on random distributions.

TRL's own methods are called on a stand-in that has the attributes they read. Instead of running a model, the stand-in
hands out log-probs that were drawn here, so that old and new distributions can be as far apart as they need to be.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from types import MethodType, SimpleNamespace

import torch
from torch import Tensor
from trl.experimental.dppo import DPPOTrainer

from tests.parity.record.writing import write

ROWS, LENGTH, VOCABULARY, TOP = 10, 24, 20, 5
THRESHOLDS = {
    "binary_tv": ((0.15, 0.15), (0.05, 0.3)),
    "binary_kl": ((0.05, 0.05), (0.01, 0.2)),
    "topk_tv": ((0.15, 0.15), (0.05, 0.3)),
    "topk_kl": ((0.05, 0.05), (0.01, 0.2)),
}
RATIO_CAPS = (20.0, 1.5)


def draw() -> dict[str, Tensor]:
    """Old and new distributions from nearly equal to far apart, sharp and flat; advantages of both signs, some zero."""
    draws = torch.Generator().manual_seed(0)
    sharpness = torch.linspace(0.3, 4, LENGTH)[None, :, None]
    old_logits = torch.randn(ROWS, LENGTH, VOCABULARY, generator=draws) * sharpness
    distance = torch.linspace(0.02, 1.5, ROWS)[:, None, None]
    logits = old_logits + distance * torch.randn(old_logits.shape, generator=draws)
    old_all, now_all = old_logits.log_softmax(-1), logits.log_softmax(-1)

    sampled = torch.multinomial(old_all.exp().flatten(0, 1), 1, generator=draws).view(ROWS, LENGTH, 1)
    top_ids = old_all.topk(TOP).indices
    missing = ~(top_ids == sampled).any(-1)
    top_ids[..., -1] = torch.where(missing, sampled.squeeze(-1), top_ids[..., -1])

    advantages = torch.randn(ROWS, LENGTH, generator=draws)
    advantages[:, ::11] = 0
    lengths = torch.randint(4, LENGTH + 1, (ROWS, 1), generator=draws)
    return {
        "old": old_all.gather(-1, sampled).squeeze(-1),
        "now": now_all.gather(-1, sampled).squeeze(-1),
        "old_top": old_all.gather(-1, top_ids),
        "now_top": now_all.gather(-1, top_ids),
        "advantages": advantages,
        "mask": (torch.arange(LENGTH) < lengths).long(),
    }


def stand_in(given: dict[str, Tensor], now: Tensor, kind: str, low: float, high: float, cap: float) -> SimpleNamespace:
    """What TRL's methods read of their trainer."""
    entropies = torch.zeros_like(now)
    trainer = SimpleNamespace(
        divergence_type=kind, epsilon_low=low, epsilon_high=high, clip_ratio_c=cap, beta=0.0,
        accelerator=SimpleNamespace(num_processes=1, gather=lambda values: values),
        model=SimpleNamespace(training=True), _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (now, entropies, None),
        _get_per_token_logps_with_topk=lambda *_, **__: (now, entropies, given["now_top"]),
    )  # fmt: skip
    trainer._compute_divergence_mask = MethodType(DPPOTrainer._compute_divergence_mask, trainer)
    return trainer


def loss_and_gradient(
    given: dict[str, Tensor], kind: str, low: float, high: float, cap: float
) -> tuple[Tensor, Tensor, Tensor]:
    """TRL's mask, its loss, and the loss's gradient by the log-prob of every token."""
    now = given["now"].clone().requires_grad_()
    trainer = stand_in(given, now, kind, low, high, cap)
    mask = trainer._compute_divergence_mask(
        now, given["old"], given["advantages"], given["mask"], given["now_top"], given["old_top"]
    )
    inputs = {
        "prompt_ids": torch.zeros(ROWS, 1, dtype=torch.long), "prompt_mask": torch.ones(ROWS, 1, dtype=torch.long),
        "completion_ids": torch.zeros_like(given["mask"]), "completion_mask": given["mask"],
        "sampling_per_token_logps": given["old"], "sampling_topk_logps": given["old_top"],
        "sampling_topk_token_ids": torch.zeros(1), "advantages": given["advantages"],
        "num_items_in_batch": given["mask"].sum(),
    }  # fmt: skip
    loss = DPPOTrainer._compute_loss(trainer, None, inputs)
    loss.backward()
    return mask.bool(), loss.detach(), now.grad


def main() -> None:
    """Every divergence, with equal and with unequal thresholds, with a ratio cap that binds and one that does not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_args().output
    given = draw()
    arrays = dict(given)
    for kind, thresholds in THRESHOLDS.items():
        for low, high in thresholds:
            for cap in RATIO_CAPS:
                name = f"{kind}/{low}/{high}/{cap}"
                found = loss_and_gradient(given, kind, low, high, cap)
                arrays |= {f"{name}/{what}": a for what, a in zip(("mask", "loss", "gradient"), found, strict=True)}
    write(output, arrays)


if __name__ == "__main__":
    main()
