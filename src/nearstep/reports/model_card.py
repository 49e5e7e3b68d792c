"""What the README.md beside a saved model says: the facts of the run, nothing that was not measured."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from string import Template
from typing import Literal

import yaml

from nearstep.common.secrets import public_settings, without_secrets
from nearstep.config.critic_text import PROMPT
from nearstep.config.ppo import PPOConfig
from nearstep.config.recipes import recipe_of
from nearstep.config.settings import Settings
from nearstep.reports.metrics import Numbers, escape_cell, meaning
from nearstep.training.critic_text import texts_around_prompt

PACKAGES = ("nearstep", "torch", "transformers")
SHOWN_GROUPS = ("objective/", "reward/", "response/", "val/explained_variance", "val/num_eos_tokens", "eval/")
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".txt")

BODY = Template("""\
# $title

$summary

$facts
## Metrics

As they were logged last.

$metrics
## Settings

Those that differ from the defaults.

$settings
## Versions

$versions
## Use

```python
$use
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```
""")
OPENED = Template("""\
from transformers import $auto_class, AutoTokenizer

model = $auto_class.from_pretrained("path/to/this/folder")""")
LOADED = Template("""\
from safetensors.torch import load_model
from transformers import AutoTokenizer

model = $module(...)  # as it was made for the run
load_model(model, "path/to/this/folder/weights.safetensors")""")

SUMMARIES = {
    "policy": "A language model trained with PPO (proximal policy optimisation with a critic) by nearstep.",
    "value": "The critic of a PPO run by nearstep. It estimates, at every token, the reward that is still to come.",
}
AUTO_CLASSES = {"policy": "AutoModelForCausalLM", "value": "AutoModelForSequenceClassification"}
# Where transformers has no classification model for the family.
USE_OF_TRUNK_AND_HEAD = """\
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

trunk = AutoModel.from_pretrained("path/to/this/folder")
head = load_file("path/to/this/folder/model.safetensors")["score.weight"]
# one number a token: trunk(**inputs).last_hidden_state @ head.T"""


@dataclass(frozen=True)
class RunFacts:
    """What a model card tells about a run. Names are hub names or paths, None where an object in memory was given."""

    config: PPOConfig
    updates: int
    episodes: int
    policy: str | None
    stored: str | None = None  # the type of its weights in the folder that it started from, where it is another here
    reference: str | None = None
    has_reference: bool = True
    critic: str | None = None
    critic_made_here: bool = False  # transformers has no class for it
    value_head: str | None = None  # what the critic's outputs mean, where they are no values by themselves
    rewards: Sequence[str] = ()
    dataset: str | None = None
    metrics: Numbers = field(default_factory=dict)
    own_modules: Mapping[str, str] = field(default_factory=dict)  # classes of modules of the user's own, by role


def model_card(facts: RunFacts, role: Literal["policy", "value"] = "policy") -> str:
    """The text of README.md for one of the saved models: YAML front matter that the hub reads, tables for people."""
    front = yaml.safe_dump(_front_matter(facts, role), sort_keys=False, allow_unicode=True)
    run = public_name(facts.config.run_name or Path(facts.config.output_dir).resolve().name)
    body = BODY.substitute(
        title=run if role == "policy" else f"{run}: critic",
        summary=SUMMARIES[role],
        use=_use(facts, role),
        facts=markdown_table(("fact", "value"), _fact_rows(facts)),
        metrics=markdown_table(("metric", "value", "meaning"), _metric_rows(facts.metrics)),
        settings=markdown_table(("setting", "value"), setting_rows(facts.config)),
        versions=markdown_table(("package", "version"), list(package_versions().items())),
    )
    return f"---\n{front}---\n\n{body}"


def _use(facts: RunFacts, role: Literal["policy", "value"]) -> str:
    """How the weights beside the card become a model again."""
    if role in facts.own_modules:
        return LOADED.substitute(module=facts.own_modules[role])
    if role == "value" and facts.critic_made_here:
        return USE_OF_TRUNK_AND_HEAD
    return OPENED.substitute(auto_class=AUTO_CLASSES[role])


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a run's numbers."""
    return {name: _version(name) for name in PACKAGES}


