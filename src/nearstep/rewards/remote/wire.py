"""The protocol of rewards over HTTP, version 1: what is asked, and what is answered. docs/rewards.md describes it."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nearstep.common.errors import RewardError, shorten
from nearstep.rewards.batch import Answer, RewardBatch
from nearstep.rewards.identity import TokenizerIdentity
from nearstep.rewards.values import as_number

PROTOCOL = 1
LARGEST_BODY_BYTES = 64 << 20
FORMS = {
    "prompt": "text, or messages with a role each",
    "completion": "text, or messages with a role each, the last with a content",
    "prompt_ids": "a list of token ids",
    "completion_ids": "a list of token ids",
    "finished": "true or false",
    "episode": "a whole number",
    "columns": "an object",
}


def encode_request(batch: RewardBatch, identity: TokenizerIdentity) -> bytes:
    """The body of a request. Raises RewardError naming a column that JSON cannot hold."""
    request = {
        "protocol": PROTOCOL,
        "tokenizer": {"tokens": identity.tokens, "chat_template": identity.chat_template},
        "rows": [
            {
                "prompt": batch.prompts[row],
                "completion": batch.completions[row],
                "prompt_ids": batch.prompt_ids[row],
                "completion_ids": batch.completion_ids[row],
                "finished": batch.finished[row],
                "episode": batch.episodes[row],
                "columns": {name: values[row] for name, values in batch.columns.items()},
            }
            for row in range(len(batch))
        ],
    }
    try:
        return json.dumps(request, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise RewardError(
            f"{_unfit(batch)} cannot go over HTTP as JSON ({error}): leave it out of the data set."
        ) from error


def _unfit(batch: RewardBatch) -> str:
    for name, values in batch.columns.items():
        for row, value in enumerate(values):
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError):
                return f"column {name!r} of {batch.place(row)}, {shorten(value)},"
    return f"the prompt of one of {batch.span()}"


def decode_request(body: bytes) -> tuple[RewardBatch, TokenizerIdentity]:
    """The batch that a request asks about. Raises RewardError saying what is wrong with it."""
    request = _parse(body)
    if request.get("protocol") != PROTOCOL:
        raise RewardError(f"protocol must be {PROTOCOL}, not {shorten(request.get('protocol'))}")
    rows = request.get("rows")
    if not isinstance(rows, list) or not rows:
        raise RewardError("rows must be a list with one object for each completion")
    for number, row in enumerate(rows):
        _check_row(row, number)
    _check_unicode(body, rows)
    columns = dict.fromkeys(name for row in rows for name in row.get("columns", {}))
    batch = RewardBatch(
        prompts=[row["prompt"] for row in rows],
        completions=[row["completion"] for row in rows],
        prompt_ids=[row["prompt_ids"] for row in rows],
        completion_ids=[row["completion_ids"] for row in rows],
        finished=[row["finished"] for row in rows],
        columns={name: [row.get("columns", {}).get(name) for row in rows] for name in columns},
        episodes=[row.get("episode", number) for number, row in enumerate(rows)],
    )
    return batch, _identity(request.get("tokenizer", {}))


def encode_answer(answer: Answer, episodes: Sequence[int]) -> bytes:
    """The body of a response; values are what JSON can hold, or a RewardError where a row failed."""
    assert isinstance(answer.values, list)
    rewards = [{"error": str(value)} if isinstance(value, RewardError) else value for value in answer.values]
    reply = {"rewards": rewards, "episodes": episodes, "extras": answer.extras, "metrics": answer.metrics}
    return json.dumps(reply, default=str).encode()


def decode_answer(body: bytes, batch: RewardBatch, server: str, conceal: Callable[[str], str] = str) -> Answer:
    """The values of a response for the rows of `batch`; errors of failed rows pass through `conceal`.

    Raises RewardError where it is not of this protocol.
    """
    reply = _parse(body)
    rewards = reply.get("rewards")
    if not isinstance(rewards, list) or len(rewards) != len(batch):
        counted = f"{len(rewards)} rewards" if isinstance(rewards, list) else "no list of rewards"
        raise RewardError(f"{server} sent {counted} for {len(batch)} completions")
    if reply.get("episodes", batch.episodes) != batch.episodes:
        raise RewardError(f"{server} sent rewards for other episodes, or in another order")
    entries = [_entry(reward, batch.place(row), server, conceal) for row, reward in enumerate(rewards)]
    extras, metrics = _lists(reply.get("extras", {}), server), _lists(reply.get("metrics", {}), server)
    if any(len(values) != len(batch) for values in extras.values()):
        raise RewardError(f"{server} sent extras that are not one for each of {len(batch)} completions")
    logged = {name: [as_number(number) for number in numbers] for name, numbers in metrics.items()}
    if any(number is None for numbers in logged.values() for number in numbers):
        raise RewardError(f"{server} sent metrics that are no numbers")
    return Answer(entries, extras, {name: [n for n in numbers if n is not None] for name, numbers in logged.items()})


def _entry(reward: Any, place: str, server: str, conceal: Callable[[str], str]) -> object:
    if isinstance(reward, dict) and "error" in reward:
        return RewardError(f"{server} failed on {place}: {shorten(conceal(str(reward['error'])), 1000)}")
    return reward


def _lists(named: Any, server: str) -> dict[str, list[Any]]:
    if not isinstance(named, dict) or not all(isinstance(values, list) for values in named.values()):
        raise RewardError(f"{server} sent extras or metrics that are no lists by name")
    return named


def _parse(body: bytes) -> Mapping[str, Any]:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RewardError(f"a body that is no JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise RewardError("a body that is no JSON object")
    return parsed


def _identity(tokenizer: Any) -> TokenizerIdentity:
    match tokenizer:
        case {"tokens": str(tokens)}:
            template = tokenizer.get("chat_template")
            if template is None or isinstance(template, str):
                return TokenizerIdentity(tokens, template)
        case dict() if "tokens" not in tokenizer:
            return TokenizerIdentity("", None)  # that of nobody: rows are read as text
    raise RewardError("tokenizer must be an object whose tokens and chat_template are text")


def _check_unicode(body: bytes, rows: Sequence[Any]) -> None:
    if b"\\u" not in body:
        return
    for number, row in enumerate(rows):
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise RewardError(f"rows[{number}] holds half of a surrogate pair, which is no Unicode text") from error


def _check_row(row: Any, number: int) -> None:
    if not isinstance(row, dict):
        raise RewardError(f"rows[{number}] must be an object")
    checks: dict[str, Callable[[Any], bool]] = {
        "prompt": _is_text_or_messages,
        "completion": _is_completion,
        "prompt_ids": _are_ids,
        "completion_ids": _are_ids,
        "finished": lambda value: isinstance(value, bool),
        "episode": lambda value: type(value) is int,
        "columns": lambda value: isinstance(value, dict),
    }
    for name, is_well in checks.items():
        if name not in row and name in ("episode", "columns"):
            continue
        if not is_well(row.get(name)):
            raise RewardError(f"rows[{number}].{name} must be {FORMS[name]}, not {shorten(row.get(name))}")


def _is_text_or_messages(value: Any) -> bool:
    if isinstance(value, str):
        return True
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in value)
    )


def _is_completion(value: Any) -> bool:
    return isinstance(value, str) or (_is_text_or_messages(value) and "content" in value[-1])


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(token) is int and token >= 0 for token in value)
