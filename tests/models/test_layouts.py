"""How rows lie: packed where that gives what each row gives alone, else padded, else the model is refused."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BartConfig, BartForConditionalGeneration
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast

from nearstep.common.errors import ModelError
from nearstep.models.distribution import Sampling
from nearstep.models.forward import layout as layouts
from nearstep.models.forward.forward import rollout_logprobs, rollout_values, row_states
from nearstep.models.forward.head import LogitShape, OwnLogits
from nearstep.models.forward.layout import PackedRows, PaddedRows
from nearstep.models.forward.trunk import last_states
from nearstep.models.load import family_of
from nearstep.models.roles import make_critic, make_policy
from tests.families.tiny_families import tiny_family_config
from tests.models.test_forward import ROWS, by_hand, rollout_of
from tests.models.test_roles_and_loading import family
from tests.tiny import tiny_causal_lm

LONG = [([1] * 3, [2] * 9), *ROWS, ([7], [8])]


def tiny(kind, **changes):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_family_config(kind, **changes))
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() > 1:
                weights.mul_(4)
    return model.eval()


class Recurrent(nn.Module):
    """A module of a user's own: ids and mask to logits, or to one number a token."""

    def __init__(self, outputs=20, *, squeeze=False):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.cell = nn.Embedding(40, 8), nn.GRU(8, 8, batch_first=True)
        self.out, self.squeeze = nn.Linear(8, outputs), squeeze

    def forward(self, ids, mask):
        assert ids.shape == mask.shape
        found = self.out(self.cell(self.embedding(ids))[0])
        return found.squeeze(-1) if self.squeeze else found


class WithLogits(Recurrent):
    def forward(self, ids, mask):
        return SimpleNamespace(logits=super().forward(ids, mask))


class SeesTheBatch(Recurrent):
    def forward(self, ids, mask):
        found = super().forward(ids, mask)
        return found + found.mean(0, keepdim=True)


class SeesWhatFollows(Recurrent):
    def forward(self, ids, mask):
        return super().forward(ids.flip(1), mask).flip(1)


@pytest.mark.parametrize("kind", ["bloom", "gptj"])
def test_padded_rows_give_the_numbers_and_gradients_of_rows_alone(kind):
    def everything(rollouts):
        policy = make_policy(tiny(kind).double())
        assert isinstance(policy.layout, PaddedRows)
        found = [rollout_logprobs(policy, rollout, Sampling(0.7)).sampled for rollout in rollouts]
        weights = torch.arange(1.0, sum(map(len, found)) + 1, dtype=torch.float64).cos()
        (torch.cat(found) * weights).sum().backward()
        return [torch.cat(found).detach(), *(p.grad for p in policy.model.parameters() if p.grad is not None)]

    whole = rollout_of(LONG)
    together = everything([whole])
    apart = everything([whole.select(torch.tensor([row])) for row in range(len(LONG))])
    assert len(together) == len(apart) > 10
    for ours, alone in zip(together, apart, strict=True):
        torch.testing.assert_close(ours, alone, atol=1e-9 * max(float(alone.abs().max()), 1e-3), rtol=0)
    torch.testing.assert_close(together[0].float(), by_hand(tiny(kind), LONG, 0.7), atol=1e-4, rtol=0)


def test_rows_of_about_the_same_length_are_padded_together(monkeypatch):
    shapes = []
    plain = layouts.masked_states

    def seen(trunk, ids, mask, *, autocast=False):
        shapes.append((tuple(ids.shape), mask.sum(1).tolist()))
        return plain(trunk, ids, mask, autocast=autocast)

    policy = make_policy(tiny("bloom"))
    monkeypatch.setattr(layouts, "masked_states", seen)
    lengths = torch.tensor([3, 9, 2, 1, 12])
    row_states(policy, torch.arange(27), lengths)
    assert shapes == [((1, 1), [1]), ((2, 3), [3, 2]), ((2, 12), [9, 12])]


def test_no_padded_row_sees_another():
    policy = make_policy(tiny("mamba"))
    rows = [([4, 5], [6, 7]), ([8, 9, 10], [11])]
    one = rollout_logprobs(policy, rollout_of(rows), Sampling()).sampled
    two = rollout_logprobs(policy, rollout_of([([40, 50], [60, 70]), rows[1]]), Sampling()).sampled
    assert torch.equal(one[2:], two[2:])
    assert not torch.equal(one[:2], two[:2])


