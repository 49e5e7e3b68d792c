"""The engine of a run: the user's, or the one that the settings name; what it is built from."""

from dataclasses import replace
from pathlib import Path

from nearstep.assembly.checked_inputs import CheckedInputs
from nearstep.assembly.fitting_roles import require_tokens
from nearstep.assembly.inputs import RunInputs
from nearstep.common.errors import ConfigError
from nearstep.config.ppo import PPOConfig
from nearstep.rollout.build import make_engine
from nearstep.rollout.engine import RolloutEngine, require_limits, require_top_tokens
from nearstep.rollout.engine_settings import EngineSettings, VLLMServerSettings, VLLMSettings
from nearstep.rollout.fallback import EngineWithFallback
from nearstep.rollout.vllm.in_process import VLLMEngine
from nearstep.rollout.vllm.server import VLLMServerEngine
from nearstep.rollout.vllm.shared import SharedServerEngine
from nearstep.scale.backend import Backend

WEIGHTS = "engine-weights"  # folder of a run, while a server reads weights from it


def with_named_engine(config: PPOConfig, inputs: RunInputs) -> tuple[PPOConfig, RunInputs]:
    """An engine that Python's argument names is the setting's, and is held to all that the setting is."""
    if not isinstance(inputs.engine, str):
        return config, inputs
    return replace(config, engine=inputs.engine), replace(inputs, engine=None)


def engine_of(config: PPOConfig, inputs: RunInputs, top_k: int, checked: CheckedInputs) -> RolloutEngine:
    """The user's engine or the one that the settings name. Raises ConfigError if it cannot record `top_k` tokens,
    not run in as many processes, or not have weights that lie over them."""
    require_tokens(top_k, checked.vocabulary)
    given = config.engine if inputs.engine is None else inputs.engine
    settings = engine_settings(config, checked.backend)
    if inputs.engine is None:
        _require_weights(config, checked.backend, adapted=config.use_peft or inputs.peft_config is not None)
    engine = make_engine(given, settings)
    if isinstance(engine, VLLMEngine):
        _require_one_process(checked.backend)
    if isinstance(engine, VLLMServerEngine) and engine.settings.server.shared:
        engine = SharedServerEngine.of(engine, checked.backend)
    if inputs.engine is None and config.engine == "vllm_server" and config.engine_fallback != "none":
        engine = EngineWithFallback(engine, make_engine(config.engine_fallback, settings), config.engine_fallback)
    require_top_tokens(engine, top_k)
    if config.max_length is not None:
        require_limits(engine)
    return engine


def engine_settings(config: PPOConfig, backend: Backend) -> EngineSettings:
    """What the engine of this process is built from. Raises ConfigError for more processes than it takes."""
    if config.engine == "vllm":
        _require_one_process(backend)
    return EngineSettings(
        max_rows=config.local_rollout_forward_batch_size,
        max_tokens=config.max_tokens_per_microbatch,
        decode_graphs=config.decode_graphs,
        vllm=VLLMSettings(cache_gib=config.engine_cache_gib),
        server=_server(config, backend) if config.engine == "vllm_server" else VLLMServerSettings(),
    )


def _require_one_process(backend: Backend) -> None:
    """Raise ConfigError where vLLM would run in each of several processes."""
    if backend.world_size > 1:
        raise ConfigError(
            f"engine = vllm runs in one process, and there are {backend.world_size}: vLLM would take those of the "
            "trainer for its own. Start a server by nearstep serve-engine, and give engine = vllm_server with its "
            "address in engine_url; or use engine = transformers"
        )


def _require_weights(config: PPOConfig, backend: Backend, *, adapted: bool) -> None:
    """Raise ConfigError for an engine that cannot take weights that lie in pieces over processes."""
    if not backend.in_step or "policy" in config.whole_roles:
        return
    if config.engine == "continuous_batching":
        why = "it generates in a thread of each process, which cannot gather weights"
    elif config.engine == "vllm_server" and adapted:
        why = "it is given adapters merged into a copy of the policy, and pieces cannot be copied"
    else:
        return
    under_deepspeed = config.zero_stage is not None or config.deepspeed is not None
    layout = "networks under DeepSpeed" if under_deepspeed else f"dp_shard = {config.dp_shard}"
    raise ConfigError(
        f"engine = {config.engine} with {layout}: {why}. Give whole_roles = policy, or use engine = transformers"
    )


def _server(config: PPOConfig, backend: Backend) -> VLLMServerSettings:
    urls, processes = config.engine_url, backend.world_size
    if len(urls) not in (1, processes):
        raise ConfigError(
            f"engine_url names {len(urls)} servers for {processes} process(es): give one address for all of them, or "
            "as many as there are processes, each of which then loads weights into a server of its own"
        )
    shared = len(urls) < processes
    if shared and config.engine_fallback != "none":
        raise ConfigError(
            f"engine_fallback = {config.engine_fallback} with one server for {processes} processes: they would have to "
            "change over together, which is not built. Give each process a server of its own, or leave it out"
        )
    folder = config.engine_weights_dir or str(Path(config.output_dir) / WEIGHTS)
    return VLLMServerSettings(
        url=urls[0 if shared else backend.rank],
        weights_dir=str(Path(folder).expanduser().resolve() / f"rank-{0 if shared else backend.rank}"),
        timeout_seconds=config.engine_timeout_seconds,
        retries=config.engine_retries,
        shared=shared,
    )
