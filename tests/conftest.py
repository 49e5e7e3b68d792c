"""What holds for every test: one torch thread, no network, shapes checked at every call."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

install_import_hook("nearstep", "beartype.beartype")

import pytest
import torch

from tests.tiny import byte_tokenizer, tiny_causal_lm

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture
def policy():
    return tiny_causal_lm()
