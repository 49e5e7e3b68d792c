"""vLLM as a server: the adapter against a stub that answers as the real one, slowly, wrongly and not at all.

tests/engines holds it to the same laws with the real one.
"""

import os
import socket
import threading
import time
from dataclasses import replace

import pytest
import torch

from nearstep import testing
from nearstep.common.errors import ConfigError, LostEngineError, ModelError, TrainingError
from nearstep.models.roles import make_policy
from nearstep.rollout.engine import EngineSettings, play
from nearstep.rollout.fallback import EngineWithFallback
from nearstep.rollout.transformers_engine import TransformersEngine
from nearstep.rollout.vllm import client as client_module
from nearstep.rollout.vllm import server as server_module
from nearstep.rollout.vllm.server import make_vllm_server
from nearstep.rollout.vllm.weights import folder_weights, whole_model
from nearstep.rollout.vllm.worker import PLACE
from nearstep.testing.engine_stage import ALL, SETTINGS
from nearstep.testing.world import prompts_of, reset_weights, small_model
from tests.rollout.vllm.stub import StubVLLM, settings_for
from tests.tiny import tiny_causal_lm

PROMPTS = prompts_of(ALL)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(server_module, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(client_module, "QUEUE_SECONDS", 0.01)


@pytest.fixture
def policy():
    return make_policy(small_model())


def engine_for(server, folder, **more):
    return make_vllm_server(settings_for(server.url, folder / "weights", **more))


@pytest.mark.slow
def test_the_laws_of_engines_hold(tmp_path):
    with StubVLLM() as server:
        found = testing.check_engine(lambda _: engine_for(server, tmp_path))
    assert (found.skipped, found.not_offered) == ((), ("goes_on",))


def test_every_load_is_a_folder_read_and_caches_forgotten(tmp_path, policy):
    with StubVLLM() as server:
        engine = engine_for(server, tmp_path)
        (tmp_path / "weights" / "version-77").mkdir(parents=True)  # of a run that was killed
        engine.load(policy, 1)
        engine.load(policy, 2)
        folders = sorted(path.name for path in (tmp_path / "weights").iterdir())
        assert (folders, server.version.endswith("-2")) == (["version-2"], True)
        engine.close()
    assert not (tmp_path / "weights").exists()
    once = ["/server_info", "/v1/models", "/collective_rpc", "/reset_prefix_cache", "/update_weight_version"]
    assert [path for path in server.asked if path != "/health"] == once * 2  # of which a slow machine asks meanwhile


def test_bfloat16_weights_arrive_as_they_are(tmp_path):
    with StubVLLM() as server:
        model = small_model().to(torch.bfloat16)
        engine_for(server, tmp_path).load(make_policy(model), 1)
        arrived = server.engine.policy.model.state_dict()
    assert all(torch.equal(arrived[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_arrives_is_the_state_dict_without_a_call_of_it(family, monkeypatch):
    """A call would put weights that were gathered from several processes back into pieces."""
    model = tiny_causal_lm(family)
    expected = model.state_dict()
    monkeypatch.delattr("torch.nn.Module.state_dict")
    found = folder_weights(model)
    tied = {"lm_head.weight"} & expected.keys() - found.keys()
    assert found.keys() | tied == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_adapters_over_several_processes_are_refused(tmp_path):
    peft = pytest.importorskip("peft")
    policy = make_policy(peft.get_peft_model(small_model(), peft.LoraConfig(r=2)))
    with pytest.raises(ModelError, match=r"weights that lie over processes .* Name the policy in whole_roles"):
        whole_model(replace(policy, run=lambda one_pass: one_pass()), "vllm_server")


def test_adapters_are_merged(tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(small_model(), peft.LoraConfig(r=2, init_lora_weights=False))
    policy = make_policy(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with StubVLLM() as server:
        engine = engine_for(server, tmp_path)
        engine.load(policy, 1)
        rollout = play(engine, PROMPTS, SETTINGS)
    own = TransformersEngine(EngineSettings())
    own.load(policy, 1)
    assert torch.equal(server.engine.policy.model.lm_head.weight, model.get_base_model().lm_head.weight)
    query = server.engine.policy.model.model.layers[0].self_attn.q_proj.weight
    assert not torch.equal(query, model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight)
    assert len(rollout) == len(PROMPTS)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_what_no_server_could_load_is_refused(tmp_path, policy):
    with StubVLLM() as server, pytest.raises(ModelError, match="computes in float32 at most, and the policy has float"):
        engine_for(server, tmp_path).load(make_policy(small_model().double()), 1)


@pytest.mark.parametrize(
    ("served", "what"),
    [
        ({"logprobs_mode": "raw_logprobs"}, "another distribution than the one it samples from .* --logprobs-mode"),
        ({"generation_config": "auto"}, "takes stop tokens and penalties from the model folder"),
    ],
)
def test_a_server_that_was_started_otherwise_is_refused(served, what, tmp_path, policy):
    with StubVLLM(**served) as server, pytest.raises(ConfigError, match=what):
        engine_for(server, tmp_path).load(policy, 1)


def test_a_server_that_computes_in_another_type_is_told_once(tmp_path, policy, capsys):
    with StubVLLM(dtype="torch.bfloat16") as server:
        engine = engine_for(server, tmp_path)
        engine.load(policy, 1)
        engine.load(policy, 2)
        told = capsys.readouterr().err
        assert told.count("computes in bfloat16 and the policy in float32: log-probs differ by rounding") == 1
        engine_for(server, tmp_path).load(replace(policy, autocast=True), 1)
    assert capsys.readouterr().err == ""


def test_a_tied_head_is_packed_again_on_a_cpu(tmp_path, policy):
    """vLLM 0.32 computes it from a copy of the weights that came first; a server that cannot be told is refused."""
    tied = make_policy(small_model())
    tied.model.config.tie_word_embeddings = True
    with StubVLLM(device="cpu", extension=PLACE) as server:
        engine_for(server, tmp_path).load(policy, 1)
        assert server.packed == 0
        engine = engine_for(server, tmp_path)
        engine.load(tied, 1)
        engine.load(tied, 2)
        assert server.packed == 2
    with StubVLLM(device="cpu") as server:
        engine_for(server, tmp_path).load(policy, 1)
        with pytest.raises(ConfigError, match=f"tied to the embeddings: .*--worker-extension-cls {PLACE}"):
            engine_for(server, tmp_path).load(tied, 1)
    with StubVLLM() as server:
        engine_for(server, tmp_path).load(tied, 1)
        assert server.packed == 0


def test_rows_that_do_not_fit_and_too_many_top_tokens_are_refused(tmp_path, policy):
    with StubVLLM(longest_row=9, max_logprobs=3) as server:
        engine = engine_for(server, tmp_path)
        engine.load(policy, 1)
        with pytest.raises(ConfigError, match="takes rows of 9 tokens, and a prompt of 3 with 8 tokens of response"):
            play(engine, PROMPTS, SETTINGS)
        with pytest.raises(ConfigError, match="records 3 top tokens, and 4 are compared"):
            play(engine, prompts_of([0]), replace(SETTINGS, top_tokens=4))


def test_a_server_that_is_not_there_is_told_at_once(tmp_path, policy):
    server = StubVLLM()
    server.server.server_close()
    began = time.monotonic()
    engine = engine_for(server, tmp_path, timeout=0.2)
    with pytest.raises(LostEngineError, match=r"GET /server_info.* failed: ConnectError.*1 further tries did not help"):
        engine.load(policy, 1)
    assert time.monotonic() - began < 5


def test_no_server_of_vllm_or_none_in_development_is_told(tmp_path, policy):
    with StubVLLM() as server:
        server.faults["/server_info"] = [lambda handler: handler.say(404, {"detail": "Not Found"})]
        with pytest.raises(TrainingError, match=r"was refused with 404.*VLLM_SERVER_DEV_MODE=1"):
            engine_for(server, tmp_path).load(policy, 1)
        server.faults["/server_info"] = [lambda handler: handler.say(200, {"hello": "world"})]
        with pytest.raises(ConfigError, match="does not say what it serves"):
            engine_for(server, tmp_path).load(policy, 1)


def test_a_server_that_stays_silent_is_asked_no_more_than_whether_it_is_back(tmp_path, policy, capsys):
    """Each other question would wait as long again: four limits and more, and not the three that are said."""
    released = threading.Event()
    with StubVLLM() as server:
        engine = engine_for(server, tmp_path, timeout=0.3, retries=2)
        engine.load(policy, 1)
        server.asked.clear()
        server.faults = {path: [lambda handler: released.wait(20)] * 99 for path in ("/weight_info", "/health")}
        with pytest.raises(LostEngineError, match=r"GET /weight_info had no answer within 0.3 s .* 2 further tries"):
            play(engine, PROMPTS, SETTINGS)
        assert set(server.asked[1:]) == {"/health"}
        assert server.asked[0] == "/weight_info"
        released.set()
    told = capsys.readouterr().err
    assert ("2 tries left" in told, "1 tries left" in told) == (True, True)


def test_a_core_that_dies_while_it_reads_weights_is_lost_and_awaited(tmp_path, policy, capsys):
    with StubVLLM() as server:
        engine = engine_for(server, tmp_path)
        fail = lambda handler: handler.say(500, {"error": {"message": "EngineCore encountered an issue"}})  # noqa: E731
        server.faults |= {"/collective_rpc": [fail], "/health": [lambda handler: handler.say(503, None)]}
        engine.load(policy, 1)
        assert server.asked.count("/collective_rpc") == 2
    assert "GET /health was answered by 503: ''; 1 tries left" in capsys.readouterr().err


def test_a_folder_that_the_server_does_not_see_is_told(tmp_path, policy):
    with StubVLLM() as server:
        error = {"error": {"message": "Worker failed"}}
        server.faults["/collective_rpc"] = [lambda handler: handler.say(500, error)]
        with pytest.raises(TrainingError, match="see the folder of engine_weights_dir under the same path"):
            engine_for(server, tmp_path).load(policy, 1)


def test_rows_of_somebody_else_are_told(tmp_path, policy):
    with StubVLLM() as server:
        server.faults["/reset_prefix_cache"] = [lambda handler: handler.say(200, {"success": False})]
        with pytest.raises(TrainingError, match="could not forget the keys and values of older weights"):
            engine_for(server, tmp_path).load(policy, 1)


def test_a_silent_server_is_told_in_seconds_and_what_is_missing_asked_again(tmp_path, policy, capsys):
    """Its core hangs: rows do not come, and the look at it has no answer either."""
    released = threading.Event()
    with StubVLLM() as server:
        engine = engine_for(server, tmp_path, timeout=0.4, max_rows=5)
        engine.load(policy, 1)
        expected = play(engine, PROMPTS, SETTINGS)
        told = []

        def hang(handler):
            released.wait(20)

        def silent_once_three_have_ended(handler):
            if len(told) == 3:
                return hang(handler)
            server.faults["/is_sleeping"].append(silent_once_three_have_ended)
            return handler.say(200, {"is_sleeping": False})

        server.faults |= {"/v1/completions": [hang, hang], "/is_sleeping": [silent_once_three_have_ended]}
        server.bodies.clear()
        rollout = play(engine, PROMPTS, SETTINGS, lambda row, ids, finished: told.append(row))
        released.set()
    told_of = capsys.readouterr().err
    assert "GET /is_sleeping had no answer within 0.4 s (engine_timeout_seconds); 1 tries left" in told_of
    assert torch.equal(rollout.tokens, expected.tokens)
    assert sorted(told) == ALL
    assert len(server.bodies) == len(PROMPTS)  # three before, and the two that hung


def test_a_server_that_hangs_while_it_reads_weights_is_told_in_seconds(tmp_path, policy):
    """Reading may take minutes, in which its core says nothing; what takes requests answers meanwhile."""
    released = threading.Event()
    with StubVLLM() as server:
        engine = engine_for(server, tmp_path, timeout=0.8, retries=0)

        def slow(handler):
            time.sleep(1.6)
            handler.say(*server.answer("/collective_rpc", {"kwargs": {"weights_path": str(engine.folder)}}))

        def hang(handler):
            released.wait(20)

        server.faults["/collective_rpc"] = [slow]
        engine.load(policy, 1)
        assert server.asked.count("/health") > 1
        server.faults |= {"/collective_rpc": [hang], "/health": [hang]}
        began = time.monotonic()
        with pytest.raises(LostEngineError, match=r"GET /health had no answer within 0.8 s"):
            engine.load(policy, 2)
        assert time.monotonic() - began < 60  # of the 600 that reading may take
        released.set()


def test_a_slow_server_is_waited_for(tmp_path, policy):
    """A row may take longer than a server may be silent, as long as its core answers."""
    with StubVLLM() as server:
        engine = engine_for(server, tmp_path, timeout=0.4, retries=0)
        engine.load(policy, 1)

        def slow(handler):
            time.sleep(1.0)
            handler.say(*server.answer("/v1/completions", server_body(server)))

        def server_body(server):
            return {**server.bodies[-1]}

        play(engine, prompts_of([0]), SETTINGS)
        server.faults["/v1/completions"] = [slow]
        assert len(play(engine, prompts_of([0]), SETTINGS)) == 1
    assert server.asked.count("/is_sleeping") > 2


@pytest.mark.slow
def test_a_server_that_was_started_anew_is_given_the_weights_again(tmp_path, policy, capsys):
    """Its version tells: the rollout of the weights it came up with is not used."""
    with StubVLLM() as server:
        engine = engine_for(server, tmp_path)
        engine.load(policy, 1)
        expected = play(engine, PROMPTS, SETTINGS)
        loaded, server.version = server.version, "default"
        other = small_model(seed=1)
        server.engine.load(make_policy(other), 0)
        rollout = play(engine, PROMPTS, SETTINGS)
        assert server.version == loaded
    assert "has the weights 'default' before the rollout" in capsys.readouterr().err
    assert torch.equal(rollout.tokens, expected.tokens)


@pytest.mark.slow
def test_weights_that_change_meanwhile_are_noticed(tmp_path, policy, capsys):
    """Another run loads its own between two rows: none of the rows is used."""
    with StubVLLM() as server:
        engine = engine_for(server, tmp_path)
        engine.load(policy, 1)
        expected = play(engine, PROMPTS, SETTINGS)
        told = []

        def ended(row, ids, finished):
            if not told:
                server.version = "another-1"
            told.append(row)

        rollout = play(engine, PROMPTS, SETTINGS, ended)
    assert "has the weights 'another-1' after the rollout" in capsys.readouterr().err
    assert torch.equal(rollout.tokens, expected.tokens)
    assert sorted(told) == ALL


def test_a_server_that_dies_and_comes_back_goes_on(tmp_path, policy):
    with StubVLLM() as server:
        engine = engine_for(server, tmp_path, timeout=20.0)
        engine.load(policy, 1)
        expected = play(engine, PROMPTS, SETTINGS)
        port = server.port

        revived = []

        def die(handler):
            server.stop()
            handler.connection.shutdown(socket.SHUT_RDWR)
            time.sleep(0.3)
            revived.append(StubVLLM(port=port).__enter__())

        server.faults["/v1/completions"] = [die]
        rollout = play(engine, PROMPTS, SETTINGS)
        revived[0].stop()
    assert torch.equal(rollout.tokens, expected.tokens)
    assert "/collective_rpc" in revived[0].asked


def test_only_if_asked_for_another_engine_goes_on(tmp_path, policy, capsys):
    with StubVLLM() as server:
        first = engine_for(server, tmp_path, timeout=0.2, retries=0)
        engine = EngineWithFallback(first, TransformersEngine(EngineSettings()), "transformers")
        engine.load(policy, 1)
        play(engine, PROMPTS, SETTINGS)
    server.stop()
    told = []
    rollout = play(engine, PROMPTS, SETTINGS, lambda row, ids, finished: told.append(row))
    assert sorted(told) == ALL
    assert "From here on engine = transformers generates (engine_fallback)" in capsys.readouterr().err
    reset_weights(policy.model, seed=1)
    engine.load(policy, 2)
    own = TransformersEngine(EngineSettings())
    own.load(policy, 2)
    assert torch.equal(play(engine, PROMPTS, SETTINGS).tokens, own.generate(PROMPTS, SETTINGS).tokens)
    assert rollout.policy_version.tolist() == [1] * len(PROMPTS)
    engine.close()


def test_a_proxy_is_not_asked_for_this_machine(tmp_path, policy, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setitem(os.environ, name, "http://127.0.0.1:1")
    with StubVLLM() as server:
        engine = engine_for(server, tmp_path)
        engine.load(policy, 1)
        assert len(play(engine, PROMPTS, SETTINGS)) == len(PROMPTS)
