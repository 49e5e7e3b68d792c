"""The pages of recipes are what their files make them."""

import pytest
from benchmarks.recipe_pages import PAGES, index, pages, read

from nearstep.config.recipes import RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_its_page(name):
    remedy = "python -m benchmarks.recipe_pages"
    assert (PAGES / f"{name}.md").read_text(encoding="utf-8") == pages()[name], remedy


def test_the_list_of_recipes_is_whole():
    assert (PAGES / "README.md").read_text(encoding="utf-8") == index()
    assert {file.stem for file in PAGES.glob("*.md")} == {*RECIPES, "README"}


def test_a_file_without_a_reason_is_refused(tmp_path):
    (tmp_path / "new.yaml").write_text("# New.\n# Objective: that.\nkl_coef: 0.0\n")
    with pytest.raises(ValueError, match=r"new\.yaml: its comments have no Why, Look first"):
        read(tmp_path / "new.yaml")
