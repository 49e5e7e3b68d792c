"""What a process holds of a network all the time, and the gradients that a step of its optimizer takes."""

from dataclasses import dataclass

from nearstep.planning.quantities import PlannedNetwork, Weights
from nearstep.planning.run import PlannedRun

FLOAT32 = 4
# Moments of bitsandbytes: a byte each, and a float32 scale for every 256; of small tensors float32.
EIGHT_BIT_MOMENTS = 2 * (1 + FLOAT32 / 256)


@dataclass(frozen=True)
class Term:
    """Bytes of one thing of one network."""

    role: str
    what: str
    bytes: int


def term_of(network: PlannedNetwork, what: str, size: int | float) -> Term:
    """What each of the copies of a network needs."""
    return Term(network.role, what, round(size * network.copies))


def one_term(network: PlannedNetwork, what: str, size: int | float) -> Term:
    """What the copies of a network need one after the other."""
    return Term(network.role, what, round(size))


def held_always(run: PlannedRun, network: PlannedNetwork) -> list[Term]:
    """Weights, masters and moments."""
    size, mesh = network.size, run.mesh_of(network)
    pieces_are_masters, engine = _pieces_are_masters(run, network), run.under_engine(network)
    weights, masters, moments = 0.0, 0.0, 0.0
    for each in size.weights:
        weights += each.count * FLOAT32 if pieces_are_masters else each.bytes
        if each.trained and network.trains:
            stepped = _stepped_bytes(run, each.bytes_each)
            has_master = engine or (stepped > each.bytes_each and not pieces_are_masters)
            masters += each.count * stepped if has_master else 0
            moments += _moments(run, each, stepped)
    # An engine's pieces are of whole flat tensors: nothing is on several processes.
    found = [
        term_of(network, "weights", weights * mesh.share(size, mesh.weight_pieces())),
        term_of(network, "float32 masters", masters * mesh.share(size, mesh.moment_pieces())),
        term_of(network, "moments", moments * mesh.share(size, mesh.moment_pieces())),
    ]
    if engine and mesh.zero_stage == 3:
        found.append(term_of(network, "DeepSpeed's buffer of gradients", FLOAT32 * size.trained / mesh.shard))
        found.append(bucket_of(run, network))
    return [term for term in found if term.bytes]


def bucket_of(run: PlannedRun, network: PlannedNetwork) -> Term:
    """The message that gradients of an engine go in, which is held as large as it may be."""
    numbers = min(run.zero.bucket, network.size.trained)
    return term_of(network, "DeepSpeed's bucket", numbers * network.size.bytes_each)


def gradient_terms(run: PlannedRun, network: PlannedNetwork) -> list[Term]:
    """The gradients that an optimizer step takes."""
    mesh = run.mesh_of(network)
    full = sum(each.count * _stepped_bytes(run, each.bytes_each) for each in network.size.weights if each.trained)
    return [term_of(network, "gradients", full * mesh.share(network.size, mesh.gradient_pieces()))]


def passing_gradients(run: PlannedRun, network: PlannedNetwork) -> list[Term]:
    """Those of narrow weights, until their masters have taken them; in pieces they are summed layer by layer."""
    if run.mesh_of(network).in_pieces or run.under_engine(network) or not run.masters:
        return []
    narrow = sum(each.bytes for each in network.size.weights if each.trained and each.bytes_each < FLOAT32)
    return [term_of(network, "gradients before masters take them", narrow)] if narrow else []


def _moments(run: PlannedRun, weights: Weights, stepped: int) -> float:
    if not run.adam:
        return 0.0
    if run.eight_bit:
        return (weights.count - weights.small) * EIGHT_BIT_MOMENTS + weights.small * 2 * FLOAT32
    return 2.0 * weights.count * stepped


def _stepped_bytes(run: PlannedRun, bytes_each: int) -> int:
    """Of a number that the optimizer steps: float32 for narrow weights with masters."""
    return max(FLOAT32, bytes_each) if run.masters else bytes_each


def _pieces_are_masters(run: PlannedRun, network: PlannedNetwork) -> bool:
    """Whether pieces are kept in float32 and gathered in the narrow type: all weights train, and are narrow."""
    narrow = all(each.trained and each.bytes_each < FLOAT32 for each in network.size.weights)
    mesh = run.mesh_of(network)
    return mesh.in_pieces and mesh.zero_stage is None and network.trains and run.masters and narrow
