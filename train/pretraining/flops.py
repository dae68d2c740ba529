"""Floating-point operations of the matrix products that the real tokens need. A multiply-add counts as 2."""

import numpy as np
from numpy.typing import ArrayLike

from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig


def encoder_flops(lengths: ArrayLike, config: ZhModernBertConfig) -> float:
    """Operations of one forward of the encoder over documents of `lengths` tokens.

    A token attends to its own document. In a layer with a window it attends to the keys that lie in the window and the
    document.
    """
    tokens = np.asarray(lengths, dtype=np.float64)  # exact up to 2**53 pairs of tokens
    half = config.local_attention // 2
    before = np.minimum(tokens - 1, half)  # tokens of a document that have fewer than `half` before them
    near = 2 * (before * (before + 1) / 2 + (tokens - 1 - before) * half) + tokens
    pairs = {"full_attention": (tokens**2).sum(), "sliding_attention": near.sum()}
    weights = 4 * config.hidden_size**2 + 3 * config.hidden_size * config.intermediate_size
    linear = 2 * tokens.sum() * config.num_hidden_layers * weights
    return float(linear + 4 * config.hidden_size * sum(pairs[kind] for kind in config.layer_types))


def training_flops(lengths: ArrayLike, masked: float, config: ZhModernBertConfig) -> float:
    """Operations of forward and backward of masked language modelling with `masked` predictions.

    A backward takes the matrix products of two forwards. Layers that gradient checkpointing computes again are not counted.
    """
    head = 2 * masked * config.hidden_size * (config.hidden_size + config.vocab_size)
    return 3 * (encoder_flops(lengths, config) + head)
