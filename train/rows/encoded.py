"""An encoded folder: what train/encode.py writes.

Each shard of the corpus is a folder: `input_ids.bin` (uint16 where the vocabulary allows, without special tokens),
`word_starts.bin` (a byte a token), `offsets.bin` (int64, documents + 1), `sources.bin` (uint16 a document), `shard.json`
(tokens per source, in the order of their numbers). The tokenizer lies beside.
"""

import os
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np

from zh_modernbert.train.common.files import read_json
from zh_modernbert.train.common.manifest import read_manifest, verify_files


def ids_dtype(vocab_size: int) -> np.dtype:
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


OPEN_FILES = 512  # at most, of all `FileArray`s of a process. Linux gives a process 1,024, where nobody asked for more.


class FileArray:
    """A one-dimensional array in a file. Slices of it are read when they are asked for.

    A folder of a terabyte has thousands of files, more than a process may have open or mapped. So files are opened when they
    are read, and those that were read longest ago are closed.
    """

    def __init__(self, path: Path, dtype):
        self.path, self.dtype = path, np.dtype(dtype)
        self.length = path.stat().st_size // self.dtype.itemsize

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, part: slice) -> np.ndarray:
        first, end, _ = part.indices(self.length)
        size = self.dtype.itemsize
        return np.frombuffer(os.pread(open_file(self).fileno(), max(end - first, 0) * size, first * size), self.dtype)


@lru_cache(OPEN_FILES)
def open_file(array: FileArray) -> IO[bytes]:
    return open(array.path, "rb", buffering=0)


def load_manifest(folder: str | Path, stage: str) -> dict:
    """The manifest of an encoded or packed folder.

    Raises:
        InputError: another stage wrote the folder, a file is missing or has another size, or the tokenizer in it is not
            the one that made the token ids.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, stage)
    verify_files(folder, [name for name in manifest["files"] if name.startswith("tokenizer/")])
    return manifest


@dataclass(frozen=True)
class EncodedShard:
    """A shard. Document d is the tokens offsets[d] to offsets[d + 1]; its source is names[sources[d]]."""

    input_ids: FileArray
    word_starts: FileArray
    offsets: np.ndarray
    sources: np.ndarray
    names: list[str]


def load_shard(folder: Path, vocab_size: int) -> EncodedShard:
    """The shard in a folder of an encoded folder.

    Raises:
        InputError: a file is not what train/encode.py wrote.
    """
    names = ("input_ids.bin", "word_starts.bin", "offsets.bin", "sources.bin", "shard.json")
    verify_files(folder.parent, [f"{folder.name}/{name}" for name in names])
    return EncodedShard(
        FileArray(folder / "input_ids.bin", ids_dtype(vocab_size)),
        FileArray(folder / "word_starts.bin", np.uint8),
        np.fromfile(folder / "offsets.bin", np.int64),
        np.fromfile(folder / "sources.bin", np.uint16),
        list(read_json(folder / "shard.json")["per_source"]),
    )


def encoded_shards(folder: str | Path) -> list[Path]:
    return sorted(path.parent for path in Path(folder).glob("*/shard.json"))


def tokens_per_source(shards: list[Path]) -> Counter:
    total = Counter()
    for shard in shards:
        total.update(read_json(shard / "shard.json")["per_source"])
    return +total  # without sources that have no tokens
