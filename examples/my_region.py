"""A trust region of your own, in one file: PPO's clip, but only for tokens that were not rare.

    nearstep check examples/my_region.py:MyRegion
    nearstep ppo --trust_region examples/my_region.py:MyRegion …

A rare token may change its ratio a lot and the policy hardly at all: from 0.0001 to 0.001 is a ratio of 10. Source: the
"relax both" ablation of 2602.04879. Of a class without arguments an instance is made; `STRICTER` can be named as well.
"""

from dataclasses import dataclass

from torch import Tensor

from nearstep import ActionRows, TokenLogprobs
from nearstep.algorithm.losses import probability_ratio


@dataclass(frozen=True)
class MyRegion:
    """What `weight` is given has one entry for each token, log-probs in nats; `rows` says where rows end."""

    low: float = 0.2
    high: float = 0.28
    rare: float = 0.1  # below this probability at rollout a token may move freely
    top_k: int = 0  # it looks at the sampled token alone

    def weight(self, now: TokenLogprobs, old: TokenLogprobs, advantages: Tensor, rows: ActionRows) -> Tensor:
        """The factor on the gradient of each token: 1 keeps it, 0 drops it."""
        ratio = probability_ratio(now.sampled, old.sampled)  # float32 at least, whatever the model computes in
        too_high = (advantages > 0) & (ratio > 1 + self.high)
        too_low = (advantages < 0) & (ratio < 1 - self.low)
        common = old.sampled.float().exp() >= self.rare
        return (~((too_high | too_low) & common)).float()


STRICTER = MyRegion(rare=0.01)
