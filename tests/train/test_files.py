"""Strict reading of plain and compressed files; outputs that exist whole or not at all."""

import gzip
import json
import random
from dataclasses import dataclass

import pytest
import zstandard

from zh_modernbert.train import files
from zh_modernbert.train.cli import InputError
from zh_modernbert.train.files import (
    corpus_shards,
    output_folder,
    read_corpus,
    read_json,
    read_jsonl,
    read_lines,
    require_folder,
    write_corpus,
    write_json,
)

COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


@dataclass
class Settings:
    output_dir: str
    name: str = "名"


def write(path, data: bytes):
    path.write_bytes(COMPRESS["" if path.suffix not in COMPRESS else path.suffix](data))
    return path


@pytest.mark.parametrize("suffix", COMPRESS)
class TestReading:
    def test_lines(self, tmp_path, suffix):
        path = write(tmp_path / f"a.txt{suffix}", "一\r\n二 \n\n 四".encode())
        assert list(read_lines(path)) == [(1, "一"), (2, "二 "), (3, ""), (4, " 四")]

    def test_byte_order_mark_is_dropped_only_at_the_start(self, tmp_path, suffix):
        path = write(tmp_path / f"a.txt{suffix}", "\ufeff一\n\ufeff二\n".encode())
        assert list(read_lines(path)) == [(1, "一"), (2, "\ufeff二")]

    def test_unicode_line_separators_end_no_line(self, tmp_path, suffix):
        path = write(tmp_path / f"a.txt{suffix}", "一\u2028二\x85三\x0c\n".encode())
        assert list(read_lines(path)) == [(1, "一\u2028二\x85三\x0c")]

    def test_jsonl_skips_blank_lines_and_keeps_numbers(self, tmp_path, suffix):
        path = write(tmp_path / f"a.jsonl{suffix}", '\ufeff{"text": "一"}\r\n\r\n{"text": "\\u4e8c"}'.encode())
        assert list(read_jsonl(path)) == [(1, {"text": "一"}), (3, {"text": "二"})]

    def test_empty_file(self, tmp_path, suffix):
        assert list(read_jsonl(write(tmp_path / f"a.jsonl{suffix}", b""))) == []

    @pytest.mark.parametrize("bad", [b"{", b'{"a": 1} x', b"[1, 2]", b'"text"', b"5", b"null", b"[" * 100_000])
    def test_bad_json_names_its_line(self, tmp_path, suffix, bad):
        path = write(tmp_path / f"a.jsonl{suffix}", b'{"text": "a"}\n\n' + bad + b'\n{"text": "b"}\n')
        with pytest.raises(InputError, match="line 3") as caught:
            list(read_jsonl(path))
        assert str(path) in str(caught.value)

    def test_bad_utf8_names_its_line(self, tmp_path, suffix):
        path = write(tmp_path / f"a.txt{suffix}", "一\n二\n".encode() + "三".encode("gbk") + b"\n")
        with pytest.raises(InputError, match="line 3: not UTF-8") as caught:
            list(read_lines(path))
        assert str(path) in str(caught.value)

    def test_missing_file(self, tmp_path, suffix):
        with pytest.raises(InputError, match="nothing"):
            list(read_lines(tmp_path / f"nothing.txt{suffix}"))


def test_several_compressed_parts_in_one_file(tmp_path):
    for suffix in (".gz", ".zst"):
        path = tmp_path / f"a.txt{suffix}"
        path.write_bytes(COMPRESS[suffix]("一\n".encode()) + COMPRESS[suffix]("二\n".encode()))
        assert [line for _, line in read_lines(path)] == ["一", "二"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.6, 0.999])
def test_truncated_file(tmp_path, suffix, share):
    generator = random.Random(0)
    lines = "".join(f"{generator.random()}\n" for _ in range(20_000)).encode()
    data = COMPRESS[suffix](lines)
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"a\.txt"):
        list(read_lines(path))


