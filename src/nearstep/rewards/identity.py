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
        meaning = [
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
            sorted(tokenizer.get_vocab().items()),
            [tokenizer(probe)["input_ids"] for probe in PROBES],
        ]
        template = tokenizer.chat_template
        return TokenizerIdentity(_fingerprint(meaning), None if template is None else _fingerprint(template))


def same_tokens(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> bool:
    """Whether ids of one tokenizer mean the same to the other: vocabulary, BOS and EOS, and probe texts."""
    return a is b or TokenizerIdentity.of(a).tokens == TokenizerIdentity.of(b).tokens


def _fingerprint(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
