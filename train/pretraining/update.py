"""One update: gradients over all processes, its random seed, and the rows of one that is skipped."""

import contextlib
import ctypes
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

from zh_modernbert.modeling_zh_modernbert import move
from zh_modernbert.train.pretraining.parallel import add_up, add_up_counts
from zh_modernbert.train.rows.dataloader import MicroBatches
from zh_modernbert.train.rows.masking import IGNORE_INDEX


def update(accelerator: Accelerator, model, stream: Iterator[dict], count: int, parameters: list, max_grad_norm: float) -> dict:
    """Computes the gradients of one update, and clips them. The loss is the mean over the masked tokens of all processes.

    A micro-batch is computed as soon as it is there, while the next is prepared. How many tokens an update masks is known after
    its last one. So gradients are of the sum of the losses, and divided by that number at the end. One process waits for its
    device once, at the end, for the three numbers that say whether the update is good; DDP, which moves bounds and labels to
    the device, waits for it in each micro-batch.

    Args:
        stream: has the micro-batches of this process. Those of the update are taken from it.
        count: how many.

    Returns:
        Sums over all processes: `loss` (nats), `correct` (right predictions), `masked` and `tokens` (counts). The norm of the
        gradients before clipping: `grad_norm`. Of each batch of this process the loss in `losses`, `(count,)`, and in `work`
        its bounds of documents and its number of masked tokens.
    """
    device = accelerator.device
    total, losses, work, own_tokens = torch.zeros(2, device=device, dtype=torch.float64), [], [], 0
    for number, batch in enumerate(itertools.islice(stream, count), 1):
        labels = batch["labels"][batch["labels"] != IGNORE_INDEX]
        work.append((batch["cu_seqlens"], len(labels)))
        own_tokens += batch["labels"].numel()
        # Bounds and labels stay on CPU, where the model reads them.
        batch = {**batch, "input_ids": batch["input_ids"].to(device, non_blocking=True)}
        with contextlib.nullcontext() if number == count else accelerator.no_sync(model):
            with accelerator.autocast():
                outputs = model(**batch, num_items_in_batch=1, return_logits=False)
            accelerator.backward(outputs.loss * accelerator.num_processes)  # DDP takes the mean over processes
        losses.append(outputs.loss.detach())
        correct = (outputs.predictions == move(labels, device)).sum()
        total += torch.stack((losses[-1].double(), correct.double()))
    masked, tokens = add_up_counts(accelerator, sum(asked for _, asked in work), own_tokens)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad /= max(masked, 1)
    norm: Any = accelerator.clip_grad_norm_(parameters, max_grad_norm or math.inf)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    loss, correct, grad_norm = torch.cat((add_up(accelerator, total), norm.double().view(1))).tolist()
    sums = {"loss": loss, "correct": correct, "masked": masked, "tokens": tokens}
    return {**sums, "grad_norm": grad_norm, "losses": torch.stack(losses), "work": work}


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
