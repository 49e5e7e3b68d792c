"""Whether two tokenizers mean the same by their ids, told by fingerprints that can be sent where a tokenizer cannot."""

import hashlib
import json
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

# What tells tokenizers of one vocabulary apart: added special tokens, spaces, case, digits, accents, scripts.
PROBES = (
    "",
    "Word",
    " A  small\n\ttest of 1234.5 things!",
    "Déjà vu ﬁ ½ Ｆ",
    "日本語 привет 🙂🏽",
    "a\u0301\u200b\r\n",
)


@dataclass(frozen=True)
class TokenizerIdentity:
    """Fingerprints of a tokenizer: `tokens` of what its ids mean, `chat_template` of its template, None without one.

    PAD is not compared beyond its place in the vocabulary, since nothing is padded.
    """

    tokens: str
    chat_template: str | None

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerBase) -> "TokenizerIdentity":
        """The fingerprints of vocabulary, BOS, EOS and the ids of probe texts; and of the chat template."""
        template = tokenizer.chat_template
        return TokenizerIdentity(_tokens(tokenizer), None if template is None else _fingerprint(template))


def same_tokens(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> bool:
    """Whether ids of one tokenizer mean the same to the other: vocabulary, BOS and EOS, and probe texts."""
    return a is b or TokenizerIdentity.of(a).tokens == TokenizerIdentity.of(b).tokens


def reads_ids_of(reader: PreTrainedTokenizerBase, writer: PreTrainedTokenizerBase) -> bool:
    """Whether every id of `writer` means the same to `reader`, which may have a PAD of its own beside: base models come
    without one, and it is added where rewards are learned."""
    if same_tokens(reader, writer):
        return True
    pad = reader.pad_token
    if pad is None or pad in writer.get_vocab() or pad in (reader.bos_token, reader.eos_token, reader.unk_token):
        return False
    return _tokens(reader, without=pad) == _tokens(writer)


def _tokens(tokenizer: PreTrainedTokenizerBase, without: str | None = None) -> str:
    """The fingerprint of what ids mean, one token left out."""
    meaning = [
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        sorted((token, number) for token, number in tokenizer.get_vocab().items() if token != without),
        [tokenizer(probe)["input_ids"] for probe in PROBES],
    ]
    return _fingerprint(meaning)


def _fingerprint(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
