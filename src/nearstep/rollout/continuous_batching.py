"""transformers' continuous batching as an engine: on the training model itself, rows in a paged cache."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import transformers
from torch.distributed.tensor import DTensor
from torch.torch_version import TorchVersion
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching import ContinuousBatchingManager
from transformers.generation.continuous_batching.requests import GenerationOutput

from nearstep.common.errors import ConfigError, ModelError, TrainingError, shorten
from nearstep.common.random_streams import stream_seed
from nearstep.models.distribution import Sampling
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.models.roles import Policy, inner_model
from nearstep.rollout.engine import (
    Capabilities,
    GenerationSettings,
    RolloutEngine,
    RowEnded,
    rollout_of_rows,
)
from nearstep.rollout.engine_settings import EngineSettings
from nearstep.types import Prompts, Rollout

OLDEST = "5.20"  # of transformers: earlier ones name the settings of its cache otherwise
PAGE = 64  # tokens in a page of the cache
BATCH_TOKENS = 1024  # of one forward pass; its mask grows with them, and longer prompts are read in parts
PATIENCE = 0.5  # seconds between two looks at whether the thread that generates is alive
PROBE = ((1, 2, 3), (2, 1))  # rows that prove an architecture
TOO_FAR = {torch.float32: 1e-3}  # nats between engine and trainer on them from which an architecture is refused
FAR_ROUNDED = 0.5  # the same in narrower types
INSTEAD = "Use engine = transformers, which samples from any model"


def make_continuous_batching(settings: EngineSettings) -> RolloutEngine:
    """The engine. Raises ConfigError where transformers is too old for it."""
    if TorchVersion(transformers.__version__) < OLDEST:
        raise ConfigError(
            f"engine = continuous_batching needs transformers {OLDEST} or newer, and here is "
            f"{transformers.__version__}: pip install 'transformers>={OLDEST}'. Or use engine = transformers"
        )
    return ContinuousBatchingEngine(settings)


@dataclass
class ContinuousBatchingEngine:
    """Samples by transformers' continuous batching, from the policy's own weights.

    Every call has a cache of its own, of the size that its rows need: by itself it would take most of the memory, and
    answer from keys and values of older weights.
    """

    settings: EngineSettings
    policy: Policy | None = None
    version: int = 0
    proved: bool = False

    def capabilities(self) -> Capabilities:
        """No top tokens; and one generator for all rows, so that a row depends on its batch."""
        return Capabilities(limits=True, row_ended=True)

    def load(self, policy: Policy, version: int) -> None:
        """Sample from `policy` from now on. Raises ModelError for one that continuous batching gets wrong."""
        require_whole(policy)
        self.policy, self.version = policy, version
        if not self.proved:
            self._prove(policy)
            self.proved = True

    def close(self) -> None:
        """Let go of the policy; nothing else outlives a call."""
        self.policy, self.proved = None, False

    @torch.no_grad()
    def generate(self, prompts: Prompts, settings: GenerationSettings, row_ended: RowEnded | None = None) -> Rollout:
        """See RolloutEngine.generate. Raises TrainingError for rows that are missing or broken off."""
        assert self.policy is not None, "load() comes before generate()"
        limits = settings.limits or (settings.response_length,) * len(prompts)
        rows: dict[int, GenerationOutput] = {}
        with _manager(self.policy, self.settings, prompts, settings, limits) as manager:
            for row, output in _played(manager, prompts, settings, limits):
                _check(output, row, prompts, settings, limits[row])
                rows[row] = output
                if row_ended is not None:
                    row_ended(row, list(output.generated_tokens), output.generated_tokens[-1] in settings.stop_ids)
        outputs = [rows[row] for row in range(len(prompts))]
        device = self.policy.device
        return rollout_of_rows(
            prompts,
            [output.generated_tokens for output in outputs],
            [torch.tensor(output.logprobs, dtype=torch.float32, device=device) for output in outputs],
            [output.generated_tokens[-1] in settings.stop_ids for output in outputs],
            self.version,
        )

    def _prove(self, policy: Policy) -> None:
        """A few tokens against the trainer's forward pass: some architectures run, and attend to the wrong things."""
        name = type(inner_model(policy.model)).__name__
        prompts = Prompts([list(ids) for ids in PROBE], ["" for _ in PROBE], {}, list(range(len(PROBE))))
        settings = GenerationSettings(Sampling(), 4, (), seed=0, vocabulary=policy.vocabulary)
        try:
            rollout = self.generate(prompts, settings)
        except TrainingError as error:
            raise ModelError(f"engine = continuous_batching does not run {name}: {error}. {INSTEAD}") from error
        with torch.no_grad():
            trainer = rollout_logprobs(policy, rollout, settings.sampling).sampled
        gap = float((rollout.logprobs - trainer).abs().max())
        if not gap <= TOO_FAR.get(policy.dtype, FAR_ROUNDED):
            raise ModelError(
                f"engine = continuous_batching records log-probs of {name} that are {gap:.3g} nats from the trainer's. "
                f"{INSTEAD}"
            )


