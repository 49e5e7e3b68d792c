"""What the trust regions weigh: a figure of each, drawn from the object itself. Needs matplotlib (extra bench).

    python -m benchmarks.region_figures            # writes docs/images/regions.png

Every panel has the probability at rollout (μ) to the right and the probability now (π) upwards; every token is a row of
its own, so what row regions do with longer rows is not shown. SAT alone in its row is the clip.
"""

import argparse
from pathlib import Path

import torch

from nearstep import PPOConfig
from nearstep.algorithm.trust_regions import ActionRows, TokenLogprobs
from nearstep.assembly.axes import trust_region
from nearstep.config.axes import TRUST_REGIONS

POINTS = 160
SETTINGS: dict[str, dict[str, float]] = {"drpo": {"region_threshold": 0.5}}  # where a default shows next to nothing


def weights(name: str, advantage: float) -> torch.Tensor:
    """The weight at each pair of probabilities, [π, μ]."""
    region = trust_region(PPOConfig(trust_region=name, **SETTINGS.get(name, {})))
    axis = (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS
    now, old = (probability.flatten().log() for probability in torch.meshgrid(axis, axis, indexing="ij"))
    columns = (now[:, None], old[:, None]) if region.top_k else (None, None)
    rows = ActionRows(torch.ones(len(now), dtype=torch.long), torch.zeros(len(now), dtype=torch.long))
    both = (TokenLogprobs(policy, top) for policy, top in zip((now, old), columns, strict=True))
    return region.weight(*both, torch.full_like(now, advantage), rows).reshape(POINTS, POINTS)


def draw(output: Path) -> None:
    """All regions, two panels each: A > 0 and A < 0."""
    from matplotlib.figure import Figure

    columns = 6
    lines = -(-2 * len(TRUST_REGIONS) // columns)
    figure = Figure(figsize=(columns * 1.5, lines * 1.65), dpi=90, layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True).flatten()
    for number, panel in enumerate(panels):
        if number // 2 >= len(TRUST_REGIONS):
            panel.set_axis_off()
            continue
        name, sign = TRUST_REGIONS[number // 2], 1.0 - 2 * (number % 2)
        image = panel.imshow(
            weights(name, sign), origin="lower", extent=(0, 1, 0, 1), cmap="RdBu", vmin=-1, vmax=3, aspect="equal"
        )
        panel.set_title(f"{name}, A {'>' if sign > 0 else '<'} 0", fontsize=7)
        panel.set_xticks([0, 1])
        panel.set_yticks([0, 1])
        panel.tick_params(labelsize=6)
    figure.supxlabel("μ, at rollout", fontsize=8)
    figure.supylabel("π, now", fontsize=8)
    figure.colorbar(image, ax=list(panels), shrink=0.5, extend="both").ax.tick_params(labelsize=6)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)


def main() -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/images/regions.png"))
    draw(parser.parse_args().output)


if __name__ == "__main__":
    main()
