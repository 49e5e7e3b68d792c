"""What transformers' generation settings mean to an engine, as `PPOTrainer.generate` of TRL up to 0.11 took them."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nearstep.common.errors import ConfigError, shorten
from nearstep.common.spelling import nearest
from nearstep.models.distribution import Sampling
from nearstep.rollout.engine import GenerationSettings

TAKEN = ("max_new_tokens", "max_length", "do_sample", "temperature", "top_k", "top_p", "eos_token_id")
# Settings that ask for nothing with these values, and are refused with others.
NOTHING: Mapping[str, tuple[object, ...]] = {
    "min_length": (None, -1, 0), "min_new_tokens": (None, 0), "num_return_sequences": (None, 1),
    "num_beams": (None, 1), "repetition_penalty": (None, 1, 1.0), "length_penalty": (None, 1, 1.0),
    "no_repeat_ngram_size": (None, 0), "typical_p": (None, 1, 1.0), "use_cache": (None, True, False),
    "return_dict_in_generate": (None, False), "output_scores": (None, False), "synced_gpus": (None, True, False),
}  # fmt: skip
WITHOUT_EFFECT = (  # rows are not padded, and local memory decides how many go at a time
    "pad_token_id", "bos_token_id", "attention_mask", "batch_size", "remove_padding",
)  # fmt: skip


def generation_settings(start: GenerationSettings, given: Mapping[str, Any]) -> GenerationSettings:
    """The settings of one call; what is not given is transformers' default, but for top_k: 0, not 50.

    Raises ConfigError for a setting that is not here and changes something, and where no length is given.
    """
    for name, value in given.items():
        if name in TAKEN or name in WITHOUT_EFFECT or (name in NOTHING and value in NOTHING[name]):
            continue
        if name in NOTHING:
            raise ConfigError(f"generate: {name} = {shorten(value)} is not here: PPO's log-probs would not be those "
                              "of what was sampled")  # fmt: skip
        near = nearest(name, TAKEN)
        raise ConfigError(
            f"generate: unknown setting {name}; "
            + (f"did you mean {near}?" if near else f"there are {', '.join(TAKEN)}")
        )
    length, total = given.get("max_new_tokens"), given.get("max_length")
    most = total if length is None else length
    if most is None:
        raise ConfigError("generate: give max_new_tokens, or length_sampler")
    for name, value in (("max_new_tokens", length), ("max_length", total)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ConfigError(f"generate: {name} = {shorten(value)} must be a whole number, at least 1")
    sampling = Sampling(
        _number(given, "temperature", 1.0), _number(given, "top_p", 1.0), int(_number(given, "top_k", 0.0))
    )
    if sampling.temperature <= 0 or not 0 < sampling.top_p <= 1:
        raise ConfigError("generate: temperature must be above 0, and top_p above 0 and at most 1")
    greedy = not given.get("do_sample", False)
    if greedy:
        warnings.warn("generate: without do_sample=True responses are greedy, by which PPO explores nothing",
                      stacklevel=4)  # fmt: skip
    elif sampling != Sampling():
        warnings.warn(
            "generate: step takes log-probs of the whole distribution at temperature 1, and this samples another one: "
            "top_k=0, top_p=1.0, temperature=1.0 is what PPO expects",
            stacklevel=4,
        )
    stops = given.get("eos_token_id", start.stop_ids)
    ids = (stops,) if isinstance(stops, int) else tuple(stops or ())
    return replace(
        start,
        sampling=sampling,
        greedy=greedy,
        response_length=most,
        max_length=total if length is None else None,
        stop_ids=tuple(each for each in ids if each >= 0),  # −1 is TRL's way to say none
    )


def _number(given: Mapping[str, Any], name: str, default: float) -> float:
    value = given.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"generate: {name} = {shorten(value)} must be a number")
    return float(value)
