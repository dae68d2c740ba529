"""Encoded documents -> rows of at most `seq_len` tokens, shuffled, once per `seq_len`.

A document becomes [CLS] tokens [SEP]. One that is longer than a row is cut into pieces that fill rows, between words; no
other is ever cut. Rows are filled best-fit, longest first, which leaves far below 1% empty wherever there are short
documents to fill with.

Row r is documents row_offsets[r] to row_offsets[r + 1]; document d is tokens document_offsets[d] to document_offsets[d +
1]. Writes `input_ids.bin`, `word_starts.bin` (one byte a token; 1 at special tokens too), `document_offsets.bin`,
`row_offsets.bin` (int64), `manifest.json`, and the tokenizer.

    python train/pack.py --input_dir runs/mine/encoded --output_dir runs/mine/packed_1024 --seq_len 1024
"""

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from tqdm import tqdm

from zh_modernbert.tokenization_zh_modernbert import SPECIAL_TOKENS
from zh_modernbert.train.cli import BaseSettings, InputError, run, setting
from zh_modernbert.train.encode import EncodedCorpus, load_arrays, load_encoded
from zh_modernbert.train.files import output_folder, write_json

CLS, SEP = SPECIAL_TOKENS.index("[CLS]"), SPECIAL_TOKENS.index("[SEP]")


@dataclass
class Settings(BaseSettings):
    input_dir: str = setting(help="encoded folder to read")
    output_dir: str = setting(help="packed folder to write")
    seq_len: int = setting(1024, "most tokens of a row", least=8, most=1 << 20)
    seed: int = setting(0, "of the documents' and the rows' order", least=0)
    mixture: dict[str, float] = setting(
        {}, "share of the tokens per source; sources left out are not used; empty keeps all as it is"
    )


def cut(starts: np.ndarray, longest: int) -> list[int]:
    """Where to cut a document of `len(starts)` tokens into pieces of at most `longest`: bounds from 0 to the end.

    Cuts fall before a word; inside one only where the word alone is longer than `longest`.
    """
    bounds = [0]
    while len(starts) - bounds[-1] > longest:
        last = bounds[-1] + longest
        words = np.flatnonzero(starts[bounds[-1] + 1 : last + 1])
        bounds.append(bounds[-1] + 1 + int(words[-1]) if len(words) else last)
    return [*bounds, len(starts)]


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Rows of indices into `lengths`, each row's sum at most `capacity`.

    Longest first, each into the fullest row that still has room (best-fit decreasing, Johnson 1974). The rows with a given room
    are a stack, and an integer with a bit for each room that occurs finds the fullest one.
    """
    rows: list[list[int]] = []
    rows_with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    occurring = 0
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        fitting = occurring >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                occurring &= ~(1 << room)
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        rows_with_room[room - length].append(row)
        occurring |= 1 << (room - length)
    return rows


def mix(corpus: EncodedCorpus, mixture: dict[str, float], generator: np.random.Generator) -> np.ndarray:
    """Indices of whole documents, in random order, whose tokens come from the sources in the given shares.

    No document is used twice: the source that has least for its share is used up, the others give a part.

    Raises:
        InputError: a source is unknown, or the shares are not above 0.
    """
    order = generator.permutation(len(corpus.sources))
    if not mixture:
        return order
    names = corpus.manifest["source_names"]
    for name, share in mixture.items():
        if name not in names or not 0 < share < math.inf:
            raise InputError(f"mixture: {name}={share}: a share is above 0, and known sources are {', '.join(names)}")
    lengths, sources = np.diff(corpus.offsets), np.asarray(corpus.sources)
    tokens = {name: int(lengths[sources == names.index(name)].sum()) for name in mixture}
    unit = min(tokens[name] / share for name, share in mixture.items())
    keep = np.zeros(len(order), dtype=bool)
    for name, share in mixture.items():
        own = order[sources[order] == names.index(name)]
        keep[own[np.cumsum(lengths[own]) <= unit * share + 0.5]] = True
    return order[keep[order]]


@dataclass(frozen=True)
class PackedRows:
    """A memory-mapped packed folder."""

    input_ids: np.ndarray
    word_starts: np.ndarray
    document_offsets: np.ndarray
    row_offsets: np.ndarray
    manifest: dict
    tokenizer_dir: Path

    def __len__(self) -> int:
        return len(self.row_offsets) - 1

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The row's token ids, its word starts, and the bounds of its documents from 0 (its `cu_seqlens`)."""
        bounds = self.document_offsets[self.row_offsets[index] : self.row_offsets[index + 1] + 1]
        tokens = slice(int(bounds[0]), int(bounds[-1]))
        return self.input_ids[tokens], self.word_starts[tokens], np.asarray(bounds - bounds[0])


