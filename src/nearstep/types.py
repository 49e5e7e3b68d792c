"""What flows through a run: Prompts → Rollout → Scores → Experience → Metrics, each frozen, none padded.

Dimensions: `rows` sequences of tokens, `tokens` all tokens of all rows back to back, row 0 first, `actions` those that
the policy chose, in the same order, `k` the top tokens recorded for a trust region. A minibatch is an Experience of
fewer rows. Prompts and Scores are by episode, Rollout and Experience by row. Mostly a row is an episode; where an
episode has several (`Rollout.episodes`), these are its segments.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from nearstep.algorithm.agreement import MemberValues
from nearstep.algorithm.by_reward import RewardColumns
from nearstep.algorithm.critic_leads import CriticLeads as CriticLeads
from nearstep.algorithm.critic_leads import swap_leads
from nearstep.algorithm.ragged import lead_lengths, row_numbers, shared_leads, sum_by_row, take_rows, turn_starts
from nearstep.algorithm.ragged import row_groups as row_groups
from nearstep.common.messages import Message as Message
from nearstep.common.messages import PromptInput as PromptInput
from nearstep.common.messages import Prompts as Prompts
from nearstep.metrics import Metrics


@dataclass(frozen=True)
class TopLogprobs:
    """The k most probable tokens of the sampling distribution at every action, the sampled token always among them."""

    ids: Int[Tensor, "actions k"]
    logprobs: Float[Tensor, "actions k"]


@dataclass(frozen=True)
class Rollout:
    """What the engine observed; never edited.

    >>> # two rows: prompt [5, 6] answered [7, 2], prompt [8] answered [2]
    >>> # tokens      [5, 6, 7, 2, 8, 2]
    >>> # is_action   [0, 0, 1, 1, 0, 1]
    >>> # row_lengths [4, 2]
    """

    tokens: Int[Tensor, " tokens"]
    is_action: Bool[Tensor, " tokens"]
    row_lengths: Int[Tensor, " rows"]
    logprobs: Float[Tensor, " actions"]  # natural log, of the distribution that was sampled
    finished: Bool[Tensor, " rows"]  # ended by a stop token, or goes on in the next segment; not cut off
    policy_version: Int[Tensor, " rows"]  # update number of the weights that sampled; of several, the oldest
    top: TopLogprobs | None = None
    action_versions: Int[Tensor, " actions"] | None = None  # of each action, where weights changed within a row
    episodes: Int[Tensor, " rows"] | None = None  # as in Prompts, where episodes have several rows, side by side
    model_inputs: Mapping[str, Sequence[Tensor | None]] | None = None  # beside tokens: by name, one value for each row

    def __len__(self) -> int:
        return len(self.row_lengths)

    @property
    def versions(self) -> Int[Tensor, " actions"]:
        """Update number of the weights that sampled each action."""
        if self.action_versions is not None:
            return self.action_versions
        return self.policy_version[row_numbers(self.action_counts)]

    @property
    def turn_starts(self) -> Bool[Tensor, " actions"]:
        """Actions that begin a row, or stand behind tokens that the policy did not choose."""
        return turn_starts(self.is_action, self.row_lengths)

    @property
    def segment_counts(self) -> Int[Tensor, " episodes"]:
        """Number of rows of each episode."""
        rows = torch.arange(len(self), device=self.tokens.device) if self.episodes is None else self.episodes
        counts: Tensor = torch.unique_consecutive(rows, return_counts=True)[1]
        return counts

    @property
    def ends_episode(self) -> Bool[Tensor, " rows"]:
        """Rows that are the last of their episode: all of them where a row is an episode."""
        return torch.zeros_like(self.finished).index_fill(0, self.segment_counts.cumsum(0) - 1, True)

    def last_segments(self) -> "Rollout":
        """The last row of each episode, as an episode of its own: what is scored and evaluated."""
        ends = self.ends_episode.nonzero().squeeze(-1)
        return self if self.episodes is None else replace(self.select(ends), episodes=None)

    def by_episode(self) -> "Rollout":
        """The segments of each episode as one row, for what is counted along episodes; no model reads such rows."""
        if self.episodes is None:
            return self
        counts, ends = self.segment_counts, self.ends_episode
        return replace(
            self,
            row_lengths=sum_by_row(self.row_lengths, counts),
            finished=self.finished[ends],
            policy_version=self.policy_version[counts.cumsum(0) - counts],
            episodes=None,
            model_inputs=None,
        )

    def with_leads(self, leads: CriticLeads) -> "Rollout":
        """The same with other tokens before the first action of each row."""
        own, none = self.prompt_lengths, torch.zeros_like(leads.tokens, dtype=torch.bool)
        return replace(
            self,
            tokens=swap_leads(self.tokens, self.row_lengths, own, leads.tokens, leads.lengths),
            is_action=swap_leads(self.is_action, self.row_lengths, own, none, leads.lengths),
            row_lengths=self.row_lengths - own + leads.lengths,
        )

    @property
    def action_counts(self) -> Int[Tensor, " rows"]:
        """Number of actions in each row."""
        return sum_by_row(self.is_action.long(), self.row_lengths)

    @property
    def action_positions(self) -> Int[Tensor, " actions"]:
        """Index into `tokens` of every action."""
        return self.is_action.nonzero().squeeze(-1)

    @property
    def prompt_lengths(self) -> Int[Tensor, " rows"]:
        """Tokens before the first action of each row."""
        return lead_lengths(self.is_action, self.row_lengths)

    @property
    def shared_prompts(self) -> Int[Tensor, " rows"]:
        """Tokens of each row's prompt if the row before it has the same prompt, else 0."""
        return shared_leads(self.tokens, self.row_lengths, self.prompt_lengths)

    @property
    def last_positions(self) -> Int[Tensor, " rows"]:
        """Index into `tokens` of every row's last token."""
        return self.row_lengths.cumsum(0) - 1

    @property
    def actions(self) -> Int[Tensor, " actions"]:
        """The token ids that the policy chose."""
        return self.tokens[self.is_action]

    def prompt_ids(self) -> list[list[int]]:
        """Per row, the tokens before the first action."""
        rows = zip(self._split(self.tokens), self._split(self.is_action), strict=True)
        return [tokens[: _first(is_action)].tolist() for tokens, is_action in rows]

    def completion_ids(self) -> list[list[int]]:
        """Per row, everything from the first action on."""
        rows = zip(self._split(self.tokens), self._split(self.is_action), strict=True)
        return [tokens[_first(is_action) :].tolist() for tokens, is_action in rows]

    def completion_actions(self) -> list[list[bool]]:
        """Per row, which of `completion_ids` the policy chose."""
        return [is_action[_first(is_action) :].tolist() for is_action in self._split(self.is_action)]

    def select(self, rows: Int[Tensor, " chosen"]) -> "Rollout":
        """The rollout of the given rows, in the given order."""
        tokens = take_rows(self.row_lengths, rows)
        actions = take_rows(self.action_counts, rows)
        top = self.top and TopLogprobs(self.top.ids[actions], self.top.logprobs[actions])
        return replace(
            self,
            tokens=self.tokens[tokens],
            is_action=self.is_action[tokens],
            row_lengths=self.row_lengths[rows],
            logprobs=self.logprobs[actions],
            finished=self.finished[rows],
            policy_version=self.policy_version[rows],
            top=top,
            action_versions=None if self.action_versions is None else self.action_versions[actions],
            episodes=None if self.episodes is None else self.episodes[rows],
            model_inputs=self.model_inputs
            and {name: [values[row] for row in rows.tolist()] for name, values in self.model_inputs.items()},
        )

    def _split(self, values: Tensor) -> tuple[Tensor, ...]:
        return torch.split(values, self.row_lengths.tolist())


