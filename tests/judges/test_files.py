"""`nearstep judge`: which rows meet, what is counted and printed, and how it goes on after an interruption."""

import json
from pathlib import Path

import pytest

from nearstep.cli.main import main
from nearstep.common import http_post
from nearstep.evaluation import judging
from nearstep.evaluation.metrics.figures import Bootstrap
from nearstep.judges import remote
from tests.judges.stub import Stub, chat, longer, preferring

WORDS = ("long enough", "mid size", "short", "tiny")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(http_post, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(judging, "Bootstrap", lambda seed: Bootstrap(seed, draws=20))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name, rows):
    with open(name, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return name


def two_files():
    """Of four prompts a wins two, loses one and ties one; the files are in other orders."""
    a = write("a.jsonl", [{"prompt": f"p{n}", "completion": text} for n, text in enumerate(WORDS)])
    others = ["x", "y", "much longer", "same"]
    b = write("b.jsonl", [{"prompt": f"p{n}", "completion": others[n]} for n in (2, 0, 3, 1)])
    return [a, b]


def judge(*words, json_out=True):
    return main(["judge", *words, *(["--json"] if json_out else [])])


def result(capsys):
    return json.loads(capsys.readouterr().out)


def test_two_files_are_counted_as_the_field_shows_it(capsys):
    with Stub(longer) as server:
        assert judge(*two_files(), "--judge", server.url, json_out=False) == 0
    out = capsys.readouterr().out
    assert out.startswith("preferred\nresponse0    2\nresponse1    1\ntie          1\nName: count, dtype: int64\n")
    assert "win rate of response0   62.5 %, 95 %: 21.9 to 90.8 % (Wilson, n = 4, 4 prompts)" in out
    assert "8, of them 0 answered before; 8 requests" in out
    lines = [json.loads(line) for line in Path("judgements.jsonl").read_text().splitlines()]
    assert [line["preferred"] for line in lines] == ["response0", "response0", "response1", "tie"]
    assert lines[0]["places"] == ["a.jsonl, line 1", "b.jsonl, line 2"]


def test_completions_are_compared_with_a_column(capsys):
    rows = [{"prompt": f"p{n}", "completion": text, "best": {"text": "1234567"}} for n, text in enumerate(WORDS)]
    with Stub(longer) as server:
        assert judge(write("a.jsonl", rows), "--references", "best", "--judge", server.url) == 0
    found = result(capsys)
    assert found["preferred"] == {"response0": 2, "response1": 2}
    assert found["sides"] == ["a.jsonl", "best"]


def test_the_same_command_goes_on_from_the_cache(capsys):
    files = two_files()
    with Stub(longer) as server:
        assert judge(*files, "--judge", server.url) == 0
        first = result(capsys)
        assert judge(*files, "--judge", server.url) == 0
        again = result(capsys)
        assert len(server.questions) == 8
    assert (again["preferred"], again["usage"]["requests"]) == (first["preferred"], 0)


def test_failures_are_counted_apart_and_no_ties(capsys, monkeypatch):
    def picky(handler, question):
        if "p1" in question["messages"][0]["content"]:
            handler.answer(*chat("I like both"))
        else:
            longer(handler, question)

    files = two_files()
    with Stub(picky) as server:
        assert judge(*files, "--judge", server.url) == 0
        found = result(capsys)
        assert (found["preferred"], found["failed"]) == ({"response0": 1, "response1": 1, "tie": 1}, 1)
        assert (found["win_rate"]["value"], found["win_rate"]["n"], found["win_rate"]["left_out"]) == (0.5, 3, 1)
    monkeypatch.setattr(remote, "MOST_IN_VAIN", 2)
    with Stub((403, {}, b"no")) as server:
        assert judge(*files, "--judge", server.url, "--max_in_flight", "1") == 1
        assert len(server.questions) == 2
    said = capsys.readouterr()
    assert "4 of 4 pairs were not judged, and it ended there" in said.err
    assert json.loads(said.out)["win_rate"]["value"] is None


def test_max_cost_ends_it_and_says_so(capsys):
    prices = ["--question_price", "1e6", "--answer_price", "1e6", "--max_cost", "1300", "--max_in_flight", "1"]
    with Stub(longer) as server:
        assert judge(*two_files(), "--judge", server.url, *prices) == 1
    said = capsys.readouterr()
    assert "max_cost = 1300 is reached" in said.err
    assert json.loads(said.out)["usage"]["cost"] == 110.0 * len(server.questions) <= 1300


def test_several_completions_of_a_prompt_meet_one_by_one_and_count_as_one_prompt(capsys):
    a = write("a.jsonl", [{"prompt": "p", "completion": text} for text in ("aaa", "b", "cc")])
    b = write("b.jsonl", [{"prompt": "p", "completion": text} for text in ("a", "bb", "cccc")])
    with Stub(longer) as server:
        assert judge(a, b, "--judge", server.url) == 0
    found = result(capsys)
    assert found["preferred"] == {"response0": 1, "response1": 2}
    assert (found["win_rate"]["n"], found["win_rate"]["prompts"]) == (3, 1)


def test_rows_without_a_counterpart_are_named(capsys):
    a = write("a.jsonl", [{"prompt": f"p{n}", "completion": "x"} for n in range(3)])
    b = write("b.jsonl", [{"prompt": f"p{n}", "completion": "y"} for n in range(1, 3)])
    with Stub(preferring("A")) as server:
        assert judge(a, b, "--judge", server.url) == 1
        assert (
            "1 rows have no counterpart:\n  a.jsonl, line 1: 'p0' is not in the other file" in capsys.readouterr().err
        )
        assert judge(a, b, "--judge", server.url, "--unmatched", "drop") == 0
        assert result(capsys)["pairs"] == 2
        assert judge(write("c.jsonl", [{"prompt": "q", "completion": "x"}]), b, "--judge", server.url) == 1
        assert "unmatched" not in capsys.readouterr().err


def test_ids_match_rows_and_their_prompts_must_agree(capsys):
    a = write("a.jsonl", [{"id": n, "prompt": "p", "completion": text} for n, text in enumerate(("aaa", "b"))])
    b = write("b.jsonl", [{"id": n, "prompt": "p", "completion": text} for n, text in ((1, "bb"), (0, "a"))])
    with Stub(longer) as server:
        assert judge(a, b, "--judge", server.url) == 0
        assert result(capsys)["preferred"] == {"response0": 1, "response1": 1}
        write("b.jsonl", [{"id": n, "prompt": f"p{n}", "completion": "x"} for n in range(2)])
        assert judge(a, b, "--judge", server.url) == 1
    assert "have the same id 0 and different prompts: 'p' and 'p0'" in capsys.readouterr().err


def test_columns_under_other_names(capsys):
    a = write("a.jsonl", [{"query": "p", "model_response": "aa", "reference_response": "b"}])
    with Stub(longer) as server:
        assert judge(a, "--references", "reference_response", "--judge", server.url) == 0
        assert result(capsys)["preferred"] == {"response0": 1, "response1": 0}
        b = write("b.jsonl", [{"post": "p", "summary": "b"}])
        assert judge(a, b, "--judge", server.url) == 1
        assert "no column 'prompt', only ['post', 'summary']" in capsys.readouterr().err
        assert judge(a, b, "--columns", "prompt=post", "completion=summary", "--judge", server.url) == 0


def test_what_is_missing_is_told_at_once(capsys):
    assert judge("a.jsonl", "b.jsonl") == 2
    said = capsys.readouterr().err
    for part in ("judge is missing", "files = a.jsonl: no such file", "files = b.jsonl: no such file"):
        assert part in said
    assert judge("a.jsonl", "--judge", "http://h/v1#m", "--key_env", "NOT_SET_ANYWHERE") == 2
    said = capsys.readouterr().err
    assert "name their column" in said
    assert "key_env: NOT_SET_ANYWHERE is not set" in said
