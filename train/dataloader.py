"""Packed rows -> masked micro-batches, each a pure function of its number.

Micro-batch m of a run always holds the same rows with the same masks, whatever was computed before it, on any number of
workers: resuming is starting at another number. Rows are shuffled anew each epoch; masks come from (seed, epoch, row).
"""

import signal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from zh_modernbert.train.masking import Masking, mask_tokens, mlm_probability_at
from zh_modernbert.train.pack import PackedRows


class MicroBatches(Dataset):
    """Item m: `per_device_batch_size` rows packed one behind the other.

    The run's rows are read as one endless stream of shuffled epochs; update u takes the next `rows_per_update` of it, and
    micro-batch j of process p the j-th slice of p's equal share.

    Args:
        rate: `(probabilities, num_warmup_steps, max_steps)` for `mlm_probability_at`.
        start: `(update, row)`: where in the stream that update begins, if those before it took other numbers of rows.
    """

    def __init__(
        self,
        rows: PackedRows,
        masking: Masking,
        rate: tuple[list[float], int, int],
        per_device_batch_size: int,
        gradient_accumulation_steps: int,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
        start: tuple[int, int] = (0, 0),
    ):
        self.rows, self.masking, self.rate, self.seed = rows, masking, rate, seed
        self.batch_size = per_device_batch_size
        self.accumulation = gradient_accumulation_steps
        self.process_index, self.num_processes, self.start = process_index, num_processes, start
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    @property
    def rows_per_update(self) -> int:
        return self.batch_size * self.accumulation * self.num_processes

    def __len__(self) -> int:
        return self.rate[2] * self.accumulation

    def epoch_order(self, epoch: int) -> np.ndarray:
        """`(rows,)`: the order of the rows in an epoch."""
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.rows))
        return self._order[1]

    def positions(self, index: int) -> list[tuple[int, int]]:
        """(epoch, row) of each row of micro-batch `index`."""
        update, micro = divmod(index, self.accumulation)
        return self.share(update, self.process_index * self.accumulation + micro)

    def share(self, update: int, number: int) -> list[tuple[int, int]]:
        """(epoch, row) of each row of a micro-batch of an update, numbered over all processes."""
        first = self.start[1] + (update - self.start[0]) * self.rows_per_update + number * self.batch_size
        places = (divmod(place, len(self.rows)) for place in range(first, first + self.batch_size))
        return [(epoch, int(self.epoch_order(epoch)[place])) for epoch, place in places]

    def __getitem__(self, index: int) -> dict:
        probability = mlm_probability_at(index // self.accumulation, *self.rate)
        ids, labels, cu_seqlens = [], [], [np.zeros(1, dtype=np.int64)]
        for epoch, row in self.positions(index):
            row_ids, word_starts, bounds = self.rows.row(row)
            generator = np.random.default_rng((self.seed, epoch, row + 1))  # a last 0 would be the stream of `epoch_order`
            masked_ids, row_labels = mask_tokens(row_ids, word_starts, probability, self.masking, generator)
            ids.append(masked_ids)
            labels.append(row_labels)
            cu_seqlens.append(cu_seqlens[-1][-1] + bounds[1:])
        bounds = np.concatenate(cu_seqlens)
        return {
            "input_ids": torch.from_numpy(np.concatenate(ids))[None],
            "labels": torch.from_numpy(np.concatenate(labels))[None],
            "cu_seqlens": torch.from_numpy(bounds.astype(np.int32)),
            "max_seqlen": int(np.diff(bounds).max()),
        }


def ignore_signals(worker: int) -> None:
    """A worker ends with its process, which may have an update to finish when all of them are told to stop."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def micro_batches(dataset: MicroBatches, first_update: int, num_workers: int) -> DataLoader:
    """The micro-batches from update `first_update` on, in order."""
    indices = range(first_update * dataset.accumulation, len(dataset))
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=indices,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_signals,
    )
