"""How settings of another library become ours: by name, by value, and what several of them say together."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nearstep.config.old_names import OF_TRAINING, Retired
from nearstep.config.ppo import PPOConfig
from nearstep.config.settings import current_name
from nearstep.migration.courses import with_a_rise
from nearstep.migration.critics import without_critic
from nearstep.migration.draft import SettingsDraft
from nearstep.migration.evaluations import with_eval_data
from nearstep.migration.finish import finish
from nearstep.migration.foreign import LIBRARIES, Foreign, Library


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
    idle: tuple[str, ...] = ()  # their names for what changes nothing here
    unread: Mapping[str, str] = field(default_factory=dict)  # our settings that only a run of theirs knows → where


def convert(foreign: Foreign) -> Migrated:
    """Our settings for theirs. Nothing is dropped in silence: what has no counterpart is in `lost`."""
    library = LIBRARIES[foreign.library]
    draft = SettingsDraft(told=list(foreign.notes))
    special: dict[str, object] = {}
    for given, value in foreign.settings.items():
        if value in (None, "null", [], {}):
            continue  # it asks for nothing
        name = _plain_name(given, foreign.library)
        ours = library.names.renamed.get(name)
        if ours is None:
            retired = library.names.why_absent(name)
            if retired is not None:
                draft.leave_out(given, value, retired.sentence, idle=_is_idle(retired, value))
                continue
            ours = _our_name(name, foreign.library)
            if ours not in PPOConfig.types:
                _note_absent(given, ours, value, draft)
                continue
        if ours.startswith("@"):
            special[ours.removeprefix("@")] = value
        else:
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
    unread = {_named_here(name, library, foreign.library): how for name, how in foreign.unread.items()}
    unread = {name: how for name, how in unread.items() if name not in draft.settings}
    defaults = {name: value for name, value in defaults.items() if name not in unread}
    defaults = without_critic(draft, defaults)
    with_eval_data(draft, foreign)
    return Migrated(
        library.title,
        recipe,
        with_a_rise(draft.settings | defaults),
        frozenset(defaults),
        draft.processes,
        tuple(draft.told),
        tuple(draft.lost),
        tuple(draft.idle),
        unread,
    )


def _plain_name(given: str, library: str) -> str:
    return given if library == "verl" else given.replace("-", "_")


def _our_name(name: str, library: str) -> str:
    return current_name(name.removeprefix("train.") if library == "aligntune" else name)  # train.save_steps


def _named_here(given: str, library: Library, kind: str) -> str:
    """Our setting for one whose value is not known; the name there where it is worked out from several."""
    name = _plain_name(given, kind)
    ours = library.names.renamed.get(name, _our_name(name, kind))
    return given if ours.startswith("@") else ours


def _is_idle(retired: Retired, value: object) -> bool:
    """Whether a setting of a library's own says nothing by this value: only where its values are listed."""
    return retired.harmless is not None and retired.is_harmless(value)


def _note_absent(given: str, ours: str, value: object, draft: SettingsDraft) -> None:
    """A name that no table knows, or that `nearstep ppo` explains."""
    retired = OF_TRAINING.why_absent(ours)
    if retired is None:
        draft.lose(given, value, "no counterpart is known")
    else:
        draft.leave_out(given, value, retired.sentence, idle=retired.is_harmless(value))
