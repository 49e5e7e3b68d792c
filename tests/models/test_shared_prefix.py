"""Rows that begin alike, read with their beginning once, give what each row gives alone: numbers and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForSequenceClassification

from nearstep.models.reward import make_reader
from nearstep.models.shared_prefix import Group, pack_groups, shared_length
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


def test_the_common_beginning_is_written_once():
    packed = pack_groups(GROUPS[:2], torch.device("cpu"))
    assert packed.tokens.tolist() == [7, 8, 9, 10, 11, 12, 13, 3, 4, 5]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 4, 5, 4, 0, 1, 2]]
    assert packed.plan.groups == (Group(4, (2, 1)), Group(0, (3,)))
    assert packed.row_ends.tolist() == [5, 6, 9]


rows = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=2, max_size=4)


@settings(max_examples=200)
@given(rows)
def test_every_row_keeps_a_token_of_its_own_and_can_be_read_back(group):
    shared = shared_length(group)
    assert all(len(row) > shared and row[:shared] == group[0][:shared] for row in group)
    packed = pack_groups([group], torch.device("cpu"))
    ends = packed.row_ends.tolist()
    starts = [shared, *(end + 1 for end in ends[:-1])]
    tokens = packed.tokens.tolist()
    assert [tokens[:shared] + tokens[start : end + 1] for start, end in zip(starts, ends, strict=True)] == group
