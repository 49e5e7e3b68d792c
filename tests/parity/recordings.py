"""How recorded arrays are read: as tensors, without the package that they come from."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

RECORDED = Path(__file__).parent / "recorded"


def read(path: Path) -> dict[str, Tensor]:
    """All recorded arrays by name."""
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "versions"}


def below(arrays: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The arrays whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
