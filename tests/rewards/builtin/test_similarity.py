"""Likeness of embeddings: BERTScore worked out token by token, sentence embeddings against the library."""

import sys

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, T5Config

from nearstep.common.errors import ModelError, RewardError
from nearstep.rewards.builtin import Bertscore, SemanticSimilarity
from tests.rewards.builtin.asking import value, values
from tests.rewards.builtin.tiny_models import save_encoder

REFERENCE = "the sky is blue today"
TEXTS = ["the cat sat on a mat .", "the sky is not blue !", "awful"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder"))


def hidden(folder, text, layer):
    """The vectors of a text, framed by [CLS] and [SEP]."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**tokenizer([text], return_tensors="pt"), output_hidden_states=True).hidden_states[layer][0]


def matched(mine, others):
    """The mean over the tokens of `mine`, its frame left out, of the best cosine with any of `others`."""
    best = [max(float(torch.cosine_similarity(a, b, dim=0)) for b in others) for a in mine[1:-1]]
    return sum(best) / len(best)


@pytest.mark.parametrize("layer", [None, 1])
@pytest.mark.parametrize("text", TEXTS)
def test_bertscore_worked_out_token_by_token(encoder, text, layer):
    a, b = (hidden(encoder, t, -1 if layer is None else layer) for t in (text, REFERENCE))
    precision, recall = matched(a, b), matched(b, a)
    expected = 2 * precision * recall / (precision + recall)
    assert 0.05 < expected < 0.95
    assert value(Bertscore(model=encoder, layer=layer), text, reference=REFERENCE) == pytest.approx(expected, abs=1e-5)


def test_bertscore_of_the_reference_itself_silence_and_rows_without_any(encoder):
    found = values(Bertscore(model=encoder), REFERENCE, " ", "cat", reference=[["cat", REFERENCE], REFERENCE, None])
    assert found == [pytest.approx(1.0, abs=1e-5), 0.0, None]


def test_bertscore_reads_long_texts_to_their_end(encoder):
    # Two windows of 16 tokens give the same tokens with the same neighbours as two texts.
    window = "the cat sat on a mat . " * 2
    reward = Bertscore(model=encoder, window_tokens=16)
    assert value(reward, window * 2, reference=window) == pytest.approx(1.0, abs=1e-5)
    alone = value(reward, window, reference=REFERENCE)
    assert value(reward, window * 2, reference=REFERENCE) == pytest.approx(alone, abs=1e-5)
    assert value(reward, window + "awful ! " * 7, reference=REFERENCE) != pytest.approx(alone, abs=1e-3)


def test_bertscore_checks_model_and_layer_before_the_run(encoder, tmp_path):
    Bertscore(model=encoder, layer=2).check_columns(["reference"])
    with pytest.raises(ModelError, match="has 2 layers, so none is layer 3"):
        Bertscore(model=encoder, layer=3).check_columns(["reference"])
    with pytest.raises(RewardError, match="no column 'reference'"):
        Bertscore(model="./none").check_columns([])
    T5Config(d_model=8).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is an encoder with a decoder"):
        Bertscore(model=str(tmp_path)).check_columns(["reference"])


# --- Sentence embeddings


@pytest.fixture(scope="module")
def embedder(encoder, tmp_path_factory):
    pytest.importorskip("sentence_transformers", reason="needs nearstep[embeddings]")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    folder = str(tmp_path_factory.mktemp("embedder"))
    body = modules.Transformer(encoder)
    SentenceTransformer(modules=[body, modules.Pooling(16, pooling_mode="mean")], device="cpu").save(folder)
    return folder


def test_semantic_similarity_is_the_cosine_of_mean_vectors(encoder, embedder):
    reward = SemanticSimilarity(model=embedder, device="cpu")
    reward.check_columns(["reference"])
    reward.prepare()
    expected = [
        float(torch.cosine_similarity(hidden(encoder, text, -1).mean(0), hidden(encoder, REFERENCE, -1).mean(0), dim=0))
        for text in TEXTS
    ]
    assert values(reward, *TEXTS, reference=[REFERENCE] * 3) == pytest.approx(expected, abs=1e-5)
    found = values(reward, REFERENCE, "", "cat", reference=[["cat", REFERENCE], REFERENCE, None])
    assert found == [pytest.approx(1.0, abs=1e-5), 0.0, None]


def test_a_folder_that_is_none_and_a_missing_library_are_told_before_the_run(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match=r"'semantic_similarity': the folder .* does not exist"):
        SemanticSimilarity(model=str(tmp_path / "none")).check_columns(["reference"])
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(RewardError, match=r"pip install 'nearstep\[embeddings\]'"):
        SemanticSimilarity(model="x").check_columns(["reference"])
