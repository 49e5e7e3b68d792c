"""The engine of a run: the user's, or the one that the settings name; what it is built from."""

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
from nearstep.scale.backend import Backend

WEIGHTS = "engine-weights"  # folder of a run, while a server reads weights from it


def engine_of(config: PPOConfig, inputs: RunInputs, top_k: int, checked: CheckedInputs) -> RolloutEngine:
    """The user's engine or the one that the settings name. Raises ConfigError if it cannot record `top_k` tokens,
    not run in as many processes, or not have weights that lie over them."""
    require_tokens(top_k, checked.vocabulary)
    given = config.engine if inputs.engine is None else inputs.engine
    settings = engine_settings(config, checked.backend)
    if inputs.engine is None:
        _require_weights(config, checked.backend, adapted=config.use_peft or inputs.peft_config is not None)
    engine = make_engine(given, settings)
    if inputs.engine is None and config.engine == "vllm_server" and config.engine_fallback != "none":
        engine = EngineWithFallback(engine, make_engine(config.engine_fallback, settings), config.engine_fallback)
    require_top_tokens(engine, top_k)
    if config.max_length is not None:
        require_limits(engine)
    return engine


def engine_settings(config: PPOConfig, backend: Backend) -> EngineSettings:
    """What the engine of this process is built from. Raises ConfigError for more processes than it takes."""
    if config.engine == "vllm" and backend.world_size > 1:
        raise ConfigError(
            f"engine = vllm runs in one process, and there are {backend.world_size}: vLLM would take those of the "
            "trainer for its own. Start a server for each by nearstep serve-engine, and give engine = vllm_server with "
            "as many addresses in engine_url; or use engine = transformers"
        )
    return EngineSettings(
        max_rows=config.local_rollout_forward_batch_size,
        max_tokens=config.max_tokens_per_microbatch,
        decode_graphs=config.decode_graphs,
        vllm=VLLMSettings(cache_gib=config.engine_cache_gib),
        server=_server(config, backend) if config.engine == "vllm_server" else VLLMServerSettings(),
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
    urls = config.engine_url
    if len(urls) != backend.world_size:
        raise ConfigError(
            f"engine_url names {len(urls)} server(s) for {backend.world_size} process(es): each process loads weights "
            "into a server of its own, so give as many addresses as processes, or use engine = transformers"
        )
    folder = config.engine_weights_dir or str(Path(config.output_dir) / WEIGHTS)
    return VLLMServerSettings(
        url=urls[backend.rank],
        weights_dir=str(Path(folder).expanduser().resolve() / f"rank-{backend.rank}"),
        timeout_seconds=config.engine_timeout_seconds,
        retries=config.engine_retries,
    )
