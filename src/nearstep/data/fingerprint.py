"""Whether two tokenizers turn texts into the same ids, told by a hash that can be written down."""

import hashlib
import json

from transformers import PreTrainedTokenizerBase

# What tells tokenizers of one vocabulary apart: added special tokens, spaces, case, digits, accents, scripts, merges.
PROBES = (
    "a",
    " Two  spaces,\ta tab\n\nand 1234.5 (digits)!",
    "Éa e\u0301 ﬁ ½ Ｆ ß İ",
    "数学 привет עולם 🙂🏽 \u200b\r\n",
    "unbelievably antidisestablishmentarianism, re-tokenised: don't",
)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of vocabulary, BOS and EOS, and of the ids of probe texts under the tokenizer's own special tokens.

    PAD is not part of it beyond its place in the vocabulary, since nothing is padded.
    """
    facts = [
        sorted(tokenizer.get_vocab().items()),
        [tokenizer.bos_token_id, tokenizer.eos_token_id],
        [tokenizer(probe)["input_ids"] for probe in PROBES],
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
