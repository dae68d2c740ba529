"""Sources become one corpus folder, in tasks whose number does not show."""

import json
import os
import shutil
from pathlib import Path

import pytest

from zh_modernbert.train import pack, sources
from zh_modernbert.train.common.cli import InputError, parse
from zh_modernbert.train.common.files import read_json
from zh_modernbert.train.corpus.documents import read_corpus
from zh_modernbert.train.corpus.lines import read_jsonl
from zh_modernbert.train.corpus.source import Source, read_source
from zh_modernbert.train.sources import Settings, tasks_of

CONFIGS = Path(__file__).resolve().parents[2] / "train" / "configs"
TEXTS = ["第一篇。", "第二篇，\n有兩行。", "Third 😀"]


def write_rows(path, rows):
    """`rows` as JSONL."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def texts_of(**fields) -> list[str]:
    return [document["text"] for document in read_source(Source(**fields))]


@pytest.mark.parametrize("preset", sorted(CONFIGS.glob("*/data.yaml")), ids=lambda path: path.parent.name)
def test_presets_mix_the_sources_that_they_read(preset):
    """The stages run apart, so only here is it seen that the names of one are those of the other."""
    read = parse(Settings, [str(preset)], "sources").input
    mixture = parse(pack.Settings, [str(preset)], "pack").mixture
    assert all(source.licence for source in read)
    if mixture and not any(source.source_field for source in read):  # else the rows name their sources
        assert sorted(source.name for source in read) == sorted(mixture)
        assert sum(mixture.values()) == pytest.approx(1)


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


def stage(tmp_path, *inputs, **fields) -> tuple[dict, list[str]]:
    """What the stage returns for these inputs, and the texts that it writes."""
    result = sources.main(Settings(output_dir=str(tmp_path / "out"), input=list(inputs), **fields))
    return result, [document["text"] for document in read_corpus(tmp_path / "out")]


def test_a_broken_source_leaves_no_output(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"text": "一"}])
    (tmp_path / "b.jsonl").write_text("{")
    with pytest.raises(InputError, match=r"b\.jsonl, line 1: not valid JSON.* 1 of 2 lines cannot be read"):
        stage(tmp_path, str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"))
    (tmp_path / "b.jsonl").write_text("{\n" * 51 + '{"text": "一"}\n' * 49)
    write_rows(tmp_path / "a.jsonl", [{"text": "一"}] * 9900)
    with pytest.raises(InputError, match=r"b\.jsonl: 51 of its 100 lines cannot be read.*not valid JSON"):
        stage(tmp_path, str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"))
    assert not (tmp_path / "out").exists()


def test_a_bad_document_that_is_a_file_is_set_aside(tmp_path):
    """Of files of one document each, JSON or a line of text. More than one in a hundred stop the run."""
    for i in range(150):
        write_rows(tmp_path / "in" / f"{i}.json", [{"text": f"第{i}篇"}])
        (tmp_path / "in" / f"{i}.txt").write_text(f"第{i}行", encoding="utf-8")
    write_rows(tmp_path / "in" / "7.json", [{"text": None}])
    (tmp_path / "in" / "9.txt").write_bytes(b"\xe7\xac\xac\xff")
    result, texts = stage(tmp_path, str(tmp_path / "in"))
    assert (result["quarantined"], len(texts)) == (2, 298)
    files = [entry["file"] for _, entry in read_jsonl(tmp_path / "out" / "quarantine" / "00000.jsonl")]
    assert [Path(file).name for file in files] == ["7.json", "9.txt"]
    shutil.rmtree(tmp_path / "out")
    for i in (1, 2):
        (tmp_path / "in" / f"{i}.json").write_text("{")
    with pytest.raises(InputError, match=r"1\.json, .*not valid JSON.* 4 of 300 lines"):
        stage(tmp_path, str(tmp_path / "in"))


def test_rows_that_cannot_be_read_are_set_aside(tmp_path):
    """One of each kind: no JSON, no text, no number where a condition needs one, no UTF-8."""
    rows = [{"text": f"第{i}篇", "score": i} for i in range(500)]
    rows[100] = {"body": "?"}
    rows[200]["score"] = "many"
    path = write_rows(tmp_path / "a.jsonl", rows)
    lines = path.read_bytes().splitlines()
    lines[300], lines[400] = b"{", "文".encode("gbk")
    path.write_bytes(b"\n".join(lines))
    result, texts = stage(tmp_path, Source(path=str(path), where=["score >= 50"]))
    assert result["quarantined"] == 4
    assert texts == [f"第{i}篇" for i in range(50, 500) if i not in (100, 200, 300, 400)]
    entries = [entry for _, entry in read_jsonl(tmp_path / "out" / "quarantine" / "00000.jsonl")]
    assert [(entry["file"], entry["line"]) for entry in entries] == [(str(path), i) for i in (101, 201, 301, 401)]


def test_any_row_that_is_no_document_is_set_aside(tmp_path):
    """A number too large for a float, text that UTF-8 does not have, and a page on which a rule raises."""
    rows = [{"text": f"第{i}篇", "score": i} for i in range(200)]
    rows[7]["score"] = 10**400
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "a.txt").write_bytes(b"\n\n".join([b"+ZYc-"] * 150 + [b"+2AA-"]))
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    result, texts = stage(tmp_path, Source(path=str(tmp_path / "a.jsonl"), where=["score >= 0"]))
    assert (result["quarantined"], len(texts)) == (1, 199)
    shutil.rmtree(tmp_path / "out")
    result, texts = stage(tmp_path, Source(path=str(tmp_path / "a.txt"), txt_encoding="utf-7"))
    assert (result["quarantined"], len(texts)) == (1, 150)


def test_pages_on_which_a_rule_raises_are_set_aside(tmp_path, monkeypatch):
    """One in a hundred pages of a dump, with the page's id and the rule's name; not two."""

    def breaking(wikitext, script=None):
        if wikitext in bad:
            raise RecursionError("too\ndeep")
        return wikitext

    breaking.__name__ = "plain_text"
    monkeypatch.setattr("zh_modernbert.train.corpus.wikipedia.plain_text", breaking)
    page = "<page><title>题</title><ns>0</ns><id>{0}</id><revision><text>第{0}篇。\n\n\n</text></revision></page>\n"
    (tmp_path / "a.xml").write_text(f"<mediawiki>\n{''.join(page.format(i) for i in range(150))}</mediawiki>")
    bad = {"第7篇。\n\n\n"}
    result, texts = stage(tmp_path, str(tmp_path / "a.xml"))
    assert (result["quarantined"], len(texts)) == (1, 149)
    ((_, entry),) = read_jsonl(tmp_path / "out" / "quarantine" / "00000.jsonl")
    assert entry["reason"] == "page 7, plain_text: RecursionError: too deep"
    shutil.rmtree(tmp_path / "out")
    bad.add("第9篇。\n\n\n")
    with pytest.raises(InputError, match=r"page 7, plain_text: RecursionError: too deep\. 2 of 150 lines"):
        stage(tmp_path, str(tmp_path / "a.xml"))


def test_more_than_one_line_in_a_hundred_stops_the_run(tmp_path):
    """Of the lines, whatever the documents are made of."""
    lines = [f"第{i}行".encode() if i % 100 else b"" for i in range(1, 1000)]
    for bad in (8, 12):
        damaged = [line + b"\xff" * (line != b"" and i < bad) for i, line in enumerate(lines)]
        (tmp_path / "a.txt").write_bytes(b"\n".join(damaged))
        if bad == 8:
            result, texts = stage(tmp_path, Source(path=str(tmp_path / "a.txt"), txt_documents="line"))
            assert result["quarantined"] == 8
            assert len(texts) == 990 - 8
        else:
            with pytest.raises(InputError, match=r"a\.txt, line 1: not UTF-8.* 12 of 999 lines"):
                stage(tmp_path, Source(path=str(tmp_path / "a.txt"), txt_documents="line"))


def test_tasks_and_workers_do_not_show(tmp_path, monkeypatch):
    """Small files are read together and large ones apart; the documents come out in the same order, whoever reads them."""
    for i, count in enumerate((1, 2, 300, 2, 1)):
        write_rows(tmp_path / "in" / f"{i}.jsonl", [{"text": f"{i}之{j}"} for j in range(count)])
    monkeypatch.setattr(sources, "TASK_BYTES", 1000)
    source = Source(path=str(tmp_path / "in"))
    assert [[part.name for part in parts] for parts in tasks_of(source)] == [
        ["0.jsonl", "1.jsonl"],
        ["2.jsonl"],
        ["3.jsonl", "4.jsonl"],
    ]
    result, texts = stage(tmp_path, source)
    assert texts == texts_of(path=str(tmp_path / "in"))
    assert result["documents"] == len(texts) == 306
    files = read_json(tmp_path / "out" / "manifest.json")["files"]
    assert list(files) == ["00000-00000.jsonl.zst", "00001-00000.jsonl.zst", "00002-00000.jsonl.zst"]
    shutil.rmtree(tmp_path / "out")
    stage(tmp_path, source, workers=2)
    assert read_json(tmp_path / "out" / "manifest.json")["files"] == files


def test_most_documents_of_a_source_over_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "TASK_BYTES", 1)
    for i in range(4):
        write_rows(tmp_path / "in" / f"{i}.jsonl", [{"text": f"{i}之{j}"} for j in range(2)])
    result, texts = stage(tmp_path, Source(path=str(tmp_path / "in"), max_documents=3), str(tmp_path / "in" / "3.jsonl"))
    assert texts == ["0之0", "0之1", "1之0", "3之0", "3之1"]
    assert result["per_source"] == {"0": 2, "1": 1, "3": 2}


def test_a_corpus_of_another_stage_is_its_shards(tmp_path):
    """Not its reports, rejects or quarantine."""
    stage(tmp_path, str(write_rows(tmp_path / "a.jsonl", [{"text": "一"}, {"text": "二"}])))
    (tmp_path / "out" / "rejects").mkdir()
    write_rows(tmp_path / "out" / "rejects" / "00000.jsonl", [{"text": "bad"}])
    assert texts_of(path=str(tmp_path / "out")) == ["一", "二"]


def test_inputs_with_files_of_one_name_have_their_own_ids(tmp_path):
    for folder in ("x", "y", "z"):
        write_rows(tmp_path / folder / "a.jsonl", [{"text": folder}])
    write_rows(tmp_path / "z" / "b.jsonl", [{"text": "b"}])
    stage(tmp_path, str(tmp_path / "x" / "a.jsonl"), str(tmp_path / "y"), str(tmp_path / "z"))
    ids = [document["id"] for document in read_corpus(tmp_path / "out")]
    assert ids == ["a.jsonl-1", "2/a.jsonl-1", "3/a.jsonl-1", "3/b.jsonl-1"]


@pytest.mark.parametrize(
    "row", [{"url": 5}, {"url": {"a": 1}}, {"url": None}, {"id": [1]}, {"script": ["hans"]}, {"score": "9" * 999}]
)
def test_fields_of_other_types(tmp_path, row):
    path = write_rows(tmp_path / "a.jsonl", [{"text": "一", "score": 1} | row])
    assert stage(tmp_path, Source(path=str(path), where=["score > 0"]))[1] == ["一"]


def test_numbers_that_are_too_large(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x", "id": 1}\n' * 200 + '{"text": "y", "id": 1' + "0" * 400 + "}\n")
    result, texts = stage(tmp_path, Source(path=str(path), where=["id > 0"]))
    assert (result["quarantined"], len(texts)) == (1, 200)


def test_names_that_are_not_utf8(tmp_path):
    """Through the stage, in whose settings and manifest they are, too."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt"))
    path.write_text("x")
    result, texts = stage(tmp_path, str(path))
    assert (result["per_source"], texts) == ({"\\xff": 1}, ["x"])
    assert read_json(tmp_path / "out" / "settings.json")["input"][0]["path"] == str(path)
