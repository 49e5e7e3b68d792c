"""How many operations and bytes an update is, and how long it takes by the rates of a machine: an estimate by phase.

6·N·D operations for an epoch over D tokens with N weights of a trained network, 8·N·D where activations are recomputed,
2·N·D for a pass without gradients, attention besides (Kaplan et al., arXiv 2001.08361, section 2.1). A decoding step
takes as long as its operations, as reading weights and cache, or as calling its kernels, whichever is most.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from nearstep.planning.held import gradient_terms, held_always
from nearstep.planning.machines import Machine
from nearstep.planning.quantities import PlannedNetwork
from nearstep.planning.run import PlannedRun

PHASES = ("generate", "score", "update")
STEP_BYTES = 28  # of a weight in Adam's step: gradient, weight and two moments read, three of them written
EIGHT_BIT_STEP_BYTES = 16  # the same where a moment is a byte
UNPACKED_BYTES = 4.5  # of a weight in 4 bits in a pass: read, written in 2 bytes, and read as these
GATHERS = 2  # of weights in a pass with gradients: before it, and on the way back
SUMS_IN_A_LAYER = 2  # tensor parallel: of a pass forward, and as many of one back
MESSAGE_CALLS = 3  # kernels that a message takes as long as, however little is in it
EXCHANGES_IN_A_LAYER = 8  # Ulysses: query, key, value and output, forward and backward


@dataclass(frozen=True)
class Transfer:
    """What a process sends in an update, and how many processes the group has."""

    phase: str
    role: str
    what: str
    bytes: float
    group: int
    beside_work: bool = False  # sent while products are computed
    messages: int = 0  # that each wait for the one before

    def seconds(self, machine: Machine) -> float:
        """By the link that the group has; with the host's memory by its bus."""
        link = machine.link(self.group) if self.group > 1 else machine.host_rate * machine.attained_links
        return self.bytes / link + self.messages * MESSAGE_CALLS * machine.call_seconds


@dataclass(frozen=True)
class PhaseTime:
    """Seconds of a phase of an update."""

    phase: str
    computing: float
    sending: float
    seconds: float


def forward_flops(network: PlannedNetwork, tokens: int, seen: int, logits: int) -> float:
    """Operations of a forward pass: 2 for each weight and token, 4 for each pair and width of attention."""
    size = network.size
    return 2.0 * (
        size.token_weights * tokens
        + 2 * network.passes.layers * network.attention_width * seen
        + (size.head_weights * logits if network.vocabulary else 0)
    )


def transfers(run: PlannedRun) -> list[Transfer]:
    """Everything that a process sends in an update."""
    found = [
        *_gathered_whole(run), *_while_learning(run), *_sums(run), *_within_layers(run), *_within_rows(run),
        *_with_the_host(run),
    ]  # fmt: skip
    return [transfer for transfer in found if transfer.bytes > 0]


def _gathered_whole(run: PlannedRun) -> Iterator[Transfer]:
    """Networks in pieces that are gathered once for all passes without gradients."""
    for network in run.networks:
        mesh = run.mesh_of(network)
        if mesh.in_pieces and not network.on_policy:
            size = run.weights_of(network)
            phase = "generate" if network.role == "policy" else "score"
            sent = size.count * size.bytes_each / mesh.tensor * (mesh.shard - 1) / mesh.shard
            yield Transfer(phase, network.role, "weights gathered", sent * network.copies, mesh.shard)


def _while_learning(run: PlannedRun) -> Iterator[Transfer]:
    """In pieces: weights before and in every backward pass, gradients after each."""
    for network in run.trained:
        mesh, size = run.mesh_of(network), network.size
        if not mesh.in_pieces or network.on_policy:
            continue
        passes = _steps(run, network) * run.passes
        ring = (mesh.shard - 1) / mesh.shard
        through = run.weights_of(network)
        weights = GATHERS * passes * through.count * through.bytes_each / mesh.tensor * ring
        gradients = passes * size.trained * 4 / mesh.tensor * ring
        yield Transfer("update", network.role, "weights gathered", weights, mesh.shard, beside_work=True)
        yield Transfer("update", network.role, "gradients summed", gradients, mesh.shard, beside_work=True)
        if mesh.replicate > 1:
            across = passes * 2 * (mesh.replicate - 1) / mesh.replicate * size.trained * 4 / mesh.weight_pieces()
            yield Transfer("update", network.role, "gradients between copies", across, mesh.devices, beside_work=True)


