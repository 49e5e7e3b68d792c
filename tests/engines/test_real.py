"""The engines with the real vLLM, in an environment that has it: `make engines`. Skipped elsewhere."""

import importlib.util
import os
import signal
import socket
import subprocess
import threading
import time
from dataclasses import replace

import pytest
import torch

from nearstep import testing
from nearstep.cli.serve_engine import ENVIRONMENT, engine_command
from nearstep.common.errors import LostEngineError
from nearstep.config.engine_server import EngineServerOptions
from nearstep.models.distribution import Sampling
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.models.roles import make_policy
from nearstep.rollout.engine import EngineSettings, GenerationSettings, play
from nearstep.rollout.engine_settings import VLLMServerSettings, VLLMSettings
from nearstep.rollout.vllm.in_process import VLLMEngine
from nearstep.rollout.vllm.server import make_vllm_server
from nearstep.testing.engine_stage import ALL, SETTINGS
from nearstep.testing.world import prompts_of, reset_weights, small_model
from nearstep.types import Prompts
from tests.engines.two_processes import check_shared, wide_policy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: `make engines` makes a place for it"
    ),
]
HEAD_DIM = 32  # the least that vLLM's kernels for CPUs take
LITTLE = VLLMSettings(cache_gib=0.25)
LONG = Prompts([[token % 24 for token in range(7, 307)]] * 2, ["", ""], {}, [0, 1])  # fills blocks of a prefix cache


def wide_model(positions=64):
    model = small_model(head_dim=HEAD_DIM)
    model.config.max_position_embeddings = positions
    return model


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Server:
    """A server of vLLM's own, as `nearstep serve-engine` starts it."""

    def __init__(self, folder, port):
        options = EngineServerOptions(
            model_name_or_path=str(folder), port=port, engine_cache_gib=0.25, use_cpu=True, dtype="float32"
        )
        self.url = f"http://127.0.0.1:{port}"
        self.log = (folder.parent / f"server-{port}.log").open("ab")
        self.process = subprocess.Popen(
            engine_command(options),
            env={**os.environ, **ENVIRONMENT, "VLLM_LOGGING_LEVEL": "WARNING"},
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )

    def awaited(self, seconds=400):
        import httpx2

        ends = time.monotonic() + seconds
        while time.monotonic() < ends and self.process.poll() is None:
            try:
                if httpx2.get(f"{self.url}/health", timeout=2.0, trust_env=False).status_code == 200:
                    return self
            except httpx2.HTTPError:
                time.sleep(0.5)
        raise AssertionError(f"no server at {self.url}: see {self.log.name}")

    def send(self, number):
        os.killpg(self.process.pid, number)

    def stop(self):
        if self.process.poll() is None:
            self.send(signal.SIGKILL)
        self.process.wait(30)
        self.log.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "model"
    wide_model(positions=512).save_pretrained(folder)
    server = Server(folder, free_port())
    try:
        yield server.awaited()
    finally:
        server.stop()


def engine_of(server, folder, **more):
    settings = VLLMServerSettings(server.url, str(folder), **more)
    return make_vllm_server(EngineSettings(max_rows=8, server=settings))


def gap(policy, rollout, sampling=SETTINGS.sampling):
    with torch.no_grad():
        return float((rollout_logprobs(policy, rollout, sampling).sampled - rollout.logprobs).abs().max())


def test_all_laws_hold_in_process():
    found = testing.check_engine(lambda given: VLLMEngine(replace(given, vllm=LITTLE)), head_dim=HEAD_DIM)
    assert (found.skipped, found.not_offered) == ((), ("goes_on",))


def test_all_laws_hold_for_a_server(served, tmp_path):
    found = testing.check_engine(lambda _: engine_of(served, tmp_path), head_dim=HEAD_DIM)
    assert (found.skipped, found.not_offered) == ((), ("goes_on",))


@pytest.mark.parametrize("kind", ["vllm", "vllm_server"])
def test_a_head_that_is_tied_has_the_weights_of_every_load(kind, tmp_path):
    """vLLM's CPU build computes it from a packed copy, which a reload alone leaves as it was.

    Before `in_process` starts: engines of one process share vLLM's process groups, which the first to close ends.
    """
    model = wide_model()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    policy = make_policy(model)
    model.save_pretrained(tmp_path / "model")
    server = Server(tmp_path / "model", free_port()).awaited() if kind == "vllm_server" else None
    engine = (
        VLLMEngine(EngineSettings(max_rows=8, vllm=LITTLE)) if server is None else engine_of(server, tmp_path / "w")
    )
    try:
        for seed in (0, 1):
            reset_weights(model, seed=seed)
            engine.load(policy, seed)
            assert gap(policy, play(engine, prompts_of(ALL), SETTINGS)) < 1e-4
    finally:
        engine.close()
        if server is not None:
            server.stop()


