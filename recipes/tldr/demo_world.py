"""The demo's world as TL;DR lies on a hub: posts with summaries, comparisons, and a base model that knows nothing.

python recipes/tldr/demo_world.py FOLDER [POSTS]
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from nearstep.demo.preferences import Ranking, draw_rankings
from nearstep.demo.prepare import write_lines
from nearstep.demo.supervised import ModelSize, new_policy
from nearstep.demo.tokenizer import train_tokenizer
from nearstep.demo.world import draw_posts, draw_references

SEED, POSTS, SUMMARIES, UNSEEN = 0, 9600, 3, 400


def main(folder: Path, count: int = POSTS) -> None:
    """Write everything; the same files each time. A fifth as many posts are ranked, and as many are left for PPO."""
    folder.mkdir(parents=True, exist_ok=True)
    posts = draw_posts(SEED, "supervised", count)
    rows = [
        {"prompt": post.prompt, "completion": summary.text}
        for writer in range(SUMMARIES)
        for post, summary in zip(posts, draw_references(SEED, f"supervised/{writer}", posts), strict=True)
        if summary.finished
    ]
    write_lines(folder / "summaries.jsonl", rows)
    rankings = draw_rankings(SEED, "ranked", draw_posts(SEED, "ranked", count // 5))
    write_lines(folder / "comparisons.jsonl", (pair for ranking in rankings for pair in comparisons(ranking)))
    write_lines(folder / "prompts.jsonl", ({"prompt": post.prompt} for post in draw_posts(SEED, "prompts", count // 5)))
    unseen = draw_posts(SEED, "held out", UNSEEN)
    references = draw_references(SEED, "held out", unseen)
    write_lines(
        folder / "test.jsonl",
        (
            {"prompt": post.prompt, "reference": reference.text}
            for post, reference in zip(unseen, references, strict=True)
        ),
    )
    tokenizer = train_tokenizer([text for row in rows for text in row.values()])
    new_policy(tokenizer, ModelSize(), seed=SEED).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")


def comparisons(ranking: Ranking) -> Iterator[dict[str, str]]:
    """A better and a worse summary of a post, as often as its labeller told them apart."""
    for better, worse in ranking.pairs():
        chosen, rejected = ranking.summaries[better], ranking.summaries[worse]
        if chosen.finished and rejected.finished and chosen.text != rejected.text:
            yield {"prompt": ranking.prompt, "chosen": chosen.text, "rejected": rejected.text}


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
