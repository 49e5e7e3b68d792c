"""How well a model foretells texts: perplexity, and bits per byte, which does not depend on the tokenizer."""

import math
from collections.abc import Sequence

import numpy as np

from nearstep.evaluation.metrics.figures import Bootstrap, Figure, ratio

NOTHING = "no answer has a token"


def perplexity(
    nll: Sequence[int | float], tokens: Sequence[int], prompts: Sequence[int], bootstrap: Bootstrap, left_out: int = 0
) -> Figure:
    """exp(Σ nll / Σ tokens) over all rows, `nll` in nats: each token weighs the same; n counts tokens."""
    return ratio(nll, tokens, prompts, bootstrap, after=np.exp, left_out=left_out, why=NOTHING)


def bits_per_byte(
    nll: Sequence[int | float], texts: Sequence[str], prompts: Sequence[int], bootstrap: Bootstrap, left_out: int = 0
) -> Figure:
    """Σ nll / (ln 2 · Σ bytes of the texts in UTF-8); n counts bytes."""
    sizes = [len(text.encode("utf-8", "surrogatepass")) for text in texts]
    bits = [each / math.log(2) for each in nll]
    return ratio(bits, sizes, prompts, bootstrap, left_out=left_out, why="the answers have no text")