@pytest.mark.parametrize(
    ("kind", "reading"),
    [
        ("nanochat", LogitShape(softcap=15.0)),
        ("granite", LogitShape(scale=1 / 3.0)),
        ("hyperclovax", LogitShape(scale=3.0)),
        ("cohere2", LogitShape(scale=0.0625)),
        ("bert", OwnLogits(258)),  # layers of its own before the last one
        ("rembert", OwnLogits(258)),
    ],
)
def test_logits_come_about_as_the_model_has_them(kind, reading):
    scales = {"logits_scaling": 3.0} if kind in ("granite", "hyperclovax") else {}
    policy = make_policy(tiny(kind, **scales))
    assert policy.reading == reading
    found = rollout_logprobs(policy, rollout_of(ROWS), Sampling()).sampled
    torch.testing.assert_close(found, by_hand(tiny(kind, **scales), ROWS), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_the_balancing_loss_of_experts_is_not_taken_for_logits_f01(kind):
    model = tiny(kind, output_router_logits=True)
    expected = by_hand(tiny(kind), ROWS)
    found = rollout_logprobs(make_policy(model), rollout_of(ROWS), Sampling()).sampled
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert model.config.output_router_logits


def test_outputs_are_read_by_name():
    states, logits, loss = torch.zeros(1, 2, 3), torch.ones(1, 2, 5), torch.tensor(1.0)
    assert last_states(MoeCausalLMOutputWithPast(aux_loss=loss, logits=logits)) is logits
    assert last_states(MoeModelOutputWithPast(last_hidden_state=states, router_logits=(logits,))) is states
    assert last_states(SimpleNamespace(logits=logits)) is logits
    assert last_states(states) is states


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("llama4_text", "asks for a window of None, its mask for one of 4"),
        ("doge", "fails"),  # each query picks its own keys
        ("bloom", "attention of BloomModel cannot be exchanged"),
        ("gpt_oss", "other numbers than for each row alone"),  # sinks
    ],
)
def test_what_cannot_be_packed_says_why_and_runs_padded(kind, why):
    policy = make_policy(tiny(kind))
    assert why in policy.layout.note
    found = rollout_logprobs(policy, rollout_of(LONG), Sampling()).sampled
    torch.testing.assert_close(found, by_hand(tiny(kind), LONG), atol=1e-4, rtol=0)


@pytest.mark.parametrize("make", [Recurrent, WithLogits])
def test_a_module_of_the_users_own_is_a_policy(make):
    policy = make_policy(make())
    rows = [([1, 2], [3, 4, 5]), ([6], [7])]
    found = rollout_logprobs(policy, rollout_of(rows), Sampling(0.7)).sampled
    ids, answers = torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([3, 4, 5])
    logits = Recurrent()(ids, torch.ones_like(ids))[0] / 0.7
    torch.testing.assert_close(found[:3], logits.log_softmax(-1)[[1, 2, 3], answers], atol=1e-5, rtol=0)
    assert family_of(make()).vocab_size == 20


@pytest.mark.parametrize("squeeze", [True, False])
def test_a_module_of_the_users_own_is_a_critic(squeeze):
    critic = make_critic(Recurrent(1, squeeze=squeeze))
    values = rollout_values(critic, rollout_of([([1, 2], [3, 4]), ([6], [7])]))
    ids = torch.tensor([[1, 2, 3, 4]])
    expected = Recurrent(1)(ids, torch.ones_like(ids))[0, :, 0]
    torch.testing.assert_close(values.before_actions[:2], expected[1:3])
    torch.testing.assert_close(values.final[0], expected[3])


class Draws(Recurrent):
    """Dropout that asks no mode."""

    def forward(self, ids, mask):
        return torch.nn.functional.dropout(super().forward(ids, mask), 0.3, training=True)


def dropped_out(model):
    model.model.layers[0].register_forward_hook(lambda layer, given, out: torch.nn.functional.dropout(out, 0.2))
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: make_policy(Draws()), r"Draws is random: .* gap .*F\.dropout with training=True"),
        (lambda: make_policy(dropped_out(tiny("llama"))), r"is random: for the same tokens"),
        (lambda: make_policy(SeesTheBatch()), r"Packed, .* ids and mask only; padded, .*relative gap [0-9]"),
        (lambda: make_policy(SeesWhatFollows()), r"is not causal: .*relative gap"),
        (lambda: make_policy(tiny("bert", is_decoder=False)), r"is not causal: .* is_decoder = true"),
        (lambda: make_policy(Recurrent(1)), r"gives \[1, 2, 1\] for ids of \[1, 2\]. .*\[rows, width, vocabulary\]"),
        (lambda: make_critic(Recurrent(3)), r"gives \[1, 2, 3\] .* one number a token"),
        (lambda: make_policy(Recurrent(), checkpointing=True), "gradient_checkpointing: Recurrent has no layers"),
        (lambda: make_policy(tiny("mpt"), checkpointing=True), None),
    ],
)
def test_what_cannot_play_its_role_is_refused_with_the_reason(make, words):
    if words is None:
        make()
        return
    with pytest.raises(ModelError, match=words):
        make()


def test_encoder_decoder_models_are_refused_with_the_reason(tmp_path):
    config = BartConfig(
        vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=64,
    )  # fmt: skip
    model = BartForConditionalGeneration(config)
    for make in (make_policy, make_critic, family_of):
        with pytest.raises(ModelError, match="bart is an encoder-decoder model"):
            make(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="bart is an encoder-decoder model"):
        family_of(str(tmp_path))


def test_what_can_be_packed_is():
    assert isinstance(make_policy(tiny_causal_lm()).layout, PackedRows)
    assert isinstance(make_policy(family("gemma2", sliding_window=2)).layout, PackedRows)
