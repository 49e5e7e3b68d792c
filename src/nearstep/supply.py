"""Which prompts a run plays and which it is evaluated on, given its settings and the user's objects."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from nearstep.config import PPOConfig
from nearstep.data.encode import encode_prompts
from nearstep.data.formats.format import Format
from nearstep.data.load import load_rows, table_of
from nearstep.data.mix import PromptMix, turns_between
from nearstep.data.preview import preview
from nearstep.data.prompt_stream import PromptStream, StreamSource
from nearstep.data.prompts import PromptSet
from nearstep.data.source import Play, PromptSource
from nearstep.data.stream import RowStream, open_stream, stream_of
from nearstep.data.table import Table, with_columns
from nearstep.data.templates import style_of, template_notes
from nearstep.errors import ConfigError, DataError
from nearstep.streams import stream

HEAD_ROWS = 100  # of a stream, read before the run to recognise, check and show them


@dataclass(frozen=True)
class Supply:
    """The prompts of a run, all checked but for those of `streams`, of which `prompts` are the first."""

    prompts: PromptMix
    held_out: PromptMix | None
    streams: tuple[PromptStream, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int | None:
        """How many prompts there are to train on; None where nobody knows."""
        return None if self.streams else len(self.prompts)

    @property
    def names(self) -> list[str]:
        """What the data sets are called."""
        return [prompts.table.name for prompts in self.prompts.sets]

    def source(self, config: PPOConfig, play: Play) -> PromptSource | StreamSource:
        """Where the prompts of each update come from."""
        if not self.streams:
            return PromptSource(self.prompts, play, config.shuffle_dataset)
        buffer = config.shuffle_buffer if config.shuffle_dataset else 1
        return StreamSource(self.streams, self.prompts.shares, self.prompts.columns, play, buffer)

    def introduction(self) -> str:
        """What the user should read of the prompts before the run."""
        return "\n".join([preview(self.prompts, streaming=bool(self.streams)), *self.notes])


@dataclass(frozen=True)
class _Origin:
    """Where one data set comes from: an object, or else a name."""

    given: Any
    name: str
    split: str
    config: str | None = None

    def table(self, config: PPOConfig) -> Table:
        if self.given is not None:
            return table_of(self.given, self.name, self.split)
        return load_rows(self.name, split=self.split, config=self.config, on_bad_row=config.on_bad_row)

    def stream(self) -> RowStream:
        if self.given is not None:
            return stream_of(self.given, self.name, self.split)
        return open_stream(self.name, split=self.split, config=self.config)


def make_supply(
    config: PPOConfig,
    *,
    train_dataset: object,
    eval_dataset: object,
    tokenizer: PreTrainedTokenizerBase,
    family: PreTrainedConfig,
    main: bool,
) -> Supply:
    """Find, read and check the prompts; `family` is the policy's configuration, `main` whether to speak for all ranks.

    Raises ConfigError or DataError.
    """
    origins = _training_origins(config, train_dataset)
    encoder = _Encoder(config, tokenizer, family)
    held_out = _held_out(config, eval_dataset, encoder)
    notes = tuple(template_notes(tokenizer, config.prompt_type))
    if config.streaming or any(_is_stream(origin.given) for origin in origins):
        return replace(_streams(config, origins, encoder, held_out, main), notes=notes)
    prompts = PromptMix(tuple(encoder.sets(origins)), _weights(config, origins))
    if config.num_eval_rows is None:
        return Supply(prompts, held_out, notes=notes)
    if held_out is not None:
        return Supply(prompts, _subset(held_out, config), notes=notes)
    drawn, rest = _held_back(prompts, config)
    return Supply(rest, drawn, notes=(*notes, *_overlap(rest, drawn)))


def _training_origins(config: PPOConfig, given: object) -> list[_Origin]:
    if given is None and not config.dataset_name:
        raise ConfigError("no prompts: pass train_dataset, or set dataset_name")
    return _origins(given, "train_dataset", config.dataset_name, config.dataset_train_split, config.dataset_config)


def _held_out(config: PPOConfig, given: object, encoder: "_Encoder") -> PromptMix | None:
    """The evaluation data, if any is given."""
    split = config.dataset_test_split or "train"
    if given is not None or config.eval_dataset_name:
        origins = _origins(given, "eval_dataset", config.eval_dataset_name, (split,), ())
    elif config.dataset_test_split is not None and config.dataset_name:
        origins = _origins(None, "eval_dataset", config.dataset_name, (split,), config.dataset_config)
    else:
        return None
    return PromptMix(tuple(encoder.sets(origins)))


def _origins(
    given: object, role: str, names: Sequence[str], splits: Sequence[str], configs: Sequence[str]
) -> list[_Origin]:
    """One origin for each data set; splits and configurations are one for all, or one for each."""
    several: list[Any] = list(names) if given is None else _several(given)
    origins = []
    for number, one in enumerate(several):
        split = splits[number] if len(splits) > 1 else splits[0]
        if isinstance(one, str):
            chosen = None if one not in names or not configs else configs[number] if len(configs) > 1 else configs[0]
            origins.append(_Origin(None, one, split, chosen))
        else:
            origins.append(_Origin(one, role if len(several) == 1 else f"{role}[{number}]", split))
    return origins


def _several(given: Any) -> list[Any]:
    """The data sets of a list that holds data sets or names; anything else, rows among it, is one data set."""
    if isinstance(given, list | tuple) and given and not isinstance(given[0], Mapping):
        return list(given)
    return [given]


def _is_stream(given: object) -> bool:
    import datasets

    return isinstance(given, datasets.IterableDataset)


def _weights(config: PPOConfig, origins: Sequence[_Origin]) -> tuple[float, ...] | None:
    weights = config.dataset_weights
    if weights is not None and len(weights) != len(origins):
        raise ConfigError(f"dataset_weights has {len(weights)} entries for {len(origins)} data sets: give one for each")
    return weights


@dataclass(frozen=True)
class _Encoder:
    """Reads data sets as the settings say."""

    config: PPOConfig
    tokenizer: PreTrainedTokenizerBase
    family: PreTrainedConfig

    def sets(self, origins: Sequence[_Origin]) -> list[PromptSet]:
        """The prompts of each data set."""
        tables = [origin.table(self.config) for origin in origins]
        self.check_columns([table.columns for table in tables], "; ".join(table.label for table in tables))
        return [self.encode(with_columns(table, self.names(table.columns))) for table in tables]

    def names(self, columns: Sequence[str]) -> dict[str, str]:
        """The wanted names of a data set's columns: of several data sets each may have some of them."""
        return {ours: theirs for ours, theirs in self.config.columns if theirs in columns}

    def check_columns(self, columns: Sequence[Sequence[str]], label: str) -> None:
        """Raise DataError for a column that is in none of the data sets."""
        found = {column for each in columns for column in each}
        missing = [theirs for _, theirs in self.config.columns if theirs not in found]
        if missing:
            raise DataError(
                f"{label}: columns asks for {', '.join(map(repr, missing))}, there is only {sorted(found)}."
            )

    def encode(self, table: Table) -> PromptSet:
        """The prompts of one table."""
        config = self.config
        return encode_prompts(
            table, self.tokenizer, vocab_size=self.family.vocab_size, prompt_type=style_of(config.prompt_type),
            max_prompt_length=_longest_prompt(config, self.family), on_long_prompt=config.on_long_prompt,
            on_bad_row=config.on_bad_row, dataset_format=config.dataset_format,
        )  # fmt: skip


