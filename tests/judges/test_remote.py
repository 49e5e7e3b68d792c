"""A judge behind an address: both orders, votes, bad answers and servers, limits, cache, cost."""

import json
import math
import multiprocessing
import time

import pytest

from nearstep import ConfigError, JudgeConfig, load_judge
from nearstep.common import http_post
from nearstep.judges import limits, remote
from nearstep.judges.cache import AnswerCache
from nearstep.judges.limits import LimitReachedError, MinuteLimit
from nearstep.judges.protocol import Graded, Pair
from tests.judges.stub import Stub, broken_off, chat, longer, preferring

KEY = "canary-key-4711"
PAIRS = [Pair("Say: ", "long answer", "short"), Pair("Say: ", "a", "bb"), Pair("Say: ", "ab", "cd")]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(http_post, "FIRST_PAUSE_SECONDS", 0.001)


def judge_of(server, **settings):
    return load_judge(JudgeConfig(judge=server.url, **{"retries": 2, "timeout_seconds": 5.0, **settings}))


# --- What is asked, and how votes become a verdict


def test_a_judge_that_likes_the_longer_text_is_heard_in_both_orders():
    with Stub(longer) as server:
        found = judge_of(server).compare_all(PAIRS)
    assert [one.verdict for one in found] == ["a", "b", "tie"]
    assert [one.probability for one in found] == [1.0, 0.0, 0.5]
    assert [one.disagreement for one in found] == [0.0, 0.0, 0.0]
    assert [[vote.swapped for vote in one.votes] for one in found] == [[False, True]] * 3
    assert len(server.questions) == 6


def test_a_judge_that_always_says_a_prefers_nothing_and_disagrees_with_itself():
    with Stub(preferring("A")) as server:
        found = judge_of(server).compare_all(PAIRS)
    assert [(one.verdict, one.probability, one.disagreement) for one in found] == [("tie", 0.5, 1.0)] * 3
    assert {vote.first_wins for one in found for vote in one.votes} == {1.0}


def test_what_a_request_holds():
    with Stub(preferring("tie")) as server:
        judge_of(server, request={"max_tokens": None, "max_completion_tokens": 9, "user": "me"}).compare("P", "x", "y")
    firsts = set()
    for question in server.questions:  # both orders, and neither has to arrive first
        (message,) = question.pop("messages")
        assert question == {"model": "stub", "temperature": 0.0, "max_completion_tokens": 9, "user": "me"}
        assert message["role"] == "user"
        assert "<prompt>\nP\n</prompt>" in message["content"]
        firsts |= {text for text in "xy" if f"<answer_A>\n{text}\n</answer_A>" in message["content"]}
    assert firsts == {"x", "y"}


@pytest.mark.parametrize(("path", "asked"), [
    ("", "/v1/chat/completions"), ("/v1/", "/v1/chat/completions"), ("/api/chat/completions", "/api/chat/completions"),
])  # fmt: skip
def test_the_path_below_the_base(path, asked):
    judge = load_judge(JudgeConfig(judge=f"http://127.0.0.1:1{path}#owner/model"))
    assert judge.source._endpoint.url == f"http://127.0.0.1:1{asked}"
    assert judge.name == "model"


def test_equal_texts_are_a_tie_that_nobody_is_asked_about():
    with Stub(preferring("A")) as server:
        found = judge_of(server).compare_all([Pair("P", "x", "x"), PAIRS[0]])
    assert (found[0].verdict, found[0].disagreement, len(server.questions)) == ("tie", None, 2)


def test_votes_are_taken_with_seeds_of_their_own_and_counted_in_pairs():
    """a first: A, A, B; b first: A, B, B, so that a has 2 + 2 of 6 votes, and one pair of votes of three agrees."""
    script = {(True, 42): "A", (True, 43): "A", (True, 44): "B", (False, 42): "A", (False, 43): "B", (False, 44): "B"}

    def vote(handler, question):
        a_first = "<answer_A>\nx\n" in question["messages"][0]["content"]
        handler.answer(*preferring(script[a_first, question["seed"]]))

    with Stub(vote) as server:
        found = judge_of(server, votes=3, temperature=0.7).compare("P", "x", "y")
    assert len(server.questions) == len(found.votes) == 6
    assert found.probability == pytest.approx(4 / 6)
    assert (found.verdict, found.disagreement) == ("a", pytest.approx(2 / 3))


