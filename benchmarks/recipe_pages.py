"""A page for every recipe, made from its file: why, objective, settings, formula and code, what to look at first.

    python -m benchmarks.recipe_pages        # writes docs/recipes/

A file in `recipes/` begins with comments: its title, then paragraphs that begin with `Why:`, `Objective:`, `Here:`
(what is not as in the paper, and what is second hand) and `Look first:` (a sign, an arrow, what to do; one a line). The
table of settings comes from the file's settings and their lines of `--help`, formulas from the docstrings of the
objects that they choose.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from benchmarks.harness.machine import REPOSITORY
from benchmarks.harness.results import table
from nearstep.assembly.axes import choose_axes
from nearstep.assembly.inputs import RunInputs
from nearstep.config.options import option_of
from nearstep.config.ppo import PPOConfig
from nearstep.config.recipes import RECIPES
from nearstep.reports.metrics import escape_cell

FILES = REPOSITORY / "recipes"
PAGES = REPOSITORY / "docs" / "recipes"
PARTS = ("Why", "Objective", "Here", "Look first")
AXES = ("trust_region", "advantage", "value_head", "critic_schedule", "kl_controller", "loss_aggregation")


@dataclasses.dataclass(frozen=True)
class RecipeFile:
    """A file of `recipes/`: its title, what its comments say by the name of the part, and its settings."""

    name: str
    title: str
    parts: Mapping[str, Sequence[str]]  # a paragraph each; of `Look first` a line each
    settings: Mapping[str, object]


def read(file: Path) -> RecipeFile:
    """Raises ValueError where a part is missing."""
    text = file.read_text(encoding="utf-8")
    lines = [line.removeprefix("#").strip() for line in _head(text)]
    parts: dict[str, list[str]] = {}
    part = ""
    for line in lines[1:]:
        named = re.match(rf"({'|'.join(PARTS)}): ?(.*)", line)
        if named:
            part, line = named[1], named[2]
            parts[part] = []
        if line and part:
            parts[part].append(line)
    missing = [name for name in ("Why", "Objective", "Look first") if not parts.get(name)]
    if missing:
        raise ValueError(f"{file.name}: its comments have no {', '.join(missing)}")
    return RecipeFile(file.stem, lines[0].removesuffix("."), parts, yaml.safe_load(text))


def _head(text: str) -> Iterator[str]:
    """The comments before the first setting."""
    for line in text.splitlines():
        if not line.startswith("#"):
            return
        yield line


def page(recipe: RecipeFile) -> str:
    """The page of a recipe in Markdown."""
    run = f"nearstep ppo --recipe {recipe.name} --model_name_or_path MODEL --dataset_name DATA {_rewards(recipe)}"
    parts = [
        f"# {recipe.title}",
        " ".join(recipe.parts["Why"]),
        "## Objective",
        _sentence(recipe.parts["Objective"]),
        "## Settings",
        _settings(recipe),
        "## Formula and code",
        *_objects(recipe),
    ]
    if recipe.parts.get("Here"):
        parts += ["## What is not as in the paper", " ".join(recipe.parts["Here"])]
    signs = [[escape_cell(cell.strip()) for cell in line.split("→", 1)] for line in recipe.parts["Look first"]]
    parts += [
        "## What to look at first",
        table(("sign", "look at"), signs).rstrip(),
        "Every metric has its meaning in [metrics.md](../metrics.md); `nearstep doctor RUN` reads them for you.",
        "## Run it",
        f"```bash\n{run}\n```",
        f'In a settings file `recipe: {recipe.name}`; in Python `PPOConfig(**RECIPES["{recipe.name}"], …)` with '
        "`nearstep.config.recipes.RECIPES`. What is given beside it wins.",
    ]
    return (
        "\n\n".join([*parts, f"Made from `recipes/{recipe.name}.yaml` by `python -m benchmarks.recipe_pages`."]) + "\n"
    )


def _sentence(words: Sequence[str]) -> str:
    """One paragraph that begins with a capital letter."""
    text = " ".join(words)
    return text[:1].upper() + text[1:]


def _rewards(recipe: RecipeFile) -> str:
    """How the example names its reward; where a head needs a range, with it."""
    declared = "" if "value_min" in recipe.settings or not _needs_range(recipe) else " --value_min 0 --value_max 1"
    return f"--reward_funcs file.py:function{declared}"


def _needs_range(recipe: RecipeFile) -> bool:
    return recipe.settings.get("value_head") in ("bounded", "bce", "hl_gauss")


def _settings(recipe: RecipeFile) -> str:
    """Every setting of the file with its default and its line of `--help`."""
    fields = {each.name: each for each in dataclasses.fields(PPOConfig)}
    rows = [
        (
            f"`{name}`",
            f"`{_shown(value)}`",
            f"`{_shown(fields[name].default)}`",
            escape_cell(option_of(fields[name]).help),
        )
        for name, value in recipe.settings.items()
    ]
    return table(("setting", "value", "default", "what it does"), rows).rstrip()


def _help(setting: "dataclasses.Field[object]") -> str:
    return option_of(setting).help


def _shown(value: object) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value).lower()


def _objects(recipe: RecipeFile) -> Iterator[str]:
    """What stands on each axis that is not PPO's, as its docstring says it, and where."""
    plain = objects(PPOConfig(output_dir="run"))
    declared = {"value_min": 0.0, "value_max": 1.0} if _needs_range(recipe) else {}
    chosen = objects(PPOConfig(output_dir="run", **RECIPES[recipe.name], **declared))  # type: ignore[arg-type]
    other = {axis: found for axis, found in chosen.items() if found != plain[axis]}
    if not other:
        yield "The objects on the axes are PPO's: the settings alone differ."
    for axis, found in other.items():
        place = inspect.getsourcefile(type(found))
        assert place is not None, f"{type(found)} has no source"
        where = Path(place).relative_to(REPOSITORY / "src")
        values = ", ".join(f"{each.name}={_shown(vars(found)[each.name])}" for each in _told(found))
        said = " ".join((inspect.getdoc(type(found)) or "").split())
        yield f"**{axis}** `{type(found).__name__}({values})` in [`{where}`](../../src/{where}): {said}"


