"""What a page holds of rows: episodes, answers to fixed prompts, and a few rows token by token."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nearstep.reports.console import cut_middle
from nearstep.reports.page.choice import Best, Families, Key, PageRow, chance
from nearstep.reports.page.curves import rounded
from nearstep.reports.run_folder import Line

MOST_SAMPLES = 2_000
MOST_TOKENS = 20_000  # of all rows that are shown token by token
TOKENS_OF_A_ROW = 2_000
FIXED_ROWS = 400  # answers to evaluation prompts
TEXT = 2_000  # characters of a prompt or an answer
# What episodes can be sorted by, in the words of the page.
QUANTITIES = {
    "score": "score",
    "advantage": "|A|",
    "error": "value error",
    "mismatch": "mismatch",
    "kl": "KL",
    "length": "length",
}
# The numbers of a token, by their names in tokens.jsonl.
TOKEN_NUMBERS = ("sampled_logprob", "old_logprob", "logprob", "ref_logprob", "kl", "value", "return", "reward",
                 "advantage", "whitened_advantage", "ratio", "region_weight", "entropy")  # fmt: skip


class PagePrompts:
    """The prompts of a page, each of them once: rows name them by their number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def named(self, rows: Iterable[PageRow]) -> list[PageRow]:
        """The rows with numbers in place of prompts."""
        return [{**row, "prompt": self._numbers.setdefault(row["prompt"], len(self._numbers))} for row in rows]

    @property
    def texts(self) -> list[str]:
        """The prompts by their numbers."""
        return list(self._numbers)


def episode_row(line: Line) -> PageRow:
    """An episode of rollouts.jsonl as the page shows it."""
    numbers: Mapping[str, Any] = line.get("numbers") or {}
    return {
        "update": line["update"],
        "episode": line["episode"],
        "prompt": cut_middle(line["prompt"], TEXT),
        "answer": cut_middle(line["completion"], TEXT),
        "score": rounded(line.get("final_score")),
        "parts": {name: rounded(part) if isinstance(part, int | float) else None
                  for name, part in (line.get("scores") or {}).items()},
        "finished": line.get("finished"),
        "length": line.get("response_length"),
        "advantage": rounded(numbers.get("advantage_abs")),
        "error": rounded(numbers.get("value_error")),
        "kl": rounded(numbers.get("kl")),
        "mismatch": rounded(numbers.get("mismatch")),
    }  # fmt: skip


@dataclass
class FixedPrompts:
    """Answers to the same prompts at several points of the run, with the start's: sample completions, evaluations."""

    _samples: list[PageRow] = field(default_factory=list)
    _evaluated: Families = field(default_factory=lambda: Families(FIXED_ROWS))

    def add_sample(self, line: Line) -> None:
        """A line of samples.jsonl."""
        row = _fixed(line, line["query"], line["response"], line.get("start_response"))
        self._samples.append(row)

    def add_evaluated(self, line: Line) -> None:
        """A line of eval_rollouts.jsonl."""
        row = _fixed(line, line["prompt"], line["completion"], line.get("start_completion"))
        self._evaluated.offer(row["prompt"], row)

    def rows(self) -> list[PageRow]:
        """Sample completions first, then evaluations, each in the order of the run."""
        return [*self._samples, *sorted(self._evaluated.kept, key=lambda row: row["update"])]


def _fixed(line: Line, prompt: str, answer: str, start: str | None) -> PageRow:
    return {
        "update": line["update"],
        "prompt": cut_middle(prompt, TEXT),
        "answer": cut_middle(answer, TEXT),
        "score": rounded(line.get("score")),
        "start": None if start is None else cut_middle(start, TEXT),
        "start_score": rounded(line.get("start_score")),
        "reference": None if line.get("reference") is None else cut_middle(line["reference"], TEXT),
    }


@dataclass
class TokenRows:
    """Rows token by token: the most striking ones, those of the newest update, and others spread over the run."""

    count: int = 0
    _striking: tuple[Best[Line], ...] = field(default_factory=lambda: tuple(Best[Line](4) for _ in range(4)))
    _spread: Best[Line] = field(default_factory=lambda: Best[Line](200))
    _newest: list[Line] = field(default_factory=list)

    def add(self, line: Line) -> None:
        """A line of tokens.jsonl."""
        self.count += 1
        if self._newest and self._newest[0]["update"] != line["update"]:
            self._newest.clear()
        if len(self._newest) < 4:
            self._newest.append(line)
        score = line["score"] if line.get("score") is not None else 0.0
        ratio = max((abs(number - 1) for number in _numbers(line, "ratio")), default=0.0)
        advantage = max((abs(number) for number in _numbers(line, "advantage")), default=0.0)
        for best, rank in zip(self._striking, (score, -score, ratio, advantage), strict=True):
            best.offer(rank, line)
        self._spread.offer(chance(line["update"], line["episode"]), line)

    def keys(self) -> set[Key]:
        """Update and episode of every row that is shown."""
        return {(line["update"], line["episode"]) for line in self._chosen()}

    def rows(self) -> list[PageRow]:
        """The chosen rows in the order of the run."""
        return [_token_row(line) for line in sorted(self._chosen(), key=lambda line: (line["update"], line["episode"]))]

    def rule(self) -> str:
        """How the rows were chosen, in a sentence for the reader."""
        shown = len(self._chosen())
        if shown == self.count:
            return f"All {self.count:,} rows that the run recorded token by token."
        return (f"{shown:,} of {self.count:,} recorded rows: those with the highest and lowest scores, the largest "
                "ratio and advantage, those of the last update, and others picked at random.")  # fmt: skip

    def _chosen(self) -> list[Line]:
        chosen: dict[Key, Line] = {}
        left = MOST_TOKENS
        striking: Iterable[Line] = (line for best in self._striking for line in best.kept)
        spread = sorted(self._spread.kept, key=lambda line: chance(line["update"], line["episode"]), reverse=True)
        for line in [*self._newest, *striking, *spread]:
            size = min(len(line["tokens"]), TOKENS_OF_A_ROW)
            key = (line["update"], line["episode"])
            if key not in chosen and size <= left:
                chosen[key] = line
                left -= size
        return list(chosen.values())


def _token_row(line: Line) -> PageRow:
    columns: dict[str, Sequence[int | float | None]] = {
        name: [rounded(number) for number in line[name][:TOKENS_OF_A_ROW]]
        for name in TOKEN_NUMBERS
        if line.get(name) is not None
    }
    return {
        "update": line["update"],
        "episode": line["episode"],
        "prompt": cut_middle(line["prompt"], TEXT),
        "score": rounded(line.get("score")),
        "finished": line.get("finished"),
        "count": len(line["tokens"]),
        "tokens": line["tokens"][:TOKENS_OF_A_ROW],
        "ids": line["token_ids"][:TOKENS_OF_A_ROW],
        **({} if line.get("before") is None else {"before": _heard(line["before"])}),
        "numbers": columns,
    }


def _heard(texts: Sequence[str]) -> list[str]:
    """What stood between the turns of a row, by the token behind it."""
    return [cut_middle(text, TEXT) for text in texts[:TOKENS_OF_A_ROW]]


def _numbers(line: Line, name: str) -> list[int | float]:
    return [number for number in line.get(name) or () if number is not None]
