"""What a place on this machine is written out, home and environment in it replaced; which hosts are this machine."""

import ipaddress
import os
import re

_HOME = re.compile(r"(^|=)(~[^/]*)(?=/|$)")  # at the start, or of a parameter's value


def expanded(place: str) -> str:
    """A place as the shell would have it: `~` at its start (or behind `=`), `$NAME` where the environment has it."""
    return os.path.expandvars(_HOME.sub(lambda found: found[1] + os.path.expanduser(found[2]), place))


def is_loopback(host: str) -> bool:
    """Whether a host name can only mean this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
