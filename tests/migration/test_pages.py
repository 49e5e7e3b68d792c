"""Every migration page: its scripts are files, "before" becomes "after" by `nearstep migrate`, and "after" trains."""

import ast
import json
import re
import runpy
import shlex
from pathlib import Path

import pytest

from nearstep.cli.commands import COMMANDS
from nearstep.cli.main import main
from nearstep.config.recipes import RECIPES
from nearstep.config.settings import from_mapping
from nearstep.migration.document import text
from nearstep.migration.finish import FINISHES
from nearstep.migration.foreign import LIBRARIES
from nearstep.migration.migrate import migrate
from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_scalar_model

ROOT = Path(__file__).parents[2]
SCRIPTS, PAGES = ROOT / "examples" / "migrations", ROOT / "docs" / "migrations"
PPO = COMMANDS[0]
NAMES = ("trl_classic", "trl_ppo", "trl_dppo", "decoupled_draft", "aligntune", "mindspeed", "openrlhf", "verl")


def slow(name):
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Where the scripts run: policy, reward model and prompts by their names."""
    place = tmp_path_factory.mktemp("world")
    for name, model in (("policy", tiny_causal_lm(layers=1)), ("reward", tiny_scalar_model(layers=1))):
        model.save_pretrained(place / name)
        byte_tokenizer().save_pretrained(place / name)
    (place / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"Say {n}."}) for n in range(8)))
    return place


@pytest.fixture
def here(world, monkeypatch):
    monkeypatch.chdir(world)
    return world


def words_of(script):
    """The words behind `nearstep ppo` of a printed command."""
    lines = [line for line in script.splitlines() if not line.startswith("#")]
    words = shlex.split(" ".join(lines).replace("\\", " "))
    return words[words.index("ppo") + 1 :]


def code_of(name, kind):
    (file,) = SCRIPTS.glob(f"{name}_{kind}.*")
    return file


@pytest.mark.parametrize("name", NAMES)
def test_a_page_shows_its_scripts(name):
    page = (PAGES / f"{name}.md").read_text()
    blocks = re.findall(r"```(?:python|bash)\n(.*?)```", page, re.DOTALL)
    assert blocks[:2] == [code_of(name, kind).read_text() for kind in ("before", "after")]


@pytest.mark.parametrize("name", [slow("mindspeed"), slow("openrlhf"), slow("verl")])
def test_a_command_becomes_ours_and_trains(name, here):
    printed = migrate(code_of(name, "before"))
    assert main(["ppo", *words_of(printed), "--use_cpu", "--num_sample_generations", "0"]) == 0
    assert (here / name / "metrics.jsonl").is_file()


@pytest.mark.parametrize("name", ["mindspeed", "openrlhf", "verl"])
def test_a_command_has_the_settings_of_the_command_after(name, here):
    printed, after = migrate(code_of(name, "before")), code_of(name, "after").read_text()
    assert PPO.read(words_of(printed)) == PPO.read(words_of(after))


@pytest.mark.parametrize(
    "name", [slow("trl_ppo"), slow("trl_dppo"), slow("decoupled_draft"), slow("aligntune"), "trl_classic"]
)
def test_a_script_trains_after(name, here):
    runpy.run_path(str(code_of(name, "after")), run_name="__main__")
    folder = {"trl_ppo": "ppo", "trl_dppo": "dppo", "decoupled_draft": "decoupled"}.get(name, f"nearstep-{name}")
    folder = {"aligntune": "nearstep-output", "trl_classic": "nearstep-classic"}.get(name, folder)
    assert (here / folder / "metrics.jsonl").is_file()


@pytest.mark.parametrize(("name", "lacks"), [
    ("trl_ppo", set()), ("decoupled_draft", set()), ("trl_dppo", {"reward_funcs"}), ("aligntune", set()),
])  # fmt: skip
def test_a_script_before_becomes_a_command_with_the_settings_of_the_script_after(name, lacks, here, monkeypatch):
    """The settings that the script after gives to its trainer are those of the printed command."""
    given = []
    monkeypatch.setattr("nearstep.trainer.assemble", lambda config, inputs: given.append(config) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runpy.run_path(str(code_of(name, "after")), run_name="__main__")
    (after,) = given
    printed = migrate(code_of(name, "before"))
    words = words_of(printed) + (["--reward_funcs", "length"] if lacks else [])
    before = PPO.read(words)
    assert before.dataset_name == ("prompts.jsonl",)
    assert before.model_name_or_path == "policy"
    same = set(vars(before)) - {
        "reward_funcs", "model_name_or_path", "ref_model_path", "reward_model_path", "value_model_path", "dataset_name"
    }  # fmt: skip
    assert {each: vars(before)[each] for each in same} == {each: vars(after)[each] for each in same}


def test_a_script_of_the_old_trl_keeps_its_loop():
    printed = migrate(code_of("trl_classic", "before"))
    comments, code = printed.split("\n", 2)[:2], printed.split("\n", 2)[2]
    assert all(line.startswith("#") for line in comments)
    after = ast.parse(code_of("trl_classic", "after").read_text()).body
    before = ast.parse(code_of("trl_classic", "before").read_text()).body
    printed_body = ast.parse(code).body
    rest = [[ast.dump(node) for node in body if not isinstance(node, ast.ImportFrom)]
            for body in (printed_body, after, before)]  # fmt: skip
    assert rest[0] == rest[1] == rest[2]
    taken = [{alias.name for node in body if isinstance(node, ast.ImportFrom) and node.module == "nearstep.classic"
              for alias in node.names} for body in (printed_body, after)]  # fmt: skip
    assert taken[0] == taken[1]
    assert len(taken[0]) == 5


def test_the_page_of_flags_is_what_the_tables_make_it():
    remedy = "python -m nearstep.migration.document > docs/migrations/flags.md"
    assert (PAGES / "flags.md").read_text() == text(), remedy


@pytest.mark.parametrize("name", LIBRARIES)
def test_every_name_of_a_table_leads_somewhere(name):
    library = LIBRARIES[name]
    ours = {each for each in library.names.renamed.values() if not each.startswith("@")}
    assert ours <= set(PPO.settings.types)
    assert {each[1:] for each in library.names.renamed.values() if each.startswith("@")} <= set(FINISHES)
    assert library.recipe is None or library.recipe in RECIPES
    assert set(library.names.values) <= set(PPO.settings.types)
    values = {each: next(iter(of.values())) for each, of in library.names.values.items()}
    group = {"num_generations": 2} if "advantage" in library.defaults or "advantage" in values else {}
    from_mapping(PPO.settings, {**RECIPES.get(library.recipe or "", {}), **group, **library.defaults}, texts=True)