def _streams(
    config: PPOConfig, origins: Sequence[_Origin], encoder: _Encoder, held_out: PromptMix | None, main: bool
) -> Supply:
    """Streams, the first rows of which are read: held out if the settings ask for it, else to be shown."""
    if config.total_episodes is None:
        raise ConfigError("a streamed data set needs total_episodes: nobody knows how many rows it has")
    weights = _weights(config, origins)
    if weights is None and len(origins) > 1:
        raise ConfigError("several streamed data sets need dataset_weights: nobody knows how many rows they have")
    weights = weights or (1.0,)
    hold = config.num_eval_rows if held_out is None else None
    held = [0] * len(origins)
    for place, _ in turns_between(weights, 0, hold or 0):
        held[place] += 1
    streams, heads, evaluated = [], [], []
    for origin, skipped in zip(origins, held, strict=True):
        rows = origin.stream()
        names = encoder.names(rows.head(HEAD_ROWS, config.on_bad_row).columns)
        rows = rows.with_columns(names)
        head = encoder.encode(rows.head(skipped + HEAD_ROWS, config.on_bad_row))
        streams.append(_stream(rows, head, config, skipped, main))
        is_held = head.table_rows < skipped
        evaluated += [head.subset(is_held.nonzero().flatten().tolist())] if is_held.any() else []
        if is_held.all():
            raise DataError(f"{rows.label}: num_eval_rows = {hold} leaves none of its first rows to train on.")
        heads.append(head.subset((~is_held).nonzero().flatten().tolist()))
    if held_out is not None and config.num_eval_rows is not None:
        held_out = _subset(held_out, config)
    return Supply(
        PromptMix(tuple(heads), weights), PromptMix(tuple(evaluated)) if evaluated else held_out, tuple(streams)
    )


