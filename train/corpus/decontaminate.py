"""Which documents contain evaluation data, by 13-grams of Chinese characters and other words, folded in case and script.

Evaluation data are passages: each text in each record of each file. A document contains a passage where it has at least half of
the passage's 13-grams, and 8 of them; of a shorter passage all; of a longer one 100 are enough. So a name, a phrase of law or a
quotation that both happen to have drops nothing. Passages under 17 tokens are not looked for: they are names and common speech.
Whole documents go: what stands around a passage is often its answer, or the rest of its source.
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
from datatrove.pipeline.filters.base_filter import BaseFilter

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.corpus.lines import read_lines
from zh_modernbert.train.corpus.ngrams import letter_table, mix, ngram_hashes
from zh_modernbert.train.corpus.source import PACKED

NGRAM = 13
FEWEST, SHORT, ENOUGH = 5, 8, 100  # 13-grams: of a passage that is looked for; whole passages up to here; of any passage
ALONE = 0x2E80  # from here on scripts have no spaces: each letter is a token
FIELDS = re.compile(r"\t|\|\||_!_")
TAGGED, TAG = (
    re.compile(r"\[?\S+/[A-Za-z]{1,4}(?:\][A-Za-z]{1,4})?"),
    re.compile(r"^\[(?=.)|/[A-Za-z]{1,4}(?:\][A-Za-z]{1,4})?$"),
)
MOST_COLUMNS, LONGEST_TOKEN = 12, 24  # of a table of tokens; longer fields are texts
NOT_DATA = re.compile(r"readme|licen[cs]e|manifest|\.|.*\.md$", re.IGNORECASE)


def evaluation_files(paths: list[str]) -> list[Path]:
    """The files given, and those in the folders given but for notes about them.

    Raises:
        InputError: there is none.
    """
    files = []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        inside = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        kept = [file for file in inside if file == path or not NOT_DATA.match(file.name)]
        if not kept:
            raise InputError(f"{path}: no evaluation files in this folder")
        files += kept
    return files


def strings(value) -> Iterator[str]:
    """All texts inside a JSON value; a list of tokens is one text."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and all(isinstance(item, str) and len(item) <= 4 for item in value):
        yield "".join(value)
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def passages_of_lines(lines: list[str]) -> Iterator[str]:
    """The texts in lines of a text file, which has a blank line before and after them.

    Each field of a line is a text; tabs, `||` and `_!_` part fields. Where words carry tags (`我/r 来/v`), the tags go. Lines
    of few and short fields may be a table with a token a line (CoNLL, CoNLL-U) or short records with a label. Nothing tells
    these apart for certain, so such lines are also read as a table: what stands in the column of tokens is one text. What is
    read wrongly is no text that a document contains.
    """
    for line in lines:
        items = line.split()
        if len(items) > 1 and sum(bool(TAGGED.fullmatch(item)) for item in items) > 0.8 * len(items):
            yield "".join(TAG.sub("", item) for item in items)
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
    """The texts in an evaluation file: JSON (one value, or one a line), Parquet, CSV, else what its lines hold."""
    form = [suffix for suffix in path.suffixes if suffix not in PACKED][-1:]
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


def tokens(text: str) -> tuple[np.ndarray, np.ndarray]:
    """(hashes, places in the text) `(T,)` of a text's tokens: Chinese characters, and whole words and numbers."""
    codes = letter_table(True)[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")]
    letter, word = codes > 0, (codes > 0) & (codes < ALONE)
    starts = letter.copy()
    starts[1:] &= ~(word[1:] & word[:-1])
    places, codes, starts = np.flatnonzero(starts), codes[letter].astype(np.uint64), np.flatnonzero(starts[letter])
    inside = np.arange(len(codes)) - np.repeat(starts, np.diff(np.append(starts, len(codes))))
    hashes = mix(codes | inside.astype(np.uint64) << 32)
    return np.add.reduceat(hashes, starts) if len(starts) else hashes, places


def ngrams_of(passages: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(13-grams, passages they are from) `(N,)`: the distinct ones of each passage that has enough; only such are counted."""
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
    """Of passages with so many 13-grams, how many a document has to have to contain them."""
    return np.minimum(np.minimum(np.maximum((ngrams + 1) // 2, SHORT), ngrams), ENOUGH)


def bit_of(hashes: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(byte, bit) of a table of bits for each hash."""
    places = hashes & np.uint64(8 * len(table) - 1)
    return (places >> 3).astype(np.int64), np.uint8(1) << (places & 7).astype(np.uint8)


class Index(PipelineStep):
    """One task writes the 13-grams of all passages, in order, with the passages they are from; for each passage how many are
    needed, and its file; and a table of bits, in which nearly all that is no such 13-gram misses.
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
        bits = np.zeros(1 << (2 * len(hashes) + 1).bit_length(), np.uint8)  # 16 to 32 bits for each
        np.bitwise_or.at(bits, *bit_of(hashes, bits))
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = (hashes[order], owners[order], np.concatenate(need), np.concatenate(file_of), bits)
        for name, array in zip(("hashes", "owners", "needed", "files", "bits"), arrays, strict=True):
            np.save(self.folder / f"{name}.npy", array)


class DecontaminationFilter(BaseFilter):
    """Drops what contains a passage; the reason is the first evaluation file that has one."""

    name = "decontaminate"

    def __init__(self, files: list[Path], folder: Path, exclusion_writer=None):
        super().__init__(exclusion_writer)
        self.files, self.folder, self.index = files, folder, None

    def contained_in(self, text: str) -> np.ndarray:
        """The numbers of the evaluation files of which a passage is in the text."""
        if self.index is None:
            names = ("hashes", "owners", "needed", "files", "bits")
            self.index = [np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in names]
        hashes, owners, needed, files, bits = self.index
        found = ngram_hashes(tokens(text)[0], NGRAM)
        byte, bit = bit_of(found, bits)
        found = np.unique(found[bits[byte] & bit > 0])
        first, last = (np.searchsorted(hashes, found, side) for side in ("left", "right"))
        hit = first < last
        passages = [owners[a:b] for a, b in zip(first[hit].tolist(), last[hit].tolist(), strict=True)]
        passages, shared = np.unique(np.concatenate([owners[:0], *passages]), return_counts=True)
        return np.unique(files[passages[shared >= needed[passages]]])

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        files = self.contained_in(doc.text)
        if not len(files):
            return True
        self.stat_update("contaminated")
        self.stat_update("contaminated_characters", value=len(doc.text))
        self.stat_update(f"contaminated_in/{doc.metadata['source']}")
        for file in files:
            self.stat_update(f"contaminated_by/{self.files[file]}")
        return False, str(self.files[files[0]])
