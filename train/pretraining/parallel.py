"""One model on many processes: replicas (DDP) or shards (FSDP2), as Accelerate's config (`configs/accelerate/`) says.

A checkpoint has whole tensors, whoever holds the parts of them; so a run may go on under another config.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.train.common.cli import InputError


def prepare(
    accelerator: Accelerator, model: ZhModernBertForMaskedLM, optimizer: torch.optim.Optimizer, compile: bool
) -> nn.Module:
    """What to call in place of `model`; under FSDP2 the parameters of model and optimizer become shards, in place.

    Compiled are the layers, each by itself: the same graphs under every way, and the shards are gathered between them.
    """
    if compile:
        for layer in model.model.layers:
            layer.compile(dynamic=True)  # no two batches have documents of the same lengths
    if not accelerator.is_fsdp2:
        return accelerator.prepare_model(model)
    # Accelerate's own policy would round angles, norms and sums of gradients to bfloat16; autocast does as under DDP.
    accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()
    accelerator.prepare(model, optimizer)
    return model


def end_processes() -> None:
    """Leaves the group of processes, before this one ends: threads of the group that still run abort it."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_main_process() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor that processes hold shards of, on the main process (elsewhere nothing); every process has to call this."""
    if not isinstance(tensor, DTensor):
        return tensor
    full = tensor.full_tensor()
    return full.cpu() if is_main_process() else full.new_empty(0)


def shard_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's shard of a whole tensor, where `like` is sharded."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def whole_model(model: ZhModernBertForMaskedLM) -> ZhModernBertForMaskedLM:
    """The model in one piece, on the main process; every process has to call this."""
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return model
    state = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    if is_main_process():
        with torch.device("meta"):
            model = ZhModernBertForMaskedLM(model.config)
        model.load_state_dict(state, assign=True)
        model.tie_weights()
    return model


def agree(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """Whether each flag is up on any process: the same answer on all."""
    return [count > 0 for count in accelerator.reduce(torch.tensor(flags, device=accelerator.device).int(), "sum").tolist()]


def on_main_process(accelerator: Accelerator, function: Callable):
    """What the function gives on the main process, and None elsewhere.

    Raises:
        InputError: what it raises there, on all: the others would wait for the one that is gone.
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
