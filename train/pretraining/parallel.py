"""One model on many processes: replicas (DDP) or shards (FSDP2), as Accelerate's config (`configs/accelerate/`) says.

A checkpoint holds full tensors, even where the processes hold shards of them. So a run may go on under another config.
"""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.train.common.cli import InputError


def recompute_in_backward(model: ZhModernBertForMaskedLM, what: str) -> None:
    """Lets the backward pass compute again `what` a preset's `gradient_checkpointing` names."""
    if what == "layers":
        model.gradient_checkpointing_enable()
    for layer in model.model.layers:
        mlp: Any = layer.mlp
        mlp.recompute = what == "mlp"


def prepare(
    accelerator: Accelerator, model: ZhModernBertForMaskedLM, optimizer: torch.optim.Optimizer, compile: bool
) -> nn.Module:
    """Gets the model ready for all processes, and returns the module to call in its place.

    Under FSDP2 the parameters of model and optimizer become shards, in place. With `compile`, each layer is compiled by itself:
    so the graphs are the same for replicas and shards, and FSDP2 can gather a layer's shards before its graph runs.
    """
    if compile:
        for layer in model.model.layers:
            layer.compile(dynamic=True)  # no two batches have documents of the same lengths
    if not accelerator.is_fsdp2:
        return accelerator.prepare_model(model)
    plugin: Any = accelerator.state.fsdp_plugin
    # Accelerate's own policy would round angles, norms and sums of gradients to bfloat16; autocast does as under DDP.
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    # Accelerate would make a unit of the final norm, the embeddings and the decoder. PyTorch before 2.13 cannot go backward
    # through a unit of several modules of which one is called more than once, as the loss calls the decoder once a chunk.
    # Embeddings that Accelerate does not find stay in the unit of the whole model.
    with patch.multiple(model, get_input_embeddings=lambda: None, get_output_embeddings=lambda: None):
        accelerator.prepare(model, optimizer)
    return model


def end_processes() -> None:
    """Leaves the group of processes, if there is one. Call it before this process ends, or threads of the group abort it."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_main_process() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor on the main process, an empty one elsewhere; a tensor that is not sharded is returned as it is.

    Every process has to call this.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    full = tensor.full_tensor()
    return full.cpu() if is_main_process() else full.new_empty(0)


def shard_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's shard of a full tensor, cut as `like` is; the full tensor where `like` is not sharded."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def gather_model(model: ZhModernBertForMaskedLM) -> ZhModernBertForMaskedLM:
    """The model with full tensors on the main process; elsewhere, and where nothing is sharded, the model itself.

    Every process has to call this.
    """
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return model
    state = {name: gather(tensor) for name, tensor in model.state_dict().items()}
    if is_main_process():
        with torch.device("meta"):
            model = ZhModernBertForMaskedLM(model.config)
        model.load_state_dict(state, assign=True)
        model.tie_weights()
    return model


def add_up(accelerator: Accelerator, tensor: torch.Tensor) -> torch.Tensor:
    """The sum of the tensors of all processes. All get it."""
    return accelerator.reduce(tensor, "sum")  # pyright: ignore[reportReturnType]  # of a tensor it is a tensor


def add_up_counts(accelerator: Accelerator, *counts: int) -> list[int]:
    """The sums of the counts of all processes. All get them. One process alone does not ask its device."""
    if accelerator.num_processes == 1:
        return list(counts)
    return add_up(accelerator, torch.tensor(counts, device=accelerator.device)).tolist()


def agree(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """For each flag, whether any process has it set. All processes get the same answer."""
    return [count > 0 for count in add_up_counts(accelerator, *map(int, flags))]


def on_main_process(accelerator: Accelerator, function: Callable) -> Any:
    """Calls the function on the main process and returns its result there, None elsewhere.

    Raises:
        InputError: the function raised it. Every process raises it then, or the others would wait for the main one for ever.
    """
    result, error = None, [None]
    if accelerator.is_main_process:
        try:
            result = function()
        except InputError as raised:
            error = [str(raised)]
    broadcast_object_list(error)
    if error[0]:
        raise InputError(error[0])
    return result
