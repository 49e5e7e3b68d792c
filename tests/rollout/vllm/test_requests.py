"""What vLLM is asked for each row, and what becomes of its answers: worked out by hand."""

import math

import pytest
import torch

from nearstep.common.errors import TrainingError
from nearstep.common.random_streams import stream_seed
from nearstep.models.distribution import Sampling
from nearstep.rollout.engine import GenerationSettings
from nearstep.rollout.vllm.requests import (
    NEVER,
    SampledRow,
    rollout_of_answers,
    row_requests,
    with_sampled_last,
)
from nearstep.rollout.vllm.wire import completion_body, read_completion
from nearstep.types import Prompts

PROMPTS = Prompts([[5, 6], [7]], ["", ""], {}, [3, 8])
SETTINGS = GenerationSettings(Sampling(0.5, top_p=0.9, top_k=4), 6, (2, 9), seed=1, top_tokens=2, limits=(6, 2))
CPU = torch.device("cpu")


def test_a_row_has_its_own_seed_and_limit():
    first, second = row_requests(PROMPTS, SETTINGS, rows=12)
    assert (first.prompt, first.max_tokens, first.seed) == ((5, 6), 6, stream_seed(1, "sampling", 3))
    assert (second.prompt, second.max_tokens, second.seed) == ((7,), 2, stream_seed(1, "sampling", 8))
    assert (first.temperature, first.top_p, first.top_k, first.stop_ids) == (0.5, 0.9, 4, (2, 9))
    assert (first.allowed, first.never) == (None, ())


def test_greedy_rows_are_not_cut():
    settings = GenerationSettings(Sampling(0.5, 0.9, 4), 6, (), seed=1, greedy=True)
    first, _ = row_requests(PROMPTS, settings, rows=12)
    assert (first.temperature, first.top_p, first.top_k) == (0.0, 1.0, 0)


@pytest.mark.parametrize(
    ("vocabulary", "allowed", "never"),
    [(10, None, (10, 11)), (4, (0, 1, 2, 3), ()), (12, None, ()), (20, None, ())],
)
def test_ids_that_are_no_tokens_are_named_by_the_shorter_list(vocabulary, allowed, never):
    settings = GenerationSettings(Sampling(), 6, (), seed=1, vocabulary=vocabulary)
    first, _ = row_requests(PROMPTS, settings, rows=12)
    assert (first.allowed, first.never) == (allowed, never)
    body = completion_body(first, "policy")
    assert body.get("logit_bias") == ({str(token): NEVER for token in never} or None)
    assert body.get("allowed_token_ids") == (None if allowed is None else list(allowed))


def test_nothing_is_left_to_the_servers_defaults():
    body = completion_body(row_requests(PROMPTS, SETTINGS, rows=12)[0], "policy")
    assert body["ignore_eos"] is True
    assert (body["repetition_penalty"], body["presence_penalty"], body["frequency_penalty"]) == (1.0, 0.0, 0.0)
    assert (body["min_p"], body["top_k"], body["logprobs"]) == (0.0, 4, 2)
    assert body["prompt"] == [5, 6]


def test_the_sampled_token_takes_the_last_place_where_it_is_not_among_the_top():
    assert with_sampled_last([4, 1, 6], [-0.1, -2.0, -3.0], 1, -2.0, 2) == ([4, 1], [-0.1, -2.0])
    assert with_sampled_last([4, 1, 6], [-0.1, -2.0, -3.0], 6, -3.0, 2) == ([4, 6], [-0.1, -3.0])
    # top_k kept one token alone: any others fill up, and cannot be sampled
    assert with_sampled_last([3], [0.0], 3, 0.0, 3) == ([3, 0, 1], [0.0, -math.inf, -math.inf])


def answer_of(ids, logprobs, top=None):
    logprobs = {"token_logprobs": logprobs, "top_logprobs": top}
    return {"choices": [{"token_ids": ids, "logprobs": logprobs, "finish_reason": "length"}]}


def test_an_answer_is_read():
    request = row_requests(PROMPTS, SETTINGS, rows=12)[1]
    top = [{"token_id:4": -1.5, "token_id:1": -0.5, "token_id:6": -2.0}, {"token_id:6": -0.1, "token_id:2": -9999.0}]
    row = read_completion(answer_of([4, 6], [-1.5, -0.1], top), request, "row 1")
    assert row == SampledRow([4, 6], [-1.5, -0.1], [[1, 4], [6, 2]], [[-0.5, -1.5], [-0.1, -math.inf]])


@pytest.mark.parametrize(
    "answer",
    [
        {"error": "no"},
        {"choices": []},
        answer_of([4], [-1.0, -2.0], [{}, {}]),
        answer_of(["4"], [-1.0], [{}]),
        answer_of([], [], []),
        answer_of([4], [None], [{"token_id:4": -1.0}]),
        answer_of([4], [-1.0], [{"four": -1.0}]),
        [],
    ],
)
def test_what_is_no_answer_is_refused(answer):
    request = row_requests(PROMPTS, SETTINGS, rows=12)[1]
    with pytest.raises(TrainingError, match="row 1: the answer is no completion"):
        read_completion(answer, request, "row 1")


def test_answers_become_a_rollout():
    answers = [
        SampledRow([4, 2], [-0.5, -0.25], [[4, 1], [2, 4]], [[-0.5, -1.0], [-0.25, -2.0]]),
        SampledRow([6, 1], [-1.0, -2.0], [[6, 1], [5, 1]], [[-1.0, -1.5], [-0.5, -2.0]]),
    ]
    rollout = rollout_of_answers(PROMPTS, SETTINGS, answers, 7, CPU)
    assert rollout.tokens.tolist() == [5, 6, 4, 2, 7, 6, 1]
    assert rollout.is_action.tolist() == [False, False, True, True, False, True, True]
    assert (rollout.finished.tolist(), rollout.policy_version.tolist()) == ([True, False], [7, 7])
    assert rollout.logprobs.tolist() == [-0.5, -0.25, -1.0, -2.0]
    assert rollout.top.ids.tolist() == [[4, 1], [2, 4], [6, 1], [5, 1]]


def test_a_row_that_ends_before_it_may_is_refused():
    answers = [SampledRow([4, 3], [-0.5, -0.5]), SampledRow([6, 1], [-1.0, -1.0])]
    with pytest.raises(TrainingError, match=r"ended row 0 \(episode 3\) after 2 of 6 tokens, at no stop token"):
        rollout_of_answers(PROMPTS, SETTINGS, answers, 7, CPU)
