"""How much memory a process needs at every stage of an update: weights, gradients, moments, activations, caches, heads.

All is per process. What passes by (a layer gathered, the logits of a chunk) stands under the stage in which it lives.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from nearstep.planning.quantities import NetworkSize, PlannedMesh, PlannedNetwork, PlannedRows

FLOAT32 = 4
# As models/forward has them: logits of a chunk, and those that are worked on in float32.
LOGITS_HELD = {"cpu": 2**24, "cuda": 2**28}
LOGITS_IN_WORK = {"cpu": 2**19, "cuda": 2**26}
IN_WORK_TENSORS = 3
DECODE_FLOATS = 3  # tempered logits or log-probs, probabilities, and a padded copy of these
CUT_BYTES = 40  # of a logit more, where top_p or top_k sort them
# A processor's allocator has little use for what earlier gradients leave: holes too small for activations.
FREED = "gradients of the last step, freed between others"
PROGRAM_BYTES = 24 * 2**20  # prompts, tokenizer, reports; on a GPU they are in the host's memory
BUCKET_BYTES = 25 * 2**20  # of gradients in one message


@dataclass(frozen=True)
class Term:
    """Bytes of one thing of one network."""

    role: str
    what: str
    bytes: int


@dataclass(frozen=True)
class PlannedStage:
    """What lives at one stage of an update."""

    phase: str
    name: str
    terms: tuple[Term, ...]

    @property
    def bytes(self) -> int:
        """All of it."""
        return sum(term.bytes for term in self.terms)


@dataclass(frozen=True)
class PlannedRun:
    """All that memory and time depend on."""

    networks: tuple[PlannedNetwork, ...]
    rows: PlannedRows
    mesh: PlannedMesh
    recomputed: bool = False  # gradient_checkpointing
    adam: bool = True
    fused: bool = True
    masters: bool = True
    is_gpu: bool = True
    cuts: bool = False  # top_p or top_k
    own_engine: bool = True

    def of(self, role: str) -> list[PlannedNetwork]:
        """The networks of a role."""
        return [network for network in self.networks if network.role == role]

    @property
    def policy(self) -> PlannedNetwork:
        """The network that is trained."""
        return self.of("policy")[0]

    @property
    def trained(self) -> list[PlannedNetwork]:
        """The networks with an optimizer."""
        return [network for network in self.networks if network.trains]

    def mesh_of(self, network: PlannedNetwork) -> PlannedMesh:
        """How a network lies: reward models, and roles that are to be whole, are whole on every process."""
        return PlannedMesh(self.mesh.devices) if network.whole else self.mesh


def stages(run: PlannedRun) -> list[PlannedStage]:
    """The stages of an update in their order, as they are once the optimizers have moments."""
    held = [term for network in run.networks for term in held_always(run, network)]
    if not run.is_gpu:
        held.append(Term("program", "prompts, tokenizer, reports", PROGRAM_BYTES))
    return [
        *(PlannedStage("generate", name, (*held, *terms)) for name, terms in _generating(run)),
        *(PlannedStage("score", name, (*held, *terms)) for name, terms in _scoring(run)),
        *(PlannedStage("update", name, (*held, *terms)) for name, terms in _updating(run)),
    ]


def peak_of(found: list[PlannedStage]) -> PlannedStage:
    """The stage that needs most."""
    return max(found, key=lambda stage: stage.bytes)


def held_always(run: PlannedRun, network: PlannedNetwork) -> list[Term]:
    """Weights, masters and moments."""
    size, mesh = network.size, run.mesh_of(network)
    weights, masters, moments = 0.0, 0.0, 0.0
    pieces_are_masters = _pieces_are_masters(run, network)
    for each in size.weights:
        weights += each.count * (FLOAT32 if pieces_are_masters else each.bytes_each)
        if each.trained and network.trains:
            stepped = _stepped_bytes(run, each.bytes_each)
            masters += each.count * stepped if stepped > each.bytes_each and not pieces_are_masters else 0
            moments += each.count * 2 * stepped if run.adam else 0
    found = [
        _term(network, "weights", weights * mesh.share(size, mesh.weight_pieces())),
        _term(network, "float32 masters", masters * mesh.share(size, mesh.moment_pieces())),
        _term(network, "moments", moments * mesh.share(size, mesh.moment_pieces())),
    ]
    return [term for term in found if term.bytes]


def gradient_terms(run: PlannedRun, network: PlannedNetwork) -> list[Term]:
    """The gradients that an optimizer step takes."""
    mesh = run.mesh_of(network)
    full = sum(each.count * _stepped_bytes(run, each.bytes_each) for each in network.size.weights if each.trained)
    return [_term(network, "gradients", full * mesh.share(network.size, mesh.gradient_pieces()))]


def _passing_gradients(run: PlannedRun, network: PlannedNetwork) -> list[Term]:
    """Those of narrow weights, until their masters have taken them; in pieces they are summed layer by layer."""
    if run.mesh_of(network).in_pieces or not run.masters:
        return []
    narrow = sum(each.bytes for each in network.size.weights if each.trained and each.bytes_each < FLOAT32)
    return [_term(network, "gradients before masters take them", narrow)] if narrow else []


def _stepped_bytes(run: PlannedRun, bytes_each: int) -> int:
    """Of a number that the optimizer steps: float32 for narrow weights with masters."""
    return max(FLOAT32, bytes_each) if run.masters else bytes_each


def _pieces_are_masters(run: PlannedRun, network: PlannedNetwork) -> bool:
    """Whether pieces are kept in float32 and gathered in the narrow type: all weights train, and are narrow."""
    narrow = all(each.trained and each.bytes_each < FLOAT32 for each in network.size.weights)
    return run.mesh_of(network).in_pieces and network.trains and run.masters and narrow


def _term(network: PlannedNetwork, what: str, size: int | float) -> Term:
    return Term(network.role, what, round(size * network.copies))


def _one(network: PlannedNetwork, what: str, size: int | float) -> Term:
    """What the copies of a network need one after the other."""
    return Term(network.role, what, round(size))


def _whole(run: PlannedRun, network: PlannedNetwork) -> list[Term]:
    """A network gathered for passes without gradients, and the message in which its largest unit comes."""
    mesh = run.mesh_of(network)
    if not mesh.in_pieces:
        return []
    size = _weights_of(run, network)
    unit = max(size.layer_weights, size.outside_weights)
    return [_one(network, "weights gathered", size.bytes_each * (size.count + unit) / mesh.tensor)]


def _casts(run: PlannedRun, network: PlannedNetwork) -> list[Term]:
    """The copies of weights that autocast keeps for as long as a pass and its way back last."""
    if not network.autocast:
        return []
    size = _weights_of(run, network)
    return [
        _one(network, "weights cast", 2 * (size.count - size.outside_weights + size.head_weights) / run.mesh.tensor)
    ]


def _weights_of(run: PlannedRun, network: PlannedNetwork) -> NetworkSize:
    """The weights that its passes run through: the policy's where it has few of its own."""
    return run.policy.size if network.weights_of_policy or network.on_policy else network.size


