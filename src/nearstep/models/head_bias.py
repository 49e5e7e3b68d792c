"""Where the bias of a reward model's or critic's head lives that the user has asked for, and whose family has none.

transformers builds the one-label heads of decoders (Llama, Qwen, GPT-NeoX, …) without a bias, and would drop one found
in a file. In memory the head gets a bias like any other weight; in a folder it stands in config.json as `head_bias`, so
that plain `from_pretrained` still opens the folder and its scores are lower by exactly that number. Without such a
setting heads are as their family has them, and both say the same.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

SETTING = "head_bias"


def stored_bias(config: PreTrainedConfig) -> float | list[float] | None:
    """The bias that a configuration keeps for a head without one, a list where the head has several outputs; None where
    there is none to keep."""
    stored: float | list[float] | None = config.to_dict().get(SETTING)
    return stored


def add_bias(model: PreTrainedModel, head: nn.Linear) -> None:
    """Give the head a bias: the one that the model's configuration keeps, else 0. One that has a bias keeps it."""
    if head.bias is not None:
        return
    start = stored_bias(model.config) or 0.0
    bias = torch.tensor(start, dtype=head.weight.dtype, device=head.weight.device)
    head.bias = nn.Parameter(bias.expand(head.out_features).clone())
    model.config.update({SETTING: start})


def forget_bias(model: PreTrainedModel, head: nn.Linear) -> None:
    """Take off a bias that the configuration keeps."""
    head.register_parameter("bias", None)
    delattr(model.config, SETTING)


def bias_note(model: nn.Module, role: str) -> list[str]:
    """The sentence that tells of a bias which plain transformers leaves out, if there is one."""
    if not isinstance(model, PreTrainedModel):
        return []
    bias = stored_bias(model.config)
    if not bias:
        return []
    name = model.config.name_or_path or type(model).__name__
    added = ", ".join(f"{each:+.4g}" for each in (bias if isinstance(bias, list) else [bias]))
    return [f"{role} {name}: {added} is added to all it says ({SETTING} in its config.json)."]


def store_bias(model: PreTrainedModel, head: nn.Linear, weights: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The state dict to save, its bias moved into the configuration if the family's head has no place for it.

    `weights` are those of the model where a backend has gathered them already.
    """
    weights = dict(model.state_dict() if weights is None else weights)
    if stored_bias(model.config) is None or head.bias is None:
        return weights
    (name,) = (name for name, parameter in model.named_parameters() if parameter is head.bias)
    bias: list[float] = weights.pop(name).tolist()
    model.config.update({SETTING: bias[0] if len(bias) == 1 else bias})
    return weights
