"""What PPO's curves look like: score, KL, entropy and length over episodes, drawn from a run's metrics.

python recipes/tldr/curves.py OUT/ppo curves.png
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

SHOWN = {
    "objective/scores": "score of the reward model",
    "objective/kl": "KL to the supervised start, nats a response",
    "policy/entropy_avg": "entropy, nats a token",
    "val/explained_variance": "explained variance of the critic",
}


def main(run: Path, picture: Path) -> None:
    """One small picture for each number."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    figure, places = plt.subplots(1, len(SHOWN), figsize=(4 * len(SHOWN), 3), layout="constrained")
    for place, (name, title) in zip(places, SHOWN.items(), strict=True):
        known = [row for row in rows if name in row]
        place.plot([row["episode"] for row in known], [row[name] for row in known], linewidth=1.5)
        place.set(title=title, xlabel="episodes")
        place.grid(alpha=0.3)
    figure.savefig(picture, dpi=80)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
