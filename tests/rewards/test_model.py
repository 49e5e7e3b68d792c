"""A reward model reads what it was trained to read, whatever its tokenizer, and scores it as it would offline."""

import pytest
import torch
from tokenizers import processors

from nearstep.common.errors import RewardError
from nearstep.rewards.combine import Rewards
from nearstep.rewards.identity import TokenizerIdentity, reads_ids_of, same_tokens
from nearstep.rewards.model import ModelReward
from tests.rewards.episodes import play, scored
from tests.tiny import byte_tokenizer, tiny_scalar_model

CHAT = [{"role": "user", "content": "Hi"}]
REPLY = [{"role": "assistant", "content": "yes"}]


class Recorder:
    """A scorer that remembers its rows and scores them by their length."""

    def __init__(self):
        self.rows = None

    def score(self, rows):
        self.rows = rows
        return torch.tensor([float(len(row)) for row in rows])


class Model:
    """A scorer made of a real model, one row at a time."""

    def __init__(self, model):
        self.model = model

    @torch.no_grad()
    def score(self, rows):
        return torch.stack([self.model(torch.tensor([row])).logits[0, 0] for row in rows])


def read(batch, tokenizer, **options):
    """The rows as the reward model reads them."""
    scorer = Recorder()
    settings = {"policy": TokenizerIdentity.of(byte_tokenizer()), "vocabulary_size": 300, **options}
    ModelReward("rm", scorer, tokenizer=tokenizer, **settings).score(batch)
    return scorer.rows


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def with_template(tokenizer, template):
    tokenizer.chat_template = template
    return tokenizer


def with_bos():
    """Another family: other ids, and a start token before any text."""
    tokenizer = byte_tokenizer(shift=7)
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    start = ("<bos>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[start, ("<eos>", tokenizer.eos_token_id)]
    )
    return tokenizer


# --- The same tokenizer


def test_the_same_tokenizer_passes_ids_untouched_even_where_text_does_not_round_trip(tokenizer):
    broken = [[254, 255, 3]]  # bytes that are no text
    assert ids(tokenizer, tokenizer.decode(broken[0])) != broken[0]
    batch = scored(broken, finished=[False])
    assert read(batch, byte_tokenizer()) == [ids(tokenizer, "Say: ") + broken[0]]


def test_the_same_tokenizer_passes_conversations_untouched_under_the_same_template():
    batch = scored([[254, 255, 3]], [CHAT])
    assert read(batch, byte_tokenizer()) == [batch.prompt_ids[0] + batch.completion_ids[0]]


def test_the_same_tokenizer_without_a_template_reads_the_ids_of_the_policy():
    batch = scored(["yes"], [CHAT])
    assert read(batch, byte_tokenizer(chat=False)) == [batch.prompt_ids[0] + batch.completion_ids[0]]


def test_another_template_is_applied_although_tokens_are_the_same(tokenizer):
    other = with_template(byte_tokenizer(), "{% for m in messages %}{{ m['role'] }}={{ m['content'] }};{% endfor %}")
    assert read(scored(["yes"], [CHAT]), other) == [ids(tokenizer, "user=Hi;assistant=yes;")]


def test_a_pad_of_the_readers_own_changes_no_id():
    """Base models come without PAD; it is added where rewards are learned (TRL's scripts, the TL;DR models)."""
    assert reads_ids_of(byte_tokenizer(), byte_tokenizer(pad=None))
    assert not reads_ids_of(byte_tokenizer(pad=None), byte_tokenizer())  # the policy may write an id without a row
    assert not reads_ids_of(byte_tokenizer(shift=7), byte_tokenizer(pad=None))
    other_end = byte_tokenizer()
    other_end.eos_token = "<pad>"
    assert not reads_ids_of(other_end, byte_tokenizer(pad=None))


def test_same_tokens_looks_at_vocabulary_special_tokens_and_encodings():
    assert same_tokens(byte_tokenizer(), byte_tokenizer())
    assert same_tokens(byte_tokenizer(), byte_tokenizer(chat=False))
    assert not same_tokens(byte_tokenizer(), byte_tokenizer(shift=7))
    assert not same_tokens(byte_tokenizer(), byte_tokenizer(pad=None))
    other_end = byte_tokenizer()
    other_end.eos_token = "<pad>"
    assert not same_tokens(byte_tokenizer(), other_end)
    adds_eos = byte_tokenizer()
    adds_eos.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 256)]
    )
    assert not same_tokens(byte_tokenizer(), adds_eos)


