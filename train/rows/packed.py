"""A packed folder: what train/pack.py writes.

Each group of shards is a folder: `input_ids.bin`, `word_starts.bin` (one byte a token; 1 at special tokens too),
`document_offsets.bin` and `row_offsets.bin` (int64). Row r is documents row_offsets[r] to row_offsets[r + 1], document d is
tokens document_offsets[d] to document_offsets[d + 1]. `checksums.bin` (uint32) has the CRC-32 of each row, so that a damaged
row is noticed when it is read. The tokenizer lies beside.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.rows.encoded import FileArray, ids_dtype, load_manifest


def checksum(ids: np.ndarray, starts: np.ndarray, bounds: np.ndarray) -> int:
    """The CRC-32 of a row, as `PackedRows.row` gives it."""
    return zlib.crc32(ids.data, zlib.crc32(starts.data, zlib.crc32(bounds.data)))


@dataclass(frozen=True)
class PackedShard:
    """A group of shards; for the arrays see the module's docstring."""

    input_ids: FileArray
    word_starts: FileArray
    document_offsets: FileArray
    row_offsets: FileArray
    checksums: FileArray


class PackedRows:
    """A packed folder as one list of rows.

    Attributes:
        seq_len: most tokens of a row.
        vocab_size, tokenizer, tokenizer_dir: the tokenizer's size, its fingerprint, and the folder that it is in.
        documents: how many; a document that was cut counts as its pieces.
        tokens: how many, special tokens included.
        content: a hash of all that is in the folder.

    Raises:
        InputError: see `load_manifest`.
    """

    def __init__(self, folder: str | Path):
        manifest = load_manifest(folder, "pack")
        result, self.content, self.tokenizer_dir = manifest["result"], manifest["content"], Path(folder) / "tokenizer"
        self.seq_len, self.vocab_size, self.tokenizer = (result[name] for name in ("seq_len", "vocab_size", "tokenizer"))
        self.tokens = result["tokens"]
        self.folder = Path(folder)
        dtypes = {
            "input_ids": ids_dtype(self.vocab_size),
            "word_starts": np.uint8,
            "document_offsets": np.int64,
            "row_offsets": np.int64,
            "checksums": np.uint32,
        }
        groups = [path.parent for path in sorted(self.folder.glob("*/row_offsets.bin"))]
        self.shards = [
            PackedShard(*(FileArray(group / f"{name}.bin", dtype) for name, dtype in dtypes.items())) for group in groups
        ]
        self.first_rows = np.cumsum([0, *(len(shard.row_offsets) - 1 for shard in self.shards)])
        self.documents = sum(len(shard.document_offsets) - 1 for shard in self.shards)

    def __len__(self) -> int:
        return int(self.first_rows[-1])

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The row's token ids, its word starts, and the bounds of its documents from 0 (its `cu_seqlens`).

        Raises:
            InputError: it is not what train/pack.py wrote.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = int(np.searchsorted(self.first_rows, index, side="right")) - 1
        shard, index = self.shards[number], index - int(self.first_rows[number])
        first, last = shard.row_offsets[index : index + 2].tolist()
        bounds = shard.document_offsets[first : last + 1]
        start, end = (int(bounds[0]), int(bounds[-1])) if len(bounds) else (0, 0)  # damaged bounds may be anything
        row = shard.input_ids[start:end], shard.word_starts[start:end], bounds - start
        if checksum(*row) not in shard.checksums[index : index + 1]:
            raise InputError(f"{self.folder}: row {index} of {number:05d}/ is damaged; delete it and run train/pack.py again")
        return row
