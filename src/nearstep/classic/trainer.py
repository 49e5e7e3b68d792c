"""PPO by calls of your own, as in TRL up to 0.11: `generate`, scores from anywhere, `step(queries, responses, …)`."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nearstep.assembly.inputs import RunInputs
from nearstep.assembly.run import assemble
from nearstep.classic.accelerator import Accelerator
from nearstep.classic.arguments import processes, refuse, scores_are_given, stored_head
from nearstep.classic.batches import Batches, dataset_batches
from nearstep.classic.config import ClassicPPOConfig
from nearstep.classic.generation import generation_settings
from nearstep.classic.models import ValueHeadModel, policy_in
from nearstep.classic.rows import checked_masks, checked_rows, checked_scores, rollout_of_rows, rows_as_prompts
from nearstep.classic.stats import step_stats
from nearstep.common.errors import ConfigError
from nearstep.common.given import given_settings
from nearstep.common.random_streams import stream_seed
from nearstep.metrics import Metrics
from nearstep.models.forward.exact_kl import rollout_exact_kl
from nearstep.models.roles import Critic, Policy
from nearstep.models.trl_heads import TrlHead, save_trl_head
from nearstep.rollout.engine import GenerationSettings, load, play
from nearstep.training.experience import describe, make_experience
from nearstep.training.frozen_passes import PassLimits, logprobs_under
from nearstep.training.optimizers import LearningRates
from nearstep.training.recipe import Recipe
from nearstep.training.state import State
from nearstep.training.update import update
from nearstep.types import Experience, Prompts, Rollout, Scores

INTRODUCTION = "Prompts, scores and the loop are those of the script (nearstep.classic)."


@dataclass(frozen=True)
class KLWeight:
    """The weight of the KL penalty in the next step."""

    value: float


@dataclass(frozen=True)
class LastStep:
    """What `step` leaves for `log_stats`."""

    prompts: Prompts
    experience: Experience
    scores: Scores
    metrics: Metrics
    rates: LearningRates


class ClassicPPOTrainer:
    """Samples and improves when it is told to; the loop, the rewards and the end are yours.

    The arithmetic is that of the other trainer, by the same functions: log-probs, values and reference in one place,
    the KL penalty in the reward, GAE, whitening, the clipped losses, one optimizer for policy and value head. What
    `step` returns has TRL's keys. Nothing is written but by `log_stats` and `save_pretrained`.
    """

    def __init__(
        self,
        config: ClassicPPOConfig | None = None,
        model: ValueHeadModel | nn.Module | str | Path | None = None,
        ref_model: ValueHeadModel | nn.Module | str | Path | None = None,
        tokenizer: Any = None,
        dataset: Any = None,
        optimizer: object = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        num_shared_layers: int | None = None,
        lr_scheduler: object = None,
        training_data_collator: object = None,
    ) -> None:
        """`ref_model` is the policy as it starts if not given, its adapters off where it has some. `dataset` is what
        `dataloader` draws batches from, collated by `data_collator`.

        Raises ConfigError for an optimizer of yours: learning_rate says what ours does; and for what is not here.
        """
        refuse(optimizer=optimizer, lr_scheduler=lr_scheduler, num_shared_layers=num_shared_layers,
               training_data_collator=training_data_collator)  # fmt: skip
        self.config = given_settings(ClassicPPOConfig() if config is None else config, ClassicPPOConfig, "PPOTrainer")
        self.dataset, self.data_collator, self.tokenizer = dataset, data_collator, tokenizer
        inputs = RunInputs(
            tokenizer=tokenizer,
            model=policy_in(model),
            ref_model=policy_in(ref_model),
            trunk_head=stored_head(model, self.config.model_name),
            train_dataset=[{"prompt": "a"}],  # prompts are given to generate and step
            reward_funcs=[scores_are_given],
        )
        self.recipe: Recipe = assemble(self.config.ours(processes()), inputs)
        self.state = State()
        self.model = model if isinstance(model, ValueHeadModel) else ValueHeadModel(self.recipe.models.policy.model)
        self._generated = 0
        self._last: LastStep | None = None
        self._is_reporting = False

    @property
    def accelerator(self) -> Accelerator:
        """Device and number of this process."""
        backend = self.recipe.backend
        return Accelerator(backend.device, backend.rank, backend.world_size)

    @property
    def current_device(self) -> torch.device:
        """Where this process computes."""
        return self.recipe.backend.device

    @property
    def kl_ctl(self) -> KLWeight:
        """The weight of the KL penalty in the next step."""
        coef = self.state.kl_coef
        return KLWeight(self.recipe.kl_controller.first() if coef is None else coef)

    @property
    def ref_model(self) -> nn.Module | None:
        """The reference; the policy itself where its adapters are switched off for it."""
        reference = self.recipe.models.reference
        return None if reference is None else reference.policy.model

    @property
    def dataloader(self) -> Batches:
        """The data set in batches of `batch_size`, as often as it is gone over, in an order that seed and steps so far
        decide; the rest that fills no batch is left out, as in TRL. Each process draws rows of its own."""
        backend = self.recipe.backend
        return dataset_batches(
            self.dataset, self.config, self.data_collator, lambda: self.state.update, backend.rank, backend.world_size
        )

    def generate(
        self,
        query_tensor: Tensor | Sequence[Tensor],
        length_sampler: Callable[[], int] | None = None,
        return_prompt: bool = True,
        generate_ref_response: bool = False,
        **generation_kwargs: Any,
    ) -> Any:
        """Responses to one query (a tensor [1, tokens]) or to several (a list of tensors), by the engine of nearstep.

        `generation_kwargs` are transformers' (see docs/migrations/trl_classic.md): `max_new_tokens` or `length_sampler`
        is needed. With `generate_ref_response` the reference's responses come as a second value.
        """
        single = isinstance(query_tensor, Tensor)
        queries = checked_rows("query_tensor", [query_tensor] if single else query_tensor)
        if length_sampler is not None:
            generation_kwargs = {**generation_kwargs, "max_new_tokens": length_sampler()}
        settings = generation_settings(self.recipe.generation, generation_kwargs)
        prompts = self._prompts(queries)
        found = [self._play(self.recipe.models.policy, prompts, settings, return_prompt)]
        reference = self.recipe.models.reference
        if generate_ref_response:
            if reference is None:
                raise ConfigError("generate_ref_response: there is no reference")
            with reference.active() as policy:
                found.append(self._play(policy, prompts, settings, return_prompt))
        shaped = [responses[0][None] if single else responses for responses in found]
        return tuple(shaped) if generate_ref_response else shaped[0]

    def step(
        self,
        queries: Any,
        responses: Any,
        scores: Any,
        response_masks: Any = None,
    ) -> dict[str, Any]:
        """Improve the policy on `batch_size` rows: lists of tensors with the token ids of queries and of responses, and
        of a number for each row.

        `response_masks` are tensors, 1 where the policy chose the token. Returns TRL's statistics. Of several processes
        each gives its own rows. Raises DataError naming the row that cannot be used.
        """
        began = time.perf_counter()
        size, r, state = self.config.batch_size, self.recipe, self.state
        asked = checked_rows("queries", queries, size)
        said = checked_rows("responses", responses, size)
        totals = checked_scores(scores, size).to(r.backend.device)
        rollout = self._rollout(asked, said, checked_masks(response_masks, said))
        given = Scores(totals, {"score": totals})
        state.begin_update()
        state.update_score_moments(given, r.config, r.backend)
        experience = make_experience(rollout, given, r, state, exact_kl=self._exact_kl(rollout))
        forward = time.perf_counter()
        metrics, steps = update(experience, r.schedule.phases(state.update), r)
        rates = r.learners.end_update()
        state.end_update(r.batch, steps, r.config.max_broken_updates)
        state.update_kl_coef(experience, r.kl_controller, r.config.kl_estimator, r.batch, r.backend)
        metrics = describe(experience, given, r) + metrics
        self._last = LastStep(self._prompts(asked), experience, given, metrics, rates)
        times = {
            "time/ppo/total": time.perf_counter() - began,
            "time/ppo/forward_pass": forward - began,
            "time/ppo/optimize_step": time.perf_counter() - forward,
        }
        numbers = sum(r.backend.gather(metrics.cpu()), start=Metrics()).numbers()
        stats = step_stats(experience, numbers, self.config.vf_coef, r.config.kl_estimator)
        return {**stats, "ppo/learning_rate": rates.policy, **times}

    def log_stats(
        self,
        stats: Mapping[str, Any],
        batch: Mapping[str, Any] | None = None,
        rewards: Sequence[Any] = (),
        columns_to_log: Sequence[str] = (),
    ) -> None:
        """Report the last step: metrics.jsonl and rollouts.jsonl in `output_dir`, the screen, the tracker.

        They have the names of docs/metrics.md, so that `nearstep report`, `watch` and `doctor` read them. `stats` and
        the rest are what TRL's method took; the episodes are known. Raises ConfigError before the first step.
        """
        if self._last is None:
            raise ConfigError("log_stats: call step first")
        r, last = self.recipe, self._last
        if not self._is_reporting:
            r.report.__enter__()
            r.report.begin(INTRODUCTION, replace(self.state, update=self.state.update - 1))
            self._is_reporting = True
        r.report.begin_update()
        r.report.step(self.state, last.prompts, last.experience, last.scores, last.metrics, last.rates)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """The policy as a model folder that plain `from_pretrained` opens, tokenizer beside it, and in `value_head` the
        head, which `AutoModelForCausalLMWithValueHead.from_pretrained` takes up again."""
        self.recipe.checkpoint.export_policy(Path(save_directory), self.state)
        critic = self.recipe.models.critic
        if self.accelerator.is_main_process and isinstance(critic, Critic) and isinstance(critic.head, nn.Linear):
            save_trl_head(TrlHead(critic.head.weight.data, critic.head.bias), save_directory)

    def close(self) -> None:
        """End reports and trackers."""
        if self._is_reporting:
            self.recipe.report.end()
            self.recipe.report.__exit__(None, None, None)
            self._is_reporting = False
        self.recipe.engine.close()

    def _exact_kl(self, rollout: Rollout) -> Tensor | None:
        """The KL over the whole vocabulary, for kl_penalty = full; None for the others."""
        r = self.recipe
        if self.config.kl_penalty != "full" or r.models.reference is None:
            return None
        parts = PassLimits.of(r).parts(rollout)
        return torch.cat([rollout_exact_kl(r.models.policy, r.models.reference, part, r.sampling) for part in parts])

    def _prompts(self, queries: Sequence[Sequence[int]]) -> Prompts:
        decode = self.recipe.tokenizer.decode
        return rows_as_prompts(queries, [decode(list(ids)) for ids in queries], self._generated)

    def _play(
        self, policy: Policy, prompts: Prompts, settings: GenerationSettings, return_prompt: bool
    ) -> list[Tensor]:
        """What a policy answers, as tensors; the next call draws other random numbers."""
        r = self.recipe
        self._generated += len(prompts)
        of_call = replace(settings, seed=stream_seed(r.config.seed, "generate", self._generated, r.backend.rank))
        load(r.engine, policy, self.state.update)
        rollout = play(r.engine, prompts, of_call, version=self.state.update)
        said = zip(prompts.ids, rollout.completion_ids(), strict=True)
        return [
            torch.tensor([*ids, *answer] if return_prompt else answer, device=rollout.tokens.device)
            for ids, answer in said
        ]

    @torch.no_grad()
    def _rollout(
        self, queries: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], masks: Sequence[Sequence[bool]]
    ) -> Rollout:
        """The rows with the log-probs that the policy gives them now."""
        r = self.recipe
        rollout = rollout_of_rows(
            queries, responses, masks, r.generation.stop_ids, self.state.update + 1, r.backend.device
        )
        logprobs = logprobs_under(r.models.policy, rollout, r.sampling, PassLimits.of(r))
        if not logprobs.isfinite().all():
            warnings.warn("step: the policy gives log-probs that are not finite", stacklevel=3)
        return replace(rollout, logprobs=logprobs)