def test_truncated_zst_that_ends_between_lines(tmp_path):
    """A writer that was killed right after a flush: everything decompresses, but the frame has no end."""
    compressor = zstandard.ZstdCompressor().compressobj()
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(compressor.compress(b'{"text": "a"}\n') + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
    with pytest.raises(InputError, match=r"a\.jsonl\.zst"):
        list(read_jsonl(path))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_file_that_is_not_compressed(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    path.write_text("not compressed at all, whatever the name says\n")
    with pytest.raises(InputError, match=r"a\.txt"):
        list(read_lines(path))


def test_lone_surrogates_are_refused_where_they_are_read(tmp_path):
    """JSON can spell half a character. No stage can write it again, so the line is to blame."""
    path = write(tmp_path / "a.jsonl", b'{"text": "ok"}\n{"text": "\\ud800"}\n')
    with pytest.raises(InputError, match="line 2"):
        list(read_jsonl(path))


def test_json_round_trip_and_errors(tmp_path):
    write_json(tmp_path / "a.json", {"名": [1, None]})
    assert read_json(tmp_path / "a.json") == {"名": [1, None]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(InputError, match=r"b\.json"):
        read_json(tmp_path / "b.json")
    with pytest.raises(InputError, match="nothing"):
        read_json(tmp_path / "nothing.json")


def test_require_folder(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        require_folder(tmp_path / "nothing", "x")
    with pytest.raises(InputError, match=r"marker\.json"):
        require_folder(tmp_path, "marker.json")
    (tmp_path / "marker.json").touch()
    assert require_folder(tmp_path, "marker.json") == tmp_path


# --- output_folder ---


def contents(folder) -> dict:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def test_output_is_written_whole_with_its_settings(tmp_path):
    path = tmp_path / "deep" / "out"
    with output_folder(path, Settings(str(path))) as folder:
        (folder / "data").write_text("1")
        assert not path.exists()
    assert json.loads((path / "settings.json").read_text()) == {
        "stage": "test_files",
        "output_dir": str(path),
        "name": "名",
    }
    assert (path / "data").read_text() == "1"
    assert list(path.parent.iterdir()) == [path], "something else lies beside the output"


def write_then(error, path, settings=None):
    with output_folder(path, settings) as folder:
        (folder / "data").write_text("half")
        raise error


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt(), InputError("bad"), OSError(28, "disk full")])
@pytest.mark.parametrize("old", [False, True])
def test_nothing_is_left_after_an_exception(tmp_path, error, old):
    path = tmp_path / "out"
    if old:
        with output_folder(path, Settings("x")) as folder:
            (folder / "data").write_text("old")
    expected = InputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        write_then(error, path, Settings("x"))
    assert list(tmp_path.iterdir()) == ([path] if old else [])
    if old:
        assert contents(path)["data"] == "old"


def test_output_of_a_stage_is_replaced(tmp_path):
    for name in ("first", "second"):
        with output_folder(tmp_path / "out", Settings(name)) as folder:
            (folder / name).touch()
    assert sorted(contents(tmp_path / "out")) == ["second", "settings.json"]


def test_empty_folder_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    with output_folder(tmp_path / "out", Settings("x")):
        pass
    assert (tmp_path / "out" / "settings.json").is_file()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_foreign_output_is_refused(tmp_path, kind):
    path = tmp_path / "out"
    mine = path if kind == "file" else path / "thesis.txt"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("years of work")
    with pytest.raises(InputError, match="was not written by this stage"), output_folder(path, Settings("x")):
        raise AssertionError("never reached")
    assert mine.read_text() == "years of work"


def test_foreign_folder_with_the_temporary_name_is_not_deleted(tmp_path):
    mine = tmp_path / "out.tmp" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("years of work")
    try:
        with output_folder(tmp_path / "out", Settings("x")):
            pass
    except InputError:
        pass  # to refuse is as good as to write under another name
    assert mine.is_file()


@pytest.mark.parametrize("path", ["", "."])
def test_the_current_folder_as_output_is_an_input_error(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError), output_folder(path, Settings("x")):
        pass


@pytest.mark.parametrize("name", ["a" * 300, "file/out"], ids=["too long", "below a file"])
def test_impossible_output_is_an_input_error(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(InputError), output_folder(tmp_path / name, Settings("x")):
        pass


# --- corpora ---


def make_documents(count: int) -> list[dict]:
    return [{"id": f"d{i}", "source": "s", "text": f"第{i}篇\n\u2028😀\x00", "script": "hans"} for i in range(count)]


@pytest.mark.parametrize(("count", "shards"), [(1, 1), (9, 1), (10, 1), (11, 2), (35, 4)])
def test_corpus_round_trip(tmp_path, monkeypatch, count, shards):
    monkeypatch.setattr(files, "DOCUMENTS_PER_SHARD", 10)
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
        write(tmp_path / "00000.jsonl.zst", lines.encode())
    with pytest.raises(InputError, match="empty corpus"):
        list(read_corpus(tmp_path))


def test_corpus_that_is_none(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        list(read_corpus(tmp_path / "nothing"))


@pytest.mark.parametrize("field", ["id", "source", "text"])
@pytest.mark.parametrize("value", [None, 5, ["a"]])
def test_documents_need_their_fields(tmp_path, field, value):
    lines = [make_documents(1)[0], make_documents(1)[0] | {field: value}]
    write(tmp_path / "00000.jsonl.zst", "\n".join(map(json.dumps, lines)).encode())
    with pytest.raises(InputError, match=f"line 2.*{field}"):
        list(read_corpus(tmp_path))
