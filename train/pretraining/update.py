"""One update: gradients over all processes, its random seed, and the rows of one that is skipped."""

import contextlib
import ctypes
import math
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from zh_modernbert.train.pretraining.parallel import add_up
from zh_modernbert.train.rows.dataloader import MicroBatches
from zh_modernbert.train.rows.masking import IGNORE_INDEX


def update(accelerator: Accelerator, model, batches: list[dict], parameters: list, max_grad_norm: float) -> dict:
    """Computes the gradients of one update, and clips them. The loss is the mean over the masked tokens of all processes.

    Args:
        batches: the micro-batches of this process.

    Returns:
        Sums over all processes: `loss` (nats), `correct` (right predictions), `masked` and `tokens` (counts). The norm of the
        gradients before clipping: `grad_norm`. What each of this process's batches adds to the mean: `losses`,
        `(accumulation steps,)`.
    """
    device = accelerator.device
    counts = [sum(int((b["labels"] != IGNORE_INDEX).sum()) for b in batches), sum(b["labels"].numel() for b in batches)]
    masked, tokens = add_up(accelerator, torch.tensor(counts, device=device)).tolist()
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
    loss, correct = add_up(accelerator, total).tolist()
    norm: Any = accelerator.clip_grad_norm_(parameters, max_grad_norm or math.inf)
    counts = {"masked": masked, "tokens": tokens}
    return {"loss": loss, "correct": correct, **counts, "grad_norm": float(norm), "losses": torch.stack(losses)}


def skipped_rows(accelerator: Accelerator, dataset: MicroBatches, step: int, losses: torch.Tensor) -> list[tuple[int, int]]:
    """(epoch, row) of the rows that may have spoiled an update.

    These are the rows of the micro-batches whose loss is not finite. Where all losses are finite, and only the gradient is not,
    they are all rows of the update.

    Args:
        losses: of this process, see `update`.
    """
    gathered: Any = accelerator.gather(losses)
    bad = (~torch.isfinite(gathered)).tolist()
    return [row for number, is_bad in enumerate(bad) if is_bad or not any(bad) for row in dataset.rows_of(step, number)]


def return_freed_memory() -> None:
    """Gives memory back to the system that was freed, but that the C library (glibc) keeps.

    No two batches have tensors of the same sizes. On CPU, what glibc kept of them grew by 1.3 MB an update.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def seed_update(seed: int, step: int, process: int) -> None:
    """Seeds dropout from the update and the process, so that a resumed run draws the same."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, process)).generate_state(1)[0]))
