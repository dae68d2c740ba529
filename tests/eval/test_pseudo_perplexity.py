"""Pseudo-perplexity against the definition: each token masked alone, its probability read from all logits."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from zh_modernbert.eval import pseudo_perplexity
from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.tokenizer.loading import load_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["今天天气很好。", "老师研究经济发展的问题，但是没有人知道。", "圖書館 Python 3.12 的文檔 🙂", "鸡"]


@pytest.fixture(scope="module")
def model_dir(publish_random) -> Path:
    """With weights so large that its probabilities are far from even."""
    return publish_random("perplexity", local_attention=8, initializer_range=0.3)


@pytest.fixture(scope="module")
def model(model_dir) -> ZhModernBertForMaskedLM:
    return ZhModernBertForMaskedLM.from_pretrained(model_dir).eval()


@pytest.fixture
def settings(model_dir, tmp_path) -> pseudo_perplexity.Settings:
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    return pseudo_perplexity.Settings(
        model=str(model_dir),
        trust_remote_code=True,
        input=[str(tmp_path / "texts.txt")],
        results_dir=str(tmp_path / "results"),
    )


@torch.inference_mode()
def by_definition(model: ZhModernBertForMaskedLM, ids: list[int]) -> list[float]:
    """log P of each token between [CLS] and [SEP], from one forward pass and all logits each."""
    results = []
    for position in range(1, len(ids) - 1):
        masked = torch.tensor([ids])
        masked[0, position] = model.config.mask_token_id
        logits = model(input_ids=masked).logits[0, position].double()
        results.append(float(logits[ids[position]] - logits.logsumexp(0)))
    return results


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("batch_tokens", [1, 50, 100_000])
def test_log_probabilities(model, model_dir, monkeypatch, sparse, batch_tokens):
    monkeypatch.setattr(model.config, "sparse_prediction", sparse)
    tokenizer = load_tokenizer(model_dir)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        positions = torch.arange(1, len(ids) - 1)
        scored = pseudo_perplexity.log_probabilities(model, torch.tensor(ids), positions, 4, batch_tokens)
        assert scored.dtype == torch.float64
        np.testing.assert_allclose(scored.numpy(), by_definition(model, ids), rtol=1e-5, atol=1e-5)


def test_only_the_positions_asked_for(model, model_dir):
    ids = load_tokenizer(model_dir)(TEXTS[1])["input_ids"]
    scored = pseudo_perplexity.log_probabilities(model, torch.tensor(ids), torch.tensor([5, 2]), 4, 8192)
    expected = by_definition(model, ids)
    np.testing.assert_allclose(scored.numpy(), [expected[4], expected[1]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("max_length", [128, 8])
def test_the_result(settings, model, model_dir, max_length):
    """Over all tokens of all documents at once, cut to max_length; bits for the characters that were scored."""
    settings.max_length = max_length
    result = pseudo_perplexity.main(settings)
    tokenizer, scored, tokens, characters = load_tokenizer(model_dir), [], [], 0
    for text in TEXTS:
        encoded = tokenizer(text, truncation=True, max_length=max_length, return_offsets_mapping=True)
        scored += by_definition(model, encoded["input_ids"])
        tokens += encoded["input_ids"][1:-1]
        characters += encoded["offset_mapping"][-2][1]
    metrics = result["metrics"]
    assert metrics["tokens"] == len(tokens) == len(scored)
    assert metrics["characters"] == characters
    assert (characters == sum(map(len, TEXTS))) == (max_length == 128)
    assert metrics["pseudo_perplexity"] == pytest.approx(math.exp(-np.mean(scored)), rel=1e-5)
    bits = math.log2(metrics["pseudo_perplexity"]) * metrics["tokens"] / metrics["characters"]
    assert metrics["bits_per_character"] == pytest.approx(bits, abs=1e-3)
    shares = np.unique(tokens, return_counts=True)[1] / len(tokens)
    assert metrics["unigram_perplexity"] == pytest.approx(math.prod(shares**-shares), abs=1e-3)
    assert result["num_examples"] == len(TEXTS)


def test_the_result_file(settings, tmp_path):
    settings.name, settings.max_documents = "held_out", 2
    result = pseudo_perplexity.main(settings)
    assert json.loads((tmp_path / "results" / "held_out-all-0.json").read_text(encoding="utf-8")) == result
    assert result["num_examples"] == 2
    assert result["primary_metric"] == "pseudo_perplexity"
    assert result["primary_metric"] in result["metrics"]
    assert result["model"] == settings.model


@pytest.mark.parametrize("count", [1, 2, 50])
def test_unigram_perplexity_of_an_even_distribution(count):
    assert pseudo_perplexity.unigram_perplexity(np.repeat(np.arange(count), 7)) == pytest.approx(count)


def test_unigram_perplexity_by_hand():
    """Shares of 1/2, 1/4 and 1/4 have an entropy of 1.5 bits."""
    assert pseudo_perplexity.unigram_perplexity(np.array([9, 9, 3, 5])) == pytest.approx(2**1.5)


def refused(settings: pseudo_perplexity.Settings) -> str:
    with pytest.raises(InputError) as error:
        pseudo_perplexity.main(dataclasses.replace(settings))  # a new one, so that its bounds are checked
    assert "\n" not in str(error.value)
    assert not Path(settings.results_dir).exists()
    return str(error.value)


def test_no_input(settings):
    settings.input = []
    assert "--input" in refused(settings)


def test_empty_input(settings, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n\n", encoding="utf-8")
    settings.input = [str(tmp_path / "empty.txt")]
    assert "empty.txt" in refused(settings)


def test_a_missing_file(settings, tmp_path):
    settings.input.append(str(tmp_path / "none.txt"))
    assert "none.txt" in refused(settings)


def test_a_missing_model(settings):
    settings.model = "nowhere/at-all"
    assert "nowhere/at-all" in refused(settings)


@pytest.mark.parametrize("max_length", [129, 2, 0])
def test_lengths_that_leave_nothing_to_score_or_are_too_long(settings, max_length):
    """129 is more than the model takes; of 2 tokens none is text."""
    settings.max_length = max_length
    assert "max_length" in refused(settings)
