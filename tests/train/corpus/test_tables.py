"""Tables are read as they are, or not at all."""

import gzip
import zlib

import pytest
import zstandard

from zh_modernbert.eval.tasks.rows import BadRows
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.corpus.tables import find_file, read_table


def read_error(path, columns=("text", "label")) -> str:
    with pytest.raises(InputError) as error:
        read_table(path, list(columns))
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def test_tsv_does_not_quote(tmp_path):
    """Quotation marks in a review are part of it, also where only one is there."""
    path = tmp_path / "train.tsv"
    path.write_text('label\ttext\n1\t"很好"，他说\n0\t"没有\n1\t\'a\' ""b""\n', encoding="utf-8")
    assert read_table(path, ["text", "label"]) == [
        (2, {"label": "1", "text": '"很好"，他说'}),
        (3, {"label": "0", "text": '"没有'}),
        (4, {"label": "1", "text": '\'a\' ""b""'}),
    ]


def test_csv_quotes(tmp_path):
    """A quoted field may hold commas, quotes and line ends; a row's number is that of its last line."""
    path = tmp_path / "train.csv"
    path.write_text('label,text\n1,"很好,""真的""\n第二行"\n0,坏\n', encoding="utf-8")
    assert read_table(path, ["text"]) == [
        (3, {"label": "1", "text": '很好,"真的"\n第二行'}),
        (4, {"label": "0", "text": "坏"}),
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_json_lines(tmp_path, suffix):
    path = tmp_path / f"train{suffix}"
    path.write_text('{"text": "好", "label": 1}\n\n{"label": "x", "text": "坏\\n"}\n', encoding="utf-8")
    assert read_table(path, ["text"]) == [(1, {"text": "好", "label": 1}), (3, {"text": "坏\n", "label": "x"})]


CONTENTS = {".tsv": "text\tlabel\n好\t1\n", ".csv": "text,label\n好,1\n", ".jsonl": '{"text": "好", "label": "1"}\n'}


@pytest.mark.parametrize("suffix", CONTENTS)
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("form", ["plain", "byte_order_mark", "crlf"])
def test_every_form_compressed_and_as_windows_writes_it(tmp_path, suffix, compression, form):
    content = CONTENTS[suffix].encode("utf-8-sig" if form == "byte_order_mark" else "utf-8")
    if form == "crlf":
        content = content.replace(b"\n", b"\r\n")
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[compression]
    (tmp_path / f"dev{suffix}{compression}").write_bytes(compress(content))
    rows = [row for _, row in read_table(tmp_path / f"dev{suffix}{compression}", ["text", "label"])]
    assert rows == [{"text": "好", "label": "1"}]
    assert [row for _, row in read_table(tmp_path / f"dev{suffix}", ["text"])] == rows  # found without its ending


def test_the_plain_file_comes_first(tmp_path):
    (tmp_path / "a.tsv.gz").write_bytes(b"")
    assert find_file(tmp_path / "a.tsv").name == "a.tsv.gz"
    (tmp_path / "a.tsv").write_bytes(b"")
    assert find_file(tmp_path / "a.tsv").name == "a.tsv"
    with pytest.raises(InputError, match=r"b\.tsv: no such file"):
        find_file(tmp_path / "b.tsv")


@pytest.mark.parametrize(("suffix", "separator"), [(".tsv", "\t"), (".csv", ",")])
@pytest.mark.parametrize("columns", [1, 3])
def test_a_row_of_another_width_is_named(tmp_path, suffix, separator, columns):
    path = tmp_path / f"train{suffix}"
    bad = separator.join(["坏"] * columns)
    path.write_text(f"text{separator}label\n好{separator}1\n{bad}\n好{separator}1\n", encoding="utf-8")
    error = read_error(path)
    assert "line 3" in error
    assert "2 columns" in error


@pytest.mark.parametrize("suffix", CONTENTS)
def test_a_missing_column_is_named_with_those_there_are(tmp_path, suffix):
    path = tmp_path / f"train{suffix}"
    path.write_text(CONTENTS[suffix], encoding="utf-8")
    error = read_error(path, ["text", "stars"])
    assert "'stars'" in error
    assert "text, label" in error


def test_a_missing_field_of_one_line_is_named(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "好", "label": 1}\n{"text": "坏"}\n', encoding="utf-8")
    assert "line 2" in read_error(path)


@pytest.mark.parametrize("suffix", CONTENTS)
@pytest.mark.parametrize("compression", ["", ".gz"])
def test_what_is_not_utf8_is_an_error(tmp_path, suffix, compression):
    content = CONTENTS[suffix].encode("gbk")
    path = tmp_path / f"train{suffix}{compression}"
    path.write_bytes(gzip.compress(content) if compression else content)
    assert "not UTF-8" in read_error(path)


@pytest.mark.parametrize("suffix", CONTENTS)
@pytest.mark.parametrize("content", ["", "\n", "header"])
def test_an_empty_table_is_an_error(tmp_path, suffix, content):
    path = tmp_path / f"train{suffix}"
    if content == "header":
        content = "" if suffix == ".jsonl" else CONTENTS[suffix].splitlines()[0]
    path.write_text(content)
    assert "no rows" in read_error(path)


def test_an_open_quote_is_an_error(tmp_path):
    """Else the rest of the file would be one field."""
    path = tmp_path / "train.csv"
    path.write_text('text,label\n"好,1\n坏,0\n', encoding="utf-8")
    read_error(path)


@pytest.mark.parametrize("line", ["[1]", "{", "3"])
def test_a_line_that_is_no_object_is_named(tmp_path, line):
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "好", "label": 1}\n' + line + "\n", encoding="utf-8")
    assert "line 2" in read_error(path)


