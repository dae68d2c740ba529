"""Which documents contain evaluation data, by 13-grams of Chinese characters and other words, folded in case and script.

A passage is a text in a record of an evaluation file. A document contains a passage if it has enough of the passage's 13-grams:
at least half of them and at least 8, or all where there are fewer than 8; 100 are always enough. So a name, a phrase of law or
a quotation in both drops nothing. Passages under 17 tokens are names and common speech, and are not looked for. The document is
dropped as a whole, because the answer or the rest of the source often stands beside the passage.
"""

import csv
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.files import files_below
from zh_modernbert.train.corpus.engine import CorpusWriter, Filter
from zh_modernbert.train.corpus.lines import PACKED, read_lines
from zh_modernbert.train.corpus.ngrams import ngram_hashes, tokens
from zh_modernbert.train.corpus.rules import apply_rule

NGRAM = 13
# Numbers of 13-grams: the fewest of a passage that is looked for; up to which a document needs all; how many are always enough.
FEWEST, SHORT, ENOUGH = 5, 8, 100
FIELDS = re.compile(r"\t|\|\||_!_")
TAG = re.compile(r"/[A-Za-z]{1,4}(?:\][A-Za-z]{1,4})?$")  # 中央/n, or the last word of a bracket: 电视台/n]nt
MOST_COLUMNS, LONGEST_TOKEN = 12, 24  # of a table of tokens; longer fields are texts
NOT_DATA = re.compile(r"readme|licen[cs]e|manifest|\.|.*\.md$", re.IGNORECASE)


def evaluation_files(paths: list[str]) -> list[Path]:
    """The files given, and the files in the folders given, without readmes, licences and the like (`NOT_DATA`).

    Raises:
        InputError: a path does not exist, or a folder has no such file.
    """
    files = []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        inside = files_below(path) if path.is_dir() else [path]
        kept = [file for file in inside if file == path or not NOT_DATA.match(file.name)]
        if not kept:
            raise InputError(f"{path}: no evaluation files in this folder")
        files += kept
    return files


def strings(value) -> Iterator[str]:
    """All texts inside a JSON value. A list of strings of at most 4 characters is a text cut into tokens, and is joined."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and all(isinstance(item, str) and len(item) <= 4 for item in value):
        yield "".join(value)
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def passages_of_lines(lines: list[str]) -> Iterator[str]:
    """The texts in lines of a text file, which has a blank line before and after them.

    Each field of a line is a text. Fields end at tabs, `||` and `_!_`. Words may carry tags (`我/r 来/v`), which go. Lines of
    few and short fields may be a table with a token a line (CoNLL, CoNLL-U), or short records with a label. Nothing tells
    these apart for certain. Such lines are therefore read as a table too: all that stands in the column of tokens is one
    text. A reading that is wrong gives a text that no document contains.
    """
    for line in lines:
        items = line.split()
        if len(items) > 1 and sum(bool(TAG.search(item)) for item in items) > 0.8 * len(items):
            yield "".join(TAG.sub("", item).removeprefix("[") for item in items)
        else:
            yield from FIELDS.split(line)
    rows = [line.split() for line in lines if not line.startswith("#")]
    rows = [row for row in rows if 2 <= len(row) <= MOST_COLUMNS and max(map(len, row[:2])) <= LONGEST_TOKEN]
    if len(rows) < 0.9 * len(lines):
        return
    numbered = all(row[0][0].isdecimal() for row in rows)  # CoNLL-U: the first column counts the tokens
    column = [row[int(numbered)] for row in rows]
    if all(len(token) > 1 and token[-1].isdecimal() for token in column):  # Weibo NER: 科0 技1, the place in the word
        column = [token[:-1] for token in column]
    yield "".join(column)


def read_passages(path: Path) -> Iterator[str]:
    """The texts in an evaluation file.

    In JSON (one value, or one a line) and Parquet these are all strings, in CSV all cells, in other files those of
    `passages_of_lines`.
    """
    form = [suffix for suffix in map(str.lower, path.suffixes) if suffix not in PACKED][-1:]
    if form == [".parquet"]:
        import pyarrow.parquet as pq

        yield from strings(pq.read_table(path).to_pylist())
        return
    lines = [line for _, line in read_lines(path)]
    if form in ([".json"], [".jsonl"]):
        try:
            values = [json.loads(line) for line in lines if line.strip()]
        except ValueError as error:
            try:
                values = json.loads("\n".join(lines))
            except ValueError:
                raise InputError(f"{path}: not valid JSON, as a whole or by lines: {error}") from error
        yield from strings(values)
    elif form == [".csv"]:
        for row in csv.reader(lines):
            yield from row
    else:
        for blank, block in itertools.groupby(lines, lambda line: not line.strip()):
            if not blank:
                yield from passages_of_lines(list(block))


def ngrams_of(passages: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(hashes of 13-grams, numbers of their passages) `(N,)`: the distinct 13-grams of each passage with at least `FEWEST`.

    Only such passages are numbered, from 0.
    """
    words, places = tokens("\n".join(passages))
    owners = np.searchsorted(np.cumsum([len(passage) + 1 for passage in passages]), places, side="right")
    hashes, inside = ngram_hashes(words, NGRAM), owners[NGRAM - 1 :] == owners[: 1 - NGRAM]
    hashes, owners = hashes[: len(inside)][inside], owners[: 1 - NGRAM][inside]
    order = np.lexsort((hashes, owners))
    hashes, owners = hashes[order], owners[order]
    new = np.append(True, (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1]))[: len(hashes)]
    hashes, owners = hashes[new], owners[new]
    enough = np.bincount(owners)[owners] >= FEWEST
    return hashes[enough], np.unique(owners[enough], return_inverse=True)[1]


