"""Files of questions in all their forms; what is wrong with some, and what is done about it."""

import json
import os
from pathlib import Path

import pytest

from zh_modernbert.eval.tasks.conversion import convert_rows
from zh_modernbert.eval.tasks.reading import (
    ABSENT,
    MOVED,
    NO_QUESTION,
    Answer,
    Question,
    check_defects,
    check_reading,
    find_defects,
    read_passages,
    shape_reading,
)
from zh_modernbert.eval.tasks.rows import Row
from zh_modernbert.train.common.cli import InputError

CONTEXT = "长城始建于春秋战国，长城位于北方。"
DATA = Path(os.environ.get("ZH_MODERNBERT_TASKS", "no-tasks"))  # a folder of official files, a folder each task


def read(path: Path) -> list[Row]:
    return [Row(str(path), number, shape_reading(values, {})) for number, values in read_passages(path)]


def write(path: Path, value) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def squad(*questions: dict) -> dict:
    return {"data": [{"title": "长城", "id": "1", "paragraphs": [{"id": "1-1", "context": CONTEXT, "qas": list(questions)}]}]}


def question(*answers: tuple[str, int], identity: str = "q1", text: str = "长城在哪里？") -> dict:
    return {"id": identity, "question": text, "answers": [{"text": text, "answer_start": start} for text, start in answers]}


@pytest.mark.parametrize(
    ("value", "starts"),
    [
        (squad(question(("北方", 14), ("春秋战国", 5))), (14, 5)),
        (
            [
                {
                    "context_id": "1",
                    "context_text": CONTEXT,
                    "title": "长城",
                    "qas": [{"query_id": "q1", "query_text": "长城在哪里？", "answers": ["北方", "春秋战国"]}],
                }
            ],
            (None, None),
        ),
        (
            [
                {
                    "id": "q1",
                    "title": "长城",
                    "question": "长城在哪里？",
                    "context": CONTEXT,
                    "answers": {"text": ["北方", "春秋战国"], "answer_start": [14, 5]},
                }
            ],
            (14, 5),
        ),
    ],
    ids=["SQuAD", "CMRC2018", "rows"],
)
def test_forms(tmp_path, value, starts):
    expected = Question("q1", "长城在哪里？", CONTEXT, (Answer("北方", starts[0]), Answer("春秋战国", starts[1])), "长城")
    assert [Question.of(row.values) for row in read(write(tmp_path / "dev.json", value))] == [expected]
    if isinstance(value, list):  # one a line
        lines = "\n".join(json.dumps(row) for row in [*value, *value])
        assert [Question.of(row.values) for row in read(write(tmp_path / "dev.jsonl", lines))] == [expected, expected]


def test_answers_that_are_numbers_and_answers_that_are_not_published(tmp_path):
    entry = {"query_id": "q1", "query_text": "几年？", "answers": [1990.0, "1990"]}
    [row] = read(write(tmp_path / "a.json", [{"context_text": "1990年", "qas": [entry]}]))
    assert Question.of(row.values).references == ["1990.0", "1990"]
    [row] = read(write(tmp_path / "b.json", squad(question(("FAKE_ANSWER_1", -1), ("FAKE_ANSWER_2", -1)))))
    assert "answers" not in row.values


@pytest.mark.parametrize("text", ["{", "3", '{"data": [1]}', '{"version": "1"}', '{"a": 1}\n{'])
def test_what_is_of_another_form(tmp_path, text):
    with pytest.raises(InputError, match=r"a\.json"):
        read(write(tmp_path / "a.json", text))


def test_questions_that_cannot_be_scored():
    good = {"question": "？", "context": CONTEXT, "answers": [{"text": "北方", "start": None}]}
    assert check_reading(good) == ""
    assert check_reading({**good, "question": ""}) == ""  # a defect, of an official file
    assert "context" in check_reading({**good, "context": " "})
    assert "question" in check_reading({**good, "question": None})
    assert "answer" in check_reading({**good, "answers": [{"text": " ", "start": 1}]})


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        (Answer("长城", 0), 0),
        (Answer("长城", 10), 10),
        (Answer("长城", 9), 10),  # the nearer one
        (Answer("长城", 2), 0),
        (Answer("长城", -1), 0),
        (Answer("长城", 999), 10),
        (Answer("长城"), 0),
        (Answer("黄河", 3), None),
    ],
)
def test_an_answer_is_sought_near_the_place_that_the_file_gives(answer, place):
    assert answer.find(CONTEXT) == place


def test_training_takes_an_answer_that_is_there():
    answers = (Answer("黄河", 3), Answer(" 北方 ", 99), Answer("春秋战国", 6))
    assert Question("1", "", CONTEXT, answers).span() == (5, 9)
    assert Question("1", "", "在 北方 ", answers).span() == (2, 4)  # without the spaces
    assert Question("1", "", CONTEXT, answers[:1]).span() is None


