"""What a language model is asked as a judge: a template of ours, or of the user's, filled in."""

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from nearstep.common.errors import ConfigError, shorten
from nearstep.common.messages import PromptInput
from nearstep.judges.protocol import Graded, Pair

BUILT_IN = ("default", "summary")
TEXTS = ("rubric", "system", "compare", "grade")
COMMON = {"prompt", "rubric", "how_to_answer"}
VARIABLES = {
    "compare": COMMON | {"first", "second"},
    "grade": COMMON | {"answer", "lowest", "highest"},
}
NEEDED = {"compare": {"first", "second"}, "grade": {"answer"}}
LETTERS = ("A", "B")


@dataclass(frozen=True)
class AnswerForm:
    """What the judge is told to answer with."""

    compare: str
    grade: str


IN_JSON = AnswerForm(
    'Answer with one JSON object and nothing else: {"preferred": "A"}, {"preferred": "B"}, or {"preferred": "tie"}.',
    'Answer with one JSON object and nothing else: {"grade": N}, where N is a number from %(lowest)d to %(highest)d.',
)
IN_A_TOKEN = AnswerForm("Answer with one letter and nothing else: A or B.", "Answer with the number and nothing else.")


@dataclass(frozen=True)
class Question:
    """A question to a language model; `system` may be empty."""

    system: str
    text: str

    @property
    def whole(self) -> str:
        """All of it in one text, for models that know no system message."""
        return "\n\n".join(filter(None, (self.system, self.text)))


@dataclass(frozen=True)
class JudgePrompt:
    """A template with its version, a rubric, and the range of grades."""

    name: str
    version: int
    texts: Mapping[str, str]  # by the names of TEXTS
    lowest: int
    highest: int

    @property
    def identity(self) -> str:
        """Name, version and fingerprint of the wording: part of the key of cached answers."""
        digest = hashlib.sha256("\0".join(self.texts[name] for name in TEXTS).encode()).hexdigest()
        return f"{self.name} {self.version} {digest[:12]}"

    def compare(self, pair: Pair, form: AnswerForm, *, swapped: bool) -> Question:
        """Which of two answers is better, `b` shown first where `swapped`."""
        first, second = (pair.b, pair.a) if swapped else (pair.a, pair.b)
        return self._asked(
            "compare", first=first, second=second, prompt=_shown(pair.prompt), rubric=self.rubric,
            how_to_answer=form.compare,
        )  # fmt: skip

    def grade(self, graded: Graded, form: AnswerForm) -> Question:
        """How good an answer is."""
        return self._asked(
            "grade", answer=graded.answer, prompt=_shown(graded.prompt), rubric=graded.rubric or self.rubric,
            lowest=self.lowest, highest=self.highest,
            how_to_answer=form.grade % {"lowest": self.lowest, "highest": self.highest},
        )  # fmt: skip

    @property
    def rubric(self) -> str:
        """What counts, where a question says nothing else."""
        return self.texts["rubric"]

    def _asked(self, kind: str, **values: object) -> Question:
        return Question(self.texts["system"].strip(), self._templates[kind].render(**values).strip())

    @cached_property
    def _templates(self) -> dict[str, Any]:
        environment = _environment()
        return {kind: environment.from_string(self.texts[kind]) for kind in VARIABLES}


def load_prompt(name: str, *, rubric: str | None, lowest: int, highest: int) -> JudgePrompt:
    """A built-in template, or that of a TOML file; `rubric` is a text, or the name of a .txt or .md file.

    Raises ConfigError for a file that is not there, is no TOML, lacks a part, or asks for what is not given.
    """
    if name in BUILT_IN:
        read = {"system": "", **tomllib.loads((files(__package__) / "prompts" / f"{name}.toml").read_text("utf-8"))}
    else:
        read = _of_file(Path(name))
    texts = {part: read[part] for part in TEXTS}
    if rubric is not None:
        texts["rubric"] = _rubric(rubric)
    return JudgePrompt(Path(name).stem, read["version"], texts, lowest, highest)


def _of_file(path: Path) -> dict[str, Any]:
    where = f"judge_prompt {path}"
    if not path.is_file():
        raise ConfigError(f"{where}: no such file; the built-in ones are {', '.join(BUILT_IN)}")
    try:
        read = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where} is no TOML in UTF-8: {error}") from error
    read = {"system": "", "rubric": "", **read}
    for part in (*TEXTS, "version"):
        kind = int if part == "version" else str
        if type(read.get(part)) is not kind:
            wanted = "a whole number, raised with every change" if kind is int else "text"
            raise ConfigError(f"{where}: {part} must be {wanted}, got {shorten(read.get(part))}")
    for template in VARIABLES:
        _check_template(template, read[template], where)
    return read


def _check_template(kind: str, text: str, where: str) -> None:
    from jinja2 import meta
    from jinja2.exceptions import TemplateError

    try:
        asked = meta.find_undeclared_variables(_environment().parse(text))
    except TemplateError as error:
        raise ConfigError(f"{where}: {kind} is no Jinja template: {error}") from error
    if unknown := sorted(asked - VARIABLES[kind]):
        known = ", ".join(sorted(VARIABLES[kind]))
        raise ConfigError(f"{where}: {kind} asks for {', '.join(unknown)}; it is given {known}")
    if missing := sorted(NEEDED[kind] - asked):
        raise ConfigError(
            f"{where}: {kind} never shows {', '.join(missing)}: write {{{{ {missing[0]} }}}} where it goes"
        )


def _environment() -> Any:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True)


def _rubric(text: str) -> str:
    if not text.endswith((".txt", ".md")):
        return text
    path = Path(text).expanduser()
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"rubric {path} cannot be read: {error}") from error


def _shown(prompt: PromptInput) -> str:
    """A prompt as text, a conversation with the role before each message."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message.get('role')}: {message.get('content') or ''}" for message in prompt)
