"""Compiles the loops for a CPU before a run needs them."""

from functools import cache

import torch

from nearstep.models.attention.interface import LayerInput, Segment
from nearstep.models.attention_cpu import EVERYTHING, Angles, SegmentsOnCPU
from nearstep.models.forward.logits import OfAnswers
from nearstep.models.layer_cpu import Pass, Shape, Weights, run_layer
from nearstep.models.logits_cpu import InLoops
from nearstep.models.products import FEWEST, LANES, outer, times, times_across


@cache
def compile_loops() -> None:
    """Compile them, some twenty seconds where nothing is on the disk yet, so that no update has to wait for it."""
    plan = SegmentsOnCPU((Segment(1),))
    query, key, value = (torch.zeros(1, 1, 1, 4, requires_grad=True) for _ in range(3))
    plan.attend(LayerInput(0, query, key, value, 1.0, None, None)).sum().backward()
    _compile_a_layer(plan)
    states, weight = torch.zeros(FEWEST, LANES), torch.zeros(LANES, LANES)
    times_across(times(states, weight), weight)
    outer(states, states)
    asked, one = torch.zeros(1, 1, dtype=torch.long), slice(0, 1)
    reader, logits = InLoops(asked, 1.0), torch.zeros(1, 2)
    answers = reader.read(logits, one)
    reader.differentiate(logits, one, answers, OfAnswers(torch.zeros(1, 1), torch.zeros(1)))


def _compile_a_layer(plan: SegmentsOnCPU) -> None:
    line, square = torch.zeros(4, requires_grad=True), torch.zeros(4, 4, requires_grad=True)
    weights = Weights(line, square, square, square, None, None, None, square, line, square, square, square)
    run = Pass(Shape((1.0, 1.0), 4, 1.0, EVERYTHING), plan, Angles(torch.zeros(1, 4), torch.zeros(1, 4)), asked=None)
    run_layer(torch.zeros(1, 4), weights, run).sum().backward()
