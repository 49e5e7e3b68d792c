"""The sampling distribution: temperature, top-k and top-p, alike for engine and trainer."""

import torch

from nearstep.models.distribution import Sampling, sampling_logprobs

LOGITS = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64).log()


def probabilities(sampling, sampled=None):
    return sampling_logprobs(LOGITS, sampling, sampled).exp()[0]


def test_temperature_divides_logits():
    squared = torch.tensor([0.25, 0.09, 0.0225, 0.0025], dtype=torch.float64)
    torch.testing.assert_close(probabilities(Sampling(0.5)), squared / squared.sum())


def test_top_k_keeps_the_most_probable():
    torch.testing.assert_close(
        probabilities(Sampling(top_k=2)), torch.tensor([0.625, 0.375, 0, 0], dtype=torch.float64)
    )


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    expected = torch.tensor([0.5, 0.3, 0.15, 0], dtype=torch.float64) / 0.95
    torch.testing.assert_close(probabilities(Sampling(top_p=0.9)), expected)
    torch.testing.assert_close(probabilities(Sampling(top_p=1e-9)), torch.tensor([1.0, 0, 0, 0], dtype=torch.float64))


def test_both_cuts_apply_one_after_the_other():
    expected = torch.tensor([0.625, 0.375, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(probabilities(Sampling(top_k=2, top_p=0.9)), expected)
    torch.testing.assert_close(
        probabilities(Sampling(top_k=2, top_p=0.6)), torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    )


def test_the_sampled_token_is_never_cut():
    found = probabilities(Sampling(top_k=1), torch.tensor([3]))
    torch.testing.assert_close(found, torch.tensor([0.5, 0, 0, 0.05], dtype=torch.float64) / 0.55)


def test_bfloat16_logits_are_widened():
    assert sampling_logprobs(LOGITS.to(torch.bfloat16), Sampling()).dtype == torch.float32