def _first(is_action: Tensor) -> int:
    """Number of tokens before the first action; all of them where there is none."""
    return int((is_action.cumsum(0) == 0).sum())


@dataclass(frozen=True)
class Scores:
    """What the reward sources gave: the weighted total, and every part by its name (NaN where a part did not apply).

    One of each for every episode (`rows` here). One whose total is NaN was not scored; nothing is learned from it.
    """

    total: Float[Tensor, " rows"]
    parts: dict[str, Float[Tensor, " rows"]] = field(default_factory=dict)
    extras: dict[str, list[object]] = field(default_factory=dict)  # columns for the record, one value per row
    metrics: Metrics = field(default_factory=Metrics)  # numbers that reward functions reported
    failures: dict[str, dict[int, str]] = field(default_factory=dict)  # why a part failed, by its name and the row
    dense: Float[Tensor, " actions"] | None = None  # rewards of single actions, weighted, beside the total
    weights: dict[str, float] = field(default_factory=dict)  # of the parts in the total, by name; 1 where none is said

    @property
    def scored(self) -> Bool[Tensor, " rows"]:
        """Rows that were scored: where no source could, the total is NaN, and the row is left out of everything."""
        return ~self.total.isnan()

    def with_dense(self, totals: Float[Tensor, " rows"], rollout: Rollout) -> Float[Tensor, " rows"]:
        """`totals` plus the token rewards of each row."""
        return totals if self.dense is None else totals + sum_by_row(self.dense, rollout.action_counts)


