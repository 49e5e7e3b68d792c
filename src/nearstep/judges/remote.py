"""A judge behind an OpenAI-compatible address: both orders, votes, limits, cache, cost, transcript."""

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import httpx2

from nearstep.common.access_tokens import Secret, token_from
from nearstep.common.errors import ConfigError, NearstepError
from nearstep.common.http_post import Endpoint, Unanswered
from nearstep.config.judges import JudgeConfig
from nearstep.judges import wire
from nearstep.judges.cache import AnswerCache
from nearstep.judges.limits import LimitReachedError, MinuteLimit, Spending, Taken
from nearstep.judges.prompt import IN_A_TOKEN, IN_JSON, JudgePrompt, Question
from nearstep.judges.protocol import (
    Failed,
    Graded,
    Pair,
    PairVerdict,
    Reading,
    TextGrade,
    Usage,
    different,
    with_equal_texts,
)

MESSAGE_TOKENS = 32  # at most, around the texts of a request, by the template of the server
CHARACTERS_PER_TOKEN = 4  # of usual text, for the limit of tokens a minute
MOST_IN_VAIN = 10  # questions in a row without an answer: the server is not there, or wants none of them


@dataclass(frozen=True)
class Asked:
    """One request: what it says, the key of its answer, and how that is read."""

    question: Question
    body: bytes
    key: str
    read: Callable[[wire.ChatReply], Reading]

    @property
    def most_tokens(self) -> int:
        """More the question cannot have: a token is one byte at least."""
        return len(self.question.whole.encode("utf-8", "replace")) + MESSAGE_TOKENS


class RemoteJudge:
    """A language model at a server; see JudgeSource."""

    grades = True

    def __init__(self, config: JudgeConfig, prompt: JudgePrompt) -> None:
        """Raises ConfigError where the key is not set, or the cache or transcript cannot be written."""
        assert config.judge is not None
        url = urlsplit(config.judge)
        self._config, self._prompt, self._model = config, prompt, url.fragment
        self.name, self.usage = url.fragment.rpartition("/")[2], Usage()
        self._endpoint = Endpoint(
            urlunsplit((url.scheme, url.netloc, _chat_path(url.path), "", "")),
            kind="judge",
            name="judge",
            largest_body_bytes=wire.LARGEST_BODY_BYTES,
            token=None if config.key_env is None else Secret(token_from(config.key_env)),
            timeout_seconds=config.timeout_seconds,
            retries=config.retries,
            seed=config.seed,
        )
        self._cache = None if config.cache is None else AnswerCache(Path(config.cache))
        self._transcript = None if config.transcript is None else _Transcript(Path(config.transcript))
        self.requests = MinuteLimit(config.requests_per_minute, "requests")
        self.tokens = MinuteLimit(config.tokens_per_minute, "tokens")
        self.spending = Spending(self.usage, config.question_price, config.answer_price, config.max_cost)
        self._in_vain = 0  # questions without an answer since the last one
        self.answer_tokens = 1 if config.answers == "logprobs" else config.max_answer_tokens

    def prepare(self) -> None:
        """A server needs nothing loaded here."""

    async def compare_all(self, pairs: Sequence[Pair]) -> list[PairVerdict]:
        """Every pair in both orders, each as often as there are votes."""
        logprobs = self._config.answers == "logprobs"
        form = IN_A_TOKEN if logprobs else IN_JSON
        read = wire.preference_by_logprobs if logprobs else wire.preference
        votes = self._config.votes
        questions = [
            self._asked(self._prompt.compare(pair, form, swapped=swapped), vote, read)
            for pair in different(pairs)
            for swapped in (False, True)
            for vote in range(votes)
        ]
        readings = await self._answers(questions)
        starts = range(0, len(readings), 2 * votes)
        found = (
            PairVerdict.of_orders(readings[start : start + votes], readings[start + votes : start + 2 * votes])
            for start in starts
        )
        return with_equal_texts(pairs, found)

    async def grade_all(self, questions: Sequence[Graded]) -> list[TextGrade]:
        """Every answer, as often as there are votes."""
        logprobs, lowest, highest = self._config.answers == "logprobs", self._prompt.lowest, self._prompt.highest
        form = IN_A_TOKEN if logprobs else IN_JSON
        by = wire.grade_by_logprobs if logprobs else wire.grade
        votes = self._config.votes

        def read(reply: wire.ChatReply) -> Reading:
            return by(reply, lowest, highest)

        asked = [self._asked(self._prompt.grade(one, form), vote, read) for one in questions for vote in range(votes)]
        readings = await self._answers(asked)
        return [TextGrade.of(readings[start : start + votes]) for start in range(0, len(readings), votes)]

    def _asked(self, question: Question, vote: int, read: Callable[[wire.ChatReply], Reading]) -> Asked:
        config = self._config
        body = wire.request_body(
            question,
            model=self._model,
            temperature=config.temperature,
            max_answer_tokens=config.max_answer_tokens,
            logprobs=config.answers == "logprobs",
            seed=config.seed + vote if config.temperature > 0 else None,
            further=config.request or {},
        )
        key = "\0".join([self._endpoint.url, self._prompt.identity, str(vote), body.decode()])
        return Asked(question, body, hashlib.sha256(key.encode()).hexdigest(), read)

    async def _answers(self, questions: Sequence[Asked]) -> list[Reading]:
        """The readings of all, in order; the same question is asked once, and what the cache holds is not asked."""
        distinct = {asked.key: asked for asked in questions}
        known = {} if self._cache is None else self._cache.read(list(distinct))
        self.usage.questions += len(questions)
        self.usage.cached += len(questions) - len(distinct.keys() - known.keys())
        self._in_vain = 0
        in_flight = asyncio.Semaphore(self._config.max_in_flight)
        async with self._endpoint.client() as client:

            async def reading(number: int, asked: Asked) -> Reading:
                if asked.key in known:
                    return asked.read(wire.ChatReply.decoded(known[asked.key]))
                async with in_flight:
                    return await self._ask(number, asked, client)

            tasks = [asyncio.ensure_future(reading(number, one)) for number, one in enumerate(distinct.values())]
            try:
                readings = dict(zip(distinct, await asyncio.gather(*tasks), strict=True))
            finally:
                for task in tasks:
                    task.cancel()
        return [readings[asked.key] for asked in questions]

    async def _ask(self, number: int, asked: Asked, client: httpx2.AsyncClient) -> Reading:
        if self._in_vain >= MOST_IN_VAIN:
            return self._refused(f"the last {self._in_vain} questions got no answer")
        tries = _Tries(self, asked)
        try:
            reply = await self._endpoint.ask(asked.body, self._read, client, number, tries)
        except LimitReachedError as error:
            return self._refused(str(error))
        if isinstance(reply, Unanswered):
            self._in_vain += 1
            failed = Failed(f"{self._endpoint.shown} gave no answer after {reply.counted}: {reply.what}")
            self._note(asked, None, failed, 0.0)
            return failed
        self._in_vain = 0
        cost = self._bill(reply, asked, tries)
        reading = asked.read(reply)
        if self._cache is not None and not isinstance(reading, Failed):
            self._cache.write(asked.key, reply.encoded())
        self._note(asked, reply, reading, cost)
        return reading

    def _refused(self, why: str) -> Failed:
        self.usage.refused += 1
        return Failed(f"{self._endpoint.shown} was not asked: {why}")

    def _read(self, body: bytes) -> wire.ChatReply:
        """An answer without the key, which a server may repeat."""
        reply = wire.read_reply(body)
        return replace(reply, text=self._endpoint.without_secrets(reply.text))

    def _bill(self, reply: wire.ChatReply, asked: Asked, tries: "_Tries") -> float:
        """What an answer cost, by the server's count of tokens; where it gives none, by the most that there can be."""
        question = asked.most_tokens if reply.question_tokens is None else reply.question_tokens
        answer = self.answer_tokens if reply.answer_tokens is None else reply.answer_tokens
        cost = self.spending.cost(question, answer)
        tries.correct(question + answer)
        self.usage.question_tokens += question
        self.usage.answer_tokens += answer
        self.usage.cost += cost
        return cost

    def _note(self, asked: Asked, reply: wire.ChatReply | None, reading: Reading, cost: float) -> None:
        if self._transcript is None:
            return
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "judge": self.name,
            "prompt": self._prompt.identity,
            "system": asked.question.system,
            "question": asked.question.text,
            "answer": None if reply is None else reply.text,
            "top": None if reply is None else reply.top,
            "reading": None if isinstance(reading, Failed) else reading,
            "failure": reading.reason if isinstance(reading, Failed) else None,
            "question_tokens": None if reply is None else reply.question_tokens,
            "answer_tokens": None if reply is None else reply.answer_tokens,
            "cost": cost,
        }
        self._transcript.write(json.dumps(line, ensure_ascii=False))


