"""How the demo's folder is filled before PPO: posts, a supervised start, a reward model, all made from the seed."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from nearstep.demo.batches import tokenize
from nearstep.demo.preferences import Ranking, draw_rankings
from nearstep.demo.reward import train_reward_model
from nearstep.demo.supervised import ModelSize, new_policy, train_policy
from nearstep.demo.tokenizer import train_tokenizer
from nearstep.demo.world import Post, draw_posts, draw_references

Say = Callable[[str], None]


@dataclass(frozen=True)
class DemoScale:
    """How much of everything is made."""

    supervised_posts: int = 9600
    summaries_per_post: int = 3
    supervised_batch: int = 24
    ranked_posts: int = 1800
    ranked_batch: int = 16
    prompts: int = 2000
    held_out: int = 400


QUICK = DemoScale(supervised_posts=240, ranked_posts=96, prompts=64, held_out=32)


@dataclass(frozen=True)
class Folders:
    """Where the parts of the world lie."""

    policy: Path
    reward: Path
    prompts: Path
    pairs: Path
    held_out: Path

    @staticmethod
    def under(folder: Path) -> "Folders":
        """The places under the demo's folder."""
        files = (folder / f"{name}.jsonl" for name in ("prompts", "pairs", "heldout"))
        return Folders(folder / "sft", folder / "reward", *files)


def prepare_world(folder: Path, *, seed: int, scale: DemoScale, say: Say) -> Folders:
    """Make everything anew; the same seed and scale make the same files."""
    folders = Folders.under(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _stage(say, "world"):
        posts = draw_posts(seed, "supervised", scale.supervised_posts)
        writers = [draw_references(seed, f"supervised/{writer}", posts) for writer in range(scale.summaries_per_post)]
        summaries = list(zip(*writers, strict=True))
        texts = [post.prompt for post in posts] + [summary.text for several in summaries for summary in several]
        tokenizer = train_tokenizer(texts)
        write_lines(folders.prompts, ({"prompt": p.prompt} for p in draw_posts(seed, "prompts", scale.prompts)))
        held_out = draw_posts(seed, "held out", scale.held_out)
        write_lines(folders.held_out, _held_out_rows(seed, held_out))
    with _stage(say, "supervised start") as tell:
        policy = new_policy(tokenizer, ModelSize(), seed=seed)
        groups = tokenize(tokenizer, [post.prompt for post in posts], summaries)
        loss = train_policy(policy, groups, batch_groups=scale.supervised_batch, seed=seed)
        policy.save_pretrained(folders.policy)
        tokenizer.save_pretrained(folders.policy)
        tell(f"{loss:.2f} nats per token on {scale.supervised_posts * scale.summaries_per_post:,} summaries")
    with _stage(say, "reward model") as tell:
        _make_reward_model(folders, tokenizer, seed, scale, tell)
    return folders


def _make_reward_model(
    folders: Folders, tokenizer: PreTrainedTokenizerBase, seed: int, scale: DemoScale, tell: Say
) -> None:
    rankings = draw_rankings(seed, "ranked", draw_posts(seed, "ranked", scale.ranked_posts))
    unseen = draw_rankings(seed, "ranked, unseen", draw_posts(seed, "ranked, unseen", max(64, scale.held_out // 2)))
    found = train_reward_model(
        folders.policy, tokenizer, rankings, unseen, batch_groups=scale.ranked_batch, seed=seed, target=folders.reward
    )
    write_lines(folders.pairs, _pair_rows(rankings))
    pairs = sum(len(ranking.pairs()) for ranking in rankings)
    tell(f"agrees with the labeller on {found.accuracy:.0%} of unseen pairs, {pairs:,} seen")


def _pair_rows(rankings: Sequence[Ranking]) -> Iterator[Mapping[str, object]]:
    """A better and a worse summary of each post, for a reward model of one's own; those that break off are left out."""
    for ranking in rankings:
        texts = [summary.text if summary.finished else None for summary in ranking.summaries]
        pairs = [(texts[better], texts[worse]) for better, worse in ranking.pairs()]
        different = [(better, worse) for better, worse in pairs if better and worse and better != worse]
        if different:
            chosen, rejected = different[0]
            yield {"prompt": ranking.prompt, "chosen": chosen, "rejected": rejected}


def _held_out_rows(seed: int, posts: list[Post]) -> Iterator[Mapping[str, object]]:
    references = draw_references(seed, "held out", posts)
    for post, reference in zip(posts, references, strict=True):
        yield {"prompt": post.prompt, "facts": dict(post.facts), "reference": asdict(reference)}


def write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write one JSON object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@contextmanager
def _stage(say: Say, name: str) -> Iterator[Say]:
    """Time a stage; what it tells stands in its line."""
    told: list[str] = []
    began = time.perf_counter()
    yield told.append
    say(f"{name:<17} {time.perf_counter() - began:5.0f} s  {'; '.join(told)}".rstrip())