def require_whole(policy: Policy) -> PreTrainedModel:
    """The policy's model, adapters in it. Raises ModelError for one that continuous batching cannot sample from."""
    inner = inner_model(policy.model)
    if not isinstance(inner, PreTrainedModel):
        raise ModelError(
            f"model: engine = continuous_batching runs models of transformers, and a {type(inner).__name__} is none. "
            f"{INSTEAD}"
        )
    if policy.autocast:
        raise ModelError(
            "engine = continuous_batching generates in a thread that computes in the type of the weights, and bf16 "
            "(autocast) would not reach it. Use dtype = bfloat16, or engine = transformers"
        )
    if policy.dtype == torch.float64:
        raise ModelError(
            "engine = continuous_batching records log-probs in float32, and the policy has float64. Use dtype = "
            "float32, or engine = transformers"
        )
    if any(isinstance(weight, DTensor) for weight in inner.parameters()):
        raise ModelError(
            "engine = continuous_batching generates in a thread of each process, which cannot gather weights that "
            "several processes share (FSDP, tensor parallelism). Train with copies in each process, or use engine = "
            "transformers"
        )
    return inner


def _played(
    manager: ContinuousBatchingManager, prompts: Prompts, settings: GenerationSettings, limits: tuple[int, ...]
) -> Iterator[tuple[int, GenerationOutput]]:
    """The rows as they end. All are asked for before the first step, so that the same batch gives the same rows."""
    to_come = {f"row-{row}": row for row in range(len(prompts))}
    for name, row in to_come.items():
        asked = manager.add_request(
            list(prompts.ids[row]),
            request_id=name,
            max_new_tokens=limits[row],
            eos_token_id=list(settings.stop_ids) or -1,
        )
        if asked != name:
            raise TrainingError(f"continuous batching did not take row {row} (episode {prompts.episodes[row]})")
    manager.start()
    while to_come:
        alive = manager.is_running()  # asked first: what it left before it died is read before the verdict
        output = manager.get_result(timeout=PATIENCE)
        if output is not None and output.request_id in to_come:
            yield to_come.pop(output.request_id), output
        elif output is None and not alive:
            cause = manager.background_thread_status.fatal_error
            why = "" if cause is None else f": {type(cause).__name__}: {str(cause)[:400]}"
            raise TrainingError(f"continuous batching ended without rows {sorted(to_come.values())[:8]}{why}")


def _check(output: GenerationOutput, row: int, prompts: Prompts, settings: GenerationSettings, limit: int) -> None:
    where = f"row {row} (episode {prompts.episodes[row]}, {len(prompts.ids[row])} prompt tokens, limit {limit})"
    if output.error is not None:
        raise TrainingError(f"continuous batching broke off {where}: {shorten(output.error, 400)}")
    ids = output.generated_tokens
    if not ids or len(ids) != len(output.logprobs) or (len(ids) < limit and ids[-1] not in settings.stop_ids):
        raise TrainingError(
            f"continuous batching gave {len(ids)} tokens and {len(output.logprobs)} log-probs for {where}, and the "
            "last is no stop token"
        )


@contextmanager
def _manager(
    policy: Policy, built_from: EngineSettings, prompts: Prompts, settings: GenerationSettings, limits: tuple[int, ...]
) -> Iterator[ContinuousBatchingManager]:
    """What generates one call's rows; stopped at the end, whatever happens, and the model's attention put back."""
    model = require_whole(policy)
    with _left_alone(model):
        try:
            manager = ContinuousBatchingManager(
                model, _sampling(model, settings), _cache(built_from, prompts, settings, limits)
            )
        except (ValueError, AttributeError) as error:
            raise ModelError(
                f"engine = continuous_batching does not take {type(model).__name__}: {str(error)[:400]}. {INSTEAD}"
            ) from error
        try:
            yield manager
        finally:
            manager.stop(hard_stop=True)
            manager.destroy()


def _sampling(model: PreTrainedModel, settings: GenerationSettings) -> GenerationConfig:
    """Everything is named: what is not would come from defaults, such as a top_k of 50."""
    sampling, rows = settings.sampling, int(model.config.get_text_config().vocab_size)
    known = rows if settings.vocabulary is None else min(settings.vocabulary, rows)
    others = list(range(known, rows)) or None
    if settings.greedy:
        return GenerationConfig(do_sample=False, suppress_tokens=others, eos_token_id=-1)
    return GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_k=min(sampling.top_k, rows),
        top_p=sampling.top_p,
        suppress_tokens=others,
        eos_token_id=-1,
    )


def _cache(
    built_from: EngineSettings, prompts: Prompts, settings: GenerationSettings, limits: tuple[int, ...]
) -> ContinuousBatchingConfig:
    """A cache for the rows that are worked on at a time, were they the longest; and a seed from the rows' streams."""
    at_once = min(built_from.max_rows, len(prompts))
    pages = sorted(-(-(len(ids) + limit + 1) // PAGE) for ids, limit in zip(prompts.ids, limits, strict=True))
    return ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=sum(pages[-at_once:]) + at_once,
        max_batch_tokens=max(at_once, min(built_from.max_tokens, BATCH_TOKENS)),
        max_requests_per_batch=at_once,
        allow_block_sharing=False,
        use_async_batching=False,
        use_cuda_graph=False,
        return_logprobs=True,
        seed=stream_seed(settings.seed, "continuous batching", *prompts.episodes),
        auto_switch_to_flash=False,
    )


@contextmanager
def _left_alone(model: PreTrainedModel) -> Iterator[None]:
    """It seeds the global generators, changes modes and attention, and talks: all of that stays the user's."""
    training = [module for module in model.modules() if module.training]
    attention = model.config._attn_implementation
    talk = logging.getLogger("ContinuousBatchingLogger")
    level = talk.level
    talk.setLevel(logging.ERROR)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        talk.setLevel(level)
        if model.config._attn_implementation != attention:  # where it ended before it began
            model.set_attn_implementation(attention)
        for module in training:
            module.training = True
