"""Whether what an engine recorded can be trained on: checked after every rollout, before anything reads it."""

from collections.abc import Sequence
from itertools import chain

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nearstep.algorithm.ragged import places_in_row, row_numbers, row_starts, sum_by_row
from nearstep.common.errors import TrainingError, shorten
from nearstep.rollout.optional_checks import (
    asked_rows,
    check_ends,
    check_episodes,
    check_model_inputs,
    check_versions,
)
from nearstep.types import Prompts, Rollout, TopLogprobs

TOLERANCE = 1e-4  # nats above 0 that rounding may give a log-prob
FIELDS = {
    "tokens": (torch.int64,),
    "is_action": (torch.bool,),
    "row_lengths": (torch.int64,),
    "logprobs": (torch.float32, torch.float64),  # ratios need float32 at least
    "finished": (torch.bool,),
    "policy_version": (torch.int64, torch.int32),
}


def check_rollout(
    found: object,
    prompts: Prompts,
    *,
    engine: str,
    limits: Sequence[int],
    top_tokens: int,
    newest: int | None,
    vocabulary: int | None,
) -> Rollout:
    """`found`, if it is what an engine must record for `prompts`. Raises TrainingError with engine, row and episode.

    `limits` are the most actions of each row, `top_tokens` how many top tokens were asked for, `newest` the version
    that was loaded last (None where nobody knows), `vocabulary` the number of ids that are tokens (None for all). Few
    whole-tensor operations: nothing beside the sampling itself.
    """
    if not isinstance(found, Rollout):
        raise TrainingError(f"engine {engine}: generate returned {shorten(found)}; return a nearstep.types.Rollout")
    _check_fields(found, engine)
    check_episodes(found, prompts, engine)
    _check_lengths(found, prompts, engine)
    asked = asked_rows(found, prompts, limits, engine)
    prompts = asked.prompts
    _check_rows(found, prompts, engine, asked.limits, newest)
    check_ends(found, prompts, engine)
    check_versions(found, prompts, engine, newest)
    check_model_inputs(found, engine)
    _check_logprobs(found, prompts, engine)
    if vocabulary is not None:
        _check_vocabulary(found, prompts, engine, vocabulary)
    if top_tokens > 0:
        _check_top(found, prompts, engine, top_tokens)
    return found


def place_of(rollout: Rollout, prompts: Prompts, action: int) -> str:
    """Where an action is, in words: token, row, episode and policy version."""
    ends = rollout.action_counts.cumsum(0)
    row = int((ends <= action).sum())
    step = action - int(ends[row] - rollout.action_counts[row])
    return (
        f"token {step + 1} of the response to row {row} (episode {prompts.episodes[row]}, policy version "
        f"{int(rollout.policy_version[row])})"
    )


def _check_fields(rollout: Rollout, engine: str) -> None:
    """Tensors of the right kind, of one dimension, on one device."""
    for name, dtypes in FIELDS.items():
        value = vars(rollout)[name]
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        if not isinstance(value, Tensor):
            raise TrainingError(f"engine {engine}: {name} is {shorten(value)}; record a tensor of {wanted}")
        if value.dtype not in dtypes or value.dim() != 1:
            raise TrainingError(
                f"engine {engine}: {name} is {value.dtype} of shape {list(value.shape)}; record one dimension of "
                f"{wanted}"
            )
    devices = {name: str(vars(rollout)[name].device) for name in FIELDS}
    if len(set(devices.values())) > 1:
        raise TrainingError(f"engine {engine}: its tensors lie on several devices, {devices}; record all on one")


def _check_lengths(rollout: Rollout, prompts: Prompts, engine: str) -> None:
    """The lengths of the tensors agree with one another and with the prompts. No row to name: none is to be trusted."""
    rows = len(prompts) if rollout.episodes is None else len(rollout.episodes)
    for name in ("row_lengths", "finished", "policy_version"):
        entries = len(vars(rollout)[name])
        if entries != rows:
            raise TrainingError(
                f"engine {engine}: {name} has {entries} rows for {rows} prompts; record one row for each prompt, in "
                "order"
            )
    short = _first(rollout.row_lengths < 1)
    if short is not None:
        raise TrainingError(
            f"engine {engine}: {_row(prompts, short)} has a length of {int(rollout.row_lengths[short])}; record its "
            "prompt and at least one token of a response"
        )
    tokens = int(rollout.row_lengths.sum())
    for name in ("tokens", "is_action"):
        entries = len(vars(rollout)[name])
        if entries != tokens:
            raise TrainingError(
                f"engine {engine}: {name} has {entries} entries, and row_lengths sum to {tokens}; record all tokens of "
                "all rows back to back, prompt and response, without padding"
            )
    actions = int(rollout.is_action.sum())
    if len(rollout.logprobs) != actions:
        raise TrainingError(
            f"engine {engine}: logprobs has {len(rollout.logprobs)} entries, and {actions} tokens are actions; record "
            "one log-prob for each token that was sampled, the stop token too"
        )


