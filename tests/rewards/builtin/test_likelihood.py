"""The likelihood reward against a forward pass of one row at a time."""

import math

import pytest
import torch

from nearstep.common.errors import ModelError
from nearstep.rewards.builtin import Likelihood
from tests.rewards.builtin.asking import value, values
from tests.tiny import byte_tokenizer, tiny_causal_lm

CHAT = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language_model")
    tiny_causal_lm(seed=5).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def alone(prompt, text):
    """exp of the mean log-probability of the text's tokens, by the model itself."""
    tokenizer, model = byte_tokenizer(), tiny_causal_lm(seed=5)
    before = tokenizer(prompt)["input_ids"] or [tokenizer.eos_token_id]
    ids = torch.tensor([before + tokenizer(text)["input_ids"]])
    with torch.no_grad():
        logprobs = model(ids).logits[0].log_softmax(-1)
    steps = [float(logprobs[place - 1, ids[0, place]]) for place in range(len(before), ids.shape[1])]
    return math.exp(sum(steps) / len(steps))


def test_it_is_the_geometric_mean_of_the_token_probabilities(folder):
    rows = [("Say: ", "hello"), ("A: ", "b"), ("", "no prompt"), ("Say more: ", "word " * 20)]
    expected = [alone(*row) for row in rows]
    prompts, texts = zip(*rows, strict=True)
    for batch_tokens in (16384, 40):
        found = values(Likelihood(model=folder, batch_tokens=batch_tokens), *texts, prompts=list(prompts))
        assert found == pytest.approx(expected, rel=1e-4)


def test_a_conversation_is_read_under_the_model_s_own_template(folder):
    rendered = byte_tokenizer().apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    answer = [{"role": "assistant", "content": "Hello"}]
    assert value(Likelihood(model=folder), answer, prompts=CHAT) == pytest.approx(alone(rendered, "Hello"), rel=1e-4)


def test_nothing_said_is_worth_0_though_nothing_is_unlikely(folder):
    assert values(Likelihood(model=folder), "", "a", " ")[::2] == [0.0, 0.0]
    assert values(Likelihood(model=folder), "") == [0.0]


def test_what_the_model_cannot_read_is_an_error(folder, tmp_path):
    with pytest.raises(ModelError, match="reads at most 512 tokens, but a prompt and its completion have 605"):
        value(Likelihood(model=folder), "a" * 600)
    tiny_causal_lm().save_pretrained(tmp_path)
    byte_tokenizer(chat=False).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has no chat template, but a prompt is a conversation"):
        value(Likelihood(model=str(tmp_path)), "a", prompts=CHAT)


def test_a_model_that_is_not_there_is_told_before_the_run(tmp_path):
    with pytest.raises(ModelError, match=r"reward 'likelihood': the folder .* does not exist"):
        Likelihood(model=str(tmp_path / "none")).check_columns([])
