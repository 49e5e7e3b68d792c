"""What each engine is built from; everything else comes with each call."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class VLLMSettings:
    """What only the vLLM in this process is built from."""

    cache_gib: float = 1.0  # memory for keys and values


@dataclass(frozen=True)
class VLLMServerSettings:
    """Where a server generates, and how patiently it is asked."""

    url: str = ""
    weights_dir: str = ""  # folder through which weights go; the server sees it under the same path
    timeout_seconds: float = 20.0  # longest time without a sign of life
    retries: int = 2  # how often a lost server is asked again
    shared: bool = False  # several processes ask the same server, and one of them gives it the weights


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is built from. Engines of the user's read what they need, and may ignore the rest."""

    max_rows: int = 64  # rows generated at a time
    max_tokens: int = 16384  # prompt tokens in one forward pass
    decode_graphs: bool = False  # replay decoding steps from CUDA graphs
    vllm: VLLMSettings = field(default_factory=VLLMSettings)
    server: VLLMServerSettings = field(default_factory=VLLMServerSettings)
