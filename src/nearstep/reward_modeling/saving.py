"""What a finished run leaves: the reward model as a folder, its adapters beside it, and a card that says what it is."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import yaml
from transformers import PreTrainedTokenizerBase

from nearstep.common.errors import TrainingError
from nearstep.config.reward_model import RewardConfig
from nearstep.models.adapters import is_adapted, with_adapters_merged
from nearstep.models.classifier import is_made_here
from nearstep.models.head_bias import store_bias
from nearstep.models.roles import output_layer
from nearstep.models.saving import write_model
from nearstep.reports.model_card import (
    is_hub_name,
    markdown_table,
    package_versions,
    public_name,
    setting_rows,
    shown_name,
)
from nearstep.reward_modeling.preparation import RewardModelInTraining
from nearstep.reward_modeling.report import RewardReport

FOLDER, ADAPTER_FOLDER = "reward", "reward_adapter"

CARD = Template("""\
---
$front---

# $title

A reward model trained by nearstep: one number for a prompt with its answer, read at the answer's last token.

$facts
## Settings

Those that differ from the defaults.

$settings
## Versions

$versions
## Use

`nearstep ppo --reward_model_path path/to/this/folder` reads it whole. With plain transformers, for one text that ends
with the tokenizer's EOS:

```python
$use
```
""")
USE = """\
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
reward = model(**tokenizer(text, return_tensors="pt")).logits[0, 0]"""
USE_OF_TRUNK_AND_HEAD = """\
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

model = AutoModel.from_pretrained("path/to/this/folder")  # transformers has no classification model for the family
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
head = load_file("path/to/this/folder/model.safetensors")["score.weight"]
reward = (model(**tokenizer(text, return_tensors="pt")).last_hidden_state @ head.T)[0, -1, 0]"""
BIAS = " + model.config.head_bias  # transformers' class has no place for it"


@dataclass(frozen=True)
class RewardModelSources:
    """Where model and data came from, as the card shows it; None and nothing for objects in memory."""

    model: str | None
    data: Sequence[str]


def save(
    folder: Path,
    trained: RewardModelInTraining,
    tokenizer: PreTrainedTokenizerBase,
    config: RewardConfig,
    report: RewardReport,
    data_sources: RewardModelSources,
) -> Path:
    """Write `reward`, whole, and `reward_adapter` where there are adapters. Raises TrainingError where it fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        report.write(folder / "report.json")
        whole = with_adapters_merged(trained.model) if is_adapted(trained.model) else trained.inner
        weights = store_bias(whole, output_layer(whole, "model"))
        use = USE_OF_TRUNK_AND_HEAD if is_made_here(whole) else USE
        use += BIAS if "head_bias" in whole.config.to_dict() else ""
        card = model_card(config, report, data_sources, use=use)
        write_model(folder / FOLDER, whole, weights, tokenizer, card)
        if is_adapted(trained.model):
            write_model(folder / ADAPTER_FOLDER, trained.model, None, tokenizer, card)
    except OSError as error:
        free = shutil.disk_usage(folder).free if folder.exists() else 0
        raise TrainingError(f"saving to {folder} failed: {error} ({free:,} bytes free)") from error
    return folder / FOLDER


def model_card(config: RewardConfig, report: RewardReport, data_sources: RewardModelSources, *, use: str) -> str:
    """The text of README.md: YAML front matter that the hub reads, tables for people."""
    matter: dict[str, object] = {"library_name": "transformers", "tags": ["nearstep", "reward-model"]}
    matter["pipeline_tag"] = "text-classification"
    if is_hub_name(data_sources.model):
        matter["base_model"] = data_sources.model
    if any(map(is_hub_name, data_sources.data)):
        matter["datasets"] = [name for name in data_sources.data if is_hub_name(name)]
    facts = [
        ("started from", shown_name(data_sources.model)),
        ("data", ", ".join(map(shown_name, data_sources.data)) or shown_name(None)),
        ("objective", report.objective),
        ("learnt from", f"{report.trained_on:,} {report.unit}"),
        ("optimizer steps", f"{report.steps:,}"),
        ("normalisation", report.normalized),
        *report.facts(),
    ]
    return CARD.substitute(
        front=yaml.safe_dump(matter, sort_keys=False, allow_unicode=True),
        title=public_name(config.run_name or Path(config.output_dir).resolve().name),
        facts=markdown_table(("fact", "value"), facts),
        settings=markdown_table(("setting", "value"), setting_rows(config)),
        versions=markdown_table(("package", "version"), list(package_versions().items())),
        use=use,
    )
