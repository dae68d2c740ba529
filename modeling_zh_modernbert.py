"""The zh-modernbert encoder and its heads.

A batch enters padded `(B, T)` or packed `(1, N)`. A `SequenceLayout` has the document of each token. Behind the table of
embeddings `unpad_input` drops the pads once. Layers and heads see only the N real tokens, as `(N, H)`. `pad_input` puts the
pads back once, as zeros. Documents matter in attention alone. Its backends are functions of the same signature in
`ATTENTION_BACKENDS`.

Shapes: B rows, T tokens a row, N real tokens, D documents, H hidden size, A heads, C head size, V vocabulary.
"""

import inspect
import math
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import groupby, pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple

from .configuration_zh_modernbert import ZhModernBertConfig

try:
    from flash_attn import flash_attn_varlen_func
except ImportError:
    flash_attn_varlen_func = None
try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    varlen_attn = None
try:
    import triton
    import triton.language as tl
    from triton.language import constexpr
except ImportError:
    triton = tl = constexpr = None
if varlen_attn is not None and "window_size" not in inspect.signature(varlen_attn).parameters:
    varlen_attn = None  # the first versions have no window

logger = logging.get_logger(__name__)

# Queries of a block in block-local attention. 64 was faster than 32 and 128 for the window of 128 on CPU.
QUERY_BLOCK = 64
# Programs exported for texts of at most so many tokens leave pads in place, and a window is a mask. This is faster there.
SHORT_TEXTS = 256
# `chunked_loss` has the logits of so many labels in memory: 128 MB in float32 for 32,768 entries.
LOSS_CHUNK = 1024


# --- documents in a batch ---------------------------------------------------------------------------------------------


