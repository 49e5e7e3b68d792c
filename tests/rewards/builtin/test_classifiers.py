"""Rewards from classifiers: equal to transformers' pipeline, long texts read to their end, refusals before a run."""

import pickle

import pytest
from transformers import BertModel, pipeline

from nearstep.common.errors import ModelError, RewardError
from nearstep.rewards.builtin import Classifier, Entailment, LogicalConsistency, Sentiment, Toxicity
from tests.rewards.builtin.asking import value, values
from tests.rewards.builtin.tiny_models import bert_config, save_classifier, word_tokenizer

TEXTS = ["the cat sat on a mat .", "awful !", "the sky is blue today , it is good", "dog barks loudly ?"]


@pytest.fixture(scope="module")
def mood(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("mood"), ["negative", "neutral", "Positive"])


@pytest.fixture(scope="module")
def toxic(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toxic")
    return save_classifier(folder, ["toxic", "insult", "threat"], problem_type="multi_label_classification")


@pytest.fixture(scope="module")
def inference(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("nli"), ["contradiction", "neutral", "entailment"])


def scored(folder, inputs, label):
    """What transformers' pipeline says, one text or pair at a time."""
    scorer = pipeline("text-classification", model=folder, top_k=None, device="cpu")
    said = [scorer([text])[0] for text in inputs]
    return [next(entry["score"] for entry in row if entry["label"] == label) for row in said]


def test_a_classifier_says_what_the_pipeline_says(mood):
    expected = scored(mood, TEXTS, "negative")
    assert max(expected) - min(expected) > 0.1
    assert values(Classifier(model=mood, label="negative", batch_size=3), *TEXTS) == pytest.approx(expected, abs=1e-6)


def test_sentiment_is_the_probability_of_its_label_in_any_case(mood):
    assert values(Sentiment(model=mood), *TEXTS) == pytest.approx(scored(mood, TEXTS, "Positive"), abs=1e-6)
    blame = Sentiment(model=mood, label="NEGATIVE")
    assert values(blame, *TEXTS) == pytest.approx(scored(mood, TEXTS, "negative"), abs=1e-6)


def test_toxicity_is_high_for_the_toxic_and_takes_the_worst_label(toxic):
    assert values(Toxicity(model=toxic), *TEXTS) == pytest.approx(scored(toxic, TEXTS, "toxic"), abs=1e-6)
    both = [max(pair) for pair in zip(scored(toxic, TEXTS, "toxic"), scored(toxic, TEXTS, "threat"), strict=True)]
    assert values(Toxicity(model=toxic, labels=("toxic", "threat")), *TEXTS) == pytest.approx(both, abs=1e-6)


def test_labels_that_exclude_one_another_add_up(mood):
    neither = [1 - p for p in scored(mood, TEXTS, "neutral")]
    assert values(Toxicity(model=mood, labels=("negative", "positive")), *TEXTS) == pytest.approx(neither, abs=1e-6)


def test_nothing_said_is_worth_0(mood, toxic):
    assert values(Sentiment(model=mood), "", TEXTS[0], " \n")[::2] == [0.0, 0.0]
    assert values(Toxicity(model=toxic), "") == [0.0]


def test_a_long_text_is_read_to_its_end(mood, toxic):
    # Windows of 16 tokens hold 14 words beside the two special ones.
    first, second = "the cat sat on a mat . " * 2, "awful ! awful ! dog barks loudly"
    pieces = scored(mood, [first, second], "Positive")
    assert abs(pieces[0] - pieces[1]) > 0.01
    found = value(Sentiment(model=mood, window_tokens=16), first + second)
    assert found == pytest.approx(sum(pieces) / 2, abs=1e-6)
    worst = max(scored(toxic, [first, second], "toxic"))
    assert value(Toxicity(model=toxic, window_tokens=16), first + second) == pytest.approx(worst, abs=1e-6)


def test_the_model_s_own_limit_is_kept(mood):
    text = "the cat sat on a mat . " * 20  # 140 words, the tokenizer's limit is 64
    assert 0 < value(Sentiment(model=mood), text) < 1


def test_batches_and_order_change_nothing(mood):
    long = "the cat sat on a mat . " * 5
    one = values(Sentiment(model=mood, batch_size=1, window_tokens=16), *TEXTS, long)
    many = values(Sentiment(model=mood, batch_size=50, window_tokens=16), long, *reversed(TEXTS))
    assert many == pytest.approx([one[-1], *reversed(one[:-1])], abs=1e-6)


# --- Pairs


def test_entailment_averages_sentences(inference):
    source = "the sky is blue today"
    pairs = [{"text": source, "text_pair": sentence} for sentence in ("the sky is red .", "it is good .")]
    expected = sum(scored(inference, pairs, "entailment")) / 2
    found = values(
        Entailment(model=inference), "the sky is red . it is good .", "", "it is good .", context=[source, source, None]
    )
    assert found == [pytest.approx(expected, abs=1e-6), 0.0, None]


def test_of_a_long_source_the_best_window_counts(inference):
    windows = ["the cat sat on a mat . dog barks", "loudly . the sky is blue today"]
    pairs = [{"text": window, "text_pair": "it is good ."} for window in windows]
    expected = scored(inference, pairs, "entailment")
    assert abs(expected[0] - expected[1]) > 1e-4
    # 16 tokens: three special ones, four of the sentence, nine of the source.
    found = value(Entailment(model=inference, window_tokens=16), "it is good .", context=" ".join(windows))
    assert found == pytest.approx(max(expected), abs=1e-6)


def test_only_the_source_is_divided(inference):
    # 16 tokens: three special ones and eight of the sentence leave five for the source, which has six.
    sentence = "it is not good and awful today ."
    pairs = [{"text": piece, "text_pair": sentence} for piece in ("the cat sat on a", "mat")]
    found = value(Entailment(model=inference, window_tokens=16), sentence, context="the cat sat on a mat")
    assert found == pytest.approx(max(scored(inference, pairs, "entailment")), abs=1e-6)


def test_a_sentence_that_leaves_no_room_for_its_source_is_an_error(inference):
    with pytest.raises(ModelError, match=r"a text of 30 tokens is to be compared, but the model reads 32"):
        value(Entailment(model=inference, window_tokens=32), "cat " * 30, context="the cat")


def test_logical_consistency_finds_the_worst_pair_within_reach(inference):
    a, b, c = "the sky is blue .", "dog barks .", "the sky is not blue ."
    near = [{"text": x, "text_pair": y} for x, y in ((a, b), (b, c))]
    far = {"text": a, "text_pair": c}
    of_near, (of_far,) = scored(inference, near, "contradiction"), scored(inference, [far], "contradiction")
    text = f"{a} {b} {c}"
    reward = LogicalConsistency(model=inference, reach_sentences=2)
    assert value(reward, text) == pytest.approx(1 - max(*of_near, of_far), abs=1e-6)
    reward = LogicalConsistency(model=inference, reach_sentences=1)
    assert value(reward, text) == pytest.approx(1 - max(of_near), abs=1e-6)
    assert values(reward, a, "") == [1.0, 0.0]


# --- Refusals, and what travels


def test_an_unknown_label_is_told_with_those_there_are_before_any_weight(mood):
    for reward in (Classifier(model=mood, label="joy"), Sentiment(model=mood, label="joy"), Toxicity(model=mood)):
        with pytest.raises(ModelError, match=r"has no label .* Its labels: negative, neutral, Positive"):
            reward.check_columns([])
    assert "model" not in vars(Sentiment(model=mood)._reader)


def test_a_model_that_is_not_there_is_told_before_the_run(tmp_path):
    with pytest.raises(ModelError, match=r"reward 'sentiment': the folder .*none' does not exist"):
        Sentiment(model=str(tmp_path / "none")).check_columns([])


def test_a_head_that_was_never_trained_is_refused(tmp_path):
    config = bert_config(num_labels=2)
    BertModel(config).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    reward = Classifier(model=str(tmp_path), label="LABEL_1")
    with pytest.raises(ModelError, match=r"reward 'classifier': .* lacks 2 of the model's tensors \(classifier.bias"):
        reward.prepare()


def test_a_missing_column_is_told_before_the_model_is_looked_for():
    with pytest.raises(RewardError, match="no column 'context'"):
        Entailment(model="./none").check_columns(["source"])


def test_a_loaded_reward_travels_without_its_weights(mood):
    reward = Sentiment(model=mood)
    before = values(reward, *TEXTS)
    assert len(pickle.dumps(reward)) < 2000
    assert values(pickle.loads(pickle.dumps(reward)), *TEXTS) == before


def test_no_gradient_is_kept(mood):
    reward = Sentiment(model=mood)
    reward.prepare()
    assert not any(weights.requires_grad for weights in reward._reader.model.parameters())