# --- Another tokenizer, plain text


def test_text_is_read_with_the_tokenizer_of_the_reward_model_and_eos_only_where_it_ended():
    other = byte_tokenizer(shift=7)
    text = ids(other, "Say: yes")
    assert read(scored(["yes", "yes"], finished=[True, False]), other) == [[*text, other.eos_token_id], text]
    assert text != ids(byte_tokenizer(), "Say: yes")


def test_a_start_token_is_added_once_and_an_end_token_only_where_it_ended():
    other = with_bos()
    bos, eos = other.bos_token_id, other.eos_token_id
    body = ids(other, "Say: yes")
    assert read(scored(["yes", "yes"], finished=[True, False]), other) == [[bos, *body, eos], [bos, *body]]
    already = scored(["yes"], ["<bos>Say: "])
    assert read(already, other) == [[bos, *body, eos]]


def test_an_encoder_gets_its_frame_around_every_text():
    other = byte_tokenizer(shift=7)
    other.add_special_tokens({"cls_token": "<cls>", "sep_token": "<sep>"})
    cls, sep = other.cls_token_id, other.sep_token_id
    other.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<cls> $A <sep>", special_tokens=[("<cls>", cls), ("<sep>", sep)]
    )
    framed = [cls, *ids(other, "Say: yes"), sep]
    assert framed == other("Say: yes")["input_ids"]
    assert read(scored(["yes", "yes"], finished=[True, False]), other) == [framed, framed]


def test_a_text_that_ends_with_eos_does_not_get_a_second_one():
    other = byte_tokenizer(shift=7)
    batch = scored([""], ["Say: <eos>"])
    assert read(batch, other) == [[*ids(other, "Say: "), other.eos_token_id]]


# --- Another tokenizer, conversations


def test_a_conversation_is_read_under_the_template_of_the_reward_model_once():
    other = byte_tokenizer(shift=7)
    expected = other.apply_chat_template(CHAT + REPLY, return_dict=False)
    assert expected[-1] == other.eos_token_id
    assert read(scored(["yes", "yes"], [CHAT, CHAT], finished=[True, False]), other) == [expected, expected[:-1]]


def test_an_answer_that_the_prompt_has_begun_goes_on_in_the_same_message():
    begun = [*CHAT, {"role": "assistant", "content": "It is "}]
    other = byte_tokenizer(shift=7)
    whole = [*CHAT, {"role": "assistant", "content": "It is yes"}]
    assert read(scored(["yes"], [begun]), other) == [other.apply_chat_template(whole, return_dict=False)]


@pytest.mark.parametrize(
    ("template_end", "finished_end", "cut_end"),
    [
        ("<eos>\n", "<eos>", ""),
        ("</turn>\n", "</turn>", ""),
        ("", "<eos>", ""),
        ("\n", "<eos>", ""),
    ],
)
def test_the_turn_is_closed_by_the_template_or_else_by_eos_and_only_if_it_ended(template_end, finished_end, cut_end):
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] + '" + template_end + "' }}{% endfor %}"
    other = with_template(byte_tokenizer(shift=7), template)
    before = f"[user]Hi{template_end}[assistant]"
    rows = read(scored(["yes", "yes", ""], [CHAT] * 3, finished=[True, False, True]), other)
    expected = [f"{before}yes{finished_end}", f"{before}yes{cut_end}", before + finished_end]
    assert rows == [ids(other, text) for text in expected]


def test_keywords_for_the_template_come_from_the_settings_and_a_row_wins():
    """The same template with the same keywords as in the training of the model."""
    tokenizer = with_template(
        byte_tokenizer(shift=7),
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{{ mood }}{{ end | default('') }}",
    )
    rows = [None, {"mood": "b"}, '{"mood": "c", "end": "."}', {"mood": None}]
    batch = scored(["yes"] * 4, [CHAT] * 4, finished=[False] * 4, chat_template_kwargs=rows)
    texts = [tokenizer.decode(row) for row in read(batch, tokenizer, template_kwargs={"mood": "a"})]
    assert texts == ["Hiyes", "Hiyes", "Hiyes", "Hiyes"]  # cut off: what stands behind the reply is left out
    batch = scored(["yes"] * 4, [CHAT] * 4, chat_template_kwargs=rows)
    texts = [tokenizer.decode(row) for row in read(batch, tokenizer, template_kwargs={"mood": "a"})]
    assert texts == ["Hiyesa", "Hiyesb", "Hiyesc.", "Hiyesa"]
    refused(
        r"chat_template_kwargs of row 0 .* must be a mapping without tokenize",
        scored(["yes"], [CHAT], chat_template_kwargs=[{"tokenize": True}]), tokenizer,
    )  # fmt: skip


