"""How the demo's reward model is made: the policy's trunk with a scalar head, trained on which summary is preferred."""

import math
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from nearstep.demo.batches import Descent, Group, batches_by_length, hidden_states, pack, tokenize
from nearstep.demo.preferences import Ranking
from nearstep.streams import stream, stream_seed

LEARNING_RATE = 2e-3
EVALUATION_GROUPS = 64


def new_reward_model(policy_folder: Path, *, seed: int) -> PreTrainedModel:
    """The policy's trunk under a random head of standard deviation 1/√(hidden + 1) (arXiv 2403.17031, detail 11)."""
    model = AutoModelForSequenceClassification.from_pretrained(policy_folder, num_labels=1)
    with torch.no_grad():
        std = 1 / math.sqrt(model.config.hidden_size + 1)
        model.score.weight.normal_(0.0, std, generator=stream(seed, "demo/reward head"))
    return model


def train_reward_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rankings: Sequence[Ranking],
    *,
    batch_groups: int,
    seed: int,
    learning_rate: float = LEARNING_RATE,
) -> None:
    """One pass over the rankings, in place."""
    groups = tokenize(tokenizer, [r.prompt for r in rankings], [r.summaries for r in rankings])
    rng = random.Random(stream_seed(seed, "demo/reward order"))
    descent = Descent(model, len(groups) // batch_groups, learning_rate)
    model.train()
    for numbers in batches_by_length([group.tokens for group in groups], batch_groups, rng):
        rewards = last_token_rewards(model, [groups[number] for number in numbers])
        pairs = pairs_of([rankings[number] for number in numbers])
        descent.step(preference_loss(rewards, pairs))
    model.eval()


def pairs_of(rankings: Sequence[Ranking]) -> Int[Tensor, "pairs 2"]:
    """All pairs (better, worse), by the numbers of the summaries counted through all rankings."""
    pairs, start = [], 0
    for ranking in rankings:
        pairs += [(start + better, start + worse) for better, worse in ranking.pairs()]
        start += len(ranking.summaries)
    return torch.tensor(pairs, dtype=torch.long).view(-1, 2)


def preference_loss(rewards: Float[Tensor, " summaries"], pairs: Int[Tensor, "pairs 2"]) -> Tensor:
    """Mean of −log σ(r(better) − r(worse)) (Bradley and Terry; every two summaries of a post, arXiv 2203.02155)."""
    better, worse = rewards[pairs].unbind(1)
    return -torch.nn.functional.logsigmoid(better - worse).mean()


def last_token_rewards(model: PreTrainedModel, groups: Sequence[Group]) -> Float[Tensor, " summaries"]:
    """The head's output at the last token of every completion, group by group."""
    batch = pack(groups)
    rewards: Tensor = model.score(hidden_states(model, batch)[batch.lasts])
    return rewards.squeeze(-1)


def accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rankings: Sequence[Ranking]) -> float:
    """Share of all pairs in which the better summary gets the higher reward."""
    groups = tokenize(tokenizer, [r.prompt for r in rankings], [r.summaries for r in rankings])
    better, worse = rewards_of(model, groups)[pairs_of(rankings)].unbind(1)
    return (better > worse).double().mean().item()


@torch.no_grad()
def rewards_of(model: PreTrainedModel, groups: Sequence[Group]) -> Float[Tensor, " summaries"]:
    """The rewards of all completions, group by group, without gradients."""
    starts = range(0, len(groups), EVALUATION_GROUPS)
    return torch.cat([last_token_rewards(model, groups[i : i + EVALUATION_GROUPS]) for i in starts])
