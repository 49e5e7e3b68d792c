"""vLLM as a server: weights go by a folder, prompts and tokens by HTTP."""

from nearstep.rollout.engine import RolloutEngine
from nearstep.rollout.engine_settings import EngineSettings


def make_vllm_server(settings: EngineSettings) -> RolloutEngine:
    """The engine."""
    raise NotImplementedError(settings)
