"""Which of many rows and points are shown."""

import json

import pytest

from nearstep.reports.page import curves
from nearstep.reports.page.choice import Best, Families, RowChoice
from nearstep.reports.page.curves import thinned
from nearstep.reports.page.growing import GrowingFile
from nearstep.reports.page.rows import TokenRows


def rows(count, prompts=50):
    return [{"update": n // 4 + 1, "episode": n, "prompt": f"p{n % prompts}", "score": float((n * 37) % count),
             "error": None} for n in range(count)]  # fmt: skip


def chosen_of(all_rows, most, wanted=()):
    choice = RowChoice(most, ("score", "error"))
    choice.want(wanted)
    for row in all_rows:
        choice.add(row)
    return choice


def test_the_extreme_ones_are_always_there_and_the_same_rows_each_time():
    choice = chosen_of(rows(2000), 80)
    kept = choice.chosen()
    scores = sorted(row["score"] for row in kept)
    assert len(kept) == 80
    assert scores[:5] == [0, 1, 2, 3, 4]  # an eighth of 80, for two quantities: five at each end
    assert scores[-5:] == [1995, 1996, 1997, 1998, 1999]
    assert [row["episode"] for row in kept] == sorted(row["episode"] for row in kept)
    assert kept == chosen_of(rows(2000), 80).chosen()


def test_some_prompts_are_there_with_every_answer():
    kept = chosen_of(rows(2000), 400).chosen()
    counts = [sum(row["prompt"] == f"p{n}" for row in kept) for n in range(50)]
    assert counts.count(40) >= 2  # 2000 rows of 50 prompts; a quarter of 400 holds two whole prompts


def test_all_rows_where_they_are_few_and_wanted_ones_whatever_else():
    assert len(chosen_of(rows(30), 30).chosen()) == 30
    wanted = {(1, 2), (251, 1001)}
    kept = {(row["update"], row["episode"]) for row in chosen_of(rows(2000), 20, wanted).chosen()}
    assert wanted <= kept


def test_the_rule_says_what_was_done_and_names_no_quantity_that_is_unknown():
    said = chosen_of(rows(2000), 80).rule(lambda name: name)
    assert said.startswith("80 of 2,000 rows: the highest and lowest by score; ")
    assert chosen_of(rows(30), 30).rule(lambda name: name) == "All 30 rows."


def test_best_keeps_the_first_of_equals():
    best = Best(2)
    for rank, thing in [(1, "a"), (1, "b"), (1, "c"), (2, "d")]:
        best.offer(rank, thing)
    assert sorted(best.kept) == ["a", "d"]


def test_a_single_prompt_keeps_its_newest_rows():
    families = Families(3)
    for n in range(10):
        families.offer("p", {"n": n})
    assert [row["n"] for row in families.kept] == [7, 8, 9]


def test_a_point_is_the_mean_of_its_lines_with_lowest_and_highest(monkeypatch):
    monkeypatch.setattr(curves, "POINTS", 2)
    lines = [{"update": n, "episode": n * 8, "a": value} for n, value in enumerate([1, 2, 6, None, 4], start=1)]
    assert thinned(lines, ["a"]) == {
        "each": 3, "lines": 5, "first": [1, 4], "last": [3, 5], "episode": [24, 40],
        "mean": {"a": [3.0, 4.0]}, "low": {"a": [1, 4]}, "high": {"a": [6, 4]},
    }  # fmt: skip


def test_every_metric_has_a_place_and_none_has_two():
    names = ["objective/scores", "reward/a", "reward/a_std", "val/new", "time/update", "my/own", "lr"]
    groups = curves.curves([{"update": 1, **dict.fromkeys(names, 1.0)}], [])["groups"]
    placed = [name for group in groups for chart in group["charts"] + group["more"] for name in chart["names"]]
    assert sorted(placed) == sorted(names)


def test_a_growing_file_gives_new_whole_lines_and_knows_another_file(tmp_path):
    path = tmp_path / "a.jsonl"
    file = GrowingFile(path)
    assert list(file.new_lines()) == []
    path.write_text('{"update": 1}\n{"upd')
    assert list(file.new_lines()) == [{"update": 1}]
    path.write_text('{"update": 1}\n{"update": 2, "a": NaN}\n')
    assert list(file.new_lines()) == [{"update": 2, "a": None}]
    assert not file.has_begun_again()
    path.write_text('{"update": 1}\n{"update": 3}\n{"update": 4}\n')  # as long, and not the same
    assert file.has_begun_again()
    path.unlink()
    assert file.has_begun_again()


@pytest.mark.parametrize("count", [10, 400])
def test_rows_token_by_token_hold_the_newest_and_the_most_striking_within_their_budget(count):
    shown = TokenRows()
    for n in range(count):
        tokens = [" a"] * 300
        ratio = [1.0] * 299 + [9.0 if n == count // 2 else 1.1]
        shown.add({"update": n + 1, "episode": n, "prompt": "p", "score": 0.0, "finished": True, "tokens": tokens,
                   "token_ids": [1] * 300, "ratio": ratio, "advantage": [0.1] * 300})  # fmt: skip
    kept = [row["update"] for row in shown.rows()]
    assert count in kept
    assert count // 2 + 1 in kept
    assert len(kept) == min(count, 66)  # 20,000 tokens
    assert json.dumps(shown.rows(), allow_nan=False)
