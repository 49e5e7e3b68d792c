"""The notebooks run from top to bottom, in the order of their links, and are stored without outputs."""

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
ORDER = ("first_ppo", "look_at_a_run", "own_region")


def cells(name, kind):
    """The texts of the cells of one kind."""
    found = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in found["cells"] if cell["cell_type"] == kind]


@pytest.mark.slow
def test_every_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    spaces = {}
    for name in ORDER:
        spaces[name] = {"__name__": name}
        for number, cell in enumerate(cells(name, "code")):
            exec(compile(cell, f"{name}.ipynb, cell {number}", "exec"), spaces[name])
    scores = spaces["first_ppo"]["metrics"]["objective/scores"]
    assert scores.iloc[-3:].mean() > scores.iloc[:3].mean() + 0.1  # it says that they rise
    assert len(spaces["look_at_a_run"]["row"]) > 1
    assert list(spaces["own_region"]["scores"]) == ["with-clip", "with-own-region"]


def test_they_are_stored_without_outputs_and_open_in_jupyter():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(ORDER)
    for name in ORDER:
        found = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
        assert (found["nbformat"], found["metadata"]["kernelspec"]["name"]) == (4, "python3")
        assert len({cell["id"] for cell in found["cells"]}) == len(found["cells"])
        for cell in found["cells"]:
            assert cell["cell_type"] in ("code", "markdown")
            if cell["cell_type"] == "code":
                assert (cell["outputs"], cell["execution_count"]) == ([], None)


def test_their_links_lead_somewhere():
    for name in ORDER:
        for text in cells(name, "markdown"):
            for link in text.split("](")[1:]:
                assert (FOLDER / link.split(")")[0]).is_file(), link
