"""Retrieval of long documents: the Chinese part of MLDR (https://huggingface.co/datasets/Shitao/MLDR), and of NanoMLDR.

MLDR has `corpus.jsonl.gz` (docid, text) and a file a split (query_id, query, positive_passages). NanoMLDR has `corpus`,
`queries` (_id, text) and `qrels` (query-id, corpus-id).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from zh_modernbert.eval.tasks.hub import download
from zh_modernbert.eval.tasks.retrieval import Retrieval, with_answers
from zh_modernbert.eval.tasks.tables import find_file
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.corpus.lines import read_jsonl


class Source(NamedTuple):
    """Where the files of a set are: a folder of the set's own below `data_dir`, and a repository on the Hub."""

    folder: str
    repository: str


SOURCES = {
    "mldr_zh": Source("mldr-v1.0-zh", "Shitao/MLDR"),
    "nanomldr_zh": Source("nanomldr-zh", "hakari-bench/NanoMLDR"),
}


def rows_of(name: str, part: str, data_dir: str, from_hub: bool) -> Iterable[dict]:
    """The rows of a file, or of its counterpart on the Hub.

    Raises:
        InputError: it is missing, or cannot be loaded.
    """
    source = SOURCES[name]
    if not from_hub:
        below = Path(data_dir) / source.folder
        path = find_file((below if below.is_dir() else Path(data_dir)) / f"{part}.jsonl")
        return (values for _, values in read_jsonl(path))
    if name == "nanomldr_zh":
        return map(dict, download(source.repository, source.repository, part, split="zh"))
    file = f"hf://datasets/{source.repository}/{source.folder}/{part}.jsonl.gz"
    return map(dict, download(file, "json", data_files=file, split="train"))


def read_mldr(name: str, data_dir: str, split: str, from_hub: bool) -> Retrieval:
    """The queries of a split with their documents among all.

    Raises:
        InputError: a file is missing or lacks a field.
    """
    found = Retrieval({}, {}, {})
    try:
        if name == "nanomldr_zh":
            found.corpus = {str(row["_id"]): row["text"] for row in rows_of(name, "corpus", data_dir, from_hub)}
            found.queries = {str(row["_id"]): row["text"] for row in rows_of(name, "queries", data_dir, from_hub)}
            pairs = [(row["query-id"], row["corpus-id"]) for row in rows_of(name, "qrels", data_dir, from_hub)]
        else:
            found.corpus = {str(row["docid"]): row["text"] for row in rows_of(name, "corpus", data_dir, from_hub)}
            asked = [*rows_of(name, split, data_dir, from_hub)]
            found.queries = {str(row["query_id"]): row["query"] for row in asked}
            pairs = [(row["query_id"], passage["docid"]) for row in asked for passage in row["positive_passages"]]
    except (KeyError, TypeError) as error:
        raise InputError(f"{name}: a row of its files has no field {error}") from error
    for query, document in pairs:
        if str(query) not in found.queries or str(document) not in found.corpus:
            raise InputError(f"{name}: {query!r} is to find {document!r}, and there is no text of one of them")
        found.relevant.setdefault(str(query), set()).add(str(document))
    return with_answers(found, name)
