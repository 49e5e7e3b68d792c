"""What passes by in a process's memory: weights that are gathered, cast, unpacked or brought for a pass, and logits."""

from nearstep.planning.held import FLOAT32, Term, one_term
from nearstep.planning.quantities import NetworkSize, PlannedNetwork
from nearstep.planning.run import PlannedRun

# As models/forward has them: logits of a chunk, and those that are worked on in float32.
LOGITS_HELD = {"cpu": 2**24, "cuda": 2**28}
LOGITS_IN_WORK = {"cpu": 2**19, "cuda": 2**26}
IN_WORK_TENSORS = 3


def for_a_pass(run: PlannedRun, network: PlannedNetwork) -> list[Term]:
    """What passes without gradients need beside activations: a network in pieces gathered, with the message in which
    its largest unit comes; copies in another type; a layer out of its 4 bits."""
    mesh, size = run.mesh_of(network), run.weights_of(network)
    found = []
    if mesh.in_pieces:
        unit = max(size.layer_weights, size.outside_weights)
        gathered = size.bytes_each * (size.count * whole_share(run, network) + unit / mesh.tensor)
        found.append(one_term(network, "weights gathered", gathered))
    return [*found, *while_computing(run, network)]


def while_computing(run: PlannedRun, network: PlannedNetwork) -> list[Term]:
    """The copies of weights that autocast keeps for as long as a pass and its way back last; a layer out of its 4
    bits."""
    size, found = run.weights_of(network), []
    if network.autocast:
        cast = 2 * (size.count - size.outside_weights + size.head_weights) / run.mesh_of(network).tensor
        found.append(one_term(network, "weights cast", cast))
    if size.largest_packed:
        found.append(one_term(network, "a layer unpacked", size.largest_packed * size.bytes_each))
    return found


def whole_share(run: PlannedRun, network: PlannedNetwork) -> float:
    """Of a network, what a process has once its pieces are gathered: all, or its part of every layer."""
    mesh = run.mesh_of(network)
    return mesh.share(run.weights_of(network), mesh.tensor)


def layers_gathered(run: PlannedRun, network: PlannedNetwork, *, backward: bool) -> list[Term]:
    """What of a network in pieces is whole while it learns: what lies outside of layers, two layers, a message."""
    mesh, size = run.mesh_of(network), run.weights_of(network)
    if not mesh.in_pieces:
        return []
    if mesh.zero_stage == 3:
        layers = max(2 * size.layer_weights, min(run.zero.gathered, size.count - size.outside_weights))
        units: float = size.outside_weights + size.layer_weights + layers
    elif network.layer_by_layer:
        units = size.outside_weights + 3 * size.layer_weights
    else:
        units = 2 * size.count
    gradients = (size.outside_weights + 2 * size.layer_weights if network.layer_by_layer else size.count) * backward
    trained = size.trained / max(1, size.count)
    return [one_term(network, "layers gathered", size.bytes_each * (units + trained * gradients) / mesh.tensor)]


def logits_bytes(run: PlannedRun, network: PlannedNetwork, actions: int, *, backward: bool) -> int:
    """Of the largest chunk, with its gradient, and what is worked on in float32."""
    device = "cuda" if run.is_gpu else "cpu"
    numbers = min(_chunk(run, network), actions) * network.vocabulary
    in_work = min(numbers, max(LOGITS_IN_WORK[device], 4 * network.vocabulary))
    return numbers * network.compute_bytes * (2 if backward else 1) + IN_WORK_TENSORS * FLOAT32 * in_work


def _chunk(run: PlannedRun, network: PlannedNetwork) -> int:
    """Actions whose logits are there at a time."""
    return max(16, LOGITS_HELD["cuda" if run.is_gpu else "cpu"] // network.vocabulary)


def head_terms(run: PlannedRun, network: PlannedNetwork, *, again: bool) -> list[Term]:
    """The logits of a chunk with their gradient, the states that they come from, and the head's own gradient where it
    is added to one that is there."""
    actions = run.pass_actions
    found = [
        one_term(network, "logits of a chunk", logits_bytes(run, network, actions, backward=True)),
        one_term(network, "states under the head", 2 * actions * network.width * network.compute_bytes),
    ]
    if _head_trains(network.size):
        count = (1 + (again or actions > _chunk(run, network))) * network.size.head_weights
        part = network.size.bytes_each * count / run.mesh_of(network).tensor
        found.append(one_term(network, "gradient of the head", part))
    return found


def _head_trains(size: NetworkSize) -> bool:
    """Whether all weights train, not adapters alone."""
    return size.trained * 2 > size.count
