"""R23: a reward server that misbehaves: bounded tries, bounded waits, no secret told, no reward made up."""

import gzip
import json
import math
import os
import socket
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nearstep.common import http_post as remote
from nearstep.common.errors import RewardError
from nearstep.common.secrets import Secret
from nearstep.rewards.ask import OnError
from nearstep.rewards.combine import Rewards
from nearstep.rewards.identity import TokenizerIdentity
from nearstep.rewards.remote import client
from nearstep.rewards.remote.client import RemoteReward, Server
from tests.rewards.episodes import play
from tests.tiny import byte_tokenizer

TOKEN = "canary-token-4711"
POLICY = TokenizerIdentity("tokens", None)


class Scripted:
    """A server that answers each request as its script says, the last entry for ever, and remembers what it was sent.

    An entry is a status with headers and body, or a function that is given the connection's handler.
    """

    def __init__(self, *script):
        self.script, self.questions, self.headers, self.times = list(script), [], [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                outer.times.append(time.monotonic())
                outer.headers.append(dict(self.headers))
                question = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.questions.append(question)
                step = outer.script.pop(0) if len(outer.script) > 1 else outer.script[0]
                if callable(step):
                    step(self, question)
                    return
                status, headers, body = step
                self.answer(status, headers, body)

            def answer(self, status, headers, body):
                self.send_response(status)
                for name, value in {"content-length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *arguments: None  # connections that it breaks itself
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/secret-path/score"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()


def said(rewards, **more):
    return 200, {}, json.dumps({"rewards": rewards, **more}).encode()


def lengths(handler, question):
    handler.answer(*said([len(row["completion"]) for row in question["rows"]]))


def ask(server, completions=("a", "bb"), *, policy="raise", token=None, retries=2, timeout=5.0, batch_size=64, **more):
    source = RemoteReward(Server(server.url, token and Secret(token), timeout, retries, batch_size, seed=0), POLICY)
    rewards = Rewards([source], byte_tokenizer(), on_error=OnError(policy))
    return rewards(*play(list(completions), **more))


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE_SECONDS", 0.001)


# --- What is asked and answered


def test_a_row_carries_everything_that_a_reward_is_given():
    with Scripted(lengths) as server:
        scores = ask(server, answer=["x", None])
    (question,) = server.questions
    tokenizer = byte_tokenizer()
    assert question == {
        "protocol": 1,
        "tokenizer": {"tokens": "tokens", "chat_template": None},
        "rows": [
            {
                "prompt": "Say: ", "completion": text, "prompt_ids": tokenizer("Say: ")["input_ids"],
                "completion_ids": [*tokenizer(text)["input_ids"], 256], "finished": True, "episode": 100 + number,
                "columns": {"answer": answer},
            }
            for number, (text, answer) in enumerate([("a", "x"), ("bb", None)])
        ],
    }  # fmt: skip
    assert scores.total.tolist() == [1.0, 2.0]
    assert scores.parts["reward_url"].tolist() == [1.0, 2.0]


def test_every_form_of_a_reward_comes_through():
    answer = said([None, [1, 2, 3], [[0, 1, 5.0]], 0.1], extras={"why": ["a", "b", "c", "d"]}, metrics={"seen": [1, 3]})
    with Scripted(answer) as server:
        source = RemoteReward(Server(server.url), POLICY)

        class Always:
            name = "always"

            def score(self, batch):
                from nearstep.rewards.batch import Answer

                return Answer([1.0] * len(batch))

        scores = Rewards([source, Always()], byte_tokenizer())(*play(["a", "bb", "c", "d"]))
    assert scores.parts["reward_url"].isnan().tolist() == [True, False, False, False]
    assert scores.dense.tolist() == [0, 0, 1, 2, 3, 5, 0, 0, 0]
    assert scores.total.tolist() == pytest.approx([1.0, 1.0, 1.0, 1.1])
    assert scores.extras == {"why": ["a", "b", "c", "d"]}
    assert scores.metrics.numbers() == {"seen": 2.0}


def test_rows_are_asked_about_in_batches_and_come_back_in_order():
    completions = ["x" * length for length in range(1, 24)]
    with Scripted(lengths) as server:
        scores = ask(server, completions, batch_size=5)
    assert sorted(len(question["rows"]) for question in server.questions) == [3, 5, 5, 5, 5]
    assert scores.total.tolist() == [float(len(text)) for text in completions]


def test_a_column_that_is_no_json_is_named():
    with Scripted(lengths) as server, pytest.raises(RewardError, match=r"column 'margin' of row 1 .*nan.*cannot go"):
        ask(server, margin=[1.0, math.nan])
    assert server.questions == []


# --- Failures that may pass

OVERLOADED = (500, {}, b"no"), (502, {}, b""), (503, {}, b"{}"), (429, {}, b""), (408, {}, b"")
BROKEN = {
    "no JSON": ((200, {}, b"<html>"), "a body that is no JSON"),
    "nested JSON": ((200, {}, b"[" * 100_000), "a body that is no JSON"),
    "no object": ((200, {}, b"[1, 2]"), "no JSON object"),
    "no rewards": ((200, {}, b"{}"), "no list of rewards for 2 completions"),
    "too few": (said([1.0]), "1 rewards for 2 completions"),
    "too many": (said([1.0] * 3), "3 rewards for 2 completions"),
    "extras": (said([1.0, 2.0], extras={"a": [1]}), "extras that are not one for each"),
    "extras of no kind": (said([1.0, 2.0], extras=[1]), "no lists by name"),
    "another order": (said([1.0, 2.0], episodes=[101, 100]), "rewards for other episodes, or in another order"),
    "a row twice": (said([1.0, 1.0], episodes=[100, 100]), "rewards for other episodes, or in another order"),
    "no text": ((200, {}, b'{"rewards": ["\xff"]}'), "a body that is no JSON"),
    "packed badly": ((200, {"content-encoding": "gzip"}, b"not gzip"), "DecodingError"),
    "metrics": (said([1.0, 2.0], metrics={"a": ["x"]}), "metrics that are no numbers"),
}


@pytest.mark.parametrize("passing", OVERLOADED, ids=lambda step: str(step[0]))
def test_an_overloaded_server_is_asked_again(passing):
    with Scripted(passing, passing, lengths) as server:
        assert ask(server).total.tolist() == [1.0, 2.0]
    assert len(server.questions) == 3
    assert server.questions[0] == server.questions[2]


@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize("passing", OVERLOADED[:1], ids=lambda step: str(step[0]))
def test_and_no_more_often_than_it_may_be(passing, retries):
    with Scripted(passing) as server, pytest.raises(RewardError) as raised:
        ask(server, retries=retries)
    assert len(server.questions) == retries + 1
    counted = "1 try" if retries == 0 else "3 tries"
    assert (
        f"reward server http://127.0.0.1:{server.port} gave no rewards for rows 0 to 1 of the batch (episodes 100 to "
        f"101) after {counted}: status 500, 'no'"
    ) in str(raised.value)


@pytest.mark.parametrize(("broken", "words"), BROKEN.values(), ids=BROKEN)
def test_an_answer_that_is_none_is_no_reward(broken, words):
    with Scripted(broken) as server, pytest.raises(RewardError, match=words):
        ask(server, retries=1)
    assert len(server.questions) == 2
    with Scripted(broken, lengths) as server:
        assert ask(server).total.tolist() == [1.0, 2.0]


def packed(handler, question):
    body = gzip.compress(said([1.0, 2.0], episodes=[100, 101])[2])
    handler.answer(200, {"content-encoding": "gzip"}, body)


def in_chunks(handler, question):
    handler.send_response(200)
    handler.send_header("transfer-encoding", "chunked")
    handler.end_headers()
    for piece in (b'{"rewards": [1.0', b", 2.0]}", b""):
        handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")


@pytest.mark.parametrize("step", [packed, in_chunks])
def test_an_answer_may_travel_as_it_likes(step):
    with Scripted(step) as server:
        assert ask(server).total.tolist() == [1.0, 2.0]


def reset(handler, question):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    os.close(handler.connection.detach())


def half(handler, question):
    handler.answer(200, {"content-length": "1000"}, b'{"rewards": [1.0,')
    handler.connection.shutdown(socket.SHUT_RDWR)


def drip(handler, question):
    handler.send_response(200)
    handler.send_header("content-length", "100000")
    handler.end_headers()
    try:
        for _ in range(1000):
            handler.wfile.write(b" ")
            time.sleep(0.02)
    except OSError:
        pass


def endless(handler, question):
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b" " * 65536)
    except OSError:
        pass


@pytest.mark.parametrize(
    ("step", "words"),
    [(reset, "Read|Protocol|Connect"), (half, "Protocol|Read"), (drip, "no answer within 0.3 s"), (endless, "1 MiB")],
)
def test_a_connection_that_breaks_or_never_ends_is_given_up(step, words, monkeypatch):
    monkeypatch.setattr(client, "LARGEST_BODY_BYTES", 1 << 20)
    with Scripted(step) as server, pytest.raises(RewardError, match=words):
        ask(server, retries=1, timeout=0.3 if step is drip else 10.0)
    assert len(server.questions) == 2


def test_nobody_listens():
    with Scripted(lengths) as server:
        pass
    with pytest.raises(RewardError, match=r"after 3 tries: ConnectError"):
        ask(server)


# --- How long it waits


def pauses(server):
    return [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]


def test_retry_after_is_honoured_in_seconds_and_as_a_date(monkeypatch):
    asked = (429, {"retry-after": "1"}, b"")
    with Scripted(asked, lengths) as server:
        ask(server)
    assert pauses(server)[0] >= 1
    monkeypatch.setattr(remote.time, "time", lambda: 1_000_000.0)
    assert remote._retry_after(formatdate(1_000_010, usegmt=True)) == 10
    assert remote._retry_after(formatdate(999_990, usegmt=True)) == 0
    assert remote._retry_after("soon") is None


def test_and_bounded(monkeypatch):
    monkeypatch.setattr(remote, "LONGEST_PAUSE_SECONDS", 0.05)
    with Scripted((503, {"retry-after": "3600"}, b""), lengths) as server:
        ask(server)
    assert pauses(server)[0] < 30


def test_pauses_double_with_jitter_that_is_the_same_in_every_run(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE_SECONDS", 1.0)

    def pause(tries, seed=0):
        return Server("http://h", seed=seed).endpoint.pause_seconds(0, tries, None)

    for tries in range(1, 6):
        assert 2 ** (tries - 1) / 2 <= pause(tries) < 2 ** (tries - 1)
        assert pause(tries) == pause(tries)
    assert pause(1) != pause(1, seed=1)
    assert pause(20) == remote.LONGEST_PAUSE_SECONDS


# --- Failures that do not pass


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_refusal_is_not_asked_again(status):
    with Scripted((status, {}, b'{"error": "because"}')) as server, pytest.raises(RewardError, match="because"):
        ask(server)
    assert len(server.questions) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(status):
    words = rf"status {status}, a redirect to 127.0.0.1, which is not followed"
    with (
        Scripted(lengths) as other,
        Scripted((status, {"location": other.url}, b"")) as server,
        pytest.raises(RewardError, match=words),
    ):
        ask(server, token=TOKEN)
    assert other.questions == []
    assert len(server.questions) == 1


def test_a_redirect_to_nowhere_is_told_too():
    with (
        Scripted((302, {"location": "http://[bad"}, b"")) as server,
        pytest.raises(RewardError, match="a redirect to an address that is none, which is not followed"),
    ):
        ask(server)


# --- Rows that fail on the server, and the policy


def test_a_row_that_failed_on_the_server_fails_here_alone():
    answer = said([1.0, {"error": "cannot score this"}, 3.0])
    with Scripted(answer) as server:
        scores = ask(server, "abc", policy="drop")
        assert scores.total.isnan().tolist() == [False, True, False]
        assert scores.metrics.numbers() == {"reward/reward_url_failed": pytest.approx(1 / 3)}
        with pytest.raises(RewardError, match=r"failed on row 1 of the batch \(episode 101\): 'cannot score this'"):
            ask(server, "abc")
    assert len(server.questions) == 2


@pytest.mark.parametrize("bad", [b"NaN", b"Infinity", b"-Infinity", b'"1"', b"{}", b"1e13", b"[1.0]"])
def test_a_reward_that_is_none_fails_its_row(bad):
    with Scripted((200, {}, b'{"rewards": [1.0, ' + bad + b", 3.0]}")) as server:
        assert ask(server, "abc", policy="drop").total.isnan().tolist() == [False, True, False]
        with pytest.raises(RewardError, match=r"'reward_url' returned .* for row 1 of the batch"):
            ask(server, "abc")


def test_a_server_that_is_gone_costs_its_rows_once_and_is_not_asked_row_by_row():
    with Scripted((500, {}, b"")) as server, pytest.raises(RewardError, match="2 of 2 rows have no reward"):
        ask(server, policy="drop", retries=1)
    assert len(server.questions) == 2


# --- Secrets


def test_the_token_is_sent_and_shown_nowhere():
    echo = (500, {}, f"you sent {TOKEN} to /secret-path/score".encode())
    with Scripted(echo) as server, pytest.raises(RewardError) as raised:
        ask(server, token=TOKEN, retries=0)
    assert server.headers[0]["authorization"] == f"Bearer {TOKEN}"
    error: BaseException | None = raised.value
    while error is not None:
        assert TOKEN not in str(error) + repr(error)
        error = error.__cause__ or error.__context__
    assert TOKEN not in repr(Server(server.url, Secret(TOKEN)))


@pytest.mark.parametrize("before", [0, 185, 990])
def test_the_token_is_not_shown_where_the_text_is_cut_or_in_a_row_that_failed(before):
    text = "a" * before + TOKEN
    for step in ((500, {}, text.encode()), said([1.0, {"error": text}])):
        with Scripted(step) as server, pytest.raises(RewardError) as raised:
            ask(server, token=TOKEN, retries=0)
        assert TOKEN[:6] not in str(raised.value)


def test_the_path_of_the_address_is_not_shown_either():
    for step in ((500, {}, b""), (404, {}, b""), reset):
        with Scripted(step) as server, pytest.raises(RewardError) as raised:
            ask(server, retries=0)
        assert "secret-path" not in str(raised.value)


def test_without_a_token_none_is_sent():
    with Scripted(lengths) as server:
        ask(server)
    assert "authorization" not in server.headers[0]
