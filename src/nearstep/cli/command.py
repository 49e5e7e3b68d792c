"""What a command is, and how its settings are read from flags and file."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic

from nearstep.cli.config_file import read_config_file
from nearstep.cli.flags import read_flags
from nearstep.common.spelling import nearest
from nearstep.common.telling import tell
from nearstep.config.conversion import Names
from nearstep.config.old_names import DPPO
from nearstep.config.settings import Problem, SettingsT, current_name, from_mapping


@dataclass(frozen=True)
class Command(Generic[SettingsT]):
    """One entry of the command line: its settings, what else must hold for them, and what it does."""

    name: str
    summary: str
    settings: type[SettingsT]
    sections: tuple[tuple[str, str], ...]  # title and first setting, for --help
    run: Callable[[SettingsT], int | None]  # may give an exit code
    begins: Callable[[SettingsT], str] | None = None  # what is said before heavy libraries are loaded
    problems: Callable[[SettingsT], Iterable[Problem]] = lambda settings: ()
    recipes: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # settings that belong together, by name
    same_as: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by recipe: settings that are other ones
    operand: str | None = None  # the setting that a word before all flags gives
    needs_operand: bool = True  # whether the command does nothing without it
    words: Callable[[Sequence[str]], Sequence[str]] = lambda words: words  # into flags, where they say more
    note: str = ""  # the last lines of --help
    shares_work: bool = False  # whether several processes share its work

    def read(self, words: Sequence[str]) -> SettingsT:
        """The settings that the words after the command ask for. Raises ConfigError with every problem."""
        words = self.words(words)
        if self.operand is not None and words and not words[0].startswith("--"):
            words = [f"--{self.operand}", *words]
        flags = read_flags(self.settings, words)
        old = self.settings.old_names
        flagged = {current_name(name, old) for name in flags.values}
        mappings = [name for name, kind in self.settings.types.items() if kind == Names]
        file = read_config_file(flags.config_file, mappings) if flags.config_file else {}
        of_file = file.pop("recipe", None)  # run.yaml has none: it has what the recipe said
        recipe = flags.recipe if flags.recipe is not None or of_file is None else str(of_file)
        found = [*flags.problems, *self._recipe_problems(recipe)]
        values = {
            **self.recipes.get(recipe or "", {}),
            **{current_name(name, old): value for name, value in file.items()},
        }
        values = {name: value for name, value in values.items() if name not in flagged}
        given = values | {current_name(name, old): value for name, value in flags.values.items()}
        for setting, source in self.same_as.get(recipe or "", {}).items():
            if source in given and not {setting, "sft_model_path"} & given.keys():
                values[setting] = given[source]
                tell(f"recipe {recipe}: {setting} is {source}, {given[source]}")
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            settings = from_mapping(
                self.settings, values | flags.values, texts=True, found=found, further=self.problems
            )
        for note in notes:
            tell(str(note.message))
        in_file = {current_name(name, old) for name in file}
        if flags.recipe is not None and (over := self._overruled(flags.recipe, settings, in_file - flagged)):
            tell(f"--recipe {flags.recipe}: {flags.config_file} has other values of {', '.join(over)}, and they hold")
        return settings

    def _overruled(self, recipe: str, settings: SettingsT, in_file: set[str]) -> list[str]:
        """Settings of a recipe that is given as a flag for which the file says something else."""
        return [
            name for name, value in self.recipes[recipe].items() if name in in_file and vars(settings)[name] != value
        ]

    def _recipe_problems(self, recipe: str | None) -> list[Problem]:
        if recipe is None or recipe in self.recipes:
            return []
        if recipe.lower() == "dppo" and self.recipes:
            return [Problem(f"recipe {recipe}: {DPPO}")]
        near = nearest(recipe, self.recipes) if len(recipe) > 4 else None  # grpo is no slip for gspo
        meant = f"did you mean {near}?" if near else f"there are {', '.join(self.recipes) or 'none here'}"
        return [Problem(f"unknown recipe {recipe}; {meant}")]
