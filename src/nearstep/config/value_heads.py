"""What the outputs of the critic's last layer mean: the settings of value heads."""

from dataclasses import dataclass

from nearstep.config.axes import VALUE_HEADS, listed
from nearstep.config.settings import Settings, option

VALUE_HEAD_SETTINGS = (
    "value_head", "value_min", "value_max", "value_bins", "value_sigma", "value_quantiles", "value_huber",
    "value_members", "vf_frozen",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ValueHeadSettings(Settings):
    """What the critic's outputs mean, and which of its weights learn."""

    value_head: str = option(
        "linear",
        f"what the outputs of the critic's last layer mean, and how they learn: {listed(VALUE_HEADS)}. bounded, bce "
        "and hl_gauss need value_min and value_max, and no KL penalty in the reward",
        is_place=True,
    )
    value_min: float | None = option(
        None, "bounded, bce, hl_gauss: least return of a response, penalties and all that is done to scores included"
    )
    value_max: float | None = option(None, "bounded, bce, hl_gauss: largest return of a response, likewise")
    value_bins: int = option(51, "hl_gauss: bins between value_min and value_max", at_least=2)
    value_sigma: float = option(0.75, "hl_gauss: σ of a target's Gaussian, in widths of a bin", above=0)
    value_quantiles: int = option(32, "quantile: how many", at_least=1)
    value_huber: float = option(
        0.0,
        "quantile: error up to which the loss is quadratic; large beside the spread of returns it biases the value",
        at_least=0,
    )
    value_members: int = option(
        2, "ensemble: heads on the critic's trunk, each trained on other responses of every prompt", at_least=2
    )
    vf_frozen: tuple[str, ...] = option(
        (), "names of critic weights that do not train, as patterns: '*self_attn*' for attention layers"
    )
