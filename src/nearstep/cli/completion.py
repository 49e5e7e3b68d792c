"""`nearstep completion`: a script for bash, zsh or fish that completes commands, flags and the words they take."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from nearstep.config.conversion import OR_NONE
from nearstep.config.options import option_of
from nearstep.config.settings import Problem, Settings, accepts_old_names, option

SHELLS = ("bash", "zsh", "fish")
NOTE = (
    "bash: nearstep completion bash >> ~/.bashrc. zsh: into a file _nearstep of a folder of fpath. fish: into "
    "~/.config/fish/completions/nearstep.fish. It has the settings of this version: print it again after an update."
)


@accepts_old_names
@dataclass(frozen=True, kw_only=True)
class CompletionOptions(Settings):
    """Which shell."""

    shell: Literal["bash", "zsh", "fish"] | None = option(None, "the shell that reads the script")

    def problems(self) -> Iterator[Problem]:
        """No shell."""
        if self.shell is None:
            yield Problem(f"say for which shell: nearstep completion {'|'.join(SHELLS)}", ("shell",))


SECTIONS = (("Completion", "shell"),)


@dataclass(frozen=True)
class Completed:
    """A command: its flags with what each is for, and the words that some of them take."""

    name: str
    summary: str
    flags: Mapping[str, str]  # help by flag
    words: Mapping[str, Sequence[str]]  # by flag


def run_completion(options: CompletionOptions) -> None:
    """Print the script."""
    from nearstep.cli.commands import COMMANDS

    assert options.shell is not None
    scripts: Mapping[str, Callable[[Sequence[Completed]], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
    print(scripts[options.shell]([completed(command) for command in COMMANDS]), end="")


def completed(command: Any) -> Completed:
    """What a command has to complete."""
    flags = {"--help": "what the command does, and its settings", "--config": "settings from a YAML file"}
    words: dict[str, Sequence[str]] = {}
    if command.recipes:
        flags["--recipe"] = "settings that belong together"
        words["--recipe"] = tuple(command.recipes)
    for setting in dataclasses.fields(command.settings):
        flag, kind = f"--{setting.name}", command.settings.types[setting.name]
        flags[flag] = option_of(setting).help
        if setting.default is True:
            flags[f"--no-{setting.name}"] = f"not: {option_of(setting).help}"
        if choices := tuple(_choices(kind)):
            words[flag] = choices
    if command.operand == "shell":
        words[""] = SHELLS
    return Completed(command.name, command.summary, flags, words)


def _choices(kind: Any) -> Iterator[str]:
    """The words that a type consists of; none where it takes anything else."""
    if get_origin(kind) is Literal:
        yield from (str(each) for each in get_args(kind))
    elif get_origin(kind) in OR_NONE:
        yield from (word for each in get_args(kind) for word in _choices(each))


def bash(commands: Sequence[Completed]) -> str:
    """A function for `complete -F`, for bash 3.2 and newer."""
    cases: list[str] = []
    for each in commands:
        cases += [f"    {each.name}:{flag}) words='{' '.join(words)}' ;;" for flag, words in each.words.items() if flag]
        cases += [f"    {each.name}:*) words='{' '.join([*each.words.get('', ()), *each.flags])}' ;;"]
    return "\n".join([
        "# bash completion of nearstep, by `nearstep completion bash`",
        "_nearstep() {",
        '  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words=""',
        "  COMPREPLY=()",
        '  if [ "$COMP_CWORD" -eq 1 ]; then',
        f"    words='{' '.join(each.name for each in commands)} --help --version'",
        '  else case "${COMP_WORDS[1]}:$before" in',
        *cases,
        "  esac; fi",
        '  case "$before:$word" in',
        '    --*:-*|[!-]*:*) ;;',
        # Behind a flag that takes any text nothing is offered but files.
        '    --*:*) case " $words " in *" $before "*) return ;; esac ;;',
        "  esac",
        '  COMPREPLY=($(compgen -W "$words" -- "$word"))',
        "}",
        "complete -o default -F _nearstep nearstep",
        "",
    ])  # fmt: skip


def zsh(commands: Sequence[Completed]) -> str:
    """A file `_nearstep` for a folder of fpath; it may be sourced as well."""
    cases: list[str] = []
    for each in commands:
        specs = [_zsh_flag(flag, meaning, each.words.get(flag, ())) for flag, meaning in each.flags.items()]
        if operands := each.words.get("", ()):
            specs.append(f"'1:word:({' '.join(operands)})'")
        cases.append(f"    {each.name}) _arguments {' '.join([*specs, _zsh_quoted('*:file:_files')])} ;;")
    return "\n".join([
        "#compdef nearstep",
        "# zsh completion of nearstep, by `nearstep completion zsh`",
        "_nearstep() {",
        "  if (( CURRENT == 2 )); then",
        f"    local -a commands=({' '.join(_zsh_quoted(f'{each.name}:{each.summary}') for each in commands)})",
        "    _describe command commands",
        "    return",
        "  fi",
        "  local command=$words[2]",
        "  shift words",
        "  (( CURRENT-- ))",
        "  case $command in",
        *cases,
        "  esac",
        "}",
        '[ "$funcstack[1]" = _nearstep ] && _nearstep "$@" || compdef _nearstep nearstep',
        "",
    ])  # fmt: skip


def fish(commands: Sequence[Completed]) -> str:
    """A file of ~/.config/fish/completions."""
    lines = ["# fish completion of nearstep, by `nearstep completion fish`"]
    for each in commands:
        lines.append(f"complete -c nearstep -n __fish_use_subcommand -f -a {each.name} -d {_fish_quoted(each.summary)}")
        seen = f"-n '__fish_seen_subcommand_from {each.name}'"
        if operands := each.words.get("", ()):
            lines.append(f"complete -c nearstep {seen} -f -a '{' '.join(operands)}'")
        for flag, meaning in each.flags.items():
            words = each.words.get(flag, ())
            taken = f" -x -a '{' '.join(words)}'" if words else ""
            lines.append(f"complete -c nearstep {seen} -l {flag[2:]}{taken} -d {_fish_quoted(meaning)}")
    return "\n".join([*lines, ""])


def _zsh_flag(flag: str, meaning: str, words: Sequence[str]) -> str:
    text = meaning.replace("\\", "").replace("[", "(").replace("]", ")").replace(":", " –")
    taken = f":word:({' '.join(words)})" if words else ""
    return _zsh_quoted(f"{flag}[{text}]{taken}")


def _zsh_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
