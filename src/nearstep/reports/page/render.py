"""How a page is written: data and scripts in one HTML file that asks nobody for anything."""

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2

from nearstep.common.errors import ConfigError

BROWSER = files(__package__) / "browser"
# Our scripts in the order in which they are run; they share one scope.
SCRIPTS = ("dom", "state", "plot", "curves", "update", "diff", "samples", "tokens", "critic", "run", "keys", "live",
           "main")  # fmt: skip


def page(data: Mapping[str, Any], *, live: bool = False) -> str:
    """The HTML of a page. A live one asks the server that it came from for newer data, and nobody else.

    Raises ConfigError where bokeh is not installed, whose script draws the curves.
    """
    curves, ours = bokeh_script(), "\n".join(_asset(f"{name}.js") for name in SCRIPTS)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(_asset("page.html.jinja"))
    return template.render(
        title=data["run"]["name"],
        policy=policy((curves, ours), live=live),
        style=_asset("page.css"),
        data=script_json(data),
        curves=curves,
        ours=ours,
        live=live,
    )


def policy(scripts: tuple[str, ...], *, live: bool) -> str:
    """The content security policy: these scripts alone, no eval, no host.

    Styles may be inline, since bokeh puts its own into the page; text of models is never made into HTML.
    """
    hashes = " ".join(f"'sha256-{_hash(script)}'" for script in scripts)
    connect = "'self'" if live else "'none'"
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )


def script_json(data: object) -> str:
    """Data as JSON that a script element can hold: nothing in it can end the element or open a comment."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=str)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@cache
def bokeh_script() -> str:
    """The script that draws curves, out of the installed package. Raises ConfigError where it is not installed."""
    try:
        from bokeh.resources import Resources
    except ImportError as error:
        raise ConfigError(
            "the report needs the package bokeh, which is not installed: pip install 'nearstep[report]'."
        ) from error
    parts: list[str] = Resources(mode="inline", components=["bokeh", "bokeh-api"], log_level="warn").js_raw
    # An end of the element may stand in a string of the script alone, where the backslash means nothing.
    return "\n".join(parts).replace("</script", "<\\/script")


@cache
def _asset(name: str) -> str:
    return (BROWSER / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
