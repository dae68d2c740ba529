"""Rows that cannot be used are counted and named, and stop the run unless they are known or may be skipped."""

import pytest

from zh_modernbert.eval.tasks.checks import check_rows
from zh_modernbert.eval.tasks.registry import TASKS, Task
from zh_modernbert.eval.tasks.rows import BadRows, Row, settle
from zh_modernbert.train.common.cli import InputError


def kept_and_bad(kind: str, *values: dict, **options) -> tuple[int, list[str]]:
    bad_rows = BadRows()
    rows = [Row("dev.json", number, row) for number, row in enumerate(values, 1)]
    return len(check_rows(rows, Task(kind, (), **options), bad_rows)), bad_rows.found


CLOZE = {"passages": ["甲#idiom1#"], "candidates": ["子", "丑"]}
CHOICE = {"text": "文", "question": "谁？", "choices": ["甲", "乙"]}


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        ("classification", {"text": " ", "label": "0"}, "text is empty"),
        ("classification", {"text": "好", "text_pair": "", "label": "0"}, "text_pair is empty"),
        ("classification", {"label": "0"}, "no text"),
        ("classification", {"text": "好", "label": "5"}, "unknown label '5'; known are 0, 1"),
        ("regression", {"text": "好", "text_pair": "好", "label": "五"}, "label '五' is no number"),
        ("choice", CHOICE | {"label": "丙"}, "the answer '丙' is none of the choices"),
        ("choice", CHOICE | {"choices": ["甲"]}, "choices are ['甲']"),
        ("cloze", CLOZE | {"labels": {"#idiom1#": 2}}, "the answer to #idiom1# is 2"),
        ("cloze", CLOZE | {"labels": {}}, "the answer to #idiom1# is None"),
        ("cloze", CLOZE | {"passages": ["甲"]}, "no #idiom...#"),
        ("tagging", {"text": "好", "entities": [(0, 2, "A")]}, "an entity from 0 to 2 is outside the text"),
        ("tagging", {"text": "好人家", "entities": [(0, 2, "A"), (1, 3, "A")]}, "from 1 to 3 overlaps another"),
    ],
)
def test_what_is_wrong_is_said(kind, row, reason):
    labels = {"0": "0", "1": "1"} if kind == "classification" else {}
    kept, bad = kept_and_bad(kind, row, labels=labels)
    assert kept == 0
    assert bad[0].startswith("dev.json, line 1: ")
    assert reason in bad[0]


def test_ids_and_labels_of_other_rows():
    rows = [{"id": 1, "text": "甲", "label": "0"}, {"id": "1", "text": "乙", "label": "0"}, {"id": 2, "text": "丙"}]
    assert kept_and_bad("classification", *rows) == (
        1,
        ["dev.json, line 2: the id '1' is there twice", "dev.json, line 3: no label, which other rows have"],
    )


def test_what_the_benchmark_drops_is_not_bad():
    rows = [{"text": "甲", "text_pair": "乙", "label": label} for label in ("-", "neutral")]
    assert kept_and_bad("classification", *rows, labels=TASKS["ocnli"].labels, dropped_labels=("-",)) == (1, [])


def test_bad_rows_stop_the_run_or_are_noted():
    bad_rows, left = BadRows(), {"dev": [Row("a.tsv", 6, {})]}
    assert settle(left, {"dev": bad_rows}, False, {}) == []
    for number in range(1, 6):
        bad_rows.report("a.tsv", number, "text is empty")
    with pytest.raises(InputError, match=r"a.tsv, line 1: .*line 3: text is empty; and 2 more; mend .* --skip_bad_rows true"):
        settle(left, {"dev": bad_rows}, False, {})
    note, part = settle(left, {"dev": bad_rows}, True, {})
    assert note.startswith("bad rows left out: 5 (a.tsv, line 1")
    assert part == "only 1 of 6 examples of dev"
    assert settle(left, {"dev": bad_rows}, False, {"text is empty": 5}) == [note]
    with pytest.raises(InputError):
        settle(left, {"dev": bad_rows}, False, {"text is empty": 4})  # more than are known
