"""vLLM in the trainer's process."""

import importlib.util

from nearstep.common.errors import ConfigError
from nearstep.rollout.engine import RolloutEngine
from nearstep.rollout.engine_settings import EngineSettings


def make_vllm(settings: EngineSettings) -> RolloutEngine:
    """The engine. Raises ConfigError where vLLM is not installed."""
    require_vllm("engine = vllm")
    raise NotImplementedError(settings)


def require_vllm(wanted: str) -> None:
    """Raise ConfigError where vLLM is not installed; found by its module, for its distributions have several names."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            f"{wanted} needs vLLM, which is not installed here. `make engines` makes an environment with vLLM's CPU "
            "build beside .venv (.engines); on a GPU: pip install vllm. Without it engine = transformers generates, "
            "and engine = vllm_server asks a vLLM elsewhere"
        )
