"""Import unsloth before conftest and the tests import what it changes: pytest -p tests.unsloth.first."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")

import unsloth  # noqa: F401
