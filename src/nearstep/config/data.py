"""Which settings say what data a run reads, and which of them clash.

Training of policies and of reward models have `DataSettings` in common.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nearstep.config.settings import Problem, Settings, option, without_effect

FORMATS = (
    "prompt", "prompt/completion", "query", "messages", "sharegpt", "alpaca", "tldr", "tldr-comparisons",
    "prompt/chosen/rejected", "chosen/rejected", "hh-rlhf", "hh-rlhf-chat", "oasst", "ultrafeedback",
    "ultrafeedback_binarized",
)  # fmt: skip
PROMPT_TYPES = ("none", "raw", "raw_bos", "chat", "chatml", "llama3", "alpaca")
TEMPLATE_SUFFIX = ".jinja"


def template_keywords() -> Any:
    """The setting `chat_template_kwargs`, of every command that reads prompts."""
    return option(
        None,
        'keywords for the chat template, such as {"enable_thinking": false}; those in the column '
        "chat_template_kwargs of a row win",
    )


def prompt_form() -> Any:
    """The setting `prompt_type`, of every command that reads prompts."""
    return option(
        "none",
        "none: text as the tokenizer frames it, messages under its chat template; raw, raw_bos: text alone, or behind "
        f"BOS; chat: text as a user's message; {', '.join(PROMPT_TYPES[4:])} or a {TEMPLATE_SUFFIX} file: likewise, "
        "under that template",
        is_place=True,
    )


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """Which data sets are read, and how their rows are understood."""

    dataset_name: tuple[str, ...] = option(
        (),
        "data to train on: jsonl, json, csv or parquet files, folders, or hub names; several are mixed",
        is_place=True,
    )
    dataset_config: tuple[str, ...] = option(
        (), "configuration of a folder or hub data set; one for all, or one for each"
    )
    dataset_train_split: tuple[str, ...] = option(("train",), "split to train on; one for all, or one for each")
    eval_dataset_name: tuple[str, ...] = option(
        (), "data to evaluate on; the training data's dataset_test_split if not given", is_place=True
    )
    dataset_test_split: str | None = option(None, "split to evaluate on, of eval_dataset_name or else of dataset_name")
    dataset_format: str | None = option(
        None, f"how rows are understood: {', '.join(FORMATS)}; recognised by columns if not given"
    )
    columns: tuple[tuple[str, str], ...] = option(
        (), "columns under other names, ours=theirs: prompt=question reference=answer …"
    )
    chat_template_kwargs: Mapping[str, Any] | None = template_keywords()
    on_bad_row: Literal["raise", "drop"] = option(
        "raise", "what happens to rows that cannot be used: stop and name them, or leave them out and count them"
    )


@dataclass(frozen=True, kw_only=True)
class PromptSettings(Settings):
    """Which prompts a policy gets, in which order and in which form."""

    dataset_weights: tuple[float, ...] | None = option(
        None, "share of each data set in every batch; their numbers of rows if not given", above=0
    )
    num_eval_rows: int | None = option(
        None,
        "prompts to evaluate on, drawn by the seed: of the evaluation data, or else held out of the training data",
        at_least=1,
    )
    prompt_type: str = prompt_form()
    max_prompt_length: int | None = option(
        None, "longest prompt in tokens; no limit but the model's if not given", at_least=1
    )
    on_long_prompt: Literal["error", "drop", "cut_left"] = option(
        "error", "what happens to a longer prompt: stop and name it, leave it out, or keep its last tokens"
    )
    shuffle_dataset: bool = option(True, "take prompts in an order drawn by the seed, another one in each pass")
    streaming: bool = option(False, "read rows as they are needed, none before: for data larger than memory")
    shuffle_buffer: int = option(1000, "streaming: prompts among which the next is drawn", at_least=1)


def data_problems(settings: DataSettings) -> Iterator[Problem]:
    """Settings of data sets that contradict each other."""
    for name, values in (
        ("dataset_config", settings.dataset_config),
        ("dataset_train_split", settings.dataset_train_split),
    ):
        if settings.dataset_name and len(values) not in (0, 1, len(settings.dataset_name)):
            text = f"{name} has {len(values)} entries for {len(settings.dataset_name)} data sets: give one for each"
            yield Problem(text, (name, "dataset_name"))
    if not settings.dataset_train_split:
        yield Problem("dataset_train_split is empty: name the split to train on", ("dataset_train_split",))
    yield from data_name_problems(settings.dataset_format)
    ours = [name for name, _ in settings.columns]
    twice = sorted({name for name in ours if ours.count(name) > 1})
    if twice:
        yield Problem(f"columns names {', '.join(twice)} more than once", ("columns",))


def data_name_problems(dataset_format: str | None, prompt_type: str = PROMPT_TYPES[0]) -> Iterator[Problem]:
    """Formats and prompt types that there are not."""
    if dataset_format is not None and dataset_format not in FORMATS:
        yield _unknown("dataset_format", dataset_format, FORMATS)
    if prompt_type not in PROMPT_TYPES and not prompt_type.endswith(TEMPLATE_SUFFIX):
        yield _unknown("prompt_type", prompt_type, PROMPT_TYPES)


def prompt_problems(settings: PromptSettings, sources: Sequence[str], total_episodes: int | None) -> Iterator[Problem]:
    """Settings of prompts that contradict each other or the data sets, named by `sources`."""
    weights = settings.dataset_weights
    if weights is not None and sources and len(weights) != len(sources):
        text = f"dataset_weights has {len(weights)} entries for {len(sources)} data sets: give one for each"
        yield Problem(text, ("dataset_weights", "dataset_name"))
    yield from data_name_problems(None, settings.prompt_type)
    if settings.streaming and total_episodes is None:
        text = "streaming needs total_episodes: how many rows a stream has is unknown"
        yield Problem(text, ("streaming", "total_episodes"))
    if settings.streaming and weights is None and len(sources) > 1:
        text = "streaming several data sets needs dataset_weights: how many rows they have is unknown"
        yield Problem(text, ("streaming", "dataset_weights", "dataset_name"))


def prompt_remarks(settings: PromptSettings, sources: Sequence[str]) -> Iterator[str]:
    """Settings without effect."""
    return without_effect(
        settings,
        ("with one data set", len(sources) == 1, ("dataset_weights",)),
        ("without streaming", not settings.streaming, ("shuffle_buffer",)),
        ("without shuffle_dataset", settings.streaming and not settings.shuffle_dataset, ("shuffle_buffer",)),
    )


def _unknown(name: str, value: str, known: Sequence[str]) -> Problem:
    near = difflib.get_close_matches(value, known, n=1)
    return Problem(f"{name} = {value!r} is unknown; did you mean {near[0] if near else ', '.join(known)}?", (name,))
