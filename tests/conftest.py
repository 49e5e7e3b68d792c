"""What holds for every test: one torch thread, no network, shapes checked at every call, no example against a clock."""

import importlib.util
import os
import tempfile

import pytest

from tests.cpu_seconds import CpuSeconds

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# What a machine says of itself to programs changes what they print (a build server, a wish for no colours), where they
# connect, as whom, and how many processes they wait for.
os.environ["TERM"] = "xterm"
for name in (
    "CI", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE",
    "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY",
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "WANDB_API_KEY",
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_ERROR_FILE",
):  # fmt: skip
    os.environ.pop(name, None)
# Caches of data sets and models are made for this run: what lies in the home folder, or that it is read-only, is not
# to matter. Workers of xdist are given that of the process that deals to them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="nearstep-tests-")
    os.environ["HF_HOME"] = CACHE.name

# `make check` has beartype; a machine that is only there to try kernels may lack it.
SHAPES_CHECKED = importlib.util.find_spec("beartype") is not None


def pytest_addoption(parser):
    parser.addoption("--cpu-seconds", metavar="FILE", help="write the processor seconds of each test into FILE")


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


def pytest_runtest_setup():
    """Of a function's calls the first in each test are checked."""
    if SHAPES_CHECKED:
        from tests import shapes

        shapes.running.test += 1


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
