"""`nearstep watch`: the page of a run in the browser while it goes on."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nearstep.cli.report import PageSettings
from nearstep.common.errors import ConfigError
from nearstep.common.places import expanded
from nearstep.config.rewards import is_loopback
from nearstep.config.settings import Problem, accepts_old_names, option


@accepts_old_names
@dataclass(frozen=True, kw_only=True)
class WatchOptions(PageSettings):
    """Which run is watched, and who may look."""

    host: str = option("127.0.0.1", "address to listen on; any but a loopback address needs a token")
    port: int = option(8010, "port to listen on; 0 for any that is free", at_least=0, at_most=65535)
    token_env: str | None = option(None, "environment variable that holds the token which readers must give")

    def problems(self) -> Iterator[Problem]:
        """What is missing."""
        if self.run is None:
            yield Problem("say which run: nearstep watch RUN", ("run",))
        elif Path(self.run).is_file():
            yield Problem(f"run = {self.run} is a file; give the folder of a run", ("run",))
        if self.token_env is None and not is_loopback(self.host):
            yield Problem(
                f"host = {self.host} can be reached from elsewhere: put a token into an environment variable and name "
                "it by token_env, or listen on 127.0.0.1",
                ("host", "token_env"),
            )
        if self.token_env is not None and not os.environ.get(self.token_env):
            yield Problem(f"token_env: {self.token_env} is not set in the environment", ("token_env",))


SECTIONS = (("Run", "run"), ("Server", "host"))


def run_watch(options: WatchOptions) -> None:
    """Serve the page until interrupted. The folder need not be there yet."""
    from nearstep.reports.page.watched import Watched

    try:
        from nearstep.reports.page.server import serve
    except ImportError as error:
        raise ConfigError(f"watch needs starlette and uvicorn ({error}): pip install 'nearstep[serve]'") from error
    token = None
    if options.token_env is not None:
        from nearstep.rewards.build import token_from

        token = token_from(options.token_env)
    assert options.run is not None
    serve(Watched(Path(expanded(options.run)), options.max_samples), options.host, options.port, token)
