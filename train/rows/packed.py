"""A packed folder: what train/pack.py writes.

Each group of shards is a folder: `input_ids.bin`, `word_starts.bin` (one byte a token; 1 at special tokens too),
`document_offsets.bin` and `row_offsets.bin` (int64). Row r is documents row_offsets[r] to row_offsets[r + 1], document d is
tokens document_offsets[d] to document_offsets[d + 1]. The tokenizer lies beside.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zh_modernbert.train.rows.encoded import ids_dtype, load_array, load_manifest


@dataclass(frozen=True)
class PackedShard:
    """A group of shards, memory-mapped; for the arrays see the module's docstring."""

    input_ids: np.ndarray
    word_starts: np.ndarray
    document_offsets: np.ndarray
    row_offsets: np.ndarray


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
        dtypes = {
            "input_ids": ids_dtype(self.vocab_size),
            "word_starts": np.uint8,
            "document_offsets": np.int64,
            "row_offsets": np.int64,
        }
        self.shards = [
            PackedShard(*(load_array(path.parent / f"{name}.bin", dtype) for name, dtype in dtypes.items()))
            for path in sorted(Path(folder).glob("*/row_offsets.bin"))
        ]
        self.first_rows = np.cumsum([0, *(len(shard.row_offsets) - 1 for shard in self.shards)])
        self.documents = sum(len(shard.document_offsets) - 1 for shard in self.shards)

    def __len__(self) -> int:
        return int(self.first_rows[-1])

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The row's token ids, its word starts, and the bounds of its documents from 0 (its `cu_seqlens`)."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = int(np.searchsorted(self.first_rows, index, side="right")) - 1
        shard, index = self.shards[number], index - int(self.first_rows[number])
        bounds = shard.document_offsets[shard.row_offsets[index] : shard.row_offsets[index + 1] + 1]
        tokens = slice(int(bounds[0]), int(bounds[-1]))
        return shard.input_ids[tokens], shard.word_starts[tokens], np.asarray(bounds - bounds[0])
