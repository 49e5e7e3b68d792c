"""How much memory a process needs at every stage of an update: weights, gradients, moments, activations, caches, heads.

All is per process. What passes by (a layer gathered, the logits of a chunk) stands under the stage in which it lives.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from nearstep.planning.held import FLOAT32, Term, bucket_of, gradient_terms, held_always, one_term, passing_gradients
from nearstep.planning.passing import for_a_pass, head_terms, layers_gathered, logits_bytes, while_computing
from nearstep.planning.quantities import PlannedNetwork
from nearstep.planning.run import PlannedRun

DECODE_FLOATS = 3  # tempered logits or log-probs, probabilities, and a padded copy of these
CUT_BYTES = 40  # of a logit more, where top_p or top_k sort them
# A processor's allocator has little use for what earlier gradients leave: holes too small for activations.
FREED = "gradients of the last step, freed between others"
# And between gradients and moments, which come and go in turn, it loses as much as half of the gradients.
# Layers that were gathered one by one, and their gradients, leave room between the activations of others.
HOLES_OF_LAYERS = "holes where layers were whole"
HOLES, HOLES_SHARE = "holes between gradients and moments", 0.5
PROGRAM_BYTES = 8 * 2**20  # prompts, tokenizer, reports; on a GPU they are in the host's memory
BUCKET_BYTES = 25 * 2**20  # of gradients in one message


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


def stages(run: PlannedRun) -> list[PlannedStage]:
    """The stages of an update in their order, as they are once the optimizers have moments."""
    held = {network: held_always(run, network) for network in run.networks}
    program = [] if run.is_gpu else [Term("program", "prompts, tokenizer, reports", PROGRAM_BYTES)]

    def stage(phase: str, name: str, terms: list[Term], computing: PlannedNetwork | None = None) -> PlannedStage:
        there = [
            term for network in run.networks if _is_there(run, network, phase, computing) for term in held[network]
        ]
        return PlannedStage(phase, name, (*there, *program, *terms))

    return [
        *(stage("generate", name, terms) for name, terms in _generating(run)),
        *(stage("score", name, terms, network) for name, terms, network in _scoring(run)),
        *(stage("update", name, [*terms, *_holes(run)]) for name, terms in _updating(run)),
    ]


def peak_of(found: list[PlannedStage]) -> PlannedStage:
    """The stage that needs most."""
    return max(found, key=lambda stage: stage.bytes)


def _is_there(run: PlannedRun, network: PlannedNetwork, phase: str, computing: PlannedNetwork | None) -> bool:
    """Whether a network is on the device, not in the host's memory. One that learns comes back once rows have their
    rewards."""
    if network.role not in run.offloaded or network is computing:
        return True
    by_then = phase == "update" or (computing is not None and computing.role != "reward")
    return network.trains and by_then


def _generating(run: PlannedRun) -> Iterator[tuple[str, list[Term]]]:
    policy, rows = run.policy, run.rows
    if not run.own_engine:
        return
    gathered, tensor = for_a_pass(run, policy), run.mesh_of(policy).tensor
    cache = policy.passes.cache * rows.decoding_rows * (rows.prompt + rows.response) / tensor
    prompts = -(-rows.decoding_rows // rows.generations) * rows.prompt
    tokens = min(prompts, max(rows.micro_tokens, rows.prompt))
    keys = one_term(policy, "keys and values", cache)
    working = policy.passes.working * policy.passes.within(tensor) * tokens
    yield "reading prompts", [*gathered, keys, one_term(policy, "activations", working)]
    each = policy.compute_bytes + DECODE_FLOATS * FLOAT32 + CUT_BYTES * run.cuts
    logits = rows.decoding_rows * policy.vocabulary * each
    yield "decoding", [*gathered, keys, one_term(policy, "logits", logits)]


def _scoring(run: PlannedRun) -> Iterator[tuple[str, list[Term], PlannedNetwork]]:
    """Every process has its own rows whole, also where passes of training lie over several."""
    rows = run.rows
    together = rows.fitting(rows.forward_rows)
    for network in run.networks:
        if network.role == "policy" or network.on_policy:
            continue
        working = network.passes.working * network.passes.within(run.mesh_of(network).tensor)
        terms = [*for_a_pass(run, network), one_term(network, "activations", working * rows.tokens(together))]
        if network.vocabulary:
            logits = logits_bytes(run, network, together * rows.response, backward=False)
            terms.append(one_term(network, "logits of a chunk", logits))
        yield f"scores of the {network.role}", terms, network


def _updating(run: PlannedRun) -> Iterator[tuple[str, list[Term]]]:
    """Policy and critic one after the other, micro-batch by micro-batch: gradients of earlier passes are there."""
    together = run.rows.critic_epochs is None
    several = run.passes > 1
    learning = [network for network in run.trained if not network.on_policy]
    for number, network in enumerate(learning):
        beside = learning if together else [network]
        done = beside if several else [each for each in beside if each in learning[:number]]
        there = [term for each in done for term in gradient_terms(run, each)]
        if not run.is_gpu:
            there += [replace(term, what=FREED) for each in learning if each not in done
                      for term in gradient_terms(run, each)]  # fmt: skip
        tensor = run.mesh_of(network).tensor
        activations = one_term(network, "activations", run.pass_tokens * network.passes.kept(run.every, tensor))
        there += while_computing(run, network)
        if network.vocabulary:
            head = head_terms(run, network, again=several)
            gathered = layers_gathered(run, network, backward=False)
            yield f"logits of the {network.role}", [*there, *gathered, activations, *head]
        back = one_term(network, "layer going back", run.pass_tokens * network.passes.backward(run.every, tensor))
        gathered = layers_gathered(run, network, backward=True)
        if run.under_engine(network) and not run.mesh_of(network).in_pieces:
            gathered.append(bucket_of(run, network))
        yield f"the {network.role} goes back", [*there, *gathered, activations, back]
        there = [term for term in there if run.is_gpu or (term.role, term.what) != (network.role, FREED)]
        own = [] if network in done else gradient_terms(run, network)
        yield f"the {network.role} has gone back", [*there, *gathered, *own, *passing_gradients(run, network)]
    if learning and together:
        yield "optimizer step", [*(term for each in learning for term in gradient_terms(run, each)), *_step(run)]


def _holes(run: PlannedRun) -> list[Term]:
    """What a processor's allocator cannot use again; a GPU's pieces between blocks are kept back of its memory."""
    if run.is_gpu:
        return []
    gradients = [term for network in run.trained for term in gradient_terms(run, network)]
    found = [replace(term, what=HOLES, bytes=round(HOLES_SHARE * term.bytes)) for term in gradients]
    for network in run.trained:
        mesh, through = run.mesh_of(network), run.weights_of(network)
        if mesh.in_pieces and not network.on_policy:
            whole = through.bytes_each * (through.count + network.size.trained) / mesh.tensor
            found.append(one_term(network, HOLES_OF_LAYERS, whole))
    return found


def _step(run: PlannedRun) -> list[Term]:
    """What a step needs beside: messages of gradients, copies that an optimizer makes that is not fused."""
    found: list[Term] = []
    for network in run.trained:
        mesh = run.mesh_of(network)
        full = sum(term.bytes for term in gradient_terms(run, network))
        if run.under_engine(network):
            found.append(Term(network.role, "gradients laid for the step", full))
        elif not mesh.in_pieces and mesh.devices > 1:
            found.append(Term(network.role, "a message of gradients", min(full, BUCKET_BYTES)))
        if run.is_gpu and run.adam and not run.fused and not run.eight_bit:
            found.append(Term(network.role, "copies of the optimizer", full))
    return found