def test_texts_and_conversations_may_be_mixed():
    other = byte_tokenizer(shift=7)
    chat = other.apply_chat_template(CHAT + REPLY, return_dict=False)
    assert read(scored(["yes", "yes"], ["Say: ", CHAT]), other) == [[*ids(other, "Say: yes"), other.eos_token_id], chat]


# --- What it cannot read


def refused(message, batch, tokenizer, **options):
    with pytest.raises(RewardError, match=message):
        read(batch, tokenizer, **options)


def test_a_conversation_without_a_template_is_refused_with_what_to_do():
    refused("has no chat template.*set its chat_template", scored(["yes"], [CHAT]), byte_tokenizer(shift=7, chat=False))


def test_a_template_that_refuses_the_messages_is_reported_with_the_row():
    picky = "{% if messages[0]['content'] == 'Hi' %}{{ raise_exception('no greetings') }}{% endif %}"
    shows = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    other = with_template(byte_tokenizer(shift=7), picky + shows)
    message = r"row 0 of the batch \(episode 100\): .* refuses the messages: no greetings"
    refused(message, scored(["yes"], [CHAT]), other)


def test_a_template_that_leaves_out_the_reply_is_refused():
    other = with_template(byte_tokenizer(shift=7), "{{ messages[0]['content'] }}")
    refused("leaves out the reply", scored(["yes"], [CHAT]), other)


@pytest.mark.parametrize("shift", [0, 7])
def test_a_row_longer_than_the_model_reads_is_refused_with_its_length(shift):
    batch = scored(["yes", "no more"])  # 5 + 3 + 1 and 5 + 7 + 1 tokens
    assert len(read(batch, byte_tokenizer(shift=shift), max_length=13)[1]) == 13
    message = r"at most 12 tokens, but row 1 of the batch \(episode 101\) has 13: lower max_prompt_length"
    refused(message, batch, byte_tokenizer(shift=shift), max_length=12)


def test_a_token_outside_the_vocabulary_is_refused():
    other = byte_tokenizer(shift=7)
    refused("knows 256 tokens, but row 0 .* contains token 256", scored(["yes"]), other, vocabulary_size=256)
    assert read(scored(["yes"]), other, vocabulary_size=257)


def test_an_empty_row_is_refused():
    refused("finds nothing to read in row 0", scored([""], [""], finished=[False]), byte_tokenizer(shift=7))


def test_a_score_that_is_not_finite_is_an_error_naming_model_and_row():
    class Broken(Recorder):
        def score(self, rows):
            return torch.tensor([0.0, torch.nan])

    model = ModelReward(
        "rm", Broken(), tokenizer=byte_tokenizer(), policy=TokenizerIdentity.of(byte_tokenizer()), vocabulary_size=258
    )
    with pytest.raises(RewardError, match=r"reward 'rm' returned nan for row 1 of the batch \(episode 101\)"):
        Rewards([model], byte_tokenizer())(*play(["a", "b"]))


# --- The score is the one that the model gives offline


@pytest.mark.parametrize("shift", [0, 7])
@pytest.mark.parametrize("chat", [False, True])
def test_the_score_equals_offline_scoring_of_the_same_text(shift, chat):
    other, model = byte_tokenizer(shift=shift), tiny_scalar_model()
    policy = TokenizerIdentity.of(byte_tokenizer())
    reward = ModelReward(
        "rm",
        Model(model),
        tokenizer=other,
        policy=policy,
        vocabulary_size=258,
        max_length=512,
    )
    prompts = [CHAT, [{"role": "user", "content": "Grüße 日本"}]] if chat else ["Say: ", "Grüße 日本: "]
    scores = Rewards([reward], byte_tokenizer())(*play(["yes", "très bien 🙂"], prompts))

    offline = []
    for prompt, reply in zip(prompts, ["yes", "très bien 🙂"], strict=True):
        if chat:
            messages = [*prompt, {"role": "assistant", "content": reply}]
            inputs = other.apply_chat_template(messages, return_tensors="pt", return_dict=True)
        else:
            inputs = other(prompt + reply + other.eos_token, return_tensors="pt")
        offline.append(model(**inputs).logits.item())
    assert scores.total.tolist() == pytest.approx(offline, abs=1e-6)
    assert abs(offline[0] - offline[1]) > 1e-3
