"""Which rewards score the texts: what `nearstep ppo` would take, built by the same code."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from nearstep.common.errors import ConfigError
from nearstep.config.reward_model import RewardConfig
from nearstep.config.rewards import reward_count
from nearstep.models.dtypes import DTYPES
from nearstep.rewards.batch import RewardBatch
from nearstep.rewards.build import (
    NamedFunction,
    RewardEntry,
    RewardModelOptions,
    RewardSpec,
    load_sources,
    on_error,
    reward_specs,
)
from nearstep.rewards.combine import Rewards
from nearstep.rewards.functions import FunctionReward
from nearstep.scale.backend import Backend

MAX_TOKENS = 16384  # that a reward model reads in one forward pass


@dataclass(frozen=True)
class ScoringRewards:
    """The weighted sum of the rewards; a context manager that ends their worker processes."""

    rewards: Rewards
    specs: Sequence[RewardSpec]

    def __call__(self, batch: RewardBatch) -> list[float]:
        """The total of every text; NaN for one on which a reward failed, where these are dropped."""
        return self.rewards.combine(batch).totals

    def check(self, columns: Collection[str]) -> None:
        """Raise RewardError for a function that requires what these columns do not give."""
        for spec in self.specs:
            if isinstance(spec, NamedFunction):
                FunctionReward(spec.function).check(columns)

    def __enter__(self) -> "ScoringRewards":
        return self

    def __exit__(self, *exception: object) -> None:
        self.rewards.close()


def choose_rewards(
    config: RewardConfig, reward_funcs: Sequence[RewardEntry], tokenizer: PreTrainedTokenizerBase, backend: Backend
) -> ScoringRewards | None:
    """The rewards in the order of reward_weights, None if there are none.

    Raises ConfigError, RewardError or ModelError for one that cannot score, or for weights without rewards.
    """
    if not reward_funcs and reward_count(config) == 0:
        if config.reward_weights is not None:
            raise ConfigError("reward_weights has no rewards to weigh: give reward_funcs, or a reward model or server")
        return None
    options = RewardModelOptions(
        DTYPES[config.dtype], config.trust, config.bf16, MAX_TOKENS, backend.place, config.seed,
        config.chat_template_kwargs,
    )  # fmt: skip
    specs = reward_specs(config, columns=None, reward_funcs=reward_funcs)
    sources = load_sources(config, specs, tokenizer, options)
    rewards = Rewards(sources, tokenizer, weights=config.reward_weights, on_error=on_error(config))
    return ScoringRewards(rewards, specs)
