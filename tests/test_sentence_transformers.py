"""The four kinds of model of sentence-transformers take a published folder, with pads and without."""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")

from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder

from tiny import plain_varlen

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = ["老师研究历史", "北京的会议，但是没有人知道。" * 4, "鸡", "圖書館計劃參加北京的會議。"]


@pytest.fixture(scope="module")
def folder(publish_random) -> Path:
    return publish_random("sentences", local_attention=16, initializer_range=0.3)


@pytest.fixture
def flash(monkeypatch) -> Callable[..., list[dict]]:
    """Puts a stand-in for flash-attn, which runs on CPU, into a model, and returns the list of what that is given."""
    calls = []

    def varlen(query, key, value, cu_q, cu_k, max_q, max_k, dropout_p=0.0, window_size=(-1, -1), deterministic=False):
        calls.append({"tokens": len(query), "bounds": cu_q.tolist(), "longest": max_q})
        return plain_varlen(query, key, value, cu_q, window_size[0])

    found = ((None, varlen, None, None, None), (None, None))
    monkeypatch.setattr("transformers.modeling_flash_attention_utils.lazy_import_flash_attention", lambda *_, **__: found)

    def use(model) -> list[dict]:
        body = model[0]
        monkeypatch.setattr(sys.modules[type(body.model).__module__], "flash_attn_varlen_func", varlen)
        body.model.config._attn_implementation = "flash_attention_2"  # its setter asks for the package
        body.unpad_inputs = None  # finds out anew whether it may send rows without pads
        return calls

    return use


def test_without_pads_where_flash_attention_is_asked_for(folder, flash, monkeypatch):
    model = SentenceTransformer(str(folder), trust_remote_code=True)
    seen, forward = [], model[0].model.forward
    monkeypatch.setattr(model[0].model, "forward", lambda **inputs: (seen.append(inputs), forward(**inputs))[1])
    padded = model.encode(TEXTS, convert_to_tensor=True)
    assert "attention_mask" in seen[0]
    assert seen[0]["input_ids"].shape[0] == len(TEXTS)
    calls = flash(model)
    packed = model.encode(TEXTS, convert_to_tensor=True)
    assert seen[-1]["input_ids"].shape[0] == 1
    assert seen[-1]["max_length_q"] == calls[0]["longest"]
    assert seen[-1]["cu_seq_lens_q"].tolist() == calls[0]["bounds"]
    assert calls[0]["bounds"][-1] == calls[0]["tokens"] == sum(len(model.tokenizer(text)["input_ids"]) for text in TEXTS)
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-5)


def test_sparse_vectors(folder):
    vectors = SparseEncoder(str(folder), trust_remote_code=True).encode(TEXTS)
    assert vectors.shape == (len(TEXTS), 512)
    assert vectors.to_dense().isfinite().all()


def test_a_vector_for_each_token(folder):
    model = MultiVectorEncoder(str(folder), trust_remote_code=True)
    found = [torch.as_tensor(vectors) for vectors in model.encode(TEXTS)]
    assert all(vectors.ndim == 2 and vectors.isfinite().all() for vectors in found)
    assert len(found[1]) > len(found[2])


def test_a_score_for_a_pair(folder):
    scores = CrossEncoder(str(folder), num_labels=1, trust_remote_code=True).predict([TEXTS[:2], TEXTS[2:]])
    assert len(scores) == 2
    assert all(map(math.isfinite, scores))