def objects(config: PPOConfig) -> Mapping[str, object]:
    """The objects on the axes under some settings, by axis."""
    axes = choose_axes(config, RunInputs(), updates=1000)
    return {axis: vars(axes)[axis] for axis in AXES}


def _told(found: object) -> Iterator["dataclasses.Field[object]"]:
    """Numbers and words of an object; not what it is made of."""
    for each in dataclasses.fields(found):  # type: ignore[arg-type]
        if isinstance(vars(found)[each.name], str | int | float | None) and not each.name.startswith(
            ("needs_", "uses_")
        ):
            yield each


def pages() -> Mapping[str, str]:
    """Every page by the name of its recipe, in order."""
    return {file.stem: page(read(file)) for file in sorted(FILES.glob("*.yaml"))}


def index() -> str:
    """The page that lists them."""
    rows = [(f"[{file.stem}]({file.stem}.md)", read(file).title) for file in sorted(FILES.glob("*.yaml"))]
    about = (
        '`--recipe NAME` on the command line, `recipe: NAME` in a settings file, `PPOConfig(**RECIPES["NAME"], …)` in '
        "Python. Each page says why, the objective, its settings, the code, and what to look at first. How they do at "
        "equal rollouts on two small tasks: [benchmarks/results/recipes.md](../../benchmarks/results/recipes.md)."
    )
    parts = ["# Recipes", about, table(("recipe", "what it is"), rows).rstrip(), "## On a small model", SMALL, TRY]
    return "\n\n".join(parts) + "\n"


SMALL = (
    "Rates and warm-ups of papers are those of models a thousand times as large, and most recipes take no KL penalty, "
    "which a verifier does not need and a reward model does. After `make demo` this trains in some minutes on a CPU. "
    "The demo's held-out judge prefers 92 % of its summaries to a person's, 91 % with `--recipe pact` (without "
    "`vf_warmup_updates` and `vf_learning_rate`), and 57 % of the supervised start's (one seed, with a model of four "
    "heads of 24, where the demo has three of 32 now). With `--kl_coef 0` the reward model's score rises further, and "
    "its blind spots are found: 4 % are preferred then. The scores of a reward model have no range, so "
    "`reward_clip` gives them one; the penalty for a missing EOS lies in it. `--recipe sao` takes no range."
)
TRY = """```bash
nearstep ppo --recipe bpco --model_name_or_path runs/demo/sft --reward_model_path runs/demo/reward \\
  --dataset_name runs/demo/prompts.jsonl --response_length 48 --missing_eos_penalty 2 \\
  --reward_clip 5 --value_min -7 --value_max 5 --kl_in loss --kl_estimator k2 --kl_coef 0.1 \\
  --learning_rate 5e-4 --vf_learning_rate 1e-3 --vf_warmup_updates 4 \\
  --per_device_train_batch_size 64 --num_mini_batches 2 --total_episodes 2560 --use_cpu --output_dir runs/bpco
```"""


def main() -> None:
    """Write them."""
    PAGES.mkdir(parents=True, exist_ok=True)
    (PAGES / "README.md").write_text(index(), encoding="utf-8")
    for name, text in pages().items():
        (PAGES / f"{name}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
