"""Settings on their way from another library to ours."""

from dataclasses import dataclass, field


@dataclass
class SettingsDraft:
    """What is known so far."""

    settings: dict[str, object] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    lost: list[tuple[str, object, str]] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)  # names that change nothing here
    processes: int = 1
    recipe: str | None = None

    def lose(self, name: str, value: object, why: str) -> None:
        """A setting of theirs has no counterpart."""
        self.lost.append((name, value, why))

    def leave_out(self, name: str, value: object, why: str, *, idle: bool) -> None:
        """A setting of theirs is left out: `idle` where nothing depends on it here, else it is lost."""
        if idle:
            self.idle.append(name)
        else:
            self.lose(name, value, why)

    def number(self, value: object) -> float | None:
        """A value as a number; None where it is none, such as a variable of the shell."""
        try:
            return float(str(value).replace("_", ""))
        except ValueError:
            return None

    def whole(self, value: object) -> int | None:
        """A value as a whole number; None where it is none."""
        found = self.number(value)
        return int(found) if found is not None and found.is_integer() else None


def is_true(value: object) -> bool:
    """Whether a switch is on, as words write it."""
    return str(value).lower() in ("true", "1", "yes", "on")


def rows_of_update(draft: SettingsDraft) -> int | None:
    """Responses of an update, by batch_size or by those of a device; None where they are not known."""
    return draft.whole(draft.settings.get("batch_size")) or rows_by_device(draft)


def rows_by_device(draft: SettingsDraft) -> int | None:
    """Responses of an update where the file gives those of a device."""
    device = draft.whole(draft.settings.get("per_device_train_batch_size"))
    steps = draft.whole(draft.settings.get("gradient_accumulation_steps", 1))
    return None if device is None or steps is None else device * steps * draft.processes
