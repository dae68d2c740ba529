"""Classes and numbers of texts and pairs: inputs, scores and what stands beside them."""

import numpy as np
import pytest

from zh_modernbert.eval.kinds.classification import (
    area,
    classification,
    in_order_of,
    overlap,
    regression,
    score_classes,
    score_numbers,
)
from zh_modernbert.eval.tasks.registry import TASKS, Task
from zh_modernbert.eval.tasks.rows import Row
from zh_modernbert.train.tokenizer.loading import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(stages):
    return load_tokenizer(stages / "tokenizer")


def rows_of(*values: dict) -> list[Row]:
    return [Row("a", number, row) for number, row in enumerate(values)]


def test_classes_are_told_by_name(tokenizer):
    kind = classification(TASKS["tnews"], tokenizer, 16, sorted(TASKS["tnews"].labels.values()))
    rows = rows_of({"text": "天气预报", "label": "104"}, {"id": 8, "text": "历史", "label": "101"})
    examples = kind.encode(rows)
    names = kind.config["id2label"]
    assert [names[number] for number in examples.references] == ["news_finance", "news_culture"]
    assert examples.features["labels"] == examples.references
    logits = np.zeros((2, 15))
    logits[[0, 1], [kind.config["label2id"]["news_game"], kind.config["label2id"]["news_car"]]] = 3
    entries = kind.entries(examples.decode(logits), rows)
    assert entries == [{"id": 0, "label": "116"}, {"id": 8, "label": "107"}]  # written as the benchmark writes them


def test_a_model_that_knows_the_classes_keeps_their_order():
    known = {"neutral": 0, "entailment": 1, "contradiction": 2}
    assert in_order_of(known, sorted(known)) == [*known]
    assert in_order_of({"LABEL_0": 0, "LABEL_1": 1}, ["a", "b"]) == ["a", "b"]


def test_pairs_are_one_input_and_cut_to_length(tokenizer):
    kind = classification(Task("classification", ()), tokenizer, 20, ["0", "1"])
    text = "老师研究新的计算机程序" * 9
    examples = kind.encode(
        rows_of({"text": text, "text_pair": "好", "label": "1"}, {"text": "好", "text_pair": text, "label": "0"})
    )
    for ids in examples.features["input_ids"]:
        assert len(ids) == 20
        assert ids.count(tokenizer.sep_token_id) == 2
    assert kind.encode(rows_of({"text": "好", "text_pair": "坏"})).references == []


def test_what_is_asked_of_one_text_is_one_group(tokenizer):
    """Pairs with one first text, and CLUEWSC2020's marks in one sentence."""
    rows = rows_of(*({"text": text} for text in ("[他]见了_老师_", "_他_见了[老师]", "他走了")))
    for kind in (
        classification(TASKS["cluewsc2020"], tokenizer, 20, ["false", "true"]),
        regression(tokenizer, 20),
    ):
        first, same, other = kind.encode(rows).groups
        assert first == same != other


def test_scores_of_classes():
    answers = [[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.8, 0.2]]
    metrics = score_classes(answers, [0, 0, 1, 1])
    assert metrics == {"accuracy": 50.0, "macro_f1": 50.0, "auroc": 75.0}
    assert score_classes([[1.0, 0.0, 0.0]] * 3, [0, 1, 2]).keys() == {"accuracy", "macro_f1"}
    assert area(np.array([0.1, 0.2]), np.array([1, 1])) == 50


def test_correlations():
    metrics = score_numbers([1.0, 2.0, 3.0, 10.0], [0.0, 1.0, 2.0, 3.0])
    assert metrics["spearman"] == pytest.approx(1.0)
    assert metrics["pearson"] == pytest.approx(14 / 250**0.5)
    assert score_numbers([1.0, 1.0], [0.0, 1.0]) == {"pearson": 0.0, "spearman": 0.0}


def test_what_stands_beside_a_score(tokenizer):
    assert overlap(rows_of({"text": "好好人", "text_pair": "好人们"})[0]) == pytest.approx(4 / 6)
    kind = classification(Task("classification", ()), tokenizer, 16, ["0", "1"])
    same, other = {"text": "今天天气", "text_pair": "今天天气"}, {"text": "今天天气", "text_pair": "会议"}
    train = rows_of(*({**same, "label": "1"}, {**other, "label": "0"}) * 20)
    metrics = kind.baseline(train, rows_of(*({**same, "label": "1"}, {**same, "label": "1"}, {**other, "label": "0"})))
    assert metrics["majority_class"] == pytest.approx(200 / 3)
    assert metrics["overlap_accuracy"] == metrics["overlap_auroc"] == 100
    numbers = regression(tokenizer, 16)
    assert numbers.baseline([], rows_of({**same, "label": "5"}, {**other, "label": "0"}))["overlap_spearman"] == pytest.approx(
        1
    )
    assert numbers.encode(rows_of({**same, "label": "4"})).references == [4.0]
