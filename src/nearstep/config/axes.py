"""The names of what each axis of the algorithm ships with; any of them takes file.py:Name of an object of your own."""

import difflib
from collections.abc import Iterator, Sequence

from nearstep.config.settings import Problem

TRUST_REGIONS = (
    "clip", "binary_tv", "binary_kl", "topk_tv", "topk_kl", "unbounded",
    "spo", "drpo", "sapo", "dis", "cispo", "cppo", "trm", "vaco", "sat",
)  # fmt: skip
ADVANTAGES = (
    "gae", "turn_gae", "gae_by_reward", "group_mean", "group_normalized", "leave_one_out", "gdpo", "batch_normalized",
)  # fmt: skip
KL_CONTROLLERS = ("auto", "fixed", "adaptive", "scheduled")
CRITIC_SCHEDULES = ("joint", "decoupled")
CORRECTIONS = ("auto", "none", "tis", "row_tis", "icepop", "mis", "geo_mask", "seq_mask_tis")
ENGINES = ("transformers", "continuous_batching", "vllm", "vllm_server")
VALUE_HEADS = ("linear", "bounded", "bce", "hl_gauss", "quantile", "ensemble")
LOSS_AGGREGATIONS = ("token_mean", "sequence_mean", "sequence_sum", "sequence_sum_norm", "token_sum")

DIVERGENCES = ("binary_tv", "binary_kl", "topk_tv", "topk_kl")
COMPARE_PROBABILITIES = (*DIVERGENCES, "drpo", "cppo", "trm")  # of single tokens
COMPARE_TOKENS = ("sat",)  # of a row; where all have one ratio, rounding alone would tell them apart
THRESHOLD_REGIONS = ("spo", "drpo", "cppo", "trm", "vaco")
BAND_REGIONS = ("dis", "cispo")
RANGED_HEADS = ("bounded", "bce", "hl_gauss")
CRITIC_RULES = ("gae", "turn_gae", "gae_by_reward")  # advantages that need a critic
RULES_BY_PART = ("gdpo", "gae_by_reward")  # normalise every part of the reward apart
GROUP_RULES = ("group_mean", "group_normalized", "leave_one_out", "gdpo")


def is_own(name: str) -> bool:
    """Whether a setting names an object in a file of the user's."""
    return ".py:" in name


def listed(names: Sequence[str]) -> str:
    """The choices of an axis for a line of help."""
    return f"{', '.join(names)}, or file.py:Name of your own"


def name_problems(setting: str, name: str, names: Sequence[str]) -> Iterator[Problem]:
    """The problem with a name that is neither in the table nor a file's."""
    if name in names or is_own(name):
        return
    near = difflib.get_close_matches(name, names, n=1)
    file, _, inside = name.partition(":")
    if file.endswith(".py") or inside:
        path = file if file.endswith(".py") else f"{file}.py"
        yield Problem(
            f"{setting} = {name!r}: write an object of your own as file.py:Name, {path}:{inside or 'Name'}", (setting,)
        )
        return
    meant = f"did you mean {near[0]}?" if near else f"it is one of {listed(names)}"
    yield Problem(f"{setting} = {name!r} is unknown; {meant}", (setting,))
