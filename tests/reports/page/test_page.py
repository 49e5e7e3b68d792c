"""The page of a run: text stays text, nobody is asked for anything, and what is shown of many rows is stated."""

import base64
import hashlib
import json
import re
import sys
from html.parser import HTMLParser

import pytest

from nearstep.cli.main import main
from nearstep.common.errors import ConfigError, DataError
from nearstep.reports.page import render
from nearstep.reports.page.content import Content
from nearstep.reports.page.render import bokeh_script, page, policy, script_json
from tests.reports.page.made_run import ATTACK, make_run


@pytest.mark.parametrize("name", ["rollouts", "tokens", "samples", "eval_rollouts", "alerts"])
def test_lines_of_another_shape_are_named(tmp_path, name):
    (tmp_path / "run.yaml").write_text("seed: 1\n")
    (tmp_path / f"{name}.jsonl").write_text('{"update": 1, "text": "of something else"}\n')
    with pytest.raises(DataError, match=rf"{name}\.jsonl, line 1: it has no '\w+', so it is no line of {name}"):
        Content(tmp_path).read()


class Elements(HTMLParser):
    """Every element with its attributes, and the text of scripts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.texts.append("")

    def handle_data(self, data):
        if self.texts:
            self.texts[-1] += data

    def of(self, wanted):
        return [(attributes, text) for (tag, attributes), text in zip(self.elements, self.texts, strict=True)
                if tag == wanted]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "made", updates=12, rows=4, logged=4)


@pytest.fixture(scope="module")
def data(folder):
    content = Content(folder)
    content.read()
    return content.data()


@pytest.fixture(scope="module")
def parsed(data):
    return Elements(page(data))


def test_text_of_models_ends_no_script_and_makes_no_element(data, parsed):
    (_, held), curves, ours = parsed.of("script")
    assert json.loads(held) == json.loads(json.dumps(data))
    assert ATTACK in json.loads(held)["prompts"][0]
    assert "window.attacked" not in curves[1] + ours[1]
    assert {tag for tag, _ in parsed.elements} & {"img", "iframe", "link", "object", "embed", "base", "form"} == set()


def test_a_name_is_escaped_too(data):
    shown = page({**data, "run": {**data["run"], "name": ATTACK}})
    assert len(Elements(shown).of("script")) == 3


@pytest.mark.parametrize("text", ["</script>", "<!--<script>", "\u2028", "\ud800", "<"])
def test_data_comes_back_as_it_was_without_a_character_that_html_reads(text):
    held = script_json({"text": text})
    assert json.loads(held.encode("utf-8", "backslashreplace")) == {"text": text}
    assert "<" not in held


def test_the_policy_lets_in_the_two_scripts_alone_and_asks_nobody(data, parsed):
    (said,) = [each["content"] for each, _ in parsed.of("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    scripts = re.findall("<script>(.*?)</script>", page(data), re.DOTALL)  # html.parser loses some of bokeh's
    assert len(scripts) == 2
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    parts = dict(part.strip().split(" ", 1) for part in said.split(";"))
    assert parts["default-src"] == "'none'"
    assert parts["script-src"].split() == [f"'sha256-{each}'" for each in hashes]
    assert parts["connect-src"] == "'none'"
    assert "http" not in said
    assert "eval" not in said
    assert "connect-src 'self'" in policy(("a",), live=True)


def test_nothing_outside_the_file_is_named(parsed):
    names = ("src", "href", "srcset", "action", "data")
    asked = [attributes[name] for _, attributes in parsed.elements for name in names if name in attributes]
    assert asked
    assert all(place.startswith("#") for place in asked)
    assert "url(" not in parsed.of("style")[0][1]
    assert not [name for _, attributes in parsed.elements for name in attributes if name.startswith("on")]


def test_the_page_is_small_beside_the_script_that_draws_curves(data):
    assert len(page(data)) - len(bokeh_script()) < 250_000


def test_no_script_of_ours_makes_html_of_text():
    code = "".join(render._asset(f"{name}.js") for name in render.SCRIPTS)
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
        assert way not in code


def test_an_old_run_has_a_page_that_says_what_is_absent(folder, tmp_path):
    for name in ("metrics.jsonl", "run.yaml"):
        (tmp_path / name).write_text((folder / name).read_text())
    content = Content(tmp_path)
    content.read()
    absent = content.data()["absent"]
    assert [each.split()[0] for each in absent] == [
        "rollouts.jsonl", "samples.jsonl", "tokens.jsonl", "profiles.jsonl", "run_info.json"
    ]  # fmt: skip
    assert content.data()["run"]["changed"] == {"output_dir": {"value": "made", "default": "nearstep-output"}} | {
        name: both for name, both in content.data()["run"]["changed"].items() if name != "output_dir"
    }
    assert page(content.data())


def test_a_run_without_an_update_and_settings_that_are_not_finite(tmp_path):
    (tmp_path / "run.yaml").write_text("importance_cap: .inf\nseed: 7\n")
    content = Content(tmp_path)
    content.read()
    assert content.data()["health"]["state"] == "unknown"
    assert content.data()["run"]["settings"] == {"importance_cap": "Infinity", "seed": "7"}
    assert page(content.data())


def test_the_command_writes_beside_the_run_or_where_it_is_told(folder, tmp_path, capsys):
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert main(["report", str(folder), "--output", str(tmp_path / "new" / "a.html"), "--max_samples", "20"]) == 0
    held = Elements((tmp_path / "new" / "a.html").read_text()).of("script")[0][1]
    assert 20 <= len(json.loads(held)["samples"]["rows"]) < 48  # extreme ones are always there
    assert "open it in a browser" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "code", "said"), [
    (["report"], 2, "nearstep report RUN"),
    (["report", "nowhere"], 1, "nowhere is no folder"),
    (["report", ".", "--output", "."], 2, "is a folder"),
])  # fmt: skip
def test_what_cannot_be_reported_is_told_in_a_line(words, code, said, capsys):
    assert main(words) == code
    assert said in capsys.readouterr().err


def test_without_bokeh_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "bokeh.resources", None)
    bokeh_script.cache_clear()
    with pytest.raises(ConfigError, match=r"pip install 'nearstep\[report\]'"):
        bokeh_script()
