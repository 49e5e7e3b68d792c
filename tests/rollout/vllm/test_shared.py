"""One vLLM server for two processes, which are threads here: weights once, rows of each, errors on both."""

import threading
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from nearstep import ConfigError, PPOConfig
from nearstep.assembly.engine import engine_settings
from nearstep.common.errors import LostEngineError, NearstepError
from nearstep.models.roles import make_policy
from nearstep.rollout.engine import EngineSettings, play
from nearstep.rollout.engine_settings import VLLMServerSettings
from nearstep.rollout.vllm import client as client_module
from nearstep.rollout.vllm import server as server_module
from nearstep.rollout.vllm.server import make_vllm_server
from nearstep.rollout.vllm.shared import SharedServerEngine
from nearstep.scale.torch_backend import TorchBackend
from nearstep.testing.engine_stage import SETTINGS
from nearstep.testing.world import prompts_of, reset_weights, small_model
from tests.engines.two_processes import check_shared
from tests.rollout.vllm.stub import StubVLLM, settings_for

CPU = torch.device("cpu")
HALVES = ([0, 1, 2], [3, 4])
SERVER = {"engine": "vllm_server", "engine_url": ("http://127.0.0.1:1",), "output_dir": "somewhere"}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(server_module, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(client_module, "QUEUE_SECONDS", 0.01)


@dataclass
class Ranks:
    """What two threads pass each other."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=600))
    items: list = field(default_factory=lambda: [None, None])


@dataclass(frozen=True)
class Rank(TorchBackend):
    """The backend of one of them."""

    ranks: Ranks = field(default_factory=Ranks)

    def wait_for_all(self):
        self.ranks.barrier.wait()

    def gather(self, item):
        self.ranks.items[self.rank] = item
        self.wait_for_all()
        found = list(self.ranks.items)
        self.wait_for_all()
        return found


def on_both(act):
    """What `act` returns or raises on each rank."""
    ranks, found = Ranks(), [None, None]

    def run(rank):
        try:
            found[rank] = act(Rank(rank, 2, CPU, ranks=ranks))
        except NearstepError as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    return found


def engine_of(rank, server, folder, retries=2):
    settings = VLLMServerSettings(server.url, str(folder), timeout_seconds=2.0, retries=retries, shared=True)
    return SharedServerEngine.of(make_vllm_server(EngineSettings(max_rows=3, server=settings)), rank)


def expected_of(policy, server, folder):
    """What each rank gets from a server of its own."""
    own = make_vllm_server(settings_for(server.url, folder / "own"))
    own.load(policy, 1)
    found = [own.generate(prompts_of(rows), SETTINGS).tokens.tolist() for rows in HALVES]
    own.close()
    return found


def test_weights_go_once_and_each_asks_for_its_rows(tmp_path):
    policy = make_policy(small_model())
    with StubVLLM() as server:
        before = expected_of(policy, server, tmp_path)

        def run(rank):
            engine = engine_of(rank, server, tmp_path / "weights")
            engine.load(policy, 1)
            first = play(engine, prompts_of(HALVES[rank.rank]), SETTINGS, version=1)
            rank.wait_for_all()
            if rank.rank == 0:
                reset_weights(policy.model, seed=1)
            engine.load(policy, 2)
            second = play(engine, prompts_of(HALVES[rank.rank]), SETTINGS, version=2)
            rank.wait_for_all()
            engine.close()
            return first.tokens.tolist(), second.tokens.tolist(), second.policy_version.unique().tolist()

        found = on_both(run)
        assert server.asked.count("/collective_rpc") == 1 + 2
        assert [each[0] for each in found] == before
        assert [each[1] for each in found] == expected_of(policy, server, tmp_path) != before
        assert [each[2] for each in found] == [[2], [2]]
    assert not (tmp_path / "weights").exists()


@pytest.mark.slow
def test_a_server_that_was_started_anew_is_given_the_weights_by_whoever_notices(tmp_path):
    """Both may; the second finds rows of the first there, which have the same weights."""
    policy = make_policy(small_model())
    with StubVLLM() as server:
        expected = expected_of(policy, server, tmp_path)

        def run(rank):
            engine = engine_of(rank, server, tmp_path / "weights")
            engine.load(policy, 1)
            rank.wait_for_all()
            if rank.rank == 0:
                server.version = "default"
                server.engine.load(make_policy(small_model(seed=1)), 0)
            rank.wait_for_all()
            return play(engine, prompts_of(HALVES[rank.rank]), SETTINGS, version=1).tokens.tolist()

        assert on_both(run) == expected


def test_rows_of_the_other_process_are_no_strangers(tmp_path):
    """A reset of the cache that their rows prevent is no error once the server has this run's weights."""
    policy = make_policy(small_model())
    with StubVLLM() as server:

        def run(rank):
            engine = engine_of(rank, server, tmp_path / "weights")
            engine.load(policy, 1)
            if rank.rank == 1:
                server.faults["/reset_prefix_cache"] = [lambda handler: handler.say(200, {"success": False})]
                engine.engine._publish()
            return "done"

        assert on_both(run) == ["done", "done"]


def test_what_the_first_process_is_told_all_are(tmp_path):
    policy = make_policy(small_model())
    with StubVLLM() as server:
        server.stop()
        found = on_both(lambda rank: engine_of(rank, server, tmp_path / "weights", retries=0).load(policy, 1))
    assert all(isinstance(error, LostEngineError) for error in found), found
    assert str(found[0]) == str(found[1])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_whole_run_of_two_processes(tmp_path):
    """Real ones; tests/engines does the same with the real vLLM."""
    with StubVLLM(longest_row=512) as server:
        check_shared(server.url, tmp_path)


@pytest.mark.parametrize(("rank", "urls", "url", "folder", "shared"), [
    (1, ("http://127.0.0.1:1",), "http://127.0.0.1:1", "rank-0", True),
    (1, ("http://127.0.0.1:1", "http://127.0.0.1:2"), "http://127.0.0.1:2", "rank-1", False),
])  # fmt: skip
def test_one_address_is_shared_and_as_many_as_processes_are_not(rank, urls, url, folder, shared):
    config = PPOConfig(**{**SERVER, "engine_url": urls})
    server = engine_settings(config, TorchBackend(rank, 2, CPU)).server
    assert (server.url, server.weights_dir.rpartition("/")[2], server.shared) == (url, folder, shared)
    assert not engine_settings(PPOConfig(**SERVER), TorchBackend(0, 1, CPU)).server.shared


@pytest.mark.parametrize(("changes", "processes", "problem"), [
    ({"engine_url": ("http://127.0.0.1:1", "http://127.0.0.1:2")}, 3, "names 2 servers for 3 process"),
    ({"engine_fallback": "transformers"}, 2, "change over together"),
    ({"engine": "vllm", "engine_url": ()}, 2, "engine = vllm runs in one process, and there are 2"),
])  # fmt: skip
def test_what_processes_cannot_share_is_refused(changes, processes, problem):
    with pytest.raises(ConfigError, match=problem):
        engine_settings(PPOConfig(**{**SERVER, **changes}), TorchBackend(0, processes, CPU))


def test_weights_of_one_mark_are_the_same_run(tmp_path):
    marks = on_both(lambda rank: engine_of(rank, SimpleNamespace(url="http://127.0.0.1:1"), tmp_path).engine.mark)
    assert marks[0] == marks[1]
