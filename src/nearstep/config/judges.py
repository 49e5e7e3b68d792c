"""Which settings a judge has: who compares or grades texts, by what, and how a server is asked."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from nearstep.common.places import is_loopback
from nearstep.config.judge_files import RewardModelSettings
from nearstep.config.settings import Problem, Settings, accepts_old_names, option, sections, without_effect


@dataclass(frozen=True, kw_only=True)
class JudgeSettings(Settings):
    """Who judges, and by what."""

    judge: str | None = option(
        None,
        "who judges: file.py:name, a language or reward model by folder or hub name, or http://host/v1#model",
        is_place=True,
    )
    judge_kind: Literal["auto", "function", "language_model", "reward_model", "url"] = option(
        "auto", "what the judge is; auto tells it from its name, and models from their configuration"
    )
    judge_prompt: str = option(
        "default", "what a language model is asked: default, summary, or a TOML file of yours", is_place=True
    )
    rubric: str | None = option(
        None, "what counts, in words, or a .txt or .md file that says so; that of judge_prompt if not given"
    )
    lowest_grade: int = option(1, "grades: the worst", at_least=0)
    highest_grade: int = option(5, "grades: the best", at_least=1)
    judge_form: Literal["auto", "chat", "plain"] = option(
        "auto", "a local language model is asked through its chat template, or in plain text; auto: if it has one"
    )


@dataclass(frozen=True, kw_only=True)
class JudgeServerSettings(Settings):
    """How a server is asked."""

    key_env: str | None = option(None, "the environment variable that holds the key, never the key itself")
    answers: Literal["json", "logprobs"] = option(
        "json", "how a server answers: strict JSON, or the log-probabilities of the first token"
    )
    votes: int = option(1, "answers for each question, or for each order of a pair; needs a temperature", at_least=1)
    temperature: float = option(0.0, "of the judge", at_least=0)
    max_answer_tokens: int = option(256, "longest answer; one that is cut there is a failure", at_least=1)
    request: Mapping[str, Any] | None = option(
        None, 'further fields of every request, such as {"reasoning_effort": "low"}; null leaves one of ours out'
    )
    max_in_flight: int = option(8, "most requests at a time", at_least=1)
    requests_per_minute: int | None = option(None, "most requests in any minute, tries counted", at_least=1)
    tokens_per_minute: int | None = option(
        None, "most tokens in any minute, of questions (estimated before they are asked) and answers", at_least=1
    )
    timeout_seconds: float = option(60.0, "longest time for one request", above=0)
    retries: int = option(5, "further tries after a broken connection or from an overloaded server", at_least=0)
    seed: int = option(42, "of votes and of the pauses between tries", at_least=0)


@dataclass(frozen=True, kw_only=True)
class JudgeCostSettings(Settings):
    """What asking costs, and what is kept of it."""

    question_price: float = option(0.0, "price of a million tokens of questions, in your currency", at_least=0)
    answer_price: float = option(0.0, "price of a million tokens of answers", at_least=0)
    max_cost: float | None = option(None, "ask nothing that could bring the cost above this", above=0)
    cache: str | None = option(
        None, "file of answers: what it holds is not asked again; several processes may share it", is_place=True
    )
    transcript: str | None = option(
        None, "jsonl file for every question with its answer and how it was read; appended to", is_place=True
    )


@accepts_old_names
@dataclass(frozen=True, kw_only=True)
class JudgeConfig(RewardModelSettings, JudgeCostSettings, JudgeServerSettings, JudgeSettings):
    """Settings of a judge, for Python, for `judge:FILE.yaml` as a reward, and for `nearstep judge`."""

    def problems(self) -> Iterator[Problem]:
        """Settings that clash."""
        return judge_problems(self)

    def remarks(self) -> Iterator[str]:
        """Settings without effect, and a key that anybody could read on its way."""
        return judge_remarks(self)


@dataclass(frozen=True, kw_only=True)
class JudgedFiles(Settings):
    """What is judged, and where the judgements go."""

    files: tuple[str, ...] = option(
        (),
        "two files of completions, compared with each other, or one and references: jsonl, json, csv or parquet",
        is_place=True,
    )
    references: str | None = option(None, "one file: the column with what each completion is compared with")
    columns: tuple[tuple[str, str], ...] = option(
        (), "columns under other names, ours=theirs: prompt=post completion=summary id=key"
    )
    unmatched: Literal["raise", "drop"] = option(
        "raise", "rows without a counterpart: name them and stop, or leave them out and count them"
    )
    limit: int | None = option(None, "judge the first so many pairs only", at_least=1)
    output: str = option(
        "judgements.jsonl", "file for the judgements, a line for each pair; written anew", is_place=True
    )
    json: bool = option(False, "print the result as one JSON object")


@accepts_old_names
@dataclass(frozen=True, kw_only=True)
class JudgeOptions(JudgeConfig, JudgedFiles):
    """Settings of `nearstep judge`: a judge, and what it judges. Answers are cached beside the output."""

    def problems(self) -> Iterator[Problem]:
        """Settings that clash, and what is missing."""
        yield from judge_problems(self)
        if len(self.files) not in (1, 2):
            yield Problem("give two files of completions, or one and references: nearstep judge A B", ("files",))
        if len(self.files) == 1 and self.references is None:
            yield Problem("one file is compared with its references: name their column", ("files", "references"))
        if len(self.files) == 2 and self.references is not None:
            yield Problem("references belong to one file; two are compared with each other", ("files", "references"))
        if self.judge is None:
            text = "judge is missing: file.py:name, a model's folder or hub name, or http://host/v1#model"
            yield Problem(text, ("judge",))


JUDGE_SECTIONS = sections(
    ("What is judged", JudgedFiles),
    ("Judge", JudgeSettings),
    ("Server", JudgeServerSettings),
    ("Cost", JudgeCostSettings),
    ("Models", RewardModelSettings),
)


def is_url(judge: str | None) -> bool:
    """Whether a judge is named by an address."""
    return judge is not None and judge.startswith(("http://", "https://"))


def judge_problems(settings: JudgeConfig) -> Iterator[Problem]:
    """Settings of a judge that contradict each other; a key or an address is not repeated."""
    if settings.judge is not None and (is_url(settings.judge) or settings.judge_kind == "url"):
        yield from _url_problems(settings.judge)
    if settings.judge is not None and settings.judge.endswith((".py", ".py:")):
        yield Problem(f"judge: {settings.judge} names no function; write file.py:name", ("judge",))
    if settings.judge is not None and settings.judge.endswith((".yaml", ".yml")):
        yield Problem(f"judge = {settings.judge} is a file of settings: give it as config", ("judge",))
    if settings.highest_grade <= settings.lowest_grade:
        text = f"highest_grade = {settings.highest_grade} must be above lowest_grade = {settings.lowest_grade}"
        yield Problem(text, ("lowest_grade", "highest_grade"))
    if settings.answers == "logprobs" and settings.highest_grade > 9:
        yield Problem("answers = logprobs reads one token: grades go up to 9", ("answers", "highest_grade"))
    if settings.votes > 1 and settings.temperature == 0:
        text = f"votes = {settings.votes}: without a temperature all would be one and the same; set temperature"
        yield Problem(text, ("votes", "temperature"))
    if settings.votes > 1 and settings.answers == "logprobs":
        text = "votes: log-probabilities have all votes in them; set votes = 1, or answers = json"
        yield Problem(text, ("votes", "answers"))
    if settings.max_cost is not None and settings.question_price == settings.answer_price == 0:
        text = "max_cost needs prices: set question_price and answer_price, per million tokens"
        yield Problem(text, ("max_cost", "question_price", "answer_price"))
    if settings.key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", settings.key_env):
        # What was given may be the key itself, so it is not repeated.
        text = "key_env is not the name of an environment variable; put the key into one, and name that"
        yield Problem(text, ("key_env",))


def judge_remarks(settings: JudgeConfig) -> Iterator[str]:
    """Settings that mean nothing for this judge."""
    if settings.judge is None:
        return
    of_servers = tuple({**JudgeServerSettings.__annotations__, **JudgeCostSettings.__annotations__})
    yield from without_effect(
        settings,
        (f"for {settings.judge}, which is no address", not is_url(settings.judge), of_servers),
        ("with an address: the server has its own template", is_url(settings.judge), ("judge_form",)),
    )
    if is_url(settings.judge) and settings.key_env is not None:
        url = urlsplit(settings.judge)
        if url.scheme != "https" and not is_loopback(url.hostname or ""):
            yield f"the key of the judge goes to {url.hostname} unencrypted: use https"


def _url_problems(address: str) -> Iterator[Problem]:
    wrong = None
    try:
        url = urlsplit(address)
        _ = url.port  # raises ValueError where it is no number
        if url.scheme not in ("http", "https") or not url.hostname:
            wrong = "must be an address such as http://127.0.0.1:8000/v1#model"
        elif url.username is not None or url.password is not None or url.query:
            wrong = (
                "must have no user, password or query, which would be saved with the settings: put the key into an "
                "environment variable and name it by key_env"
            )
        elif not url.fragment:
            wrong = "names no model: write http://host:port/v1#model"
    except ValueError as error:
        wrong = f"is no address ({error})"
    if wrong is not None:
        yield Problem(f"judge {wrong}", ("judge",))
