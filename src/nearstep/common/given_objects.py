"""How a settings file lists the objects of Python that a run was made of, which no file can hold."""

from collections.abc import Sequence
from pathlib import Path

HEAD = "These were objects in Python, which no file can hold. Pass them again, or name them below:"
INDENT = "  "
# Where each can be named instead; the axes have settings of their own name. Callbacks change nothing that is learned.
INSTEAD = {
    "model": ("model_name_or_path", "sft_model_path"), "tokenizer": ("model_name_or_path",),
    "ref_model": ("ref_model_path",), "value_model": ("value_model_path",), "reward_model": ("reward_model_path",),
    "train_dataset": ("dataset_name",), "eval_dataset": ("eval_dataset_name",), "peft_config": ("use_peft",),
    "value_peft_config": ("vf_lora_r", "vf_lora_alpha", "vf_lora_target_modules"),
}  # fmt: skip
HARMLESS = ("callbacks",)


def object_lines(objects: Sequence[str]) -> list[str]:
    """The comment about objects, one line for each; none where there are none."""
    return [HEAD, *(INDENT + each for each in objects)] if objects else []


def objects_in(settings_file: Path) -> list[str]:
    """The objects that a settings file lists, each as `argument: what it was`, but for those that teach nothing."""
    lines = iter(settings_file.read_text(encoding="utf-8").splitlines())
    if not any(line == f"# {HEAD}" for line in lines):
        return []
    found = []
    for line in lines:
        if not line.startswith(f"# {INDENT}"):
            break
        found.append(line.removeprefix(f"# {INDENT}"))
    return [each for each in found if _argument(each) not in HARMLESS]


def not_named(objects: Sequence[str], given: Sequence[str]) -> list[str]:
    """The objects in whose place none of the `given` settings names anything."""
    return [each for each in objects if not set(INSTEAD.get(_argument(each), (_argument(each),))) & set(given)]


def _argument(described: str) -> str:
    return described.partition(":")[0].partition("[")[0]
