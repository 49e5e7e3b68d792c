"""Rewards begin while other rows are being generated: sooner, with the same answers, and nothing is left of them."""

import json
import time

import pytest

from nearstep.common import http_post as remote
from nearstep.common.errors import RewardError
from nearstep.rewards import protocol as early_rows
from nearstep.rewards.ask import OnError
from nearstep.rewards.combine import Rewards
from nearstep.rewards.functions import FunctionReward
from nearstep.rewards.remote.client import RemoteReward, Server
from tests.rewards.episodes import play
from tests.rewards.light import in_workers
from tests.rewards.test_remote import POLICY, Scripted, lengths, said
from tests.rewards.test_workers import gone
from tests.tiny import byte_tokenizer

SOURCE = """
import os, pathlib, time

HERE = pathlib.Path(__file__).parent

def score(completions, log_extra, log_metric, answer=(None,)):
    (text,) = completions
    with open(HERE / "asked.txt", "a") as asked:
        asked.write(text + "\\n")
    if text == "sleep": time.sleep(1000)
    if text == "leave": os._exit(0)
    if text == "leave once" and not (HERE / "left").exists():
        (HERE / "left").touch()
        os._exit(0)
    log_extra("process", [text.upper()])
    log_metric("length", len(text))
    return [None if text == "none" else float("nan") if text == "nan" else len(text) + (answer[0] == "yes") / 3]

def spans(completions, completion_ids):
    return [[(0, 1, 0.1), (0, len(completions[0]), 0.2)]]

def where(completions):
    (HERE / f"{os.getpid()}.pid").touch()
    if completions == ["sleep"]: time.sleep(1000)
    return [0.0]
"""
LIMIT_SECONDS = 60.0


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE_SECONDS", 0.001)


def tell(early, rollout, rows):
    """What an engine does: rows end in this order."""
    ids, finished = rollout.completion_ids(), rollout.finished.tolist()
    for row in rows:
        early(row, ids[row], finished[row])


def end_in_the_middle(rewards, prompts, rollout, rows, error, meanwhile=lambda early: None):
    """An engine that tells of these rows and then fails."""
    with rewards.early(prompts) as early:
        tell(early, rollout, rows)
        meanwhile(early)
        raise error


def pids(file):
    """The processes in which `where` was called."""
    return [path.stem for path in file.parent.glob("*.pid")]


def asked(file):
    """What the functions of the file were asked about so far."""
    log = file.parent / "asked.txt"
    return log.read_text().splitlines() if log.exists() else []


def wait_for(what):
    began = time.monotonic()
    while not (found := what()):
        assert time.monotonic() - began < LIMIT_SECONDS
        time.sleep(0.01)
    return found


def outcome(rewards, prompts, rollout, rows=None):
    """Scores, or the error, as plain values; with a head start where `rows` are given."""
    try:
        if rows is None:
            scores = rewards(prompts, rollout)
        else:
            with rewards.early(prompts) as early:
                tell(early, rollout, rows)
            scores = rewards(prompts, rollout, early)
    except RewardError as error:
        return str(error)
    finally:
        rewards.close()
    parts = {name: part.nan_to_num(-99).tolist() for name, part in scores.parts.items()}
    dense = None if scores.dense is None else scores.dense.tolist()
    return scores.total.nan_to_num(-99).tolist(), parts, dense, scores.extras, scores.metrics.numbers(), scores.failures


# --- It begins early


def test_a_row_is_scored_before_the_last_one_has_ended(file):
    sources, pool = in_workers(file, "score", count=2)
    rewards = Rewards(sources, byte_tokenizer())
    prompts, rollout = play(["a", "bb", "ccc"])
    with rewards.early(prompts) as early:
        tell(early, rollout, [1])
        wait_for(lambda: asked(file) == ["bb"])
        tell(early, rollout, [2, 0])
    assert rewards(prompts, rollout, early).total.tolist() == [1.0, 2.0, 3.0]
    assert sorted(asked(file)) == ["a", "bb", "ccc"]  # once each
    pool.close()


def test_a_request_is_sent_when_its_last_row_has_ended(file):
    with Scripted(lengths) as server:
        rewards = Rewards([RemoteReward(Server(server.url, batch_size=2), POLICY)], byte_tokenizer())
        prompts, rollout = play(["a", "bb", "ccc", "dddd", "eeeee"])
        with rewards.early(prompts) as early:
            tell(early, rollout, [3, 0, 2])
            wait_for(lambda: server.questions)
            assert [row["completion"] for row in server.questions[0]["rows"]] == ["ccc", "dddd"]
            tell(early, rollout, [4])  # a request of one, since there are no more
            wait_for(lambda: len(server.questions) == 2)
            assert [row["completion"] for row in server.questions[1]["rows"]] == ["eeeee"]
            tell(early, rollout, [1])
        assert rewards(prompts, rollout, early).total.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert len(server.questions) == 3


