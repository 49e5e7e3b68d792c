"""Which token ids end a response, and who says so."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from jinja2 import TemplateError
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nearstep.common.errors import ConfigError, shorten
from nearstep.models.roles import inner_model
from nearstep.models.turn_end import turn_end

RESIZE = "Resize the embeddings (model.resize_token_embeddings(len(tokenizer))) and train them"
EXACTLY = "stop_token = eos, the text of one token, or stop_token_id"


@dataclass(frozen=True)
class StopTokens:
    """The ids that end a response, none if responses run to their limit, and what to tell of them before the run."""

    ids: tuple[int, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ModelEnds:
    """The ids that a model itself names as ends: of its generation config, and of its model config.

    A class of transformers has an EOS of its own for models whose maker named none: `chosen` leaves out what only
    repeats the model config.
    """

    chosen: tuple[int, ...]
    inherited: tuple[int, ...]

    @staticmethod
    def of(model: nn.Module | str, family: PreTrainedConfig) -> "ModelEnds":
        """The ends of an object, a folder or a hub name; `family` is its text configuration."""
        inherited = _ids(vars(family).get("eos_token_id"))
        named = _ids(None if (found := _generation_config(model)) is None else found.eos_token_id)
        return ModelEnds(tuple(token for token in named if token not in inherited), inherited)


def stop_tokens(
    tokenizer: PreTrainedTokenizerBase,
    *,
    vocab_size: int,
    model: ModelEnds,
    stop_token: str | None = "auto",
    stop_token_id: tuple[int, ...] | None = None,
    template_kwargs: Mapping[str, object] | None = None,
    needed: bool = True,
) -> StopTokens:
    """What ends a response. Raises ConfigError for an id that can never be sampled, and where one is `needed` and there
    is none.

    "auto" is every end that tokenizer, generation config and chat template mean; "eos" the tokenizer's EOS alone;
    else the text of one token. Ids win over all of these.
    """
    if stop_token_id is not None:
        found = {token: ["stop_token_id"] for token in stop_token_id}
    elif stop_token == "auto":
        found, notes = _meant(tokenizer, model, template_kwargs or {})
        if needed and not found:
            raise ConfigError(
                "nothing ends a response: neither tokenizer, generation config nor chat template names an end. Give "
                "stop_token_id, or stop_token = none"
            )
        ids = _checked(found, vocab_size)
        alone = " stop_token = eos keeps the tokenizer's EOS alone." if len(ids) > 1 else ""
        return StopTokens(ids, (_told(found, tokenizer) + alone, *notes))
    elif stop_token is None:
        found = {}
    else:
        token, source = _one(tokenizer, stop_token)
        found = {token: [source]}
    return StopTokens(_checked(found, vocab_size), (_told(found, tokenizer),))


def reply_end(tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, object] | None = None) -> int | None:
    """The token with which a reply under the chat template ends; None where it is none."""
    known = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return _end_mark(tokenizer, known, template_kwargs or {})[0]


def _meant(
    tokenizer: PreTrainedTokenizerBase, model: ModelEnds, template_kwargs: Mapping[str, object]
) -> tuple[dict[int, list[str]], list[str]]:
    """Every id that somebody means as an end with those who do, and what to tell of ends that are left out."""
    found: dict[int, list[str]] = {}
    known = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    if tokenizer.eos_token_id is not None:
        found[int(tokenizer.eos_token_id)] = ["the tokenizer's EOS"]
    for token in model.chosen:
        found.setdefault(token, []).append("generation config")
    notes = []
    for token in model.inherited:
        if token in known:
            found.setdefault(token, []).append("model config")
        elif token not in found:
            notes.append(
                f"The model config names id {token} as EOS, which is no special token of this tokenizer: it ends "
                "nothing. If it should, give stop_token_id."
            )
    mark, text = _end_mark(tokenizer, known, template_kwargs)
    if mark is not None:
        found.setdefault(mark, []).append("chat template")
    elif text:
        notes.append(
            f"The chat template ends a reply with {shorten(text)}, which is no single token of this tokenizer and ends "
            "no response."
        )
    return found, notes


def _end_mark(
    tokenizer: PreTrainedTokenizerBase, known: set[int], template_kwargs: Mapping[str, object]
) -> tuple[int | None, str]:
    """The token with which the chat template ends a reply, None where there is none, and the text that it writes."""
    if tokenizer.chat_template is None:
        return None, ""
    try:
        end = turn_end(
            lambda messages: str(tokenizer.apply_chat_template(messages, tokenize=False, **dict(template_kwargs)))
        )
    except (TemplateError, TypeError, ValueError):
        return None, ""  # a template of its own rules: chats that it refuses are named with their row
    text = (end or "").strip()
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []
    # One character of ordinary text, such as a full stop, is no mark: every answer holds it.
    if ids and (ids[0] in known or (len(ids) == 1 and len(text) > 1)):
        return int(ids[0]), text
    return None, text


def _one(tokenizer: PreTrainedTokenizerBase, stop_token: str) -> tuple[int, str]:
    """The id that stop_token names by text, and how messages call it."""
    if stop_token == "eos":
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                "stop_token = eos, but the tokenizer has no EOS token: give stop_token_id, or stop_token = none"
            )
        return int(tokenizer.eos_token_id), "the tokenizer's EOS"
    vocabulary, source = tokenizer.get_vocab(), "stop_token"
    if stop_token in vocabulary:
        return vocabulary[stop_token], source
    ids = tokenizer.encode(stop_token, add_special_tokens=False)
    if len(ids) == 1:
        return ids[0], source
    near = difflib.get_close_matches(stop_token, vocabulary, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ConfigError(
        f"stop_token = {shorten(stop_token)} is {len(ids)} tokens of the tokenizer, one is needed{hint} Use 'auto', "
        "'eos', the text of one token, or stop_token_id."
    )


def _checked(found: Mapping[int, list[str]], vocab_size: int) -> tuple[int, ...]:
    """The ids, all of them rows of the policy's embedding."""
    for token, sources in found.items():
        if not 0 <= token < vocab_size:
            raise ConfigError(
                f"id {token} shall end a response ({', '.join(sources)}) and is outside the policy's vocabulary of "
                f"{vocab_size} tokens, so it can never be sampled. {RESIZE}, or say exactly what ends a response: "
                f"{EXACTLY}"
            )
    return tuple(found)


def _told(found: Mapping[int, list[str]], tokenizer: PreTrainedTokenizerBase) -> str:
    if not found:
        return "Nothing ends a response before response_length."
    ends = [
        f"{shorten(tokenizer.convert_ids_to_tokens(token), 60)} ({token}: {', '.join(sources)})"
        for token, sources in list(found.items())[:8]
    ]
    more = f" or one of {len(found) - len(ends)} more" if len(found) > len(ends) else ""
    return f"A response ends with {' or '.join(ends)}{more}."


def _generation_config(model: nn.Module | str) -> GenerationConfig | None:
    if isinstance(model, nn.Module):
        inner = inner_model(model)
        if not isinstance(inner, PreTrainedModel) or not inner.can_generate():
            return None
        own: GenerationConfig | None = inner.generation_config
        return own
    try:
        return GenerationConfig.from_pretrained(model)
    except OSError:
        return None  # transformers makes one of the model config then


def _ids(value: object) -> tuple[int, ...]:
    """One id, several or none; a negative one is transformers' way to say none."""
    listed = value if isinstance(value, list | tuple) else [value]
    return tuple(dict.fromkeys(token for token in listed if isinstance(token, int) and token >= 0))