@pytest.fixture(scope="module")
def in_process():
    policy = make_policy(wide_model(positions=512))
    engine = VLLMEngine(EngineSettings(max_rows=8, vllm=LITTLE))
    yield engine, policy
    engine.close()


@pytest.mark.parametrize("kind", ["vllm", "vllm_server"])
def test_a_load_forgets_what_older_weights_computed(kind, in_process, served, tmp_path, monkeypatch):
    """Without it, keys and values of the former weights answer for a prompt that was seen before."""
    engine, policy = in_process if kind == "vllm" else (engine_of(served, tmp_path), in_process[1])
    reset_weights(policy.model, seed=0)
    engine.load(policy, 1)
    assert gap(policy, play(engine, LONG, SETTINGS)) < 1e-4
    reset_weights(policy.model, seed=1)
    engine.load(policy, 2)
    assert gap(policy, play(engine, LONG, SETTINGS)) < 1e-4
    reset_weights(policy.model, seed=2)
    if kind == "vllm":
        monkeypatch.setattr(engine._llm, "reset_prefix_cache", lambda: True)
    else:
        post = type(engine.client).post
        skipped = lambda self, path, *rest, **more: (  # noqa: E731
            {"success": True} if path == "/reset_prefix_cache" else post(self, path, *rest, **more)
        )
        monkeypatch.setattr(type(engine.client), "post", skipped)
    engine.load(policy, 3)
    assert gap(policy, play(engine, LONG, SETTINGS)) > 0.01
    monkeypatch.undo()
    engine.load(policy, 3)
    assert gap(policy, play(engine, LONG, SETTINGS)) < 1e-4


@pytest.mark.parametrize("kind", ["vllm", "vllm_server"])
@pytest.mark.parametrize("vocabulary", [21, 5])
def test_ids_that_are_no_tokens_are_never_sampled(kind, vocabulary, in_process, served, tmp_path):
    engine, policy = in_process if kind == "vllm" else (engine_of(served, tmp_path), in_process[1])
    policy = replace(policy, vocabulary=vocabulary)
    engine.load(policy, 1)
    settings = replace(SETTINGS, vocabulary=vocabulary, stop_ids=(2,), sampling=Sampling(1.5))
    prompts = Prompts([[3, 4]] * 16, [""] * 16, {}, list(range(16)))
    rollout = play(engine, prompts, settings)
    assert int(rollout.actions.max()) < vocabulary
    assert gap(policy, rollout, settings.sampling) < 1e-4


def test_adapters_are_merged(in_process):
    peft = pytest.importorskip("peft")
    engine, _ = in_process
    model = wide_model(positions=512)
    policy = make_policy(peft.get_peft_model(model, peft.LoraConfig(r=4, init_lora_weights=False)))
    engine.load(policy, 5)
    assert gap(policy, play(engine, prompts_of(ALL), SETTINGS)) < 1e-4


def test_two_engines_give_the_same_rows(in_process, served, tmp_path):
    """They are asked the same, with the same seeds."""
    engine, policy = in_process
    other = engine_of(served, tmp_path)
    engine.load(policy, 1)
    other.load(policy, 1)
    settings = GenerationSettings(Sampling(1.0), 16, (2,), seed=3)
    first, second = (play(each, prompts_of(ALL), settings) for each in (engine, other))
    assert first.tokens.tolist() == second.tokens.tolist()


def test_two_processes_share_a_server(tmp_path):
    folder = tmp_path / "model"
    wide_policy().save_pretrained(folder)
    server = Server(folder, free_port())
    try:
        check_shared(server.awaited().url, tmp_path)
    finally:
        server.stop()


def test_a_server_that_hangs_is_told_and_comes_back(served, in_process, tmp_path, capsys):
    """Stopped (SIGSTOP) with all its processes: silence; then it goes on."""
    _, policy = in_process
    engine = engine_of(served, tmp_path, timeout_seconds=3.0, retries=4)
    engine.load(policy, 1)
    expected = play(engine, LONG, SETTINGS)
    served.send(signal.SIGSTOP)
    threading.Timer(6.0, lambda: served.send(signal.SIGCONT)).start()
    assert play(engine, LONG, SETTINGS).tokens.tolist() == expected.tokens.tolist()
    assert "had no answer within 3 s (engine_timeout_seconds)" in capsys.readouterr().err


def test_a_killed_server_is_told_in_seconds_and_a_new_one_goes_on(served, in_process, tmp_path):
    """Last: it ends the server."""
    _, policy = in_process
    engine = engine_of(served, tmp_path, timeout_seconds=2.0, retries=1)
    engine.load(policy, 1)
    prompts = Prompts([[3, 4]] * 64, [""] * 64, {}, list(range(64)))
    settings = GenerationSettings(Sampling(1.0), 400, (), seed=3)
    threading.Timer(1.0, lambda: served.send(signal.SIGKILL)).start()
    began = time.monotonic()
    with pytest.raises(LostEngineError, match="further tries did not help"):
        play(engine, prompts, settings)
    assert time.monotonic() - began < 60
