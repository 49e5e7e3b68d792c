"""What ends a response: every end that model and template mean, or exactly what the user names."""

import pytest
from transformers import GenerationConfig, GPT2Config, LlamaConfig

from nearstep.common.errors import ConfigError
from nearstep.data.templates import TEMPLATES
from nearstep.models.stop_tokens import ModelEnds, stop_tokens
from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_config

NONE = ModelEnds((), ())
END = 258  # the first id after <eos> and <pad>


def tokenizer_with(*marks, chat=None, **options):
    tokenizer = byte_tokenizer(chat=False, **options)
    tokenizer.add_special_tokens({"additional_special_tokens": list(marks)})
    tokenizer.chat_template = chat
    return tokenizer


def ends(tokenizer, *, stop_token="auto", stop_token_id=None, vocab_size=262, model=NONE):
    return stop_tokens(
        tokenizer, stop_token=stop_token, stop_token_id=stop_token_id, vocab_size=vocab_size, model=model
    )


def test_exactly_what_is_named_d8():
    tokenizer = tokenizer_with("<end_of_turn>")
    model = ModelEnds((END,), ())
    assert ends(tokenizer, stop_token="eos", model=model).ids == (256,)
    assert ends(tokenizer, stop_token_id=(0, 7), model=model).ids == (0, 7)  # D8: 0 is an id
    assert ends(tokenizer, stop_token=None, model=model).ids == ()
    assert ends(tokenizer, stop_token="\n", model=model).ids == tuple(tokenizer.encode("\n"))
    with pytest.raises(ConfigError, match="3 tokens"):
        ends(tokenizer, stop_token="end")


@pytest.mark.parametrize("eos", [[256, END], END, [END, 256, END]], ids=str)
def test_ends_of_the_generation_config_count(eos):
    model = tiny_causal_lm(vocab_size=262)
    model.generation_config.eos_token_id = eos
    found = ends(tokenizer_with("<end_of_turn>"), model=ModelEnds.of(model, model.config))
    assert found.ids == (256, END)
    assert found.notes == (
        "A response ends with '<eos>' (256: the tokenizer's EOS, model config) or '<end_of_turn>' (258: generation "
        "config). stop_token = eos keeps the tokenizer's EOS alone.",
    )


def test_ends_of_a_folder_are_read_without_its_weights(tmp_path):
    config = tiny_config(vocab_size=262)
    config.save_pretrained(tmp_path)
    tokenizer = tokenizer_with("<end_of_turn>")
    assert ends(tokenizer, model=ModelEnds.of(str(tmp_path), config)).ids == (256,)
    GenerationConfig(eos_token_id=[256, END]).save_pretrained(tmp_path)
    assert ends(tokenizer, model=ModelEnds.of(str(tmp_path), config)).ids == (256, END)


@pytest.mark.parametrize(
    ("template", "mark"),
    [
        (TEMPLATES["chatml"], "<|im_end|>"),
        (TEMPLATES["llama3"], "<|eot_id|>"),
        ("{% for m in messages %}{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}", "<end_of_turn>"),
        ("{% for m in messages %}{{ m['content'] }}<|end|>\n{% endfor %}{{ eos_token }}", "<|end|>"),
    ],
)
def test_the_mark_behind_a_reply_of_the_chat_template_counts(template, mark):
    found = ends(tokenizer_with(mark, chat=template))
    assert found.ids == (256, END)
    assert f"'{mark}' (258: chat template)" in found.notes[0]


def test_an_end_mark_that_is_several_tokens_ends_nothing_and_is_told():
    tokenizer = byte_tokenizer(chat=False)
    tokenizer.chat_template = TEMPLATES["chatml"]
    found = ends(tokenizer)
    assert found.ids == (256,)
    assert "ends a reply with '<|im_end|>', which is no single token" in found.notes[1]


@pytest.mark.parametrize("end", ["", "\n\n", "<eos>", ".", "{{ raise_exception('no assistant') }}"])
def test_white_space_full_stops_and_refusing_templates_end_nothing(end):
    template = "{% for m in messages %}{{ m['content'] }}" + end + "{% endfor %}"
    assert ends(tokenizer_with(chat=template)).ids == (256,)


def test_a_tokenizer_without_eos_ends_with_what_the_others_mean():
    tokenizer = tokenizer_with("<|im_end|>", chat=TEMPLATES["chatml"])
    tokenizer.eos_token = None
    assert ends(tokenizer).ids == (END,)
    tokenizer.chat_template = None
    assert ends(tokenizer, model=ModelEnds((END,), ())).ids == (END,)
    with pytest.raises(ConfigError, match="nothing ends a response"):
        ends(tokenizer)
    with pytest.raises(ConfigError, match="the tokenizer has no EOS"):
        ends(tokenizer, stop_token="eos")


@pytest.mark.parametrize(
    ("options", "source"),
    [
        ({"model": ModelEnds((300,), ())}, "id 300 shall end a response (generation config)"),
        ({"stop_token": None, "stop_token_id": (300,)}, "id 300 shall end a response (stop_token_id)"),
        ({"vocab_size": 258}, "id 258 shall end a response (chat template)"),
        ({"vocab_size": 256}, "id 256 shall end a response (the tokenizer's EOS)"),
        ({"vocab_size": 256, "stop_token": "eos"}, "id 256 shall end a response (the tokenizer's EOS)"),
        ({"vocab_size": 258, "stop_token": "<|im_end|>"}, "id 258 shall end a response (stop_token)"),
    ],
)
def test_an_end_that_the_embedding_cannot_hold_is_refused(options, source):
    tokenizer = tokenizer_with("<|im_end|>", chat=TEMPLATES["chatml"])
    with pytest.raises(ConfigError, match="can never be sampled") as refusal:
        ends(tokenizer, **options)
    assert source in str(refusal.value)


def test_an_eos_that_only_the_class_of_the_model_names_ends_nothing():
    """LlamaConfig() says 2 and GPT2Config() 50256, whatever the tokenizer means by them."""
    for config in (LlamaConfig(vocab_size=258), GPT2Config(vocab_size=258)):
        found = ends(byte_tokenizer(), vocab_size=258, model=ModelEnds.of("/nowhere", config))
        assert found.ids == (256,)
        assert f"names id {config.eos_token_id} as EOS, which is no special token" in found.notes[1]


def test_pad_may_be_an_end_and_negative_ids_mean_none():
    assert ends(byte_tokenizer(pad="<eos>")).ids == (256,)
    model = tiny_causal_lm()
    model.generation_config.eos_token_id = -1
    assert ModelEnds.of(model, model.config) == ModelEnds((), (256,))