def _sums(run: PlannedRun) -> Iterator[Transfer]:
    """Whole networks: gradients once a step, under ZeRO-2 in every backward pass, and the new weights besides."""
    for network in run.trained:
        mesh = run.mesh_of(network)
        if mesh.in_pieces or mesh.devices == 1:
            continue
        ring = (mesh.devices - 1) / mesh.devices
        full = sum(term.bytes for term in gradient_terms(run, network)) * mesh.gradient_pieces()
        steps = _steps(run, network)
        if run.under_engine(network):
            sent = steps * ring * (run.passes * full + network.size.trained * network.size.bytes_each)
            yield Transfer("update", network.role, "gradients summed, weights dealt out", sent, mesh.devices)
        else:
            yield Transfer("update", network.role, "gradients summed", steps * 2 * ring * full, mesh.devices)


def _within_layers(run: PlannedRun) -> Iterator[Transfer]:
    """Activations, where processes compute layers together: in every pass, and for every token that is generated."""
    tensor, rows = run.mesh.tensor, run.rows
    if tensor == 1:
        return
    ring = 2 * (tensor - 1) / tensor
    for network in run.networks:
        if network.whole or network.on_policy:
            continue
        sums = SUMS_IN_A_LAYER * network.passes.layers
        state = ring * network.width * network.compute_bytes * sums
        tokens = rows.tokens(rows.rows)
        if network.role == "policy":
            waves = -(-rows.rows // rows.decoding_rows)
            if run.own_engine:
                yield Transfer("generate", network.role, "states summed", state * tokens, tensor,
                               messages=sums * waves * (rows.response + 1))  # fmt: skip
        else:
            passes = -(-rows.rows // rows.fitting(rows.forward_rows))
            yield Transfer("score", network.role, "states summed", state * tokens, tensor, messages=sums * passes)
        if network.trains:
            again = 2 + network.passes.recomputed(run.every) / network.passes.layers
            learnt, steps = rows.tokens(rows.step_rows) * _steps(run, network), _steps(run, network)
            yield Transfer("update", network.role, "states summed", again * state * learnt, tensor,
                           messages=round(again * sums * steps * run.passes))  # fmt: skip


def _within_rows(run: PlannedRun) -> Iterator[Transfer]:
    """Activations, where the tokens of a pass of training lie over processes."""
    mesh = run.mesh
    if mesh.sequence == 1:
        return
    for network in run.trained:
        if network.on_policy:
            continue
        tokens = run.rows.tokens(run.rows.step_rows) * _steps(run, network)
        states = tokens * network.attention_width * network.compute_bytes * network.passes.layers
        sent = EXCHANGES_IN_A_LAYER * (mesh.sequence - 1) / mesh.sequence * states
        messages = round(EXCHANGES_IN_A_LAYER / 2 * network.passes.layers * _steps(run, network) * run.passes)
        yield Transfer("update", network.role, "heads exchanged", sent, mesh.sequence, messages=messages)


def _with_the_host(run: PlannedRun) -> Iterator[Transfer]:
    """Roles that are in the host's memory while they do not compute: brought once an update, and those that learn taken
    back with their moments."""
    for network in run.networks:
        if network.role not in run.offloaded:
            continue
        held = sum(term.bytes for term in held_always(run, network))
        yield Transfer("score", network.role, "from the host", float(held * (2 if network.trains else 1)), 1)


def _steps(run: PlannedRun, network: PlannedNetwork) -> int:
    """Optimizer steps of a network in an update."""
    alone = run.rows.critic_epochs
    epochs = run.rows.epochs if alone is None or network.role == "policy" else alone
    return epochs * run.rows.minibatches


def times(run: PlannedRun, machine: Machine) -> list[PhaseTime]:
    """Seconds of every phase of an update. On a GPU what is sent beside work costs only what is longer than the work;
    on a CPU it takes the processor's time as well."""
    sent = transfers(run)
    computing = {"generate": _generate(run, machine), "score": _score(run, machine), "update": _update(run, machine)}
    found = []
    for phase, seconds in computing.items():
        of_phase = [each for each in sent if each.phase == phase]
        hidden = sum((each.seconds(machine) for each in of_phase if each.beside_work), start=0.0)
        waited = sum((each.seconds(machine) for each in of_phase if not each.beside_work), start=0.0)
        worked = max(seconds, hidden) if machine.is_gpu else seconds + hidden
        found.append(PhaseTime(phase, seconds, hidden + waited, worked + waited))
    return found


def _pass_seconds(
    run: PlannedRun, network: PlannedNetwork, machine: Machine, flops: float, passes: int | float
) -> float:
    """Products of passes, and the calls of their kernels; a GPU computes while the next ones are called."""
    computed = flops / machine.flops(network.compute_bytes) / run.mesh_of(network).tensor
    packed = sum(each.count for each in run.weights_of(network).weights if each.packed is not None)
    computed += passes * packed * UNPACKED_BYTES / (machine.memory_rate * machine.attained_memory)
    called = passes * network.passes.calls * machine.call_seconds
    return max(computed, called) if machine.is_gpu else computed + called


def _generate(run: PlannedRun, machine: Machine) -> float:
    """Prompts are read, then every step reads the weights and what the rows have in the cache."""
    policy, rows = run.policy, run.rows
    if not run.own_engine:
        return 0.0
    live = rows.decoding_rows
    prompts = -(-live // rows.generations)
    first = forward_flops(policy, prompts * rows.prompt, prompts * rows.prompt * (rows.prompt + 1) // 2, prompts)
    mean = rows.prompt + rows.response // 2
    tensor = run.mesh_of(policy).tensor
    step = forward_flops(policy, live, live * mean, live) / machine.flops(policy.compute_bytes) / tensor
    read = (policy.size.bytes + policy.passes.cache * live * mean) / tensor
    memory = read / (machine.memory_rate * machine.attained_memory)
    called = policy.passes.calls * machine.call_seconds
    each = max(step, memory, called) if machine.is_gpu else max(step, memory) + called
    waves = rows.rows / live
    return waves * (_pass_seconds(run, policy, machine, first, 1) + rows.response * each)


def _score(run: PlannedRun, machine: Machine) -> float:
    """One pass of every network that says something about the rows."""
    rows, seconds = run.rows, 0.0
    passes = -(-rows.rows // rows.fitting(rows.forward_rows))
    for network in run.networks:
        if network.role == "policy" or network.on_policy:
            continue
        logits = rows.rows * rows.response if network.vocabulary else 0
        flops = network.copies * forward_flops(network, rows.tokens(rows.rows), rows.seen(rows.rows), logits)
        seconds += _pass_seconds(run, network, machine, flops, passes)
    return seconds


def _update(run: PlannedRun, machine: Machine) -> float:
    """Epochs of every network that learns, and the steps of its optimizer. Partners of one pass compute as much as each
    would alone."""
    rows, seconds = run.rows, 0.0
    for network in run.trained:
        steps, mesh = _steps(run, network), run.mesh_of(network)
        step_bytes = EIGHT_BIT_STEP_BYTES if run.eight_bit else STEP_BYTES
        moved = steps * step_bytes * network.size.trained * network.copies / mesh.moment_pieces()
        seconds += moved / (machine.memory_rate * machine.attained_memory)
        if network.on_policy:
            continue
        factor = 3 + network.passes.recomputed(run.every) / network.passes.layers
        logits = rows.step_rows * rows.response
        flops = factor * forward_flops(network, rows.tokens(rows.step_rows), rows.seen(rows.step_rows), logits)
        seconds += _pass_seconds(run, network, machine, steps * flops, factor * steps * run.passes)
    return seconds
