"""Several critics, and what the policy leaves out where they agree or disagree: the settings."""

from dataclasses import dataclass

from nearstep.config.settings import Settings, option


@dataclass(frozen=True, kw_only=True)
class SeveralCriticsSettings(Settings):
    """Critics with models of their own, and masks by how far they disagree (AsyPPO)."""

    critic_models: int = option(
        1,
        "critics with a model each, every one trained on other responses to a prompt; the value is their mean",
        at_least=1,
    )
    advantage_mask_share: float = option(
        0.0,
        "share of the actions, those on whose state the critic's members agree most, that have no advantage; 0.2 in "
        "AsyPPO. Needs critic_models of 2 or more, or value_head = ensemble",
        at_least=0, below=1,
    )  # fmt: skip
    entropy_mask_share: float = option(
        0.0,
        "share of the actions, those on whose state the critic's members disagree most, that have no entropy bonus",
        at_least=0, below=1,
    )  # fmt: skip


SEVERAL_CRITICS = tuple(SeveralCriticsSettings.__annotations__)
