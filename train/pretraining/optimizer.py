"""Optimizers: StableAdamW (torch-optimi) and AdamW (PyTorch), over two parameter groups."""

import torch
from optimi import StableAdamW
from optimi.utils import HAS_TRITON
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices decay; norms and biases do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def build_optimizer(
    name: str,
    model: nn.Module,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    sharded: bool = False,
) -> torch.optim.Optimizer:
    """`adamw` (https://arxiv.org/abs/1711.05101) or `stable_adamw` (https://arxiv.org/abs/2304.13013).

    Args:
        sharded: FSDP2 is going to shard the parameters.
    """
    groups = parameter_groups(model, weight_decay)
    on_cuda = next(model.parameters()).is_cuda
    if name == "stable_adamw":
        # By default optimi uses its Triton kernels wherever Triton is installed, even on a machine without a GPU, and asks only
        # at the first update of all, which a resumed run does not see. On shards the kernels are wrong: they take the mean
        # square of the shard instead of the matrix.
        return StableAdamW(groups, lr=learning_rate, betas=betas, eps=eps, triton=on_cuda and not sharded and HAS_TRITON)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=on_cuda)
