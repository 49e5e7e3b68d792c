"""Which prompts a run plays and which it is evaluated on, given its settings and the user's objects."""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from transformers import PreTrainedTokenizerBase

from nearstep.common.errors import ConfigError, DataError
from nearstep.common.random_streams import stream
from nearstep.config.ppo import PPOConfig
from nearstep.data.formats.format import Format
from nearstep.data.hints import hints
from nearstep.data.mix import PromptMix, weighted_round_robin_between
from nearstep.data.preview import preview
from nearstep.data.prompt_source import BatchPlan, PromptSource
from nearstep.data.prompt_stream import PromptStream, StreamSource
from nearstep.data.prompts import PromptSet
from nearstep.data.samplers import Sampler
from nearstep.data.sources import DataSource, PromptEncoder, evaluation_sources, training_sources, wanted_names
from nearstep.data.stream import RowStream
from nearstep.models.limits import Limits
from nearstep.scale.backend import Backend

PROMPT_COLUMNS = ("prompt", "query", "messages", "input_ids")
HEAD_ROWS = 100  # of a stream, read before the run to recognise, check and show them

DIGEST_ROWS = 256  # whose columns are looked at; their token ids are looked at in all


@dataclass(frozen=True)
class RunPrompts:
    """The prompts of a run, all checked but for those of `streams`, of which `prompts` are the first."""

    prompts: PromptMix
    held_out: Mapping[str, PromptMix] = field(default_factory=dict)  # to evaluate on, by name; "" for the only ones
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

    def digest(self) -> str:
        """A hash of the token ids of all prompts, and of what rewards get beside them in some rows, evenly spread. Of a
        stream only the first rows are known."""
        digest = hashlib.sha256()
        for one in self.prompts.sets:
            digest.update(one.ends.long().numpy().tobytes())
            digest.update(one.tokens.int().numpy().tobytes())
            for number in range(0, len(one), max(1, len(one) // DIGEST_ROWS)):
                row = one.prompt(number).row
                columns = {name: row.get(name) for name in one.columns}
                digest.update(_plain(columns))
        return digest.hexdigest()

    def source(
        self, config: PPOConfig, batch_size: int, sampler: Sampler, backend: Backend
    ) -> PromptSource | StreamSource:
        """Where the prompts of each update come from; `batch_size` counts episodes over all ranks. A stream has an
        order of its own, and asks no sampler."""
        play = BatchPlan(config.seed, batch_size, config.num_generations, backend.rank, backend.world_size)
        if not self.streams:
            return PromptSource(self.prompts, play, sampler)
        buffer = config.shuffle_buffer if config.shuffle_dataset else 1
        return StreamSource(self.streams, self.prompts.shares, self.prompts.columns, play, buffer)

    def introduction(self) -> str:
        """What the user should read of the prompts before the run."""
        return "\n".join([preview(self.prompts, streaming=bool(self.streams)), *self.notes])


def make_run_prompts(
    config: PPOConfig,
    *,
    train_dataset: object,
    eval_dataset: object,
    tokenizer: PreTrainedTokenizerBase,
    limits: Limits,
    backend: Backend,
) -> RunPrompts:
    """Find, read and check the prompts; `limits` are those of all that read them. Only the main process speaks.

    Raises ConfigError or DataError.
    """
    data_sources = training_sources(config, train_dataset, wanted="prompts")
    encoder = PromptEncoder(config, tokenizer, limits, backend)
    held_out = {name: _evaluated(config, encoder, each) for name, each in _to_evaluate(config, eval_dataset).items()}
    if config.streaming or any(_is_stream(data_source.given) for data_source in data_sources):
        run_prompts = _streams(config, data_sources, encoder, held_out, backend.is_main)
        return replace(run_prompts, notes=(*hints(config, tokenizer, run_prompts.prompts), *run_prompts.notes))
    prompts = PromptMix(tuple(encoder.sets(data_sources)), _weights(config, data_sources))
    notes = tuple(hints(config, tokenizer, prompts))
    if held_out:
        told = [sentence for each in held_out.values() for sentence in _overlap(prompts, each)]
        return RunPrompts(prompts, held_out, notes=(*notes, *told))
    if config.num_eval_rows is None:
        return RunPrompts(prompts, notes=notes)
    drawn, rest = _held_back(prompts, config)
    note = f"{len(drawn)} prompts, drawn by the seed, are held out to evaluate on."
    return RunPrompts(rest, {"": drawn}, notes=(*notes, note, *_overlap(rest, drawn)))


def _to_evaluate(config: PPOConfig, given: object) -> Mapping[str, list[DataSource]]:
    """The data sets of each evaluation: several where a mapping of them is given, as transformers takes it."""
    several = given if isinstance(given, Mapping) else {"": given}
    columns = [name for name in several if name in PROMPT_COLUMNS]
    if columns:
        raise ConfigError(
            f"eval_dataset: {columns[0]!r} is the name of a column, and a mapping holds data sets by name. For columns "
            "use datasets.Dataset.from_dict"
        )
    for name in several:
        if not isinstance(name, str) or "/" in name or (name == "") != (several is not given):
            raise ConfigError(f"eval_dataset: {name!r} names evaluation data; it must be a word without a /")
    found = {name: evaluation_sources(config, each) for name, each in several.items()}
    return {name: sources for name, sources in found.items() if sources is not None}


def _evaluated(config: PPOConfig, encoder: PromptEncoder, data_sources: Sequence[DataSource]) -> PromptMix:
    """The prompts of an evaluation: all, or num_eval_rows drawn by the seed; of a stream, its first."""
    if not any(_is_stream(each.given) for each in data_sources):
        whole = PromptMix(tuple(encoder.sets(data_sources)))
        return whole if config.num_eval_rows is None else _subset(whole, config)
    if config.num_eval_rows is None:
        raise ConfigError(
            "eval_dataset is a stream, and nobody knows how long: num_eval_rows says how much of it to use"
        )
    if len(data_sources) > 1:
        raise ConfigError("eval_dataset is a list with a stream in it: give them names, as in {'one': …, 'two': …}")
    rows = data_sources[0].stream()
    head = rows.head(config.num_eval_rows, config.on_bad_row)
    rows = rows.with_columns(wanted_names(config, head.columns))
    return PromptMix((encoder.encode(rows.head(config.num_eval_rows, config.on_bad_row)),))


def _is_stream(given: object) -> bool:
    import datasets

    return isinstance(given, datasets.IterableDataset)


def _weights(config: PPOConfig, data_sources: Sequence[DataSource]) -> tuple[float, ...] | None:
    weights = config.dataset_weights
    if weights is not None and len(weights) != len(data_sources):
        raise ConfigError(
            f"dataset_weights has {len(weights)} entries for {len(data_sources)} data sets: give one for each"
        )
    return weights


def _streams(
    config: PPOConfig,
    data_sources: Sequence[DataSource],
    encoder: PromptEncoder,
    held_out: Mapping[str, PromptMix],
    main: bool,
) -> RunPrompts:
    """Streams, the first rows of which are read: held out if the settings ask for it, else to be shown."""
    if config.total_episodes is None:
        raise ConfigError("a streamed data set needs total_episodes: nobody knows how many rows it has")
    weights = _weights(config, data_sources)
    if weights is None and len(data_sources) > 1:
        raise ConfigError("several streamed data sets need dataset_weights: nobody knows how many rows they have")
    weights = weights or (1.0,)
    hold = None if held_out else config.num_eval_rows
    held = [0] * len(data_sources)
    for place, _ in weighted_round_robin_between(weights, 0, hold or 0):
        held[place] += 1
    streams, heads, evaluated, notes = [], [], [], list[str]()
    for data_source, skipped in zip(data_sources, held, strict=True):
        rows = data_source.stream()
        notes += encoder.check_stream(rows)
        names = wanted_names(config, rows.head(HEAD_ROWS, config.on_bad_row).columns)
        rows = rows.with_columns(names)
        head = encoder.encode(rows.head(skipped + HEAD_ROWS, config.on_bad_row))
        streams.append(_stream(rows, head, config, skipped, main))
        is_held = head.table_rows < skipped
        notes += [f"The first {skipped} rows of {rows.label}, are held out to evaluate on."] if skipped else []
        evaluated += [head.subset(is_held.nonzero().flatten().tolist())] if is_held.any() else []
        if is_held.all():
            raise DataError(f"{rows.label}: num_eval_rows = {hold} leaves none of its first rows to train on.")
        heads.append(head.subset((~is_held).nonzero().flatten().tolist()))
    if evaluated:
        held_out = {"": PromptMix(tuple(evaluated))}
    return RunPrompts(PromptMix(tuple(heads), weights), held_out, tuple(streams), tuple(notes))


def _stream(rows: RowStream, head: PromptSet, config: PPOConfig, skipped: int, main: bool) -> PromptStream:
    shown: Format | None = head.reader.layout.format
    if shown is not None and shown.gathers:
        raise DataError(f"{rows.label}: the format {shown.name} spreads prompts over rows, so it cannot be streamed.")
    gives_reference = head.reader.layout.gives_reference(head.table.columns)
    reader = replace(head.reader, tokenizer=head.reader.tokenizer.for_a_thread())
    return PromptStream(rows, reader, config.on_bad_row, gives_reference, _tell if main else _say_nothing, skipped)


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
    seed = config.seed if config.eval_seed is None else config.eval_seed
    order: list[int] = torch.randperm(len(prompts), generator=stream(seed, "evaluation prompts")).tolist()
    return order


def _overlap(train: PromptMix, held_out: PromptMix) -> list[str]:
    """A sentence where prompts that are held out also stand in the training data."""
    found = set(_digests(held_out)).intersection(_digests(train))
    if not found:
        return []
    return [f"{len(found)} of the {len(held_out)} prompts to evaluate on also stand among those to train on."]


def _digests(prompts: PromptMix) -> Iterator[bytes]:
    """Every prompt as 16 bytes; its token ids as Python numbers take some 8,000."""
    for one in prompts.sets:
        for start, end in pairwise([0, *one.ends.tolist()]):
            yield hashlib.blake2b(one.tokens[start:end].int().numpy().tobytes(), digest_size=16).digest()


def _plain(columns: Mapping[str, object]) -> bytes:
    """Columns as bytes that are the same in every process: of what JSON cannot hold, the type."""
    text = json.dumps(columns, default=lambda value: type(value).__name__, skipkeys=True)
    return text.encode("utf-8", "surrogatepass")


def _tell(sentence: str) -> None:
    print(f"nearstep: {sentence}", file=sys.stderr)


def _say_nothing(sentence: str) -> None:
    """For processes that do not speak."""