def _stream(rows: RowStream, head: PromptSet, config: PPOConfig, skipped: int, main: bool) -> PromptStream:
    shown: Format | None = head.reader.layout.format
    if shown is not None and shown.gathers:
        raise DataError(f"{rows.label}: the format {shown.name} spreads prompts over rows, so it cannot be streamed.")
    gives_reference = head.reader.layout.gives_reference(head.table.columns)
    return PromptStream(rows, head.reader, config.on_bad_row, gives_reference, _tell if main else _say_nothing, skipped)


def _subset(held_out: PromptMix, config: PPOConfig) -> PromptMix:
    """As many evaluation prompts as are wanted, drawn by the seed; all where there are no more."""
    return held_out.subset(_order(held_out, config)[: config.num_eval_rows])


def _held_back(prompts: PromptMix, config: PPOConfig) -> tuple[PromptMix, PromptMix]:
    """As many prompts as shall be evaluated on, drawn by the seed, and the rest to train on."""
    order, wanted = _order(prompts, config), config.num_eval_rows
    if wanted is None or wanted >= len(prompts):
        raise ConfigError(f"num_eval_rows = {wanted} leaves nothing to train on: there are {len(prompts)} prompts")
    return prompts.subset(order[:wanted]), prompts.subset(order[wanted:])


def _order(prompts: PromptMix, config: PPOConfig) -> list[int]:
    order: list[int] = torch.randperm(len(prompts), generator=stream(config.seed, "evaluation prompts")).tolist()
    return order


def _overlap(train: PromptMix, held_out: PromptMix) -> list[str]:
    """A sentence where prompts that are held out also stand in the training data."""
    wanted = {tuple(prompts.ids(number)) for prompts in held_out.sets for number in range(len(prompts))}
    found = wanted & {tuple(prompts.ids(number)) for prompts in train.sets for number in range(len(prompts))}
    if not found:
        return []
    return [f"{len(found)} of the {len(held_out)} held-out prompts also stand among those to train on."]


def _tell(sentence: str) -> None:
    print(f"nearstep: {sentence}", file=sys.stderr)


def _say_nothing(sentence: str) -> None:
    """For processes that do not speak."""


def _longest_prompt(config: PPOConfig, family: PreTrainedConfig) -> int | None:
    """max_prompt_length, or what the policy's positions leave beside a response."""
    positions: int | None = family.to_dict().get("max_position_embeddings")
    if positions is None:
        return config.max_prompt_length
    room = positions - config.response_length
    if room < 1 or (config.max_prompt_length or 0) > room:
        raise ConfigError(
            f"the policy has {positions} positions: max_prompt_length = {config.max_prompt_length} and "
            "response_length = "
            f"{config.response_length} together are more. Lower one of them."
        )
    return config.max_prompt_length or room
