"""Which frozen weights lie under a policy's adapters, and how the adapters of other roles stand on them.

Every role has modules of its own over the same tensors (`without_adapters`), so no pass switches adapters on or off for
another: what a layer computes when its activations are recomputed does not depend on who computes beside it.
"""

from pathlib import Path

from torch import nn

from nearstep.algorithm.value_heads import LinearHead
from nearstep.common.errors import ModelError
from nearstep.models.adapter_folders import AdapterFolder, put_on
from nearstep.models.adapters import adapters_of, is_adapted, trains_under_adapters, without_adapters
from nearstep.models.head_bias import add_bias
from nearstep.models.output_layers import HEAD_NAMES, output_layer
from nearstep.models.shared_trunk import classifier_around


def why_apart(folder: AdapterFolder, policy: nn.Module) -> str | None:
    """Why the adapters of a folder cannot stand on the weights under a policy's; None where they can."""
    if not is_adapted(policy):
        return "the policy has no adapters, so its own weights train"
    own = adapters_of(policy).base_model_name_or_path
    if folder.holds_everything:
        return "their model lies in the same folder, and is another than the policy's"
    if not own or not _same_place(own, folder.base):
        return f"they belong to the model {folder.base!r}, and the policy's to {own!r}"
    if trains_under_adapters(policy):
        return "the policy trains weights under its adapters too (as with bias = all)"
    base = without_adapters(policy)
    embeddings = base.get_input_embeddings()
    layer = next(name for name, module in base.named_modules() if module is embeddings)
    if folder.rows(layer) not in (None, embeddings.weight.shape[0]):
        return f"they were trained with {folder.rows(layer)} tokens, and the policy has {embeddings.weight.shape[0]}"
    return None


def scalar_on_base(folder: AdapterFolder, policy: nn.Module, pad_token_id: int | None) -> nn.Module:
    """A folder of adapters with a one-label head as a model on the frozen weights under the policy's adapters.

    Raises ModelError where the adapters belong to other weights, or the folder has no head.
    """
    reason = why_apart(folder, policy)
    if reason is not None:
        raise ModelError(
            f"{folder.role}: the adapters in {folder.name!r} cannot stand on the policy's base: {reason}. Train them "
            "on the model that is under the policy's adapters, or give the role a model of its own (reward_trunk, "
            "critic_trunk = separate)"
        )
    model = classifier_around(without_adapters(policy), pad_token_id, LinearHead(), role=folder.role)
    heads = [name for name, _ in model.named_children() if name in HEAD_NAMES]
    if not any(f"{head}.weight" in folder.tensors for head in heads):
        raise ModelError(
            f"{folder.role}: the adapters in {folder.name!r} come without a head that gives one number. Give a folder "
            "that nearstep reward has left (reward_adapter), or another whose modules_to_save has the head"
        )
    if any(f"{head}.bias" in folder.tensors for head in heads):
        add_bias(model, output_layer(model, folder.role))
    return put_on(model, folder)


def _same_place(one: str, other: str) -> bool:
    """Whether two names lead to one model: the same folder, or the same name on the hub."""
    return one == other or (Path(one).is_dir() and Path(one).resolve() == Path(other).resolve())
