"""Documents from files of every kind, and from the Hub."""

import bz2
import gzip
import json
import lzma
import os
import re
import shutil
from pathlib import Path

import datasets
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from zh_modernbert.train import sources
from zh_modernbert.train.common.cli import InputError, parse
from zh_modernbert.train.corpus.documents import read_corpus
from zh_modernbert.train.corpus.lines import Quarantine, read_jsonl
from zh_modernbert.train.corpus.source import Source, parts_of, read_part, read_source
from zh_modernbert.train.sources import Settings

CONFIGS = Path(__file__).resolve().parents[2] / "train" / "configs"
TEXTS = ["第一篇。", "第二篇，\n有兩行。", "Third 😀"]
COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def write_rows(path, rows):
    """`rows` as JSONL or Parquet, compressed as the name says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.parent.mkdir(exist_ok=True)
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        path.write_bytes(COMPRESS.get(path.suffix, bytes)(data))
    return path


def texts_of(**fields) -> list[str]:
    return [document["text"] for document in read_source(Source(**fields))]


@pytest.mark.parametrize("suffix", [".parquet", ".json", *(f".jsonl{packed}" for packed in COMPRESS)])
def test_rows_become_documents(tmp_path, suffix):
    rows = [{"text": text, "id": f"d{i}", "url": f"http://x/{i}"} for i, text in enumerate(TEXTS)]
    path = write_rows(tmp_path / f"news{suffix}", rows)
    assert list(read_source(Source(path=str(path)))) == [
        {"id": f"d{i}", "source": "news", "text": text, "url": f"http://x/{i}"} for i, text in enumerate(TEXTS)
    ]


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ("blank_line", ["一\n二", "三", "四"]),
        ("line", ["一", "二", "三", "四"]),
        ("file", ["一\n二\n\n三\n \n\n四"]),
    ],
)
def test_text_files(tmp_path, suffix, ends, expected):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix]("\ufeff一\r\n二\r\n\r\n三\r\n \r\n\r\n四".encode()))
    assert texts_of(path=str(path), txt_documents=ends) == expected


def test_ids_of_text_documents_are_the_numbers_of_their_first_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("一\n二\n\n\n三\n", encoding="utf-8")
    for ends, expected in (("blank_line", "15"), ("line", "125"), ("file", "1")):
        documents = read_source(Source(path=str(path), txt_documents=ends))
        assert [document["id"] for document in documents] == [f"a.txt-{number}" for number in expected]


def test_folder_is_read_in_order_of_names(tmp_path):
    (tmp_path / "sub").mkdir()
    write_rows(tmp_path / "b.jsonl.zst", [{"text": "二"}])
    write_rows(tmp_path / "sub" / "c.parquet", [{"text": "三"}])
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("一".encode()))
    (tmp_path / "README.md").write_text("not a source")
    documents = list(read_source(Source(path=str(tmp_path))))
    assert [(document["source"], document["text"]) for document in documents] == [("a", "一"), ("b", "二"), ("c", "三")]


def test_names_ids_and_scripts_are_carried(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [{"body": "一", "id": 7, "script": "hant"}, {"body": "二", "text": "other"}])
    assert list(read_source(Source(path=str(path), name="mine", text_field="body"))) == [
        {"id": "7", "source": "mine", "text": "一", "script": "hant"},
        {"id": "mine/a.jsonl-2", "source": "mine", "text": "二"},
    ]
    by_source = list(read_source(Source(path=str(path), text_field="body", script="hans")))
    assert [document["script"] for document in by_source] == ["hans", "hans"], "what is known of the source wins"


def test_no_two_documents_of_a_run_have_one_id(tmp_path):
    """Files of one name are common: 00000.jsonl in every folder."""
    for folder in ("x", "x/y", "z"):
        (tmp_path / folder).mkdir()
        write_rows(tmp_path / folder / "a.jsonl", [{"text": "一"}, {"text": "二"}])
    documents = [d for name in ("x", "z") for d in read_source(Source(path=str(tmp_path / name), name=name))]
    assert len({document["id"] for document in documents}) == len(documents) == 6
    assert [document["id"] for document in documents][:3] == ["x/a.jsonl-1", "x/a.jsonl-2", "x/y/a.jsonl-1"]


def test_parts_are_read_apart(tmp_path):
    for name in "abc":
        write_rows(tmp_path / f"{name}.jsonl", [{"text": f"{name}{i}"} for i in range(3)])
    source = Source(path=str(tmp_path))
    parts = parts_of(source)
    assert [part.name for part in parts] == ["a.jsonl", "b.jsonl", "c.jsonl"]
    assert [document["text"] for document in read_part(source, parts[1])] == ["b0", "b1", "b2"]
    assert [document for part in parts for document in read_part(source, part)] == list(read_source(source))


# --- fields ---


def test_nested_fields(tmp_path):
    rows = [{"data": {"text": "一", "meta": {"title": "甲"}}}, {"data.text": "二", "data": {"meta": {"title": None}}}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    assert texts_of(path=str(path), text_field="data.text") == ["一", "二"]
    assert texts_of(path=str(path), text_field="data.text", title_field="data.meta.title") == ["甲\n一", "二"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"title": "题目", "text": "正文。"}, "题目\n正文。"),
        ({"title": " 题目 ", "text": "题目\n正文。"}, "题目\n正文。"),
        ({"title": "题目", "text": "题目是正文。"}, "题目\n题目是正文。"),
        ({"title": "", "text": "正文。"}, "正文。"),
        ({"title": 7, "text": "正文。"}, "正文。"),
        ({"text": "正文。"}, "正文。"),
    ],
)
def test_titles_are_first_lines(tmp_path, row, expected):
    path = write_rows(tmp_path / "a.jsonl", [row])
    assert texts_of(path=str(path), title_field="title") == [expected]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (["score >= 3", "score < 4"], "3 3.999"),
        (["score>3", "score<=4"], "3.999 4"),
        (["score == 4"], "4"),
        (["score != 4"], "2.5 3 3.999 5"),
        (["meta.quality == good"], "3 5"),
        (["meta.quality != good", "score > 3"], "3.999 4"),
        (["meta.quality ^= goo 4"], "3 5"),
        (["text ^= 3. 4 x"], "3.999 4"),
        ([], "2.5 3 3.999 4 5"),
    ],
)
def test_where(tmp_path, suffix, where, expected):
    """Bands that touch share nothing and leave nothing out."""
    scores = ["2.5", "3", "3.999", "4", "5"]
    rows = [{"text": score, "score": float(score), "meta": {"quality": "good" if score in "35" else "bad"}} for score in scores]
    path = write_rows(tmp_path / f"a{suffix}", rows)
    assert " ".join(texts_of(path=str(path), where=where)) == expected


def test_where_takes_numbers_that_come_as_text(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [{"text": "一", "score": "3.50"}, {"text": "二", "score": 10}])
    assert texts_of(path=str(path), where=["score >= 3", "score < 4"]) == ["一"]
    assert texts_of(path=str(path), where=["score > 9"]) == ["二"], "numbers compare as numbers"


def test_where_is_written_in_yaml(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [{"text": str(i), "score": i} for i in range(6)])
    (tmp_path / "preset.yaml").write_text(
        f"output_dir: {tmp_path}/out\ninput:\n- {{path: {path}, where: [score >= 3, score < 5]}}\n"
        f"- {{path: {path}, name: other, where: score == 0}}\n"
    )
    result = sources.main(parse(Settings, [str(tmp_path / "preset.yaml")], "sources"))
    assert result["per_source"] == {"a": 2, "other": 1}


def test_id_zero_is_an_id(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [{"text": "一", "id": 0}, {"text": "二", "id": 1}])
    assert [document["id"] for document in read_source(Source(path=str(path)))] == ["0", "1"]


def test_every_document_has_a_source(tmp_path):
    path = write_rows(tmp_path / ".hidden.jsonl", [{"text": "一"}])
    assert all(document["source"] for document in read_source(Source(path=str(path))))


@pytest.mark.parametrize(("most", "expected"), [(0, 5), (1, 1), (3, 3), (5, 5), (9, 5)])
def test_max_documents(tmp_path, most, expected):
    for name in ("a", "b"):
        write_rows(tmp_path / f"{name}.jsonl", [{"text": f"{name}{i}"} for i in range(2 if name == "a" else 3)])
    assert len(texts_of(path=str(tmp_path), max_documents=most)) == expected


def test_blank_texts_are_skipped_and_not_counted(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [{"text": ""}, {"text": " \n"}, {"text": "一"}, {"text": "二"}])
    assert texts_of(path=str(path), max_documents=1) == ["一"]


# --- what is refused ---


@pytest.mark.parametrize(
    ("suffix", "row"),
    [
        (suffix, row)
        for suffix in (".jsonl", ".parquet")
        for row in ({"body": "x"}, {"text": None}, {"text": 5}, {"text": ["a"]})
    ]
    + [(".jsonl", {})],
)
def test_row_without_text(tmp_path, suffix, row):
    # Parquet has one type a column, so all rows there are the bad one.
    rows = [row] * 2 if suffix == ".parquet" else [{"text": "ok"}, row]
    path = write_rows(tmp_path / f"a{suffix}", rows)
    with pytest.raises(InputError, match=f"line {1 if suffix == '.parquet' else 2}.*'text'") as caught:
        texts_of(path=str(path))
    assert str(path) in str(caught.value)
    assert all(key in str(caught.value) for key in row)


@pytest.mark.parametrize("score", [None, "good", [1], {"a": 1}])
def test_row_without_the_number_that_where_needs(tmp_path, score):
    path = write_rows(tmp_path / "a.jsonl", [{"text": "一", "score": 1}, {"text": "二", "score": score}])
    with pytest.raises(InputError, match=r"a\.jsonl, line 2: no number in field 'score'"):
        texts_of(path=str(path), where=["score > 0"])


@pytest.mark.parametrize("condition", ["score", "score > high", "score => 3", "> 3", "3 <= score", "score >=", "score ^="])
def test_meaningless_conditions_are_refused(condition):
    with pytest.raises(InputError, match="where"):
        Source(path="a", where=["score > 1", condition])


def test_encodings_of_text_files(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress("第一篇。\r\n\r\n第二篇。".encode("gb18030")))
    assert texts_of(path=str(path), txt_encoding="gb18030") == ["第一篇。", "第二篇。"]
    with pytest.raises(InputError, match=r"a\.txt\.gz, line 1: not UTF-8.*iconv.*txt_encoding"):
        texts_of(path=str(path))


@pytest.mark.parametrize(
    "encoding", ["chinese-ish", "base64", "utf-16-le", "utf-16-be", "undefined", "idna", "punycode", "unicode_escape", "gbk\0"]
)
def test_encodings_that_have_no_lines_are_refused(encoding):
    with pytest.raises(InputError, match=f"txt_encoding is {re.escape(repr(encoding))}"):
        Source(path="a.txt", txt_encoding=encoding)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("nothing.jsonl", None, "no such file"),
        ("a.csv", b"text\n", "unknown format"),
        ("a", b"text\n", "unknown format"),
        ("a.gz", gzip.compress(b"text\n", mtime=0), "unknown format"),
        ("a.parquet", b"PAR1 not really", "not a readable Parquet"),
        ("a.parquet", b"", "not a readable Parquet"),
        ("a.jsonl", b'{"text": "a"}\n{"text"\n', "line 2"),
        ("a.txt", "繁體".encode("big5"), "line 1"),
    ],
)
def test_unreadable_files(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        texts_of(path=str(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value)


def test_damaged_parquet(tmp_path):
    path = write_rows(tmp_path / "a.parquet", [{"text": f"{i}" * 50} for i in range(2000)])
    data = bytearray(path.read_bytes())
    data[8:200] = b"\xff" * 192  # pages lie behind the magic bytes; the footer stays whole
    path.write_bytes(data)
    with pytest.raises(InputError, match="Parquet"):
        texts_of(path=str(path))


def test_folder_without_sources(tmp_path):
    (tmp_path / "README.md").touch()
    with pytest.raises(InputError, match="nothing in this folder"):
        texts_of(path=str(tmp_path))


@pytest.mark.parametrize("fields", [{}, {"path": "a", "dataset": "b"}])
def test_either_path_or_dataset(fields):
    with pytest.raises(InputError, match="either path or dataset"):
        texts_of(**fields)


@pytest.mark.parametrize("field", ["script: klingon", "max_documents: -1"])
def test_meaningless_fields_are_refused(tmp_path, field):
    """Both would be ignored, which is worse than an error."""
    path = write_rows(tmp_path / "a.jsonl", [{"text": "一"}])
    (tmp_path / "preset.yaml").write_text(f"output_dir: {tmp_path}/out\ninput: [{{path: {path}, {field}}}]\n")
    with pytest.raises(InputError, match=field.split(":")[0]):
        sources.main(parse(Settings, [str(tmp_path / "preset.yaml")], "sources"))


def test_sources_named_by_the_rows(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [{"text": "一", "from": "news"}, {"text": "二", "from": "web"}, {"text": "三"}])
    documents = read_source(Source(path=str(path), source_field="from"))
    assert [next(documents)["source"], next(documents)["source"]] == ["news", "web"]
    with pytest.raises(InputError, match="line 3: no string field 'from'"):
        next(documents)


# --- a document with a line that cannot be read


@pytest.mark.parametrize("bad", [1, 2, 3])
def test_a_text_document_is_whole_or_quarantined(tmp_path, bad):
    """Wherever the line stands; the lines that go with it are counted and can be looked up."""
    lines = ["甲一", "甲二", "甲三", "", "乙"]
    encoded = [line.encode() + b"\xff" * (number == bad) for number, line in enumerate(lines, 1)]
    path = tmp_path / "a.txt"
    path.write_bytes(b"\n".join(encoded))
    quarantine = Quarantine(tmp_path / "quarantine" / "00000.jsonl")
    source = Source(path=str(path))
    assert [document["text"] for document in read_part(source, path, quarantine) if document] == ["乙"]
    assert quarantine.count == 3
    entries = [entry for _, entry in read_jsonl(quarantine.path)]
    rest = "\n".join(line for number, line in enumerate(lines[:3], 1) if number != bad)
    assert [(entry["line"], entry["text"]) for entry in entries] == [(bad, f"{lines[bad - 1]}\\xff" + "\n"), (1, rest)]
    path.write_bytes(b"\n".join([encoded[4], b"", *encoded[:3]]))
    assert [document["text"] for document in read_part(source, path, quarantine) if document] == ["乙"], "at a file's end, too"
    assert quarantine.count == 6


# --- names of files


def test_links_and_capitals(tmp_path):
    """A folder that is a link is read, once; endings are known in capitals, in a corpus too."""
    (tmp_path / "in").mkdir()
    write_rows(tmp_path / "elsewhere" / "b.jsonl", [{"text": "二"}])
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "same").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "A.TXT.GZ").write_bytes(gzip.compress("一".encode()))
    shutil.copy(
        write_rows(tmp_path / "c.jsonl.zst", [{"text": "三", "id": "1", "source": "x"}]), tmp_path / "in" / "C.JSONL.ZST"
    )
    assert texts_of(path=str(tmp_path / "in")) == ["一", "三", "二"]
    shutil.rmtree(tmp_path / "elsewhere")
    (tmp_path / "in" / "A.TXT.GZ").unlink()
    assert [document["text"] for document in read_corpus(tmp_path / "in")] == ["三"]
    with pytest.raises(InputError, match="link: a link to what is not there"):
        texts_of(path=str(tmp_path / "in"))


def test_files_that_only_differ_in_their_endings_have_their_own_ids(tmp_path):
    (tmp_path / "a.txt").write_text("一", encoding="utf-8")
    for suffix in (".jsonl", ".jsonl.gz", ".json", ".parquet"):
        rows = [{"text": "一"}, {"text": "二"}]
        path = write_rows(tmp_path / f"a{suffix}", rows)
    assert path.exists()
    ids = [document["id"] for document in read_source(Source(path=str(tmp_path)))]
    assert len({*ids}) == len(ids) == 9
    assert "a.jsonl.gz-2" in ids


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_ids_are_as_they_were_written(tmp_path, suffix):
    """Numbers beyond 64 bits keep their digits. What is no id, as an empty text or NaN, gives way to the place."""
    path = tmp_path / f"a{suffix}"
    ids = ["18446744073709551616", "18446744073709551617", "-9223372036854775809", '""', "null", "1.5"]
    path.write_text("".join(f'{{"id": {identity}, "text": "x"}}\n' for identity in ids))
    found = [document["id"] for document in read_source(Source(path=str(path)))]
    assert found == [*ids[:3], f"a{suffix}-4", f"a{suffix}-5", "1.5"]
    write_rows(tmp_path / "b.parquet", [{"id": float("nan"), "text": "x"}, {"id": 2.0, "text": "x"}])
    assert [document["id"] for document in read_source(Source(path=str(tmp_path / "b.parquet")))] == ["b.parquet-1", "2.0"]


def test_names_that_are_not_utf8(tmp_path):
    folder = os.fsencode(tmp_path) + b"/\xe9"
    os.mkdir(folder)
    for suffix, data in ((b".txt", b"x"), (b".jsonl", b'{"text": "x"}'), (b".jsonl.zst", zstandard.compress(b'{"text": "x"}'))):
        Path(os.fsdecode(folder + b"/\xff" + suffix)).write_bytes(data)
    shutil.copy(write_rows(tmp_path / "a.parquet", [{"text": "x"}]), folder + b"/\xfe.parquet")
    documents = list(read_source(Source(path=str(tmp_path))))
    assert [document["source"] for document in documents] == ["a", "\\xfe", "\\xff", "\\xff", "\\xff"]
    assert documents[1]["id"] == "\\xe9/\\xfe.parquet-1"
    assert orjson.dumps(documents)


# --- JSON that is not one object a line


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_file_may_hold_one_list(tmp_path, indent, suffix):
    path = tmp_path / f"a.json{suffix}"
    rows = [{"text": "一"}, 5, {"text": "二", "id": 7}]
    path.write_bytes(COMPRESS[suffix](json.dumps(rows, indent=indent).encode()))
    quarantine = Quarantine(tmp_path / "quarantine" / "00000.jsonl")
    documents = list(read_part(Source(path=str(path)), path, quarantine))
    assert [(document["id"], document["text"]) for document in documents] == [(f"{path.name}-1", "一"), ("7", "二")]
    assert (quarantine.count, quarantine.lines) == (1, 3)


def test_a_list_is_no_json_lines(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps([{"text": "一"}], indent=2))
    with pytest.raises(InputError, match=r"a\.jsonl, line 1: not valid JSON.*over several lines.*\.json"):
        texts_of(path=str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("indent", [None, 2])
def test_what_describes_a_folder_is_no_document(tmp_path, capsys, indent):
    """Dataset repositories have such files beside their data; they are left out with a word."""
    write_rows(tmp_path / "a.jsonl.zst", [{"text": "一"}])
    write_rows(tmp_path / "b.json", [{"text": "二"}])
    (tmp_path / "MANIFEST.json").write_text(json.dumps({"files": {"a.jsonl.zst": 1}, "version": 2}, indent=indent))
    (tmp_path / "README.md").touch()
    assert texts_of(path=str(tmp_path)) == ["一", "二"]
    assert "left out" in (told := capsys.readouterr().err)
    assert "MANIFEST.json, README.md" in told
    with pytest.raises(InputError, match="no string field 'text'; it has files, version"):
        texts_of(path=str(tmp_path / "MANIFEST.json"))


def test_nested_json(tmp_path):
    """As deep as it can be read, also where it is shown."""
    deep = '{"a": ' * 1000 + "1" + "}" * 1000
    (tmp_path / "a.jsonl").write_text(f'{{"text": "x"}}\n{deep}\n{{"text": "y", "b": {deep[:4000]}\n{{"text": "z"}}\n')
    quarantine = Quarantine(tmp_path / "quarantine" / "00000.jsonl")
    path = tmp_path / "a.jsonl"
    assert [document["text"] for document in read_part(Source(path=str(path)), path, quarantine)] == ["x", "z"]
    assert quarantine.count == 2


# --- columns of other types


def test_parquet_columns_of_other_types(tmp_path):
    """Only what is needed is read; a value that Python does not have costs its row."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array(["一", "二"]))
    late = pa.array([0, 1 << 58, 1], pa.timestamp("ms"))
    broken = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.array([0, 1, 2, 3], pa.int32()).buffers()[1], pa.py_buffer(b"a\xffb")]
    )
    table = pa.table({"text": texts, "other": late, "url": late, "kind": broken, "id": pa.array([b"a", None, b"b"])})
    path = tmp_path / "a.parquet"
    pq.write_table(table.drop_columns("url"), path)
    assert texts_of(path=str(path)) == ["一", "二", "一"]
    pq.write_table(table, path)
    quarantine = Quarantine(tmp_path / "quarantine" / "00000.jsonl")
    documents = list(read_part(Source(path=str(path)), path, quarantine))
    assert [(document["text"], "url" in document) for document in documents] == [("一", False), ("一", False)]
    assert (quarantine.count, quarantine.lines) == (1, 3)
    documents = list(read_part(Source(path=str(path), text_field="kind", name="x"), path, Quarantine(tmp_path / "q.jsonl")))
    assert [document["text"] for document in documents] == ["a", "b"]


