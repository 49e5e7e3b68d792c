"""The pure parts of the benchmarks: what is planned, the floor, medians, ratios and bars, fits."""

import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path

import pytest
import torch
from benchmarks.harness import meter as meter_module
from benchmarks.harness.floor import Floor, Lengths, Rates, body_weights, floor, forward_flops
from benchmarks.harness.layouts import LADDER, Networks, rows_of
from benchmarks.harness.meter import Meter
from benchmarks.harness.results import Bars, Line, Side, floor_lines, lines_of, markdown, side_of
from benchmarks.harness.workload import SIZES, LengthPlan, ModelSize, Workload, causal_model, text_of, tokenizer
from benchmarks.scaling import Point, exponent, fit
from benchmarks.vs_trl import TO_FLOOR, rows

REPOSITORY = Path(__file__).parents[2]
TINY = Workload("tiny", "ppo", model="tiny", rows=8, longest_prompt=32, response_length=16, micro_rows=4)


@pytest.mark.parametrize("size", ["s", "m", "l"])
def test_models_have_the_size_that_the_issue_asks_for(size):
    workload = Workload("size", "ppo", model=size)
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in causal_model(replace(workload, device="meta")).parameters())
    assert {"s": 8e6, "m": 50e6, "l": 0.9e9}[size] < weights < {"s": 12e6, "m": 70e6, "l": 1.3e9}[size]
    assert workload.size.vocabulary >= 32_000


def test_responses_have_40_percent_of_the_limit_on_average_and_some_reach_it():
    lengths = Workload("many", "ppo", rows=1000).response_lengths()
    assert sum(lengths) / 1000 == pytest.approx(0.4 * 128, rel=0.01)
    assert min(lengths) >= 1
    assert max(lengths) == 128
    assert lengths.count(128) == pytest.approx(107, abs=3)  # exp(−1 / 0.448) of 1000


def test_prompts_are_spread_over_their_range_and_distinct():
    prompts = Workload("many", "ppo", rows=32).prompts()
    lengths = [len(prompt) for prompt in prompts]
    assert 16 <= min(lengths) < 24
    assert 248 < max(lengths) <= 256
    assert sum(lengths) / 32 == pytest.approx(136, abs=1)
    assert lengths != sorted(lengths)
    assert len({tuple(prompt) for prompt in prompts}) == 32


def test_the_samples_of_a_prompt_get_its_lengths_in_turn_in_any_order_of_prompts():
    plan = LengthPlan({(1, 2): (5, 7), (3,): (4,)})
    assert plan.lengths([[3], [1, 2], [1, 2]]) == [4, 5, 7]
    assert plan.lengths([[1, 2], [3]]) == [5, 4]


def test_text_gives_the_same_ids_again():
    words = tokenizer(TINY)
    assert words(text_of([3, 0, 17]))["input_ids"] == [3, 0, 17]
    assert (words.eos_token_id, words.pad_token_id) == (TINY.eos, TINY.pad)


def test_operations_of_a_forward_pass_by_hand():
    size = ModelSize(hidden=4, intermediate=6, layers=2, heads=2, kv_heads=1, vocabulary=10, tied=True)
    # A layer: queries and output 4·4 each, keys and values 4·2 each, three products of 4·6.
    assert body_weights(size) == 2 * (32 + 16 + 72)
    # 2 operations per weight; a pair of tokens costs 2 per width for the score, 2 for the mixing, in each layer.
    assert forward_flops(size, tokens=3, seen=5, logits=1) == 2 * 240 * 3 + 4 * 4 * 2 * 5 + 2 * 40


def test_a_prompt_counts_once_however_many_samples_it_has():
    lengths = Lengths(((3, (2, 1)),))
    assert (lengths.prompts, lengths.actions, lengths.tokens, lengths.rows_tokens) == (3, 3, 6, 9)
    assert lengths.seen == 6 + (2 * 3 + 3) + (1 * 3 + 1)  # the prompt's triangle, then each response's rows