def test_grades_and_a_rubric_of_the_question():
    with Stub(chat('{"grade": 4}'), chat('{"grade": 2.5, "reason": "short"}')) as server:
        judge = judge_of(server, max_in_flight=1)
        first, second = judge.grade("P", "x", "Only rhyme counts."), judge.grade("P", "y")
    assert (first.score, second.score, first.disagreement) == (4.0, 2.5, 0.0)
    texts = [question["messages"][0]["content"] for question in server.questions]
    assert "Only rhyme counts." in texts[0]
    assert "Prefer what is correct" in texts[1]
    assert "a number from 1 to 5" in texts[0]


def test_log_probabilities_of_the_first_token_by_hand():
    """P(A) = .5 + .1 (with a blank), P(B) = .2: 3/4; the same for b first, so 1/4; both are averaged."""
    top = [("A", math.log(0.5)), (" A", math.log(0.1)), ("B", math.log(0.2)), ("C", math.log(0.2))]
    with Stub(chat("A", finish="length", logprobs=top)) as server:
        found = judge_of(server, answers="logprobs").compare("P", "x", "y")
    assert [vote.probability for vote in found.votes] == pytest.approx([0.75, 0.25])
    assert (found.verdict, found.disagreement) == ("tie", 1.0)
    assert server.questions[0]["max_tokens"] == 1
    assert server.questions[0]["top_logprobs"] == 20
    grades = [("2", math.log(0.3)), ("5", math.log(0.1))]
    with Stub(chat("2", finish="length", logprobs=grades)) as server:
        assert judge_of(server, answers="logprobs").grade("P", "x").score == pytest.approx((2 * 0.3 + 5 * 0.1) / 0.4)


# --- Answers that are none


@pytest.mark.parametrize(("answer", "said"), [
    (chat("B is better"), "no JSON object"),
    (chat('{"preferred": "C"}'), "preferred is 'C', which is none of A, B, tie"),
    (chat('{"preferred": "a"}'), "none of A, B, tie"),
    (chat('{"preferred": NaN}'), "no JSON object"),
    (chat('{"preferred": ["A"]}'), "none of A, B, tie"),
    (chat('{"better": "A"}'), "no JSON object with 'preferred'"),
    (chat('["A"]'), "no JSON object with"),
    (chat('{"preferred": "A"} {"preferred": "B"}'), "no JSON object"),
    (chat(""), "no JSON object"),
    (chat('{"preferred": "A"', finish="length"), "cut at max_answer_tokens"),
    (chat('{"preferred": "A"}', finish="length"), "cut at max_answer_tokens"),
    (chat(None), "an answer without text"),
    ((200, {}, b'{"choices": []}'), "without choices"),
    ((200, {}, b'{"error": "no"}'), "no chat completion"),
    ((200, {}, b"[1, 2"), "no JSON"),
    ((500, {}, b"oops"), "status 500, 'oops'"),
    ((401, {}, b"no such key"), "after 1 try: status 401"),
    ((302, {"location": "http://elsewhere.example/"}, b""), "a redirect to elsewhere.example, which is not followed"),
    (broken_off, "after 3 tries"),
])  # fmt: skip
def test_a_bad_answer_is_a_failure_with_its_reason_and_no_verdict(answer, said):
    with Stub(answer) as server:
        found = judge_of(server).compare("P", "x", "y")
    assert said in found.failure
    assert (found.verdict, found.probability, found.disagreement, found.votes) == (None, None, None, ())


@pytest.mark.parametrize("grade", ["6", "0", "NaN", "Infinity", '"4"', "true", "null", "[4]"])
def test_a_grade_outside_its_range_is_none(grade):
    with Stub(chat(f'{{"grade": {grade}}}')) as server:
        found = judge_of(server).grade("P", "x")
    assert found.score is None
    assert found.failure


@pytest.mark.parametrize("content", [
    '```json\n{"preferred": "A"}\n```',
    '<think>B? No: {"preferred": "B"}</think>\n{"preferred": "A"}',
    ' {"preferred":"A"}\n',
])  # fmt: skip
def test_thoughts_and_a_fence_are_passed_over(content):
    with Stub(chat(content)) as server:
        assert judge_of(server).compare("P", "x", "y").votes[0].probability == 1.0


def test_one_order_alone_is_no_verdict():
    def only_one(handler, question):
        a_first = "<answer_A>\nx\n" in question["messages"][0]["content"]
        handler.answer(*(preferring("A") if a_first else chat("…")))

    with Stub(only_one) as server:
        assert judge_of(server).compare("P", "x", "y").verdict is None


def test_an_overloaded_server_is_asked_again_when_it_says_so():
    with Stub((429, {"retry-after": "0.2"}, b""), (429, {"retry-after": "1"}, b""), preferring("A")) as server:
        found = judge_of(server, max_in_flight=1).compare("P", "x", "y")
    assert found.failure is None
    assert server.times[2] - server.times[1] >= 1.0


