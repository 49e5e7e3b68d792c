"""Rows that begin alike, read with their beginning once, give what each row gives alone: numbers and gradients."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from nearstep.models.reward import make_reader, shared_length
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


def test_shared_length():
    assert shared_length([[1, 2, 3], [1, 2, 4], [1, 2]]) == 2
    assert shared_length([[1, 2], [3, 2]]) == 0
    assert shared_length([[1, 2, 3]]) == 0