def test_the_floor_of_an_update_is_three_forward_passes_of_each_network_and_epoch():
    workload, lengths = replace(TINY, epochs=2), Lengths.of(TINY)
    policy = forward_flops(SIZES["tiny"], tokens=lengths.tokens, seen=lengths.seen, logits=lengths.actions)
    scalar = forward_flops(SIZES["tiny"], tokens=lengths.tokens, seen=lengths.seen, logits=0)
    least = floor(workload, Rates(matrix_flops=1.0, memory_bytes=1e30))
    assert least.update == 2 * 3 * (policy + scalar)
    assert least.score == policy + 2 * scalar
    shared = floor(replace(workload, shared_trunk=True), Rates(1.0, 1e30))
    assert shared.update == 2 * 3 * policy
    assert shared.score == policy + scalar
    critic_free = floor(replace(workload, kind="dppo"), Rates(1.0, 1e30))
    assert (critic_free.update, critic_free.score) == (2 * 3 * policy, 0)


def test_decoding_is_bound_by_reading_where_memory_is_slow():
    lengths, size = Lengths.of(TINY), TINY.size
    least = floor(TINY, Rates(matrix_flops=math.inf, memory_bytes=4.0))
    weights = body_weights(size) + size.hidden * size.vocabulary
    cache = sum(
        2 * size.layers * size.hidden * (prompt + step)
        for prompt, responses in lengths.groups
        for response in responses
        for step in range(1, response)
    )
    assert least.generate == weights * (max(lengths.responses) - 1) + cache


def record(*updates: dict[str, tuple[float, int]], weights: int = 0) -> dict[str, object]:
    spent = [
        {
            phase: {"cpu_seconds": cpu, "wall_seconds": 2 * cpu, "peak_bytes": peak}
            for phase, (cpu, peak) in update.items()
        }
        for update in updates
    ]
    return {"weights_bytes": weights, "updates": spent}


def test_rates_are_the_mean_of_those_before_and_after():
    assert Rates(100.0, 8.0).mean(Rates(80.0, 10.0)) == Rates(90.0, 9.0)


def test_medians_leave_out_a_warm_up_and_memory_counts_above_the_weights():
    first, second = {"update": (9.0, 0)}, {"update": (1.0, 5 * 2**20)}
    side = side_of([record(first, second, weights=2**20), record(first, {"update": (3.0, 2**20)}, weights=2**20)])
    assert side == Side({"update": 2.0}, 4.0, 2.0)  # memory: the median of 4 and 0 MiB
    assert side_of([record(first)]).total == 9.0  # a single update is no warm-up
    assert side_of([record(first)], "wall_seconds").total == 18.0


def test_a_bar_holds_up_to_its_ratio():
    line = Line("work", "seconds", "TRL", theirs=10.0, ours=4.0, bar=0.4, floor=2.0)
    assert (line.ratio, line.holds) == (0.4, True)
    assert Line("work", "seconds", "TRL", 10.0, 4.1, bar=0.4).holds is False
    assert Line("work", "seconds", "TRL", 10.0, 4.0).holds is None
    assert (
        markdown([line]).splitlines()[2] == "| work | seconds | TRL | 10.00 | 4.00 | 0.400 | 0.40 | yes | 5.0 | 2.0 |"
    )


def test_the_lines_of_a_row_judge_what_the_bars_name():
    theirs, ours = (
        Side({"generate": 2.0, "update": 8.0}, 12.0, 100.0),
        Side({"generate": 1.0, "update": 2.0}, 4.0, 50.0),
    )
    bars = Bars(time=0.25, memory=0.6)
    lines = lines_of("work", "TRL", theirs, ours, bars, Floor(generate=0.5, score=0.0, update=1.0), tokens=60)
    scored = {line.measure: (line.ratio, line.holds) for line in lines if line.bar is not None}
    assert scored == {
        "CPU seconds per update": (0.3, False),
        "peak MiB above the weights": (0.5, True),
    }
    (speed,) = (line for line in lines if line.measure.startswith("tokens"))
    assert (speed.theirs, speed.ours) == (6.0, 20.0)


