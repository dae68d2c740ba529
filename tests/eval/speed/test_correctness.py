"""Backends agree, and the check of it can fail."""

import pytest
import torch

from zh_modernbert import modeling_zh_modernbert as modeling
from zh_modernbert.eval.speed import correctness
from zh_modernbert.eval.speed.correctness import check_backends
from zh_modernbert.train.common.cli import InputError


@pytest.fixture
def small(monkeypatch):
    """One layer of each kind."""
    shape = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
    monkeypatch.setattr(correctness, "SHAPE", shape)


def test_backends_agree(small):
    found = check_backends("cpu")
    assert found["sdpa float32 gradients"] <= 1e-5
    assert {name.split()[1] for name in found} == {"float32", "bfloat16", "float16"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_backends_agree_on_a_gpu():
    check_backends("cuda")


def test_a_window_off_by_one_is_noticed(small, monkeypatch):
    original = modeling.SequenceLayout.block_mask
    monkeypatch.setattr(
        modeling.SequenceLayout, "block_mask", lambda self, half, dtype: original(self, half, dtype).roll(1, -1)
    )
    with pytest.raises(InputError, match=r"sdpa in torch\.float32, right: outputs differ"):
        check_backends("cpu")