class _Tries:
    """The three limits before each try of a question, and what its end means for the cost; see Turnstile."""

    def __init__(self, judge: RemoteJudge, asked: Asked) -> None:
        self._requests, self._tokens, self._spending = judge.requests, judge.tokens, judge.spending
        self._usage = judge.usage
        self._estimate = len(asked.question.whole) // CHARACTERS_PER_TOKEN + MESSAGE_TOKENS + judge.answer_tokens
        self._worst = judge.spending.cost(asked.most_tokens, judge.answer_tokens)
        self._taken: Taken | None = None

    async def enter(self) -> None:
        """Wait for the limits, then set the cost aside."""
        await self._requests.take(1)
        self._taken = await self._tokens.take(self._estimate)
        await self._spending.set_aside(self._worst)
        self._usage.requests += 1

    def leave(self, *, answered: bool) -> None:
        """Give back what was set aside; what became of it is billed."""
        self._spending.settle(self._worst, answered=answered)

    def correct(self, tokens: int) -> None:
        """What the last try took in truth."""
        if self._taken is not None:
            self._taken.amount = tokens


class _Transcript:
    """A jsonl file that lines are appended to, each in one write, so that several processes may share it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("ab").close()
        except OSError as error:
            raise ConfigError(f"transcript = {path} cannot be written: {error}") from error

    def write(self, line: str) -> None:
        """Append a line. Raises NearstepError where the disk is full."""
        try:
            with self._path.open("ab", buffering=0) as file:
                file.write(line.encode("utf-8", "backslashreplace") + b"\n")
        except OSError as error:
            raise NearstepError(f"transcript = {self._path} cannot be written: {error}") from error


def _chat_path(path: str) -> str:
    """The path of chat completions: as given, or below the base that is usual, /v1."""
    base = path.rstrip("/")
    return base if base.endswith("/chat/completions") else f"{base or '/v1'}/chat/completions"
