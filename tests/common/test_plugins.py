"""Which packages are there to be imported, and what is said of those that are not."""

import importlib
import sys

import pytest

from nearstep.common.errors import ConfigError
from nearstep.common.import_order import import_unsloth
from nearstep.common.plugins import is_installed, need_package


def test_a_folder_of_a_packages_name_is_no_package(tmp_path, monkeypatch):
    """Python would import it: runs of wandb lie in `wandb/`, and models of a hub's owner in `unsloth/`."""
    for name in ("unsloth", "no_such_package"):
        (tmp_path / name / "Llama-3.2-1B").mkdir(parents=True)
    (tmp_path / "a_package").mkdir()
    (tmp_path / "a_package" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()
    assert [is_installed(name) for name in ("no_such_package", "nor_this", "a_package")] == [False, False, True]
    with pytest.raises(ConfigError, match=r"pip install 'nearstep\[quant\]'"):
        need_package("no_such_package", "quant", "load_in_4bit", ConfigError)
    monkeypatch.delitem(sys.modules, "unsloth", raising=False)
    with pytest.raises(ConfigError, match="unsloth is not installed"):
        import_unsloth("model_loader = unsloth", on_cpu=True)
