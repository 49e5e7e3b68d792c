"""What holds for every test: one torch thread, no network, shapes checked at every call, no example against a clock."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

install_import_hook("nearstep", "beartype.beartype")

import hypothesis
import pytest
import torch

from tests.tiny import byte_tokenizer, tiny_causal_lm

torch.set_num_threads(1)
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture
def policy():
    return tiny_causal_lm()