def test_a_slow_answer_is_waited_for_and_then_not():
    def slow(handler, question):
        time.sleep(0.3)
        handler.answer(*preferring("A"))

    with Stub(slow) as server:
        assert judge_of(server).compare("P", "x", "y").failure is None
        found = judge_of(server, timeout_seconds=0.05, retries=0).compare("P", "x", "y")
    assert "no answer within 0.05 s" in found.failure


def test_a_server_that_is_not_there_is_not_asked_for_ever(monkeypatch):
    monkeypatch.setattr(remote, "MOST_IN_VAIN", 3)
    with Stub((401, {}, b"wrong key")) as server:
        found = judge_of(server, max_in_flight=1).compare_all([Pair("P", str(n), "y") for n in range(20)])
        assert len(server.questions) == 3
    assert all(one.failure for one in found)
    assert "was not asked: the last 3 questions got no answer" in found[-1].failure


# --- Keys


def test_the_key_is_sent_and_shows_nowhere(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    files = {name: str(tmp_path / name) for name in ("cache", "transcript")}
    echo = json.dumps({"preferred": "A", "why": KEY})
    with Stub(chat(echo), (403, {}, f"bad {KEY}".encode())) as server:
        judge = judge_of(server, key_env="JUDGE_KEY", max_in_flight=1, **files)
        found = [judge.compare("P", "x", "y"), judge.compare("P", "v", "w")]
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    told = repr(found) + repr(vars(judge.source)) + "".join(capsys.readouterr())
    told += "".join(path.read_bytes().decode("latin-1") for path in tmp_path.iterdir())
    assert KEY not in told
    assert "bad …" in found[0].failure
    assert json.loads((tmp_path / "transcript").read_text().splitlines()[0])["reading"] == 1.0


def test_a_key_that_is_not_set_or_given_itself():
    with pytest.raises(ConfigError, match="environment variable NO_SUCH_KEY"):
        load_judge(JudgeConfig(judge="http://127.0.0.1:1/v1#m", key_env="NO_SUCH_KEY"))
    with pytest.raises(ConfigError) as refused:
        JudgeConfig(judge="http://127.0.0.1:1/v1#m", key_env="sk-canary")
    assert "sk-canary" not in str(refused.value)
    with pytest.warns(UserWarning, match="goes to judge.example unencrypted"):
        JudgeConfig(judge="http://judge.example/v1#m", key_env="KEY")


# --- Cache


def test_what_the_cache_holds_is_not_asked_again(tmp_path):
    cache = str(tmp_path / "answers")
    with Stub(longer) as server:
        first = judge_of(server, cache=cache).compare_all(PAIRS)
        again = judge_of(server, cache=cache)
        assert again.compare_all(PAIRS) == first
        assert len(server.questions) == 6
        assert (again.usage.cached, again.usage.requests, again.usage.cost) == (6, 0, 0.0)
        judge_of(server, cache=cache, rubric="Brevity.").compare_all(PAIRS[:1])
        assert len(server.questions) == 8  # another rubric is another question
        judge_of(server, cache=cache, temperature=0.5).compare_all(PAIRS[:1])
        assert len(server.questions) == 10


def test_a_failure_is_not_kept(tmp_path):
    with Stub(chat("?"), chat("?"), preferring("A")) as server:
        judge = judge_of(server, cache=str(tmp_path / "answers"))
        assert judge.compare("P", "x", "y").failure
        assert judge.compare("P", "x", "y").failure is None


def test_the_same_question_is_asked_once():
    with Stub(longer) as server:
        found = judge_of(server).compare_all([PAIRS[0]] * 5)
    assert len(server.questions) == 2
    assert {one.verdict for one in found} == {"a"}


def write_many(path, name):
    cache = AnswerCache(path)
    for number in range(50):
        cache.write(f"{number}", name)


def test_several_processes_share_a_cache(tmp_path):
    path = tmp_path / "answers"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_many, args=(path, name)) for name in "xy"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(AnswerCache(path).read([str(number) for number in range(60)])) == 50


def test_a_file_that_is_no_cache_is_named(tmp_path):
    (tmp_path / "answers").write_text("not a data base, but long enough to be taken for something else" * 20)
    with pytest.raises(ConfigError, match=r"cache = .*answers is no file of answers"):
        load_judge(JudgeConfig(judge="http://127.0.0.1:1/v1#m", cache=str(tmp_path / "answers")))


# --- Limits and cost


