"""Each form of official files becomes the rows of its kind."""

import json
from pathlib import Path

import pytest

from zh_modernbert.eval.tasks.forms import BadRowError, entities_of_tags, read_files, shape_chid, shape_cluewsc
from zh_modernbert.eval.tasks.registry import Release
from zh_modernbert.eval.tasks.rows import BadRows
from zh_modernbert.train.common.cli import InputError


def read(folder: Path, name: str, content, **options) -> tuple[list[dict], list[str]]:
    """The rows of a file, and what is said of bad ones. A list is written as JSON Lines."""
    if not isinstance(content, str):
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in content)
    (folder / name).write_text(content, encoding="utf-8")
    bad_rows = BadRows()
    rows = read_files(folder, (name,), Release({}, **options), bad_rows)
    return [row.values for row in rows], bad_rows.found


def test_columns_by_our_names(tmp_path):
    columns = {"text": "keyword", "text_pair": "abst", "label": "label", "id": "id"}
    rows, _ = read(
        tmp_path, "a.json", [{"id": 7, "keyword": ["水", "火"], "abst": "论水", "label": 1, "more": 2}], columns=columns
    )
    assert rows == [{"id": 7, "text": "水 火", "text_pair": "论水", "label": "1"}]


@pytest.mark.parametrize(("separator", "given"), [("\t", ""), ("||", "||")])
def test_delimited_files_without_header(tmp_path, separator, given):
    columns = {"text": "a", "text_pair": "b", "label": "label"}
    lines = [["“好", "坏", "1"], ["一", "二"], ["一"], ["一", "二", "0", "x"]]
    text = "\n".join(separator.join(line) for line in lines) + "\n"
    rows, bad = read(tmp_path, "a.txt", text, columns=columns, header=("a", "b", "label"), separator=given)
    assert rows == [{"text": "“好", "text_pair": "坏", "label": "1"}, {"text": "一", "text_pair": "二"}]  # as tests are
    assert [reason.rpartition("line ")[2] for reason in bad] == ["3: 1 columns, not 3", "4: 4 columns, not 3"]


def wsc(text: str, first: tuple[str, int], second: tuple[str, int], **more) -> dict:
    target = {"span1_text": first[0], "span1_index": first[1], "span2_text": second[0], "span2_index": second[1]}
    return {"target": target, "text": text, **more}


def test_both_spans_are_marked_wherever_they_stand():
    text = "他说小王会来"
    assert shape_cluewsc(wsc(text, ("小王", 2), ("他", 0), label="true"), {}) == {"text": "[他]说_小王_会来", "label": "true"}
    assert shape_cluewsc(wsc(text, ("他", 0), ("小王", 2), id=3), {}) == {"id": 3, "text": "_他_说[小王]会来"}
    with pytest.raises(BadRowError, match="'小王' does not stand at 3, where '王会' stands"):
        shape_cluewsc(wsc(text, ("小王", 3), ("他", 0)), {})


def test_c3_is_a_question_a_row(tmp_path):
    questions = [
        {"question": "谁？", "choice": ["甲", "乙"], "answer": "乙"},
        {"question": "哪？", "choice": ["丙", "丁"], "id": 9},
    ]
    text = json.dumps([[["第一句", "第二句"], questions, "m1-1"], [["坏"]]], ensure_ascii=False, indent=1)
    rows, bad = read(tmp_path, "a.json", text, form="c3")
    passage = {"text": "第一句\n第二句"}
    assert rows == [
        {**passage, "question": "谁？", "choices": ["甲", "乙"], "label": "乙"},
        {**passage, "id": 9, "question": "哪？", "choices": ["丙", "丁"]},
    ]
    assert len(bad) == 1
    assert "line 2" in bad[0]


def test_chid_of_clue_has_its_answers_beside_it(tmp_path):
    (tmp_path / "dev_answer.json").write_text('{"#idiom1#": 1, "#idiom2#": 0, "#idiom9#": 5}')
    content = [{"content": ["甲#idiom1#乙", "丙#idiom2#"], "candidates": ["一心一意", "三心二意"]}]
    rows, _ = read(tmp_path, "dev.json", content, form="chid")
    assert rows == [
        {"passages": content[0]["content"], "candidates": content[0]["candidates"], "labels": {"#idiom1#": 1, "#idiom2#": 0}}
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "neither a JSON value nor one a line"), ("", "neither a JSON"), ("[1]", "expected a JSON object, got list")],
)
def test_damaged_answers_of_chid(tmp_path, content, said):
    (tmp_path / "dev_answer.json").write_text(content)
    with pytest.raises(InputError, match=rf"dev_answer\.json: {said}"):
        read(tmp_path, "dev.json", [{"content": ["甲#idiom1#乙"], "candidates": ["一心一意", "三心二意"]}], form="chid")