def is_hub_name(name: str | None) -> bool:
    """Whether `name` can only mean a repository on the hub: owner/name, and neither a file nor a folder here."""
    if name is None or name.endswith(FILE_SUFFIXES):
        return False
    return HUB_NAME.fullmatch(name) is not None and not Path(name).exists()


def _front_matter(facts: RunFacts, role: Literal["policy", "value"]) -> dict[str, object]:
    library = "pytorch" if role in facts.own_modules else "transformers"
    matter: dict[str, object] = {"library_name": library, "tags": ["nearstep", "ppo", "reinforcement-learning"]}
    if role == "policy":
        matter["pipeline_tag"] = "text-generation"
    base = facts.policy if role == "policy" else facts.critic
    if is_hub_name(base):
        matter["base_model"] = base
    if is_hub_name(facts.dataset):
        matter["datasets"] = [facts.dataset]
    return matter


def _fact_rows(facts: RunFacts) -> list[tuple[str, str]]:
    recipe = recipe_of(facts.config)
    return [
        *([] if recipe is None else [("recipe", f"`{recipe}`")]),
        ("policy started from", shown_name(facts.policy)),
        *_types(facts),
        ("reference", _reference(facts)),
        ("critic started from", shown_name(facts.critic, "the reward model, or the policy's trunk")),
        *_value_head(facts),
        *([("critic also read", _columns(facts))] if facts.config.critic_columns else []),
        ("rewards", ", ".join(shown_name(name) for name in facts.rewards) or "none named"),
        ("prompts", shown_name(facts.dataset)),
        ("updates", str(facts.updates)),
        ("episodes", str(facts.episodes)),
    ]


def _types(facts: RunFacts) -> list[tuple[str, str]]:
    if facts.stored is None:
        return []
    return [("type of the weights", f"{facts.config.dtype}; {facts.stored} in the folder that it started from")]


def _value_head(facts: RunFacts) -> list[tuple[str, str]]:
    if facts.value_head is None:
        return []
    return [("what the critic's outputs mean", f"`{facts.value_head}`, as `value_head` in its config.json")]


def _columns(facts: RunFacts) -> str:
    """What a privileged critic expects before and behind each prompt."""
    before, behind = (text.replace("\n", "⏎") for text in texts_around_prompt(facts.config))
    return f"the data's columns {', '.join(facts.config.critic_columns)}, as `{before}{PROMPT}{behind}`"


def _reference(facts: RunFacts) -> str:
    if not facts.has_reference:
        return "none: no KL was measured"
    return shown_name(facts.reference, "a frozen copy of the policy as it started")


def _metric_rows(metrics: Numbers) -> list[tuple[str, str, str]]:
    return [
        (f"`{name}`", f"{number:.4g}", meaning(name))
        for name, number in metrics.items()
        if name.startswith(SHOWN_GROUPS)
    ]


def setting_rows(config: Settings) -> list[tuple[str, str]]:
    """Settings that were changed, in the order of their declaration."""
    values: Mapping[str, object] = public_settings(dataclasses.asdict(config))
    return [
        (f"`{each.name}`", _setting(values[each.name]))
        for each in dataclasses.fields(config)
        if vars(config)[each.name] != each.default
    ]


def _setting(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(_setting(entry) for entry in value)
    return f"`{public_name(str(value))}`"


def shown_name(name: str | None, otherwise: str = "an object in memory") -> str:
    """A model's or data set's name as a card shows it."""
    return otherwise if name is None else f"`{public_name(name)}`"


def public_name(name: str) -> str:
    """An absolute path tells about the machine, not about the model: only its last part is shown."""
    return f"…/{Path(name).name}" if Path(name).is_absolute() else without_secrets(name)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; a sentence where it has no rows."""
    if not rows:
        return "None.\n"
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(escape_cell(cell) for cell in line) + " |\n" for line in lines)


@functools.cache  # each reads a file, and a card is written with every save
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed as a package"
