"""Tokens that stand near one another begin near one another; the bias is the frequencies'; all else is random weights."""

import json

import numpy as np
import pytest
import torch

from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.train import initialise
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.initialise import count_pairs, embed, positive_information
from zh_modernbert.train.rows.packed import PackedRows

SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_pairs_are_counted_inside_documents():
    ids, documents = np.array([1, 2, 3, 4, 2, 1]), np.array([0, 0, 0, 0, 1, 1])
    counted = np.array([True, True, True, True, False])
    pairs = count_pairs(ids, documents, counted, window=2).to_dense()
    assert {(a, b): pairs[a, b].item() for a, b in pairs.nonzero().tolist()} == {(1, 2): 1, (2, 3): 1, (1, 3): 1, (2, 1): 1}


def test_information_is_what_its_definition_says():
    counts = torch.tensor([[0.0, 6, 1], [6, 2, 0], [1, 0, 0]])
    joint, tokens = counts / counts.sum(), counts.sum(0) / counts.sum()
    contexts = tokens**0.75 / (tokens**0.75).sum()
    one_way = (joint / tokens[:, None] / contexts).log()
    expected = ((one_way + one_way.T) / 2).clamp(min=0)
    torch.testing.assert_close(positive_information(counts.to_sparse()).to_dense(), expected)


def test_tokens_of_one_company_are_alike():
    """Tokens 0 to 9 stand near one another, and 10 to 19."""
    torch.manual_seed(0)
    ids = np.concatenate([np.random.default_rng(0).permutation(10) + 10 * (i % 2) for i in range(400)])
    documents = np.repeat(np.arange(400), 10)
    pairs = count_pairs(ids, documents, np.ones(20, bool), 5)
    vectors = embed(positive_information((pairs + pairs.t()).coalesce()), 2)
    likeness = vectors @ vectors.T
    assert likeness[:10, :10].min() > 0.9
    assert likeness[:10, 10:].abs().max() < 0.3


def test_the_folder_is_a_model_to_start_from(stages, tmp_path):
    (tmp_path / "model.json").write_text(json.dumps(SIZES))
    given = {"data_dir": str(stages / "packed"), "model_config": str(tmp_path / "model.json")}
    results = [initialise.main(initialise.Settings(output_dir=str(tmp_path / name), **given)) for name in "ab"]
    assert results[0]["embedded"] > 50
    first, second = (ZhModernBertForMaskedLM.from_pretrained(tmp_path / name) for name in "ab")
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    rows = PackedRows(stages / "packed")
    frequencies = np.bincount(np.concatenate([rows.row(i)[0] for i in range(len(rows))]), minlength=rows.vocab_size)
    often = torch.from_numpy(np.flatnonzero(frequencies[5:] > 3) + 5)
    logits = first.decoder.bias[often].double()
    expected = torch.from_numpy(frequencies[often]).double().log()
    torch.testing.assert_close(logits - logits[0], expected - expected[0], atol=1e-4, rtol=0)
    lengths = first.get_input_embeddings().weight.norm(dim=1)
    assert lengths[often].std() < 0.1 * lengths.mean()


def test_more_sizes_than_tokens(stages, tmp_path):
    (tmp_path / "model.json").write_text(json.dumps(SIZES | {"hidden_size": 1024}))
    with pytest.raises(InputError, match="choose a smaller hidden_size"):
        initialise.main(
            initialise.Settings(
                data_dir=str(stages / "packed"), model_config=str(tmp_path / "model.json"), output_dir=str(tmp_path / "out")
            )
        )
