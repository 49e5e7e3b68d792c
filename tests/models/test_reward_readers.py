"""Rows that begin alike, read with their beginning once, give what each row gives alone: numbers and gradients."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from nearstep.models.reward_model import common_leads, make_reader, make_scorer, shared_length
from tests.models.test_roles_and_loading import SMALL
from tests.tiny import tiny_scalar_model

START = [7, 8, 9, 10]
GROUPS = [
    [[*START, 11, 12], [*START, 13]],
    [[3, 4, 5]],
    [[20, 21], [22, 23, 24]],
    [[*START, 1], [*START, 1, 2], [*START, 5, 6, 7, 8]],
]


def alone(reader, groups):
    return torch.cat([reader.rewards([[row]]) for rows in groups for row in rows])


def classifier(kind, **changes):
    torch.manual_seed(0)
    config = type(AutoConfig.for_model(kind))(**{**SMALL, "num_labels": 1, **changes})
    return AutoModelForSequenceClassification.from_config(config)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gpt2"])
def test_rewards_are_those_of_each_row_alone(kind):
    reader = make_reader(tiny_scalar_model(kind, dtype=torch.float64), role="model", pad_token_id=257)
    torch.testing.assert_close(reader.rewards(GROUPS), alone(reader, GROUPS), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("mistral", {"sliding_window": 2}), ("gemma2", {"sliding_window": 3}), ("qwen3", {})],
)
def test_families_with_windows_and_caps(kind, changes):
    reader = make_reader(classifier(kind, **changes).double(), role="model", pad_token_id=0)
    torch.testing.assert_close(reader.rewards(GROUPS), alone(reader, GROUPS), atol=1e-12, rtol=1e-12)


def test_gradients_are_those_of_each_row_alone():
    found = []
    for read in (lambda reader: reader.rewards(GROUPS), lambda reader: alone(reader, GROUPS)):
        model = tiny_scalar_model("gpt2", dtype=torch.float64)  # Llama's norms compute in float32
        reader = make_reader(model, role="model", pad_token_id=257)
        rewards = read(reader)
        (rewards * torch.arange(1.0, len(rewards) + 1)).sum().backward()
        found.append({name: weights.grad for name, weights in model.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], atol=1e-10, rtol=1e-10)


def test_recomputing_activations_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = tiny_scalar_model(dtype=torch.float64)
        make_reader(model, role="model", pad_token_id=257, checkpointing=checkpointing).rewards(GROUPS).sum().backward()
        gradients.append(model.get_input_embeddings().weight.grad)
    assert torch.equal(*gradients)


def test_an_encoder_reads_every_row_under_its_own_mask():
    model = classifier("bert").double()
    reader = make_reader(model, role="model", pad_token_id=0)
    torch.testing.assert_close(reader.rewards(GROUPS), alone(reader, GROUPS), atol=1e-12, rtol=1e-12)


def test_the_common_beginning_is_read_once():
    model = tiny_scalar_model()
    reader, seen = make_reader(model, role="model", pad_token_id=257), []
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, _: seen.append(inputs[0][0].tolist()))
    reader.rewards(GROUPS[:2])
    assert seen == [[7, 8, 9, 10, 11, 12, 13, 3, 4, 5]]


def read_by(model):
    """Token ids of every forward pass from now on."""
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, _: seen.append(inputs[0][0].tolist()))
    return seen


ROWS = [[*START, 1], [*START, 2], [*START, 1], [7, 8, 30], [40], [*START, 3]]


def test_a_scorer_reads_once_what_neighbours_begin_with():
    model = tiny_scalar_model()
    scorer = make_scorer(model, role="reward_model", pad_token_id=257, max_tokens=100)
    seen = read_by(model)
    scorer.score(ROWS)
    assert seen == [[*START, 1, 2, 1, 7, 8, 30, 40, *START, 3]]


@pytest.mark.parametrize("max_tokens", [1, 6, 7, 9, 100])
def test_scores_are_those_of_each_row_alone(max_tokens):
    model = tiny_scalar_model(dtype=torch.float64)
    scorer = make_scorer(model, role="reward_model", pad_token_id=257, max_tokens=max_tokens)
    expected = torch.cat([scorer.score([row]) for row in ROWS])
    seen = read_by(model)
    torch.testing.assert_close(scorer.score(ROWS), expected, atol=1e-12, rtol=1e-12)
    assert all(len(ids) <= max(max_tokens, 5) for ids in seen)


def test_common_leads():
    assert common_leads(ROWS) == [4, 4, 4, 0, 0, 0]
    assert common_leads([[1, 2, 3], [1, 2, 4], [1, 5], [1, 6], [1, 7]]) == [1] * 5  # four times 1 beats once 2
    assert common_leads([[1, 2, 3, 4], [1, 2, 3, 5], [1, 6]]) == [3, 3, 0]  # twice 1 does not beat once 3
    assert common_leads([[1, 2], [1, 2], [1, 2]]) == [2, 2, 2]
    assert common_leads([[1]]) == [0]


def test_shared_length():
    assert shared_length([[1, 2, 3], [1, 2, 4], [1, 2]]) == 2
    assert shared_length([[1, 2], [3, 2]]) == 0
    assert shared_length([[1, 2, 3]]) == 0
