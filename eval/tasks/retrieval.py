"""Queries, documents and which belong together, of a table of labelled pairs."""

from zh_modernbert.eval.tasks.rows import Row
from zh_modernbert.train.corpus.retrieval import Retrieval, with_answers


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
