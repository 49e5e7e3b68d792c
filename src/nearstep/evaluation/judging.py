"""`nearstep judge`: every pair before the judge, a line for each, and how often which side is preferred."""

import dataclasses
import json
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from nearstep.common.errors import NearstepError
from nearstep.common.telling import quiet_libraries, tell
from nearstep.config.judges import JudgeOptions, is_url
from nearstep.evaluation.judged_files import Judged, read_pairs
from nearstep.evaluation.metrics.figures import Bootstrap, Figure
from nearstep.evaluation.metrics.wins import length_controlled_win_rate, win_rate
from nearstep.judges.protocol import PairVerdict, Usage
from nearstep.reports.records import JsonLines, Record
from nearstep.rewards.judging import Judge, load_judge

TOGETHER = 200  # pairs before the judge at a time; between them it is told how far things are
NAMES = {"a": "response0", "b": "response1", "tie": "tie"}
SIDES = ("response0", "response1")
WINS = {"a": 1.0, "b": 0.0, "tie": 0.5}


@dataclass(frozen=True)
class JudgedFile:
    """What came of all pairs. Rates are those of response0, the first file."""

    sides: tuple[str, str]
    judge: str
    preferred: dict[str, int]  # by the names of the sides, and tie
    failed: int
    commonest_failure: str | None
    win_rate: Figure
    length_controlled: Figure
    probability: float | None  # mean of how likely response0 is the better one
    disagreement: float | None  # share of votes that their counterpart in the other order contradicts
    first_preferred: float | None  # share of clear votes for the text shown first
    characters: tuple[float, float]  # mean length of both sides
    usage: Usage
    output: str
    stopped: bool  # max_cost was reached, the server answered no more, or no answer could be read

    @property
    def pairs(self) -> int:
        """All pairs, failed ones too."""
        return sum(self.preferred.values()) + self.failed

    def as_json(self) -> str:
        """One JSON object."""
        return json.dumps({"pairs": self.pairs, **dataclasses.asdict(self)}, allow_nan=False, ensure_ascii=False)

    def preferred_table(self) -> str:
        """The counts as pandas shows them (and so TRL's page on PPOv2), the most frequent first."""
        import pandas

        names = [name for name, count in self.preferred.items() for _ in range(count)]
        return str(pandas.Series(names, name="preferred", dtype=object).value_counts())

    def lines(self) -> list[str]:
        """All of it for a reader, the counts first."""
        usage = self.usage
        rows = [
            ("judge", self.judge),
            ("win rate of response0", _figure(self.win_rate)),
            ("  at equal length", _figure(self.length_controlled)),
            ("  mean probability", _percent(self.probability)),
            ("ties", f"{self.preferred.get('tie', 0):,}"),
            ("failed", f"{self.failed:,}" + (f", most: {self.commonest_failure}" if self.failed else "")),
            ("orders disagree", _percent(self.disagreement)),
            ("shown first, preferred", _percent(self.first_preferred) + " (50 % without a bias for a place)"),
            ("characters", f"{self.characters[0]:.1f} and {self.characters[1]:.1f}"),
            (
                "questions",
                f"{usage.questions:,}, of them {usage.cached:,} answered before; {usage.requests:,} requests",
            ),
        ]
        if usage.requests:
            unbilled = f" (and at most {usage.unbilled:.4g} for tries that broke)" if usage.unbilled else ""
            tokens = f"{usage.question_tokens:,} + {usage.answer_tokens:,} tokens"
            rows.append(("tokens", tokens))
            if usage.cost or usage.unbilled:
                rows.append(("cost", f"{usage.cost:.4f}{unbilled}"))
        rows.append(("judgements", self.output))
        width = max(len(name) for name, _ in rows)
        return [
            self.preferred_table(),
            "",
            f"response0 is {self.sides[0]}, response1 is {self.sides[1]}; {self.pairs:,} pairs",
            *(f"{name:<{width}}  {value}" for name, value in rows),
        ]


