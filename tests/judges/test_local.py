"""Judges of this machine: a language model by its logits, a reward model, functions; what a comparison is made of."""

import math

import pytest
import torch

from nearstep import ConfigError, JudgeConfig, ModelError, load_judge
from nearstep.judges.function import FunctionJudge
from nearstep.judges.prompt import IN_A_TOKEN, load_prompt
from nearstep.judges.protocol import Failed, Pair, PairVerdict, TextGrade, Vote
from nearstep.rewards.judging import kind_of_judge
from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_scalar_model

PAIRS = [Pair("Say: ", "good", "a bad answer"), Pair([{"role": "user", "content": "Hm?"}], "x", "yy")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A language model with a chat template and one without, and a reward model."""
    place = tmp_path_factory.mktemp("models")
    for name, model, chat in (
        ("chat", tiny_causal_lm("gpt2", seed=3), True),
        ("plain", tiny_causal_lm(seed=4), False),
        ("reward", tiny_scalar_model(seed=5), True),
    ):
        if name != "reward":
            model.config.max_position_embeddings = model.config.n_positions = 2048
            model = type(model)(model.config) if name == "chat" else model
        model.eval().save_pretrained(place / name)
        byte_tokenizer(chat=chat).save_pretrained(place / name)
    return place


def logprobs_by_hand(folder, ids, answers):
    """Log-softmax of the model's own logits in float32, the tokens of an answer added up."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    found = []
    for answer in answers:
        logits = model(torch.tensor([ids + answer])).logits[0].float().log_softmax(-1)
        found.append(sum(float(logits[len(ids) - 1 + t, token].detach()) for t, token in enumerate(answer)))
    return found


@pytest.mark.parametrize("form", ["plain", "chat"])
@torch.no_grad()
def test_the_probabilities_of_a_language_model_are_those_of_its_logits(folders, form):
    """P(A) / (P(A) + P(B)) in both orders, averaged; in plain text " A" is two tokens here, as is every answer."""
    folder = str(folders / form)
    judge = load_judge(JudgeConfig(judge=folder, max_tokens_per_microbatch=1000))
    found = judge.compare_all(PAIRS)
    tokenizer, prompt = byte_tokenizer(), load_prompt("default", rubric=None, lowest=1, highest=5)
    for pair, comparison in zip(PAIRS, found, strict=True):
        first = []
        for swapped in (False, True):
            text = prompt.compare(pair, IN_A_TOKEN, swapped=swapped).text
            shown = f"<|user|>{text}<eos><|assistant|>" if form == "chat" else f"{text}\n\nAnswer:"
            answers = ["A", "B"] if form == "chat" else [" A", " B"]
            ids = tokenizer(shown, add_special_tokens=False)["input_ids"]
            a, b = logprobs_by_hand(folder, ids, [tokenizer(answer)["input_ids"] for answer in answers])
            first.append(math.exp(a) / (math.exp(a) + math.exp(b)))
        assert [vote.probability for vote in comparison.votes] == pytest.approx([first[0], 1 - first[1]], abs=1e-5)
        assert comparison.probability == pytest.approx((first[0] + 1 - first[1]) / 2, abs=1e-5)


@torch.no_grad()
def test_a_grade_is_the_mean_over_the_probabilities_of_grades(folders):
    judge = load_judge(JudgeConfig(judge=str(folders / "chat"), lowest_grade=0, highest_grade=3))
    (grade,) = judge.grade_all([judge_question := _graded("Say: ", "x")])
    text = load_prompt("default", rubric=None, lowest=0, highest=3).grade(judge_question, IN_A_TOKEN).text
    tokenizer = byte_tokenizer()
    ids = tokenizer(f"<|user|>{text}<eos><|assistant|>", add_special_tokens=False)["input_ids"]
    weights = [
        math.exp(each) for each in logprobs_by_hand(str(folders / "chat"), ids, [[tokenizer.vocab[n]] for n in "0123"])
    ]
    assert grade.score == pytest.approx(sum(n * weight for n, weight in enumerate(weights)) / sum(weights), abs=1e-5)


def _graded(prompt, answer):
    from nearstep.judges.protocol import Graded

    return Graded(prompt, answer)


def test_batches_change_nothing_and_a_question_that_is_too_long_fails_alone(folders):
    pairs = [*PAIRS, Pair("P", "word " * 600, "short")]
    found = [
        load_judge(JudgeConfig(judge=str(folders / "chat"), max_tokens_per_microbatch=size)).compare_all(pairs)
        for size in (1, 10_000)
    ]
    for one, other in zip(*found, strict=True):
        assert one.probability == pytest.approx(other.probability, abs=1e-6) if one.votes else one == other
    assert "reads at most 2048 tokens, and the question has" in found[0][2].failure


def test_a_reward_model_compares_as_bradley_and_terry_have_it(folders):
    judge = load_judge(str(folders / "reward"))
    rewards = [judge.grade("Say: ", text).score for text in ("good", "a bad answer")]
    found = judge.compare("Say: ", "good", "a bad answer")
    assert found.probability == pytest.approx(1 / (1 + math.exp(rewards[1] - rewards[0])))
    assert found.disagreement is None
    assert "reads at most 512 tokens" in judge.compare("P", "word " * 600, "x").failure


def test_what_a_folder_is_stands_in_its_configuration(folders, tmp_path):
    kinds = [kind_of_judge(JudgeConfig(judge=str(folders / name))) for name in ("chat", "plain", "reward")]
    assert kinds == ["language_model", "language_model", "reward_model"]
    with pytest.raises(ModelError, match="does not exist"):
        load_judge(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match="names no class, which tells neither"):
        load_judge(str(tmp_path))
    with pytest.raises(ModelError, match="no chat template: set judge_form = plain"):
        load_judge(JudgeConfig(judge=str(folders / "plain"), judge_form="chat")).compare("P", "a", "b")
    with pytest.raises(ConfigError, match="one digit"):
        load_judge(JudgeConfig(judge=str(folders / "plain"), highest_grade=10))


# --- Functions


def shorter(prompt, a, b):
    return "a" if len(a) < len(b) else "b" if len(b) < len(a) else "tie"


def words(prompt, answer, rubric):
    return len(answer.split())


class Both:
    def compare(self, prompt, a, b):
        return 0.8 if a < b else 0.4

    def grade(self, prompt, answer, rubric=None):
        return {"rubric": 1, None: 0}[rubric]


def test_a_function_compares_in_both_orders_or_grades():
    judge = FunctionJudge(shorter, "shorter", None)
    found = judge.compare_all([Pair("", "a", "bb"), Pair("", "aa", "b"), Pair("", "a", "b")])
    assert [one.verdict for one in found] == ["a", "b", "tie"]
    assert not judge.grades
    by_grades = FunctionJudge(words, "words", None)
    assert [one.verdict for one in by_grades.compare_all([Pair("", "a b", "c"), Pair("", "a", "c")])] == ["a", "tie"]
    both = FunctionJudge(Both(), "both", "rubric")
    (found,) = both.compare_all([Pair("", "a", "b")])
    assert [vote.probability for vote in found.votes] == pytest.approx([0.8, 0.6])
    assert (found.disagreement, both.grade_all([_graded("", "x")])[0].score) == (0.0, 1.0)


@pytest.mark.parametrize("said", [None, 2, -0.1, math.nan, "A", True, [1]])
def test_what_a_function_says_that_is_no_verdict_is_a_failure(said):
    (found,) = FunctionJudge(lambda prompt, a, b: said, "f", None).compare_all([Pair("", "a", "b")])
    assert found.verdict is None
    assert "it may say a, b, tie, or a number from 0 to 1" in found.failure


def test_a_function_that_raises_fails_on_its_row():
    def picky(prompt, answer, rubric):
        return {"x": 1.0}[answer]

    found = FunctionJudge(picky, "picky", None).grade_all([_graded("", "x"), _graded("", "y")])
    assert (found[0].score, found[1].score) == (1.0, None)
    assert "judge 'picky' failed: KeyError: 'y'" in found[1].failure


@pytest.mark.parametrize(("judge", "said"), [
    (lambda prompt, text: 1, r"takes \(prompt, text\): it must take \(prompt, a, b\)"),
    (lambda answer: 1, r"cannot be called with \(prompt, answer, rubric\)"),
    (7, "is 7: give a function of"),
])  # fmt: skip
def test_what_is_no_judge_is_told(judge, said):
    with pytest.raises(ConfigError, match=said):
        FunctionJudge(judge, "f", None)


# --- Comparisons and grades by hand


def test_a_comparison_by_hand():
    """Votes .9 and .2 for the text shown first: a has .9 and .8. With .6 and .7 it has .6 and .3."""
    agreed = PairVerdict.of_orders([0.9], [0.2])
    assert (agreed.verdict, agreed.probability, agreed.disagreement) == ("a", pytest.approx(0.85), 0.0)
    biased = PairVerdict.of_orders([0.6], [0.7])
    assert (biased.verdict, biased.probability, biased.disagreement) == ("b", pytest.approx(0.45), 1.0)
    assert [vote.first_wins for vote in biased.votes] == [1.0, 1.0]
    half = PairVerdict.of_orders([0.9, Failed("no"), 0.7], [Failed("nor this"), 0.1, 0.7])
    assert (half.probability, len(half.votes), half.failure) == (pytest.approx(0.5), 2, None)
    assert PairVerdict.of_orders([0.1 + 0.2], [0.3]).verdict == "tie"
    assert PairVerdict.of_orders([Failed("no")], [1.0]) == PairVerdict(failure="no")
    assert Vote(0.5, swapped=True).first_wins is None


def test_a_grade_by_hand():
    assert TextGrade.of([1.0, Failed("no"), 4.0]).score == 2.5
    assert TextGrade.of([1.0, 4.0]).disagreement == 3.0
    assert TextGrade.of([Failed("no")]) == TextGrade(failure="no")


# --- Templates


GOOD = 'version = 3\ncompare = "{{ first }} or {{ second }}? {{ how_to_answer }}"\ngrade = "{{ answer }}"\n'


def test_a_template_of_ones_own(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(GOOD)
    prompt = load_prompt(str(file), rubric=None, lowest=1, highest=5)
    assert prompt.identity.startswith("mine 3 ")
    asked = prompt.compare(Pair("P", "{{ secret }}", "y"), IN_A_TOKEN, swapped=True)
    assert asked.whole == "y or {{ secret }}? Answer with one letter and nothing else: A or B."
    (tmp_path / "r.md").write_text("Rhyme.\n")
    assert load_prompt("summary", rubric=str(tmp_path / "r.md"), lowest=1, highest=5).rubric == "Rhyme."


@pytest.mark.parametrize(("change", "said"), [
    (("version = 3", 'version = "3"'), "version must be a whole number"),
    (("{{ second }}", "two"), "compare never shows second"),
    (("{{ how_to_answer }}", "{{ facts }}"), "compare asks for facts; it is given first"),
    (("{{ answer }}", "{% if %}"), "grade is no Jinja template"),
    (("grade =", "mark ="), "grade must be text, got None"),
    (("version", "version ="), "is no TOML"),
])  # fmt: skip
def test_what_is_wrong_with_a_template_is_told(tmp_path, change, said):
    file = tmp_path / "mine.toml"
    file.write_text(GOOD.replace(*change))
    with pytest.raises(ConfigError, match=said):
        load_prompt(str(file), rubric=None, lowest=1, highest=5)
    with pytest.raises(ConfigError, match="no such file; the built-in ones are default, summary"):
        load_prompt(str(tmp_path / "none.toml"), rubric=None, lowest=1, highest=5)
