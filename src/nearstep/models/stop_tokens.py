"""Which token ids end a response."""

import difflib

from transformers import PreTrainedTokenizerBase

from nearstep.common.errors import ConfigError


def stop_ids(
    tokenizer: PreTrainedTokenizerBase,
    *,
    stop_token: str | None,
    stop_token_id: tuple[int, ...] | None,
    vocab_size: int,
) -> tuple[int, ...]:
    """The ids that end a response, none if responses run to their limit. Raises ConfigError for one that cannot.

    Ids win over the token; the token is "eos" or the text of one token. A model's own generation settings have no say.
    """
    if stop_token_id is not None:
        outside = [number for number in stop_token_id if not 0 <= number < vocab_size]
        if outside:
            raise ConfigError(f"stop_token_id = {outside[0]} is outside the policy's vocabulary of {vocab_size} tokens")
        return tuple(stop_token_id)
    if stop_token is None:
        return ()
    if stop_token == "eos":
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                "stop_token = eos, but the tokenizer has no EOS token: give stop_token_id, or stop_token = none"
            )
        return (int(tokenizer.eos_token_id),)
    vocabulary = tokenizer.get_vocab()
    if stop_token in vocabulary:
        return (vocabulary[stop_token],)
    ids = tokenizer.encode(stop_token, add_special_tokens=False)
    if len(ids) == 1:
        return (ids[0],)
    near = difflib.get_close_matches(stop_token, vocabulary, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ConfigError(
        f"stop_token = {stop_token!r} is {len(ids)} tokens of the tokenizer, one is needed{hint} Use 'eos', the "
        "text of one token, or stop_token_id."
    )
