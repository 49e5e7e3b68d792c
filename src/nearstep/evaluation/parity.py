"""`nearstep parity`: whether an engine and the trainer give the same numbers on the same weights, before a run."""

import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from nearstep.common.errors import ConfigError, NearstepError
from nearstep.common.random_streams import stream
from nearstep.common.telling import quiet_libraries, tell
from nearstep.config.parity import ParityOptions
from nearstep.data.mix import PromptMix
from nearstep.evaluation.prompt_file import PromptLimit, read_prompts, read_rows
from nearstep.evaluation.text_model import TextModel
from nearstep.metrics import Max, Mean, Metric
from nearstep.models.distribution import Sampling
from nearstep.models.forward.forward import rollout_logprobs, states_of
from nearstep.models.forward.layout import RowTokens
from nearstep.models.roles import ROUNDING_KL, Policy
from nearstep.reports.health.sampling_rules import MISMATCH_LIMITS
from nearstep.rollout.build import make_engine
from nearstep.rollout.engine import GenerationSettings, RolloutEngine, load, play
from nearstep.rollout.engine_settings import EngineSettings, VLLMServerSettings, VLLMSettings
from nearstep.training.mismatch import mismatch_metrics
from nearstep.types import Prompts, Rollout, row_groups

LONGEST_MADE = 64  # tokens of a prompt that is made up
IN_WORK = 64  # actions whose logits are there at a time
ROUNDING_GAP = 1e-3  # of a probability, in float32

ParityVerdict: TypeAlias = Literal["equal", "fits", "watch", "wrong", "refused"]
WHAT_TO_DO = {
    "equal": "engine and trainer agree to rounding",
    "fits": "a mismatch as narrow types have it: nothing to do, policy/mismatch_kl tells whether it stays so",
    "watch": "more than the type explains: compare temperature, top_p, top_k and the types of both sides; a run "
    "stays sound with anchor = recomputed and correction = tis",
    "wrong": "do not train with it: it samples from another distribution than the trainer computes (other weights, "
    "sampling settings, positions or attention)",
    "refused": "it was not compared",
}


@dataclass(frozen=True)
class ParityFigures:
    """How far an engine and the trainer are apart. KL is the mean over tokens of π/μ − 1 − log π/μ, in nats, as
    policy/mismatch_kl of a run; gaps are differences of probabilities of sampled tokens."""

    tokens: int
    kl: float
    kl_worst_row: float
    share_far: float  # of tokens whose π/μ is above 2 or below ½
    probability_gap: float  # the largest
    greedy_differs: float  # share of greedy tokens that are not the trainer's most probable after the same tokens

    def verdict(self, *, narrow: bool) -> ParityVerdict:
        """What that means for a run; `narrow` types round more than float32."""
        if not self.kl < MISMATCH_LIMITS["error"]:  # also NaN
            return "wrong"
        if self.kl >= MISMATCH_LIMITS["warn"]:
            return "watch"
        if self.kl <= ROUNDING_KL and self.probability_gap <= ROUNDING_GAP:
            return "equal"
        return "fits" if narrow else "watch"


@dataclass(frozen=True)
class ParityLine:
    """One engine, type and batch size."""

    engine: str
    dtype: str
    batch_size: int
    figures: ParityFigures | None
    verdict: ParityVerdict
    note: str


def engine_parity(
    engine: RolloutEngine, policy: Policy, prompts: Prompts, settings: GenerationSettings, *, max_tokens: int = 16384
) -> ParityFigures:
    """Let an engine that has loaded `policy` sample, and then take the most probable tokens; compare with the trainer.

    Raises ConfigError or TrainingError for what the engine cannot do or records wrongly.
    """
    found: dict[str, Metric] = {}
    for rollout in _parts(play(engine, prompts, settings), max_tokens):
        with torch.no_grad():
            trainer = rollout_logprobs(policy, rollout, settings.sampling).sampled
        gap = (trainer.exp() - rollout.logprobs.exp()).abs()
        part = mismatch_metrics(trainer, rollout.logprobs, rollout.action_counts) | {"gap": Max.of(gap)}
        found = {name: found[name] + value if found else value for name, value in part.items()}  # type: ignore[operator]
    differs = Mean.of(torch.zeros(0))
    for rollout in _parts(play(engine, prompts, replace(settings, greedy=True)), max_tokens):
        differs += Mean.of((most_probable(policy, rollout) != rollout.actions).float())
    numbers = {name: metric.number() for name, metric in found.items()}
    return ParityFigures(
        tokens=int(found["policy/mismatch_kl"].count),  # type: ignore[union-attr]
        kl=_number(numbers["policy/mismatch_kl"]),
        kl_worst_row=_number(numbers["policy/mismatch_kl_worst"]),
        share_far=_number(numbers["policy/mismatch_far"]),
        probability_gap=_number(numbers["gap"]),
        greedy_differs=_number(differs.number()),
    )


