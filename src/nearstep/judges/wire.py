"""The chat completions of OpenAI-compatible servers as a judge needs them: what is asked, and how answers are read."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from nearstep.common.errors import NearstepError, shorten
from nearstep.judges.prompt import LETTERS, Question
from nearstep.judges.protocol import Failed, Reading

LARGEST_BODY_BYTES = 8 << 20
TOP_LOGPROBS = 20  # the most that such servers give
PREFERENCES = {"A": 1.0, "B": 0.0, "tie": 0.5}
THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
FENCE = re.compile(r"\A```(?:json)?\s*\n(.*)\n\s*```\Z", re.DOTALL)


@dataclass(frozen=True)
class ChatReply:
    """What counts of an answer; `top` are the likeliest first tokens with their log-probabilities, None if not given.

    Token counts are None where the server did not say them.
    """

    text: str
    is_cut: bool
    top: list[tuple[str, float]] | None
    question_tokens: int | None
    answer_tokens: int | None

    def encoded(self) -> str:
        """As text, for the cache."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @staticmethod
    def decoded(text: str) -> "ChatReply":
        """From what `encoded` gave."""
        read = json.loads(text)
        top = None if read["top"] is None else [(token, logprob) for token, logprob in read["top"]]
        return ChatReply(read["text"], read["is_cut"], top, read["question_tokens"], read["answer_tokens"])


def request_body(
    question: Question,
    *,
    model: str,
    temperature: float,
    max_answer_tokens: int,
    logprobs: bool,
    seed: int | None,
    further: Mapping[str, Any],
) -> bytes:
    """The body of a request; of `further`, None takes a field away."""
    system = [{"role": "system", "content": question.system}] if question.system else []
    fields: dict[str, Any] = {
        "model": model,
        "messages": [*system, {"role": "user", "content": question.text}],
        "temperature": temperature,
        "max_tokens": 1 if logprobs else max_answer_tokens,
        **({"logprobs": True, "top_logprobs": TOP_LOGPROBS} if logprobs else {}),
        **({} if seed is None else {"seed": seed}),
        **further,
    }
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


def read_reply(body: bytes) -> ChatReply:
    """The first choice of an answer. Raises NearstepError for a body that is no chat completion."""
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise NearstepError(f"a body that is no JSON ({error})") from error
    match reply:
        case {"choices": [{"message": {"content": str(text)}} as choice, *_]}:
            pass
        case {"choices": [{"message": {}}, *_]}:
            raise NearstepError(f"an answer without text: {shorten(reply['choices'][0]['message'])}")
        case {"choices": []}:
            raise NearstepError("an answer without choices")
        case _:
            raise NearstepError(f"a body that is no chat completion: {shorten(reply)}")
    usage = reply.get("usage") or {}
    return ChatReply(
        text,
        choice.get("finish_reason") == "length",
        _top(choice.get("logprobs")),
        *(_count(usage, name) for name in ("prompt_tokens", "completion_tokens")),
    )


def _count(usage: object, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, Mapping) else None
    return value if type(value) is int and value >= 0 else None


def _top(logprobs: object) -> list[tuple[str, float]] | None:
    match logprobs:
        case {"content": [{"top_logprobs": list(entries)}, *_]}:
            pass
        case _:
            return None
    found = [entry for entry in entries if isinstance(entry, Mapping)]
    pairs = [(entry.get("token"), entry.get("logprob")) for entry in found]
    return [
        (token, float(logprob))
        for token, logprob in pairs
        if isinstance(token, str) and isinstance(logprob, int | float) and not math.isnan(logprob)
    ]


def preference(reply: ChatReply) -> Reading:
    """How likely the text shown first is the better one, from strict JSON."""
    value = _json_field(reply, "preferred")
    if isinstance(value, Failed):
        return value
    if isinstance(value, str) and value in PREFERENCES:
        return PREFERENCES[value]
    return Failed(f"preferred is {shorten(value)}, which is none of {', '.join(PREFERENCES)}")


def grade(reply: ChatReply, lowest: int, highest: int) -> Reading:
    """A grade from strict JSON."""
    value = _json_field(reply, "grade")
    if isinstance(value, Failed):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and lowest <= value <= highest:
        return float(value)
    return Failed(f"grade is {shorten(value)}, which is no number from {lowest} to {highest}")


def preference_by_logprobs(reply: ChatReply) -> Reading:
    """P(A) / (P(A) + P(B)) of the first token."""
    weights = _weights(reply, LETTERS)
    return weights if isinstance(weights, Failed) else weights[0] / sum(weights)


def grade_by_logprobs(reply: ChatReply, lowest: int, highest: int) -> Reading:
    """The mean of the grades, each weighed by the probability of its token."""
    grades = range(lowest, highest + 1)
    weights = _weights(reply, [str(number) for number in grades])
    if isinstance(weights, Failed):
        return weights
    return sum(number * weight for number, weight in zip(grades, weights, strict=True)) / sum(weights)


def _weights(reply: ChatReply, answers: Sequence[str]) -> list[float] | Failed:
    """The probability of each answer; those not among the likeliest tokens have none, and one at least must be."""
    if reply.top is None:
        return Failed("the server gave no log-probabilities: set answers = json")
    weights = [math.fsum(math.exp(logprob) for token, logprob in reply.top if token.strip() == one) for one in answers]
    if not sum(weights) > 0:
        return Failed(f"none of {', '.join(answers)} is among the likeliest tokens {shorten(reply.top)}")
    return weights


def _json_field(reply: ChatReply, name: str) -> object:
    """A field of the one JSON object that the answer must be; thoughts before it and a fence around it are passed."""
    if reply.is_cut:
        return Failed(f"the answer was cut at max_answer_tokens: {shorten(reply.text)}")
    text = THOUGHT.sub("", reply.text).strip()
    if fenced := FENCE.match(text):
        text = fenced[1]
    try:
        read = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return Failed(f"the answer is no JSON object: {shorten(reply.text)}")
    if not isinstance(read, dict) or name not in read:
        return Failed(f"the answer is no JSON object with {name!r}: {shorten(reply.text)}")
    return read[name]


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")
