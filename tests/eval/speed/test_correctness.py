"""Backends agree, and the check of it can fail."""

import pytest
import torch

from zh_modernbert import modeling_zh_modernbert as modeling
from zh_modernbert.eval.speed import correctness
from zh_modernbert.eval.speed.correctness import check_backends


@pytest.fixture
def small(monkeypatch):
    """One layer of each kind."""
    shape = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
    monkeypatch.setattr(correctness, "SHAPE", shape)


def test_backends_agree(small):
    found = check_backends("cpu")
    assert [error for error in found.values() if isinstance(error, str)] == []
    assert found["sdpa float32 gradients"] <= 1e-5
    assert {name.split()[1] for name in found} == {"float32", "bfloat16", "float16"}
    assert {name.split()[0] for name in found} == {"eager", "sdpa"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_backends_agree_on_a_gpu():
    assert [error for error in check_backends("cuda").values() if isinstance(error, str)] == []


def test_a_window_off_by_one_is_noticed(small, monkeypatch):
    original = modeling.SequenceLayout.block_mask
    monkeypatch.setattr(
        modeling.SequenceLayout, "block_mask", lambda self, half, dtype: original(self, half, dtype).roll(1, -1)
    )
    found = check_backends("cpu")
    assert found["sdpa float32 outputs"].startswith("failed: they differ by")
    assert isinstance(found["eager float32 outputs"], float)


def test_a_backend_that_does_not_run_leaves_the_others(small, monkeypatch):
    def broken(module, query, key, value, layout, half_window, dropout):
        if query.dtype == torch.bfloat16:
            raise RuntimeError("no kernel image is available")
        return (query + key + value) * float("nan"), None

    monkeypatch.setitem(modeling.ATTENTION_BACKENDS, "sdpa", broken)
    found = check_backends("cpu")
    assert found["sdpa bfloat16"].startswith("failed: RuntimeError: no kernel image is available, test_correctness.py:")
    assert found["sdpa float16 outputs"].startswith("failed: they differ by nan")
    assert {name for name, error in found.items() if isinstance(error, float)} == {
        f"eager {dtype} {what}" for dtype in ("float32", "bfloat16", "float16") for what in ("outputs", "gradients")
    }
