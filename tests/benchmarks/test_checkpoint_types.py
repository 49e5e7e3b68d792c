"""The verdict of benchmarks.checkpoint_types: means of types against the spread of seeds."""

import torch
from benchmarks.checkpoint_types import MEASURES, Regime, in_type, page, summary

from nearstep.demo.prepare import Folders
from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_scalar_model


def runs(*scores):
    return [{"start": dict.fromkeys(MEASURES, -1.0), "end": dict.fromkeys(MEASURES, score)} for score in scores]


def test_types_are_alike_where_their_means_are_no_further_apart_than_seeds():
    alike = page({"float32": runs(0.0, 0.4), "float16": runs(0.3, 0.5)}, Regime(), 60)
    assert "at most 0.200 apart, the seeds of one up to 0.400" in alike
    assert "the types learn alike, within the spread" in alike
    apart = page({"float32": runs(0.0, 0.1), "float16": runs(-0.9, -0.8)}, Regime(), 60)
    assert "at most 0.900 apart, the seeds of one up to 0.100" in apart
    assert "NOT alike" in apart


def test_the_end_of_a_run_is_its_last_quarter():
    metrics = [dict.fromkeys(MEASURES.values(), float(number)) for number in range(8)]
    found = summary(metrics)
    assert found["start"]["score"] == 0
    assert found["end"]["score"] == 6.5


def test_folders_are_opened_in_the_type_in_which_they_were_written(tmp_path):
    for name, make in (("sft", tiny_causal_lm), ("reward", tiny_scalar_model)):
        make().save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
    policy, _ = in_type(Folders.under(tmp_path), torch.float16, tmp_path)
    opened = type(tiny_causal_lm()).from_pretrained(policy)
    assert {weight.dtype for weight in opened.parameters()} == {torch.float16}
