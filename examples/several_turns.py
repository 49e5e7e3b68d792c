"""Engines of your own whose episodes have two turns with a reply in between, or two rows.

    nearstep check examples/several_turns.py:TwoTurns
    nearstep ppo --engine examples/several_turns.py:TwoTurns --advantage turn_gae …
    nearstep ppo --engine examples/several_turns.py:TwoSegments …

What is heard between turns is recorded and is no action: nothing is learned from it, and everything behind it has read
it. Both let the built-in engine speak; the reply here echoes the first token, where yours would ask a tool or a user.
"""

from dataclasses import replace

import torch
from torch import Tensor

from nearstep import Capabilities, EngineSettings, GenerationSettings, Prompts, Rollout
from nearstep.common.random_streams import stream_seed
from nearstep.models.roles import Policy
from nearstep.rollout.engine import RowEnded, rollout_of_rows
from nearstep.rollout.transformers_engine import TransformersEngine


class TwoTurns:
    """The policy says at most half of the response, hears a reply, and says the rest."""

    def __init__(self, settings: EngineSettings) -> None:
        self.engine = TransformersEngine(settings)

    def capabilities(self) -> Capabilities:
        return Capabilities(own_episode=True)

    def load(self, policy: Policy, version: int) -> None:
        self.engine.load(policy, version)

    def close(self) -> None:
        self.engine.close()

    def generate(self, prompts: Prompts, settings: GenerationSettings, row_ended: RowEnded | None = None) -> Rollout:
        if settings.response_length == 1:
            return self.engine.generate(prompts, settings)
        first, second = self._turns(prompts, settings, self._heard)
        said, then = first.completion_ids(), second.completion_ids()
        replies = [self._reply(ids) for ids in said]
        rows = list(zip(said, replies, then, strict=True))
        return rollout_of_rows(
            prompts,
            responses=[[*one, *reply, *two] for one, reply, two in rows],
            logprobs=[torch.cat(turns) for turns in zip(_by_row(first), _by_row(second), strict=True)],
            finished=second.finished.tolist(),
            version=self.engine.version,
            chosen=[[True] * len(one) + [False] * len(reply) + [True] * len(two) for one, reply, two in rows],
        )

    def _turns(self, prompts, settings, heard) -> tuple[Rollout, Rollout]:
        """What is said at first, and what is said to `heard(prompt, said)`: the ids that the second turn goes on from.

        Together they keep the limit; the second has random numbers of its own.
        """
        half = settings.response_length // 2
        first = self.engine.generate(prompts, replace(settings, response_length=half))
        ids = [heard(prompt, said) for prompt, said in zip(prompts.ids, first.completion_ids(), strict=True)]
        left = [settings.response_length - count for count in first.action_counts.tolist()]
        later = replace(settings, seed=stream_seed(settings.seed, "second turn"), limits=tuple(left))
        return first, self.engine.generate(replace(prompts, ids=ids), later)

    def _heard(self, prompt: list[int], said: list[int]) -> list[int]:
        return [*prompt, *said, *self._reply(said)]

    def _reply(self, said: list[int]) -> list[int]:
        return [said[0], said[0]]


class TwoSegments(TwoTurns):
    """Between its turns the policy forgets all but the first token that it said: an episode has two rows."""

    def generate(self, prompts: Prompts, settings: GenerationSettings, row_ended: RowEnded | None = None) -> Rollout:
        if settings.response_length == 1:
            return self.engine.generate(prompts, settings)
        first, second = self._turns(prompts, settings, lambda prompt, said: [*prompt, said[0]])
        pairs = list(zip(range(len(prompts)), range(len(prompts), 2 * len(prompts)), strict=True))
        both = Rollout(
            tokens=torch.cat([first.tokens, second.tokens]),
            is_action=torch.cat([first.is_action, second.is_action]),
            row_lengths=torch.cat([first.row_lengths, second.row_lengths]),
            logprobs=torch.cat([first.logprobs, second.logprobs]),
            finished=torch.cat([torch.ones_like(first.finished), second.finished]),  # the first rows go on in others
            policy_version=torch.cat([first.policy_version, second.policy_version]),
            episodes=torch.tensor(2 * list(prompts.episodes), device=first.tokens.device),
        )
        return both.select(torch.tensor(pairs, device=first.tokens.device).flatten())


def _by_row(rollout: Rollout) -> tuple[Tensor, ...]:
    return rollout.logprobs.split(rollout.action_counts.tolist())
