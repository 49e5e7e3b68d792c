"""How a model folder is written from weights that are nowhere whole: some are asked for, written, and let go again."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TypeAlias

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from nearstep.common.whole_folder import whole_folder
from nearstep.models.saving import disk_errors, tell_lost, write_rest, write_weights

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LAYER = re.compile(r".*?\.\d+\.")

WeightReading: TypeAlias = Callable[[Sequence[str]], Mapping[str, Tensor]]  # whole tensors by their names


def stream_model(
    target: Path,
    model: PreTrainedModel,
    weights: Mapping[str, Tensor],
    read: WeightReading,
    tokenizer: PreTrainedTokenizerBase,
    card: str,
    *,
    shard_bytes: int,
) -> None:
    """Write a model, its tokenizer and its card to `target`, in files of at most `shard_bytes`, or one tensor.

    `weights` is the state dict; those on the meta device are asked for by name, a layer at a time. In memory are never
    more than one file and one layer. Raises TrainingError as `write_model` does.
    """
    with disk_errors(target), whole_folder(target) as unfinished:
        lost = write_weights(unfinished, model, {})  # the configuration: transformers writes it beside weights only
        (unfinished / SINGLE).unlink(missing_ok=True)
        _stream(unfinished, model, weights, read, shard_bytes)
        lost += write_rest(unfinished, model, tokenizer, card)
    tell_lost(target, lost)


def _stream(
    folder: Path, model: PreTrainedModel, weights: Mapping[str, Tensor], read: WeightReading, shard_bytes: int
) -> None:
    """The weights as `save_pretrained` names and lays them out, file by file."""
    kept = remove_tied_weights_from_state_dict(dict(weights), model)
    for name in model._keys_to_ignore_on_save or ():
        kept.pop(name, None)
    places: list[list[str]] = []  # names of the tensors of each file
    total = 0
    for shard in _files(_whole(model, kept, read), shard_bytes):
        places.append(list(shard))
        total += sum(tensor.nbytes for tensor in shard.values())
        save_file(shard, _unnumbered(folder, len(places)), metadata={"format": "pt"})
        shard.clear()
    if len(places) == 1:
        _unnumbered(folder, 1).rename(folder / SINGLE)
        return
    where: dict[str, str] = {}
    for number, names in enumerate(places, start=1):
        file = f"model-{number:05}-of-{len(places):05}.safetensors"
        _unnumbered(folder, number).rename(folder / file)
        where |= dict.fromkeys(names, file)
    content = {"metadata": {"total_parameters": model.num_parameters(), "total_size": total}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _whole(model: PreTrainedModel, weights: Mapping[str, Tensor], read: WeightReading) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a folder in order; those of a layer together, for a folder may have them in other matrices."""
    for _, together in groupby(weights, lambda name: found.group() if (found := LAYER.match(name)) else name):
        names = list(together)
        asked = read([name for name in names if weights[name].is_meta])
        layer = {name: (asked[name] if name in asked else weights[name].detach()).to(weights[name].dtype)
                 for name in names}  # fmt: skip
        del asked
        yield from revert_weight_conversion(model, layer).items()


def _files(tensors: Iterator[tuple[str, Tensor]], shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    """The tensors of each file."""
    shard: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if shard and sum(each.nbytes for each in shard.values()) + tensor.nbytes > shard_bytes:
            yield shard
            shard = {}
        shard[name] = tensor.to("cpu").contiguous()
    if shard:
        yield shard


def _unnumbered(folder: Path, number: int) -> Path:
    """Where a file lies until it is known how many there are."""
    return folder / f".model-{number:05}.safetensors"
