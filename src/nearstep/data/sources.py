"""Where the data sets of a run come from, objects or names, and how they are read as the settings say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from nearstep.common.errors import ConfigError, DataError
from nearstep.config.data import DataSettings
from nearstep.config.ppo import PPOConfig
from nearstep.data.encode import encode_prompts
from nearstep.data.load import load_rows, table_of
from nearstep.data.prepared import check_prepared
from nearstep.data.prompts import PromptSet
from nearstep.data.stream import RowStream, open_stream, stream_of
from nearstep.data.table import Table, with_columns
from nearstep.data.templates import style_of
from nearstep.data.tokenise import PromptTokenizer
from nearstep.models.limits import Limits
from nearstep.scale.backend import Backend


@dataclass(frozen=True)
class DataSource:
    """Where one data set comes from: an object, or else a name."""

    given: Any
    name: str
    split: str
    config: str | None = None

    def table(self, settings: DataSettings) -> Table:
        """All rows."""
        if self.given is not None:
            return table_of(self.given, self.name, self.split)
        return load_rows(self.name, split=self.split, config=self.config, on_bad_row=settings.on_bad_row)

    def stream(self) -> RowStream:
        """The rows one after the other, none read yet."""
        if self.given is not None:
            return stream_of(self.given, self.name, self.split)
        return open_stream(self.name, split=self.split, config=self.config)


def training_sources(settings: DataSettings, given: object, *, wanted: str) -> list[DataSource]:
    """The data sets to train on. Raises ConfigError, which says what was `wanted`, if there is none."""
    if given is None and not settings.dataset_name:
        raise ConfigError(f"no {wanted}: pass train_dataset, or set dataset_name")
    return _data_sources(
        given, "train_dataset", settings.dataset_name, settings.dataset_train_split, settings.dataset_config
    )


def text_sources(config: PPOConfig, given: object) -> list[DataSource]:
    """The data sets of the pretraining loss; none if neither object nor name is given."""
    if given is None and not config.ptx_dataset_name:
        return []
    configs = () if config.ptx_dataset_config is None else (config.ptx_dataset_config,)
    return _data_sources(given, "ptx_dataset", config.ptx_dataset_name, (config.ptx_dataset_split,), configs)


def evaluation_sources(settings: DataSettings, given: object) -> list[DataSource] | None:
    """The data sets to evaluate on; None if neither object, name nor split is given."""
    split = settings.dataset_test_split or "train"
    if given is not None or settings.eval_dataset_name:
        return _data_sources(given, "eval_dataset", settings.eval_dataset_name, (split,), ())
    if settings.dataset_test_split is not None and settings.dataset_name:
        return _data_sources(None, "eval_dataset", settings.dataset_name, (split,), settings.dataset_config)
    return None


def tables_of(settings: DataSettings, data_sources: Sequence[DataSource]) -> list[Table]:
    """The rows of data sets, their columns under our names.

    Raises DataError for what cannot be read, and for a wanted column that is in none of them.
    """
    tables = [data_source.table(settings) for data_source in data_sources]
    found = {column for table in tables for column in table.columns}
    missing = [theirs for _, theirs in settings.columns if theirs not in found]
    if missing:
        label = "; ".join(table.label for table in tables)
        raise DataError(f"{label}: columns asks for {', '.join(map(repr, missing))}, there is only {sorted(found)}.")
    return [with_columns(table, wanted_names(settings, table.columns)) for table in tables]


def wanted_names(settings: DataSettings, columns: Sequence[str]) -> dict[str, str]:
    """The wanted names of a data set's columns: of several data sets each may have some of them."""
    return {ours: theirs for ours, theirs in settings.columns if theirs in columns}


def _data_sources(
    given: object, role: str, names: Sequence[str], splits: Sequence[str], configs: Sequence[str]
) -> list[DataSource]:
    """One origin for each data set; splits and configurations are one for all, or one for each."""
    several: list[Any] = list(names) if given is None else _several(given)
    data_sources = []
    for number, one in enumerate(several):
        split = splits[number] if len(splits) > 1 else splits[0]
        if isinstance(one, str):
            chosen = None if one not in names or not configs else configs[number] if len(configs) > 1 else configs[0]
            data_sources.append(DataSource(None, one, split, chosen))
        else:
            data_sources.append(DataSource(one, role if len(several) == 1 else f"{role}[{number}]", split))
    return data_sources


def _several(given: Any) -> list[Any]:
    """The data sets of a list that holds data sets or names; anything else, rows among it, is one data set."""
    if isinstance(given, list | tuple) and given and not isinstance(given[0], Mapping):
        return list(given)
    return [given]


@dataclass(frozen=True)
class PromptEncoder:
    """Reads data sets as the settings say."""

    config: PPOConfig
    tokenizer: PreTrainedTokenizerBase
    limits: Limits
    backend: Backend | None = None  # each of its processes tokenises a share

    def sets(self, data_sources: Sequence[DataSource]) -> list[PromptSet]:
        """The prompts of each data set."""
        return [self.encode(table) for table in tables_of(self.config, data_sources)]

    def check_stream(self, rows: RowStream) -> list[str]:
        """Refuse prepared rows that do not fit the policy; what else the user should know of them."""
        if rows.manifest is None:
            return []
        return check_prepared(rows.manifest, self._tokenizer(), rows.label)

    def _tokenizer(self) -> PromptTokenizer:
        config = self.config
        return PromptTokenizer.of(
            self.tokenizer, self.limits.rows, style_of(config.prompt_type), config.chat_template_kwargs
        )

    def encode(self, table: Table) -> PromptSet:
        """The prompts of one table."""
        config = self.config
        return encode_prompts(
            table, self.tokenizer, vocab_size=self.limits.rows, prompt_type=style_of(config.prompt_type),
            max_prompt_length=_longest_prompt(config, self.limits), on_long_prompt=config.on_long_prompt,
            on_bad_row=config.on_bad_row, dataset_format=config.dataset_format,
            template_kwargs=config.chat_template_kwargs, backend=self.backend,
        )  # fmt: skip


def _longest_prompt(config: PPOConfig, limits: Limits) -> int | None:
    """max_prompt_length, or what max_length, or else the positions of policy, reference and critic, leave for it."""
    if config.max_length is not None:
        if limits.positions is not None and config.max_length > limits.positions:
            raise ConfigError(
                f"{limits.role} has {limits.positions} positions: max_length = {config.max_length} is more. Lower it."
            )
        return config.max_prompt_length or config.max_length - 1
    if limits.positions is None:
        return config.max_prompt_length
    room = limits.positions - config.response_length
    if room < 1 or (config.max_prompt_length or 0) > room:
        raise ConfigError(
            f"{limits.role} has {limits.positions} positions: max_prompt_length = {config.max_prompt_length} and "
            f"response_length = {config.response_length} together are more. Lower one of them."
        )
    return config.max_prompt_length or room
