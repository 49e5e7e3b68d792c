"""Model folders that bring more than weights: code of their own, and pickles."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

PICKLED = {"model.safetensors": "pytorch_model.bin", "adapter_model.safetensors": "adapter_model.bin"}
OWN = """
import pathlib
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
pathlib.Path({ran!r}).touch()
class Config(LlamaConfig): pass
class Policy(LlamaForCausalLM): config_class = Config
class Scorer(LlamaForSequenceClassification): config_class = Config
"""
CLASSES = {"AutoConfig": "Config", "AutoModelForCausalLM": "Policy", "AutoModelForSequenceClassification": "Scorer"}


def code_folder(source: Path, folder: Path, file: str = "config.json", repository: str = "") -> Path:
    """A copy whose configuration takes classes from a Python file beside it, which leaves the file `ran` when run."""
    shutil.copytree(source, folder)
    read = json.loads((folder / file).read_text())
    references: dict[str, object] = {key: f"{repository}own.{name}" for key, name in CLASSES.items()}
    if file == "tokenizer_config.json":
        references = {"AutoTokenizer": ["own.Tokenizer", None]}
    (folder / file).write_text(json.dumps(read | {"auto_map": references}))
    (folder / "own.py").write_text(OWN.format(ran=str(folder / "ran")))
    return folder


def pickled_folder(source: Path, folder: Path, adds: object = None) -> Path:
    """A copy with its weights as torch.save writes them, and `adds` beside them."""
    shutil.copytree(source, folder)
    for safe, pickled in PICKLED.items():
        if (folder / safe).is_file():
            weights = load_file(folder / safe)
            torch.save(weights if adds is None else weights | {"more": adds}, folder / pickled)
            (folder / safe).unlink()
    return folder
