"""How a reward model starts: the trunk of a language model under an untrained head."""

import math

import torch
from torch import nn
from transformers import PreTrainedModel

from nearstep.common.random_streams import stream, stream_seed
from nearstep.common.trust import DEFAULT_TRUST, Trust
from nearstep.models.adapters import is_adapted, with_adapters_merged
from nearstep.models.head_bias import add_bias, stored_bias
from nearstep.models.load import check_folder, check_weights, load_classifier, scalar_from_trunk
from nearstep.models.output_layers import output_layer
from nearstep.models.roles import transformers_model

ROLE = "model"


def start_reward_model(
    given: nn.Module | str,
    *,
    seed: int,
    dtype: torch.dtype,
    pad_token_id: int | None,
    trust: Trust = DEFAULT_TRUST,
) -> tuple[PreTrainedModel, bool]:
    """A classification model with one label, and whether its head is new; a trained head is kept.

    `given` is a language model, an encoder or a reward model, as an object, folder or hub name. A new head is normal
    with standard deviation 1/√(width + 1), its bias 0 where the family has one (arXiv 2403.17031, detail 11). Raises
    ModelError for a model that has no such class, and for missing weights of its trunk.
    """
    # transformers draws new layers from the global generator; it gets one of ours and the caller's is put back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "reward model"))
        if isinstance(given, str):
            model, is_new = _from_place(given, dtype, trust)
        else:
            inner = transformers_model(given, ROLE)
            merged = is_adapted(given) and inner.get_output_embeddings() is not None
            model, is_new = _from_object(with_adapters_merged(given) if merged else inner, pad_token_id)
    head = output_layer(model, ROLE)
    if is_new:
        with torch.no_grad():
            std = 1 / math.sqrt(head.in_features + 1)
            start = torch.empty(head.weight.shape).normal_(0.0, std, generator=stream(seed, "reward head"))
            head.weight.copy_(start)
            if head.bias is not None:
                head.bias.zero_()
    if stored_bias(model.config) is not None:
        add_bias(model, head)
    model.config.get_text_config().pad_token_id = pad_token_id
    return model, is_new


def _from_place(name: str, dtype: torch.dtype, trust: Trust) -> tuple[PreTrainedModel, bool]:
    check_folder(name, ROLE)
    model, missing = load_classifier(name, role=ROLE, dtype=dtype, trust=trust, num_labels=1)
    trunk = f"{model.base_model_prefix}."
    # An encoder's pooling layer belongs to its head, wherever transformers keeps it.
    check_weights({key for key in missing if key.startswith(trunk) and ".pooler." not in key}, name, ROLE)
    return model, bool(missing)


def _from_object(model: PreTrainedModel, pad_token_id: int | None) -> tuple[PreTrainedModel, bool]:
    if model.get_output_embeddings() is None:
        return model, False
    return scalar_from_trunk(model, pad_token_id, role=ROLE), True
