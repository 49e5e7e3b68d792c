"""Value heads as TRL up to 0.11 saved them: `v_head.summary`, a linear layer beside the weights of the policy."""

import json
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from nearstep.common.errors import ModelError
from nearstep.common.telling import tell
from nearstep.models.weight_files import INDEX, reading

WEIGHT, BIAS = "v_head.summary.weight", "v_head.summary.bias"
FOLDER, FILE = "value_head", "v_head.safetensors"  # where one is written, out of the way of those who read the policy


@dataclass(frozen=True)
class TrlHead:
    """The layer that maps the last hidden state of a token to the value of that state."""

    weight: Float[Tensor, "1 width"]
    bias: Float[Tensor, " 1"] | None

    def check(self, width: int) -> None:
        """Raise ModelError for a head of another model."""
        if tuple(self.weight.shape) != (1, width):
            raise ModelError(
                f"the value head in the folder reads {tuple(self.weight.shape)[-1]} numbers, and hidden states have "
                f"{width}: it belongs to another model. Delete {FOLDER} in the folder to begin with a head of zeros"
            )


def stored_trl_head(folder: str | Path) -> TrlHead | None:
    """The head in a model folder: in its safetensors, as TRL has it, or where `save_trl_head` puts it, or None.

    A head in a pickle is not read, and that is said. Raises ModelError for a file that cannot be read.
    """
    place = Path(folder)
    for file in (place / FOLDER / FILE, _file_of_the_head(place)):
        if file is not None and file.is_file() and (found := _head_in(file)) is not None:
            return found
    if (place / "pytorch_model.bin").is_file() and not (place / "model.safetensors").is_file():
        tell(
            f"{place / 'pytorch_model.bin'} may hold a value head. It is a pickle and is not read: the head starts at "
            "zero. Saved again as safetensors by TRL (safe_serialization=True) it is read"
        )
    return None


def save_trl_head(head: TrlHead, folder: str | Path) -> None:
    """Write a head beside a policy, under TRL's names."""
    place = Path(folder) / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    tensors = {WEIGHT: head.weight, BIAS: head.bias}
    save_file(
        {name: each.detach().float().cpu().contiguous() for name, each in tensors.items() if each is not None},
        place / FILE,
    )


def _file_of_the_head(place: Path) -> Path | None:
    """The file of the folder that has the head, by its index where it has several."""
    index = place / INDEX
    if not index.is_file():
        return place / "model.safetensors"
    with reading("index of weights", str(place), "model"):
        name = json.loads(index.read_text(encoding="utf-8"))["weight_map"].get(WEIGHT)
    return None if name is None else place / name


def _head_in(file: Path) -> TrlHead | None:
    with reading("value head", str(file), "model"), safe_open(file, framework="pt") as opened:
        names = set(opened.keys())
        if WEIGHT not in names:
            return None
        return TrlHead(opened.get_tensor(WEIGHT).float(), opened.get_tensor(BIAS).float() if BIAS in names else None)