def _check_rows(rollout: Rollout, prompts: Prompts, engine: str, limits: Sequence[int], newest: int | None) -> None:
    """Each row is its prompt and then a response within its limit, of weights that were loaded."""
    device, lengths, counts = rollout.tokens.device, rollout.row_lengths, rollout.action_counts
    asked = torch.tensor([len(ids) for ids in prompts.ids], device=device)
    rows, places = row_numbers(lengths), places_in_row(lengths)
    in_prompt = places < asked[rows]
    ids = torch.tensor(list(chain.from_iterable(prompts.ids)), dtype=torch.int64, device=device)
    wanted = ids[(row_starts(asked)[rows] + places)[in_prompt]]
    wrong = rollout.is_action[in_prompt] | (rollout.tokens[in_prompt] != wanted)
    # A row that ends within its prompt may agree with it as far as it goes.
    other = (lengths < asked).index_put((rows[in_prompt][wrong],), torch.tensor(True, device=device))
    row = _first(other)
    if row is not None:
        recorded = rollout.tokens[rows == row][: len(prompts.ids[row])].tolist()
        raise TrainingError(
            f"engine {engine}: {_row(prompts, row)} begins with {shorten(recorded)}, and its prompt is "
            f"{shorten(prompts.ids[row])}; record the prompt's ids first, unchanged, and none of them as an action"
        )
    most = torch.tensor(list(limits), device=device)
    row = _first((counts < 1) | (counts > most))
    if row is not None:
        raise TrainingError(
            f"engine {engine}: {_row(prompts, row)} has {int(counts[row])} actions; record at least 1 and at most "
            f"{limits[row]} (response_length, or the limit of the row)"
        )
    row = _first(sum_by_row((rollout.is_action & (places == asked[rows])).long(), lengths) == 0)
    if row is not None:
        raise TrainingError(
            f"engine {engine}: {_row(prompts, row)} has a token after its prompt that is no action; the response "
            "begins right after the prompt, so its first token is one"
        )
    row = None if newest is None else _first(rollout.policy_version > newest)
    if row is not None:
        raise TrainingError(
            f"engine {engine}: {_row(prompts, row)} is of policy version {int(rollout.policy_version[row])}, and "
            f"{newest} was loaded last; record the version that load gave with the weights, or an older one's"
        )


def _check_logprobs(rollout: Rollout, prompts: Prompts, engine: str) -> None:
    """A NaN, an infinity or a density would train on, silently; -inf says that the token could not be sampled."""
    action = _first(~is_logprob(rollout.logprobs))
    if action is not None:
        raise TrainingError(
            f"engine {engine} recorded a log-prob of {float(rollout.logprobs[action]):g} at "
            f"{place_of(rollout, prompts, action)}. Record natural logs of the probabilities that were sampled from, "
            "finite and at most 0; where they are not numbers, look at what the engine computes, and at the weights "
            "that it was given"
        )


def _check_vocabulary(rollout: Rollout, prompts: Prompts, engine: str, vocabulary: int) -> None:
    """The trainer gives no probability to ids that are no tokens, so an engine may not sample them."""
    action = _first((rollout.actions < 0) | (rollout.actions >= vocabulary))
    if action is not None:
        raise TrainingError(
            f"engine {engine} sampled the id {int(rollout.actions[action])} at {place_of(rollout, prompts, action)}, "
            f"and the tokenizer has {vocabulary} tokens. Leave out logits from settings.vocabulary on"
        )


def is_logprob(logprobs: Float[Tensor, " actions"]) -> Bool[Tensor, " actions"]:
    """Finite and at most 0, as the log-prob of a sampled token is."""
    return logprobs.isfinite() & (logprobs <= TOLERANCE)


def _check_top(rollout: Rollout, prompts: Prompts, engine: str, top_tokens: int) -> None:
    """One line of `top_tokens` for every action, the sampled token in it. Tokens that top_k leaves out have -inf."""
    top: object = rollout.top
    wanted = (len(rollout.logprobs), top_tokens)
    if not isinstance(top, TopLogprobs) or top.ids.shape != wanted or top.logprobs.shape != wanted:
        shapes = f"of shape {list(top.ids.shape)}" if isinstance(top, TopLogprobs) else f"as {shorten(top)}"
        raise TrainingError(
            f"engine {engine}: top tokens are recorded {shapes}, and its capabilities() say that it records them; "
            f"ids and logprobs of {top_tokens} tokens at each of {wanted[0]} actions were asked for"
        )
    lacks = (top.ids != rollout.actions[:, None]).all(-1)
    action = _first(lacks | ~(top.logprobs <= TOLERANCE).all(-1))
    if action is not None:
        raise TrainingError(
            f"engine {engine}: the top tokens {shorten(top.ids[action].tolist())} with log-probs "
            f"{shorten(top.logprobs[action].tolist())} were recorded at {place_of(rollout, prompts, action)}; record "
            f"log-probs of at most 0, and the sampled token {int(rollout.actions[action])} among them"
        )


def _first(wrong: Bool[Tensor, " items"]) -> int | None:
    """Index of the first that is true."""
    return int(wrong.int().argmax()) if wrong.any() else None


def _row(prompts: Prompts, row: int) -> str:
    return f"row {row} (episode {prompts.episodes[row]})"
