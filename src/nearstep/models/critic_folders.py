"""How several critics lie on disk: `value/critic_1`, `value/critic_2`, … , each a model folder of its own."""

import copy
from pathlib import Path

from torch import nn

from nearstep.common.errors import ConfigError

NAME = "critic_"  # and a number from 1


def critics_in(place: object) -> list[str]:
    """The folders of the critics in a folder that holds several, in order; none for anything else."""
    if not isinstance(place, str):
        return []
    found = [path for path in Path(place).expanduser().glob(f"{NAME}*") if path.name[len(NAME) :].isdecimal()]
    return [str(path) for path in sorted(found, key=lambda path: int(path.name[len(NAME) :])) if path.is_dir()]


def require_as_many(place: object, folders: list[str], count: int) -> None:
    """Raise ConfigError where a folder holds more or fewer critics than the run has."""
    if folders and len(folders) != count:
        raise ConfigError(
            f"value_model_path = {place} holds {len(folders)} critics, and the run has critic_models = {count}: set "
            f"critic_models = {len(folders)}, or give one of {folders[0]}, …"
        )


def copies_of(first: nn.Module, count: int) -> nn.ModuleList:
    """`count` critics that begin alike: `first`, and copies of it that share the weights which do not learn."""
    frozen: dict[int, object] = {id(weight): weight for weight in first.parameters() if not weight.requires_grad}
    return nn.ModuleList([first, *(copy.deepcopy(first, dict(frozen)) for _ in range(count - 1))])
