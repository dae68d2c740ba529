"""Documents from files of every kind, and from the Hub."""

import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from zh_modernbert.train import sources
from zh_modernbert.train.cli import InputError, parse
from zh_modernbert.train.files import read_corpus
from zh_modernbert.train.sources import Settings, Source, read_source

TEXTS = ["第一篇。", "第二篇，\n有兩行。", "Third 😀"]
COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def write_rows(path, rows):
    """`rows` as JSONL or Parquet, compressed as the name says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        path.write_bytes(COMPRESS.get(path.suffix, bytes)(data))
    return path


def texts_of(**fields) -> list[str]:
    return [document["text"] for document in read_source(Source(**fields))]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.gz", ".jsonl.zst", ".parquet"])
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
    for ends, expected in (("blank_line", ["a-1", "a-5"]), ("line", ["a-1", "a-2", "a-5"]), ("file", ["a-1"])):
        assert [document["id"] for document in read_source(Source(path=str(path), txt_documents=ends))] == expected


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
        {"id": "mine-2", "source": "mine", "text": "二"},
    ]
    by_source = list(read_source(Source(path=str(path), text_field="body", script="hans")))
    assert [document["script"] for document in by_source] == ["hans", "hans"], "what is known of the source wins"


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


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("nothing.jsonl", None, "no such file"),
        ("a.csv", b"text\n", "unknown format"),
        ("a", b"text\n", "unknown format"),
        ("a.gz", gzip.compress(b"text\n"), "unknown format"),
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
    with pytest.raises(InputError, match="in this folder"):
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


# --- the Hub ---


@pytest.fixture
def hub(monkeypatch):
    """Stands in for datasets.load_dataset: records the calls, and streams what `rows` yields."""

    class Hub:
        calls = []
        rows = staticmethod(lambda: iter([{"content": "一", "url": "http://x"}, {"content": "二", "id": "b"}]))

        def load_dataset(self, *arguments, **options):
            self.calls.append((arguments, options))
            return datasets.IterableDataset.from_generator(self.rows)

    fake = Hub()
    monkeypatch.setattr(datasets, "load_dataset", fake.load_dataset)
    return fake


def test_hub_datasets_are_streamed(hub):
    source = Source(dataset="org/name", config="zh", split="validation", text_field="content", max_documents=2)
    assert list(read_source(source)) == [
        {"id": "org/name-1", "source": "org/name", "text": "一", "url": "http://x"},
        {"id": "b", "source": "org/name", "text": "二"},
    ]
    assert hub.calls == [(("org/name", "zh"), {"split": "validation", "streaming": True})]


def test_hub_dataset_that_cannot_be_loaded(monkeypatch):
    def gated(*_, **__):
        raise ConnectionError("offline,\nor gated")

    monkeypatch.setattr(datasets, "load_dataset", gated)
    with pytest.raises(InputError, match="org/name: cannot be loaded: offline, or gated"):
        texts_of(dataset="org/name")


def test_hub_dataset_that_breaks_off(hub):
    def rows():
        yield {"text": "一"}
        raise ConnectionError("reset by peer")

    hub.rows = rows
    with pytest.raises(InputError, match="org/name"):
        texts_of(dataset="org/name")


# --- the stage ---


def test_corpus_and_counts(tmp_path, capsys):
    write_rows(tmp_path / "news.jsonl", [{"text": text} for text in TEXTS])
    (tmp_path / "web.txt").write_text("甲\n\n乙\n", encoding="utf-8")
    paths = [str(tmp_path / "news.jsonl"), Source(path=str(tmp_path / "web.txt"), name="網", licence="CC0")]
    result = sources.main(Settings(output_dir=str(tmp_path / "out"), input=paths))
    documents = list(read_corpus(tmp_path / "out"))
    assert [document["text"] for document in documents] == [*TEXTS, "甲", "乙"]
    assert result["documents"] == 5
    assert result["characters"] == sum(map(len, TEXTS)) + 2
    assert result["per_source"] == {"news": 3, "網": 2}
    saved = json.loads((tmp_path / "out" / "settings.json").read_text(encoding="utf-8"))
    assert [source["licence"] for source in saved["input"]] == ["", "CC0"]
    assert capsys.readouterr().out == "", "stdout is for the result"


def test_nothing_to_read(tmp_path):
    with pytest.raises(InputError, match="--input"):
        sources.main(Settings(output_dir=str(tmp_path / "out")))
    (tmp_path / "a.txt").write_text(" \n\n")
    with pytest.raises(InputError, match=r"a\.txt.*empty corpus"):
        sources.main(Settings(output_dir=str(tmp_path / "out"), input=[str(tmp_path / "a.txt")]))
    assert not (tmp_path / "out").exists()


def test_a_broken_source_leaves_no_output(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"text": "一"}])
    (tmp_path / "b.jsonl").write_text("{")
    with pytest.raises(InputError, match=r"b\.jsonl, line 1"):
        sources.main(Settings(output_dir=str(tmp_path / "out"), input=[str(tmp_path)]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]
