"""Whether the attention backends agree on this device."""

from itertools import product

import torch

from zh_modernbert import modeling_zh_modernbert as modeling
from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.eval.speed.workloads import Workload
from zh_modernbert.train.common.cli import InputError


def check_backends(device: str) -> dict[str, float]:
    """Every backend that runs, padded left and right and packed, forward and backward, beside eager in float32.

    Returns the largest error of each backend and dtype, of outputs and of gradients, as a share of their norm; float32 may
    differ by 1e-5, half precision by twice what eager itself does in it.

    Raises:
        InputError: one differs by more, or gives something that is not finite, or pads that are not zero.
    """
    texts = Workload("check", [1, 2, 64, 65, 130, 300])
    rows = texts.padded(device)
    # A row of pads, and texts with stretches of pads longer than the window on either side of them.
    rows = {name: torch.cat((tensor, torch.zeros_like(tensor[:1]))) for name, tensor in rows.items()}
    mask = rows["attention_mask"].bool()
    flipped = {name: tensor.flip(1) for name, tensor in rows.items()}
    arrangements = {
        "right": rows,
        "left": {**flipped, "input_ids": left_padded(rows["input_ids"], mask)},
        "packed": texts.packed(device),
    }
    shape = {"num_hidden_layers": 4, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 192}
    torch.manual_seed(0)
    config = ZhModernBertConfig(vocab_size=1000, **shape, initializer_range=0.08)
    model = modeling.ZhModernBertModel(config).to(device)
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    direction = torch.randn(sum(texts.lengths), shape["hidden_size"], generator=torch.Generator().manual_seed(1)).to(device)

    def measure(backend, dtype, how):
        for parameter, weight in zip(model.to(dtype).parameters(), weights, strict=True):
            parameter.data.copy_(weight)
        model.set_attn_implementation(backend)
        model.zero_grad()
        batch = arrangements[how]
        output = model(**batch).last_hidden_state
        real = (
            batch["attention_mask"].bool() if "attention_mask" in batch else torch.ones_like(output[..., 0], dtype=torch.bool)
        )
        if output[~real].any():
            raise InputError(f"correctness: {backend} in {dtype}, {how}: pads are not zero")
        (output[real].float() * direction).sum().backward()
        gradient = torch.cat([parameter.grad.flatten().float() for parameter in model.parameters()])
        return output[real].detach().float(), gradient

    exact = measure("eager", torch.float32, "right")
    backends = ["sdpa"] + ["flash_attention_2"] * (device == "cuda" and modeling.flash_attn_varlen_func is not None)
    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        plain = list(map(relative_difference, measure("eager", dtype, "right"), exact))
        allowed = [1e-5] * 2 if dtype == torch.float32 else [2 * share + 1e-3 for share in plain]
        for backend, how in product(backends, arrangements):
            if dtype == torch.float32 and backend != "sdpa":
                continue  # FlashAttention has half precision only
            for what, mine, theirs, limit in zip(
                ("outputs", "gradients"), measure(backend, dtype, how), exact, allowed, strict=True
            ):
                share = relative_difference(mine, theirs)
                if not share <= limit:
                    name = f"{backend} in {dtype}, {how}"
                    raise InputError(f"correctness: {name}: {what} differ by {share:.3g}, {limit:.3g} is allowed")
                key = f"{backend} {str(dtype).removeprefix('torch.')} {what}"
                found[key] = max(found.get(key, 0.0), share)
    return found


def left_padded(input_ids, mask):
    """The ids of right-padded rows, with their pads on the left."""
    moved = torch.zeros_like(input_ids)
    moved[mask.flip(1)] = input_ids[mask]
    return moved


def relative_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()
