"""Whether the attention backends agree on this device."""

from itertools import product
from typing import Any

import torch

from zh_modernbert import modeling_zh_modernbert as modeling
from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.eval.speed.workloads import Workload
from zh_modernbert.train.common.cli import InputError

SHAPE: dict[str, Any] = {"num_hidden_layers": 4, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 192}
TEXTS = Workload("check", [1, 2, 64, 65, 130, 300])
ARRANGEMENTS = ("right", "left", "packed")


def check_backends(device: str) -> dict[str, float]:
    """Compares every backend that runs here with eager in float32, forward and backward, in each of `ARRANGEMENTS`.

    float32 may differ by 1e-5. Half precision may differ by twice what eager itself differs in it.

    Returns:
        The largest relative error of each backend and dtype, of outputs and of gradients.

    Raises:
        InputError: an error is larger or not finite, or pads are not zero.
    """
    probe = Probe(device)
    exact = probe.measure("eager", torch.float32, "right")
    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        plain = relative_differences(probe.measure("eager", dtype, "right"), exact)
        for backend, how in product(backends_for(device, dtype), ARRANGEMENTS):
            for what, error in relative_differences(probe.measure(backend, dtype, how), exact).items():
                allowed = 1e-5 if dtype == torch.float32 else 2 * plain[what] + 1e-3
                if not error <= allowed:
                    name = f"{backend} in {dtype}, {how}"
                    raise InputError(f"correctness: {name}: {what} differ by {error:.3g}, {allowed:.3g} is allowed")
                key = f"{backend} {str(dtype).removeprefix('torch.')} {what}"
                found[key] = max(found.get(key, 0.0), error)
    return found


def backends_for(device: str, dtype: torch.dtype) -> list[str]:
    """The backends that run on `device` in `dtype`, without eager. FlashAttention has half precision only."""
    flash = device == "cuda" and modeling.flash_attn_varlen_func is not None and dtype != torch.float32
    return ["sdpa", "flash_attention_2"] if flash else ["sdpa"]


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
        self.direction = torch.randn(sum(TEXTS.lengths), SHAPE["hidden_size"], generator=generator).to(device)

    def measure(self, backend: str, dtype: torch.dtype, how: str) -> dict[str, torch.Tensor]:
        """Outputs `(N, H)` of the real tokens and the gradients of all weights `(W,)`, as float32.

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
        (output[real].float() * self.direction).sum().backward()
        gradients = [parameter.grad.flatten().float() for parameter in self.model.parameters() if parameter.grad is not None]
        return {"outputs": output[real].detach().float(), "gradients": torch.cat(gradients)}


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
