"""What a folder of adapters holds, to which model it belongs, and how it comes onto that model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from nearstep.common.errors import ModelError
from nearstep.common.trust import DEFAULT_TRUST, Trust
from nearstep.models.adapter_methods import check_method
from nearstep.models.adapters import check_merging, peft
from nearstep.models.weight_files import check_adapter_weights, reading

CONFIG = "adapter_config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
PREFIX = "base_model.model."  # of the tensors' names in such a folder


@dataclass(frozen=True)
class AdapterFolder:
    """A folder as peft's save_pretrained leaves it, read but for the model under the adapters."""

    name: str
    role: str
    base: str  # folder or hub name of that model
    config: Any  # peft's
    tensors: Mapping[str, Tensor]  # by their names in the model

    @property
    def holds_everything(self) -> bool:
        """Whether the model under the adapters lies in the same folder."""
        return Path(self.base).resolve() == Path(self.name).resolve()

    def rows(self, layer: str) -> int | None:
        """How many rows the embedding or output layer of that name had when the adapters were trained, where it is
        known from their tensors."""
        found = (self.tensors.get(f"{layer}.{kind}") for kind in ("weight", "base_layer.weight"))
        return next((len(tensor) for tensor in found if tensor is not None), None)


def holds_adapters(name: str) -> bool:
    """Whether a folder or hub name holds adapters, also beside a model: transformers would put them on it."""
    return Path(name, CONFIG).is_file() if Path(name).is_dir() else find_adapter_config_file(name) is not None


def read_adapters(name: str, role: str, *, base: str | None = None, trust: Trust = DEFAULT_TRUST) -> AdapterFolder:
    """The adapters of a folder, checked before any model is loaded; `base` stands in for the model that they name.

    Raises ModelError for adapters that cannot be read or do not fit, and where the model under them is not to be found.
    """
    check_adapter_weights(name, role, trust)
    with reading("adapters", name, role):
        config = peft().PeftConfig.from_pretrained(name)
        check_method(config, role)
        tensors = peft().load_peft_weights(name, device="cpu")
    config.base_model_name_or_path = base or _base(name, config.base_model_name_or_path, role)
    named = {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}
    return AdapterFolder(name, role, config.base_model_name_or_path, config, named)


def _base(name: str, stated: str | None, role: str) -> str:
    """The model that the adapters name: a folder, from here or from the folder of the adapters, or a hub name."""
    advice = (
        "Give the merged model instead, or correct base_model_name_or_path in its adapter_config.json; for a policy, "
        "sft_model_path may name the adapters and model_name_or_path their model."
    )
    places = [Path(stated).expanduser(), Path(name, stated), Path(name).parent / stated] if stated else []
    found = next((str(place) for place in places if place.is_dir()), None)
    if found is None and any(Path(name, file).is_file() for file in WEIGHTS):
        return name
    if not stated:
        raise ModelError(
            f"{role}: the adapters in {name!r} do not say to which model they belong (base_model_name_or_path). "
            f"{advice}"
        )
    if found is None and (stated.startswith((".", "/", "~")) or stated.count("/") > 1):
        raise ModelError(
            f"{role}: the adapters in {name!r} belong to the model in {stated!r}, and there is no such folder. {advice}"
        )
    return found or stated


def fit_rows(model: PreTrainedModel, folder: AdapterFolder) -> None:
    """Give the embeddings the number of rows that they had when the adapters were trained, tokens added then included.

    Raises ModelError where the adapters need rows that neither they nor the model have.
    """
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [name for name, module in model.named_modules() if any(module is layer for layer in layers)]
    rows = next((count for count in map(folder.rows, names) if count is not None), None)
    if rows is not None and rows != layers[0].num_embeddings:
        with torch.random.fork_rng(devices=[]):  # new rows are drawn, and then replaced by those of the folder
            model.resize_token_embeddings(rows, mean_resizing=False)


def put_on(model: PreTrainedModel, folder: AdapterFolder) -> nn.Module:
    """The model with the adapters of the folder on it, ready to train. Raises ModelError where they do not fit it."""
    package = peft()
    try:
        adapted: nn.Module = package.PeftModel.from_pretrained(
            model, folder.name, config=folder.config, is_trainable=True
        )
    except Exception as error:  # peft names other shapes and modules in errors of several kinds
        raise ModelError(
            f"{folder.role}: the adapters in {folder.name!r} do not fit their model {folder.base!r}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    expected = package.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    missing = {key.removeprefix(PREFIX) for key in expected} - set(folder.tensors)
    if missing:
        raise ModelError(
            f"{folder.role}: the folder {folder.name!r} lacks {len(missing)} of the adapters' tensors "
            f"({', '.join(sorted(missing)[:3])}, …). They would be random, so this is refused."
        )
    check_merging(adapted, folder.role)
    model.name_or_path = model.config.name_or_path = folder.name  # its tokenizer may lie beside the adapters
    return adapted
