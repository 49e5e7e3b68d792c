"""What makes a run ill: rewards, engines, models and an advantage that are wrong on purpose, in the demo's world."""

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from nearstep import PPOTrainer
from nearstep.algorithm.advantage_rules import GAE, Credit, CreditInputs
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.models.roles import Policy
from nearstep.rollout.engine import GenerationSettings, RowEnded
from nearstep.rollout.transformers_engine import TransformersEngine
from nearstep.types import Prompts, Rollout

HOT = 1.5
Reward = Callable[..., Sequence[float]]


@dataclass(frozen=True)
class World:
    """The demo's folder."""

    folder: Path

    def policy(self) -> PreTrainedModel:
        """The supervised start."""
        return AutoModelForCausalLM.from_pretrained(self.folder / "sft")

    def random_policy(self) -> PreTrainedModel:
        """A policy of that shape that has learned nothing."""
        torch.manual_seed(5)
        return AutoModelForCausalLM.from_config(self.policy().config)

    def noisy_policy(self, share: float) -> PreTrainedModel:
        """The start with noise on its weights."""
        torch.manual_seed(3)
        model = self.policy()
        with torch.no_grad():
            for weights in model.parameters():
                if weights.dim() > 1:
                    weights.add_(share * weights.std() * torch.randn_like(weights))
        return model

    def endless_policy(self) -> PreTrainedModel:
        """The start, with no probability for the token that ends an answer."""
        model = self.policy()
        eos = torch.tensor([model.config.eos_token_id])
        model.lm_head.register_forward_hook(lambda head, inputs, logits: logits.index_fill(-1, eos, -30.0))
        return model

    def reward(self, *, sign: int = 1) -> PreTrainedModel:
        """The reward model, its head times `sign`."""
        model = AutoModelForSequenceClassification.from_pretrained(self.folder / "reward")
        with torch.no_grad():
            model.score.weight.mul_(sign)
        return model

    def scored_by_model(self, *, sign: int) -> Reward:
        """A function of texts that asks the reward model itself."""
        model, tokenizer = self.reward(sign=sign).eval(), AutoTokenizer.from_pretrained(self.folder / "sft")

        @torch.no_grad()
        def judged(prompts: Sequence[str], completions: Sequence[str], **columns: object) -> Sequence[float]:
            pairs = zip(prompts, completions, strict=True)
            rows = [
                tokenizer(prompt + completion)["input_ids"] + [tokenizer.eos_token_id] for prompt, completion in pairs
            ]
            return [float(model(torch.tensor([row])).logits[0, 0]) for row in rows]

        return judged


def words(completions: Sequence[str], **columns: object) -> Sequence[float]:
    """The number of words, in tens."""
    return [len(text.split()) / 10 for text in completions]


def anger(completions: Sequence[str], **columns: object) -> Sequence[float]:
    """How often one word is said."""
    return [float(text.count("angry")) for text in completions]


def mine(completions: Sequence[str], **columns: object) -> Sequence[float]:
    """How often a common word is said."""
    return [float(len(re.findall(r"\bmy\b", text))) for text in completions]


def facts(prompts: Sequence[str], completions: Sequence[str], **columns: object) -> Sequence[float]:
    """Names and numbers of the post that are said, less those that it does not have."""
    pairs = [
        [set(re.findall(r"[A-Z]\w+|\d+", text)) for text in (prompt.partition("POST:")[2], completion)]
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    return [float(len(said & there) - len(said - there)) for there, said in pairs]


def no_facts(prompts: Sequence[str], completions: Sequence[str], **columns: object) -> Sequence[float]:
    """The opposite."""
    return [-value for value in facts(prompts, completions)]


def one(completions: Sequence[str], **columns: object) -> Sequence[float]:
    """The same for everything."""
    return [1.0] * len(completions)


@dataclass(frozen=True)
class Turned:
    """GAE with the sign of the advantages turned."""

    needs_critic: bool = True
    uses_token_rewards: bool = True

    def credit(self, inputs: CreditInputs) -> Credit:
        """What is good is unlearned."""
        credit = GAE().credit(inputs)
        return Credit(-credit.advantages, credit.targets)


class HotEngine(TransformersEngine):
    """Samples at a temperature of its own, and records what it sampled from."""

    def generate(self, prompts: Prompts, settings: GenerationSettings, row_ended: RowEnded | None = None) -> Rollout:
        hot = replace(settings, sampling=replace(settings.sampling, temperature=HOT))
        return super().generate(prompts, hot, row_ended)


class SilentHotEngine(HotEngine):
    """Records the log-probs that were asked for, not those that it sampled by."""

    policy: Policy

    def load(self, policy: Policy, version: int) -> None:
        self.policy = policy
        super().load(policy, version)

    @torch.no_grad()
    def generate(self, prompts: Prompts, settings: GenerationSettings, row_ended: RowEnded | None = None) -> Rollout:
        rollout = super().generate(prompts, settings, None)
        return replace(rollout, logprobs=rollout_logprobs(self.policy, rollout, settings.sampling).sampled)


class StaleEngine(TransformersEngine):
    """Takes over the weights once, and never again."""

    loaded = False

    def load(self, policy: Policy, version: int) -> None:
        if not self.loaded:
            self.loaded = True
            super().load(copy.deepcopy(policy), version)


def drop_out(trainer: PPOTrainer) -> None:
    """Dropout that asks no mode."""

    def dropped(layer: object, inputs: object, output: Any) -> Any:
        return torch.nn.functional.dropout(output, 0.1, training=True)

    for layer in trainer.model.model.layers:
        layer.register_forward_hook(dropped)
