"""Which settings scoring has outside training: of a file, and of a server."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nearstep.common.trust import Trust, trust_of
from nearstep.config.conversion import ModelName
from nearstep.config.rewards import (
    LocalRewardSettings,
    RewardSettings,
    is_loopback,
    local_reward_problems,
    reward_problems,
    reward_remarks,
)
from nearstep.config.settings import Problem, Settings, accepts_old_names, option, sections
from nearstep.config.trusting import pickled_weights, trusted_code


@dataclass(frozen=True, kw_only=True)
class ScoredFile(Settings):
    """What is scored, and where the scores go."""

    input: str | None = option(
        None,
        "prompts and completions: a jsonl, json, csv or parquet file, or the rollouts.jsonl of a run",
        is_place=True,
    )
    model_name_or_path: str | None = option(None, "the policy's tokenizer: a folder or a hub name", is_place=True)
    output: str = option("scores.jsonl", "file for the scores, one line per row; written anew", is_place=True)
    batch_size: int = option(64, "rows that are scored together; those of a run as its updates had them", at_least=1)
    seed: int = option(42, "of the pauses between tries of reward_url", at_least=0)


@dataclass(frozen=True, kw_only=True)
class RewardModelSettings(Settings):
    """How reward models are run."""

    dtype: Literal["float32", "bfloat16", "float64"] = option("float32", "type of the weights of a reward model")
    bf16: bool = option(False, "compute in bfloat16 (autocast), weights stay as they are")
    max_tokens_per_microbatch: int = option(16384, "most tokens in one forward pass; limits memory", at_least=1)
    use_cpu: bool = option(False, "stay on the CPU even where there is a GPU; on a GPU nothing has been run yet")
    trust_remote_code: tuple[ModelName, ...] | None = trusted_code()
    allow_pickled_weights: bool = pickled_weights()

    @property
    def trust(self) -> Trust:
        """What models may bring along."""
        return trust_of(self)


@accepts_old_names
@dataclass(frozen=True, kw_only=True)
class ScoreOptions(RewardModelSettings, RewardSettings, ScoredFile):
    """Settings of scoring: the rewards as training has them, and a file."""

    def problems(self) -> Iterator[Problem]:
        """Settings that clash."""
        return reward_problems(self)

    def remarks(self) -> Iterator[str]:
        """Settings without effect."""
        return reward_remarks(self)


SCORE_SECTIONS = sections(("File", ScoredFile), ("Reward", LocalRewardSettings), ("Models", RewardModelSettings))


@dataclass(frozen=True, kw_only=True)
class ServerSettings(Settings):
    """Where rewards are served, and to whom."""

    host: str = option("127.0.0.1", "address to listen on; any but a loopback address needs a token")
    port: int = option(8000, "port to listen on; 0 for any that is free", at_least=0, at_most=65535)
    token_env: str | None = option(None, "environment variable that holds the token which clients must send")
    max_body_mib: int = option(64, "largest body of a request", at_least=1)


@accepts_old_names
@dataclass(frozen=True, kw_only=True)
class ServeOptions(RewardModelSettings, LocalRewardSettings, ServerSettings):
    """Settings of a reward server."""

    def problems(self) -> Iterator[Problem]:
        """Settings that clash."""
        yield from local_reward_problems(self)
        if self.token_env is None and not is_loopback(self.host):
            yield Problem(
                f"host = {self.host} can be reached from elsewhere: put a token into an environment variable and name "
                "it by token_env, or listen on 127.0.0.1",
                ("host", "token_env"),
            )


SERVE_SECTIONS = sections(("Server", ServerSettings), ("Reward", LocalRewardSettings), ("Models", RewardModelSettings))
