"""The class that gives one number a token on a decoder's trunk: transformers' own, else one made for the family.

transformers has none for some families (Granite, Cohere, LFM2, VaultGemma), and for others one that reads a pooled
state (BERT and its like as decoders). A linear layer named `score` on the last hidden state does for all.
"""

from collections.abc import Hashable
from functools import cache

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForSequenceClassification

SUFFIX = "WithScore"  # of the name under which a folder's config.json knows such a class


def new_scalar_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A random model with one linear head on its trunk. Raises ValueError for a family that is not transformers'."""
    made: PreTrainedModel
    if _fits(config):
        made = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
    else:
        made = _class_over_trunk(type(config))._from_config(config, dtype=dtype)  # type: ignore[arg-type]  # a class can be hashed
    return made


def class_to_load(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The class made for the family where a folder was saved with it, or where transformers has none; else None."""
    is_ours = any(name.endswith(SUFFIX) for name in config.architectures or ())
    brings_one = "AutoModelForSequenceClassification" in (config.to_dict().get("auto_map") or {})
    has_theirs = brings_one or type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    is_alone = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not has_theirs
    return _class_over_trunk(type(config)) if is_ours or is_alone else None  # type: ignore[arg-type]


def is_made_here(model: nn.Module) -> bool:
    """Whether plain transformers has no class for the model."""
    return type(model).__name__.endswith(SUFFIX)


@cache
def _class_over_trunk(config_class: Hashable) -> type[PreTrainedModel]:
    """transformers' generic classification model over the trunk of a family, with the family's own ways to load.

    Raises ValueError for a family whose trunk is not transformers'.
    """
    if config_class not in MODEL_MAPPING:
        raise ValueError(f"transformers has no trunk for {config_class}")
    trunk: type[PreTrainedModel] = MODEL_MAPPING[config_class]
    base = next(each for each in trunk.__mro__[1:] if issubclass(each, PreTrainedModel))
    prefix = base.base_model_prefix  # type: ignore[attr-defined]
    members = {"__module__": __name__, "base_model_prefix": prefix, "config_class": config_class}
    return type(f"{trunk.__name__}{SUFFIX}", (GenericForSequenceClassification, base), members)


def _fits(config: PreTrainedConfig) -> bool:
    """Whether transformers has a class for the family, and it reads every token's own state: as a decoder, BERT's reads
    the first one's."""
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return False
    if not config.to_dict().get("is_decoder", False):
        return True
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    return any(isinstance(child, nn.Linear) and name == "score" for name, child in model.named_children())
