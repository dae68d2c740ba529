"""Pairs of texts to learn embeddings from: read, chosen by their labels, and without those that are held out.

A row is (anchor, positive), (anchor, positive, negative) or, where labels are graded, (text, text, score).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets import load_dataset
from huggingface_hub import hf_hub_download

from zh_modernbert.train.common.cli import BaseSettings, InputError, describe, setting
from zh_modernbert.train.corpus.retrieval import read_retrieval
from zh_modernbert.train.corpus.tables import find_file, read_table

COLUMNS = {2: ["anchor", "positive"], 3: ["anchor", "positive", "negative"]}
GRADED = ["sentence1", "sentence2", "score"]


@dataclass
class PairSet(BaseSettings):
    """One data set: a table in a file or on the Hub, or queries, documents and what is relevant."""

    name: str = setting(help="what it is called in logs and results")
    path: str = setting("", "a table: .jsonl, .csv, .tsv, or with header any text file; plain or compressed")
    dataset: str = setting("", "a Hub dataset id: a table, or the home of the files of qrels")
    config: str = setting("", "configuration of the Hub dataset")
    split: str = setting("train", "split of the Hub dataset")
    header: list[str] = setting([], "names of the columns of a file that has none in its first line")
    separator: str = setting("\t", "of a file with header")
    anchor: str = setting("sentence1", "column of the first text")
    positive: str = setting("sentence2", "column of the text that belongs to it")
    negative: str = setting("", "column of a text that does not, where there is one")
    label: str = setting("", "column of the label, where there is one")
    loss: str = setting("infonce", "infonce: pairs that belong together; cosent: any, by their labels", ("infonce", "cosent"))
    positive_labels: list[str] = setting([], "infonce: the labels of pairs that belong together")
    negative_labels: list[str] = setting([], "infonce: the labels of pairs whose second text is a hard negative of the first")
    scores: dict[str, float] = setting({}, "cosent: label -> number, where labels are words; rows with others are left out")
    queries: str = setting("", "T2Ranking's form: the file of queries, a path or a name in the dataset")
    corpus: str = setting("", "its file of documents")
    qrels: str = setting("", "its file of what is relevant")
    min_relevance: float = setting(1.0, "lowest relevance that is right")

    def __post_init__(self):
        super().__post_init__()
        files = [self.queries, self.corpus, self.qrels]
        if any(files) != all(files) or bool(self.path) == bool(self.dataset or all(files)):
            raise InputError(f"{self.name}: give path, or dataset, or queries, corpus and qrels, which may be in a dataset")
        if self.label and self.loss == "infonce" and not self.positive_labels:
            raise InputError(f"{self.name}: it has labels; say by positive_labels which mean that two texts belong together")
        if self.loss == "cosent" and (not self.label or self.negative or all(files)):
            raise InputError(f"{self.name}: cosent needs pairs with a label, and takes no negative")

    def files(self) -> list[str]:
        """The local files that are read."""
        return [name for name in (self.path, *((self.queries, self.corpus, self.qrels) if not self.dataset else ())) if name]


# --- reading ---


def read_rows(source: PairSet) -> Iterator[tuple[str, dict]]:
    """(where it stands, row by the columns' names) of a table.

    Raises:
        InputError: it cannot be read, or lacks a column.
    """
    columns = [name for name in (source.anchor, source.positive, source.negative, source.label) if name]
    if source.path:
        path = find_file(source.path)
        yield from (
            (f"{path}, line {number}", row)
            for number, row in read_table(path, columns, tuple(source.header), source.separator if source.header else "")
        )
        return
    try:
        table = load_dataset(source.dataset, source.config or None, split=source.split)
    except Exception as error:  # datasets and huggingface_hub raise many kinds
        raise InputError(f"{source.dataset}: cannot be loaded: {describe(error)}") from error
    for column in columns:
        if column not in table.column_names:
            raise InputError(f"{source.dataset}: no column {column!r}; it has {', '.join(table.column_names)}")
    names = getattr(table.features[source.label], "names", None) if source.label else None
    for number, row in enumerate(map(dict, table), 1):
        if names and row[source.label] is not None:
            row[source.label] = names[row[source.label]] if row[source.label] >= 0 else ""  # -1: no label
        yield f"{source.dataset}, row {number}", row


def local_file(source: PairSet, name: str) -> str:
    """A file of T2Ranking's form, downloaded where it is one of a Hub dataset."""
    if not source.dataset:
        return name
    try:
        return hf_hub_download(source.dataset, name, repo_type="dataset")
    except Exception as error:  # huggingface_hub raises many kinds
        raise InputError(f"{source.dataset}: {name} cannot be had: {describe(error)}") from error


def read_relevant(source: PairSet) -> Iterator[tuple[str, str]]:
    queries, corpus, qrels = (local_file(source, name) for name in (source.queries, source.corpus, source.qrels))
    found = read_retrieval(queries, corpus, qrels, source.min_relevance)
    for query, documents in found.relevant.items():
        for document in sorted(documents):
            yield found.queries[query], found.corpus[document]


def score_of(source: PairSet, label: str, where: str) -> float | None:
    """The number that a label means; None where it is none of those that are asked for."""
    if source.scores:
        return source.scores.get(label)
    try:
        return float(label)
    except ValueError as error:
        raise InputError(f"{where}: label {label!r} is no number; give scores, such as {{entailment: 1}}") from error


# --- choosing ---


def key_of(first: str, second: str) -> tuple[str, ...]:
    """A pair, whichever text stands first."""
    return tuple(sorted((first.strip(), second.strip())))


def read_held_out(sources: list[PairSet]) -> set[tuple[str, ...]]:
    """The pairs that no training may see, whatever their labels."""
    found: set[tuple[str, ...]] = set()
    for source in sources:
        pairs = read_relevant(source) if source.qrels else (
            (str(row[source.anchor]), str(row[source.positive])) for _, row in read_rows(source)
        )  # fmt: skip
        found.update(key_of(*pair) for pair in pairs)
    return found


def labelled_rows(source: PairSet, dropped: Counter) -> Iterator[tuple[list[str], str, str]]:
    """(texts, label, where it stands) of each row with no empty text."""
    if source.qrels:
        yield from (([*pair], "", source.qrels) for pair in read_relevant(source))
        return
    columns = [source.anchor, source.positive, *([source.negative] if source.negative else [])]
    for where, row in read_rows(source):
        texts = ["" if row[column] is None else str(row[column]).strip() for column in columns]
        label = "" if not source.label or row[source.label] is None else str(row[source.label]).strip()
        if not all(texts):
            dropped["an empty text"] += 1
        elif source.label and not label:
            dropped["no label"] += 1
        else:
            yield texts, label, where


def rows_of(source: PairSet, held_out: set[tuple[str, ...]]) -> tuple[list[tuple], Counter]:
    """The rows to learn from, and how many were dropped for what reason.

    With `negative_labels`, a pair has one of its anchor's hard negatives in turn, where the anchor has any.

    Raises:
        InputError: the data set cannot be read, or nothing of it is left.
    """
    rows, negatives, dropped = [], {}, Counter()
    for texts, label, where in labelled_rows(source, dropped):
        if key_of(*texts[:2]) in held_out:
            dropped["held out"] += 1
        elif source.loss == "cosent":
            if (score := score_of(source, label, where)) is None:
                dropped[f"label {label}"] += 1
            else:
                rows.append((*texts, score))
        elif label in source.negative_labels:
            negatives.setdefault(texts[0], []).append(texts[1])
        elif source.label and label not in source.positive_labels:
            dropped[f"label {label}"] += 1
        else:
            rows.append(tuple(texts))
    if negatives:
        seen = Counter()
        for place, row in enumerate(rows):
            if len(row) == 2 and (found := negatives.get(row[0])):
                rows[place] = (*row, found[seen[row[0]] % len(found)])
                seen[row[0]] += 1
    if not rows:
        raise InputError(f"{source.name}: no pair is left of it; dropped: {dict(dropped) or 'none'}")
    return rows, dropped


def columns_of(source: PairSet, rows: list[tuple]) -> dict[str, dict[str, list]]:
    """Tables by their names: rows with a negative and rows without are two."""
    if source.loss == "cosent":
        return {source.name: dict(zip(GRADED, map(list, zip(*rows, strict=True)), strict=True))}
    tables = {}
    for width, names in COLUMNS.items():
        if chosen := [row for row in rows if len(row) == width]:
            name = source.name if width == 2 or len(chosen) == len(rows) else f"{source.name}_negatives"
            tables[name] = dict(zip(names, map(list, zip(*chosen, strict=True)), strict=True))
    return tables


def files_of(sources: list[PairSet]) -> list[Path]:
    """The local files that are read.

    Raises:
        InputError: one is missing.
    """
    return [find_file(name) for source in sources for name in source.files()]
