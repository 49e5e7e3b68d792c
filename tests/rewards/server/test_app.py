"""R30: who the reward server lets in, what it reads, and that what it answers is what training would compute."""

import asyncio
import json

import httpx2
import pytest
import torch

from nearstep.rewards.combine import Rewards
from nearstep.rewards.functions import FunctionReward
from nearstep.rewards.identity import TokenizerIdentity
from nearstep.rewards.model import ModelReward
from nearstep.rewards.remote.server.app import make_app
from nearstep.rewards.remote.server.scorer import ServerScorer
from nearstep.rewards.remote.wire import decode_answer, encode_request
from tests.rewards.episodes import play, scored
from tests.rewards.light import texts
from tests.tiny import byte_tokenizer, tiny_scalar_model

TOKEN = "canary-token-4711"
POLICY = TokenizerIdentity.of(byte_tokenizer())


def lengths(completions, **kwargs):
    return [float(len(text)) for text in completions]


def server_scorer(*sources, weights=None):
    return ServerScorer(sources, [source.name for source in sources], weights or [1.0] * len(sources))


def send(*requests, sources=None, token=None, max_body_bytes=1 << 20):
    """What the server answers to each (method, path, options)."""
    bench = server_scorer(*(sources or [FunctionReward(lengths)]))
    app = make_app(bench.score, ["lengths"], token=token, max_body_bytes=max_body_bytes)

    async def all_of_them():
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://reward") as client:
            return [await client.request(method, path, **options) for method, path, options in requests]

    return asyncio.run(all_of_them())


def question(completions=("a", "bb"), **columns):
    body = encode_request(texts(list(completions), **columns), POLICY)
    return "POST", "/score", {"content": body, "headers": {"content-type": "application/json"}}


def with_token(request, token):
    method, path, options = request
    return method, path, {**options, "headers": {**options.get("headers", {}), "authorization": token}}


# --- Who is let in


def test_without_a_token_everybody_on_the_machine_may_ask():
    health, scored = send(("GET", "/health", {}), question())
    assert health.json() == {"status": "ok", "rewards": ["lengths"]}
    assert scored.json() == {"rewards": [1.0, 2.0], "episodes": [100, 101], "extras": {}, "metrics": {}}


ROUTES = [question(), ("GET", "/score", {}), ("GET", "/", {}), ("GET", "/openapi.json", {}), ("POST", "/health/x", {})]


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route[0]} {route[1]}")
@pytest.mark.parametrize("given", [None, "", "Bearer ", "Bearer wrong", TOKEN, f"bearer {TOKEN}x", f"Basic {TOKEN}"])
def test_with_a_token_every_route_but_health_asks_for_it(route, given):
    (answer,) = send(route if given is None else with_token(route, given), token=TOKEN)
    assert answer.status_code == 401
    assert TOKEN not in answer.text
    assert "rewards" not in answer.text


def test_with_the_token_it_answers_and_health_needs_none():
    scored, health, missing = send(
        with_token(question(), f"Bearer {TOKEN}"), ("GET", "/health", {}), with_token(ROUTES[2], f"Bearer {TOKEN}"),
        token=TOKEN,
    )  # fmt: skip
    assert (scored.status_code, health.status_code, missing.status_code) == (200, 200, 404)
    assert scored.json()["rewards"] == [1.0, 2.0]


# --- What is read


def test_a_body_that_is_too_long_is_refused_whether_it_says_so_or_not():
    async def pieces():
        for _ in range(100):
            yield b" " * 1000

    kind = {"content-type": "application/json"}
    for content in (b" " * 20_000, pieces()):
        (answer,) = send(("POST", "/score", {"content": content, "headers": kind}), max_body_bytes=10_000)
        assert answer.status_code == 413
        assert "10000 bytes" in answer.json()["error"]


def test_a_web_page_of_somebody_else_cannot_ask():
    method, path, options = question()
    (answer,) = send((method, path, {**options, "headers": {"content-type": "text/plain"}}))
    assert answer.status_code == 415


ROW = {"prompt": "p", "completion": "c", "prompt_ids": [1], "completion_ids": [2], "finished": True}


def rows(**fields):
    return {"protocol": 1, "rows": [{**ROW, **fields}]}


WRONG = {
    "no JSON": (b"{", "no JSON"),
    "a list": (b"[]", "no JSON object"),
    "another protocol": ({"protocol": 2, "rows": [ROW]}, "protocol must be 1, not 2"),
    "no protocol": ({"rows": [ROW]}, "protocol must be 1, not None"),
    "no rows": ({"protocol": 1}, "rows must be a list"),
    "empty": ({"protocol": 1, "rows": []}, "rows must be a list"),
    "a row that is none": ({"protocol": 1, "rows": [ROW, 3]}, "rows[1] must be an object"),
    "no completion": (rows(completion=None), "rows[0].completion must be text, or messages with a role each"),
    "ids of text": (rows(prompt_ids=["a"]), "rows[0].prompt_ids must be a list of token ids, not ['a']"),
    "negative ids": (rows(completion_ids=[-1]), "rows[0].completion_ids must be a list of token ids, not [-1]"),
    "ids that are truths": (rows(prompt_ids=[True]), "rows[0].prompt_ids must be a list of token ids, not [True]"),
    "messages of text": (rows(prompt=["a"]), "rows[0].prompt must be text, or messages"),
    "no message": (rows(prompt=[]), "rows[0].prompt must be text, or messages with a role each, not []"),
    "no role": (rows(prompt=[{"content": "a"}]), "rows[0].prompt must be text, or messages with a role each"),
    "no content": (rows(completion=[{"role": "assistant"}]), "the last with a content"),
    "an episode that is none": (rows(episode=[1]), "rows[0].episode must be a whole number, not [1]"),
    "half a character": (rows(columns={"a": ["\ud800"]}), "rows[0] holds half of a surrogate pair"),
    "a template that is none": (
        {"protocol": 1, "rows": [ROW], "tokenizer": {"tokens": "x", "chat_template": {"a": 1}}},
        "tokenizer must be an object whose tokens and chat_template are text",
    ),
    "tokens that are none": ({"protocol": 1, "rows": [ROW], "tokenizer": {"tokens": [1]}}, "tokenizer must be"),
    "columns": (rows(columns=[1]), "rows[0].columns must be an object"),
    "tokenizer": ({"protocol": 1, "rows": [ROW], "tokenizer": "x"}, "tokenizer must be an object"),
}