@torch.no_grad()
def most_probable(policy: Policy, rollout: Rollout) -> Int[Tensor, " actions"]:
    """The trainer's most probable token in the place of every action."""
    before = states_of(policy, RowTokens.of(rollout), rollout.action_positions - 1)
    with torch.autocast(before.device.type, dtype=torch.bfloat16, enabled=policy.autocast):
        return torch.cat([policy.head.logits(states).argmax(-1) for states in before.split(IN_WORK)])


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _parts(rollout: Rollout, max_tokens: int) -> Iterator[Rollout]:
    """The rows of a rollout, as many at a time as a forward pass may have."""
    for group in row_groups(rollout.row_lengths.tolist(), max_tokens, len(rollout)):
        yield rollout.select(torch.arange(group.start, group.stop, device=rollout.tokens.device))


def parity(options: ParityOptions) -> Iterator[ParityLine]:
    """Every engine in every type with every batch size, one after the other.

    An engine that cannot be compared has a line that says why. Raises ConfigError, DataError or ModelError for a model
    or prompts that cannot be used.
    """
    if options.model_name_or_path is None:
        raise ConfigError("model_name_or_path is missing: the policy that engines sample from")
    for dtype in options.dtypes:
        with quiet_libraries():
            model = TextModel.of(
                options.model_name_or_path,
                options.run_of(dtype),
                base=options.base_model,
                prompt_type=options.prompt_type,
            )
            prompts = _prompts(model, options)
            policy = model.policy
        for name in options.engines:
            for batch_size in options.batch_sizes:
                tell(f"{name}, {dtype}, {batch_size} rows at a time …")
                yield _line(name, dtype, batch_size, model, policy, prompts, options)


def _line(
    name: str,
    dtype: str,
    batch_size: int,
    model: TextModel,
    policy: Policy,
    prompts: Prompts,
    options: ParityOptions,
) -> ParityLine:
    settings = GenerationSettings(
        Sampling(options.temperature, options.top_p, options.top_k),
        options.response_length,
        stop_ids=(),
        seed=options.seed,
        vocabulary=model.limits.rows,
    )
    try:
        with tempfile.TemporaryDirectory(prefix="nearstep-parity-") as folder:
            engine = make_engine(name, _built_from(batch_size, folder, options))
            with closing(engine), quiet_libraries():
                load(engine, policy, 0)
                figures = engine_parity(engine, policy, prompts, settings, max_tokens=options.max_tokens_per_microbatch)
    except NearstepError as error:
        return ParityLine(name, dtype, batch_size, None, "refused", str(error))
    verdict = figures.verdict(narrow=dtype in ("bfloat16", "bf16"))
    return ParityLine(name, dtype, batch_size, figures, verdict, WHAT_TO_DO[verdict])


def _built_from(batch_size: int, folder: str, options: ParityOptions) -> EngineSettings:
    return EngineSettings(
        max_rows=batch_size,
        max_tokens=options.max_tokens_per_microbatch,
        vllm=VLLMSettings(options.engine_cache_gib),
        server=VLLMServerSettings(url=options.engine_url or "", weights_dir=folder),
    )


def _prompts(model: TextModel, options: ParityOptions) -> Prompts:
    limit = PromptLimit.beside(options.response_length, model, options.max_prompt_length, options.on_long_prompt)
    if options.dataset_name is None:
        return made_prompts(options.max_samples, model.limits.rows, limit.tokens, options.seed)
    found = read_prompts(read_rows(options, options.seed), model, options, limit)
    numbers = list(range(len(found)))
    return PromptMix((found,)).take(numbers, numbers)


def made_prompts(count: int, vocabulary: int, longest: int | None, seed: int) -> Prompts:
    """Prompts of random ids, of lengths from 1 on."""
    longest = min(LONGEST_MADE, longest or LONGEST_MADE)
    ids = []
    for row in range(count):
        draws = stream(seed, "parity prompts", row)
        length = 1 + (longest - 1) * row // max(count - 1, 1)
        ids.append(torch.randint(0, vocabulary, (length,), generator=draws).tolist())
    return Prompts(ids=ids, inputs=["" for _ in ids], columns={}, episodes=list(range(count)))
