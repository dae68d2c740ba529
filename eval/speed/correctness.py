"""Whether the attention backends agree on this device."""

from typing import Any

import numpy as np
import torch

from zh_modernbert import modeling_zh_modernbert as modeling
from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.eval.speed.limits import reason
from zh_modernbert.eval.speed.workloads import Workload
from zh_modernbert.train.common.cli import InputError

SHAPE: dict[str, Any] = {"num_hidden_layers": 4, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 192}
TEXTS = Workload("check", [1, 2, 64, 65, 130, 300])
# Relative errors. Eager's own on CPU are 3e-7, 0.008 and 0.001.
ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.003}
ARRANGEMENTS = ("right", "left", "packed")


def check_backends(device: str) -> dict[str, float | str]:
    """Compares eager and every backend that runs here with eager on CPU in float64, forward and backward.

    Returns:
        For each backend and dtype the largest relative error, of outputs and of gradients, in all `ARRANGEMENTS`. Where an
        error is above `ALLOWED` or not finite, pads are not zero, or a backend raises, there is a text that begins with
        "failed".
    """
    exact = Probe("cpu").measure("eager", torch.float64, "right")
    probe, found = Probe(device), {}
    for dtype, allowed in ALLOWED.items():
        for backend in backends_for(device, dtype):
            name = f"{backend} {str(dtype).removeprefix('torch.')}"
            try:
                errors = probe.errors(backend, dtype, exact)
            except Exception as error:
                found[name] = f"failed: {reason(error)}"
                continue
            for what, error in errors.items():
                wrong = f"failed: they differ by {error:.3g}, and {allowed} is allowed"
                found[f"{name} {what}"] = error if error <= allowed else wrong
    return found


def backends_for(device: str, dtype: torch.dtype) -> list[str]:
    """The backends that run on `device` in `dtype`. FlashAttention has half precision only."""
    flash = device == "cuda" and modeling.flash_attn_varlen_func is not None and dtype != torch.float32
    return ["eager", "sdpa", "flash_attention_2"] if flash else ["eager", "sdpa"]


class Probe:
    """A small random model on the device, and the same texts in each of `ARRANGEMENTS`."""

    def __init__(self, device: str):
        torch.manual_seed(0)
        config = ZhModernBertConfig(vocab_size=1000, **SHAPE, initializer_range=0.08)
        self.model = modeling.ZhModernBertModel(config)
        self.model.to(device)  # pyright: ignore[reportArgumentType]  # transformers' `to` hides its `self`
        self.weights = [parameter.detach().clone() for parameter in self.model.parameters()]
        self.batches: dict[str, dict] = dict(zip(ARRANGEMENTS, arrange(device), strict=True))
        generator = torch.Generator().manual_seed(1)
        # The loss is the product of the outputs with this, so that every output has a gradient of its own.
        self.direction = torch.randn(sum(TEXTS.lengths), SHAPE["hidden_size"], generator=generator).double().to(device)

    def errors(self, backend: str, dtype: torch.dtype, exact: dict[str, torch.Tensor]) -> dict[str, float]:
        """The largest relative errors in all `ARRANGEMENTS`, NaN if one is. Raises what `measure` raises."""
        found = [relative_differences(self.measure(backend, dtype, how), exact) for how in ARRANGEMENTS]
        return {what: float(np.max([errors[what] for errors in found])) for what in exact}

    def measure(self, backend: str, dtype: torch.dtype, how: str) -> dict[str, torch.Tensor]:
        """Outputs `(N, H)` of the real tokens and the gradients of all weights `(W,)`, as float64 on CPU.

        Raises:
            InputError: pads are not zero.
        """
        self.model.to(dtype)  # pyright: ignore[reportArgumentType]  # transformers' `to` hides its `self`
        for parameter, weight in zip(self.model.parameters(), self.weights, strict=True):
            parameter.data.copy_(weight)
        self.model.set_attn_implementation(backend)
        self.model.zero_grad()
        batch = self.batches[how]
        output = self.model(**batch).last_hidden_state
        real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        if output[~real].any():
            raise InputError(f"correctness: {backend} in {dtype}, {how}: pads are not zero")
        (output[real].double() * self.direction).sum().backward()
        gradients = [parameter.grad.flatten() for parameter in self.model.parameters() if parameter.grad is not None]
        found = {"outputs": output[real].detach(), "gradients": torch.cat(gradients)}
        return {what: tensor.double().cpu() for what, tensor in found.items()}


def arrange(device: str) -> tuple[dict, dict, dict]:
    """`TEXTS` padded on the right, padded on the left, and packed.

    The padded batches have a row of pads only, and stretches of pads that are longer than the window.
    """
    padded = TEXTS.padded(device)
    right = {name: torch.cat((tensor, torch.zeros_like(tensor[:1]))) for name, tensor in padded.items()}
    mask = right["attention_mask"].bool()
    left = {name: torch.zeros_like(tensor) for name, tensor in right.items()}
    for name, tensor in right.items():
        left[name][mask.flip(1)] = tensor[mask]
    return right, left, TEXTS.packed(device)


def relative_differences(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, float]:
    return {what: relative_difference(actual[what], expected[what]) for what in expected}


def relative_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of the difference, divided by the norm of what is expected."""
    return ((actual - expected).norm() / expected.norm()).item()
