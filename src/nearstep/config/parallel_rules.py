"""What a run whose processes compute layers together cannot do, said before any weight is loaded."""

from nearstep.common.errors import ConfigError
from nearstep.config.ppo import PPOConfig


def check_tensor_parallel(config: PPOConfig) -> None:
    """Raise ConfigError for a setting that does not go with tp_size, with the way round."""
    reasons = {
        f"engine = {config.engine}": (
            config.engine != "transformers",
            "it takes whole weights, and no process has them. Use engine = transformers, which samples on all "
            "processes together, or dp_shard in the place of tp_size",
        ),
        "max_staleness": (
            config.max_staleness > 0,
            "what is sampled ahead runs on one process by itself. Leave it out, or use dp_shard",
        ),
        "sp_size": (
            config.sp_size > 1,
            "a layer is divided one way or the other. Leave one of them out",
        ),
        "decode_graphs": (config.decode_graphs, "a recorded graph cannot wait for other processes. Leave it out"),
    }
    for setting, (is_asked, why) in reasons.items():
        if is_asked:
            raise ConfigError(f"{setting} with tp_size = {config.tp_size}: {why}")