@dataclass(frozen=True)
class Experience:
    """A rollout with everything that an update needs, computed once and then fixed for all epochs.

    The `final_*` fields belong to the state after a row's last token. The critic is trained there only where
    `train_final` is true (score_position="after_eos", the habit of TRL).
    """

    rollout: Rollout
    prompt_numbers: Int[Tensor, " rows"]  # which prompt of the batch each row answers, counted over all processes
    sample_numbers: Int[Tensor, " rows"]  # which of the responses to that prompt it is
    scores: Float[Tensor, " rows"]  # after the rules for missing stop tokens
    old_logprobs: Float[Tensor, " actions"]  # of the anchor: what the engine recorded, or the trainer computed anew
    old_top: Float[Tensor, "actions k"] | None  # the anchor's log-probs of the recorded top tokens
    importance: Float[Tensor, " actions"]  # weight of each action's loss; 1 where the anchor is what was recorded
    ref_logprobs: Float[Tensor, " actions"] | None  # None where there is no reference
    values: Float[Tensor, " actions"]
    rewards: Float[Tensor, " actions"]
    raw_advantages: Float[Tensor, " actions"]  # as the rule has them, before any whitening
    advantages: Float[Tensor, " actions"]
    returns: Float[Tensor, " actions"]
    final_values: Float[Tensor, " rows"]
    final_returns: Float[Tensor, " rows"]
    train_final: Bool[Tensor, " rows"]
    trained: Bool[Tensor, " rows"]  # false for rows that are left out of training
    kl_coef: float  # weight of the KL penalty in this update
    explained_variance: float | None = None  # of the returns by the values, where it decides what advantages are
    fell_back: bool | None = None  # whether the mean of the batch has taken the place of the values in them
    value_weights: Float[Tensor, " actions"] | None = None  # of every state in the value loss; None where all are 1
    critic_leads: CriticLeads | None = None  # what the critic reads in place of each prompt, where that is more
    # How far the anchor lies from `old_logprobs` towards the current ones, 0 to below 1; None where it stays there.
    anchor_share: Float[Tensor, " actions"] | None = None
    good: Bool[Tensor, " rows"] | None = None  # rows whose likelihood is raised; None where none is
    teacher_logprobs: Float[Tensor, " actions"] | None = None  # None where there is no teacher
    members: MemberValues | None = None  # None where the critic's value is not the mean of several
    by_reward: RewardColumns | None = None  # None where the critic has one value for all rewards
    exact_kl: Float[Tensor, " actions"] | None = None  # over the whole vocabulary; None where the KL is an estimate

    def __len__(self) -> int:
        return len(self.rollout)

    @property
    def critic_rollout(self) -> Rollout:
        """The rows as the critic reads them."""
        return self.rollout if self.critic_leads is None else self.rollout.with_leads(self.critic_leads)

    def select(self, rows: Int[Tensor, " chosen"]) -> "Experience":
        """The experience of the given rows, in the given order."""
        actions = take_rows(self.rollout.action_counts, rows)
        return replace(
            self,
            rollout=self.rollout.select(rows),
            prompt_numbers=self.prompt_numbers[rows],
            sample_numbers=self.sample_numbers[rows],
            scores=self.scores[rows],
            old_logprobs=self.old_logprobs[actions],
            old_top=None if self.old_top is None else self.old_top[actions],
            importance=self.importance[actions],
            ref_logprobs=None if self.ref_logprobs is None else self.ref_logprobs[actions],
            values=self.values[actions],
            rewards=self.rewards[actions],
            raw_advantages=self.raw_advantages[actions],
            advantages=self.advantages[actions],
            returns=self.returns[actions],
            final_values=self.final_values[rows],
            final_returns=self.final_returns[rows],
            train_final=self.train_final[rows],
            trained=self.trained[rows],
            value_weights=None if self.value_weights is None else self.value_weights[actions],
            critic_leads=None if self.critic_leads is None else self.critic_leads.select(rows),
            anchor_share=None if self.anchor_share is None else self.anchor_share[actions],
            good=None if self.good is None else self.good[rows],
            teacher_logprobs=None if self.teacher_logprobs is None else self.teacher_logprobs[actions],
            members=None if self.members is None else self.members.select(rows, actions),
            by_reward=None if self.by_reward is None else self.by_reward.select(actions),
            exact_kl=None if self.exact_kl is None else self.exact_kl[actions],
        )

    def of_actions(self, row_values: Shaped[Tensor, " rows"]) -> Shaped[Tensor, " actions"]:
        """Every action gets the value of its row."""
        return row_values.repeat_interleave(self.rollout.action_counts, output_size=len(self.values))

    def split(self, max_tokens: int, max_rows: int) -> Iterator["Experience"]:
        """Micro-batches in row order: as many rows, as the critic reads them, as fit into both limits, at least one."""
        longest = self.critic_rollout
        lengths, shared = torch.stack([longest.row_lengths, longest.shared_prompts]).tolist()
        for rows in row_groups(lengths, max_tokens, max_rows, shared):
            yield self.select(torch.arange(rows.start, rows.stop, device=self.scores.device))
