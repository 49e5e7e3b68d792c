"""How prompts that `nearstep prepare` has tokenised are opened: checked against the policy, never tokenised again."""

import torch

from nearstep.common.errors import ConfigError, DataError, shorten
from nearstep.data.fingerprint import tokenizer_fingerprint
from nearstep.data.manifest import Manifest, Prepared
from nearstep.data.prompts import PromptReport, PromptSet
from nearstep.data.reader import Counts, PromptReader
from nearstep.data.table import Table
from nearstep.data.templates import style_of
from nearstep.data.tokenise import PromptTokenizer


def check_prepared(manifest: Manifest, reader: PromptTokenizer, label: str) -> list[str]:
    """Refuse prompts that were prepared for another tokenizer or in another form; what else the user should know.

    Raises DataError or ConfigError.
    """
    tokenizer, style = reader.tokenizer, reader.style
    if tokenizer_fingerprint(tokenizer) != manifest.fingerprint:
        raise DataError(
            f"{label}: it was prepared with the tokenizer {manifest.tokenizer!r} ({manifest.tokenizer_class}), and the "
            "policy's makes other ids of the same texts. Prepare the data again with the policy's tokenizer."
        )
    if style != "none" and style != style_of(manifest.prompt_type):
        raise ConfigError(
            f"prompt_type = {style}, and {label} was prepared with {manifest.prompt_type}: leave it out, or prepare "
            "the data again"
        )
    if manifest.chats and reader.template_kwargs not in ({}, manifest.chat_template_kwargs):
        raise ConfigError(
            f"chat_template_kwargs = {shorten(dict(reader.template_kwargs))}, and {label} was prepared with "
            f"{shorten(dict(manifest.chat_template_kwargs))}: leave it out, or prepare the data again"
        )
    if manifest.chats and manifest.chat_template != tokenizer.chat_template:
        return [
            "The chats were prepared under another chat template than the tokenizer has now, and the policy is saved "
            f"with the latter. They were prepared with prompt_type {manifest.prompt_type}."
        ]
    return []


def prepared_prompts(
    table: Table, prepared: Prepared, reader: PromptReader, notes: tuple[str, ...]
) -> PromptSet | None:
    """The prompts as they were written; None where one has ids or a length that the policy does not take."""
    import pyarrow.compute  # type: ignore[import-untyped]

    column = prepared.dataset.data.column("input_ids")
    tokens = torch.tensor(pyarrow.compute.list_flatten(column).to_numpy(), dtype=torch.int32)
    lengths = torch.tensor(pyarrow.compute.list_value_length(column).to_numpy(), dtype=torch.int64)
    is_known = int(tokens.min()) >= 0 and int(tokens.max()) < reader.tokenizer.vocab_size
    if not is_known or (reader.max_prompt_length is not None and int(lengths.max()) > reader.max_prompt_length):
        return None
    report = PromptReport(Counts(len(table)), reader.layout, reader.max_prompt_length, notes=notes)
    return PromptSet(table, reader, torch.arange(len(table)), tokens, lengths.cumsum(0), report)


def preparation_note(manifest: Manifest) -> str:
    """What was done when the prompts were prepared."""
    left_out = ", ".join(f"{count} {why}" for why, count in manifest.left_out.items())
    kwargs = manifest.chat_template_kwargs
    template = f"prompt_type {manifest.prompt_type}{f', chat_template_kwargs {shorten(dict(kwargs))}' * bool(kwargs)}"
    return (
        f"Prepared from {manifest.source!r} with {template}, format {manifest.dataset_format}: "
        f"{manifest.rows_written} of {manifest.rows_read} rows{'; left out: ' * bool(left_out)}{left_out}."
    )
