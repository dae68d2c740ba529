"""Floating-point operations, counted: those of the matrix products that the real tokens need, 2 a multiply-add."""

from collections.abc import Sequence

import numpy as np

from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig


def encoder_flops(lengths: Sequence[float], config: ZhModernBertConfig) -> float:
    """Of one forward of the encoder over documents of `lengths` tokens, which see themselves alone.

    A layer with a window needs the keys that lie in it and in the document.
    """
    lengths = np.asarray(lengths, dtype=np.float64)  # exact up to 2**53 pairs of tokens
    half = config.local_attention // 2
    before = np.minimum(lengths - 1, half)  # tokens of a document that have fewer than `half` before them
    near = 2 * (before * (before + 1) / 2 + (lengths - 1 - before) * half) + lengths
    pairs = {"full_attention": (lengths**2).sum(), "sliding_attention": near.sum()}
    weights = 4 * config.hidden_size**2 + 3 * config.hidden_size * config.intermediate_size
    linear = 2 * lengths.sum() * config.num_hidden_layers * weights
    return float(linear + 4 * config.hidden_size * sum(pairs[kind] for kind in config.layer_types))


def training_flops(lengths: Sequence[float], masked: float, config: ZhModernBertConfig) -> float:
    """Of forward and backward of masked language modelling with `masked` predictions.

    A backward is two forwards' worth of matrix products; recomputed layers (gradient checkpointing) are no model's need.
    """
    head = 2 * masked * config.hidden_size * (config.hidden_size + config.vocab_size)
    return 3 * (encoder_flops(lengths, config) + head)
