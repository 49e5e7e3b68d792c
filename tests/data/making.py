"""Prompt sets and odd tokenizers for the tests of this folder."""

from tokenizers.processors import TemplateProcessing

from nearstep.data.encode import encode_prompts
from nearstep.data.load import table_of
from nearstep.data.mix import PromptMix
from tests.tiny import byte_tokenizer

EOS, PAD, BOS = 256, 257, 258
VOCAB_SIZE = 300


def ids_of_text(text):
    """What the byte tokenizer makes of plain text."""
    return byte_tokenizer()(text)["input_ids"]


def framing_tokenizer(*, bos=True, eos=True):
    """A byte tokenizer that puts <s> before every text, or <eos> after it."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    single = " ".join(["<s>"] * bos + ["$A"] + ["<eos>"] * eos)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=[("<s>", BOS), ("<eos>", EOS)]
    )
    return tokenizer


def prompt_set(rows, *, tokenizer=None, **options):
    """The prompts of rows given in Python."""
    tokenizer = byte_tokenizer() if tokenizer is None else tokenizer
    table = table_of(rows, "mine", "train")
    return encode_prompts(table, tokenizer, **{"vocab_size": VOCAB_SIZE, **options})


def mix(*sets, weights=None):
    """Prompt sets as what a run plays."""
    return PromptMix(tuple(sets), weights)


def user(text):
    """A chat of one message."""
    return [{"role": "user", "content": text}]
