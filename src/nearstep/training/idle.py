"""What of a critic leaves the device while responses are generated and scored."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from nearstep.models.offload import away, tensors_of
from nearstep.training.recipe import Recipe


@contextmanager
def critic_away(r: Recipe) -> Iterator[None]:
    """With offload_roles = value its weights, masters and moments are in the host's memory until this is left."""
    learner = r.learners.critic
    if learner is None or "value" not in r.config.offload_roles:
        yield
        return
    moments = [each for state in learner.optimizer.state.values() for each in state.values()]
    tensors = [*tensors_of(learner.network), *learner.parameters, *moments]
    with away({id(each): each for each in tensors if isinstance(each, Tensor)}.values()):
        yield
