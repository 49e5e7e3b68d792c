"""Which engine generates the episodes, and the settings of each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from nearstep.config.axes import ENGINES, listed, name_problems
from nearstep.config.settings import Problem, Settings, option, without_effect

OF_SERVERS = ("engine_url", "engine_timeout_seconds", "engine_retries", "engine_fallback", "engine_weights_dir")


@dataclass(frozen=True, kw_only=True)
class EngineChoice(Settings):
    """What generates the episodes."""

    engine: str = option("transformers", f"what generates the episodes: {listed(ENGINES)}", is_place=True)
    decode_graphs: bool = option(
        False, "transformers: replay decoding steps from CUDA graphs; needs a GPU, and has not been run on one yet"
    )
    engine_cache_gib: float = option(1.0, "vllm: memory for keys and values, in GiB; more rows at a time", above=0)
    engine_url: tuple[str, ...] = option(
        (),
        "vllm_server: its address, such as http://127.0.0.1:8000 of serve-engine; one for all processes or each",
    )
    engine_timeout_seconds: float = option(
        20.0, "vllm_server: longest time without any sign of life of the server; then it counts as lost", above=0
    )
    engine_retries: int = option(
        2, "vllm_server: how often a lost server is asked again, each time from the weights on", at_least=0
    )
    engine_fallback: Literal["none", "transformers"] = option(
        "none", "vllm_server: what goes on generating once a server is lost for good; none ends the run"
    )
    engine_weights_dir: str | None = option(
        None,
        "vllm_server: folder through which weights reach the server, which sees it under the same path; one in "
        "output_dir if not given",
        is_place=True,
    )


def engine_problems(config: EngineChoice, *, use_cpu: bool) -> Iterator[Problem]:
    """Settings of engines that contradict each other."""
    yield from name_problems("engine", config.engine, ENGINES)
    if config.decode_graphs and use_cpu:
        yield Problem(
            "decode_graphs replays CUDA graphs and use_cpu leaves the GPU: give one", ("decode_graphs", "use_cpu")
        )
    if config.engine == "vllm_server" and not config.engine_url:
        yield Problem(
            "engine = vllm_server needs the address of a server: start one with nearstep serve-engine, and give "
            "engine_url = http://127.0.0.1:8000",
            ("engine", "engine_url"),
        )
    yield from address_problems(config.engine_url)


def address_problems(addresses: Sequence[str]) -> Iterator[Problem]:
    """Addresses of servers that are none."""
    for address in addresses:
        wrong = _wrong_with(address)
        if wrong is not None:
            yield Problem(f"engine_url {wrong}", ("engine_url",))


def engine_remarks(config: EngineChoice, *, response_length: int) -> Iterator[str]:
    """Settings of engines without effect."""
    yield from without_effect(
        config,
        ("with response_length = 1", response_length == 1, ("decode_graphs",)),
        (f"with engine = {config.engine}", config.engine != "transformers", ("decode_graphs",)),
        (f"with engine = {config.engine}", config.engine != "vllm", ("engine_cache_gib",)),
        (f"with engine = {config.engine}", config.engine != "vllm_server", OF_SERVERS),
    )


def _wrong_with(address: str) -> str | None:
    """What is wrong with an address; it is not repeated, for it may hold a secret."""
    try:
        url = urlsplit(address)
        return _wrong_part(url)
    except ValueError:  # which may quote a part of it
        return "is no address such as http://127.0.0.1:8000"


def _wrong_part(url: SplitResult) -> str | None:
    _ = url.port  # raises ValueError where it is no number
    if url.scheme not in ("http", "https") or not url.hostname:
        return "must be an address such as http://127.0.0.1:8000"
    if url.username is not None or url.password is not None or url.query or url.fragment or url.path.strip("/"):
        return "must be scheme, host and port alone, such as http://127.0.0.1:8000"
    return None
