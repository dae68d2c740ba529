"""Models of the same size with random weights: this encoder, stock ModernBERT, and what else people would take."""

import importlib
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from transformers import (
    CONFIG_MAPPING,
    AttentionInterface,
    AutoConfig,
    AutoModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedModel,
)

from zh_modernbert import modeling_zh_modernbert as modeling
from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig

# Encoders that are compared layer for layer: the base width at 12 layers, System A's shape, and the mini model's.
SHAPES = {
    "12x768": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 1152},
    "28x1024": {"num_hidden_layers": 28, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 2624},
    "10x384": {"num_hidden_layers": 10, "hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 576},
}


@dataclass(frozen=True)
class Peer:
    """What this encoder is compared with: stock ModernBERT of its own shape and weights, or another encoder.

    Attributes:
        backend: stock ModernBERT's attention; empty where the peer is another encoder.
        runtime: what stock ModernBERT runs in, see runtimes.py.
        fused: stock ModernBERT has the kernels of the package packed-encoders.
        kind, sizes: another encoder's `model_type` and its published sizes, where those are not transformers' defaults.
    """

    backend: str = ""
    runtime: str = "pytorch"
    fused: bool = False
    kind: str = ""
    sizes: dict[str, int] = field(default_factory=dict)


ROBERTA_LARGE = {
    "vocab_size": 21128,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
QWEN3_EMBEDDING = {
    "vocab_size": 151669,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
PACKED_ENCODERS = "modernbert-packed_encoders"
PEERS = {
    "modernbert-sdpa": Peer("sdpa"),
    "modernbert-eager": Peer("eager"),
    "modernbert-flash_attention_2": Peer("flash_attention_2"),
    "modernbert-flex_attention": Peer("flex_attention"),
    "modernbert-packed": Peer("packed"),
    PACKED_ENCODERS: Peer("sdpa", fused=True),
    "modernbert-onnxruntime": Peer("sdpa", runtime="onnxruntime"),
    "modernbert-openvino": Peer("sdpa", runtime="openvino"),
    "chinese-roberta-wwm-ext-large": Peer(kind="bert", sizes=ROBERTA_LARGE),
    "xlm-roberta-base": Peer(kind="xlm-roberta", sizes={"vocab_size": 250002, "max_position_embeddings": 514}),
    "qwen3-embedding-0.6b": Peer(kind="qwen3", sizes=QWEN3_EMBEDDING),
    "eurobert-210m": Peer(kind="eurobert"),
    "gte-multilingual-base": Peer(kind="gte"),
    "nomic-embed": Peer(kind="nomic_bert"),
    "jina-embeddings-v3": Peer(kind="jina_embeddings_v3"),
}
PRETRAINING_PEERS = ("modernbert-sdpa", "modernbert-flash_attention_2")
EAGER_LONGEST = 2048  # eager keeps T x T weights for each head, so longer texts do not fit


def stock_config(shape: dict, vocab_size: int, longest: int, backend: str) -> ModernBertConfig:
    """transformers' ModernBERT of a shape, with this project's vocabulary."""
    special: dict[str, Any] = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    config = ModernBertConfig(**shape, vocab_size=vocab_size, max_position_embeddings=max(longest, 8192), **special)
    config._attn_implementation = backend
    return config


def build_ours(shape: dict, longest: int, state_dict: dict | None = None) -> PreTrainedModel:
    config = ZhModernBertConfig(**shape, norm_type="layernorm", max_position_embeddings=max(longest, 8192))
    model = modeling.ZhModernBertModel(config)
    if state_dict is not None:
        model.load_state_dict(state_dict)
    return model


def packed_attention(module, query, key, value, attention_mask, cu_seqlens, max_seqlen, sliding_window, dropout=0.0, **kwargs):
    """Attention that a user can register today for stock ModernBERT on packed rows: `(1, A, N, C)` -> `(1, N, A, C)`.

    On a GPU it is PyTorch's varlen kernel. On CPU, which has none, it is SDPA on each document, with a mask for the window.
    """
    reach = -1 if sliding_window is None else sliding_window - 1
    if query.is_cuda:
        query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
        if modeling.varlen_attn is None:
            raise ImportError("PyTorch has a varlen kernel with a window from 2.11")
        bounds = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
        return modeling.varlen_attn(query, key, value, *bounds, window_size=(reach, reach))[None], None
    outputs = []
    for start, end in pairwise(cu_seqlens.tolist()):
        position, mask = torch.arange(end - start), None
        if 0 <= reach < end - start - 1:
            mask = (position[:, None] - position).abs() <= reach
        states = (states[:, :, start:end] for states in (query, key, value))
        outputs.append(F.scaled_dot_product_attention(*states, attn_mask=mask, dropout_p=dropout))
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def pack_encoder(model: PreTrainedModel) -> None:
    """Gives stock ModernBERT the fused kernels of the package packed-encoders (pau-mensa/flash-modernbert), in place.

    Raises:
        ImportError: it is not installed.
    """
    importlib.import_module("packed_encoders").pack(model)


def build_peer(peer: Peer, shape: dict, longest: int) -> tuple[PreTrainedModel, int]:
    """A peer with random weights, and the most tokens a text of it may have.

    Raises:
        ImportError: transformers does not have it.
    """
    if peer.backend:
        if peer.backend == "packed":
            AttentionInterface.register("packed", packed_attention)
        model = ModernBertModel(stock_config(shape, 32768, longest, peer.backend))
        return model, EAGER_LONGEST if peer.backend == "eager" else 10**9
    if peer.kind not in CONFIG_MAPPING:
        raise ImportError(f"transformers {transformers.__version__} has no {peer.kind}")
    config = AutoConfig.for_model(peer.kind, **peer.sizes)
    return AutoModel.from_config(config), min(config.max_position_embeddings, 32768) // 64 * 64