def _layers_gathered(run: PlannedRun, network: PlannedNetwork, *, backward: bool) -> list[Term]:
    """What of a network in pieces is whole while it learns: what lies outside of layers, two layers, a message."""
    mesh, size = run.mesh_of(network), _weights_of(run, network)
    if not mesh.in_pieces:
        return []
    units = size.outside_weights + 3 * size.layer_weights if network.layer_by_layer else 2 * size.count
    gradients = (size.outside_weights + 2 * size.layer_weights if network.layer_by_layer else size.count) * backward
    trained = size.trained / max(1, size.count)
    return [_one(network, "layers gathered", size.bytes_each * (units + trained * gradients) / mesh.tensor)]


def _generating(run: PlannedRun) -> Iterator[tuple[str, list[Term]]]:
    policy, rows = run.policy, run.rows
    if not run.own_engine:
        return
    gathered = [*_whole(run, policy), *_casts(run, policy)]
    cache = policy.passes.cache * rows.decoding_rows * (rows.prompt + rows.response)
    prompts = -(-rows.decoding_rows // rows.generations) * rows.prompt
    tokens = min(prompts, max(rows.micro_tokens, rows.prompt))
    keys = _one(policy, "keys and values", cache)
    yield "reading prompts", [*gathered, keys, _one(policy, "activations", policy.passes.working * tokens)]
    each = policy.compute_bytes + DECODE_FLOATS * FLOAT32 + CUT_BYTES * run.cuts
    logits = rows.decoding_rows * policy.vocabulary * each
    yield "decoding", [*gathered, keys, _one(policy, "logits", logits)]


def _scoring(run: PlannedRun) -> Iterator[tuple[str, list[Term]]]:
    rows = run.rows
    together = rows.fitting(rows.forward_rows)
    for network in run.networks:
        if network.role == "policy" or network.on_policy:
            continue
        terms = [
            *_whole(run, network),
            *_casts(run, network),
            _one(network, "activations", network.passes.working * rows.tokens(together)),
        ]
        if network.vocabulary:
            terms.append(_one(network, "logits of a chunk", _logits(run, network, together, backward=False)))
        yield f"scores of the {network.role}", terms


def _updating(run: PlannedRun) -> Iterator[tuple[str, list[Term]]]:
    """Policy and critic one after the other, micro-batch by micro-batch: gradients of earlier passes are there."""
    together = run.rows.critic_epochs is None
    several = run.rows.passes > 1
    learning = [network for network in run.trained if not network.on_policy]
    for number, network in enumerate(learning):
        beside = learning if together else [network]
        done = beside if several else [each for each in beside if each in learning[:number]]
        there = [term for each in done for term in gradient_terms(run, each)]
        if not run.is_gpu:
            there += [replace(term, what=FREED) for each in learning if each not in done
                      for term in gradient_terms(run, each)]  # fmt: skip
        kept = run.rows.tokens(run.rows.pass_rows) * network.passes.kept(recomputed=run.recomputed) / run.mesh.sequence
        activations = _one(network, "activations", kept)
        there += _casts(run, network)
        if network.vocabulary:
            head = _head_terms(run, network, again=several)
            gathered = _layers_gathered(run, network, backward=False)
            yield f"logits of the {network.role}", [*there, *gathered, activations, *head]
        working = run.rows.tokens(run.rows.pass_rows) * network.passes.backward(recomputed=run.recomputed)
        back = _one(network, "layer going back", working / run.mesh.sequence)
        gathered = _layers_gathered(run, network, backward=True)
        yield f"the {network.role} goes back", [*there, *gathered, activations, back]
        there = [term for term in there if run.is_gpu or (term.role, term.what) != (network.role, FREED)]
        own = [] if network in done else gradient_terms(run, network)
        yield f"the {network.role} has gone back", [*there, *gathered, *own, *_passing_gradients(run, network)]
    if learning and together:
        yield "optimizer step", [*(term for each in learning for term in gradient_terms(run, each)), *_step(run)]


def _step(run: PlannedRun) -> list[Term]:
    """What a step needs beside: messages of gradients, copies that an optimizer makes that is not fused."""
    found: list[Term] = []
    for network in run.trained:
        mesh = run.mesh_of(network)
        full = sum(term.bytes for term in gradient_terms(run, network))
        if not mesh.in_pieces and mesh.devices > 1:
            found.append(Term(network.role, "a message of gradients", min(full, BUCKET_BYTES)))
        if run.is_gpu and run.adam and not run.fused:
            found.append(Term(network.role, "copies of the optimizer", full))
    return found


def _logits(run: PlannedRun, network: PlannedNetwork, rows: int, *, backward: bool) -> int:
    """Of the largest chunk, with its gradient, and what is worked on in float32."""
    device = "cuda" if run.is_gpu else "cpu"
    chunk = max(16, LOGITS_HELD[device] // network.vocabulary)
    numbers = min(chunk, rows * run.rows.response) * network.vocabulary
    in_work = min(numbers, max(LOGITS_IN_WORK[device], 4 * network.vocabulary))
    return numbers * network.compute_bytes * (2 if backward else 1) + IN_WORK_TENSORS * FLOAT32 * in_work


def _head_terms(run: PlannedRun, network: PlannedNetwork, *, again: bool) -> list[Term]:
    """The logits of a chunk with their gradient, the states that they come from, and the head's own gradient where it
    is added to one that is there."""
    actions = run.rows.pass_rows * run.rows.response
    found = [
        _one(network, "logits of a chunk", _logits(run, network, run.rows.pass_rows, backward=True)),
        _one(network, "states under the head", 2 * actions * network.width * network.compute_bytes),
    ]
    several_chunks = actions > max(16, LOGITS_HELD["cuda" if run.is_gpu else "cpu"] // network.vocabulary)
    if _head_trains(network.size):
        count = (1 + (again or several_chunks)) * network.size.head_weights
        found.append(_one(network, "gradient of the head", count * network.size.bytes_each / run.mesh.tensor))
    return found


def _head_trains(size: NetworkSize) -> bool:
    """Whether all weights train, not adapters alone."""
    return size.trained * 2 > size.count
