"""Packed rows -> masked micro-batches, each a pure function of its number.

Micro-batch m of a run always holds the same rows with the same masks, with any number of workers. So a run that is resumed
starts at another m, and needs no state. The order of rows comes from a `RowStream`, and does not depend on the number of
processes or on the size of micro-batches. Masks come from (seed, epoch, row).
"""

import atexit
import multiprocessing
import signal
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.rows.masking import Masking, MlmSchedule, mask_rows
from zh_modernbert.train.rows.row_stream import RowStream


def rows_of_updates(full: int, max_steps: int, num_warmup_steps: int, ratio: float) -> np.ndarray:
    """`(max_steps,)`: rows of each update, which grow from `ratio * full` to `full` over the first `num_warmup_steps`."""
    rows = np.interp(np.arange(max_steps), [0, num_warmup_steps], [ratio * full, full]) if num_warmup_steps else full
    return np.maximum(np.broadcast_to(np.rint(rows).astype(np.int64), max_steps), 1)


def micro_batches_of_updates(rows_per_update: np.ndarray, per_device_batch_size: int, num_processes: int) -> np.ndarray:
    """`(max_steps,)`: micro-batches that each process takes for each update.

    Raises:
        InputError: an update has too few rows for the processes.
    """
    counts = -(-rows_per_update // (per_device_batch_size * num_processes))
    uneven = rows_per_update[counts * num_processes > rows_per_update]
    if len(uneven):
        raise InputError(
            f"an update of {uneven[0]} rows is too small, or uneven, for {num_processes} processes with per_device_batch_size "
            f"{per_device_batch_size}; change tokens_per_update, the batch warm-up, per_device_batch_size or the processes"
        )
    return counts


class MicroBatches(Dataset):
    """Item m is micro-batch m of this process: at most `per_device_batch_size` rows, concatenated.

    An update takes the next rows of the stream. All processes take the same number of micro-batches of it, and any two of these
    differ by at most one row.

    Args:
        rows_per_update: `(max_steps,)`, of all processes together.

    Raises:
        InputError: see `micro_batches_of_updates`.
    """

    def __init__(
        self,
        rows: RowStream,
        masking: Masking,
        mlm_schedule: MlmSchedule,
        per_device_batch_size: int,
        rows_per_update: np.ndarray,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        self.rows, self.masking, self.mlm_schedule, self.seed = rows, masking, mlm_schedule, seed
        self.process_index, self.num_processes = process_index, num_processes
        self.counts = micro_batches_of_updates(rows_per_update, per_device_batch_size, num_processes)
        self.first_rows = np.cumsum([0, *rows_per_update])
        self.first_batches = np.cumsum([0, *self.counts])

    def __len__(self) -> int:
        return int(self.first_batches[-1])

    def update_of(self, index: int) -> int:
        return int(np.searchsorted(self.first_batches, index, side="right")) - 1

    def positions(self, index: int) -> list[tuple[int, int]]:
        """(epoch, row) of each row of micro-batch `index`."""
        update = self.update_of(index)
        return self.rows_of(update, self.process_index * int(self.counts[update]) + index - int(self.first_batches[update]))

    def rows_of(self, update: int, number: int) -> list[tuple[int, int]]:
        """(epoch, row) of each row of micro-batch `number` of an update, counted over all processes."""
        first, end = self.first_rows[update : update + 2]
        bounds = first + (end - first) * np.arange(number, number + 2) // (self.num_processes * self.counts[update])
        return self.rows.at(np.arange(*bounds), self.seed)

    def begin(self, update: int, row: int) -> None:
        """Lets an update begin at a row of the stream, for a run whose earlier updates took other numbers of rows."""
        self.first_rows += row - self.first_rows[update]

    def __getitem__(self, index: int) -> dict:
        probability = self.mlm_schedule.at(self.update_of(index))
        positions = self.positions(index)
        ids, word_starts, documents = zip(*(self.rows.row(row) for _, row in positions), strict=True)
        ends = np.cumsum([0, *map(len, ids)])
        # `RowStream.at` seeds the order of rows with (seed, epoch, 0, folder), and to NumPy (seed, epoch, 0) is the same seed
        # as (seed, epoch, 0, 0). So rows count from 1 here.
        generators = [np.random.default_rng((self.seed, epoch, row + 1)) for epoch, row in positions]
        input_ids, labels = mask_rows(
            np.concatenate(ids), np.concatenate(word_starts), ends, probability, self.masking, generators
        )
        bounds = np.concatenate([[0], *(start + inner[1:] for start, inner in zip(ends[:-1], documents, strict=True))])
        return {
            "input_ids": torch.from_numpy(input_ids)[None],
            "labels": torch.from_numpy(labels)[None],
            "cu_seqlens": torch.from_numpy(bounds.astype(np.int32)),
            "max_seqlen": int(np.diff(bounds).max()),
        }


def ignore_signals(worker: int) -> None:
    """Lets a worker ignore SIGINT and SIGTERM: its process may still need batches to finish an update."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def end_workers() -> None:
    """Ends workers that are left when an error ends the process.

    `multiprocessing` would send them SIGTERM, which they ignore, and wait for them forever.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's would report them
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def micro_batches(dataset: MicroBatches, first_update: int, num_workers: int) -> Iterator[dict]:
    """The micro-batches from update `first_update` on, in order.

    Raises:
        InputError: a row is damaged.
    """
    indices = range(int(dataset.first_batches[first_update]), len(dataset))
    batches = DataLoader(
        dataset,
        batch_size=None,
        sampler=indices,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_signals,
        generator=torch.Generator(),  # of its own: a draw from PyTorch's would change the dropout of the first update alone
    )
    try:
        yield from batches
    except InputError as error:  # a worker's has its traceback before its line
        raise InputError(str(error).rpartition("InputError: ")[2].strip()) from error
