"""What a finished run leaves: the reward model as a folder, its adapters beside it, and a card that says what it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import yaml
from transformers import PreTrainedTokenizerBase

from nearstep.config.reward_model import RewardConfig
from nearstep.models.adapters import is_adapted, with_adapters_merged
from nearstep.models.classifier import is_made_here
from nearstep.models.head_bias import store_bias, stored_bias
from nearstep.models.output_layers import output_layer
from nearstep.models.saving import rehearse, require_space, write_each, write_model
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
    """Write `reward`, whole, `reward_adapter` where there are adapters, and the report.

    Raises TrainingError for what could not be written, once all else is.
    """

    def write_whole() -> None:
        whole = with_adapters_merged(trained.model) if is_adapted(trained.model) else trained.inner
        weights = store_bias(whole, output_layer(whole, "model"))
        write_model(folder / FOLDER, whole, weights, tokenizer, card(trained, config, report, data_sources))

    def write_adapters() -> None:
        text = card(trained, config, report, data_sources)
        write_model(folder / ADAPTER_FOLDER, trained.model, None, tokenizer, text)

    adapters = [write_adapters] if is_adapted(trained.model) else []
    write_each([*adapters, write_whole, lambda: report.write(folder / "report.json")])
    return folder / FOLDER


def try_saving(
    folder: Path,
    trained: RewardModelInTraining,
    tokenizer: PreTrainedTokenizerBase,
    config: RewardConfig,
    report: RewardReport,
    data_sources: RewardModelSources,
) -> None:
    """Before the first step, try what `save` does. Raises TrainingError or ModelError."""
    rehearse(folder / FOLDER, "model", trained.model, tokenizer, card(trained, config, report, data_sources))
    require_space([(folder / FOLDER, trained.model)])


def card(
    trained: RewardModelInTraining, config: RewardConfig, report: RewardReport, data_sources: RewardModelSources
) -> str:
    """The text of README.md."""
    use = USE_OF_TRUNK_AND_HEAD if is_made_here(trained.inner) else USE
    use += "" if stored_bias(trained.inner.config) is None else BIAS
    return model_card(config, report, data_sources, use=use)


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