def load_packed(folder: str | Path) -> PackedRows:
    """The packed rows in a folder; see `load_arrays` for what it raises."""
    return load_arrays(folder, "packed", PackedRows)


def pieces(corpus: EncodedCorpus, documents: np.ndarray, longest: int) -> np.ndarray:
    """`(pieces, 2)` token bounds: every document whole, or cut where it has more than `longest` tokens."""
    bounds = []
    for document in documents.tolist():
        start, end = int(corpus.offsets[document]), int(corpus.offsets[document + 1])
        if end - start <= longest:
            bounds.append((start, end))
        else:
            edges = cut(np.asarray(corpus.word_starts[start:end]), longest)
            bounds.extend((start + a, start + b) for a, b in pairwise(edges))
    return np.array(bounds, dtype=np.int64).reshape(-1, 2)


def row_documents(corpus: EncodedCorpus, row: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Token ids and word starts of each document of a row, with its special tokens."""
    for start, end in row.tolist():
        ids = np.concatenate(([CLS], corpus.input_ids[start:end], [SEP])).astype(corpus.input_ids.dtype)
        starts = np.concatenate(([1], corpus.word_starts[start:end], [1])).astype(np.uint8)
        starts[1] = 1  # a piece may begin inside a word that is longer than a row
        yield ids, starts


def main(settings: Settings) -> dict:
    corpus = load_encoded(settings.input_dir)
    generator = np.random.default_rng(settings.seed)
    documents = mix(corpus, settings.mixture, generator)
    bounds = pieces(corpus, documents, settings.seq_len - 2)
    if not len(bounds):
        raise InputError(f"{settings.input_dir}: an empty corpus: no documents to pack")
    rows = best_fit_decreasing(np.diff(bounds)[:, 0] + 2, settings.seq_len)
    # Documents lie in the order of their length within a row; what a model sees first should not depend on that.
    rows = [generator.permutation(rows[index]) for index in generator.permutation(len(rows))]
    document_offsets, row_offsets = [0], [0]
    with output_folder(settings.output_dir, settings) as folder:
        with open(folder / "input_ids.bin", "wb") as ids_file, open(folder / "word_starts.bin", "wb") as starts_file:
            for row in tqdm(rows, desc=f"pack {settings.seq_len}", unit=" rows"):
                for ids, starts in row_documents(corpus, bounds[row]):
                    ids.tofile(ids_file)
                    starts.tofile(starts_file)
                    document_offsets.append(document_offsets[-1] + len(ids))
                row_offsets.append(len(document_offsets) - 1)
        np.array(document_offsets, dtype=np.int64).tofile(folder / "document_offsets.bin")
        np.array(row_offsets, dtype=np.int64).tofile(folder / "row_offsets.bin")
        shutil.copytree(corpus.tokenizer_dir, folder / "tokenizer")
        tokens = document_offsets[-1]
        counts = {
            "rows": len(rows),
            "documents": len(documents),
            "cut_documents": int((np.diff(corpus.offsets)[documents] > settings.seq_len - 2).sum()),
            "tokens": tokens,
            "fill": round(tokens / (len(rows) * settings.seq_len), 5),
        }
        manifest = {
            "kind": "packed",
            "seq_len": settings.seq_len,
            "seed": settings.seed,
            **counts,
            "vocab_size": corpus.manifest["vocab_size"],
            "tokenizer": corpus.manifest["tokenizer"],
            "arrays": {
                "input_ids": [corpus.input_ids.dtype.name, tokens],
                "word_starts": ["uint8", tokens],
                "document_offsets": ["int64", len(document_offsets)],
                "row_offsets": ["int64", len(row_offsets)],
            },
        }
        write_json(folder / "manifest.json", manifest)
    return {**counts, "seq_len": settings.seq_len, "output_dir": settings.output_dir}


if __name__ == "__main__":
    run(main, Settings)
