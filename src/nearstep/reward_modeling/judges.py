"""Which rewards judge the texts: what `nearstep ppo` would take, built by the same code."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from nearstep.config_reward_modeling import RewardConfig
from nearstep.config_rewards import judge_count
from nearstep.errors import ConfigError
from nearstep.judging import (
    JudgeEntry,
    Loading,
    NamedFunction,
    RewardEntry,
    judge_entries,
    load_reward_model,
    make_judges,
    on_error,
    reward_tokenizer,
)
from nearstep.reward_modeling.preparation import DTYPES
from nearstep.rewards.batch import RewardBatch
from nearstep.rewards.functions import FunctionReward
from nearstep.rewards.identity import TokenizerIdentity
from nearstep.rewards.source import Rewards
from nearstep.scale.backend import Backend

MAX_TOKENS = 16384  # that a reward model reads in one forward pass


@dataclass(frozen=True)
class Judges:
    """The weighted sum of the rewards; a context manager that ends their worker processes."""

    rewards: Rewards
    entries: Sequence[JudgeEntry]

    def __call__(self, batch: RewardBatch) -> list[float]:
        """The total of every text; NaN for one on which a reward failed, where these shall be dropped."""
        return self.rewards.judge(batch).totals

    def check(self, columns: Collection[str]) -> None:
        """Raise RewardError for a function that requires what these columns do not give."""
        for entry in self.entries:
            if isinstance(entry, NamedFunction):
                FunctionReward(entry.function).check(columns)

    def __enter__(self) -> "Judges":
        return self

    def __exit__(self, *exception: object) -> None:
        self.rewards.close()


def choose_judges(
    config: RewardConfig, reward_funcs: Sequence[RewardEntry], tokenizer: PreTrainedTokenizerBase, backend: Backend
) -> Judges | None:
    """The rewards in the order of reward_weights, None if there are none.

    Raises ConfigError, RewardError or ModelError for one that cannot judge, or for weights without rewards.
    """
    if not reward_funcs and judge_count(config) == 0:
        if config.reward_weights is not None:
            raise ConfigError("reward_weights has no rewards to weigh: give reward_funcs, or a reward model or server")
        return None
    loading = Loading(
        DTYPES[config.dtype], config.trust_remote_code, config.bf16, MAX_TOKENS, backend.place, config.seed
    )
    entries = judge_entries(config, columns=None, reward_funcs=reward_funcs)
    sources = make_judges(
        config,
        [(entry, load_reward_model(entry, loading)) for entry in entries],
        lambda model: reward_tokenizer(model, None, tokenizer),
        TokenizerIdentity.of(tokenizer),
        loading,
    )
    rewards = Rewards(sources, tokenizer, weights=config.reward_weights, on_error=on_error(config))
    return Judges(rewards, entries)
