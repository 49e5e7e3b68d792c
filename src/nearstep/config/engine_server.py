"""The settings of a vLLM server for engine = vllm_server."""

from dataclasses import dataclass
from typing import Literal

from nearstep.config.settings import Settings, accepts_old_names, option, sections


@accepts_old_names
@dataclass(frozen=True, kw_only=True)
class EngineServerOptions(Settings):
    """Settings of `nearstep serve-engine`."""

    model_name_or_path: str | None = option(
        None, "a folder or hub name of the policy's model; its weights are replaced by the run's", is_place=True
    )
    host: str = option("127.0.0.1", "loopback address to listen on")
    port: int = option(8000, "port to listen on", at_least=1, at_most=65535)
    dtype: Literal["float32", "bfloat16", "float16"] = option(
        "float32", "what the server computes in: that of the run, or log-probs differ by rounding"
    )
    engine_cache_gib: float = option(1.0, "memory for keys and values, in GiB", above=0)
    max_rows: int = option(64, "most rows generated at a time; local_rollout_forward_batch_size of the run", at_least=1)
    use_cpu: bool = option(False, "run without capturing or compiling, as suits a CPU")


ENGINE_SERVER_SECTIONS = sections(("Server", EngineServerOptions))
