"""Queries, documents and which belong together: T2Ranking's files, or a table of labelled pairs.

T2Ranking has `queries.*.tsv` (qid, text), `collection.tsv` (pid, text), and qrels: (qid, pid), or as TREC has them, (qid, -,
pid, relevance).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from zh_modernbert.eval.tasks.rows import Row
from zh_modernbert.eval.tasks.tables import find_file
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.corpus.lines import read_lines

HEADERS = {"qid", "pid", "query-id", "id", "_id"}


@dataclass
class Retrieval:
    """Texts of queries and documents by their ids, and the documents that are right for each query."""

    queries: dict[str, str]
    corpus: dict[str, str]
    relevant: dict[str, set[str]]


def cells_of(path: str, counts: tuple[int, ...]) -> Iterator[tuple[str, list[str]]]:
    """(where it stands, cells) of the lines of a tab-separated file, without its header.

    Raises:
        InputError: a line has not one of `counts` cells.
    """
    file = find_file(path)
    for number, line in read_lines(file):
        cells = line.split("\t", max(counts) - 1)
        if number == 1 and cells[0] in HEADERS:
            continue
        if line.strip():
            if len(cells) not in counts:
                raise InputError(f"{file}, line {number}: {len(cells)} columns, not {' or '.join(map(str, counts))}")
            yield f"{file}, line {number}", cells


def texts_of(path: str) -> dict[str, str]:
    texts = {}
    for where, (name, text) in cells_of(path, (2,)):
        if name in texts or not text.strip():
            raise InputError(f"{where}: {f'the id {name!r} is there twice' if name in texts else 'text is empty'}")
        texts[name] = text
    return texts


def read_retrieval(queries: str, corpus: str, qrels: str, least: float) -> Retrieval:
    """The three files; queries without a right document are left out.

    Args:
        least: the lowest relevance that is right, where the qrels have one.

    Raises:
        InputError: a file is missing or of another form, qrels name what is not there, or nothing is relevant.
    """
    found = Retrieval(texts_of(queries), texts_of(corpus), {})
    for where, cells in cells_of(qrels, (2, 4)):
        query, document = cells[0], cells[-1] if len(cells) == 2 else cells[2]
        for name, known in ((query, found.queries), (document, found.corpus)):
            if name not in known:
                raise InputError(f"{where}: there is no text with the id {name!r}")
        if len(cells) == 2 or number(cells[3], where) >= least:
            found.relevant.setdefault(query, set()).add(document)
    return with_answers(found, qrels)


def number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"{where}: the relevance {text!r} is no number") from error


def of_pairs(rows: list[Row], least: float) -> Retrieval:
    """Labelled pairs: each first text is to find those second texts, of all there are, whose label with it is high enough.

    Raises:
        InputError: no label is.
    """
    found, ids = Retrieval({}, {}, {}), {}
    for row in rows:
        query, document = (ids.setdefault((name, row.values[name]), f"{name}-{len(ids)}") for name in ("text", "text_pair"))
        found.queries[query], found.corpus[document] = row.values["text"], row.values["text_pair"]
        if float(row.values["label"]) >= least:
            found.relevant.setdefault(query, set()).add(document)
    return with_answers(found, rows[0].path)


def with_answers(found: Retrieval, where: str) -> Retrieval:
    if not found.relevant:
        raise InputError(f"{where}: no document is relevant; give a lower min_relevance")
    return Retrieval({name: found.queries[name] for name in found.relevant}, found.corpus, found.relevant)
