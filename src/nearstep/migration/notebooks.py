"""The code of a notebook as one script, and its commands of the shell."""

import json

from nearstep.common.errors import ConfigError


def code_in(text: str, name: str) -> tuple[str, str]:
    """Its cells of Python, joined, and the commands that begin with `!`. Raises ConfigError for a file that is none."""
    try:
        cells = json.loads(text)["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{name} is no notebook: JSON with cells is expected") from None
    python, shell = [], []
    for source in sources:
        lines = source.splitlines()
        if lines and lines[0].lstrip().startswith("%%"):  # a cell for another program
            shell += lines[1:] if lines[0].lstrip().startswith(("%%bash", "%%sh")) else []
            continue
        continued = False
        for line in lines:
            is_command = continued or line.lstrip().startswith("!")
            if is_command:
                shell.append(line.lstrip().removeprefix("!"))
            elif not line.lstrip().startswith("%"):
                python.append(line)
            continued = is_command and line.rstrip().endswith("\\")
        python.append("")
    return "\n".join(python), "\n".join(shell)
