"""Where the command line starts: which command is asked for, and what it ends with."""

import os
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from nearstep import __version__
from nearstep.cli import several
from nearstep.cli.broken_pipe import silence_unread_streams
from nearstep.cli.command import Command
from nearstep.cli.commands import COMMANDS
from nearstep.cli.help import command_help, overview
from nearstep.common.errors import ConfigError, NearstepError, WaitError
from nearstep.common.secrets import without_secrets
from nearstep.common.spelling import nearest
from nearstep.common.telling import tell, tell_launcher
from nearstep.common.waiting import end_soon
from nearstep.scale.launcher import end_with_launcher


def main(words: Sequence[str] | None = None) -> int:
    """Run the command that `words` (by default those of the command line) ask for; return the exit code.

    0 done, 1 failed (or nobody reads on: `nearstep --help | head -1`), 2 wrongly asked, 130 interrupted, 143 ended, or
    what the command gave.
    """
    try:
        code = _answer(sys.argv[1:] if words is None else words)
        if sys.stdout is not None:  # it is where the shell closed it
            sys.stdout.flush()  # at the interpreter's end a broken pipe could no more be caught
    except BrokenPipeError:
        if not silence_unread_streams():
            raise
        return 1
    return code


def _answer(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(overview(COMMANDS))
        return 0
    if words[0] == "--version":
        print(f"nearstep {__version__}")
        return 0
    names = [command.name for command in COMMANDS]
    if words[0] not in names:
        meant = f"; did you mean {near}?" if (near := nearest(words[0], names)) else f"; there are {', '.join(names)}"
        return _fail(f"unknown command {words[0]}{meant}", 2)
    return _run(COMMANDS[names.index(words[0])], words[1:])


def _run(command: Command[Any], words: Sequence[str]) -> int:
    if "-h" in words or "--help" in words:
        print(command_help(command))
        return 0
    try:
        processes = 1
        if command.shares_work:
            processes, words = several.take_processes(words, os.environ)
        settings = command.read(words)
        if processes > 1:
            several.become_launcher(processes, command.name, words)
        end_with_launcher()
        if command.begins is not None:
            tell(f"{command.begins(settings)}. Loading torch and transformers …")
        code = command.run(settings)
    except ConfigError as error:
        return _fail(str(error), 2)
    except NearstepError as error:
        if isinstance(error, WaitError):
            end_soon()  # whoever hangs may have threads, for which the interpreter would wait
        return _fail(str(error), 1, error)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except (Exception, SystemExit) as error:
        tell_launcher(without_secrets("".join(traceback.format_exception_only(error)).strip()), error)
        sys.excepthook = _print_without_secrets
        raise
    return code or 0


def _print_without_secrets(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The traceback of a fault of ours, or of a library, whose messages may quote an address or a token."""
    print(without_secrets("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _fail(message: str, code: int, error: Exception | None = None) -> int:
    tell_launcher(message, error)
    print(f"nearstep: {message}", file=sys.stderr)
    return code
