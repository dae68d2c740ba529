"""Packed rows -> masked micro-batches, each a pure function of its number.

Micro-batch m of a run always holds the same rows with the same masks, whatever was computed before it, on any number of
workers: resuming is starting at another number. Rows are shuffled anew each epoch; masks come from (seed, epoch, row).
"""

import signal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from zh_modernbert.train.cli import InputError
from zh_modernbert.train.masking import Masking, mask_rows, mlm_probability_at
from zh_modernbert.train.pack import PackedRows

# Of 4, 6, 8 and 12, the fewest with which neighbours stay neighbours no more often than in NumPy's permutations.
ROUNDS = 8


def scramble(values: np.ndarray) -> np.ndarray:
    """A bijection of uint64 in which every bit depends on all: the finaliser of SplitMix64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def shuffled(places: np.ndarray, count: int, seed: tuple[int, ...]) -> np.ndarray:
    """What stands at `places` of a random order of 0 to `count` - 1, without making the whole order.

    A Feistel network permutes the numbers below the next power of 4; one that falls outside is permuted again until it does
    not (cycle-walking; Black and Rogaway, https://doi.org/10.1007/3-540-45760-7_9).
    """
    half = np.uint64(max(-(-(count - 1).bit_length() // 2), 1))
    low = (np.uint64(1) << half) - np.uint64(1)
    keys = np.random.SeedSequence(seed).generate_state(ROUNDS, np.uint64)
    numbers = places.astype(np.uint64)
    outside = np.arange(len(numbers))
    while len(outside):
        left, right = numbers[outside] >> half, numbers[outside] & low
        for key in keys:
            left, right = right, left ^ (scramble(right ^ key) & low)
        numbers[outside] = left << half | right
        outside = outside[numbers[outside] >= count]
    return numbers.astype(np.int64)


def rows_of_updates(full: int, max_steps: int, num_warmup_steps: int, ratio: float) -> np.ndarray:
    """`(max_steps,)`: rows of each update, growing from `ratio * full` to `full` over the first `num_warmup_steps`."""
    rows = np.interp(np.arange(max_steps), [0, num_warmup_steps], [ratio * full, full]) if num_warmup_steps else full
    return np.maximum(np.broadcast_to(np.rint(rows).astype(np.int64), max_steps), 1)


class MicroBatches(Dataset):
    """Item m: at most `per_device_batch_size` rows packed one behind the other.

    The run's rows are read as one endless stream of shuffled epochs, of which each update takes the next, however many
    processes share them: each takes as many micro-batches, whose rows differ by one at most.

    Args:
        rate: `(probabilities, num_warmup_steps, max_steps)` for `mlm_probability_at`.
        rows_per_update: `(max_steps,)`, of all processes together.

    Raises:
        InputError: an update has too few rows for the processes.
    """

    def __init__(
        self,
        rows: PackedRows,
        masking: Masking,
        rate: tuple[list[float], int, int],
        per_device_batch_size: int,
        rows_per_update: np.ndarray,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        self.rows, self.masking, self.rate, self.seed = rows, masking, rate, seed
        self.process_index, self.num_processes = process_index, num_processes
        self.counts = -(-rows_per_update // (per_device_batch_size * num_processes))  # micro-batches of a process
        if (self.counts * num_processes > rows_per_update).any():
            raise InputError(
                f"an update of {rows_per_update.min()} rows is too small, or uneven, for {num_processes} processes with "
                f"per_device_batch_size {per_device_batch_size}; change tokens_per_update or the number of processes"
            )
        self.first_rows = np.cumsum([0, *rows_per_update])
        self.first_batches = np.cumsum([0, *self.counts])

    def __len__(self) -> int:
        return int(self.first_batches[-1])

    def update_of(self, index: int) -> int:
        return int(np.searchsorted(self.first_batches, index, side="right")) - 1

    def positions(self, index: int) -> list[tuple[int, int]]:
        """(epoch, row) of each row of micro-batch `index`."""
        update = self.update_of(index)
        return self.share(update, self.process_index * int(self.counts[update]) + index - int(self.first_batches[update]))

    def share(self, update: int, number: int) -> list[tuple[int, int]]:
        """(epoch, row) of each row of a micro-batch of an update, numbered over all processes."""
        first, end = self.first_rows[update : update + 2]
        bounds = first + (end - first) * np.arange(number, number + 2) // (self.num_processes * self.counts[update])
        epochs, places = np.divmod(np.arange(*bounds), len(self.rows))
        # Behind the seed comes the epoch, and for masks the row, which counts from 1: no stream is used twice.
        return [
            (int(epoch), int(row))
            for epoch in np.unique(epochs)
            for row in shuffled(places[epochs == epoch], len(self.rows), (self.seed, int(epoch), 0))
        ]

    def begin(self, update: int, row: int) -> None:
        """Lets an update begin at a row of the stream, where those before it took other numbers of rows."""
        self.first_rows += row - self.first_rows[update]

    def __getitem__(self, index: int) -> dict:
        probability = mlm_probability_at(self.update_of(index), *self.rate)
        positions = self.positions(index)
        ids, word_starts, documents = zip(*(self.rows.row(row) for _, row in positions), strict=True)
        ends = np.cumsum([0, *map(len, ids)])
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
    """A worker ends with its process, which may have an update to finish when all of them are told to stop."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def micro_batches(dataset: MicroBatches, first_update: int, num_workers: int) -> DataLoader:
    """The micro-batches from update `first_update` on, in order."""
    indices = range(int(dataset.first_batches[first_update]), len(dataset))
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=indices,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_signals,
    )