@pytest.mark.parametrize("encoding", ["utf-32", "utf-32-be", "utf-16"])
def test_wide_encodings_are_known_by_their_byte_order_marks(tmp_path, encoding):
    mark = "\ufeff" if encoding.endswith("be") else ""
    (tmp_path / "a.txt").write_bytes(f"{mark}一\r\n\n二".encode(encoding))
    assert texts_of(path=str(tmp_path / "a.txt")) == ["一", "二"]


def test_null_is_called_null(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [{"text": None, "id": 1}])
    with pytest.raises(InputError, match="line 1: no string field 'text'; it is null"):
        texts_of(path=str(path))


def test_names_and_licences_are_one_line():
    for field in ("name", "licence", "path"):
        with pytest.raises(InputError, match=f"{field} is .* one line"):
            Source(**{"path": "a", field: "a\n# b"})


# --- the Hub ---


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder that stands for the Hub: the id org/name is its folder org/name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = tmp_path / "org" / "name" / "data"
    data.mkdir(parents=True)
    for shard in range(3):
        rows = [{"text": f"{shard}之{i}", "score": str(shard + i / 2), "url": f"http://x/{shard}/{i}"} for i in range(2)]
        write_rows(data / f"train-{shard}.parquet", rows)
    return tmp_path / "org" / "name"


