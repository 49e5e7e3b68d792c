"""The page docs/rewards_builtin.md, made from what the built-in rewards say of themselves.

`python -m nearstep.rewards.builtin.docs_page > docs/rewards_builtin.md` writes it.
"""

from collections.abc import Iterator
from typing import Any

from nearstep.config.options import option_of
from nearstep.rewards.builtin.describe import measures_of, metadata_of, name_of, range_of, summary_of
from nearstep.rewards.builtin.metadata import parameter_entry, parameters
from nearstep.rewards.builtin.other_names import COUNTERPARTS, SAME_NAMES
from nearstep.rewards.builtin.table import GROUPS

INTRODUCTION = """# Built-in rewards

Reward functions by name, each with what it measures, its range, what it needs, and how a policy can earn it without
being better. `nearstep rewards` prints the list, `nearstep rewards NAME` one of them in full. This page is written by
`python -m nearstep.rewards.builtin.docs_page`.

```bash
nearstep ppo … --reward_funcs length_target:words=40 readability rouge:reference=summary --reward_weights 1 0.5 2
```

```yaml
reward_funcs: [repetition_penalty, "regex:pattern=\\\\d{1,3} apples", "keywords:words=blue,new york"]
reward_weights: [1.0, 0.5, 1.0]
```

In Python names, objects and functions of yours stand side by side, in one weighted sum:
`PPOTrainer(…, reward_funcs=["rouge", LengthTarget(words=40), my_function])`. A name may come twice, with other
parameters. The objects are plain callables that follow TRL's convention, so they work without a run too:

```python
from nearstep.rewards.builtin import LengthTarget, Rouge

assert LengthTarget(words=3)(completions=["one two three"]) == [1.0]
assert Rouge(reference="summary")(completions=["a cat", "a dog"], summary=["a cat", None]) == [1.0, None]
```

## Rules that hold for all

- **Parameters** are written `name:parameter=value,parameter=value`. A list is written with commas. A comma of a value
  that stands right before `word=` is written `\\,`. A wrong one is refused with the list of those there are.
- **What is scored** is the text of the completion; of a conversation, what the assistant says.
- **Columns** of the data set are named by parameters (`rouge:reference=summary`). A cell is a text, a number, or a list
  of these; of several references the best counts. A column that is missing is an error before any weight is loaded. A
  row whose cell is empty gives None: the reward does not apply to it and leaves its sum. The columns `prompt` and
  `completion` belong to the prompt and are not handed over; rename a copy.
- **Nothing said** is worth 0, whatever the reward (overlong_penalty counts tokens, blank ones too). For a penalty that
  is no penalty: a penalty alone teaches silence.
- **Words** are runs of letters and digits; an ideograph or kana is a word by itself. Rewards of phrases know English
  only.
- **Libraries** come with extras: `pip install 'nearstep[metrics]'` (pyphen, sacrebleu, rouge-score, nltk, jsonschema,
  regex), `[math]` (math-verify), `[embeddings]` (sentence-transformers), `[code]` (ruff). Where one is missing, an
  error before the run names its extra.
- **Models** come from a folder or the hub; none is a default. They are loaded before training starts, read in batches
  without gradients, on a CPU in float32 and on a GPU in the type in which they were saved. A model without a trained
  head is refused. Texts longer than a window are read window by window: nothing is cut off.
- **Code of a model** is never run in the trainer's process, but in a sandbox, and not at all where there is none.
- **Being gamed** is what optimisation does to every one of these. Combine them, keep `kl_coef` above 0, read samples.

## All of them
"""
COMING_FROM_ALIGNTUNE = """## Coming from AlignTune

Every name of its reward functions stands here too, has a counterpart, or a reason why not. Its `reward_functions` and
`reward_function_weights` are understood. Its weights were multiplied in twice for some functions, and a function that
failed counted as 0; neither happens here.

| there | here | what differs, or why |
|---|---|---|
"""


def page() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *_overview(), *_entries(), COMING_FROM_ALIGNTUNE.rstrip("\n"), *_other_names(), ""])


def _overview() -> Iterator[str]:
    yield "| name | range | what it measures | needs |"
    yield "|---|---|---|---|"
    for kinds in GROUPS.values():
        for kind in kinds:
            metadata, name = metadata_of(kind), name_of(kind)
            yield f"| [{name}](#{name}) | {range_of(metadata)} | {_safe(summary_of(kind))} | {metadata.needs or '–'} |"


def _entries() -> Iterator[str]:
    for group, kinds in GROUPS.items():
        yield from ("", f"## {group}")
        for kind in kinds:
            yield from _one(kind)
    yield ""


def _one(kind: type[Any]) -> Iterator[str]:
    metadata = metadata_of(kind)
    yield from ("", f"### {name_of(kind)}", "", _safe(measures_of(kind).replace("\n", " ")), "")
    yield f"Range {range_of(metadata)}. Needs {metadata.needs or 'nothing'}." + (
        f" Extra `{metadata.extra}`." if metadata.extra else ""
    )
    yield f"Gamed: {_safe(metadata.gaming)}"
    if parameters(kind):
        yield ""
    yield from (f"- `{parameter_entry(p)}` {_safe(option_of(p).help)}" for p in parameters(kind))


def _other_names() -> Iterator[str]:
    for name, differs in SAME_NAMES.items():
        yield f"| {name} | [{name}](#{name}) | {differs} |"
    for name, counterpart in COUNTERPARTS.items():
        here = ", ".join(f"`{spec}`" for spec in counterpart.here) or "none"
        yield f"| {name} | {here} | {counterpart.why} |"


def _safe(text: str) -> str:
    """Text that Markdown shows as it stands."""
    return text.replace("\\", "\\\\").replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")


if __name__ == "__main__":
    print(page(), end="")
