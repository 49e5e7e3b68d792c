"""What built-in rewards take for the text, the words and the sentences of a completion."""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files

from nearstep.common.errors import RewardError, shorten

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
# A run of letters and digits, inner apostrophes and hyphens included; an ideograph or kana is a word by itself.
_WORD = re.compile(rf"[{_CJK}]|(?:(?![{_CJK}])\w)+(?:['’-](?:(?![{_CJK}])\w)+)*")
_ABBREVIATIONS = ("Mr.", "Mrs.", "Ms.", "Dr.", "Prof.", "St.", "vs.", "e.g.", "i.e.", "cf.", "No.")
# A mark with a closing quote or bracket ends none where the text goes on in lower case: “Is it?” she asked.
_SENTENCE_END = re.compile(r"(?<=[.!?…])(?:\s+|[\"'”’)\]]+\s+(?![a-z]))|(?<=[。！？])|\n+")

# Lists of English words and phrases by name.
ENGLISH: Mapping[str, Sequence[str]] = tomllib.loads((files(__package__) / "english.toml").read_text(encoding="utf-8"))
STOP_WORDS = frozenset(ENGLISH["stop_words"])


def texts_of(completions: Sequence[object]) -> list[str]:
    """The text of each completion: itself, or of a conversation what the assistant says in it."""
    return [_text(completion, "assistant") for completion in completions]


def prompt_texts_of(prompts: Sequence[object]) -> list[str]:
    """The text of each prompt: itself, or of a conversation the last message of the user."""
    return [prompt if isinstance(prompt, str) else _text(_last_question(prompt), "user") for prompt in prompts]


def words_of(text: str) -> list[str]:
    """The words of a text in lower case."""
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


def content_words_of(text: str) -> list[str]:
    """The words that carry meaning: neither stop words nor single letters, a plural s cut off."""
    return [
        _singular(word) for word in words_of(text) if word not in STOP_WORDS and (len(word) > 1 or not word.isascii())
    ]


def sentences_of(text: str) -> list[str]:
    """The sentences and lines of a text that hold a word; titles and such abbreviations as e.g. end none."""
    joined: list[str] = []
    for piece in _pieces(text):
        if joined and joined[-1].endswith(_ABBREVIATIONS):
            joined[-1] += " " + piece
        else:
            joined.append(piece)
    return [sentence for sentence in joined if _WORD.search(sentence)]


def _pieces(text: str) -> list[str]:
    """The text cut at every sentence mark and line end, closing quotes and brackets kept with their sentence."""
    start, pieces = 0, []
    for end in _SENTENCE_END.finditer(text):
        pieces.append(text[start : end.end()].strip())
        start = end.end()
    return [piece for piece in [*pieces, text[start:].strip()] if piece]


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _last_question(messages: object) -> list[dict[object, object]]:
    """The last message of the user, in a list; empty where there is none."""
    if not isinstance(messages, list):
        raise RewardError(f"a prompt must be text or a list of messages, not {shorten(messages)}")
    user_messages = [message for message in messages if isinstance(message, dict) and message.get("role") == "user"]
    return user_messages[-1:]


def _text(given: object, role: str) -> str:
    if isinstance(given, str):
        return given
    if not isinstance(given, list) or not all(isinstance(message, dict) for message in given):
        raise RewardError(f"a completion must be text or a list of messages, not {shorten(given)}")
    return "\n".join(str(message.get("content") or "") for message in given if message.get("role") == role)


def share(flags: Iterable[bool]) -> float:
    """The share of those that are true, 0 where there are none."""
    listed = list(flags)
    return sum(listed) / len(listed) if listed else 0.0
