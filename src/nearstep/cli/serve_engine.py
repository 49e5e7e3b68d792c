"""`nearstep serve-engine`: a vLLM server as engine = vllm_server needs it."""

import os
import sys
from collections.abc import Iterator

from nearstep.common.places import is_loopback
from nearstep.config.engine_server import EngineServerOptions
from nearstep.config.settings import Problem
from nearstep.rollout.vllm.worker import PLACE

NOTE = (
    "The server takes new weights from a folder, which it must see under the same path as the run, and obeys whoever "
    "reaches it: it listens on this machine alone. From another machine: ssh -L 8000:127.0.0.1:8000 THERE."
)
# Endpoints by which weights are exchanged; nothing of the user's is reported; threads are not bound to cores.
ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
GIB = 1 << 30


def serve_engine_problems(options: EngineServerOptions) -> Iterator[Problem]:
    """What cannot be done without."""
    if options.model_name_or_path is None:
        yield Problem("model_name_or_path: say which model's architecture is served", ("model_name_or_path",))
    if not is_loopback(options.host):
        yield Problem(
            f"host = {options.host} can be reached from elsewhere, and whoever reaches the server may exchange its "
            "weights and read files: listen on 127.0.0.1, and come from another machine by ssh -L",
            ("host",),
        )


def engine_command(options: EngineServerOptions) -> list[str]:
    """The command that starts the server, for this interpreter."""
    words = {
        "--model": options.model_name_or_path or "",
        "--served-model-name": "policy",
        "--host": options.host,
        "--port": str(options.port),
        "--dtype": options.dtype,
        "--logprobs-mode": "processed_logprobs",
        "--max-logprobs": "-1",
        "--max-model-len": "-1",
        "--generation-config": "vllm",
        "--max-num-seqs": str(options.max_rows),
        "--kv-cache-memory-bytes": str(int(options.engine_cache_gib * GIB)),
        "--worker-extension-cls": PLACE,
    }
    # Written as one word each: a number below 0 would be taken for a flag.
    flags = [f"{name}={value}" for name, value in words.items()]
    return [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        *flags,
        "--skip-tokenizer-init",
        *(["--enforce-eager"] if options.use_cpu else []),
    ]


def run_serve_engine(options: EngineServerOptions) -> None:
    """Become the server: signals and exit code are its own."""
    from nearstep.rollout.vllm.in_process import require_vllm

    require_vllm("serve-engine")
    command = engine_command(options)
    os.execve(command[0], command, {**os.environ, **ENVIRONMENT})