@pytest.mark.parametrize(("body", "words"), WRONG.values(), ids=WRONG)
def test_a_question_that_is_none_is_answered_with_what_is_wrong(body, words):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    (answer,) = send(("POST", "/score", {"content": content, "headers": {"content-type": "application/json"}}))
    assert answer.status_code == 422
    assert words in answer.json()["error"]


def test_whole_characters_outside_the_basic_plane_pass():
    content = json.dumps(rows(completion="🙂")).encode()
    (answer,) = send(("POST", "/score", {"content": content, "headers": {"content-type": "application/json"}}))
    assert answer.json()["rewards"] == [1.0]


def test_the_least_that_a_row_must_have():
    least = {"protocol": 1, "rows": [ROW]}
    (answer,) = send(
        ("POST", "/score", {"content": json.dumps(least), "headers": {"content-type": "application/json"}})
    )
    assert answer.json()["rewards"] == [1.0]


# --- What is answered


def test_a_row_that_fails_is_answered_with_the_reason_and_the_others_with_their_reward():
    def picky(completions):
        if "bad" in completions:
            raise ValueError("not this one")
        return [1.0] * len(completions)

    (answer,) = send(question(["a", "bad", "c"]), sources=[FunctionReward(picky)])
    one, failed, three = answer.json()["rewards"]
    assert (one, three) == (1.0, 1.0)
    assert "not this one" in failed["error"]


def test_all_rows_may_fail_without_the_server_failing():
    (answer,) = send(question(["a", "b"]), sources=[FunctionReward(lambda completions, answer: [1.0, 1.0])])
    assert answer.status_code == 200
    assert all("requires 'answer'" in reward["error"] for reward in answer.json()["rewards"])


def test_rewards_are_weighted_and_one_that_does_not_apply_leaves_the_sum():
    def sometimes(completions):
        return [None if text == "a" else 10.0 for text in completions]

    bench = server_scorer(FunctionReward(lengths), FunctionReward(sometimes), weights=[2.0, 0.5])
    assert json.loads(bench.score(texts(["a", "bb"]), POLICY))["rewards"] == [2.0, 9.0]
    alone = server_scorer(FunctionReward(sometimes))
    assert json.loads(alone.score(texts(["a", "bb"]), POLICY))["rewards"] == [None, 10.0]


def test_rewards_of_single_tokens_are_served_alone():
    def tokens(completion_ids):
        return [[1.0] * len(ids) for ids in completion_ids]

    def spans(completions):
        return [[(0, 1, 3.0)] for _ in completions]

    batch = texts(["a", "bb"])
    assert json.loads(server_scorer(FunctionReward(tokens), weights=[2.0]).score(batch, POLICY))["rewards"] == [
        [2, 2],
        [2, 2, 2],
    ]
    assert (
        json.loads(server_scorer(FunctionReward(spans), weights=[2.0]).score(batch, POLICY))["rewards"]
        == [[[0, 1, 6]]] * 2
    )
    both = json.loads(server_scorer(FunctionReward(tokens), FunctionReward(lengths)).score(batch, POLICY))["rewards"]
    assert all("serve it by itself" in reward["error"] for reward in both)


class Scorer:
    """A reward model without nearstep around it."""

    def __init__(self):
        self.model = tiny_scalar_model()

    def score(self, rows):
        with torch.no_grad():
            return torch.stack([self.model(torch.tensor([row])).logits[0, 0] for row in rows])


@pytest.mark.parametrize("shift", [0, 7])
def test_a_reward_model_reads_over_http_what_it_reads_in_training(shift):
    own, policy = byte_tokenizer(shift=shift), byte_tokenizer()
    source = ModelReward("rm", Scorer(), tokenizer=own, policy=POLICY, vocabulary_size=258)
    strange = ModelReward("rm", source._scorer, tokenizer=own, policy=TokenizerIdentity("?", None), vocabulary_size=258)
    chat = [{"role": "user", "content": "Hi"}]
    rows = play(["yes", "nö", "x"], [chat, "Say: ", chat], finished=[True, False, True])
    here = Rewards([source], policy)(*rows)
    batch = scored(["yes", "nö", "x"], [chat, "Say: ", chat], finished=[True, False, True])
    answer = decode_answer(server_scorer(strange).score(batch, POLICY), batch, "server")
    there = torch.tensor(answer.values, dtype=torch.float64).float()
    assert there.tolist() == here.total.tolist()


def test_what_functions_log_comes_along():
    def logs(completions, log_extra, log_metric):
        log_extra("text", completions)
        log_metric("seen", 2)
        return [1.0] * len(completions)

    bench = server_scorer(FunctionReward(logs), FunctionReward(logs, "other"))
    said = json.loads(bench.score(texts(["a", "b"]), POLICY))
    assert said["extras"] == {"text": ["a", "b"], "text_2": ["a", "b"]}
    assert said["metrics"] == {"seen": [2.0, 2.0]}