def is_exporting() -> bool:
    """Whether this call is traced or compiled into a program, which must not depend on the values of this batch."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def check_shape(name: str, tensor: torch.Tensor, shape: tuple[int, ...], advice: str) -> None:
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, the input has {tuple(shape)}; {advice}")


def check_range(name: str, tensor: torch.Tensor, size: int, advice: str, ignore_index: int | None = None) -> None:
    """Raises ValueError for indices outside of 0 to `size - 1`. On CPU only: elsewhere it would wait for the device."""
    if tensor.device.type != "cpu" or is_exporting():
        return
    if ignore_index is not None:
        tensor = tensor[tensor != ignore_index]
    lowest, highest = (int(bound) for bound in tensor.aminmax()) if tensor.numel() else (0, 0)
    if lowest < 0 or highest >= size:
        raise ValueError(f"{name} must be from 0 to {size - 1}, got {lowest if lowest < 0 else highest}; {advice}")


def move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`. A copy from CPU to a GPU does not wait for what the GPU still has to do."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def places_of(mask: torch.Tensor, count: int) -> torch.Tensor:
    """`(count,)`: where the `count` entries of a mask that are set are."""
    if mask.device.type == "cpu":
        return mask.nonzero().flatten()
    return mask.byte().argsort(descending=True, stable=True)[:count]  # `nonzero` would wait for the GPU to count again


def unpad_input(tensor: torch.Tensor, indices: torch.Tensor | None) -> torch.Tensor:
    """`(B, T, ...)` -> the `(N, ...)` entries at flat positions `indices`; all entries if `indices` is None."""
    flat = tensor.flatten(0, 1)
    return flat if indices is None else flat.index_select(0, indices)


def pad_input(tensor: torch.Tensor, indices: torch.Tensor | None, rows: int, width: int, value=0.0) -> torch.Tensor:
    """The inverse of `unpad_input`: `(N, ...)` -> `(rows, width, ...)`, with `value` at pads."""
    if indices is None:
        return tensor.unflatten(0, (rows, width))
    padded = tensor.new_full((rows * width, *tensor.shape[1:]), value)
    return padded.index_copy(0, indices, tensor).unflatten(0, (rows, width))


@dataclass(frozen=True, eq=False)
class SequenceLayout:
    """The places of the N real tokens of a batch, and their documents.

    An exported program (`torch.export`, ONNX, `torch.jit.trace`) has the same shapes for every mask. There N is all B * T
    positions, and `lengths` is empty. The pads are a document of number D, which no other token sees; `pad` overwrites its
    outputs. They are sorted to the end, or stay `in_place`.

    Args:
        cu_seqlens: `(D + 1,)` int32; document d is tokens cu_seqlens[d] to cu_seqlens[d + 1] of the N, possibly none.
        document_ids, position_ids: `(N,)`: the document of each token, and its position in it, from 0.
        lengths: the tokens of each document as D Python integers, so that no later step waits for the device.
        max_seqlen: the largest of `lengths`.
        rows, width: the shape of the grid with one document a row: (B, T) of padded input, (D, longest) of packed input.
        indices: `(N,)` flat position of each token in that grid; None if the grid is full.
        packed: whether the input was `(1, N)`.
        exported: whether this is the layout of an exported program.
        in_place: whether that program is for short texts, and the N tokens are the grid's in its own order.
    """

    cu_seqlens: torch.Tensor
    document_ids: torch.Tensor
    position_ids: torch.Tensor
    lengths: tuple[int, ...]
    max_seqlen: int
    rows: int
    width: int
    indices: torch.Tensor | None
    packed: bool = False
    exported: bool = False
    in_place: bool = False

    @classmethod
    def from_padded(
        cls, attention_mask: torch.Tensor | None, rows: int, width: int, device, short: bool = False
    ) -> "SequenceLayout":
        """Layout of a `(B, T)` batch whose `attention_mask` is 1 at real tokens. Pads may be anywhere.

        How many tokens there are has to be known here. Where the mask is on a GPU, this waits for it, once.

        Args:
            short: whether no text of this model has more than `SHORT_TEXTS` tokens, and attention takes pads in place.
        """
        exported, lengths = is_exporting(), ()
        in_place = exported and short
        if attention_mask is not None:
            advice = "give one 0 or 1 a token. For documents packed in a row, give cu_seqlens."
            check_shape("attention_mask", attention_mask, (rows, width), advice)
            mask = attention_mask.to(torch.bool)
            if not exported:
                lengths, others = torch.stack((mask.sum(1), (attention_mask != mask).sum(1))).tolist()
                if any(others):
                    found = attention_mask[attention_mask != mask][0].item()
                    raise ValueError(
                        f"attention_mask is 1 at real tokens and 0 at pads; got {found:g}. Turn an additive mask into "
                        "such a one. Where it numbers documents packed in a row, give cu_seqlens."
                    )
                lengths = tuple(lengths)
        if attention_mask is None or (lengths and min(lengths) == width):
            token = torch.arange(rows * width, device=device)
            cu_seqlens = torch.arange(rows + 1, dtype=torch.int32, device=device) * width
            lengths = () if exported else (width,) * rows
            document_ids, position_ids = token // width, token % width
            return cls(cu_seqlens, document_ids, position_ids, lengths, width, rows, width, None, False, exported, in_place)
        cu_seqlens = F.pad(mask.long().sum(1).cumsum(0, dtype=torch.int32), (1, 0))
        real = mask.flatten()
        # Exported programs count booleans in 8 bits (OpenVINO), or not at all (ONNX Runtime).
        position_ids = (mask.long().cumsum(1) - 1).flatten()
        if exported:
            token = torch.arange(rows * width, device=mask.device)
            document_ids, indices = (token // width).masked_fill(~real, rows), None
            if not in_place:
                indices = torch.where(real, token, token + rows * width).argsort()  # ONNX has no stable sort
                document_ids, position_ids = document_ids[indices], position_ids[indices]
            longest = width
        else:
            indices = places_of(real, sum(lengths))
            document_ids, position_ids = indices // width, position_ids[indices]
            longest = max(lengths, default=0)
        cu_seqlens, document_ids, position_ids = (move(part, device) for part in (cu_seqlens, document_ids, position_ids))
        indices = None if indices is None else move(indices, device)
        return cls(cu_seqlens, document_ids, position_ids, lengths, longest, rows, width, indices, False, exported, in_place)

    @classmethod
    def from_packed(
        cls, cu_seqlens: torch.Tensor, num_tokens: int, max_seqlen: int | None = None, device: torch.device | None = None
    ) -> "SequenceLayout":
        """Layout of one packed row of `num_tokens` tokens whose documents start at `cu_seqlens`.

        The bounds are read here. Where they are on a GPU, this waits for it.
        """
        if cu_seqlens.is_floating_point():
            raise ValueError(f"cu_seqlens must be whole numbers; got {cu_seqlens.dtype}")
        starts = cu_seqlens.flatten().tolist()
        lengths = tuple(end - start for start, end in pairwise(starts))
        if cu_seqlens.ndim != 1 or starts[:1] != [0] or starts[-1] != num_tokens or min(lengths, default=-1) < 0:
            raise ValueError(
                f"cu_seqlens must rise from 0 to the number of packed tokens ({num_tokens}); got "
                f"{starts if len(starts) < 9 else [*starts[:4], '...', *starts[-4:]]}"
            )
        longest = max(lengths)
        if max_seqlen is not None and int(max_seqlen) < longest:
            raise ValueError(f"max_seqlen is {int(max_seqlen)}, but cu_seqlens holds a document of {longest} tokens")
        cu_seqlens = move(cu_seqlens.to(torch.int32), device or cu_seqlens.device)
        token = torch.arange(num_tokens, device=cu_seqlens.device)
        document_ids = torch.searchsorted(cu_seqlens[1:], token, right=True)
        position_ids = token - cu_seqlens[document_ids]
        indices = None if min(lengths) == longest else document_ids * longest + position_ids
        return cls(cu_seqlens, document_ids, position_ids, lengths, longest, len(lengths), longest, indices, packed=True)

    @cached_property
    def _copies(self) -> dict[torch.device, "SequenceLayout"]:
        return {}

    def to(self, device) -> "SequenceLayout":
        """This layout where its tensors are there, else its copy on `device`, of which there is one for all who ask.

        Where the layers of a model are on several devices, accelerate asks for it before each layer.
        """
        device = torch.device(device)
        if self.exported or device == self.cu_seqlens.device:
            return self
        if device not in self._copies:
            tensors = {name: part for name, part in vars(self).items() if isinstance(part, torch.Tensor)}
            self._copies[device] = replace(self, **{name: move(tensor, device) for name, tensor in tensors.items()})
        return self._copies[device]

    @property
    def num_tokens(self) -> int:
        return self.position_ids.shape[0]

    @property
    def input_shape(self) -> tuple[int, int]:
        """The caller's (B, T) or packed (1, N)."""
        return (1, self.num_tokens) if self.packed else (self.rows, self.width)

    def unpad(self, tensor: torch.Tensor) -> torch.Tensor:
        """The caller's `(B, T, ...)` or packed `(1, N, ...)` -> `(N, ...)`."""
        return tensor.flatten(0, 1) if self.packed else self.from_grid(tensor)

    def pad(self, tensor: torch.Tensor, value=0.0) -> torch.Tensor:
        """`(N, ...)` -> the caller's `(B, T, ...)` or packed `(1, N, ...)`."""
        return tensor.unsqueeze(0) if self.packed else self.to_grid(tensor, value)

    def to_grid(self, tensor: torch.Tensor, value=0.0) -> torch.Tensor:
        """`(N, ...)` -> `(rows, width, ...)`, a document a row."""
        if self.exported and (self.in_place or self.indices is not None):
            pads = (self.document_ids == self.rows).unflatten(0, (-1, *(1,) * (tensor.ndim - 1)))
            tensor = tensor.masked_fill(pads, value)
        return self.to_places(tensor, value)

    def to_places(self, tensor: torch.Tensor, value=0.0) -> torch.Tensor:
        """The same, but in an exported program pads keep what they have: in attention no other token sees it."""
        return pad_input(tensor, self.to(tensor.device).indices, self.rows, self.width, value)

    def from_grid(self, tensor: torch.Tensor) -> torch.Tensor:
        """`(rows, width, ...)` -> `(N, ...)`."""
        return unpad_input(tensor, self.to(tensor.device).indices)

    @cached_property
    def _masks(self) -> dict:
        return {}

    def grid_mask(self, half_window: int | None) -> torch.Tensor | None:
        """`(rows, 1, width, width)` boolean, True where query i may see key j; None if all queries may see all keys.

        Pads see pads. A softmax over no keys would give NaN in forward and backward.
        """
        if self.indices is None and half_window is None and not self.in_place:
            return None
        if ("grid", half_window) not in self._masks:
            document = self.to_places(self.document_ids, value=-1)  # (rows, width)
            position = self.to_places(self.position_ids)
            mask = document[:, None, :] == document[:, :, None]
            if half_window is not None:
                mask = mask & ((position[:, None, :] - position[:, :, None]).abs() <= half_window)
            self._masks["grid", half_window] = mask[:, None]
        return self._masks["grid", half_window]

    def blocks(self, half_window: int) -> tuple[int, int, int]:
        """How window attention cuts the N queries: the number of blocks, their size, and the keys on each side of a block."""
        if self.exported:  # exporters take a size of 1 for a constant; a short text has smaller blocks
            blocks = (self.num_tokens + QUERY_BLOCK - 1) // QUERY_BLOCK + 1
            return blocks, self.num_tokens // blocks + 2, half_window
        if self.num_tokens <= QUERY_BLOCK + 2 * half_window:
            return 1, self.num_tokens, 0  # the only block has all keys
        return -(-self.num_tokens // QUERY_BLOCK), QUERY_BLOCK, half_window

    def whole_documents_are_less(self, half_window: int) -> bool:
        """Whether all queries and keys of each document are no more pairs than `blocks(half_window)` computes."""
        _, size, reach = self.blocks(half_window)
        return sum(length * length for length in self.lengths) <= self.num_tokens * (size + 2 * reach)

    def band_mask(self, half_window: int | None, length: int, dtype: torch.dtype) -> torch.Tensor | None:
        """`(length, length)`: 0 where a query of a document may see a key, else -inf; None if each may see all."""
        if half_window is None or length <= half_window + 1:
            return None
        if ("band", half_window, dtype) not in self._masks:
            position = torch.arange(self.max_seqlen, device=self.document_ids.device)
            far = (position[:, None] - position).abs() > half_window
            mask = torch.zeros(far.shape, dtype=dtype, device=far.device).masked_fill_(far, -math.inf)
            self._masks["band", half_window, dtype] = mask
        return self._masks["band", half_window, dtype][:length, :length]

    def windows(self, tensor: torch.Tensor, size: int, reach: int) -> torch.Tensor:
        """`(blocks * size + 2 * reach, ...)` -> `(blocks, size + 2 * reach, ...)`: each block with what is within its reach.

        The blocks overlap. They are views of the tensor, but in exported programs, where not every runtime has such views.
        """
        if not self.exported:
            return tensor.unfold(0, size + 2 * reach, size).movedim(-1, 1)
        blocks = (tensor.shape[0] - 2 * reach) // size
        place = torch.arange(size + 2 * reach, device=tensor.device)
        return tensor[torch.arange(blocks, device=tensor.device)[:, None] * size + place]

    def block_mask(self, half_window: int, dtype: torch.dtype) -> torch.Tensor:
        """`(blocks, 1, size, size + 2 * reach)`: 0 where the query may see the key, else -inf, for `blocks(half_window)`.

        Key k of block b is token `b * size - reach + k`. The last block may have queries past the last token; they see each
        other.
        """
        if ("block", half_window, dtype) not in self._masks:
            blocks, size, reach = self.blocks(half_window)
            document = F.pad(self.document_ids, (reach, blocks * size - self.num_tokens + reach), value=-1)
            keys = self.windows(document, size, reach)  # (blocks, size + 2 * reach)
            queries = keys[:, reach : reach + size]
            token = torch.arange(-reach, size + reach, device=document.device)
            offset = token[reach : reach + size, None] - token
            visible = (queries[:, :, None] == keys[:, None, :]) & (offset.abs() <= half_window)
            mask = torch.zeros(visible.shape, dtype=dtype, device=document.device).masked_fill_(~visible, -math.inf)
            self._masks["block", half_window, dtype] = mask[:, None]
        return self._masks["block", half_window, dtype]


def unpad_positions(layout: SequenceLayout, position_ids: torch.Tensor) -> torch.Tensor:
    """`(B, T)`, `(1, T)`, `(T,)` or packed `(1, N)` -> `(N,)`.

    Raises:
        ValueError: a wrong shape; or `position_ids` do not rise within a document, as where documents were packed without
            `cu_seqlens`.
    """
    if position_ids.shape[:-1] in ((), (1,)):
        position_ids = position_ids.expand(layout.input_shape[0], -1)
    check_shape("position_ids", position_ids, layout.input_shape, "give one position a token, or one row for all")
    position_ids = layout.unpad(position_ids.to(layout.position_ids.device))
    same_document = layout.document_ids[1:] == layout.document_ids[:-1]
    if not layout.exported and (same_document & (position_ids[1:] <= position_ids[:-1])).any():
        raise ValueError(
            "position_ids do not rise within a document; documents packed in a row need cu_seqlens, or each would see the "
            "others (of transformers' DataCollatorWithFlattening: return_flash_attn_kwargs=True)"
        )
    return position_ids


# --- attention backends -----------------------------------------------------------------------------------------------
# Each takes the attention module, query, key and value `(N, A, C)` after RoPE, the layout, half_window (None: the whole
# document) and dropout. Each returns `(N, A, C)` and the attention weights, which are None but for `eager`.


def _block_local_attention(query, key, value, layout, half_window, dropout):
    """Window attention in blocks: each block of queries gets its own keys and those within the window on either side.

    No tensor is N x N. The blocks of keys overlap as views of one padded tensor, so nothing is copied for a block.
    """
    num_tokens = query.shape[0]
    blocks, size, reach = layout.blocks(half_window)
    past = blocks * size - num_tokens
    query = F.pad(query, (0, 0, 0, 0, 0, past)).unflatten(0, (blocks, size)).transpose(1, 2)  # (blocks, A, size, C)
    key, value = (  # (blocks, A, size + 2 * reach, C)
        layout.windows(F.pad(states, (0, 0, 0, 0, reach, past + reach)), size, reach).transpose(1, 2) for states in (key, value)
    )
    mask = layout.block_mask(half_window, query.dtype)
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return output.transpose(1, 2).flatten(0, 1)[:num_tokens]


def _per_document_attention(query, key, value, layout, half_window, dropout):
    """Attention document by document. Neighbouring documents of the same length share a call of the kernel."""
    states = [states.transpose(0, 1) for states in (query, key, value)]  # (A, N, C)
    if layout.max_seqlen >= 1024:  # long documents are up to a fifth faster if the tokens of a head are contiguous
        states = [part.contiguous() for part in states]
    runs = [(length, len(list(run))) for length, run in groupby(layout.lengths) if length]
    # One split, not a slice for each document: the gradient of a slice is a tensor of the size of the whole.
    parts = zip(*(part.split([length * run for length, run in runs], dim=1) for part in states), strict=True)
    outputs = []
    for (length, run), states in zip(runs, parts, strict=True):
        states = (part.unflatten(1, (run, length)).transpose(0, 1) for part in states)  # (run, A, length, C)
        mask = layout.band_mask(half_window, length, query.dtype)
        output = F.scaled_dot_product_attention(*states, attn_mask=mask, dropout_p=dropout)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


@torch.compiler.assume_constant_result  # otherwise this call would break the graph of a compiled model in every layer
def _is_ampere_or_newer(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _varlen_attention_runs(query, dropout) -> bool:
    """FlashAttention needs half precision, a head size of 8, 16 ... 256, and an Ampere GPU. PyTorch's has no dropout."""
    half_on_cuda = query.is_cuda and query.dtype in (torch.float16, torch.bfloat16)
    size_fits = query.shape[-1] % 8 == 0 and query.shape[-1] <= 256
    return varlen_attn is not None and half_on_cuda and size_fits and not dropout and _is_ampere_or_newer(query.device)


def _copy_to_keep(value):
    """A copy of `value` for the backward pass.

    `value` is a view of a tensor that has queries and keys before RoPE too. The kernel keeps it, and would keep them with it.
    """
    return value.contiguous() if value.requires_grad else value


def sdpa_attention(module, query, key, value, layout, half_window, dropout):
    """PyTorch's best exact kernel: varlen FlashAttention on CUDA in half precision, else SDPA on blocks or documents."""
    if not layout.in_place and _varlen_attention_runs(query, dropout):  # its bounds leave no room for pads in place
        window = (-1, -1) if half_window is None else (half_window, half_window)
        cu_seqlens, longest = layout.cu_seqlens, layout.max_seqlen
        value = _copy_to_keep(value)
        return varlen_attn(query, key, value, cu_seqlens, cu_seqlens, longest, longest, window_size=window), None
    if not layout.exported:
        return _attention_by_lengths(module, query, key, value, layout, half_window, dropout), None
    if half_window is None or layout.in_place:
        return grid_attention(_padded_sdpa, module, query, key, value, layout, half_window, dropout)
    return _block_local_attention(query, key, value, layout, half_window, dropout), None


@torch.compiler.disable  # the calls depend on all lengths, so a compiled graph would fit one batch only
def _attention_by_lengths(module, query, key, value, layout, half_window, dropout):
    if query.is_cuda:
        logger.warning_once(
            "attention goes document by document on this GPU, which is slow. PyTorch's FlashAttention needs half precision "
            f"(here: {query.dtype}), no attention_dropout ({dropout}), a head size of 8, 16 ... 256 ({query.shape[-1]}), an "
            f"Ampere GPU or newer, and PyTorch 2.11 ({torch.__version__})"
        )
    # A GPU is faster with fewer calls: in blocks, also where a block holds the whole of each document.
    few_calls = query.is_cuda and len(set(layout.lengths)) > 1
    if few_calls and layout.max_seqlen <= module.half_window + 1:
        half_window = layout.max_seqlen - 1
    if half_window is None or (not few_calls and layout.whole_documents_are_less(half_window)):
        return _per_document_attention(query, key, value, layout, half_window, dropout)
    return _block_local_attention(query, key, value, layout, half_window, dropout)


def _padded_sdpa(module, query, key, value, attention_mask, scaling, dropout):
    """SDPA in AttentionInterface's shapes."""
    output = F.scaled_dot_product_attention(query, key, value, attention_mask, dropout_p=dropout, scale=scaling)
    return output.transpose(1, 2), None


def flash_attention(module, query, key, value, layout, half_window, dropout):
    """The flash-attn package, https://arxiv.org/abs/2307.08691."""
    if flash_attn_varlen_func is None:
        raise ImportError(
            "attn_implementation='flash_attention_2' needs the flash-attn package (pip install flash-attn); "
            "'sdpa', the default, needs nothing and gives the same numbers"
        )
    window = (-1, -1) if half_window is None else (half_window, half_window)
    cu_seqlens, longest = layout.cu_seqlens, layout.max_seqlen
    output = flash_attn_varlen_func(
        query, key, _copy_to_keep(value), cu_seqlens, cu_seqlens, longest, longest,
        dropout_p=dropout, window_size=window, deterministic=module.config.deterministic_flash_attn,
    )  # fmt: skip
    return output, None


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """The plain reference, in AttentionInterface's shapes: `(B, A, T, C)` -> `(B, T, A, C)`, weights `(B, A, T, T)`."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, -math.inf)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


def grid_attention(attention_interface, module, query, key, value, layout, half_window, dropout):
    """A function written for transformers' AttentionInterface, on the documents laid out one a row."""
    query, key, value = (layout.to_places(states).transpose(1, 2) for states in (query, key, value))
    output, weights = attention_interface(
        module, query, key, value, layout.grid_mask(half_window), scaling=query.shape[-1] ** -0.5, dropout=dropout
    )
    return layout.from_grid(output), weights


def varlen_interface_attention(attention_interface, module, query, key, value, layout, half_window, dropout):
    """A FlashAttention written for transformers' AttentionInterface, on the documents one after the other in one row.

    transformers gives kernels windows that reach `sliding_window - 1` tokens to each side.
    """
    query, key, value = (states.unsqueeze(0).transpose(1, 2) for states in (query, key, _copy_to_keep(value)))  # (1, A, N, C)
    # If it is not asked for here, transformers' environment variable decides.
    deterministic = {"deterministic": True} if module.config.deterministic_flash_attn else {}
    output, _ = attention_interface(
        module, query, key, value, None, scaling=query.shape[-1] ** -0.5, dropout=dropout, is_causal=False,
        sliding_window=None if half_window is None else half_window + 1,
        cu_seq_lens_q=layout.cu_seqlens, cu_seq_lens_k=layout.cu_seqlens,
        max_length_q=layout.max_seqlen, max_length_k=layout.max_seqlen, **deterministic,
    )  # fmt: skip
    return output.squeeze(0), None


def empty_attention(module, query, key, value, layout, half_window, dropout):
    """For a batch of pads only: no kernel takes empty tensors. The weights around it get gradients, of zero, as DDP expects."""
    return value, None


ATTENTION_BACKENDS = {
    "eager": partial(grid_attention, eager_attention_forward),
    "sdpa": sdpa_attention,
    "flash_attention_2": flash_attention,
}


# --- rotary positions -------------------------------------------------------------------------------------------------


def rotary_frequencies(config: ZhModernBertConfig, layer_type: str, device) -> tuple[torch.Tensor, float]:
    """Angles per position `(C / 2,)` in float32, and the factor on cos and sin (RoPE, https://arxiv.org/abs/2104.09864).

    With `rope_scaling`, full layers use YaRN (https://arxiv.org/abs/2309.00071, section 3.2 and equation 22). The angles are
    computed in each forward pass and are no buffer, because transformers has several ways to load a model, and some would lose
    it.
    """
    theta = config.global_rope_theta if layer_type == "full_attention" else config.local_rope_theta
    size = config.hidden_size // config.num_attention_heads
    exponents = torch.arange(0, size, 2, dtype=torch.float32, device=device) / size
    inv_freq = 1.0 / theta**exponents
    yarn = config.rope_scaling
    if yarn is None or layer_type != "full_attention":
        return inv_freq, 1.0

    def dimension_that_turns(times):
        """The dimension, as a fraction, whose angle makes `times` full turns over the original length."""
        original = yarn["original_max_position_embeddings"]
        return size * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension_that_turns(yarn.get("beta_fast", 32))), 0)
    high = min(math.ceil(dimension_that_turns(yarn.get("beta_slow", 1))), size - 1)
    ramp = (torch.arange(size // 2, dtype=torch.float32, device=device) - low) / max(high - low, 1e-3)
    interpolated = ramp.clamp(0, 1)
    inv_freq = inv_freq / yarn["factor"] * interpolated + inv_freq * (1 - interpolated)
    return inv_freq, yarn.get("attention_factor", 0.1 * math.log(yarn["factor"]) + 1.0)


def apply_rotary(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates queries and keys `(N, 2, A, C)` by the angles of their positions, given as float32 `cos`, `sin` `(N, 1, 1, C)`.

    Dimensions i and i + C / 2 are the two coordinates of a rotation. The first half of `sin` is negated for it. On a GPU that
    is one kernel, where it runs. A compiled model makes its own.
    """
    if states.is_cuda and not is_exporting() and rotary_kernel_runs(states.device):
        return FusedRotary.apply(states, cos, sin, 1.0)
    return rotate(states, cos, sin)


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """`apply_rotary` in PyTorch's operators, which read and write ten times as many bytes as the kernel."""
    turned = states.float()
    return torch.addcmul(turned * cos, turned.roll(states.shape[-1] // 2, -1), sin).to(states.dtype)


def _rotary_kernel(
    states, cos, sin, output, stride, direction,
    heads: constexpr, half: constexpr, head_room: constexpr, half_room: constexpr,
):  # fmt: skip
    """For Triton: rotates the queries and keys of one token, `heads` times two halves of `half`.

    The rooms are the next powers of two.
    """
    token = tl.program_id(0).to(tl.int64)
    place, head = tl.arange(0, half_room), tl.arange(0, head_room)[:, None]
    angle = token * 2 * half + place
    cosine = tl.load(cos + angle, mask=place < half)
    sine = tl.load(sin + angle + half, mask=place < half) * direction
    inside = (head < heads) & (place < half)
    left = head * 2 * half + place
    first = tl.load(states + token * stride + left, mask=inside).to(tl.float32)
    second = tl.load(states + token * stride + left + half, mask=inside).to(tl.float32)
    output += token * 2 * half * heads
    tl.store(output + left, first * cosine - second * sine, mask=inside)
    tl.store(output + left + half, second * cosine + first * sine, mask=inside)


@cache
def rotary_kernel():
    return triton.jit(_rotary_kernel)


class FusedRotary(torch.autograd.Function):
    """`rotate` as one kernel. The gradient is turned the other way: `direction` is 1 or -1."""

    @staticmethod
    def forward(ctx, states, cos, sin, direction):
        ctx.save_for_backward(cos, sin)
        ctx.direction = direction
        tokens, parts, heads, size = states.shape
        if states.stride()[1:] != (heads * size, size, 1):
            states = states.contiguous()
        output = torch.empty(states.shape, dtype=states.dtype, device=states.device)
        counts = (parts * heads, size // 2)
        with torch.cuda.device_of(states):
            rotary_kernel()[(tokens,)](
                states, cos, sin, output, states.stride(0), direction, *counts, *map(triton.next_power_of_2, counts)
            )
        return output

    @staticmethod
    def backward(ctx, gradient):
        return FusedRotary.apply(gradient, *ctx.saved_tensors, -ctx.direction), None, None, None


@cache
def rotary_kernel_runs(device: torch.device) -> bool:
    """Whether Triton can build the kernel here, for which it needs a C compiler, and the kernel computes what `rotate` does."""
    if triton is None:
        return False
    try:
        states = torch.linspace(-2, 2, 3 * 2 * 3 * 10, device=device).view(3, 2, 3, 10)
        angles = torch.arange(15.0, device=device).view(3, 1, 1, 5)
        cos, sin = angles.cos().repeat(1, 1, 1, 2), torch.cat((-angles.sin(), angles.sin()), -1)
        difference = FusedRotary.apply(states, cos, sin, 1.0) - rotate(states, cos, sin)
        if difference.abs().max() < 1e-5:
            return True
        why = f"it is wrong by {difference.abs().max():.1g}"
    except Exception as error:  # whatever a compiler, a driver or a new version of Triton raises
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    logger.warning_once(f"rotary positions are computed without a kernel of their own, which takes longer: {why}")
    return False


# --- modules ----------------------------------------------------------------------------------------------------------


class ZhModernBertRMSNorm(nn.RMSNorm):
    """https://arxiv.org/abs/1910.07467. A traced program has its parts; the exporter of those has no operator for it."""

    def forward(self, hidden_states):
        if not torch.jit.is_tracing():
            return super().forward(hidden_states)
        states = hidden_states.float()
        states = states * torch.rsqrt(states.square().mean(-1, keepdim=True) + self.eps)
        return states.to(hidden_states.dtype) * self.weight


def build_norm(config: ZhModernBertConfig) -> nn.Module:
    if config.norm_type == "rmsnorm":
        return ZhModernBertRMSNorm(config.hidden_size, eps=config.norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)


def build_linear(
    config: ZhModernBertConfig, size_in: int, size_out: int, bias: bool, init_std: float | None = None
) -> nn.Linear:
    """A linear layer with the standard deviation of its initial weights as `init_std`.

    The default is ModernBERT's for the linears at the end of a residual branch.
    """
    linear = nn.Linear(size_in, size_out, bias=bias)
    linear.init_std = init_std or config.initializer_range / math.sqrt(2.0 * config.num_hidden_layers)
    return linear


class ZhModernBertEmbeddings(nn.Module):
    def __init__(self, config: ZhModernBertConfig):
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.tok_embeddings.init_std = config.embedding_initializer_range or config.initializer_range
        self.norm = build_norm(config)
        self.drop = nn.Dropout(config.embedding_dropout)

    def forward(self, input_ids=None, inputs_embeds=None, layout=None):
        """Ids `(B, T)` or embeddings `(B, T, H)` -> `(N, H)`, or `(B, T, H)` without a layout.

        Pads are dropped behind the lookup, because users put hooks on it that expect rows of tokens (NEFTune, Captum).
        """
        if inputs_embeds is None:
            inputs_embeds = self.tok_embeddings(input_ids)
        if layout is not None:
            inputs_embeds = layout.unpad(inputs_embeds)
        return self.drop(self.norm(inputs_embeds))


class ZhModernBertMLP(nn.Module):
    """GeGLU, https://arxiv.org/abs/2002.05202."""

    def __init__(self, config: ZhModernBertConfig):
        super().__init__()
        self.Wi = build_linear(
            config, config.hidden_size, 2 * config.intermediate_size, config.mlp_bias, config.initializer_range
        )
        self.act = ACT2FN[config.hidden_activation]
        self.drop = nn.Dropout(config.mlp_dropout)
        self.Wo = build_linear(config, config.intermediate_size, config.hidden_size, config.mlp_bias)
        # Whether the backward pass computes activation and product again. This saves a quarter of a layer's memory.
        self.recompute = False

    def forward(self, hidden_states):
        states = self.Wi(hidden_states)
        if self.recompute and self.training:
            return checkpoint(self.project_down, states, use_reentrant=False, preserve_rng_state=self.drop.p > 0)
        return self.project_down(states)

    def project_down(self, states):
        states, gate = states.chunk(2, dim=-1)
        return self.Wo(self.drop(self.act(states) * gate))


class ZhModernBertAttention(nn.Module):
    def __init__(self, config: ZhModernBertConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.is_sliding = config.layer_types[layer_idx] == "sliding_attention"
        self.half_window = config.local_attention // 2
        self.is_causal = False
        size, bias = config.hidden_size, config.attention_bias
        self.Wqkv = build_linear(config, size, 3 * size, bias, config.initializer_range)
        self.Wo = build_linear(config, size, size, bias)
        self.out_drop = nn.Dropout(config.attention_dropout)

    def forward(self, hidden_states, rotary, layout, attention):
        """`hidden_states` (N, H), `rotary` (cos, sin), a backend -> (N, H), and the weights where the backend has them."""
        qkv = self.Wqkv(hidden_states).unflatten(-1, (3, self.num_heads, -1))  # (N, 3, A, C)
        query_key, value = qkv.split((2, 1), dim=1)
        query, key = apply_rotary(query_key, *rotary).unbind(1)
        output, weights = attention(
            self,
            query,
            key,
            value.squeeze(1),
            layout,
            half_window=self.half_window if self.is_sliding else None,
            dropout=self.config.attention_dropout if self.training else 0.0,
        )
        return self.out_drop(self.Wo(output.flatten(1))), weights


class ZhModernBertEncoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: ZhModernBertConfig, layer_idx: int):
        super().__init__()
        # The embeddings end in a norm, so the first layer needs none.
        self.attn_norm = nn.Identity() if layer_idx == 0 else build_norm(config)
        self.attn = ZhModernBertAttention(config, layer_idx)
        self.mlp_norm = build_norm(config)
        self.mlp = ZhModernBertMLP(config)

    def forward(self, hidden_states, rotary, layout, attention):
        attn_output, weights = self.attn(self.attn_norm(hidden_states), rotary, layout, attention)
        hidden_states = hidden_states + attn_output
        return hidden_states + self.mlp(self.mlp_norm(hidden_states)), weights


class ZhModernBertPredictionHead(nn.Module):
    def __init__(self, config: ZhModernBertConfig):
        super().__init__()
        self.dense = build_linear(config, config.hidden_size, config.hidden_size, config.classifier_bias)
        self.act = ACT2FN[config.classifier_activation]
        self.norm = build_norm(config)

    def forward(self, hidden_states):
        hidden_states = self.act(self.dense(hidden_states))
        return self.norm(hidden_states.to(self.norm.weight.dtype))  # mixed dtypes under autocast would take a slow path


class ZhModernBertPreTrainedModel(PreTrainedModel):
    config: ZhModernBertConfig
    config_class = ZhModernBertConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ZhModernBertEmbeddings", "ZhModernBertEncoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flash_attn_2 = True  # transformers 4's name
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Truncated normals with the module's own `init_std`; norms are one, biases zero.

        Each module with parameters of its own is initialised by itself, since transformers 5 skips custom modules without any.
        """
        if isinstance(module, (nn.Linear, nn.Embedding)):
            std = getattr(module, "init_std", self.config.initializer_range)
            cutoff = self.config.initializer_cutoff_factor * std
            if not getattr(module.weight, "_is_hf_initialized", False):
                nn.init.trunc_normal_(module.weight, std=std, a=-cutoff, b=cutoff)
                if getattr(module, "padding_idx", None) is not None:
                    module.weight[module.padding_idx].zero_()
            self._fill(getattr(module, "bias", None), 0.0)
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            self._fill(module.weight, 1.0)
            self._fill(getattr(module, "bias", None), 0.0)

    @staticmethod
    def _fill(parameter: nn.Parameter | None, value: float):
        # transformers 5 marks the parameters that a checkpoint gave, and expects this code to skip them.
        if parameter is not None and not getattr(parameter, "_is_hf_initialized", False):
            nn.init.constant_(parameter, value)

    @torch.compiler.disable  # the shapes of a layout depend on the values of the mask
    def get_layout(
        self,
        input_ids=None,
        attention_mask=None,
        inputs_embeds=None,
        cu_seqlens=None,
        max_seqlen=None,
        cu_seq_lens_q=None,
        max_length_q=None,
        **kwargs,
    ) -> SequenceLayout:
        """The layout of a batch, from the arguments of any `forward` here.

        Raises:
            ValueError: not exactly one of `input_ids` and `inputs_embeds`; a wrong shape; an id beyond the vocabulary, on CPU;
                bad `cu_seqlens`; a document longer than `max_position_embeddings`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        if inputs.ndim != (2 if inputs_embeds is None else 3):
            raise ValueError(
                f"input_ids must be (batch, tokens), inputs_embeds (batch, tokens, hidden); got {tuple(inputs.shape)}"
            )
        if inputs_embeds is not None and inputs_embeds.shape[2] != self.config.hidden_size:
            raise ValueError(
                f"inputs_embeds has {inputs_embeds.shape[2]} numbers a token, not the hidden size of {self.config.hidden_size}"
            )
        if input_ids is not None:
            advice = "the tokenizer is of another model, or the embeddings were not resized to it"
            size = getattr(self.get_input_embeddings(), "num_embeddings", self.config.vocab_size)
            check_range("input_ids", input_ids, size, advice)
        rows, width = inputs.shape[:2]
        cu_seqlens = cu_seq_lens_q if cu_seqlens is None else cu_seqlens
        if cu_seqlens is not None and is_exporting():
            raise ValueError("packed input (cu_seqlens) cannot be exported; export with input_ids and attention_mask")
        if cu_seqlens is None:
            # FlashAttention's bounds leave no room for pads in place.
            short = self.config.max_position_embeddings <= SHORT_TEXTS and "flash" not in self.config._attn_implementation
            layout = SequenceLayout.from_padded(attention_mask, rows, width, inputs.device, short)
        elif rows != 1:
            raise ValueError(f"packed input (cu_seqlens) must be one row (1, N); got {rows} rows")
        elif attention_mask is not None and not attention_mask.all():
            raise ValueError("packed input (cu_seqlens) has no pads; leave attention_mask out or make it all ones")
        else:
            max_seqlen = max_length_q if max_seqlen is None else max_seqlen
            layout = SequenceLayout.from_packed(torch.as_tensor(cu_seqlens), width, max_seqlen, inputs.device)
        if layout.max_seqlen > self.config.max_position_embeddings:
            raise ValueError(
                f"a document of {layout.max_seqlen} tokens is longer than max_position_embeddings "
                f"({self.config.max_position_embeddings}); truncate it, or extend the model with rope_scaling"
            )
        return layout


class ZhModernBertModel(ZhModernBertPreTrainedModel):
    """The bare encoder."""

    # Loading the encoder of a masked language model is what people want: no report that its head is left out.
    _keys_to_ignore_on_load_unexpected = [r"^(head|decoder)\."]

    def __init__(self, config: ZhModernBertConfig):
        super().__init__(config)
        # Checked again, because `from_pretrained(folder, num_hidden_layers=4)` changes fields after the config was made.
        config.check(config.rope_scaling, config.layer_types)
        self.embeddings = ZhModernBertEmbeddings(config)
        self.layers = nn.ModuleList([ZhModernBertEncoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.final_norm = build_norm(config)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.tok_embeddings

    def set_input_embeddings(self, value):
        self.embeddings.tok_embeddings = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        cu_seqlens: torch.IntTensor | None = None,
        max_seqlen: int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        layout: SequenceLayout | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        """Encodes padded documents `(B, T)`, or documents packed in one row `(1, N)`.

        Args:
            input_ids, inputs_embeds: `(B, T)` or `(B, T, H)`.
            attention_mask: `(B, T)`, 1 at real tokens and 0 at pads; pads may be anywhere, and come out as zeros. Other numbers
                are refused. An additive mask of zeros alone cannot be told from a batch of pads, and is taken for one.
            position_ids: `(B, T)` or `(1, T)`; by default counted from each document's first real token.
            cu_seqlens, max_seqlen: packed input: the documents' bounds `(D + 1,)` from 0 to N, and the longest. transformers'
                names `cu_seq_lens_q`, `max_length_q` are understood too. No document sees another. The bounds are read at
                once. So a GPU has least to wait for if they, or the `attention_mask`, are still on CPU.
            output_attentions: one `(B, A, T, T)` a layer, `(D, A, L, L)` for packed documents, L the longest. Only `eager` has
                weights, so such a call computes with it.
            layout: what `get_layout` returned of these inputs, for heads; `last_hidden_state` is then `(N, H)`.

        Raises:
            ValueError: see `get_layout` and `unpad_positions`.
        """
        output_hidden_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        unpadded = layout is not None
        if not unpadded:
            layout = self.get_layout(input_ids, attention_mask, inputs_embeds, cu_seqlens, max_seqlen, **kwargs)
        position_ids = layout.position_ids if position_ids is None else unpad_positions(layout, position_ids)

        all_hidden_states, all_attentions = [], []

        def record(hidden_states):
            """Keeps hidden states with pads, for the caller. Returns them unpadded from there, so that gradients reach them."""
            if not output_hidden_states:
                return hidden_states
            all_hidden_states.append(layout.pad(hidden_states))
            return layout.unpad(all_hidden_states[-1])

        hidden_states = self.embeddings(input_ids, inputs_embeds, layout)  # (N, H)
        rotary = self._rotary(position_ids)
        attention = self._attention_backend(layout, output_attentions)
        for layer, layer_type in zip(self.layers, self.config.layer_types, strict=True):
            hidden_states, weights = layer(record(hidden_states), rotary[layer_type], layout, attention)
            if output_attentions:
                all_attentions.append(weights)
        hidden_states = record(self.final_norm(hidden_states))
        return BaseModelOutput(
            last_hidden_state=hidden_states if unpadded else layout.pad(hidden_states),
            hidden_states=tuple(all_hidden_states) if output_hidden_states else None,
            attentions=tuple(all_attentions) if output_attentions else None,
        )

    def _attention_backend(self, layout: SequenceLayout, output_attentions: bool):
        """The function that computes attention in this call."""
        name = self.config._attn_implementation
        if output_attentions:
            if name != "eager":
                logger.warning_once(
                    f"attn_implementation={name!r} has no attention weights; calls with output_attentions compute with 'eager'"
                )
            return ATTENTION_BACKENDS["eager"]
        if layout.num_tokens == 0:
            return empty_attention
        if name in ATTENTION_BACKENDS:
            return ATTENTION_BACKENDS[name]
        # transformers or the user registered one with AttentionInterface. By "flash" in its name transformers, too, knows those
        # that take no such mask. Before a model may switch to another, it searches this file for the words of the next line,
        # or from 5.1 for ALL_ATTENTION_FUNCTIONS.get_interface(name), which 4.57 lacks. In a comment it is found too.
        interface = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        return partial(varlen_interface_attention if "flash" in name else grid_attention, interface)

    def _rotary(self, position_ids: torch.Tensor) -> dict:
        """For each layer type float32 `cos` and `sin` `(N, 1, 1, C)` of the positions `(N,)`, as `apply_rotary` takes them."""
        rotary = {}
        for layer_type in set(self.config.layer_types):
            inv_freq, factor = rotary_frequencies(self.config, layer_type, position_ids.device)
            angles = (position_ids.float()[:, None] * inv_freq)[:, None, None]
            cos, sin = angles.cos() * factor, angles.sin() * factor
            rotary[layer_type] = (torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))
        return rotary


# --- heads ------------------------------------------------------------------------------------------------------------


def check_classes(labels: torch.Tensor, shape: tuple[int, ...], size: int, ignore_index: int = -100) -> torch.Tensor:
    """`labels` of `shape`, each one of `size` classes or `ignore_index`, in int64 as the loss takes them."""
    if labels.is_floating_point():
        raise ValueError(f"labels must be whole numbers, one class each; got {labels.dtype}")
    check_shape("labels", labels, shape, f"give one label each, {ignore_index} where nothing is asked")
    check_range("labels", labels, size, f"{ignore_index} is for where nothing is asked", ignore_index)
    return labels.long()


def mean_loss(loss_function, logits, labels, num_items_in_batch=None, ignore_index=None):
    """The mean of `loss_function(logits, labels)` over the labels that are not `ignore_index`.

    With `num_items_in_batch`, the number of labels in all accumulated batches as the Trainer counts them, the sum is divided by
    that. So two batches of 4 have the gradients of one batch of 8. Without any label the mean is 0.
    """
    labels = labels.to(logits.device)
    ignore = {} if ignore_index is None else {"ignore_index": ignore_index}
    total = loss_function(logits.float(), labels, reduction="sum", **ignore)
    if num_items_in_batch is None:
        num_items_in_batch = (labels != ignore_index).sum() if ignore else labels.numel()
    return share(total, num_items_in_batch)


def share(total, count):
    """`total / count`, where `count` is a number or a tensor; of a count of 0, `total`."""
    if torch.is_tensor(count):
        return total / count.to(total.device).clamp(min=1)
    return total / max(count, 1)


class _HeadModel(ZhModernBertPreTrainedModel):
    """The common part of all heads: unpadding, the encoder, and ModernBERT's prediction head."""

    def __init__(self, config: ZhModernBertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = ZhModernBertModel(config)
        self.head = ZhModernBertPredictionHead(config)
        self.drop = nn.Dropout(config.classifier_dropout)

    def encode(self, input_ids=None, attention_mask=None, position_ids=None, inputs_embeds=None, layout=None, **kwargs):
        """The encoder's outputs with `last_hidden_state` still `(N, H)`, and the layout to pad them with."""
        if layout is None:
            layout = self.get_layout(input_ids, attention_mask, inputs_embeds, **kwargs)
        recorded = {name: kwargs.get(name) for name in ("output_hidden_states", "output_attentions")}
        return self.model(input_ids, None, position_ids, inputs_embeds, layout=layout, return_dict=True, **recorded), layout

    def pool(self, hidden_states: torch.Tensor, layout: SequenceLayout) -> torch.Tensor:
        """`(N, H)` -> `(D, H)`: each document's first token or mean; zeros for a document without tokens."""
        layout = layout.to(hidden_states.device)
        lengths = (layout.cu_seqlens[1:] - layout.cu_seqlens[:-1]).unsqueeze(1)
        mean = self.config.classifier_pooling == "mean"
        if layout.exported:  # not every exporter adds at indices that come again
            chosen = hidden_states if mean else hidden_states * (layout.position_ids == 0).unsqueeze(1)
            total = layout.to_grid(chosen.float()).sum(1)
            return (total / lengths.clamp(min=1) if mean else total).to(hidden_states.dtype)
        if mean:
            total = hidden_states.new_zeros(lengths.shape[0], hidden_states.shape[1], dtype=torch.float32)
            total = total.index_add(0, layout.document_ids, hidden_states.float())
            return (total / lengths.clamp(min=1)).to(hidden_states.dtype)
        # One token more, because an empty document at the end has its start after the last token.
        first = F.pad(hidden_states, (0, 0, 0, 1))[layout.cu_seqlens[:-1].long()]
        return first * (lengths > 0)


@dataclass
class ZhModernBertMaskedLMOutput(MaskedLMOutput):
    """For each of the M labels set, where no logits are returned: `predictions` `(M,)` and `losses` `(M,)`.

    A prediction is the likeliest token. A loss is in nats, and has no gradient.
    """

    predictions: torch.LongTensor | None = None
    losses: torch.FloatTensor | None = None


class ZhModernBertForMaskedLM(_HeadModel):
    _tied_weights_keys = {"decoder.weight": "model.embeddings.tok_embeddings.weight"}

    def __init__(self, config: ZhModernBertConfig):
        super().__init__(config)
        init_std = config.embedding_initializer_range or config.initializer_range
        self.decoder = build_linear(config, config.hidden_size, config.vocab_size, config.decoder_bias, init_std)
        self.post_init()

    def get_output_embeddings(self):
        return self.decoder

    def set_output_embeddings(self, new_embeddings):
        self.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        inputs_embeds=None,
        labels=None,
        num_items_in_batch=None,
        return_logits=True,
        **kwargs,
    ) -> ZhModernBertMaskedLMOutput:
        """`labels` `(B, T)` or `(1, N)`, -100 where nothing is asked -> logits `(B, T, V)` or `(1, N, V)`.

        With `config.sparse_prediction` and labels, logits are `(M, V)`: a row for each of the M labels set, in order. Without
        `return_logits` there are `predictions` and `losses`, each `(M,)`, instead, and memory for the logits of `LOSS_CHUNK`
        labels is enough.

        Labels of packed documents may be on CPU. Then they are counted there, and nothing waits for the GPU.
        """
        layout = self.get_layout(input_ids, attention_mask, inputs_embeds, **kwargs)
        device, ignore_index = layout.cu_seqlens.device, self.config.sparse_pred_ignore_index
        if labels is not None:
            labels = check_classes(labels, layout.input_shape, self.config.vocab_size, ignore_index)
            labels = layout.unpad(labels if layout.packed else move(labels, device))
        sparse = labels is not None and (self.config.sparse_prediction or not return_logits)
        if sparse:  # before the encoder, since to count labels on a GPU waits for all that it has to do
            asked = (labels != ignore_index).nonzero().flatten()
            asked, labels = move(asked, device), move(labels[asked], device)
        outputs, _ = self.encode(input_ids, None, position_ids, inputs_embeds, layout, **kwargs)
        hidden_states = outputs.last_hidden_state
        if sparse:
            hidden_states = hidden_states.index_select(0, asked.to(hidden_states.device))
        logits = loss = predictions = losses = None
        if labels is not None and not return_logits:
            loss, predictions, losses = self.chunked_loss(hidden_states, labels, num_items_in_batch)
        else:
            logits = self.decoder(self.head(hidden_states))
            if labels is not None:
                loss = mean_loss(F.cross_entropy, logits, labels, num_items_in_batch, ignore_index)
            logits = logits if sparse else layout.pad(logits)
        return ZhModernBertMaskedLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            predictions=predictions,
            losses=losses,
        )

    def chunked_loss(self, hidden_states, labels, num_items_in_batch=None):
        """The mean loss at `(M, H)` hidden states with labels `(M,)`, the likeliest tokens `(M,)`, and each loss `(M,)`.

        Logits are computed chunk by chunk, and once more in the backward pass. Those of the last chunk are kept, since the
        backward pass begins with them.
        """
        if num_items_in_batch is None:
            num_items_in_batch = len(labels)

        def chunk_loss(hidden_states, labels):
            # Chunks that share autocast's copy of a weight would add their gradients in its precision.
            device, enabled = hidden_states.device.type, torch.is_autocast_enabled(hidden_states.device.type)
            with torch.autocast(device, torch.get_autocast_dtype(device), enabled, cache_enabled=False):
                logits = self.decoder(self.head(hidden_states)).float()
                return F.cross_entropy(logits, labels.to(logits.device), reduction="none"), logits.argmax(-1)

        *chunks, last = zip(hidden_states.split(LOSS_CHUNK), labels.split(LOSS_CHUNK), strict=True)
        results = [checkpoint(chunk_loss, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
        losses, predictions = zip(*results, chunk_loss(*last), strict=True)
        losses = torch.cat(losses)
        return share(losses.sum(), num_items_in_batch), torch.cat(predictions), losses.detach()


class ZhModernBertForSequenceClassification(_HeadModel):
    def __init__(self, config: ZhModernBertConfig):
        super().__init__(config)
        self.classifier = build_linear(config, config.hidden_size, config.num_labels, True, config.hidden_size**-0.5)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        inputs_embeds=None,
        labels=None,
        num_items_in_batch=None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """One row of logits a document: `(B, num_labels)`, or `(D, num_labels)` for packed input.

        `labels`: classes `(B,)`, or `(B, num_labels)` floats for several labels at once (`problem_type`
        `multi_label_classification`) or regression.
        """
        outputs, layout = self.encode(input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)
        logits = self.classifier(self.drop(self.head(self.pool(outputs.last_hidden_state, layout))))
        loss = None
        if labels is not None:
            if self.config.problem_type is None:
                if self.num_labels == 1:
                    self.config.problem_type = "regression"
                elif not labels.is_floating_point() and labels.dtype != torch.bool:
                    self.config.problem_type = "single_label_classification"
                else:
                    self.config.problem_type = "multi_label_classification"
            if self.config.problem_type == "single_label_classification":
                labels = check_classes(labels.view(-1), logits.shape[:1], self.num_labels)
                loss = mean_loss(F.cross_entropy, logits, labels, num_items_in_batch, ignore_index=-100)
            else:
                regression = self.config.problem_type == "regression"
                loss_function = F.mse_loss if regression else F.binary_cross_entropy_with_logits
                if labels.numel() == logits.numel():
                    labels = labels.view(logits.shape).float()
                check_shape("labels", labels, logits.shape, f"problem_type is {self.config.problem_type!r}")
                loss = mean_loss(loss_function, logits, labels, num_items_in_batch)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class ZhModernBertForTokenClassification(_HeadModel):
    def __init__(self, config: ZhModernBertConfig):
        super().__init__(config)
        self.classifier = build_linear(config, config.hidden_size, config.num_labels, True, config.hidden_size**-0.5)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        inputs_embeds=None,
        labels=None,
        num_items_in_batch=None,
        **kwargs,
    ) -> TokenClassifierOutput:
        """`labels` `(B, T)` or `(1, N)`, -100 where nothing is asked -> logits `(B, T, num_labels)` or `(1, N, num_labels)`."""
        outputs, layout = self.encode(input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)
        logits = self.classifier(self.drop(self.head(outputs.last_hidden_state)))  # (N, num_labels)
        loss = None
        if labels is not None:
            labels = layout.unpad(check_classes(labels, layout.input_shape, self.num_labels))
            loss = mean_loss(F.cross_entropy, logits, labels, num_items_in_batch, ignore_index=-100)
        return TokenClassifierOutput(
            loss=loss, logits=layout.pad(logits), hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class ZhModernBertForQuestionAnswering(_HeadModel):
    def __init__(self, config: ZhModernBertConfig):
        super().__init__(config)
        self.classifier = build_linear(config, config.hidden_size, 2, True, config.hidden_size**-0.5)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        inputs_embeds=None,
        start_positions=None,
        end_positions=None,
        num_items_in_batch=None,
        **kwargs,
    ) -> QuestionAnsweringModelOutput:
        """Start and end logits `(B, T)` or `(1, N)`; at pads, the lowest finite number.

        `start_positions`, `end_positions`: `(B,)` indices into the row; packed, `(D,)` counted from the document's first token.
        A position outside is ignored. The loss is the mean of both, over real tokens only.
        """
        outputs, layout = self.encode(input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)
        logits = self.classifier(self.drop(self.head(outputs.last_hidden_state)))  # (N, 2)
        lowest = torch.finfo(logits.dtype).min
        loss = None
        if start_positions is not None and end_positions is not None:
            losses = []
            real = layout.to_grid(torch.ones_like(logits[:, 0], dtype=torch.bool), False)  # (D, longest)
            for document_logits, positions in zip(
                layout.to_grid(logits, lowest).unbind(-1),  # (D, longest)
                (start_positions.view(-1), end_positions.view(-1)),
                strict=True,
            ):
                check_shape("start_positions or end_positions", positions, real.shape[:1], "give one a document")
                positions = positions.to(real.device, torch.long)
                inside = (positions >= 0) & (positions < layout.width)
                inside &= real.gather(1, positions.clamp(0, layout.width - 1).unsqueeze(1)).squeeze(1)
                positions = positions.masked_fill(~inside, -100)
                losses.append(mean_loss(F.cross_entropy, document_logits, positions, num_items_in_batch, ignore_index=-100))
            loss = sum(losses) / 2
        start_logits, end_logits = layout.pad(logits, lowest).unbind(-1)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class ZhModernBertForMultipleChoice(_HeadModel):
    def __init__(self, config: ZhModernBertConfig):
        super().__init__(config)
        self.classifier = build_linear(config, config.hidden_size, 1, True, config.hidden_size**-0.5)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        inputs_embeds=None,
        labels=None,
        num_items_in_batch=None,
        **kwargs,
    ) -> MultipleChoiceModelOutput:
        """`(B, choices, T)` inputs -> logits `(B, choices)`; `labels` `(B,)` name the right choice."""
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        if inputs is None or inputs.ndim != (3 if inputs_embeds is None else 4):
            raise ValueError("multiple choice takes input_ids (batch, choices, tokens), or as many inputs_embeds")
        flat = [
            None if tensor is None else tensor.flatten(0, 1)
            for tensor in (input_ids, attention_mask, position_ids, inputs_embeds)
        ]
        outputs, layout = self.encode(*flat, **kwargs)
        logits = self.classifier(self.drop(self.head(self.pool(outputs.last_hidden_state, layout))))
        logits = logits.view(inputs.shape[:2])
        loss = None
        if labels is not None:
            labels = check_classes(labels.view(-1), logits.shape[:1], logits.shape[1])
            loss = mean_loss(F.cross_entropy, logits, labels, num_items_in_batch, ignore_index=-100)
        return MultipleChoiceModelOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


ZhModernBertModel.register_for_auto_class("AutoModel")
ZhModernBertForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
ZhModernBertForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
ZhModernBertForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
ZhModernBertForQuestionAnswering.register_for_auto_class("AutoModelForQuestionAnswering")
ZhModernBertForMultipleChoice.register_for_auto_class("AutoModelForMultipleChoice")
