"""Rows of Reddit posts that shall be summarised: TL;DR, and OpenAI's comparisons of summaries.

The prompt is that of the N+ study (arXiv 2403.17031, details 2 and 3): it ends with "TL;DR:" and no space, a summary
begins with a space, and a post that is too long loses its last paragraphs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from nearstep.data.checks import check_text, text_of, value_of, wrong_type
from nearstep.data.formats.format import Format, PreferencePair, PromptRow, Row
from nearstep.data.formats.preferences import checked_pair
from nearstep.data.row_errors import BadValueError, RowError


@dataclass(frozen=True)
class _Shorter(Sequence[str]):
    """A prompt without its post's last paragraph, without the last two, and so on, made when asked for."""

    head: str
    post: str
    ends: tuple[int, ...]  # of the post, from the longest cut to the shortest

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return _asked(self.head, self.post[: self.ends[index]])


def _asked(head: str, post: str) -> str:
    return f"{head}{post}\n\nTL;DR:"


def _post_prompt(subreddit: str, title: str, post: str) -> PromptRow:
    check_text(post, "post", "the post")
    head = f"SUBREDDIT: r/{subreddit.removeprefix('r/')}\n\nTITLE: {title}\n\nPOST: "
    return PromptRow(_asked(head, post), shorter=_Shorter(head, post, _ends_of_paragraphs(post)))


def _ends_of_paragraphs(post: str) -> tuple[int, ...]:
    """Where the paragraphs before the last one end, the latest first."""
    ends, start = [], 0
    for line in post.rstrip().split("\n")[:-1]:
        if line.strip():
            ends.append(start + len(line.rstrip()))
        start += len(line) + 1
    return tuple(reversed(ends))


def _prompt(row: Row) -> PromptRow:
    made = _post_prompt(*(text_of(row, column) for column in ("subreddit", "title", "post")))
    summary = row.get("summary")
    return PromptRow(made.prompt, _spaced(summary) if isinstance(summary, str) else None, made.shorter)


def _comparison_prompt(row: Row) -> PromptRow:
    info = value_of(row, "info")
    if not isinstance(info, dict):
        raise wrong_type("info", info, "an object with the post", "Give subreddit, title and post.")
    if isinstance(info.get("article"), str) and not isinstance(info.get("post"), str):
        check_text(info["article"], "info", "the article")
        return PromptRow(f"{info['article']}\n\nTL;DR:")
    for key in ("subreddit", "title", "post"):
        if not isinstance(info.get(key), str):
            problem = f"its {key!r} is no text"
            raise BadValueError(RowError.TYPE, "info", info, problem, "Give subreddit, title and post, or article.")
    return _post_prompt(info["subreddit"], info["title"], info["post"])


def _comparison_pair(row: Row) -> list[PreferencePair]:
    prompt = _comparison_prompt(row).prompt
    summaries, choice = value_of(row, "summaries"), value_of(row, "choice")
    listed = summaries if isinstance(summaries, list) else []
    texts = [item["text"] for item in listed if isinstance(item, dict) and isinstance(item.get("text"), str)]
    if len(texts) != 2 or len(listed) != 2:
        raise wrong_type("summaries", summaries, "two summaries with a 'text' each", "Give two summaries.")
    if choice not in (0, 1) or isinstance(choice, bool):
        raise BadValueError(RowError.NUMBER, "choice", choice, "expected 0 or 1, the better summary", "Correct it.")
    better, worse = (_spaced(texts[number]) for number in (int(choice), 1 - int(choice)))
    return [checked_pair(PreferencePair(prompt, better, worse), "summaries", "summaries")]


def _spaced(summary: str) -> str:
    return summary if summary[:1].isspace() else f" {summary}"


TLDR = Format("tldr", ("post", "subreddit", "title"), _prompt, has_reference=True)
COMPARISONS = Format("tldr-comparisons", ("info",), _comparison_prompt, _comparison_pair)
