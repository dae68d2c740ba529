"""What training and evaluation run on."""

import os

import torch

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


def has_bfloat16() -> bool:
    """Whether the GPU computes in bfloat16. Without the argument, PyTorch also counts older ones, which imitate it slowly."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def default_dtype() -> str:
    """What is computed in where nobody says: bfloat16 on a GPU that has it, else float32."""
    return "bfloat16" if torch.cuda.is_available() and has_bfloat16() else "float32"


def check_dtype(dtype: str) -> None:
    """Checks that the GPU, where there is one, computes in it.

    Raises:
        InputError: it does not.
    """
    if dtype == "bfloat16" and torch.cuda.is_available() and not has_bfloat16():
        raise InputError("dtype bfloat16: this GPU has none; take float32")


def check_one_device() -> None:
    """Several devices would each take a batch, so that the batch would not be what the settings say.

    Raises:
        InputError: several GPUs are visible, or several processes were started.
    """
    if torch.cuda.device_count() > 1:
        raise InputError("several GPUs are visible, and this training takes one; set CUDA_VISIBLE_DEVICES=0, or another number")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("several processes were started, and this training takes one; start it with python, once for each GPU")
