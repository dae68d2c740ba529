"""One model on many processes: replicas (DDP) or shards (FSDP2), as Accelerate's config (`configs/accelerate/`) says.

A checkpoint holds full tensors, even where the processes hold shards of them. So a run may go on under another config.
"""

import os
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

# Variables by which Accelerate changes a run that does not ask for it -> the values that change nothing, and the way to ask.
NEUTRAL = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (("1",), "gradient_accumulation_steps is a setting of the run"),
    "ACCELERATE_DYNAMO_BACKEND": (("no",), "compile is a setting of the run"),
    "ACCELERATE_USE_DEEPSPEED": (("false",), "shards are made by FSDP2, see train/configs/accelerate/fsdp2.yaml"),
    "ACCELERATE_USE_MEGATRON_LM": (("false",), "shards are made by FSDP2, see train/configs/accelerate/fsdp2.yaml"),
}
NEUTRAL_OF_FSDP = {"FSDP_VERSION": (("2",), "set fsdp_version to 2, as train/configs/accelerate/fsdp2.yaml does")}
NEUTRAL_OF_PARALLELISM = {
    f"PARALLELISM_CONFIG_{kind}_SIZE": (("1",), "only replicas and shards are known here") for kind in ("TP", "CP", "SP")
}


def check_environment(mixed_precision: str) -> None:
    """Checks that no variable of Accelerate's, from the environment or a config of `accelerate launch`, changes the run.

    Args:
        mixed_precision: the run's own. "no" is what `accelerate launch` says where nothing is said.

    Raises:
        InputError: one would, naming it.
    """

    def is_on(name: str) -> bool:
        return os.environ.get(name, "").lower() in ("true", "1", "yes", "on", "y", "t")

    known = NEUTRAL | {"ACCELERATE_MIXED_PRECISION": (("no", mixed_precision), "mixed_precision is a setting of the run")}
    if is_on("ACCELERATE_USE_FSDP"):
        known |= NEUTRAL_OF_FSDP
    if is_on("ACCELERATE_USE_PARALLELISM_CONFIG"):
        known |= NEUTRAL_OF_PARALLELISM
    for name, (neutral, instead) in known.items():
        value = os.environ.get(name, "1" if name == "FSDP_VERSION" else neutral[0])  # 1 is Accelerate's own
        if value.lower() not in neutral:
            raise InputError(
                f"{name} is {value!r} in the environment or Accelerate's config, it must be {neutral[-1]!r}: {instead}"
            )


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