def compress_in_two(compression: str, content: bytes) -> list[bytes]:
    """A compressed file in two parts, the first of which gives back `content`; only the second says that this was all."""
    if compression == ".gz":
        compressor = zlib.compressobj(wbits=31)
        return [compressor.compress(content) + compressor.flush(zlib.Z_SYNC_FLUSH), compressor.flush()]
    compressor = zstandard.ZstdCompressor().compressobj()
    return [compressor.compress(content) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK), compressor.flush()]


@pytest.mark.parametrize("suffix", CONTENTS)
@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_a_file_that_breaks_off_is_an_error(tmp_path, suffix, compression):
    """Also where it does so after whole lines: some of the examples must not pass for all of them."""
    path = tmp_path / f"train{suffix}{compression}"
    first, second = compress_in_two(compression, CONTENTS[suffix].encode())
    path.write_bytes(first + second)
    assert len(read_table(path, ["text", "label"])) == 1
    path.write_bytes(first)
    assert "damaged" in read_error(path)


@pytest.mark.parametrize("suffix", CONTENTS)
@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_a_file_that_is_not_compressed_as_it_says_is_an_error(tmp_path, suffix, compression):
    path = tmp_path / f"train{suffix}{compression}"
    path.write_text(CONTENTS[suffix], encoding="utf-8")
    assert "damaged" in read_error(path)


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_compressed_parts_behind_one_another_are_one_file(tmp_path, compression):
    """What `cat a.zst b.zst` and parallel compressors write."""
    compress = gzip.compress if compression == ".gz" else zstandard.compress
    path = tmp_path / f"train.tsv{compression}"
    path.write_bytes(compress(b"text\tlabel\na\t1\n") + compress(b"b\t2\n"))
    assert [row["text"] for _, row in read_table(path, ["text"])] == ["a", "b"]


@pytest.mark.parametrize("name", ["train.txt", "train", "train.gz", "train.xlsx"])
def test_another_form_is_an_error(tmp_path, name):
    (tmp_path / name).write_bytes(b"text\n")
    assert ".tsv" in read_error(tmp_path / name)


def test_an_array_is_no_table(tmp_path):
    """Its line is reported as a bad row, and what a row would be is said."""
    (tmp_path / "train.json").write_text('[{"text": "a", "label": 1}]')
    with pytest.raises(InputError, match="no rows in it, which are JSON objects, one a line"):
        read_table(tmp_path / "train.json", ["text"], bad_lines=BadRows())
