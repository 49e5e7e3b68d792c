"""`nearstep ppo` without a network: hub names are looked for in the cache alone, and the user is told."""

import os
import socket

from nearstep.cli import ppo


def test_a_silent_hub_is_not_asked_again_and_again(tmp_path, monkeypatch, capsys):
    def no_route(*address, **options):
        raise OSError("no route")

    monkeypatch.setattr(socket, "create_connection", no_route)
    monkeypatch.setattr(ppo, "getproxies", dict)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    ppo.stay_offline_if_hub_is_silent(["some/model", str(tmp_path)])
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert "some/model can only come from its cache" in capsys.readouterr().err


def test_local_folders_ask_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", None)
    ppo.stay_offline_if_hub_is_silent([str(tmp_path), f"{tmp_path}@40"])


def test_a_hub_name_beside_a_folder_of_its_owner_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ppo, "getproxies", lambda: {"https": "there is one"})
    (tmp_path / "Qwen").mkdir()
    ppo.stay_offline_if_hub_is_silent(["Qwen/Qwen3-0.6B", "other/model", "gpt2"])
    assert capsys.readouterr().err == (
        "nearstep: there is no Qwen/Qwen3-0.6B here, so it is taken for the name of a hub\n"
    )
