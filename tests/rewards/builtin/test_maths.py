"""Numbers, equations and mathematical equality, worked by hand; what cannot be worked out in time is ended."""

import pickle
import sys
import threading
from fractions import Fraction

import pytest

from nearstep.common.errors import RewardError
from nearstep.rewards.builtin import Arithmetic, MathAnswer, NumericAnswer
from nearstep.rewards.builtin.equations import equations, final_number
from tests.rewards.builtin.asking import value, values

# --- The number that a text gives


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 12", 12),
        ("12. Then I had 5 left.", 5),
        ("The answer is 42, not 41.", 42),
        ("Answer: **18** of 20", 18),
        ("2 + 2 = 5\n#### 1,234", 1234),
        (r"It is \boxed{7} and not 8", 7),
        (r"First \boxed{7}, then \boxed{8} of 9", 8),
        (r"\boxed{\frac{1}{2}}", Fraction(1, 2)),
        (r"\boxed{\frac12}", Fraction(1, 2)),
        (r"\boxed{-\dfrac{3}{4}}", Fraction(-3, 4)),
        ("3/4", Fraction(3, 4)),
        ("-3", -3),
        ("−3.50", Fraction(-7, 2)),
        ("10-3", 3),
        ("x=5", 5),
        ("$1,000.25", Fraction(400_100, 400)),
        ("6.02e23", 602 * 10**21),
        ("2e-3", Fraction(1, 500)),
        ("50%", 50),
        (".5", Fraction(1, 2)),
        ("1/0", None),
        ("none", None),
        ("", None),
        ("9" * 5000, None),
    ],
)
def test_final_number(text, number):
    assert final_number(text) == number


def test_numeric_answer_reads_text_and_column_alike():
    answers = ["They have 3 * 4 = 12 pens.\n#### 12", 12, "12", [11, 12], "twelve", None]
    assert values(NumericAnswer(), *["It is 12.0"] * 6, answer=answers) == [1.0, 1.0, 1.0, 1.0, None, None]
    assert values(NumericAnswer(), "It is 13", "", "none", answer=[12, 12, 12]) == [0.0, 0.0, 0.0]


def test_numeric_answer_has_a_relative_tolerance():
    assert value(NumericAnswer(), "0.3333333", answer="1/3") == 1.0
    assert value(NumericAnswer(tolerance=0.0), "0.3333333", answer="1/3") == 0.0
    assert values(NumericAnswer(tolerance=0.1), "110", "111", answer=[100, 100]) == [1.0, 0.0]


def test_a_lucky_number_counts():
    assert value(NumericAnswer(), "1 + 1 = 12", answer="12") == 1.0


# --- Equations


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("2+3=5", [True]),
        ("2+3=6", [False]),
        ("Total = 3 + 4 = 7.", [True]),
        ("5 × 4 = 20 and 20 ÷ 8 = 2.5", [True, True]),
        ("(2+3)*4 = 20", [True]),
        ("2+3*4 = 20", [False]),
        ("$5 * 3 = $15", [True]),
        ("1,000 + 1 = 1,001", [True]),
        # Rounded to the decimals shown; a whole number is not.
        ("1/3 = 0.33, 2/3 = 0.66", [True, False]),
        ("7/2 = 3", [False]),
        # A chain is an equation for each sign.
        ("2+3 = 5 = 4+1 = 6", [True, True, False]),
        # The same again counts once.
        ("1+1=2, so 1 + 1 = 2.", [True]),
        # Not between numbers, or not all of it.
        ("2x + 3 = 7", []),
        ("x - 3 = 5", []),
        ("let y2 + 3 = 7", []),
        ("2**3 = 8", []),
        ("7//2 = 3", []),
        ("+".join("1" * 300) + " = 300", [True]),
        ("f(2) = 4*1", []),
        ("sqrt(16) = 4", []),
        ("2 * 3 = 6x", []),
        ("2 + 2 = 2^2", []),
        ("5 = 5", []),
        ("10/0 = 5", []),
        ("2024-01-05", []),
        ("3 + 4", []),
        ("a = b", []),
        ("=", []),
    ],
)
def test_equations(text, held):
    assert list(equations(text).values()) == held


def test_arithmetic_is_right_minus_wrong():
    found = values(Arithmetic(), "1+1=2", "1+1=3", "1+1=2, 2+2=4, 2+2=5", "No sums here.", "2 + 2")
    assert found == [1.0, -1.0, pytest.approx(1 / 3), 0.0, 0.0]


@pytest.mark.parametrize(
    "text", ["1 " * 20_000, "1=" * 5_000, "(" * 20_000 + "=1", "-" * 20_000 + "1=1", "1," * 20_000]
)
def test_hostile_texts_are_read_in_linear_time(text):
    final_number(text)
    equations(text)


# --- Mathematical equality


@pytest.fixture(scope="module")
def scorer():
    return MathAnswer()


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        (r"so $\frac{1}{2}$", "0.5", 1.0),
        (r"\boxed{(x+1)^2}", "x^2+2x+1", 1.0),
        (r"\boxed{x^2+1}", "x^2+2x+1", 0.0),
        (r"$\{2, 1\}$", r"\{1,2\}", 1.0),
        (r"\boxed{(1,2)}", "(1,2)", 1.0),
        ("The answer is 12", "They are many.\n#### 12", 1.0),
        ("12 apples", 12, 1.0),
        (r"\boxed{36}", r"\$36", 1.0),
        (r"$3\sqrt{13}$", r"3\sqrt{13}", 1.0),
        # Bare LaTeX is read as a whole: 3 is not enough.
        ("3", r"3\sqrt{13}", 0.0),
        ("no number", "12", 0.0),
        ("", "12", 0.0),
        ("12", None, None),
        ("12", [11, 12], 1.0),
    ],
)
def test_math_answer(scorer, text, answer, expected):
    assert value(scorer, text, answer=answer) == expected


def test_what_cannot_be_compared_in_time_is_worth_0_and_the_next_row_is_scored():
    scorer = MathAnswer(timeout_seconds=1.0)
    assert value(scorer, "12", answer="12") == 1.0
    first = scorer._process._process
    assert values(scorer, "$9^{9^{9^9}}$", "12", answer=["5", "12"]) == [0.0, 1.0]
    assert first.poll() is not None
    assert scorer._process._process is not first


def test_it_works_outside_the_main_thread_and_travels_without_its_process(scorer):
    found = []
    thread = threading.Thread(target=lambda: found.append(value(scorer, "12", answer="12")))
    thread.start()
    thread.join()
    assert found == [1.0]
    copy = pickle.loads(pickle.dumps(scorer))
    assert copy == scorer
    assert "_process" not in vars(copy)


def test_the_process_ends_with_the_reward():
    scorer = MathAnswer()
    value(scorer, "12", answer="12")
    process = scorer._process._process
    del scorer
    assert process.wait(timeout=60) is not None


def test_missing_columns_and_libraries_are_told_before_the_run(monkeypatch):
    for reward in (NumericAnswer(), MathAnswer(answer="solution")):
        with pytest.raises(RewardError, match=f"no column '{reward.answer}'"):
            reward.check_columns(["question"])
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(RewardError, match=r"pip install 'nearstep\[math\]'"):
        MathAnswer().check_columns(["answer"])
