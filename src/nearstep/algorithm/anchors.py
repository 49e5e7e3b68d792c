"""What ratios are taken against where it moves with the policy: between the engine's log-probs and the current ones."""

from jaxtyping import Float, Int
from torch import Tensor

from nearstep.algorithm.kl import log_ratios
from nearstep.algorithm.precision import wide
from nearstep.algorithm.trust_regions import TokenLogprobs


def share_by_age(policy_versions: Int[Tensor, " actions"], update: int) -> Float[Tensor, " actions"]:
    """How far the policy before an update lies on the way from the one that sampled an action to the one after it.

    a = (v_prox − v_μ) / (v_now − v_μ). A version is the number of the update before which the weights were so: those
    that sampled have v_μ, the proximal ones are those of this update, and its steps lead to v_now = update + 1. So
    a = age / (age + 1): 0 for actions of this update, which keep what was recorded, ½ for those of the one before.
    Source: A-3PO (2512.06547), as AReaL has it (`prox_logp_method = loglinear`, v_prox = v_now − 1).
    """
    age = (update - policy_versions).clamp(min=0).double()
    return age / (age + 1)


def interpolated(engine: TokenLogprobs, now: TokenLogprobs, share: Float[Tensor, " actions"]) -> TokenLogprobs:
    """log π_prox ≈ log μ + a · (log π − log μ), of sampled and top tokens; `now` must carry no gradient.

    The probabilities of all tokens add up to at most 1: each is a geometric mean of two. A token that has no
    probability in either keeps none.
    """
    top = None
    if engine.top is not None and now.top is not None:
        top = wide(engine.top) + share[:, None] * log_ratios(now.top, engine.top).nan_to_num(nan=0.0)
    return TokenLogprobs(wide(engine.sampled) + share * log_ratios(now.sampled, engine.sampled), top)
