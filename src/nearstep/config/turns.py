"""Settings of credit by turn, for responses that a tool or a user breaks."""

from collections.abc import Iterator
from dataclasses import dataclass

from nearstep.config.settings import Settings, option, without_effect


@dataclass(frozen=True, kw_only=True)
class TurnSettings(Settings):
    """How credit runs along the turns of a response."""

    turn_gamma: float = option(0.99, "turn_gae: discount per turn", at_least=0, at_most=1)
    turn_lam: float = option(0.9, "turn_gae: lambda per turn", at_least=0, at_most=1)


def turn_remarks(config: TurnSettings, advantage: str) -> Iterator[str]:
    """Settings of turns where credit runs along tokens, and of tokens where it runs along turns."""
    by_turn = advantage == "turn_gae"
    return without_effect(
        config,
        (f"with advantage = {advantage}", not by_turn, ("turn_gamma", "turn_lam")),
        ("with advantage = turn_gae, which counts turns", by_turn, ("gamma", "lam", "lam_length_alpha")),
    )
