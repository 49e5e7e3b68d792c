"""vLLM in the trainer's process: weights by its reload from an iterator, rows step by step."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nearstep.common.errors import ConfigError, ModelError, TrainingError, shorten
from nearstep.common.plugins import is_installed
from nearstep.models.roles import Policy
from nearstep.rollout.engine import Capabilities, GenerationSettings, RolloutEngine, RowEnded
from nearstep.rollout.engine_settings import EngineSettings
from nearstep.rollout.vllm.requests import (
    NEVER,
    RowRequest,
    SampledRow,
    rollout_of_answers,
    row_requests,
    with_sampled_last,
)
from nearstep.rollout.vllm.weights import folder_weights, whole_model, write_configuration
from nearstep.rollout.vllm.worker import PACK, PLACE
from nearstep.types import Prompts, Rollout

GIB = 1 << 30
# While vLLM starts. Its core lives in this process, or weights would have to be pickled; it is alone, whatever the
# launcher says of the trainer's processes; it binds no threads of ours to cores, and reports to nobody.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
}
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CONFIGURE_LOGGING": "1"}  # unless the user says otherwise


def make_vllm(settings: EngineSettings) -> RolloutEngine:
    """The engine. Raises ConfigError where vLLM is not installed."""
    require_vllm("engine = vllm")
    return VLLMEngine(settings)


def require_vllm(wanted: str) -> None:
    """Raise ConfigError where vLLM is not installed; found by its module, for its distributions have several names."""
    if not is_installed("vllm"):
        raise ConfigError(
            f"{wanted} needs vLLM, which is not installed here. `make engines` makes an environment with vLLM's CPU "
            "build (runs/engines-env); on a GPU: pip install vllm. Without it engine = transformers generates, "
            "and engine = vllm_server asks a vLLM elsewhere"
        )


@dataclass
class VLLMEngine:
    """Samples by vLLM in this process, from a copy of the weights that it keeps for itself."""

    settings: EngineSettings
    version: int = 0
    rows: int = 0  # logits of the model
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))  # of the rollouts
    asleep: bool = False
    _llm: Any = None  # vllm.LLM

    def capabilities(self) -> Capabilities:
        """All there are."""
        return Capabilities(top_tokens=True, limits=True, row_ended=True, own_episode=True)

    def load(self, policy: Policy, version: int) -> None:
        """Copy the policy's weights; what was computed from older ones is forgotten."""
        model = whole_model(policy, "vllm")
        if self._llm is None:
            self._llm = _started(model.config, policy, self.settings, model)
        if self.asleep:
            self._llm.wake_up(tags=["weights"])
        with _left_alone():
            weights = iter(folder_weights(model).items())
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
            if policy.device.type == "cpu":
                self._llm.collective_rpc(PACK)
        if self.asleep:
            self._llm.wake_up(tags=["kv_cache"])
            self.asleep = False
        if not self._llm.reset_prefix_cache():
            raise TrainingError("vLLM could not forget the keys and values of older weights: rows are still running")
        self.version, self.device = version, policy.device
        self.rows = model.config.get_text_config().vocab_size

    def sleep(self) -> None:
        """Give back weights and caches, on devices where vLLM can: not on a CPU."""
        if self._llm is None or self.asleep or not self._llm.llm_engine.vllm_config.model_config.enable_sleep_mode:
            return
        self._llm.sleep(level=2)
        self.asleep = True

    def close(self) -> None:
        """Stop vLLM and let go of its memory."""
        if self._llm is None:
            return
        from vllm.distributed import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        cleanup_dist_env_and_memory()
        self.asleep = False

    def generate(self, prompts: Prompts, settings: GenerationSettings, row_ended: RowEnded | None = None) -> Rollout:
        """One response per row; see RolloutEngine.generate."""
        assert self._llm is not None, "load() comes before generate()"
        requests = row_requests(prompts, settings, self.rows)
        answers: dict[int, SampledRow] = {}
        with _left_alone():
            for row, answer in _played(self._llm.llm_engine, requests):
                answers[row] = answer
                if row_ended is not None:
                    row_ended(row, list(answer.ids), bool(answer.ids) and answer.ids[-1] in settings.stop_ids)
        in_order = [answers[row] for row in range(len(prompts))]
        return rollout_of_answers(prompts, settings, in_order, self.version, self.device)