def test_every_bar_of_the_issue_has_a_row():
    bars = [line.bars for line in rows("s", "cpu", "float32")]
    times = sorted(bar.time for bar in bars if bar.time is not None)
    assert times == [0.2, 0.3, 0.3, 0.3, 0.38, 0.5]
    assert [bar.memory for bar in bars if bar.memory is not None] == [0.25]
    assert [line.bars for line in TO_FLOOR] == [Bars(), Bars()]


def test_a_row_of_nearstep_alone_shows_its_phases_beside_the_floor():
    ours = Side({"generate": 1.0, "score": 0.6, "update": 2.5, "other": 0.1}, 4.2, 50.0)
    least = Floor(generate=0.5, score=0.0, update=2.0)
    lines = {line.measure: (line.ratio, line.holds) for line in floor_lines("m", ours, least)}
    assert lines == {
        "generate against its floor": (2.0, None),
        "update against its floor": (1.25, None),
    }


class Peaks:
    """Memory whose peak is 10 bytes higher at each look."""

    def __init__(self):
        self.looks = count(10, 10)

    def in_use(self) -> int:
        return 7

    def peak(self) -> int:
        return next(self.looks)


def test_a_meter_adds_up_stretches_of_a_phase_and_keeps_updates_apart(monkeypatch):
    ticks = count()
    for clock in ("process_time", "perf_counter"):
        monkeypatch.setattr(meter_module.time, clock, lambda: next(ticks) / 2)  # both together: 1 s per mark
    meter = Meter(Peaks())
    meter.start()
    for phase in ("generate", "score", "score", "update", "score", "generate", None):
        meter.mark(phase)
    first, second = meter.updates
    assert {phase: spent.cpu_seconds for phase, spent in first.items()} == {"generate": 1, "score": 2, "update": 1}
    assert first["score"].peak_bytes == 60
    assert list(second) == ["generate"]
    assert meter.weights_bytes == 7


def test_a_meter_has_a_lap_before_the_first_update():
    """The loop's report asks for one as a run begins."""
    seconds, shares = Meter(Peaks()).lap()
    assert 0 < seconds < 1e-6
    assert shares == {}


def test_exponents_of_a_power_law():
    sides = {8: 3.0, 16: 6.0, 32: 12.0}
    points = [Point("rows", n, 10 * n, Side({"update": s}, s, 0.0), float(n * n)) for n, s in sides.items()]
    assert exponent(points, "tokens", "seconds") == pytest.approx(1)
    assert exponent(points, "value", "memory") == pytest.approx(2)
    assert fit("rows", points)["µs per further token"] == pytest.approx(1e6 * 9 / 240)


@pytest.mark.parametrize("step", list(LADDER))
def test_every_rung_of_the_ladder_gives_the_same_gradients(step):
    gradients = []
    for name in ("0 TRL's layout", step):
        networks = Networks.of(TINY)
        LADDER[name](networks, TINY, rows_of(TINY))
        gradients.append(networks.gradients())
    plain, own = gradients
    assert (own - plain).norm() < 1e-5 * plain.norm()


@pytest.mark.slow
@pytest.mark.parametrize(
    "workload",
    [
        TINY,
        replace(TINY, adapters=True, updates=2),
        replace(TINY, kind="rollout", updates=2),
        replace(TINY, kind="dppo", generations=4, trust_region="topk_tv", top_k=5, dtype="bfloat16"),
    ],
    ids=["ppo", "adapters", "rollout", "dppo"],
)
def test_nearstep_runs_a_workload(workload, tmp_path):
    output = tmp_path / "record.json"
    command = [sys.executable, "-m", "benchmarks.harness.nearstep_side", "--workload", json.dumps(asdict(workload))]
    subprocess.run([*command, "--output", str(output)], check=True, cwd=REPOSITORY)
    measured = json.loads(output.read_text())
    assert len(measured["updates"]) == workload.updates
    assert measured["updates"][0]["generate"]["cpu_seconds"] > 0
