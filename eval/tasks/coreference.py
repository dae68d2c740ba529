"""Documents with clusters of mentions, from CoNLL-2012 and JSON Lines files.

Whatever a file looks like, a row is `id`, `text` and `clusters`: lists of mentions `(start, end)`, by characters, with the end
excluded. JSON Lines rows are that already, or have `sentences` (lists of words) and `clusters` of `[first, last]` words, as
others write OntoNotes. Words are joined without spaces, but between two of ASCII.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from zh_modernbert.eval.tasks.rows import BadRows, Row
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.corpus.lines import read_jsonl, read_lines
from zh_modernbert.train.corpus.tables import find_file, form_of

BEGIN = re.compile(r"#begin document \((.*?)\);?(?: part (\d+))?")
WORD = 3  # the column of CoNLL-2012 that holds it; clusters are in the last
Mention = tuple[int, int]


def joined(words: list[str]) -> tuple[str, list[Mention]]:
    """The text of words, and where each stands in it."""
    text, places = "", []
    for word in words:
        if text and word and text[-1].isascii() and word[0].isascii() and text[-1].isalnum() and word[0].isalnum():
            text += " "
        places.append((len(text), len(text) + len(word)))
        text += word
    return text, places


def of_words(words: list[str], clusters: list[list[Mention]]) -> dict:
    """Text and clusters by characters, of clusters by words whose last one is included."""
    text, places = joined(words)
    return {
        "text": text,
        "clusters": [[(places[first][0], places[last][1]) for first, last in cluster] for cluster in clusters],
    }


def clusters_of_column(cells: list[str]) -> list[list[Mention]]:
    """The clusters of a column such as `(0|(1)`, `-`, `0)`, by words.

    Raises:
        ValueError: a mention ends that did not begin, or does not end.
    """
    found, opened = defaultdict(list), defaultdict(list)
    for place, cell in enumerate(cells):
        for part in cell.split("|") if cell not in ("-", "_", "*") else ():
            name = part.strip("()")
            if not name.isdigit():
                raise ValueError(f"{cell!r} is no mark of mentions")
            if part.startswith("("):
                opened[name].append(place)
            if part.endswith(")"):
                if not opened[name]:
                    raise ValueError(f"a mention of cluster {name} ends that did not begin")
                found[name].append((opened[name].pop(), place))
    if unclosed := [name for name, places in opened.items() if places]:
        raise ValueError(f"a mention of cluster {unclosed[0]} does not end")
    return [sorted(cluster) for cluster in found.values()]


def read_conll(path: Path, bad_rows: BadRows) -> Iterator[Row]:
    """A row a document; the number is that of its first line."""
    start, identity, words, cells = 0, "", [], []
    for number, line in read_lines(path):
        if begun := BEGIN.match(line):
            start, identity, words, cells = number, f"{begun[1]}#{begun[2] or 0}", [], []
        elif line.startswith("#end document") and start:
            try:
                yield Row(str(path), start, {"id": identity, **of_words(words, clusters_of_column(cells))})
            except ValueError as error:
                bad_rows.report(path, start, f"document {identity}: {error}")
            start = 0
        elif line.strip() and not line.startswith("#"):
            columns = line.split()
            if not start or len(columns) <= WORD + 1:
                raise InputError(f"{path}, line {number}: not CoNLL-2012: {line[:80]!r} is no word of a document")
            words.append(columns[WORD])
            cells.append(columns[-1])
    if start:
        raise InputError(f"{path}: ends within document {identity}, which begins in line {start}")


def shape(values: dict) -> dict:
    """A row of an object of a JSON Lines file.

    Raises:
        ValueError, TypeError, KeyError, IndexError: it is none.
    """
    clusters = [[(int(start), int(end)) for start, end in cluster] for cluster in values["clusters"]]
    if "sentences" in values:
        row = of_words([str(word) for sentence in values["sentences"] for word in sentence], clusters)
    else:
        row = {"text": values["text"], "clusters": clusters}
    for start, end in (mention for cluster in row["clusters"] for mention in cluster):
        if not 0 <= start < end <= len(row["text"]):
            raise ValueError(f"the mention from {start} to {end} is outside the text")
    return row


def read_objects(path: Path, bad_rows: BadRows) -> Iterator[Row]:
    for number, values in read_jsonl(path, bad_rows):
        identity = str(values.get("id", values.get("doc_key", number)))
        try:
            yield Row(str(path), number, {"id": identity, **shape(values)})
        except (ValueError, TypeError, KeyError, IndexError) as error:
            bad_rows.report(path, number, f"no text with clusters of mentions: {type(error).__name__}: {error}")


def read_documents(path: str | Path, bad_rows: BadRows) -> list[Row]:
    """The documents of a file, by its ending: .jsonl or .json, else CoNLL-2012; plain or compressed.

    Raises:
        InputError: the file is missing, damaged, of another form, or has no document.
    """
    file = find_file(path)
    read = read_objects if form_of(file) in (".jsonl", ".json") else read_conll
    rows, identities = [], set()
    for row in read(file, bad_rows):
        mentions = [mention for cluster in row.values["clusters"] for mention in cluster]
        if not row.values["text"].strip():
            bad_rows.report(row.path, row.number, "text is empty")
        elif len(set(mentions)) < len(mentions):
            bad_rows.report(row.path, row.number, "a mention is there twice")
        elif row.values["id"] in identities:
            bad_rows.report(row.path, row.number, f"the id {row.values['id']!r} is there twice")
        else:
            identities.add(row.values["id"])
            rows.append(row)
    if not rows and not bad_rows.found:
        raise InputError(f"{file}: no document in it")
    return rows
