"""How a run evaluates its policy: on which prompts, how responses are made, who scores them, what is remembered."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from nearstep.assembly.checked_inputs import CheckedInputs
from nearstep.assembly.evaluation_data import judge_settings
from nearstep.common.random_streams import stream_seed
from nearstep.config.evaluating import BEST_METRIC
from nearstep.config.ppo import PPOConfig
from nearstep.data.mix import PromptMix
from nearstep.data.run_prompts import RunPrompts
from nearstep.evaluation.evaluator import SAMPLE_ROWS, EvaluationSet, Evaluator
from nearstep.models.distribution import Sampling
from nearstep.models.dtypes import DTYPES
from nearstep.models.roles import Models
from nearstep.reports.run_report import Report
from nearstep.reports.stop_rules import StopRules
from nearstep.rewards.build import RewardModelOptions, load_sources, on_error
from nearstep.rewards.combine import Rewards
from nearstep.rollout.engine import GenerationSettings, RolloutEngine
from nearstep.training.frozen_passes import PassLimits


def make_evaluator(
    config: PPOConfig,
    checked: CheckedInputs,
    models: Models,
    generation: GenerationSettings,
    rewards: Rewards,
    state: Callable[[], object],
) -> Evaluator:
    """Sample completions come from the evaluation prompts, or from the training prompts where there are none."""
    held_out = checked.run_prompts.held_out
    shown = next(iter(held_out.values())) if held_out else checked.run_prompts.prompts
    rows = range(min(SAMPLE_ROWS, len(shown)))
    greedy = replace(generation, greedy=True, seed=_seed(config))
    return Evaluator(
        policy=models.policy,
        reference=models.reference,
        generation=_sampled(config, generation) if config.eval_temperature > 0 else greedy,
        sample_generation=greedy,
        rewards=rewards,
        judge=_judge(config, checked, state),
        backend=checked.backend,
        tokenizer=checked.tokenizer,
        sets=[_share(config, checked, name, prompts) for name, prompts in held_out.items()],
        sample_prompts=shown.take(rows, rows),
        shows_samples=config.num_sample_generations > 0,
        limits=PassLimits(checked.batch.micro_tokens, config.local_rollout_forward_batch_size),
        kl_estimator=config.kl_estimator,
        num_generations=config.eval_num_generations,
        reference_column=config.eval_reference_column,
    )


def _sampled(config: PPOConfig, generation: GenerationSettings) -> GenerationSettings:
    """Responses that are sampled."""
    sampling = Sampling(config.eval_temperature, config.top_p, config.top_k)
    return replace(generation, sampling=sampling, seed=_seed(config), greedy=False)


def _seed(config: PPOConfig) -> int:
    """Random numbers that training does not use, the same ones at every evaluation. Greedy responses have it too, by
    which written rollouts (training.replay) know that they are not training's."""
    return stream_seed(config.seed if config.eval_seed is None else config.eval_seed, "evaluation")


def _share(config: PPOConfig, checked: CheckedInputs, name: str, prompts: PromptMix) -> EvaluationSet:
    """The prompts of this process, as many at a time as it generates at a time."""
    backend, repeats = checked.backend, config.eval_num_generations
    chunk = max(1, config.local_rollout_forward_batch_size // repeats) * backend.world_size
    chunks = prompts.in_order(chunk, rank=backend.rank, world_size=backend.world_size, repeats=repeats)
    return EvaluationSet(name, list(chunks))


def _judge(config: PPOConfig, checked: CheckedInputs, state: Callable[[], object]) -> Rewards | None:
    """The rewards that judge evaluations alone, if there are any."""
    if not checked.judges:
        return None
    options = RewardModelOptions(
        DTYPES[config.dtype], config.trust, config.bf16, config.max_tokens_per_microbatch,
        checked.backend.place, config.seed, config.chat_template_kwargs,
    )  # fmt: skip
    sources = load_sources(judge_settings(config), checked.judges, checked.tokenizer, options)
    return Rewards(sources, checked.tokenizer, on_error=on_error(config), state=state, sharing=checked.backend)


def stop_rules(config: PPOConfig, run_prompts: RunPrompts) -> StopRules:
    """When the run ends early; of several evaluation sets the score of the first counts."""
    by_evaluation = bool(run_prompts.held_out) and config.eval_steps is not None
    first = next(iter(run_prompts.held_out), "")
    return StopRules(config, by_evaluation, f"{first}/{BEST_METRIC}" if first else BEST_METRIC)


@dataclass(frozen=True)
class RunMemory:
    """What a checkpoint keeps of reports and evaluation."""

    report: Report
    evaluator: Evaluator
    engine: RolloutEngine

    def remember(self) -> Mapping[str, Any]:
        """What a resumed run must know again."""
        return {**self.report.memory(), "evaluation": self.evaluator.memory()}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Know it again, before the weights of a checkpoint take the place of the start's."""
        self.report.recall(memory)
        self.evaluator.recall(memory.get("evaluation", {}), self.engine)