def test_the_cost_is_counted_by_hand():
    """3 pairs in 2 orders, 100 + 10 tokens each: 600 · 2.50 + 60 · 10.00 per million = 0.0021."""
    with Stub(longer) as server:
        judge = judge_of(server, question_price=2.5, answer_price=10.0)
        judge.compare_all(PAIRS)
    usage = judge.usage
    assert (usage.questions, usage.requests, usage.question_tokens, usage.answer_tokens) == (6, 6, 600, 60)
    assert usage.cost == pytest.approx(0.0021, abs=1e-12)
    assert usage.unbilled == 0.0


def test_nothing_is_asked_that_could_go_beyond_max_cost():
    """At a price of 1 per token a question may cost its bytes + 32 + 256; five answers of 110 leave no room for it."""
    pairs = [Pair("P", str(number), "y") for number in range(20)]
    with Stub(preferring("A")) as server:
        judge = judge_of(server, question_price=1e6, answer_price=1e6, max_cost=1500.0, max_in_flight=4)
        found = judge.compare_all(pairs)
    assert 0 < judge.usage.cost == 110.0 * len(server.questions) <= 1500.0
    assert len(server.questions) < 10
    assert "max_cost = 1500 is reached" in found[-1].failure


def test_questions_wait_for_those_under_way_before_max_cost_ends_it():
    """Six answers of 110 are 660; a question may cost some 850, so two at a time could already go beyond 1,600."""
    with Stub(longer) as server:
        judge = judge_of(server, question_price=1e6, answer_price=1e6, max_cost=1600.0, max_in_flight=4)
        found = judge.compare_all(PAIRS)
    assert [one.failure for one in found] == [None, None, None]
    assert (judge.usage.cost, judge.usage.refused) == (660.0, 0)


def test_tries_that_broke_count_towards_max_cost():
    with Stub(broken_off) as server:
        judge = judge_of(server, question_price=1e6, answer_price=1e6, max_cost=2500.0, max_in_flight=1, retries=9)
        found = judge.compare("P", "x", "y")
    tries = len(server.questions)
    assert (judge.usage.cost, tries < 5) == (0.0, True)
    assert 2500 - judge.usage.unbilled / tries < judge.usage.unbilled <= 2500
    assert "max_cost" in found.failure


def test_without_counts_of_the_server_the_most_is_billed():
    with Stub(preferring("A", usage=None)) as server:
        judge = judge_of(server, answer_price=1e6, question_price=0.0, max_answer_tokens=50)
        judge.compare("P", "x", "y")
    assert judge.usage.cost == 100.0


def test_limits_of_a_minute(monkeypatch):
    import asyncio

    clock = [0.0]

    async def sleep(seconds):
        clock[0] += seconds

    monkeypatch.setattr(limits.asyncio, "sleep", sleep)

    async def times(most, amounts):
        clock[0] = 0.0
        limit, found = MinuteLimit(most, "tokens", lambda: clock[0]), []
        for amount in amounts:
            await limit.take(amount)
            found.append(clock[0])
        return found

    assert asyncio.run(times(2, [1] * 5)) == [0, 0, 60, 60, 120]
    assert asyncio.run(times(100, [60, 30, 20, 81])) == [0, 0, 60, 120]
    assert asyncio.run(times(None, [10**9] * 2)) == [0, 0]
    with pytest.raises(LimitReachedError, match="101 tokens, and 100 are allowed"):
        asyncio.run(times(100, [101]))


def test_a_question_beyond_the_limit_of_tokens_fails_and_the_server_rests(monkeypatch):
    with Stub(longer) as server:
        found = judge_of(server, tokens_per_minute=100).compare("P", "x", "y")
    assert "100 are allowed in a minute" in found.failure
    assert server.questions == []


def test_no_more_than_max_in_flight_at_a_time():
    now, most = [0], [0]

    def count(handler, question):
        now[0] += 1
        most[0] = max(most[0], now[0])
        time.sleep(0.02)
        now[0] -= 1
        longer(handler, question)

    with Stub(count) as server:
        judge_of(server, max_in_flight=3).compare_all([Pair("P", str(number), "y") for number in range(8)])
    assert 1 < most[0] <= 3


def test_a_transcript_has_every_question(tmp_path):
    with Stub(longer, chat("?")) as server:
        judge_of(server, transcript=str(tmp_path / "t.jsonl"), max_in_flight=1).compare("P", "xx", "y")
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert [line["reading"] for line in lines] == [1.0, None]
    assert [line["answer"] for line in lines] == ['{"preferred": "A"}', "?"]
    assert "no JSON object" in lines[1]["failure"]
    assert all(line["judge"] == "stub" and line["prompt"].startswith("default 1 ") for line in lines)


def test_a_prompt_with_half_of_a_surrogate_pair_is_asked():
    with Stub(longer) as server:
        assert judge_of(server).grade_all([Graded("\ud83d", "x")])[0].failure