@pytest.mark.parametrize(("content", "said"), [("[[", "neither a JSON"), ('{"data": []}', "expected a JSON array, got dict")])
def test_damaged_files_of_c3(tmp_path, content, said):
    with pytest.raises(InputError, match=rf"a\.json: {said}"):
        read(tmp_path, "a.json", content, form="c3")


def test_chid_of_fewclue_and_of_the_hub(tmp_path):
    fewclue = {"id": 4, "content": "甲#idiom#", "candidates": ["一心一意", "三心二意"], "answer": 1}
    hub = {"content": ["甲#idiom7#"], "candidates": ["子", "丑"], "answers": {"text": ["#idiom7#"], "candidate_id": [0]}}
    rows, _ = read(tmp_path, "a.json", [fewclue], form="chid")
    assert rows[0]["labels"] == {"#idiom#": 1}
    assert shape_chid(hub, {})["labels"] == {"#idiom7#": 0}


def test_cluener_has_inclusive_ends(tmp_path):
    good = {"text": "张三去北京", "label": {"address": {"北京": [[3, 4]]}, "name": {"张三": [[0, 1]]}}}
    wrong = {"text": "张三去北京", "label": {"name": {"张三": [[1, 2]]}}}
    rows, bad = read(tmp_path, "a.json", [good, wrong, {"id": 0, "text": "试"}], form="cluener")
    assert rows == [{"text": "张三去北京", "entities": [(0, 2, "name"), (3, 5, "address")]}, {"id": 0, "text": "试"}]
    assert "line 2: '张三' does not stand at 1 to 2" in bad[0]


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        ("B-A I-A O B-A", [(0, 2, "A"), (3, 4, "A")]),
        ("B-A B-A I-B", [(0, 1, "A"), (1, 2, "A")]),  # strict: I-B begins nothing
        ("I-A I-A B-B", [(2, 3, "B")]),
        ("B-A M-A E-A S-B O", [(0, 3, "A"), (3, 4, "B")]),
        ("B-A E-A E-A", [(0, 2, "A")]),
    ],
)
def test_tags_to_entities(tags, entities):
    assert entities_of_tags(tags.split(), [1] * len(tags.split())) == entities


def test_a_tag_a_line(tmp_path):
    content = "中\tB-ORG\n共\tI-ORG\n\n1 O\nX O\n\n坏\n\n好\tX-ORG\n"
    rows, bad = read(tmp_path, "a", content, form="tagged")
    assert rows == [{"text": "中共", "entities": [(0, 2, "ORG")]}, {"text": "1X", "entities": []}]
    assert [reason.rpartition("line ")[2] for reason in bad] == [
        "7: '坏' is not a character and a tag",
        "9: 'X-ORG' is no BIO or BMES tag",
    ]
    weibo, _ = read(tmp_path, "a", "人0\tB-PER.NOM\n10\tO\n", form="weibo")
    assert weibo == [{"text": "人1", "entities": [(0, 1, "PER.NOM")]}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.utf8", "我们\u3000爱\u3000Python\n"),
        ("a.txt", "我们/r  爱/v  Python/nx\n"),
        ("a.conllu", "# text = 我们爱Python\n1-2\t我们爱\t_\n1\t我们\tx\n2\t爱\tx\n3\tPython\tx\n"),
    ],
)
def test_words(tmp_path, name, content):
    rows, _ = read(tmp_path, name, content, form="segmented")
    assert rows == [{"text": "我们爱Python", "entities": [(0, 2, "W"), (2, 3, "W"), (3, 9, "W")]}]


def test_a_slash_is_a_word_too(tmp_path):
    rows, _ = read(tmp_path, "a.txt", "和/c  //w  或/c\n1/2 和\n", form="segmented")
    assert [row["text"] for row in rows] == ["和/或", "1/2和"]


def test_shares_of_a_file_are_all_of_it(tmp_path):
    (tmp_path / "a.tsv").write_text("text\n" + "\n".join(map(str, range(50))) + "\n")
    release = Release({}, columns={"text": "text"})
    parts = [
        [row.values["text"] for row in read_files(tmp_path, (f"a.tsv[{share}]",), release, BadRows())]
        for share in (":70%", "70%:")
    ]
    assert [len(part) for part in parts] == [35, 15]
    assert sorted(map(int, parts[0] + parts[1])) == list(range(50))
    assert parts[1] != sorted(parts[1], key=int)  # an order of no meaning: files are often sorted by label
