"""The preview shows exactly the ids that the model gets."""

import pytest

from nearstep.data.preview import preview, summary
from tests.data.making import EOS, framing_tokenizer, ids_of_text, mix, prompt_set, user


def test_preview_shows_ids_and_every_special_token():
    prompts = prompt_set([{"prompt": user("hi\n you ")}, {"prompt": "b"}, {"prompt": "not shown"}])
    ids = ids_of_text("<|user|>hi\n you <eos><|assistant|>")
    first, last = ", ".join(map(str, ids[:8])), ", ".join(map(str, ids[-8:]))
    assert preview(mix(prompts)).split("\n")[2:] == [
        f"row index 0: {len(ids)} ids, [{first} … {last}]",
        r"    '<|user|>hi\n'",
        "    ' you <eos><|assistant|>'",
        f"row index 1: 1 ids, {ids_of_text('b')}",
        "    'b'",
    ]


def test_no_warning_for_good_prompts():
    assert "warning" not in preview(mix(prompt_set([{"prompt": "a"}], tokenizer=framing_tokenizer())))


def test_warns_of_eos_at_the_end():
    assert "  warning: it ends with EOS" in preview(mix(prompt_set([{"prompt": "a<eos>"}])))
    assert "  warning: it ends with EOS" in preview(mix(prompt_set([{"input_ids": [5, EOS]}])))


def test_warns_of_bos_twice():
    tokenizer = framing_tokenizer(eos=False)
    shown = preview(mix(prompt_set([{"prompt": "<s>a"}], tokenizer=tokenizer)))
    assert "    '<s><s>a'\n  warning: it begins with BOS twice" in shown


def test_fewer_prompts_than_asked_for():
    assert preview(mix(prompt_set([{"prompt": "a"}])), rows=5).count("ids,") == 1


@pytest.mark.parametrize(("length", "left_out"), [(4000, None), (4101, 101)])
def test_very_long_prompts_are_shortened_in_the_middle(length, left_out):
    shown = preview(mix(prompt_set([{"prompt": "a" * length}])))
    assert ("not shown" in shown) == (left_out is not None)
    if left_out is not None:
        assert f"… {left_out} characters not shown …" in shown


def test_control_characters_cannot_reach_the_terminal():
    assert "\x1b" not in preview(mix(prompt_set([{"prompt": "\x1b[2J"}])))


def test_summary_counts_and_quantiles():
    rows = [{"prompt": "a" * length} for length in (10, 3, 1, 2, 4, 5, 6, 7, 8, 9, 50)]
    said = summary(prompt_set(rows, max_prompt_length=20, on_long_prompt="drop")).split("\n")
    assert said == [
        "Prompts from data set 'mine', split 'train': 10 of 11 rows, format prompt",
        "  tokens: shortest 1, median 5, 90 % up to 9, longest 10",
        "  1 of 11 prompts were left out: longer than 20 tokens.",
    ]
