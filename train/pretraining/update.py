"""One update: gradients over all processes, what an update depends on, and what is said of one that is skipped."""

import contextlib
import ctypes
import math

import numpy as np
import torch
from accelerate import Accelerator

from zh_modernbert.train.rows.dataloader import MicroBatches
from zh_modernbert.train.rows.masking import IGNORE_INDEX


def update(accelerator: Accelerator, model, batches: list[dict], parameters: list, max_grad_norm: float) -> dict:
    """Gradients of the mean loss over all masked tokens of `batches` on all processes, clipped.

    Returns:
        Sums over the processes: `loss` (nats), `correct` (predictions), `masked` and `tokens` (counts); `grad_norm` before
        clipping; and `losses`, what this process's batches add to the mean.
    """
    device = accelerator.device
    counts = [sum(int((b["labels"] != IGNORE_INDEX).sum()) for b in batches), sum(b["labels"].numel() for b in batches)]
    masked, tokens = accelerator.reduce(torch.tensor(counts, device=device), "sum").tolist()
    total, losses = torch.zeros(2, device=device, dtype=torch.float64), []
    for number, batch in enumerate(batches, 1):
        batch = {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}
        with contextlib.nullcontext() if number == len(batches) else accelerator.no_sync(model):
            with accelerator.autocast():
                outputs = model(**batch, num_items_in_batch=max(masked, 1), return_logits=False)
            accelerator.backward(outputs.loss * accelerator.num_processes)  # DDP takes the mean over processes
        labels = batch["labels"][batch["labels"] != IGNORE_INDEX]
        correct = (outputs.predictions == labels).sum()
        losses.append(outputs.loss.detach())
        total += torch.stack((outputs.loss.detach().double() * max(masked, 1), correct.double()))
    loss, correct = accelerator.reduce(total, "sum").tolist()
    norm = float(accelerator.clip_grad_norm_(parameters, max_grad_norm or math.inf))
    counts = {"masked": masked, "tokens": tokens}
    return {"loss": loss, "correct": correct, **counts, "grad_norm": norm, "losses": torch.stack(losses)}


def skipped_rows(accelerator: Accelerator, dataset: MicroBatches, step: int, losses: torch.Tensor) -> list[tuple[int, int]]:
    """(epoch, row) of the micro-batches of an update whose loss is not finite, or of all where only the gradient is not.

    Args:
        losses: `(accumulation steps,)` of this process.
    """
    bad = (~torch.isfinite(accelerator.gather(losses))).tolist()
    return [row for number, is_bad in enumerate(bad) if is_bad or not any(bad) for row in dataset.share(step, number)]


def return_freed_memory() -> None:
    """Gives freed memory back to the system, where the C library (glibc) keeps it.

    Documents make every batch of other sizes; what glibc keeps of them grew by 1.3 MB an update on CPU.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def seed_update(seed: int, step: int, process: int) -> None:
    """Dropout's randomness as a function of the update alone."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, process)).generate_state(1)[0]))
