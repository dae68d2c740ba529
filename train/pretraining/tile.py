"""Starts a larger model from a smaller one, as ModernBERT-large was from base (https://arxiv.org/abs/2412.13663, A.2).

Center tiling: each matrix of the smaller model is in the middle of the larger model's matrix, and is repeated around it. Fused
matrices are tiled part by part: queries, keys and values head by head, so that a head of the smaller model is a head of the
larger one, and GeGLU's two halves each by itself. Layers are spread evenly over the depth, as in Gopher
(https://arxiv.org/abs/2112.11446): a layer takes the weights of the nearest layer with the same kind of attention.

Scaling is this project's own: a matrix whose inputs repeat is scaled down by how often they do. Embeddings have no inputs that
repeat. Where they are the decoder too, the norm before the decoder is scaled in their place. So a model of twice the width
computes the same as the smaller one, and a model of a width between nearly the same, before any update.
"""

import torch

from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.train.common.cli import InputError

# Tiling changes SIZES. ALIKE and the kinds of layers also shape the computation, and have to be the same in both models.
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
ALIKE = ("vocab_size", "norm_type", "norm_bias", "attention_bias", "mlp_bias", "decoder_bias", "classifier_bias")
ALIKE += ("hidden_activation", "classifier_activation", "tie_word_embeddings")


def tile(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of `shape` with the smaller `tensor` in its middle, repeated around it in every dimension."""
    for dimension, (small, large) in enumerate(zip(tensor.shape, shape, strict=True)):
        indices = (torch.arange(large) - (large - small) // 2) % small
        tensor = tensor.index_select(dimension, indices)
    return tensor


def parts_of(name: str, config: ZhModernBertConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of a fused parameter, the shapes of its output and of its input dimension, whose parts are tiled each by itself.

    `()` stands for a dimension that is one part.
    """
    size = config.hidden_size // config.num_attention_heads
    heads = (config.num_attention_heads, 2, size // 2)  # RoPE turns the halves of a head together
    outputs = {"Wqkv": (3, *heads), "Wi": (2, config.intermediate_size)}
    path = name.split(".")
    return outputs.get(path[-2], ()), heads if path[-3:] == ["attn", "Wo", "weight"] else ()


def tile_parameter(
    name: str, tensor: torch.Tensor, small: ZhModernBertConfig, large: ZhModernBertConfig, shape
) -> torch.Tensor:
    """The larger model's parameter, of `shape`, tiled from the smaller model's parameter `name`."""
    embeddings = ("model.embeddings.tok_embeddings.weight", *(["decoder.weight"] if small.tie_word_embeddings else []))
    views = []
    for config, flat in ((small, tensor.shape), (large, shape)):
        outputs, inputs = parts_of(name, config)
        views.append((*(outputs or flat[:1]), *(inputs or flat[1:])))
    tiled = tile(tensor.reshape(views[0]), views[1]).reshape(shape)
    if (tensor.ndim > 1 and name not in embeddings) or (small.tie_word_embeddings and name.startswith("head.norm.")):
        return tiled * (tensor.shape[-1] / shape[-1])
    return tiled


def layer_map(small: list[str], large: list[str]) -> list[int]:
    """For each layer of the larger model, the number of the smaller model's layer that it is tiled from.

    The first layer has no `attn_norm`. So the first is tiled from the first, and no other layer is if the smaller model has
    another of its kind.

    Args:
        small, large: the `layer_types` of both.
    """

    def nearest(index: int, kind: str) -> int:
        place = index * (len(small) - 1) / max(len(large) - 1, 1)
        return min((i for i, other in enumerate(small) if other == kind), key=lambda i: (i == 0, abs(i - place)))

    return [0, *(nearest(index, kind) for index, kind in enumerate(large) if index)]


def check_sizes(small: ZhModernBertConfig, large: ZhModernBertConfig) -> None:
    """Checks that one model can be tiled to the sizes of the other.

    Raises:
        InputError: it cannot be, naming the field.
    """
    for field in ALIKE:
        ours, theirs = getattr(large, field), getattr(small, field)
        if ours != theirs:
            raise InputError(f"model_config: {field} is {ours!r}; init_from has {theirs!r}, and tiling keeps it")
    for field in SIZES:
        ours, theirs = getattr(large, field), getattr(small, field)
        if ours < theirs:
            raise InputError(f"model_config: {field} is {ours}; init_from has {theirs}, and tiling makes nothing smaller")
    if large.hidden_size // large.num_attention_heads < small.hidden_size // small.num_attention_heads:
        raise InputError("model_config: its heads are smaller than those of init_from; give fewer num_attention_heads")
    if large.layer_types[0] != small.layer_types[0] or not set(large.layer_types[1:]) <= set(small.layer_types[1:]):
        raise InputError("model_config: layer_types has a kind of layer that init_from has not where it is wanted")


def tile_model(small: ZhModernBertForMaskedLM, large: ZhModernBertForMaskedLM) -> None:
    """Gives `large` the tiled weights of `small`.

    Raises:
        InputError: see `check_sizes`.
    """
    check_sizes(small.config, large.config)
    state = small.state_dict()
    layers = layer_map(small.config.layer_types, large.config.layer_types)
    tiled = {}
    for name, tensor in large.state_dict().items():
        source = name
        if name.startswith("model.layers."):
            _, _, index, rest = name.split(".", 3)
            source = f"model.layers.{layers[int(index)]}.{rest}"
        tiled[name] = tile_parameter(source, state[source], small.config, large.config, tuple(tensor.shape))
    large.load_state_dict(tiled)
