"""How recorded arrays are written: one compressed file, with the versions that made them inside."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def write(
    path: Path,
    arrays: Mapping[str, Tensor | NDArray | float],
    packages: Sequence[str] = ("trl", "transformers", "torch"),
) -> None:
    """Write arrays by name, and beside them as `versions` the packages that they come from."""
    versions = np.array([f"{package} {version(package)}" for package in packages])
    plain = {name: np.asarray(array) for name, array in arrays.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, versions=versions, **plain)
