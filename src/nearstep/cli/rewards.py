"""`nearstep rewards`: which reward functions are built in, and what is to be known of one."""

from collections.abc import Iterator
from dataclasses import dataclass

from nearstep.config.settings import Problem, Settings, accepts_old_names, option
from nearstep.rewards.builtin.describe import details, overview
from nearstep.rewards.builtin.table import BUILT_INS


@accepts_old_names
@dataclass(frozen=True, kw_only=True)
class RewardsOptions(Settings):
    """Settings of the listing."""

    names: tuple[str, ...] = option((), "rewards to show in full; all in a list if not given")

    def problems(self) -> Iterator[Problem]:
        """Names are looked up when they are shown."""
        return iter(())


SECTIONS = (("Listing", "names"),)
NOTE = (
    f"Built-in rewards: {', '.join(BUILT_INS)}. nearstep rewards lists what they measure, their ranges and needs; "
    "nearstep rewards NAME shows one in full, with its parameters."
)


def run_rewards(options: RewardsOptions) -> None:
    """Print all rewards in a list, or those named in full. Raises a ConfigError for a name that is none."""
    print("\n\n".join(map(details, options.names)) if options.names else overview())