def test_telling_waits_for_nobody(file):
    """The engine's call returns while the only worker is asleep, for ever as far as this test is concerned."""
    (source,), _ = in_workers(file, "score")
    rewards = Rewards([source], byte_tokenizer())
    prompts, rollout = play(["sleep", *["a" * 100_000] * 3])  # more than a pipe holds
    with pytest.raises(KeyError):
        end_in_the_middle(rewards, prompts, rollout, range(4), KeyError)


# --- With the same answers

BATCHES = {
    "all well": ["a", "bb", "ccc", "none", "é", "ffffff", "a"],
    "one fails": ["a", "bb", "nan", "dddd", "eeeee", "ffffff"],
    "one ends its process": ["a", "leave", "ccc", "dddd", "eeeee", "ffffff"],
    "one is too slow": ["a", "sleep", "ccc", "dddd", "eeeee", "ffffff"],
    "one fails once": ["a", "leave once", "ccc", "dddd", "eeeee", "ffffff"],
    "most fail": ["a", "nan", "leave", "nan", "nan", "ffffff"],
}


ALWAYS = {"one ends its process": "retry", "one is too slow": "drop", "most fail": "raise"}


@pytest.mark.parametrize(
    ("batch", "policy"),
    [
        pytest.param(batch, policy, id=f"{name}-{policy}", marks=[] if ALWAYS.get(name) == policy else pytest.mark.slow)
        for name, batch in BATCHES.items()
        for policy in ("raise", "retry", "drop")
    ],
)
def test_scores_and_failures_do_not_depend_on_what_was_begun(file, batch, policy):
    prompts, rollout = play(batch, answer=["yes", "no"] * 3 + ["yes"] * (len(batch) - 6))

    def scored(rows):
        (file.parent / "left").unlink(missing_ok=True)
        sources, _ = in_workers(file, "score", "spans", count=2, timeout=1.0 if "sleep" in batch else None)
        on_error = OnError(policy, retries=1)
        return outcome(
            Rewards(sources, byte_tokenizer(), weights=[1.0, 0.5], on_error=on_error), prompts, rollout, rows
        )

    plain = scored(None)
    assert scored([5, 0, 3, 1] if policy == "retry" else [5, 0, 3, 1, 4, 2]) == plain
    failed = isinstance(plain, str)
    assert (
        failed
        == {
            "raise": bool({"nan", "leave", "sleep", "leave once"} & set(batch)),
            "retry": bool({"nan", "leave", "sleep"} & set(batch)),
            "drop": batch == BATCHES["most fail"],
        }[policy]
    )


@pytest.mark.parametrize("policy", ["raise", "drop"])
def test_requests_are_those_without_a_head_start_to_the_byte(policy):
    batch = ["a", "bb", "ccc", "dddd", "eeeee", "ffffff", "ggggggg"]

    def half(handler, question):
        rewards = [{"error": "no"} if row["completion"] == "bb" else 0.1 * row["episode"] for row in question["rows"]]
        logged = [row["completion"] for row in question["rows"]]
        handler.answer(*said(rewards, extras={"text": logged}, metrics={"m": [0.1 * len(text) for text in logged]}))

    outcomes, requests = [], []
    for rows in (None, [6, 5, 4, 3, 2, 1, 0], [3, 1, 5, 2]):
        with Scripted(half) as server:
            rewards = Rewards(
                [RemoteReward(Server(server.url, batch_size=3), POLICY)], byte_tokenizer(), on_error=OnError(policy)
            )
            text = str(outcome(rewards, *play(batch, answer=list("xyzxyzx")), rows))
            outcomes.append(text.replace(str(server.port), "PORT"))
            requests.append(sorted(json.dumps(question) for question in server.questions))
    assert outcomes[1] == outcomes[2] == outcomes[0]
    assert requests[1] == requests[2] == requests[0]
    assert len(requests[0]) == 3


def test_a_server_that_fails_early_is_asked_again_and_given_up_as_ever():
    with Scripted((500, {}, b""), lengths) as server:
        rewards = Rewards([RemoteReward(Server(server.url), POLICY)], byte_tokenizer())
        assert outcome(rewards, *play(["a", "bb"]), [1, 0])[0] == [1.0, 2.0]
    assert len(server.questions) == 2
    with Scripted((500, {}, b"")) as server:
        rewards = Rewards([RemoteReward(Server(server.url, retries=1), POLICY)], byte_tokenizer())
        assert "gave no rewards for rows 0 to 1 of the batch" in outcome(rewards, *play(["a", "bb"]), [1, 0])
    assert len(server.questions) == 2


def test_a_row_that_changed_after_it_was_told_is_asked_about_anew(file):
    (source,), _ = in_workers(file, "score")
    with Scripted(lengths) as server:
        url = RemoteReward(Server(server.url, batch_size=2), POLICY)
        rewards = Rewards([source, url], byte_tokenizer())
        prompts, told = play(["a", "bb", "ccc"])
        _, played = play(["a", "bbbbb", "ccc"])
        with rewards.early(prompts) as early:
            tell(early, told, [0, 1, 2])
        assert rewards(prompts, played, early).total.tolist() == [2.0, 10.0, 6.0]
        rewards.close()


