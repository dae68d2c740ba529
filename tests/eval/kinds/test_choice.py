"""Choices are whole, passages are cut, gaps are filled together."""

import numpy as np
import pytest

from zh_modernbert.eval.kinds.choice import assign, choice, cloze
from zh_modernbert.eval.tasks.rows import Row
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.tokenizer.loading import load_tokenizer

PASSAGE = "老师正在准备明天的天气预报。" * 20


@pytest.fixture(scope="module")
def tokenizer(stages):
    return load_tokenizer(stages / "tokenizer")


def question(*choices: str, label: str | None = None, **more) -> Row:
    values = {"text": PASSAGE, "question": "谁在准备？", "choices": list(choices), **more}
    return Row("c3.json", 5, values | ({"label": label} if label else {}))


def test_question_and_choice_are_never_cut(tokenizer):
    kind = choice(tokenizer, 48, 3)
    examples = kind.encode([question("老师", "学生", "工程师和图书馆", label="学生"), question("老师", "学生", label="老师")])
    assert examples.features["labels"] == [1, 0]
    assert examples.groups == [PASSAGE] * 2  # so that one half of dev has both
    for texts, ids in zip(
        (["老师", "学生", "工程师和图书馆"], ["老师", "学生", ""]), examples.features["input_ids"], strict=True
    ):
        assert len(ids) == 3
        for text, one in zip(texts, ids, strict=True):
            assert len(one) <= 48
            decoded = tokenizer.decode(one).split(tokenizer.sep_token)
            assert decoded[1:3] == ["谁在准备？", text]
            assert len(decoded[0]) > 10


def test_added_choices_are_no_answers_and_equal_ones_are_right_both(tokenizer):
    kind = choice(tokenizer, 48, 4)
    rows = [question("甲", "乙", "甲", label="甲"), question("甲", "乙", label="乙", id="d-3")]
    examples = kind.encode(rows)
    answers = examples.decode(np.array([[0, 1, 2, 9.0], [1, 0, 9, 9.0]]))
    assert answers == [2, 0]
    assert examples.references == [[0, 2], [1]]
    assert kind.score(answers, examples.references) == {"accuracy": 50.0}
    assert kind.entries(answers, rows) == [{"id": 0, "label": 2}, {"id": "d-3", "label": 0}]
    assert kind.baseline(rows, rows) == {"majority_class": 50.0, "chance": pytest.approx(100 * (1 / 3 + 1 / 2) / 2)}


def test_no_room_for_a_passage_is_said(tokenizer):
    with pytest.raises(InputError, match=r"c3.json, line 5: question and choice have \d+ tokens.* give --max_length \d+"):
        choice(tokenizer, 8, 2).encode([question("工程师和图书馆", "学生")])


def test_no_candidate_twice_by_the_best_sum():
    scores = np.log([[0.5, 0.4, 0.1], [0.6, 0.3, 0.1]])
    assert assign(scores) == [1, 0]  # 0.4 x 0.6 beats 0.5 x 0.3
    assert assign(np.array([[1.0, 0.0]] * 3)) == [0, 0, 0]  # more gaps than candidates


def gaps(*passages: str, **more) -> Row:
    return Row("chid.json", 1, {"passages": list(passages), "candidates": ["研究", "会议", "天气预报"], **more})


def test_candidates_stand_in_their_gap_and_masks_in_the_others(tokenizer):
    kind = cloze(tokenizer, 64, 3)
    rows = [
        gaps("我们#idiom01#和#idiom02#。", "没有", "讨论#idiom03#。", labels={"#idiom01#": 0, "#idiom02#": 2, "#idiom03#": 1})
    ]
    examples = kind.encode(rows)
    texts = [[tokenizer.decode(ids) for ids in one] for one in examples.features["input_ids"]]
    mask, sep = tokenizer.mask_token, tokenizer.sep_token
    assert [text.split(sep)[1].replace(" ", "") for text in texts[0]] == [
        f"我们{word}和{mask}。" for word in ("研究", "会议", "天气预报")
    ]
    assert texts[1][2].replace(" ", "") == f"{tokenizer.cls_token}天气预报{sep}我们{mask}和天气预报。{sep}"
    assert examples.features["labels"] == [0, 2, 1]
    assert examples.references == [[0, 2], [1]]  # passages, not rows
    answers = examples.decode(np.array([[3, 0, 2], [5, 0, 0], [0, 0, 7.0]]))
    assert answers == [[2, 0], [2]]
    assert kind.score(answers, examples.references)["accuracy"] == 0
    assert kind.entries(answers, rows) == {"#idiom01#": 2, "#idiom02#": 0, "#idiom03#": 2}


def test_what_is_around_a_gap_stays(tokenizer):
    kind = cloze(tokenizer, 40, 3)
    for passage in (PASSAGE + "他#idiom1#了" + PASSAGE, "他#idiom1#了" + PASSAGE, PASSAGE + "他#idiom1#了"):
        for ids, word in zip(kind.encode([gaps(passage)]).features["input_ids"][0], ("研究", "会议", "天气预报"), strict=True):
            assert 30 <= len(ids) <= 40
            assert f"他{word}了" in tokenizer.decode(ids).replace(" ", "")
