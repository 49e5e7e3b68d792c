"""How settings of another library become ours: by name, by value, and what several of them say together."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nearstep.config.old_names import OF_TRAINING
from nearstep.config.ppo import PPOConfig
from nearstep.config.settings import current_name
from nearstep.migration.draft import SettingsDraft
from nearstep.migration.finish import finish
from nearstep.migration.foreign import LIBRARIES, Foreign

OF_A_CRITIC = ("vf_learning_rate", "cliprange_value", "lam", "vf_coef")
WITHOUT_CRITIC = ("group_mean", "group_normalized", "leave_one_out", "batch_normalized")


@dataclass(frozen=True)
class Migrated:
    """Our settings in the order of theirs, and what the user should know of them."""

    library: str
    recipe: str | None
    settings: Mapping[str, object]
    defaults: frozenset[str] = frozenset()  # settings that were not in the file: defaults of the library
    processes: int = 1
    told: tuple[str, ...] = ()
    lost: tuple[tuple[str, object, str], ...] = field(default=())  # name, value, why


def convert(foreign: Foreign) -> Migrated:
    """Our settings for theirs. Nothing is dropped in silence: what has no counterpart is in `lost`."""
    library = LIBRARIES[foreign.library]
    draft = SettingsDraft(told=list(foreign.notes))
    special: dict[str, object] = {}
    for given, value in foreign.settings.items():
        name = given.replace("-", "_") if foreign.library != "verl" else given
        ours = library.names.renamed.get(name)
        if ours is None:
            retired = library.names.why_absent(name)
            if retired is not None:
                draft.lose(given, value, retired.sentence)
                continue
            own = name.removeprefix("train.") if foreign.library == "aligntune" else name  # train.save_steps
            ours = current_name(own)
            if ours not in PPOConfig.types:
                _note_absent(given, ours, value, draft)
                continue
        if ours.startswith("@"):
            special[ours.removeprefix("@")] = value
        elif value is not None and value != "null":
            names = library.names.values.get(ours, {})
            draft.settings[ours] = names.get(str(value), value)
    recipe = finish(foreign.library, special, draft, library.defaults) or library.recipe
    defaults = {name: value for name, value in library.defaults.items() if name not in draft.settings}
    if "total_episodes" in draft.settings:  # the one length of a run
        defaults.pop("num_train_epochs", None)
    if "max_length" in draft.settings:  # one limit for prompt and response takes the place of two
        defaults.pop("max_prompt_length", None)
        if defaults.pop("response_length", None) is not None:
            draft.settings["response_length"] = draft.settings["max_length"]
    if draft.settings.get("advantage", defaults.get("advantage")) in WITHOUT_CRITIC:
        defaults = {name: value for name, value in defaults.items() if name not in OF_A_CRITIC}
    return Migrated(
        library.title,
        recipe,
        draft.settings | defaults,
        frozenset(defaults),
        draft.processes,
        tuple(draft.told),
        tuple(draft.lost),
    )


def _note_absent(given: str, ours: str, value: object, draft: SettingsDraft) -> None:
    """A name that no table knows, or that `nearstep ppo` explains."""
    retired = OF_TRAINING.why_absent(ours)
    if retired is None:
        draft.lose(given, value, "no counterpart is known")
    elif not retired.is_harmless(value):
        draft.lose(given, value, retired.sentence)
