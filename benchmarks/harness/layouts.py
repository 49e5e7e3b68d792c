"""The same gradients of policy and critic by different layouts of the same rows, from TRL's padding to packing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.harness.workload import LengthPlan, Workload, causal_model, scalar_model
from nearstep.algorithm.ragged import places_in_row
from nearstep.models.distribution import Sampling, sampling_logprobs
from nearstep.models.forward.forward import rollout_logprobs, rollout_values, row_states
from nearstep.models.roles import Critic, Policy, make_critic, make_policy
from nearstep.types import Rollout, row_groups

SAMPLING = Sampling(temperature=0.7)
VALUE_WEIGHT = 0.1


@dataclass(frozen=True)
class Row:
    """A prompt, its response, and what stands for advantages and returns."""

    prompt: list[int]
    response: list[int]
    advantages: Tensor
    returns: Tensor

    @property
    def length(self) -> int:
        """Prompt and response."""
        return len(self.prompt) + len(self.response)


def rows_of(workload: Workload) -> list[Row]:
    """The rows that a workload plans, their responses drawn at random."""
    draws = torch.Generator().manual_seed(3)
    rows = []
    for prompt, lengths in LengthPlan.of(workload).by_prompt.items():
        for length in lengths:
            response = torch.randint(0, workload.eos, (length,), generator=draws).tolist()
            signals = torch.randn(2, length, generator=draws).to(workload.device)
            rows.append(Row(list(prompt), response, *signals))
    return rows


@dataclass(frozen=True)
class Networks:
    """Policy and critic as transformers makes them."""

    policy: PreTrainedModel
    critic: PreTrainedModel

    @staticmethod
    def of(workload: Workload) -> "Networks":
        """Fresh ones, the same each time."""
        return Networks(causal_model(workload).eval(), scalar_model(workload, seed=3).eval())

    @cached_property
    def roles(self) -> tuple[Policy, Critic]:
        """The same as nearstep makes them ready; from then on they attend in its way."""
        return make_policy(self.policy), make_critic(self.critic)

    def gradients(self) -> Tensor:
        """All gradients in one line, in float32."""
        parameters = [*self.policy.parameters(), *self.critic.parameters()]
        return torch.cat([p.grad.flatten().float() for p in parameters if p.grad is not None])


@dataclass(frozen=True)
class Padded:
    """Prompts padded on the left, responses on the right."""

    ids: Tensor
    mask: Tensor
    prompt_width: int

    @staticmethod
    def of(rows: Sequence[Row], prompt_width: int, response_width: int, device: str) -> "Padded":
        """Rows below each other."""
        ids = torch.zeros(len(rows), prompt_width + response_width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for line, row in enumerate(rows):
            place = slice(prompt_width - len(row.prompt), prompt_width + len(row.response))
            ids[line, place], mask[line, place] = torch.tensor(row.prompt + row.response), 1
        return Padded(ids.to(device), mask.to(device), prompt_width)

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What a model is called with; positions begin behind the padding."""
        return {
            "input_ids": self.ids,
            "attention_mask": self.mask,
            "position_ids": (self.mask.cumsum(1) - self.mask).clamp(min=0),
        }

    @property
    def actions(self) -> Tensor:
        """Where in the response part there is a token, [rows, response_width]."""
        return self.mask[:, self.prompt_width :].bool()

    def before_actions(self, per_token: Tensor) -> Tensor:
        """The places that decide on the response part."""
        return per_token[:, self.prompt_width - 1 : -1]


def backward(rows: Sequence[Row], count: int, logprobs: Tensor, values: Tensor) -> None:
    """The gradient of losses that stand for PPO's, divided by the actions of the whole batch."""
    advantages = torch.cat([row.advantages for row in rows])
    returns = torch.cat([row.returns for row in rows])
    loss = -(advantages * logprobs).sum() + VALUE_WEIGHT / 2 * (values.float() - returns).square().sum()
    (loss / count).backward()


def padded(networks: Networks, workload: Workload, rows: list[Row], *, all_logits: bool, trimmed: bool) -> None:
    """Micro-batches of TRL's layout; `trimmed` sorts the rows by length and cuts each micro-batch to its own width."""
    count, chosen = sum(len(row.response) for row in rows), rows
    if trimmed:
        chosen = sorted(rows, key=lambda row: row.length)
    for start in range(0, len(rows), workload.micro_rows):
        micro = chosen[start : start + workload.micro_rows]
        measured = micro if trimmed else rows
        widths = max(len(row.prompt) for row in measured), max(len(row.response) for row in measured)
        batch = Padded.of(micro, *widths, workload.device)
        if all_logits:
            output = networks.policy(**batch.inputs, use_cache=False, output_hidden_states=True)
            logits = batch.before_actions(output.logits)
        else:
            states = networks.policy.base_model(**batch.inputs, use_cache=False).last_hidden_state
            logits = networks.policy.get_output_embeddings()(batch.before_actions(states))
        logits = logits / SAMPLING.temperature
        logprobs = logits.float().log_softmax(-1).gather(-1, batch.ids[:, batch.prompt_width :, None])[..., 0]
        with torch.no_grad():  # TRL's entropy, for its metrics
            (logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)).mean()
        values = networks.critic.score(networks.critic.base_model(**batch.inputs, use_cache=False).last_hidden_state)
        backward(micro, count, logprobs[batch.actions], batch.before_actions(values[..., 0])[batch.actions])