def test_sources_in_the_trainer_see_one_whole_batch_after_generation(file):
    calls = []

    def here(completions):
        calls.append(list(completions))
        return [0.5] * len(completions)

    (source,), _ = in_workers(file, "score")
    rewards = Rewards([FunctionReward(here), source], byte_tokenizer())
    prompts, rollout = play(["a", "bb"])
    with rewards.early(prompts) as early:
        tell(early, rollout, [1, 0])
        assert calls == []
    assert rewards(prompts, rollout, early).total.tolist() == [1.5, 2.5]
    assert calls == [["a", "bb"]]
    rewards.close()


def test_without_sources_that_start_early_nothing_is_decoded(monkeypatch):
    rewards = Rewards([FunctionReward(lambda completions: [0.0], "f")], byte_tokenizer())
    prompts, rollout = play(["a"])
    monkeypatch.setattr(early_rows, "reward_row", None)
    with rewards.early(prompts) as early:
        tell(early, rollout, [0])


def test_the_state_of_the_trainer_and_chats_reach_rows_that_begin_early(tmp_path):
    path = tmp_path / "chat.py"
    path.write_text(
        "def f(prompts, completions, trainer_state, log_extra):\n"
        "    log_extra('seen', [f'{prompts[0][-1][\"content\"]} {completions[0][-1][\"content\"]} {trainer_state}'])\n"
        "    return [1.0]\n"
    )
    (source,), _ = in_workers(path, "f")
    rewards = Rewards([source], byte_tokenizer(), state=lambda: "step 7")
    prompts, rollout = play(["well"], [[{"role": "user", "content": "Hi"}]])
    with rewards.early(prompts) as early:
        tell(early, rollout, [0])
    assert rewards(prompts, rollout, early).extras == {"seen": ["Hi well step 7"]}
    rewards.close()


# --- And nothing is left


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_generation_ends_what_was_begun(file, error):
    sources, _ = in_workers(file, "where", count=2)
    rewards = Rewards(sources, byte_tokenizer())
    prompts, rollout = play(["sleep", "sleep", "sleep", "a"])
    with pytest.raises(error):
        end_in_the_middle(rewards, prompts, rollout, [0, 1, 2], error, lambda early: wait_for(lambda: pids(file)))
    assert gone(pids(file))
    assert rewards(*play(["a"])).total.tolist() == [0.0]  # and the pool is as good as new
    rewards.close()


def test_an_error_of_another_source_ends_what_was_begun(file):
    def broken(completions):
        wait_for(lambda: pids(file))
        raise ValueError("no")

    sources, _ = in_workers(file, "where")
    rewards = Rewards([FunctionReward(broken), *sources], byte_tokenizer())
    prompts, rollout = play(["sleep", "a"])
    with rewards.early(prompts) as early:
        tell(early, rollout, [0, 1])
    with pytest.raises(RewardError, match="'broken' raised ValueError"):
        rewards(prompts, rollout, early)
    assert gone(pids(file))


def test_an_error_in_generation_ends_requests():
    left, begun = [], []

    def hangs(handler, question):
        handler.connection.settimeout(LIMIT_SECONDS)
        left.append(handler.connection.recv(1))  # nothing, once the other side has hung up

    def four_are_under_way(early):
        wait_for(lambda: len(server.questions) == 4)
        begun.extend(future for _, future in early.head_starts[0]._begun.values())

    with Scripted(hangs) as server:
        url = RemoteReward(Server(server.url, timeout_seconds=1000.0, batch_size=1), POLICY)
        rewards = Rewards([url], byte_tokenizer())
        prompts, rollout = play(["a"] * 6)
        with pytest.raises(RuntimeError):
            end_in_the_middle(rewards, prompts, rollout, range(6), RuntimeError, four_are_under_way)
        wait_for(lambda: len(left) == 4)
    assert left == [b""] * 4
    assert [future.cancelled() for future in begun] == [True] * 6


def test_closing_ends_what_was_begun_and_not_collected(file):
    sources, _ = in_workers(file, "where")
    rewards = Rewards(sources, byte_tokenizer())
    prompts, rollout = play(["sleep", "a"])
    with rewards.early(prompts) as early:
        tell(early, rollout, [0, 1])
        wait_for(lambda: pids(file))
    rewards.close()
    assert gone(pids(file))


def test_workers_that_do_not_come_up_are_told_when_the_batch_is_scored(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("def f(completions): return [0.0]\n")
    (source,), _ = in_workers(path, "f")
    path.write_text("import os; os._exit(3)\n")
    rewards = Rewards([source], byte_tokenizer())
    prompts, rollout = play(["a", "b"])
    with rewards.early(prompts) as early:
        tell(early, rollout, [0, 1])
    with pytest.raises(RewardError, match=r"'f' did not come up \(exit code 3\)"):
        rewards(prompts, rollout, early)