def test_known_defects_pass_and_others_stop(tmp_path):
    rows = read(
        write(
            tmp_path / "dev.json",
            squad(
                question(("北方", 14), ("北方", 13), ("黄河", 3)),
                question(("黄河", -1), ("黄河", -1), identity="q2", text=" "),
                question(("北方", 14), identity="q3"),
            ),
        )
    )
    questions = [Question.of(row.values) for row in rows]
    assert find_defects(questions) == {MOVED: ["q1"], ABSENT: ["q1", "q2", "q2"], NO_QUESTION: ["q2"]}
    known = {MOVED: 1, ABSENT: 3, NO_QUESTION: 1}
    notes = check_defects(rows, known, skip=False)
    assert notes == check_defects(rows, {}, skip=True)
    assert f"dev.json: 3 times {ABSENT} (q1, q2)" in notes
    for fewer in ({}, {**known, ABSENT: 2}):
        with pytest.raises(InputError, match=r"dev\.json.*--skip_bad_rows") as error:
            check_defects(rows, fewer, skip=False)
        assert "\n" not in str(error.value)


@pytest.mark.skipif(not DATA.is_dir(), reason="ZH_MODERNBERT_TASKS names no folder of official files")
@pytest.mark.parametrize(
    ("name", "expected", "without_a_span"),
    [
        ("cmrc2018/squad/cmrc2018_dev.json.zst", {ABSENT: 193, MOVED: 7}, 0),
        ("cmrc2018/cmrc2018_dev.json.zst", {ABSENT: 193}, 0),
        ("cmrc2018/squad/cmrc2018_trial.json.zst", {MOVED: 5, NO_QUESTION: 2}, 0),
        ("cmrc2018/squad/cmrc2018_test.json.zst", {}, 2000),
        ("drcd/DRCD_dev.json.zst", {}, 0),
    ],
)
def test_defects_of_official_files(name, expected, without_a_span):
    questions = [Question.of(row.values) for row in read(DATA / name)]
    assert {defect: len(ids) for defect, ids in find_defects(questions).items()} == expected
    assert sum(question.span() is None for question in questions) == without_a_span


# --- the other script ---


def convert(values: dict, kind: str, to: str = "hant") -> dict:
    [row] = convert_rows([Row("", 1, values)], kind, to)
    return row.values


def test_converted_answers_stand_where_they_stood():
    context = "他的干事在树干下面，后来头发发白。"
    places = [("干", 2), ("干", 6), ("发白", 14), ("发", 13), ("面条", -1), ("树干", 3)]
    answers = [{"text": text, "start": start} for text, start in places]
    converted = Question.of(
        convert({"id": "1", "title": "", "question": "头发？", "context": context, "answers": answers}, "reading")
    )
    assert converted.context == "他的幹事在樹幹下面，後來頭髮發白。"
    assert converted.question == "頭髮？"
    assert [answer.text for answer in converted.answers] == ["幹", "幹", "發白", "髮", "麵條", "樹幹"]
    assert all(answer.stands_in(converted.context) for answer in converted.answers if answer.text != "麵條")
    assert [answer.start for answer in converted.answers] == [2, 6, 14, 13, -1, 5]


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("classification", {"text": "头发", "text_pair": "面条", "label": "体育"}, {"text": "頭髮", "text_pair": "麵條"}),
        ("choice", {"text": "头", "question": "谁", "choices": ["发生", "头发"], "label": "头发"},
         {"text": "頭", "question": "誰", "choices": ["發生", "頭髮"], "label": "頭髮"}),
        ("cloze", {"passages": ["他#idiom1#发"], "candidates": ["千头万绪", "发愤"], "labels": {"#idiom1#": 1}},
         {"passages": ["他#idiom1#發"], "candidates": ["千頭萬緒", "發憤"]}),
        ("tagging", {"id": "头", "text": "王发在台湾", "entities": [(0, 2, "name")]}, {"text": "王發在臺灣"}),
    ],
)  # fmt: skip
def test_rows_of_all_kinds(kind, values, expected):
    assert convert(values, kind) == {**values, **expected}


def test_back_again():
    assert convert({"text": "頭髮發白，臺灣"}, "classification", "hans")["text"] == "头发发白，台湾"


@pytest.mark.skipif(not DATA.is_dir(), reason="ZH_MODERNBERT_TASKS names no folder of official files")
def test_converted_official_answers():
    """Every answer that is in its passage, at most as many others as before."""
    rows = read(DATA / "cmrc2018/squad/cmrc2018_trial.json.zst")[:300]
    converted = [Question.of(row.values) for row in convert_rows(rows, "reading", "hant")]
    assert all(answer.stands_in(question.context) for question in converted for answer in question.answers)
