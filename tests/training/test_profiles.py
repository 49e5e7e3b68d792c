"""What happens along the row, worked out by hand from seven tokens."""

from dataclasses import replace

import pytest
import torch

from nearstep.metrics import MeanBy, Metrics
from nearstep.reports.details import profile_record
from nearstep.scale.torch_backend import TorchBackend
from nearstep.training.profiles import masked_by_place, profile, tenths_of_row
from nearstep.training.row_trace import rows_to_trace
from nearstep.types import Experience, Rollout
from tests.training.runs import small_recipe

BACKEND = TorchBackend(0, 1, torch.device("cpu"))


class TwoAlike(TorchBackend):
    """Two processes, both with what this one has."""

    def gather(self, item):
        return [item, item]


def experience(lengths=(5, 2), **changes) -> Experience:
    """Rows of as many actions behind prompts of one token."""
    actions, rows = sum(lengths), len(lengths)
    rollout = Rollout(
        tokens=torch.arange(actions + rows),
        is_action=torch.cat([torch.tensor([False] + [True] * length) for length in lengths]),
        row_lengths=torch.tensor(lengths) + 1,
        logprobs=torch.zeros(actions),
        finished=torch.ones(rows, dtype=torch.bool),
        policy_version=torch.ones(rows, dtype=torch.long),
    )
    flat, of_rows = torch.zeros(actions), torch.zeros(rows)
    given = {
        "rollout": rollout, "prompt_numbers": torch.arange(rows),
        "sample_numbers": of_rows.long(), "scores": of_rows, "old_logprobs": flat,
        "old_top": None, "importance": flat + 1, "ref_logprobs": None, "values": flat, "rewards": flat,
        "raw_advantages": flat, "advantages": flat, "returns": flat, "final_values": of_rows, "final_returns": of_rows,
        "train_final": of_rows.bool(), "trained": of_rows == 0, "kl_coef": 0.0,
    }  # fmt: skip
    return Experience(**{**given, **changes})


def test_tenths_of_a_row():
    assert tenths_of_row(torch.tensor([5, 2, 12])).tolist() == [
        *(0, 2, 4, 6, 8),
        *(0, 5),
        *(0, 0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9),
    ]


def test_the_mask_by_sign_and_place():
    advantages = torch.tensor([1.0, -1.0, 1.0, 1.0, 0.0, -1.0, 2.0])
    dropped = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    masked = masked_by_place(experience(advantages=advantages), dropped)
    twice = masked + masked
    record = profile_record(
        3, Metrics({"masked/share": twice, "along_row/kl": MeanBy.of(advantages, dropped.long(), 10)})
    )
    assert record["masked"] == [
        {"sign": "-", "position": 0, "share": 0.0, "count": 2},  # the second row's first
        {"sign": "-", "position": 2, "share": 1.0, "count": 2},
        {"sign": "+", "position": 0, "share": 1.0, "count": 2},
        {"sign": "+", "position": 4, "share": 0.0, "count": 2},
        {"sign": "+", "position": 5, "share": 0.0, "count": 2},
        {"sign": "+", "position": 6, "share": 1.0, "count": 2},
    ]
    assert masked.number() is None


def test_along_the_row_unscored_rows_do_not_count():
    ref = torch.tensor([0.0, -1.0, 0.0, 0.0, 0.0, -9.0, -9.0])
    one = experience(
        ref_logprobs=ref, raw_advantages=torch.tensor([1.0, -3.0, 0.0, 0.0, 0.0, 9.0, 9.0]), values=torch.arange(7.0)
    )
    found = profile(one, torch.tensor([True, False]), "k1", BACKEND, has_critic=False)
    record = profile_record(1, found)
    assert record["value_deciles"] is None
    assert record["masked"] == []
    assert record["along_row"][:2] == [
        {"position": 0, "value": None, "return": None, "advantage_abs": 1.0, "kl": 0.0, "count": 1},
        {"position": 2, "value": None, "return": None, "advantage_abs": 3.0, "kl": 1.0, "count": 1},
    ]
    assert [place["position"] for place in record["along_row"]] == [0, 2, 4, 6, 8]
    nothing = profile(one, torch.tensor([False, False]), "k1", BACKEND, has_critic=True)
    assert profile_record(1, nothing) == {"update": 1, "value_deciles": None, "along_row": [], "masked": []}


def test_ten_groups_of_values_and_the_returns_that_came():
    values = torch.arange(20.0)
    one = experience((20,), values=values.flip(0), returns=values.flip(0) * 2 + 1)
    both = torch.tensor([True])
    alone = profile(one, both, "k1", BACKEND, has_critic=True)
    deciles = profile_record(1, alone)["value_deciles"]
    assert deciles == [{"value": 2 * n + 0.5, "return": 4 * n + 2.0, "count": 2} for n in range(10)]
    of_two = profile(one, both, "k1", TwoAlike(0, 2, BACKEND.device), has_critic=True)
    assert [row["count"] for row in profile_record(1, of_two + of_two)["value_deciles"]] == [4] * 10


def test_values_that_are_all_alike_are_one_group():
    one = experience((6,), returns=torch.arange(6.0))
    record = profile_record(1, profile(one, torch.tensor([True]), "k1", BACKEND, has_critic=True))
    assert record["value_deciles"] == [{"value": 0.0, "return": 2.5, "count": 6}]


def test_numbers_of_a_row(tmp_path):
    one = experience(
        raw_advantages=torch.tensor([1.0, -1.0, 4.0, 0.0, 0.0, -2.0, 4.0]),
        returns=torch.tensor([1.0, 0, 0, 0, 0, 0.5, 0.5]),
        values=torch.tensor([0.0, 0, 0, 0, 0, 1.0, 0.0]),
        ref_logprobs=torch.tensor([-0.5, 0.25, 0, 0, 0, 0, 0]),
        old_logprobs=torch.tensor([0.0, 0, 0, 0, 0, 0, 2.0]).log1p(),
    )
    found = small_recipe(tmp_path).report.details
    details = replace(found, config=replace(found.config, anchor="recomputed"))
    first, second = details.row_numbers(one)
    assert first == pytest.approx({"advantage_abs": 1.2, "value_error": 0.2, "kl": 0.25, "mismatch": 0.0})
    assert second == pytest.approx({"advantage_abs": 3.0, "value_error": 0.5, "kl": 0.0, "mismatch": 2.0})
    without = replace(found, tracer=replace(found.tracer, has_critic=False))
    first, _ = without.row_numbers(replace(one, ref_logprobs=None))
    assert first == {"advantage_abs": pytest.approx(1.2), "value_error": None, "kl": None, "mismatch": None}


def test_the_row_of_largest_advantage_and_others_by_the_stream():
    sizes = {3: 0.1, 5: 0.9, 8: 0.2, 9: 0.3}
    chosen = [tuple(rows_to_trace(sizes, 3, seed=1, update=update)) for update in range(20)]
    assert all(rows[0] == 5 and len({*rows}) == 3 for rows in chosen)
    assert len({*chosen}) > 2
    assert chosen[4] == tuple(rows_to_trace(sizes, 3, seed=1, update=4))
    assert rows_to_trace({}, 2, seed=1, update=1) == []
    assert sorted(rows_to_trace(sizes, 9, seed=1, update=1)) == [3, 5, 8, 9]
