"""Counted operations are those that a model of that config runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tiny import TINY
from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.train.pretraining.flops import encoder_flops, training_flops


def test_operations_are_counted():
    lengths, config = [1, 5, 40], ZhModernBertConfig(**TINY | {"local_attention": 8})
    position = torch.arange(40)
    near = int(((position[:, None] - position).abs() <= 4).sum()) + 1 + 25  # the shorter two see all of themselves
    linear = 46 * 2 * 4 * (3 * 32 * 32 + 32 * 32 + 32 * 96 + 48 * 32)
    attention = 2 * 2 * 32 * (2 * (1 + 25 + 1600) + 2 * near)  # layers 0 and 3 are full
    assert encoder_flops(lengths, config) == linear + attention


def test_layers_without_a_window():
    config = ZhModernBertConfig(**TINY | {"global_attn_every_n_layers": 1})
    attention = 4 * 32 * 4 * 300**2
    assert encoder_flops([300], config) - encoder_flops([1] * 300, config) == attention - 4 * 32 * 4 * 300


def test_a_training_step_is_what_pytorch_counts():
    """With full attention by eager, which computes nothing but the products that are counted."""
    config = ZhModernBertConfig(**TINY | {"global_attn_every_n_layers": 1, "sparse_prediction": True})
    model = ZhModernBertForMaskedLM(config)
    model.set_attn_implementation("eager")
    ids = torch.randint(8, 96, (1, 50))
    labels = torch.where(torch.arange(50) < 7, ids, -100)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=labels).loss.backward()
    assert training_flops([50], 7, config) == pytest.approx(counter.get_total_flops(), rel=1e-3)
