"""What training and evaluation run on."""

import os

import torch

from zh_modernbert.train.common.cli import InputError


def has_bfloat16() -> bool:
    """Whether the GPU computes in bfloat16. Without the argument, PyTorch also counts older ones, which imitate it slowly."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def default_dtype() -> str:
    """What is computed in where nobody says: bfloat16 on a GPU that has it, else float32."""
    return "bfloat16" if torch.cuda.is_available() and has_bfloat16() else "float32"


def check_one_device() -> None:
    """Several devices would each take a batch, so that the batch would not be what the settings say.

    Raises:
        InputError: several GPUs are visible, or several processes were started.
    """
    if torch.cuda.device_count() > 1:
        raise InputError("several GPUs are visible, and this training takes one; set CUDA_VISIBLE_DEVICES=0, or another number")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("several processes were started, and this training takes one; start it with python, once for each GPU")
