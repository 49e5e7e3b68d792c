"""PPO a second time, in plain steps: rows one by one through transformers' own forward pass, textbook losses, SGD.

Nothing of nearstep is used but settings and what a run has recorded of its episodes, so a run and this must agree.
One minibatch per epoch, one process, no adapters, no dense rewards.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nearstep import PPOConfig
from tests.training.textbook import aggregate, chosen, gradient_of, ids_of, kl, mean, step


@dataclass
class Row:
    """An episode of rollouts.jsonl, and what the models say of it when it has been sampled."""

    record: dict
    recorded: Tensor  # log-prob of every action, as the engine has it
    old: Tensor  # the same, against which ratios are taken
    kl: Tensor  # of every action, against the reference, by kl_estimator
    ref: Tensor
    values: Tensor  # before every action, and after the last token
    score: float = 0.0
    rewards: Tensor = field(default_factory=lambda: torch.zeros(0))
    final_reward: float | None = None  # paid one step after the stop token
    advantages: Tensor = field(default_factory=lambda: torch.zeros(0))
    targets: Tensor = field(default_factory=lambda: torch.zeros(0))

    def __len__(self) -> int:
        return len(self.record["completion_ids"])

    @property
    def scored(self) -> bool:
        return self.record["total_score"] is not None

    @property
    def finished(self) -> bool:
        return self.record["finished"]


@dataclass
class PlainPPO:
    """`policy` and `reference` are causal models, `critic` a function from token ids [1, n] to values [n]."""

    config: PPOConfig
    policy: torch.nn.Module
    reference: torch.nn.Module
    critic: Callable[[Tensor], Tensor] | None
    critic_weights: list[Tensor]
    drift: Callable[[Tensor], Tensor] = torch.zeros_like  # by how much the engine's log-probs of tokens are off
    kl_coef: float = 0.0
    seen: list = field(default_factory=list)  # every score so far
    kl_by_epoch: list = field(default_factory=list)  # per update, what approxkl_avg was in each of its epochs

    def distribution(self, model, record) -> Tensor:
        """Log-probs [actions, vocabulary] of what is sampled at every action."""
        logits = model(input_ids=ids_of(record), use_cache=False).logits[0, len(record["prompt_ids"]) - 1 : -1]
        return (logits / self.config.temperature).log_softmax(-1)

    def logprobs(self, model, record) -> Tensor:
        return chosen(self.distribution(model, record), record)

    def values(self, record) -> Tensor:
        if self.critic is None:
            return torch.zeros(len(record["completion_ids"]) + 1, dtype=torch.float64)
        return self.critic(ids_of(record))[len(record["prompt_ids"]) - 1 :]

    def update(self, number: int, records: list[dict]) -> dict[str, float]:
        """One update; returns some of its metrics."""
        c = self.config
        with torch.no_grad():
            rows = [self.annotate(record) for record in records]
        self.seen += [row.record["total_score"] for row in rows if row.scored]
        coefficient = self.kl_coef
        for row in rows:
            row.score = self.shape(row)
            self.pay(row, coefficient)
        if c.whiten_rewards:
            whiten_rewards(rows)
        self.credit(rows, warm_up=number <= c.vf_warmup_updates)
        learned = [row for row in rows if row.scored and (row.finished or not c.mask_truncated_completions)]
        metrics = {
            "objective/kl": mean([row.kl.sum() for row in rows]),
            "objective/scores": mean([row.score for row in rows if row.scored]),
            "objective/entropy": mean([-row.recorded.sum() for row in rows]),
            "objective/non_score_reward": -coefficient * mean([row.kl.sum() for row in rows]),
        }
        metrics |= self.improve(number, learned, coefficient)
        if c.kl_target is not None:
            error = min(max(metrics["objective/kl"] / c.kl_target - 1, -0.2), 0.2)
            self.kl_coef *= 1 + error * len(rows) / c.kl_horizon
        return metrics

    def annotate(self, record) -> Row:
        now, ref = self.logprobs(self.policy, record), self.logprobs(self.reference, record)
        recorded = now + self.drift(torch.tensor(record["completion_ids"], dtype=torch.float64))
        old = now if self.config.anchor == "recomputed" else recorded
        return Row(record, recorded, old, kl(recorded, ref, self.config.kl_estimator), ref, self.values(record))

    def shape(self, row: Row) -> float:
        """The score after its rules: moments first, then the limit, then what a missing stop token costs."""
        c, score = self.config, row.record["total_score"]
        score = 0.0 if score is None else score
        if c.normalize_scores != "none":
            seen = torch.tensor(self.seen, dtype=torch.float64)
            moved = score - float(seen.mean()) if c.normalize_scores == "shift_and_scale" else score
            score = moved / float(seen.std(correction=0))
        if c.reward_clip is not None:
            score = max(-c.reward_clip, min(c.reward_clip, score))
        if not row.finished and c.non_eos_penalty:
            score = c.penalty_reward_value
        elif not row.finished and c.missing_eos_penalty is not None:
            score -= c.missing_eos_penalty
        return score

    def pay(self, row: Row, coefficient: float) -> None:
        c = self.config
        row.rewards = -coefficient * row.kl if c.kl_in == "reward" else torch.zeros_like(row.kl)
        if c.score_position == "after_eos" and row.finished and len(row) < c.response_length and self.critic:
            row.final_reward = row.score
        else:
            row.rewards[-1] += row.score

    def credit(self, rows: list[Row], *, warm_up: bool) -> None:
        """Advantages and targets of every row, then whitening."""
        c = self.config
        for row in rows:
            if c.advantage == "gae":
                lam = c.lam if c.lam_length_alpha is None else max(0.0, 1 - 1 / (c.lam_length_alpha * len(row)))
                row.advantages = self.walk(row, lam)
                own = c.lam if c.lam_critic is None else c.lam_critic
                row.targets = self.walk(row, c.vf_warmup_lam if warm_up else own) + row.values[:-1]
        for start in range(0, len(rows), c.num_generations) if c.advantage != "gae" else ():
            group = rows[start : start + c.num_generations]
            for row in group:
                row.advantages = torch.full_like(row.old, against_group(row, group, c.advantage))
                row.targets = row.values[:-1]
        if c.advantage == "gae" and c.whiten_advantages is not False:
            together = torch.cat([row.advantages for row in rows if row.scored])
            for row in rows:
                row.advantages = (row.advantages - together.mean()) / (together.var() + 1e-8).sqrt()

    def walk(self, row: Row, lam: float) -> Tensor:
        """GAE from the last action to the first, with every value spelled out."""
        c, ends = self.config, len(row)
        after = row.values[ends].item() if row.final_reward is not None else 0.0
        if c.bootstrap_truncated and not row.finished:
            after = row.values[ends].item()
        beyond = 0.0 if row.final_reward is None else row.final_reward - after
        values = [*row.values[:-1].tolist(), after]
        advantages = [0.0] * ends + [beyond]
        for t in reversed(range(ends)):
            delta = float(row.rewards[t]) + c.gamma * values[t + 1] - values[t]
            advantages[t] = delta + c.gamma * lam * advantages[t + 1]
        return torch.tensor(advantages[:-1], dtype=torch.float64)

    def improve(self, number: int, rows: list[Row], coefficient: float) -> dict[str, float]:
        """The epochs of an update on its rows."""
        c, warm_up = self.config, number <= self.config.vf_warmup_updates
        measured: dict[str, list[Tensor]] = {}
        far: list[float] = []
        for _ in range(c.num_ppo_epochs):
            loss, tokens = self.policy_loss(rows, coefficient)
            of_critic = self.value_loss(rows)
            weights = [] if warm_up else list(self.policy.parameters())
            total = of_critic.mean() if warm_up else loss + c.vf_coef * of_critic.mean()
            step(total, weights + self.critic_weights, c.learning_rate)
            far.append(mean(tokens["policy/approxkl_avg"]))
            shown = {} if self.critic is None else {"loss/value_avg": of_critic.detach()}
            for name, values in (shown if warm_up else tokens | shown).items():
                measured.setdefault(name, []).append(values)
            if not warm_up and c.early_stop_kl is not None and far[-1] > 1.5 * c.early_stop_kl:
                break
        self.kl_by_epoch.append(far)
        together = {name: torch.cat(values) for name, values in measured.items()}
        return {name: mean(values) for name, values in together.items() if len(values)}

    def policy_loss(self, rows: list[Row], coefficient: float) -> tuple[Tensor, dict[str, Tensor]]:
        c = self.config
        of_rows, measured = [], []
        for row in rows:
            whole = self.distribution(self.policy, row.record)
            now = chosen(whole, row.record)
            entropy = -(whole.exp() * whole).sum(-1)
            loss, tokens = self.token_losses(now, row)
            if c.kl_in == "loss":
                loss = loss + coefficient * kl(now, row.ref, c.kl_estimator)
            of_rows.append(loss - c.entropy_coef * entropy)
            measured.append(tokens | {"policy/entropy_avg": entropy.detach()})
        joined = {name: torch.cat([tokens[name] for tokens in measured]) for name in measured[0]}
        return aggregate(of_rows, c.loss_aggregation, c.response_length), joined

    def token_losses(self, now: Tensor, row: Row) -> tuple[Tensor, dict[str, Tensor]]:
        c, advantages = self.config, row.advantages
        log_ratio = now - row.old
        if c.ratio_level == "row":  # GSPO-token: the row's ratio, with the gradient of each token
            log_ratio = log_ratio.mean().detach() + now - now.detach()
        ratio = log_ratio.exp()
        if c.trust_region == "clip":
            high = c.cliprange if c.cliprange_high is None else c.cliprange_high
            clipped = ratio.clamp(1 - c.cliprange, 1 + high)
            loss = -torch.minimum(ratio * advantages, clipped * advantages)
            if c.dual_clip is not None:
                loss = torch.where(advantages < 0, torch.minimum(loss, -c.dual_clip * advantages), loss)
            shown, outside = loss, gradient_of(loss, now) == 0
        else:  # binary_tv, of probabilities whose quotient is the ratio
            moved = (now.detach().exp() - (now - log_ratio).detach().exp()).abs()
            outside = torch.where(advantages > 0, (ratio > 1) & (moved > c.divergence_high),
                                  (ratio < 1) & (moved > c.divergence_low))  # fmt: skip
            capped = ratio.detach().clamp(max=20.0 if c.ratio_cap is None else c.ratio_cap)
            shown = -advantages * capped
            loss = torch.where(outside, shown, -advantages * capped * (1 + now - now.detach()))
        importance = self.importance(row)
        return importance * loss, {
            "loss/policy_avg": (importance * shown).detach(), "val/ratio": ratio.detach(),
            "policy/approxkl_avg": ((now - row.old) ** 2 / 2).detach(), "policy/clipfrac_avg": outside.double(),
            "policy/masked_positive": outside[advantages > 0].double(),
            "policy/masked_negative": outside[advantages < 0].double(),
        }  # fmt: skip

    def importance(self, row: Row) -> Tensor:
        """Trainer over engine probability within its limits; 1 where ratios are taken against what was recorded."""
        c, weight = self.config, (row.old - row.recorded).exp()
        low = 0.0 if c.correction_low is None else c.correction_low
        high = math.inf if c.correction_high is None else c.correction_high
        if low == 0.0 and high == math.inf:
            return torch.ones_like(weight)
        if c.correction_action == "mask":
            return torch.where((weight >= low) & (weight <= high), weight, 0.0)
        return weight.clamp(low, high)

    def value_loss(self, rows: list[Row]) -> Tensor:
        """Of the states before actions, and after the stop token where a row is paid there."""
        losses = []
        for row in rows if self.critic else ():
            ends = len(row) + (row.final_reward is not None)
            extra = [] if row.final_reward is None else [row.final_reward]
            target = torch.cat([row.targets, torch.tensor(extra, dtype=torch.float64)])
            now, old = self.values(row.record)[:ends], row.values[:ends]
            clipped = old + (now - old).clamp(-self.config.cliprange_value, self.config.cliprange_value)
            losses.append(torch.maximum((now - target) ** 2, (clipped - target) ** 2) / 2)
        return torch.cat(losses) if losses else torch.zeros(1)


def against_group(row: Row, group: list[Row], rule: str) -> float:
    """A row's total against the scored rows of its prompt; 0 for one without a score, or without another."""
    totals = [float(other.rewards.sum()) for other in group if other.scored]
    own, count = float(row.rewards.sum()), len(totals)
    if not row.scored or count < 2:
        return 0.0
    gap = own - sum(totals) / count
    if rule == "group_mean":
        return gap
    if rule == "leave_one_out":
        return own - (sum(totals) - own) / (count - 1)
    return gap / (math.sqrt(sum((t - sum(totals) / count) ** 2 for t in totals) / (count - 1)) + 1e-4)


def whiten_rewards(rows: list[Row]) -> None:
    """Divide what is paid by its standard deviation over the scored rows; the mean stays."""
    paid = [*(row.rewards for row in rows if row.scored),
            torch.tensor([row.final_reward for row in rows if row.scored and row.final_reward is not None],
                         dtype=torch.float64)]  # fmt: skip
    together = torch.cat(paid)
    mean_paid, std = together.mean(), (together.var() + 1e-8).sqrt()

    def scaled(values):
        return (values - mean_paid) / std + mean_paid

    for row in rows:
        row.rewards = scaled(row.rewards)
        row.final_reward = None if row.final_reward is None else float(scaled(row.final_reward))
