"""Settings of `nearstep prepare`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from nearstep.common.trust import Trust
from nearstep.config.conversion import ModelName
from nearstep.config.data import FORMATS, data_name_problems, prompt_form, template_keywords
from nearstep.config.old_names import OF_PREPARE, OldNames
from nearstep.config.settings import Problem, Settings, accepts_old_names, option
from nearstep.config.trusting import trusted_code

# MindSpeed's words for the columns of Alpaca's format, which its --map-keys speaks of.
ALPACA_KEYS = {"prompt": "instruction", "query": "input", "response": "output"}


@accepts_old_names
@dataclass(frozen=True, kw_only=True)
class PrepareOptions(Settings):
    """Settings of `nearstep prepare`."""

    old_names: ClassVar[OldNames] = OF_PREPARE

    input: str | None = option(
        None, "a jsonl, json, csv or parquet file, a folder of them, or a hub name", is_place=True
    )
    output: str | None = option(
        None, "folder for the prepared data; it gets its name when all is written", is_place=True
    )
    split: str = option("train", "split to prepare")
    dataset_config: str | None = option(None, "configuration of a folder or hub data set")

    tokenizer: str | None = option(None, "the policy's tokenizer: a folder or a hub name", is_place=True)
    trust_remote_code: tuple[ModelName, ...] | None = trusted_code()

    dataset_format: str | None = option(
        None, f"how rows are understood: {', '.join(FORMATS)}; recognised by columns if not given"
    )
    columns: tuple[tuple[str, str], ...] = option((), "columns under other names, ours=theirs: prompt=question …")
    map_keys: tuple[tuple[str, str], ...] = option(
        (), "the same in MindSpeed's words, for instructions: prompt, query, response, system, history"
    )
    prompt_type: str = prompt_form()
    chat_template_kwargs: Mapping[str, Any] | None = template_keywords()
    max_length: int | None = option(None, "longest prompt in tokens; no limit if not given", at_least=1)
    on_long_prompt: Literal["error", "drop", "cut_left"] = option(
        "drop", "what happens to a longer prompt: stop and name it, leave it out, or keep its last tokens"
    )
    on_bad_row: Literal["raise", "drop"] = option(
        "raise", "what happens to rows that cannot be used: stop and name them, or leave them out and count them"
    )
    max_samples: int | None = option(None, "prepare no more than this many rows, drawn by the seed", at_least=1)
    seed: int = option(42, "draws the rows of max_samples", at_least=0)

    workers: int = option(1, "processes, each with a core of its own; no more than there are cores", at_least=1)
    log_interval: int = option(10_000, "rows between two lines of progress", at_least=1)

    @property
    def trust(self) -> Trust:
        """What the tokenizer may bring along."""
        return Trust(self.trust_remote_code)

    def problems(self) -> Iterator[Problem]:
        """What is missing or unknown."""
        yield from data_name_problems(self.dataset_format, self.prompt_type)
        if self.output is not None and Path(self.output).is_file():
            yield Problem(f"output = {self.output} is a file; give a folder", ("output",))
        if self.columns and self.map_keys:
            yield Problem("columns and map_keys say the same in different words: give one", ("columns", "map_keys"))

    def remarks(self) -> Iterator[str]:
        """Settings without effect."""
        if self.seed != 42 and self.max_samples is None:
            yield "seed has no effect without max_samples"
        if self.on_long_prompt != "drop" and self.max_length is None:
            yield "on_long_prompt has no effect without max_length"

    @property
    def names(self) -> dict[str, str]:
        """Columns under other names: ours → theirs."""
        return dict(self.columns) or {ALPACA_KEYS.get(ours, ours): theirs for ours, theirs in self.map_keys}
