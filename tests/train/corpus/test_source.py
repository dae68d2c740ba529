"""Documents from files of every kind, and from the Hub."""

import bz2
import gzip
import json
import lzma
import shutil
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from zh_modernbert.train import sources
from zh_modernbert.train.common.cli import InputError, parse
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
        {"id": "mine/a-2", "source": "mine", "text": "二"},
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
    assert [document["id"] for document in documents][:3] == ["x/a-1", "x/a-2", "x/y/a-1"]


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


@pytest.mark.parametrize("encoding", ["chinese-ish", "base64", "utf-16-le"])
def test_encodings_that_have_no_lines_are_refused(encoding):
    with pytest.raises(InputError, match=f"txt_encoding is '{encoding}'"):
        Source(path="a.txt", txt_encoding=encoding)


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
