"""A corpus is its shards, and every line of them a document."""

import json

import pytest
import zstandard

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.corpus.documents import corpus_shards, read_corpus, write_corpus


def make_documents(count: int) -> list[dict]:
    return [{"id": f"d{i}", "source": "s", "text": f"第{i}篇\n\u2028😀\x00", "script": "hans"} for i in range(count)]


@pytest.mark.parametrize(("count", "shards"), [(1, 1), (9, 1), (10, 1), (11, 2), (35, 4)])
def test_corpus_round_trip(tmp_path, monkeypatch, count, shards):
    monkeypatch.setattr("zh_modernbert.train.corpus.documents.DOCUMENTS_PER_SHARD", 10)
    documents = make_documents(count)
    counts = write_corpus(tmp_path, iter(documents))
    assert counts == {"documents": count, "characters": sum(len(document["text"]) for document in documents)}
    assert len(corpus_shards(tmp_path)) == shards
    assert list(read_corpus(tmp_path)) == documents


def test_failing_documents_leave_no_open_file(tmp_path):
    def broken():
        yield from make_documents(3)
        raise InputError("line 4")

    with pytest.raises(InputError, match="line 4"):
        write_corpus(tmp_path, broken())


@pytest.mark.parametrize("lines", [None, ""])
def test_empty_corpus(tmp_path, lines):
    if lines is not None:
        (tmp_path / "00000.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    with pytest.raises(InputError, match="empty corpus"):
        list(read_corpus(tmp_path))


def test_corpus_that_is_none(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        list(read_corpus(tmp_path / "nothing"))


@pytest.mark.parametrize("field", ["id", "source", "text"])
@pytest.mark.parametrize("value", [None, 5, ["a"]])
def test_documents_need_their_fields(tmp_path, field, value):
    lines = [make_documents(1)[0], make_documents(1)[0] | {field: value}]
    (tmp_path / "00000.jsonl.zst").write_bytes(zstandard.compress("\n".join(map(json.dumps, lines)).encode()))
    with pytest.raises(InputError, match=f"line 2.*{field}"):
        list(read_corpus(tmp_path))
