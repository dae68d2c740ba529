"""The endless stream of rows that a run reads: shuffled epochs of packed folders, mixed in fixed shares.

Row n of the stream is a pure function of the seed and n, so one number says what a run has read. Each folder has its own
epochs: all its rows are read before any is read again. A small folder with a large share has more epochs than a large one with
a small share.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.files import sha256
from zh_modernbert.train.rows.packed import PackedRows

# The stream is cut into blocks of so many rows. Every block has the shares exactly, to the row; fewer rows have them nearly.
BLOCK = 1024
# Of the Feistel network. 4, 6, 8 and 12 were tried: from 8 on, two neighbours are neighbours again after the permutation no
# more often than in NumPy's permutations.
ROUNDS = 8


def scramble(values: np.ndarray) -> np.ndarray:
    """A bijection of uint64 in which every output bit depends on every input bit: the finaliser of SplitMix64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def shuffled(places: np.ndarray, count: int, seed: tuple[int, ...]) -> np.ndarray:
    """The numbers at `places` of a random order of 0 to `count` - 1. The order itself is never made.

    A Feistel network permutes the numbers below a power of 4. A result of `count` or more is permuted again, until it is
    smaller (cycle-walking; Black and Rogaway, https://doi.org/10.1007/3-540-45760-7_9).
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


def rows_of_block(shares: list[float]) -> np.ndarray:
    """Rows of a block from each folder: its share of BLOCK, rounded so that they sum to BLOCK (largest remainder)."""
    exact = BLOCK * np.array(shares) / sum(shares)
    rows = np.floor(exact).astype(np.int64)
    rows[np.argsort(rows - exact, kind="stable")[: BLOCK - rows.sum()]] += 1
    return rows


class Rows(Protocol):
    """What a stream needs of a folder; see `PackedRows`."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...


class RowStream:
    """Packed folders as one list of rows, folder after folder, and the order in which a run reads them.

    Args:
        folders: by name.
        shares: of the stream's rows, one a folder, above 0; they need not sum to 1.
    """

    def __init__(self, folders: Mapping[str, Rows], shares: Sequence[float] = (1.0,)):
        self.parts = list(folders.values())
        self.first_rows = np.cumsum([0, *map(len, folders.values())])
        self.block_rows = rows_of_block(list(shares))
        # Of each row of a block: its folder's number, and how many rows of that folder are before it. Folders are spread
        # evenly.
        numbers = np.repeat(np.arange(len(folders)), self.block_rows)
        ranks = np.concatenate([np.arange(rows) for rows in self.block_rows])
        even = np.argsort((ranks + 0.5) / self.block_rows[numbers], kind="stable")
        self.numbers, self.ranks = numbers[even], ranks[even]

    def __len__(self) -> int:
        return int(self.first_rows[-1])

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The row `index` of the list; see `PackedRows.row`."""
        number = int(np.searchsorted(self.first_rows, index, side="right")) - 1
        return self.parts[number].row(index - int(self.first_rows[number]))

    def at(self, places: np.ndarray, seed: int) -> list[tuple[int, int]]:
        """(epoch of its folder, index in the list of rows) of each row at `places` of the stream."""
        blocks, offsets = np.divmod(places, BLOCK)
        numbers = self.numbers[offsets]
        lengths = np.diff(self.first_rows)[numbers]
        epochs, rows = np.divmod(blocks * self.block_rows[numbers] + self.ranks[offsets], lengths)
        found = self.first_rows[numbers]
        for number, epoch in {*zip(numbers.tolist(), epochs.tolist(), strict=True)}:
            chosen = (numbers == number) & (epochs == epoch)
            found[chosen] += shuffled(rows[chosen], int(lengths[chosen][0]), (seed, epoch, 0, number))
        return list(zip(epochs.tolist(), found.tolist(), strict=True))


class PackedStream(RowStream):
    """The stream of one packed folder, `data_dir`; or, with a `mixture`, of the packed folders that it names in `data_dir`.

    Attributes:
        seq_len, vocab_size, tokenizer, tokenizer_dir: see `PackedRows`; all folders have the same.
        folders: by path.
        content: a hash of all that is in the folders, and of their shares.

    Raises:
        InputError: a folder is no packed one, or is named twice; two folders differ in rows or tokenizer; or a share is not
            above 0, or is less than one row of a block.
    """

    def __init__(self, data_dir: str | Path, mixture: dict[str, float]):
        packed = {str(Path(data_dir) / name): PackedRows(Path(data_dir) / name) for name in mixture or [""]}
        if len(packed) < len(mixture):
            raise InputError(f"mixture: two of {', '.join(mixture)} are one folder")
        first_name, first = next(iter(packed.items()))
        for name, rows in packed.items():
            for field in ("seq_len", "vocab_size", "tokenizer"):
                ours, theirs = getattr(rows, field), getattr(first, field)
                if ours != theirs:
                    raise InputError(f"mixture: {name} and {first_name} differ in {field}: {ours} and {theirs}")
        for name, share in mixture.items():
            if not 0 < share < float("inf") or share / sum(mixture.values()) < 1 / BLOCK:
                raise InputError(f"mixture: {name}={share}: a share is above 0, and at least 1/{BLOCK} of all of them")
        super().__init__(packed, list(mixture.values()) or [1.0])
        self.folders = packed
        self.seq_len, self.vocab_size, self.tokenizer = first.seq_len, first.vocab_size, first.tokenizer
        self.tokenizer_dir = first.tokenizer_dir
        contents = [rows.content for rows in packed.values()]
        self.content = sha256(repr((contents, self.block_rows.tolist())).encode())

    def mean(self, field: str) -> float:
        """The mean of `documents` or `tokens` over the rows of the stream."""
        means = [getattr(rows, field) / len(rows) for rows in self.folders.values()]
        return float(np.dot(means, self.block_rows) / BLOCK)

    def epochs_per_row(self) -> dict[str, float]:
        """Folder -> the part of an epoch of it that one row of the stream is, in the mean."""
        return {
            name: int(rows) / BLOCK / len(folder)
            for (name, folder), rows in zip(self.folders.items(), self.block_rows, strict=True)
        }