def needed(ngrams: np.ndarray) -> np.ndarray:
    """How many 13-grams of each passage a document must have to contain it, given how many the passage has."""
    return np.minimum(np.minimum(np.maximum((ngrams + 1) // 2, SHORT), ngrams), ENOUGH)


def bit_of(hashes: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each hash its place in a table of bits: the index of a byte, and a mask with one bit set."""
    places = hashes & np.uint64(8 * len(table) - 1)
    return (places >> 3).astype(np.int64), np.uint8(1) << (places & 7).astype(np.uint8)


class Index(PipelineStep):
    """One task writes what `DecontaminationFilter` reads, an array a file.

    `hashes` are the 13-grams of all passages, sorted; `owners` are their passages. `needed` and `files` give for each passage
    how many 13-grams are needed, and its file. `bits` is a table with the bits of all `hashes` set: most other 13-grams have a
    bit that is not, and need no search.
    """

    type, name = "decontaminate", "index"

    def __init__(self, files: list[Path], folder: Path):
        super().__init__()
        self.files, self.folder = files, folder

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        hashes, owners, need, file_of = [], [], [], []
        passages = 0
        for number, file in enumerate(self.files):
            found, owner = ngrams_of(list(dict.fromkeys(read_passages(file))))
            hashes.append(found)
            owners.append((owner + passages).astype(np.uint32))
            need.append(needed(np.unique(owner, return_counts=True)[1]))
            file_of.append(np.full(len(need[-1]), number))
            passages += len(need[-1])
            self.stat_update(f"passages_in/{file}", value=len(need[-1]))
        hashes, owners = np.concatenate(hashes), np.concatenate(owners)
        order = np.argsort(hashes, kind="stable")
        bits = np.zeros(1 << (2 * len(hashes) + 1).bit_length(), np.uint8)  # 16 to 32 bits for each hash
        np.bitwise_or.at(bits, *bit_of(hashes, bits))
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = (hashes[order], owners[order], np.concatenate(need), np.concatenate(file_of), bits)
        for name, array in zip(("hashes", "owners", "needed", "files", "bits"), arrays, strict=True):
            np.save(self.folder / f"{name}.npy", array)


class DecontaminationFilter(Filter):
    """Drops documents that contain a passage. The reason is the first evaluation file with such a passage."""

    name = "decontaminate"

    def __init__(self, files: list[Path], index_folder: Path, folder: Path, rejects: CorpusWriter | None = None):
        super().__init__(folder, rejects)
        self.files, self.index_folder, self.index = files, index_folder, None

    def contained_in(self, text: str) -> np.ndarray:
        """The numbers of the evaluation files with a passage that the text contains."""
        if self.index is None:
            names = ("hashes", "owners", "needed", "files", "bits")
            self.index = [np.load(self.index_folder / f"{name}.npy", mmap_mode="r") for name in names]
        hashes, owners, needed, files, bits = self.index
        found = ngram_hashes(tokens(text)[0], NGRAM)
        byte, bit = bit_of(found, bits)
        found = np.unique(found[bits[byte] & bit > 0])
        first, last = (np.searchsorted(hashes, found, side) for side in ("left", "right"))
        hit = first < last
        passages = [owners[a:b] for a, b in zip(first[hit].tolist(), last[hit].tolist(), strict=True)]
        passages, shared = np.unique(np.concatenate([owners[:0], *passages]), return_counts=True)
        return np.unique(files[passages[shared >= needed[passages]]])

    def drop_reason(self, document: Document) -> str | None:
        files = apply_rule(self.contained_in, document.text)
        if not len(files):
            return None
        self.stat_update("contaminated")
        self.stat_update("contaminated_characters", value=len(document.text))
        self.stat_update(f"contaminated_in/{document.metadata['source']}")
        for file in files:
            self.stat_update(f"contaminated_by/{self.files[file]}")
        return str(self.files[files[0]])
