"""What holds for every test: one torch thread, no network, shapes checked at every call, no example against a clock."""

import importlib.util
import os

import pytest

from tests.cpu_seconds import CpuSeconds

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# What a machine says of itself to programs (a build server, a wish for no colours) changes what they print.
for name in ("CI", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(name, None)

# `make check` has beartype; a machine that is only there to try kernels may lack it.
SHAPES_CHECKED = importlib.util.find_spec("beartype") is not None


def pytest_configure(config):
    config.pluginmanager.register(CpuSeconds(config))
    only_deals_to_workers = config.getoption("numprocesses", None) and not hasattr(config, "workerinput")
    if not only_deals_to_workers:
        prepare()


def prepare():
    """All that takes seconds to import; the shape checker must be there before nearstep is."""
    if SHAPES_CHECKED:
        from tests import shapes

        shapes.install()
    import hypothesis
    import torch

    torch.set_num_threads(1)
    hypothesis.settings.register_profile("untimed", deadline=None)
    hypothesis.settings.load_profile("untimed")


def pytest_report_header():
    return None if SHAPES_CHECKED else "beartype is not installed: shapes are not checked"


@pytest.fixture(scope="session")
def tokenizer():
    from tests.tiny import byte_tokenizer

    return byte_tokenizer()


@pytest.fixture
def policy():
    from tests.tiny import tiny_causal_lm

    return tiny_causal_lm()