def test_hub_datasets_are_streamed_shard_by_shard(hub):
    source = Source(dataset="org/name")
    assert parts_of(source) == [0, 1, 2]
    assert list(read_part(source, 1)) == [
        {"id": f"org/name/1-{i + 1}", "source": "org/name", "text": f"1之{i}", "url": f"http://x/1/{i}"} for i in range(2)
    ]
    assert [document["text"] for document in read_source(source)] == ["0之0", "0之1", "1之0", "1之1", "2之0", "2之1"]
    assert len({document["id"] for document in read_source(source)}) == 6


def test_hub_files_and_rows_can_be_chosen(hub):
    assert texts_of(dataset="org/name", data_files=["data/train-[12]*"], where=["score != 1"]) == ["1之1", "2之0", "2之1"]
    assert texts_of(dataset="org/name", max_documents=3) == ["0之0", "0之1", "1之0"]


def test_hub_configurations_and_splits(hub):
    shutil.rmtree(hub / "data")
    for config, split in (("cmn_Hani", "train"), ("cmn_Hani", "test"), ("jpn", "train")):
        (hub / config).mkdir(exist_ok=True)
        write_rows(hub / config / f"{split}.jsonl", [{"text": f"{config} {split}"}])
    card = "---\nconfigs:\n" + "".join(
        f"- config_name: {config}\n  data_files:\n"
        + "".join(f"  - {{split: {path.stem}, path: {config}/{path.name}}}\n" for path in sorted((hub / config).iterdir()))
        for config in ("cmn_Hani", "jpn")
    )
    (hub / "README.md").write_text(card + "---\n")
    assert texts_of(dataset="org/name", config="cmn_Hani") == ["cmn_Hani train"]
    assert texts_of(dataset="org/name", config="cmn_Hani", split="test") == ["cmn_Hani test"]
    for fields, said in (({}, "cmn_Hani"), ({"config": "jpn", "split": "test"}, "test"), ({"config": "deu"}, "deu")):
        with pytest.raises(InputError, match=f"org/name: cannot be loaded: .*{said}"):
            texts_of(dataset="org/name", **fields)


def test_hub_revision_is_passed_on(hub, monkeypatch):
    """The one thing that a local folder does not have."""
    calls, load_dataset = [], datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: calls.append(k) or load_dataset(*a, **k))
    texts_of(dataset="org/name", revision="a1b2c3")
    assert {call["revision"] for call in calls} == {"a1b2c3"}


@pytest.mark.parametrize("message", ["offline,\nor gated"])
def test_hub_dataset_that_cannot_be_loaded(monkeypatch, message):
    def gated(*_, **__):
        raise ConnectionError(message)

    monkeypatch.setattr(datasets, "load_dataset", gated)
    with pytest.raises(InputError, match="org/name: cannot be loaded: offline, or gated"):
        texts_of(dataset="org/name")


def test_hub_shard_that_cannot_be_read(hub):
    path = hub / "data" / "train-1.parquet"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="org/name: cannot be loaded"):
        texts_of(dataset="org/name")


def test_hub_row_without_text(hub):
    with pytest.raises(InputError, match="org/name, shard 0, line 1: no string field 'content'; it has text, score, url"):
        texts_of(dataset="org/name", text_field="content")
