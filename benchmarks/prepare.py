"""How much faster `nearstep prepare` is with two workers than with one, as a ratio measured in one run.

Both prepare the same 200,000 made-up posts with the same byte-pair tokenizer, trained on such posts on the spot. Whole
commands are timed, from their start to their end, in turns.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks.harness.machine import at_least_one, machine
from benchmarks.harness.results import RESULTS, write_results
from nearstep.common.random_streams import stream

ROWS, VOCABULARY, LEXICON, LONGEST_POST = 200_000, 8_000, 4_000, 300


def words(count: int) -> list[str]:
    """Made-up words of two to four syllables."""
    draws = stream(0, "words")
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    picks = torch.randint(len(syllables), (count, 4), generator=draws).tolist()
    lengths = torch.randint(2, 5, (count,), generator=draws).tolist()
    return ["".join(syllables[pick] for pick in row[:length]) for row, length in zip(picks, lengths, strict=True)]


def write_posts(path: Path, rows: int) -> None:
    """Posts of 20 to 300 words, frequent words first, as a jsonl file."""
    lexicon, draws = words(LEXICON), stream(0, "posts")
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            length = int(torch.randint(20, LONGEST_POST + 1, (), generator=draws))
            ranks = (torch.rand(length, generator=draws).square() * LEXICON).long().tolist()
            post = " ".join(lexicon[rank] for rank in ranks)
            row = {"subreddit": "tests", "title": post[:40], "post": post, "summary": post[:60], "id": number}
            file.write(json.dumps(row) + "\n")


def train_tokenizer(folder: Path, posts: Path) -> None:
    """A byte-level BPE tokenizer, as those of GPT-2 and Llama 3 are."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<eos>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    with posts.open(encoding="utf-8") as file:
        core.train_from_iterator((json.loads(line)["post"] for line in islice(file, 2_000)), trainer)
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>").save_pretrained(folder)


def seconds(folder: Path, workers: int) -> float:
    """Wall-clock time of one whole command."""
    command = [
        sys.executable, "-m", "nearstep", "prepare", "--input", str(folder / "posts.jsonl"), "--tokenizer",
        str(folder / "tokenizer"), "--output", str(folder / f"with-{workers}"), "--workers", str(workers),
        "--max_length", "512", "--log_interval", "50000",
    ]  # fmt: skip
    started = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - started


def same_hash(folder: Path, workers: tuple[int, ...]) -> bool:
    """Whether the data are the same however many workers there were."""
    manifests = [json.loads((folder / f"with-{count}" / "manifest.json").read_text()) for count in workers]
    return len({manifest["sha256"] for manifest in manifests}) == 1


def main(words: Sequence[str] | None = None) -> None:
    """Time both in turns, print the ratio of the medians, write benchmarks/results/prepare.*."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=at_least_one, default=ROWS)
    arguments.add_argument("--repeats", type=at_least_one, default=2)
    arguments.add_argument("--output", type=Path, default=RESULTS)
    given = arguments.parse_args(words)
    times: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_posts(folder / "posts.jsonl", given.rows)
        train_tokenizer(folder / "tokenizer", folder / "posts.jsonl")
        for _ in range(given.repeats):
            for workers in times:
                times[workers].append(seconds(folder, workers))
        same = same_hash(folder, tuple(times))
    medians = {workers: statistics.median(each) for workers, each in times.items()}
    ratio = medians[1] / medians[2]
    text = (
        f"{given.rows:,} rows: 1 worker {medians[1]:.1f} s, 2 workers {medians[2]:.1f} s, {ratio:.2f} times faster; "
        f"same data: {same}"
    )
    Console().print(text)
    record = {"rows": given.rows, "seconds": times, "ratio": ratio, "same_data": same}
    write_results(given.output, "prepare", record, f"# nearstep prepare with 1 and 2 workers\n\n{text}.", machine())


if __name__ == "__main__":
    main()