def judge_files(options: JudgeOptions) -> JudgedFile:
    """Judge every pair and write one line for each; what was written at the place before is replaced at the end.

    Raises DataError for files that cannot be read or do not match, and what `load_judge` raises.
    """
    pairs = read_pairs(options)
    cached = options.cache if options.cache is not None or not is_url(options.judge) else f"{options.output}.cache"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on these settings were made
        judge = load_judge(replace(options, cache=cached))
    output = Path(options.output)
    unfinished = output.with_name(output.name + ".unfinished")
    unfinished.unlink(missing_ok=True)
    found: list[PairVerdict] = []
    stopped = False
    with closing(JsonLines(unfinished)) as file:
        for start in range(0, len(pairs), TOGETHER):
            some = pairs[start : start + TOGETHER]
            with quiet_libraries():
                comparisons = judge.compare_all([one.pair for one in some])
            file.write([_line(start + number, *row) for number, row in enumerate(zip(some, comparisons, strict=True))])
            found += comparisons
            stopped = judge.usage.refused > 0 or all(one.verdict is None for one in comparisons)
            if stopped:
                break
            if len(pairs) > TOGETHER:
                tell(f"{len(found):,} of {len(pairs):,} pairs are judged")
    os.replace(unfinished, output)
    names = (options.files[0], options.files[1] if len(options.files) == 2 else str(options.references))
    return _result(names, judge, pairs[: len(found)], found, options, stopped)


def require_judgements(result: JudgedFile) -> None:
    """Raise NearstepError where the judge stopped answering, or over half the pairs failed: the rates mean little."""
    if result.stopped or 2 * result.failed > result.pairs:
        why = (result.commonest_failure or "").rstrip(".")
        raise NearstepError(
            f"{result.failed:,} of {result.pairs:,} pairs were not judged{', and it ended there' * result.stopped}: "
            f"{why}. The same command asks about them again; answers that came are kept."
        )


def _result(
    sides: tuple[str, str],
    judge: Judge,
    judged: Sequence[Judged],
    found: Sequence[PairVerdict],
    options: JudgeOptions,
    stopped: bool,
) -> JudgedFile:
    said = Counter(NAMES[one.verdict] for one in found if one.verdict is not None)
    failures = Counter(one.failure for one in found if one.failure is not None)
    results = [None if one.verdict is None else WINS[one.verdict] for one in found]
    longer = [float(len(one.pair.a) - len(one.pair.b)) for one in judged]
    prompts, bootstrap = [one.prompt for one in judged], Bootstrap(options.seed)
    return JudgedFile(
        sides=sides,
        judge=judge.name,
        preferred={name: said[name] for name in NAMES.values() if said[name] or name != "tie"},
        failed=sum(failures.values()),
        commonest_failure=failures.most_common(1)[0][0] if failures else None,
        win_rate=win_rate(results, prompts, bootstrap),
        length_controlled=length_controlled_win_rate(results, longer, prompts, bootstrap),
        probability=_mean([one.probability for one in found]),
        disagreement=_mean([one.disagreement for one in found]),
        first_preferred=_mean([vote.first_wins for one in found for vote in one.votes]),
        characters=(fmean(len(one.pair.a) for one in judged), fmean(len(one.pair.b) for one in judged)),
        usage=judge.usage,
        output=options.output,
        stopped=stopped,
    )


def _line(row: int, judged: Judged, comparison: PairVerdict) -> Record:
    verdict = comparison.verdict
    return {
        "row": row,
        "places": list(judged.places),
        "prompt": judged.pair.prompt,
        "response0": judged.pair.a,
        "response1": judged.pair.b,
        "preferred": None if verdict is None else NAMES[verdict],
        "probability": comparison.probability,
        "votes": [{"probability": vote.probability, "swapped": vote.swapped} for vote in comparison.votes],
        "disagreement": comparison.disagreement,
        "failure": comparison.failure,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _figure(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return f"{_percent(figure.value)} (n = {figure.n:,}, no interval)"
    interval = f"{100 * figure.low:.1f} to {100 * figure.high:.1f} %"
    prompts = f"{figure.prompts:,} prompt{'s' * (figure.prompts != 1)}"
    return f"{_percent(figure.value)}, 95 %: {interval} ({figure.interval}, n = {figure.n:,}, {prompts})"