def _played(engine: Any, requests: list[RowRequest]) -> Iterator[tuple[int, SampledRow]]:
    """The rows as they end. Whatever interrupts it, none goes on."""
    waiting: dict[str, int] = {}
    try:
        for row, request in enumerate(requests):
            engine.add_request(f"row-{row}", {"prompt_token_ids": list(request.prompt)}, _parameters(request))
            waiting[f"row-{row}"] = row
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished and output.request_id in waiting:
                    row = waiting.pop(output.request_id)
                    yield row, _answer(output.outputs[0], requests[row].top_tokens)
    finally:
        if waiting:
            engine.abort_request(list(waiting))
    if waiting:
        raise TrainingError(f"vLLM answered all rows but {len(waiting)}: {sorted(waiting.values())[:8]}")


def _parameters(request: RowRequest) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        max_tokens=request.max_tokens,
        seed=request.seed,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        stop_token_ids=list(request.stop_ids),
        ignore_eos=True,
        logprobs=request.top_tokens,
        flat_logprobs=True,
        allowed_token_ids=None if request.allowed is None else list(request.allowed),
        logit_bias=dict.fromkeys(request.never, NEVER) or None,
        detokenize=False,
    )


def _answer(output: Any, top_tokens: int) -> SampledRow:
    """Its flat lists have at each token the sampled one first, and then the most probable ones."""
    ids, flat, width = list(output.token_ids), output.logprobs, top_tokens + 1
    assert len(flat.token_ids) == len(ids) * width, "the sampled token, and as many others as were asked for"
    tops = [
        with_sampled_last(
            flat.token_ids[start + 1 : start + width],
            flat.logprobs[start + 1 : start + width],
            flat.token_ids[start],
            flat.logprobs[start],
            top_tokens,
        )
        for start in range(0, len(flat.token_ids) if top_tokens else 0, width)
    ]
    return SampledRow(ids, flat.logprobs[::width], [top for top, _ in tops], [values for _, values in tops])


def _started(config: Any, policy: Policy, settings: EngineSettings, model: Any) -> Any:
    """vLLM with the policy's architecture, and no weights yet. Raises ModelError with what vLLM says of it."""
    on_gpu = policy.device.type != "cpu"
    dtype = torch.bfloat16 if policy.autocast else policy.dtype
    with tempfile.TemporaryDirectory() as folder, _environment(), _left_alone(), _own_classes(model):
        write_configuration(model, Path(folder))
        try:
            from vllm import LLM

            llm = LLM(
                model=folder,
                skip_tokenizer_init=True,
                load_format="dummy",
                generation_config="vllm",
                dtype=str(dtype).removeprefix("torch."),
                logprobs_mode="processed_logprobs",
                max_logprobs=-1,
                max_model_len=-1,
                max_num_seqs=settings.max_rows,
                kv_cache_memory_bytes=int(settings.vllm.cache_gib * GIB),
                enforce_eager=not on_gpu,
                enable_sleep_mode=on_gpu,
                disable_log_stats=True,
                worker_extension_cls=PLACE,
            )
            _try_out(llm)
        except Exception as error:  # whatever a model that it was not made for meets in there
            raise ModelError(
                f"vLLM does not run {type(model).__name__}: {shorten(error, 400)}. Where the memory of "
                "engine_cache_gib is too small, raise it; where vLLM does not know the model, or has no kernel for "
                "heads of its size (head_dim), use engine = transformers"
            ) from error
    return llm


def _try_out(llm: Any) -> None:
    """A token of a short prompt: kernels that do not take the model say so here, and not in the first rollout."""
    request = RowRequest((0,), 1, 0, 1.0, 1.0, 0, (), 0)
    for _ in _played(llm.llm_engine, [request]):
        pass


@contextmanager
def _environment() -> Iterator[None]:
    """vLLM's environment while it starts; the process's own afterwards."""
    changes: Mapping[str, str] = {**{name: os.environ.get(name, value) for name, value in QUIET.items()}, **ENVIRONMENT}
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _own_classes(model: torch.nn.Module) -> Iterator[None]:
    """A model that vLLM has no code of is made of transformers' classes, which vLLM rewrites (0.32: bases, `__init__`
    and `__call__`): the trainer's models are of the same classes, and would not run any more."""
    before = {kind: (kind.__bases__, dict(vars(kind))) for kind in {type(module) for module in model.modules()}}
    try:
        yield
    finally:
        for kind, (bases, members) in before.items():
            if kind.__bases__ != bases:
                kind.__bases__ = bases
            for name in ("__init__", "__call__"):
                if name in members:
                    setattr(kind, name, members[name])
                elif name in vars(kind):
                    delattr(kind, name)


@contextmanager
def _left_alone() -> Iterator[None]:
    """vLLM seeds and draws from global generators, and replaces a function of torch: all of that stays the user's."""
    set_num_threads, dtype = torch.set_num_threads, torch.get_default_dtype()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            torch.set_num_threads = set_num_threads
            torch.set_default_dtype(dtype)
