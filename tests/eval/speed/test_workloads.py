"""Batches hold the texts that they are named after."""

import pytest
import torch

from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.eval.speed.workloads import Workload
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.pretraining.flops import encoder_flops

TINY = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}


def test_workloads():
    assert Workload.parse("64x3").lengths == [64, 64, 64]
    ragged = Workload.parse("512x16-articles").lengths
    assert ragged == sorted(ragged)
    assert max(ragged) == 512
    for name, filled in (("512x16-questions", 0.44), ("512x16-articles", 0.58), ("8192x16-documents", 0.24)):
        assert round(sum(Workload.parse(name).lengths) / (int(name.split("x")[0]) * 16), 2) == filled
    for name in ("512", "0x4", "512x", "512x16-ragged", "x"):
        with pytest.raises(InputError, match="workload holds"):
            Workload.parse(name)


def test_padded_and_packed_hold_the_same_texts():
    workload = Workload("", [3, 9, 5])
    padded, packed = workload.padded("cpu", pad_token_id=7), workload.packed("cpu")
    assert torch.equal(padded["input_ids"][padded["attention_mask"].bool()], packed["input_ids"][0])
    assert packed["cu_seqlens"].tolist() == [0, 3, 12, 17]
    assert (padded["input_ids"][padded["attention_mask"] == 0] == 7).all()


def test_operations_are_those_of_the_texts():
    config = ZhModernBertConfig(**TINY)
    assert Workload("", [1, 5, 400]).flops(TINY) == encoder_flops([1, 5, 400], config)