def micro_batches(rows: list[Row], workload: Workload, budget: int | None) -> Iterator[list[Row]]:
    """As many rows as TRL takes, or as fit into a budget of tokens."""
    limits = (10**9, workload.micro_rows) if budget is None else (budget, len(rows))
    for group in row_groups([row.length for row in rows], *limits):
        yield [rows[number] for number in group]


def dense_mask(networks: Networks, workload: Workload, rows: list[Row]) -> None:
    """Packed rows, and the block mask of [tokens × tokens] that transformers makes of their positions."""
    count = sum(len(row.response) for row in rows)
    for micro in micro_batches(rows, workload, None):
        rollout = rollout_of(micro, workload)
        positions = places_in_row(rollout.row_lengths)[None]
        inputs = {"input_ids": rollout.tokens[None], "position_ids": positions, "use_cache": False}
        before = rollout.action_positions - 1
        states = networks.policy.base_model(**inputs).last_hidden_state[0, before]
        values = networks.critic.score(networks.critic.base_model(**inputs).last_hidden_state[0, before])[:, 0]
        backward(micro, count, chosen_logprobs(networks.policy.get_output_embeddings()(states), rollout), values)


def chosen_logprobs(logits: Tensor, rollout: Rollout) -> Tensor:
    """Log-probs of the actions, all logits held."""
    return sampling_logprobs(logits, SAMPLING).gather(-1, rollout.actions[:, None])[:, 0]


def rollout_of(rows: Sequence[Row], workload: Workload) -> Rollout:
    """Rows back to back."""
    tokens = [token for row in rows for token in row.prompt + row.response]
    is_action = [part for row in rows for part in [False] * len(row.prompt) + [True] * len(row.response)]
    device = workload.device
    return Rollout(
        tokens=torch.tensor(tokens, device=device),
        is_action=torch.tensor(is_action, device=device),
        row_lengths=torch.tensor([row.length for row in rows], device=device),
        logprobs=torch.zeros(sum(is_action), device=device),
        finished=torch.ones(len(rows), dtype=torch.bool, device=device),
        policy_version=torch.zeros(len(rows), dtype=torch.long, device=device),
    )


def per_row_attention(networks: Networks, workload: Workload, rows: list[Row]) -> None:
    """Packed rows, each attending to itself alone; still all logits of a micro-batch at once."""
    policy, critic = networks.roles
    count = sum(len(row.response) for row in rows)
    for micro in micro_batches(rows, workload, None):
        rollout = rollout_of(micro, workload)
        states = row_states(policy, rollout.tokens, rollout.row_lengths)[rollout.action_positions - 1]
        logprobs = chosen_logprobs(policy.head.logits(states), rollout)
        backward(micro, count, logprobs, rollout_values(critic, rollout).before_actions)


def fused_head(networks: Networks, workload: Workload, rows: list[Row], budget: int | None = None) -> None:
    """nearstep's forward passes as they are."""
    policy, critic = networks.roles
    count = sum(len(row.response) for row in rows)
    for micro in micro_batches(rows, workload, budget):
        rollout = rollout_of(micro, workload)
        logprobs = rollout_logprobs(policy, rollout, SAMPLING).sampled
        backward(micro, count, logprobs, rollout_values(critic, rollout).before_actions)


Layout = Callable[[Networks, Workload, list[Row]], None]

# From TRL's layout upwards; each adds one thing to the one before.
LADDER: Mapping[str, Layout] = {
    "0 TRL's layout": lambda n, w, r: padded(n, w, r, all_logits=True, trimmed=False),
    "1 logits only at the response": lambda n, w, r: padded(n, w, r, all_logits=False, trimmed=False),
    "2 rows sorted, micro-batches trimmed": lambda n, w, r: padded(n, w, r, all_logits=False, trimmed=True),
    "3 packed rows, dense block mask": dense_mask,
    "4 attention row by row": per_row_attention,
    "5 head in chunks, shared prompts once": fused_head,
    "5b budget of 1024 tokens": lambda n, w, r: fused_head(n, w, r, 1024),
    "5c budget of 512 tokens": lambda n, w, r: fused_head(n, w, r, 512),
}
