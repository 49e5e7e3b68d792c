"""Adam whose moments take a byte each, from bitsandbytes: whether it runs here, and its state as plain tensors."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from nearstep.common.errors import ConfigError
from nearstep.common.plugins import need_package
from nearstep.config.shared import OptimizerSettings

SMALLEST = 4096  # weights of a tensor from which on bitsandbytes keeps bytes; below, moments are float32


def check_eight_bit(config: OptimizerSettings) -> None:
    """Raise ConfigError where the optimizer's package is missing."""
    if config.optim == "adamw_8bit":
        need_package("bitsandbytes", "quant", "optim = adamw_8bit", ConfigError)


def eight_bit_adamw(
    parameters: Sequence[nn.Parameter], config: OptimizerSettings, learning_rate: float
) -> torch.optim.Optimizer:
    """AdamW with block-wise quantised moments (2110.02861). Raises ConfigError where it cannot step on this device."""
    check_eight_bit(config)
    from bitsandbytes.optim import AdamW8bit

    def made(weights: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = AdamW8bit(
            weights,
            lr=learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
            min_8bit_size=SMALLEST,
        )
        return optimizer

    device = parameters[0].device
    probe = nn.Parameter(torch.zeros(SMALLEST, device=device))
    probe.grad = torch.zeros_like(probe)
    try:
        made([probe]).step()
    except Exception as error:  # what is missing on a device shows in errors of many kinds
        raise ConfigError(
            f"optim = adamw_8bit: bitsandbytes cannot take a step on {device.type} ({type(error).__name__}: "
            f"{str(error).partition(chr(10))[0][:200]}). Use adamw_torch_fused"
        ) from error
    return made(parameters)


def as_tensors(state: Mapping[str, object]) -> Iterator[tuple[str, Tensor]]:
    """What an optimizer keeps of one weight, by name: bitsandbytes nests its bytes, and counts steps in an int."""
    for name, value in state.items():
        if isinstance(value, Mapping):
            yield from as_tensors(value)
        elif isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, int):
            yield name, torch.tensor(value)


def as_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor | int]:
    """The way back: a single whole number becomes an int again (torch's own optimizers count in float32)."""
    counts = {name for name, tensor in tensors.items() if tensor.dim() == 0 and tensor.dtype == torch.int64}
    return {name: int(tensor) if name in counts else tensor for name, tensor in tensors.items()}
