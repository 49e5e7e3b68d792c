"""Rewards for the form that was asked for: a regular expression, JSON, a JSON schema, tags."""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nearstep.common.errors import ConfigError, RewardError, shorten
from nearstep.config.settings import option
from nearstep.rewards.builtin.columns import Values, read_texts
from nearstep.rewards.builtin.metadata import BuiltIn, Metadata, TextReward, column_name, required
from nearstep.rewards.builtin.text import texts_of

_FENCED = re.compile(r"\s*```(?:json)?[ \t]*\n(.*?)\n?[ \t]*```\s*", re.DOTALL | re.IGNORECASE)
_INVALID = object()


@dataclass(frozen=True)
class Regex(BuiltIn):
    """1 if a regular expression matches, else 0: the whole completion, or with whole=false some part of it."""

    __name__ = "regex"
    metadata = Metadata(
        gaming="The form is all it sees: .* between two tags matches any filling.",
        needs="parameter pattern",
        package="regex",
        extra="metrics",
    )
    pattern: str = required("regular expression (Python's, a dot matches line ends too)")
    whole: bool = option(True, "the whole completion must match, white space around it left aside")
    timeout_seconds: float = option(5.0, "longest search in one completion; beyond it an error", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.need_package()
        import regex

        try:
            regex.compile(self.pattern, regex.DOTALL)
        except regex.error as error:
            raise ConfigError(f"regex: {shorten(self.pattern)} is no regular expression: {error}") from error

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        return [float(self._matches(text.strip(), row)) for row, text in enumerate(texts_of(completions))]

    def _matches(self, text: str, row: int) -> bool:
        import regex  # unlike re, it can be stopped: some patterns take time exponential in the text

        compiled = regex.compile(self.pattern, regex.DOTALL)
        find = compiled.fullmatch if self.whole else compiled.search
        try:
            return bool(text) and find(text, timeout=self.timeout_seconds) is not None
        except TimeoutError as error:
            raise RewardError(
                f"regex: {shorten(self.pattern)} needs more than {self.timeout_seconds:g} s for completion {row}, "
                f"{shorten(text)}. Write it with less nested repetition, or raise timeout_seconds."
            ) from error


@dataclass(frozen=True)
class Json(TextReward):
    """1 if the completion is JSON (RFC 8259), alone or in one code fence, else 0."""

    __name__ = "json"
    metadata = Metadata(gaming="{} and 0 are JSON: see json_schema.")

    def value(self, text: str) -> float:
        return float(_read_json(text) is not _INVALID)


@dataclass(frozen=True)
class JsonSchema(BuiltIn):
    """1 if the completion is JSON, alone or in one code fence, that a JSON schema accepts, else 0."""

    __name__ = "json_schema"
    metadata = Metadata(
        gaming="Empty texts and lists pass unless the schema demands content (minLength, minItems).",
        needs="parameter schema (a file), or column schema",
        package="jsonschema",
        extra="metrics",
    )
    schema: str | None = option(None, "file with the schema of all rows")
    column: str = column_name("schema", "column with a schema as JSON text for each row, where no file is given")

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a RewardError if there is no schema, or the one in the file is none."""
        if self.schema is None:
            super().check_columns(columns)
        else:
            self.need_package()
            self._of_all_rows  # noqa: B018  # read now, so that a wrong file is told before the run

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        given = [_read_json(text) for text in texts_of(completions)]
        if self.schema is not None:
            return [float(self._accepts(value, self._of_all_rows)) for value in given]
        rows = read_texts(self.__name__, self.column, columns)
        return [
            None if cell is None else float(self._accepts(value, _validator(cell[0], f"row {row}")))
            for row, (value, cell) in enumerate(zip(given, rows, strict=True))
        ]

    @cached_property
    def _of_all_rows(self) -> Any:
        assert self.schema is not None
        try:
            text = Path(self.schema).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RewardError(f"json_schema: cannot read the schema {self.schema}: {error}") from error
        return _validator(text, self.schema)

    def _accepts(self, value: object, validator: Any) -> bool:
        from referencing.exceptions import Unresolvable

        try:
            return value is not _INVALID and bool(validator.is_valid(value))
        except Unresolvable as error:
            raise RewardError(f"json_schema: the schema refers to {error}, which is not in it.") from error
        except RecursionError:  # a value nested deeper than Python's stack
            return False


@dataclass(frozen=True)
class Tags(TextReward):
    """The share of tags that stand once, in order: <name>, something, </name>, after the one before is closed."""

    __name__ = "tags"
    metadata = Metadata(gaming="One letter between the tags is something.")
    names: tuple[str, ...] = option(("think", "answer"), "names of the tags, in their order")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.names or len(set(self.names)) < len(self.names):
            raise ConfigError(f"tags: names = {','.join(self.names) or 'nothing'}: give each tag once, at least one")

    def value(self, text: str) -> float:
        right, end = 0, 0
        for name in self.names:
            opening, closing = f"<{name}>", f"</{name}>"
            start, stop = text.find(opening), text.find(closing)
            once = text.count(opening) == text.count(closing) == 1
            if once and end <= start and text[start + len(opening) : max(stop, 0)].strip():
                right, end = right + 1, stop + len(closing)
        return right / len(self.names)


def _read_json(text: str) -> object:
    """The value that a text stands for, or _INVALID."""
    fenced = _FENCED.fullmatch(text)
    try:
        return json.loads(fenced.group(1) if fenced else text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return _INVALID


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _validator(text: str, place: str) -> Any:
    """What checks values against the schema in `text`; it fetches nothing from elsewhere."""
    from jsonschema import SchemaError, validators
    from referencing import Registry

    schema = _read_json(text)
    if not isinstance(schema, dict | bool):
        raise RewardError(f"json_schema: the schema of {place} is no JSON object: {shorten(text)}")
    kind = validators.validator_for(schema, default=validators.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise RewardError(f"json_schema: the schema of {place} is none: {error.message}") from error
    return kind(schema, registry=Registry())
