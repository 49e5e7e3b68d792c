"""What a network that learns leaves in a checkpoint: its weights and its optimizer's moments, by name."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nearstep.common.errors import CheckpointError
from nearstep.scale.shards import InPieces, dealt_like, own_piece
from nearstep.training.eight_bit import as_state, as_tensors
from nearstep.training.optimizers import Learner

WEIGHT = "weight"  # beside an optimizer's own names: exp_avg, exp_avg_sq, step, …


def learner_tensors(learner: Learner) -> dict[str, Tensor | InPieces]:
    """All tensors of a learner as `name of the weight:what`. Where a weight has a float32 master, that is the weight.

    They are the learner's own, not copies, and in pieces where the weights are. A weight that no step has moved yet has
    no moments.
    """
    names = weight_names(learner)
    tensors: dict[str, Tensor | InPieces]
    if learner.stepper is not None:
        tensors = {}
        for name, weight in zip(names, learner.weights, strict=True):
            tensors[f"{name}:{WEIGHT}"] = learner.stepper.weight(weight)
            tensors |= {f"{name}:{what}": moment for what, moment in learner.stepper.moments(weight).items()}
        return tensors
    moments = learner.optimizer.state_dict()["state"]
    tensors = {f"{name}:{WEIGHT}": weight.detach() for name, weight in zip(names, learner.parameters, strict=True)}
    for number, by_name in moments.items():
        tensors |= {f"{names[number]}:{what}": tensor for what, tensor in as_tensors(by_name)}
    return tensors


def learner_likes(learner: Learner) -> dict[str, Tensor]:
    """By the name of each weight a tensor that lies as it and its moments do here; none of what others keep whole."""
    if learner.stepper is not None:
        return {}
    return {name: weight.detach() for name, weight in zip(weight_names(learner), learner.parameters, strict=True)}


def restore_learner(learner: Learner, tensors: Mapping[str, Tensor], place: str) -> None:
    """Put weights and moments back, as `learner_tensors` gave them, whole or in the pieces of the weights here; of a
    whole one each process keeps its pieces.

    Raises CheckpointError, naming the tensor, where one is missing, left over, or of another shape.
    """
    names = weight_names(learner)
    numbers = {name: number for number, name in enumerate(names)}
    weights: dict[str, Tensor] = {}
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, what = key.rsplit(":", 1)
        if name not in numbers:
            raise CheckpointError(f"{place}: {name} is no weight that trains in this run. Keep the models' settings")
        if what == WEIGHT:
            weights[name] = tensor
        else:
            moments.setdefault(numbers[name], {})[what] = tensor
    for name, parameter in zip(names, learner.weights, strict=True):
        if name not in weights:
            raise CheckpointError(f"{place}: the weight {name} is missing")
        shape = parameter.shape if learner.stepper is None else learner.stepper.shape(parameter)
        if weights[name].shape != shape:
            raise CheckpointError(
                f"{place}: {name} has shape {list(weights[name].shape)}, and here it has {list(shape)}"
            )
    if learner.stepper is not None:
        learner.stepper.restore([weights[name] for name in names], [moments.get(n, {}) for n in range(len(names))])
        return
    with torch.no_grad():
        for name, parameter in zip(names, learner.parameters, strict=True):
            parameter.copy_(dealt_like(weights[name], parameter))
    learner.masters.copy_back()
    for number, parameter in enumerate(learner.parameters):
        if number in moments:
            moments[number] = {what: dealt_like(tensor, parameter) for what, tensor in moments[number].items()}
    groups = learner.optimizer.state_dict()["param_groups"]
    states = {number: as_state(by_name) for number, by_name in moments.items()}
    learner.optimizer.load_state_dict({"state": states, "param_groups": groups})


def first_not_finite(tensors: Mapping[str, Tensor | InPieces]) -> str | None:
    """The name of a tensor that holds a NaN or an infinity, in its piece here; None where all are finite."""
    if not tensors:
        return None
    # One number for each tensor and one transfer for all: a GPU is asked once.
    names = list(tensors)
    finite = torch.stack([own_piece(tensor).isfinite().all().cpu() for tensor in tensors.values()])
    return None if bool(finite.all()) else names[int((~finite).nonzero()[0])]


def weight_names(learner: Learner) -> list[str]:
    """Names of the weights in the order of the optimizer's parameters."""
    known = {id(weight) for weight in learner.weights}
    return [name for name, weight in learner.network.named_parameters() if id(weight) in known]
