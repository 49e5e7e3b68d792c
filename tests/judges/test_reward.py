"""judge:… as a reward: grades, win shares against references and in a group; a failure is a failed row."""

import math

import pytest

from nearstep import ConfigError, PPOConfig, RewardError
from nearstep.cli.main import main
from nearstep.common import http_post
from nearstep.rewards.ask import OnError
from nearstep.rewards.builtin.spec import meaning, problems_of
from nearstep.rewards.combine import Rewards
from nearstep.rewards.functions import FunctionReward
from nearstep.rewards.judge_spec import read_judge_spec
from nearstep.rewards.loading import load_function
from nearstep.testing import check_reward
from tests.judges.stub import Stub, chat, longer, shown
from tests.rewards.episodes import play
from tests.tiny import byte_tokenizer

JUDGES = """
def longer(prompt, a, b):
    return "a" if len(a) > len(b) else "b" if len(b) > len(a) else "tie"

def length(prompt, answer, rubric):
    return len(answer) if answer != "bad" else None
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(http_post, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.py").write_text(JUDGES)
    return tmp_path


def score(entry, completions, policy="raise", **columns):
    function = FunctionReward(load_function(entry))
    prompts, rollout = play(completions, **columns)
    function.check(list(columns))
    return Rewards([function], byte_tokenizer(), on_error=OnError(policy))(prompts, rollout)


def test_a_grade_is_the_reward():
    assert score("judge:my.py:length", ["a", "four"]).parts["judge"].tolist() == [1.0, 4.0]


def test_win_shares_against_references():
    """A cell may hold nothing, one text, or several, over which the share is the mean."""
    scores = score(
        "judge:my.py:longer,against=best",
        ["four", "a", "four"],
        policy="drop",
        best=["two", ["bb", "c"], "longer still"],
    )
    assert scores.parts["judge"].tolist() == [1.0, 0.25, 0.0]
    scores = score("judge:my.py:longer,against=best", ["x", "y"], policy="drop", best=["yy", None])
    assert scores.total.isnan().tolist() == [False, True]


def test_win_shares_in_a_group():
    """All prompts of `play` are the same: of 1, 2, 2 and 4 letters; wins 0, 1.5, 1.5 and 3 of 3."""
    with Stub(longer) as server:
        scores = score(f"judge:{server.url},against=group", ["a", "bb", "cc", "dddd"])
        assert len(server.questions) == 12
    assert scores.parts["judge"].tolist() == pytest.approx([0.0, 0.5, 0.5, 1.0])
    assert scores.metrics.numbers() == {"judge/disagreement": 0.0, "judge/cost": 0.0}
    assert scores.extras["judge_disagreement"] == [0.0] * 4
    assert score("judge:my.py:longer,against=group", ["a"]).total.tolist() == [0.5]  # as in a sample table
    with pytest.raises(ConfigError, match="num_generations must be at least 2"):
        PPOConfig(reward_funcs="judge:my.py:longer,against=group")
    with pytest.raises(ConfigError, match="leave out reward_workers"):
        PPOConfig(reward_funcs="judge:my.py:longer,against=group", num_generations=2, reward_workers=1)


def test_a_failure_is_a_failed_row_and_never_a_reward():
    with pytest.raises(RewardError, match="graded with None: a grade is a finite number"):
        score("judge:my.py:length", ["fine", "bad"])
    dropped = score("judge:my.py:length", ["fine", "bad"], policy="drop")
    assert dropped.total.isnan().tolist() == [False, True]
    assert "judge 'length' graded with None" in dropped.failures["judge"][1]

    def picky(handler, question):
        handler.answer(*chat("?" if "bb" in question["messages"][0]["content"] else '{"grade": 3}'))

    with Stub(picky) as server:
        scores = score(f"judge:{server.url}", ["a", "bb", "c"], policy="drop")
    assert [math.isnan(value) for value in scores.total.tolist()] == [False, True, False]


def test_the_settings_of_a_long_judge_stand_in_a_file(place):
    def opposite(handler, question):
        first, second = map(len, shown(question))
        handler.answer(*chat(f'{{"preferred": "{"A" if first < second else "B"}"}}'))

    with Stub(opposite) as server:
        (place / "judge.yaml").write_text(f"judge: {server.url}\nretries: 0\nrubric: Brevity.\nrequest:\n  user: me\n")
        assert score("judge:judge.yaml,against=best", ["a"], best=["bb"]).total.tolist() == [1.0]
    assert server.questions[0]["user"] == "me"
    assert "Brevity." in server.questions[0]["messages"][0]["content"]


def test_it_keeps_the_laws_of_rewards():
    rows = [{"prompt": "P", "completion": text, "best": "four"} for text in ("a", "bb", "ccccc")]
    check_reward(load_function("judge:my.py:longer,against=best"), rows=rows)


@pytest.mark.parametrize(("entry", "who", "against"), [
    ("judge:http://h/v1#m", "http://h/v1#m", None),
    ("judge:http://h:8000/v1#owner/m,against=group", "http://h:8000/v1#owner/m", "group"),
    ("judge:j.yaml, against=a_column", "j.yaml", "a_column"),
    ("judge:models/with,comma", "models/with,comma", None),
])  # fmt: skip
def test_how_it_is_written(entry, who, against):
    spec = read_judge_spec(entry)
    assert (spec.who, spec.against, meaning(entry)) == (who, against, "judge")


@pytest.mark.parametrize(("entry", "said"), [
    ("judge:", "write judge:WHO"),
    ("judge:my.py:longer,votes=3", "other settings of a judge stand in a YAML file"),
    ("judge:none.yaml", "cannot read the judge's settings none.yaml: No such file"),
    ("judge:gone.py:f", "there is no file gone.py"),
    ("judge:http://h/v1", "names no model: write http://host:port/v1#model"),
    ("judge:http://me:secret@h/v1#m", "must have no user, password or query"),
])  # fmt: skip
def test_what_is_wrong_is_told_before_anything_is_loaded(entry, said, capsys):
    (problem,) = problems_of(entry)
    assert said in problem
    assert "secret" not in problem.replace(entry, "")
    assert main(["ppo", "--reward_funcs", entry]) == 2
    assert said in capsys.readouterr().err


def test_columns_and_abilities_are_checked_before_the_first_row():
    with pytest.raises(RewardError, match="the data set has no column 'best'"):
        score("judge:my.py:longer,against=best", ["a"])
    with pytest.raises(ConfigError, match="longer compares and does not grade: add ,against=COLUMN"):
        score("judge:my.py:longer", ["a"])


def test_score_takes_it(place, capsys):
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(place / "policy")
    (place / "rows.jsonl").write_text('{"prompt": "P", "completion": "abc"}\n')
    words = ["score", "--input", "rows.jsonl", "--model_name_or_path", str(place / "policy")]
    assert main([*words, "--reward_funcs", "judge:my.py:length", "--use_cpu"]) == 0
    assert "judge" in capsys.readouterr().out
