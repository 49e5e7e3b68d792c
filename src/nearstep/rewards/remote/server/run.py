"""`nearstep serve-reward`: loads rewards and answers until it is stopped."""

import sys
from collections.abc import Callable

from torch import nn

from nearstep.common.errors import ConfigError
from nearstep.config.judge_files import ServeOptions
from nearstep.models.dtypes import DTYPES
from nearstep.rewards.build import (
    RewardModelOptions,
    load_sources,
    reward_specs,
    token_from,
)
from nearstep.rewards.combine import checked_weights, distinct
from nearstep.rewards.remote.server.scorer import ServerScorer


def serve(options: ServeOptions, place: Callable[[nn.Module], nn.Module]) -> None:
    """Serve until interrupted; `place` puts a reward model on its device.

    Raises ConfigError if a package or the token is missing, or the port is taken.
    """
    try:
        import uvicorn

        from nearstep.rewards.remote.server.access import address, listen
        from nearstep.rewards.remote.server.app import make_app
    except ImportError as error:
        raise ConfigError(
            f"serve-reward needs starlette and uvicorn ({error}): pip install 'nearstep[serve]'"
        ) from error
    token = None if options.token_env is None else token_from(options.token_env)
    listener = listen(options.host, options.port)
    scorer, names = make_server_scorer(options, place)
    app = make_app(scorer.score, names, token=token, max_body_bytes=options.max_body_mib << 20)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, proxy_headers=False, server_header=False, lifespan="off", ws="none"
    )
    host, port = address(listener)
    access = "no token" if token is None else f"the token in {options.token_env}"
    print(f"Serving {', '.join(names)} at http://{host}:{port}/score, {access}.", file=sys.stderr, flush=True)
    with listener:
        uvicorn.Server(config).run(sockets=[listener])


def make_server_scorer(
    options: ServeOptions, place: Callable[[nn.Module], nn.Module]
) -> tuple[ServerScorer, list[str]]:
    """The rewards that the settings name, and their names."""
    model_options = RewardModelOptions(
        DTYPES[options.dtype],
        options.trust,
        options.bf16,
        options.max_tokens_per_microbatch,
        place,
        seed=0,
    )
    specs = reward_specs(options, columns=None)
    sources = load_sources(options, specs, None, model_options)
    names = distinct(source.name for source in sources)
    return ServerScorer(sources, names, checked_weights(options.reward_weights, names)), names
