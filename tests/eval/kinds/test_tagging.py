"""Spans of characters from tags of tokens, and their scores."""

import json

import numpy as np
import pytest
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.scheme import IOB2

from zh_modernbert.eval.finetuning import loading
from zh_modernbert.eval.kinds.tagging import (
    dictionary_answers,
    entities_of_tokens,
    score_cluener,
    score_spans,
    tagging,
    tags_of_tokens,
)
from zh_modernbert.eval.tasks.registry import TASKS, Task
from zh_modernbert.eval.tasks.rows import Row
from zh_modernbert.train.tokenizer.loading import load_tokenizer

TEXT = "老师王𠮷研究 Python 3.12 的文档，北京的会议"


@pytest.fixture(scope="module")
def tokenizer(stages):
    return load_tokenizer(stages / "tokenizer")


def entities_at(text: str, *strings: tuple[str, str]) -> list[tuple[int, int, str]]:
    return sorted((text.index(string), text.index(string) + len(string), kind) for string, kind in strings)


def row(text: str, entities: list | None = None, number: int = 1) -> Row:
    return Row("a", number, {"text": text} | ({} if entities is None else {"entities": entities}))


def right_logits(features, classes: int) -> np.ndarray:
    """The outputs of a model that is always right."""
    width = max(map(len, features["labels"]))
    logits = np.full((len(features), width, classes), -100.0)
    for piece, labels in enumerate(features["labels"]):
        for place, label in enumerate(labels):
            logits[piece, place, label if label >= 0 else 0] = 1
    return logits


@pytest.mark.parametrize("split_characters", [False, True])
@pytest.mark.parametrize("max_length", [64, 9], ids=["whole", "in pieces"])
def test_a_model_that_is_right_finds_all(tokenizer, max_length, split_characters):
    """Characters of several tokens, spaces, texts longer than `max_length`, entities that a cut divides."""
    kind = tagging(TASKS["msra"], tokenizer, max_length, ["LOC", "PER", "WORK"], split_characters)
    entities = entities_at(TEXT, ("王𠮷", "PER"), ("Python 3.12 的文档", "WORK"), ("北京", "LOC"))
    rows = [row(TEXT, entities), row("", []), row("的" * 30, [(0, 30, "LOC")])]
    examples = kind.encode(rows)
    found = examples.decode(right_logits(examples.features, 7))
    assert found == examples.references
    assert found[0][0] == (2, 4, "PER", "王𠮷")
    assert kind.score(found, examples.references) == {"f1": 100.0, "precision": 100.0, "recall": 100.0}
    assert (len(examples.features) == 3) == (max_length == 64)


def test_a_tokenizer_that_pads_and_cuts_on_the_left(tokenizer, tmp_path):
    """The places of answers are those of the batch that the model has read."""
    tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {"padding_side": "left", "truncation_side": "left"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    kind = tagging(TASKS["msra"], loading.load_tokenizer(str(tmp_path), False), 9, ["LOC", "PER", "WORK"], False)
    rows = [row(TEXT, entities_at(TEXT, ("王𠮷", "PER"), ("北京", "LOC"))), row("的", [(0, 1, "LOC")])]
    examples = kind.encode(rows)
    labels = kind.collator([examples.features[i] for i in range(len(examples.features))])["labels"].numpy()
    logits = np.eye(7)[np.maximum(labels, 0)]
    assert examples.decode(logits) == examples.references


def test_edges_within_a_token_are_missed_and_reported(tokenizer):
    text = "工程师"
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    inner = next((start, end) for start, end in spans if end - start > 1)
    kind = tagging(Task("tagging", (), primary_metric="f1"), tokenizer, 16, ["A"], False)
    rows = [row(text, [(inner[0], inner[1] - 1, "A")]), row(text, [(inner[0], inner[1], "A")])]
    examples = kind.encode(rows)
    found = examples.decode(right_logits(examples.features, 3))
    assert [answer[0][:2] for answer in found] == [inner, inner]
    assert kind.score(found, examples.references)["f1"] == 50
    assert kind.baseline(rows, rows)["spans_on_token_edges"] == 50


def test_tags_of_tokens():
    spans = [None, (0, 1), (1, 2), (2, 4), (4, 5), None]
    assert tags_of_tokens(spans, [(0, 2, "A"), (2, 3, "B"), (3, 4, "A")], 5) == [None, "B-A", "I-A", "B-B", "O", None]


def test_entities_of_tokens_are_strict():
    spans = [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert entities_of_tokens(spans, ["I-A", "B-A", "I-B", "B-B"], "甲乙丙丁") == [(1, 2, "A", "乙"), (3, 4, "B", "丁")]
    # Two tokens of one character: the second is a part of it, whatever its tag.
    assert entities_of_tokens([(0, 1), (0, 1), (1, 2)], ["B-A", "B-A", "I-A"], "𠮷人") == [(0, 2, "A", "𠮷人")]


def test_the_score_is_seqevals():
    """On tags at random, of which many are not well-formed."""
    generator = np.random.default_rng(0)
    names = ["O", "B-A", "I-A", "B-B", "I-B"]
    true, predicted = ([[names[i] for i in generator.integers(0, 5, 12)] for _ in range(40)] for _ in range(2))
    text, spans = "一二三四五六七八九十百千", [(i, i + 1) for i in range(12)]
    answers, references = ([entities_of_tokens(spans, tags, text) for tags in both] for both in (predicted, true))
    options = {"mode": "strict", "scheme": IOB2}
    expected = {
        name: 100 * metric(true, predicted, **options)
        for name, metric in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score))
    }
    assert score_spans(answers, references) == pytest.approx(expected)
    assert score_spans([[]], [[]]) == {"f1": 0.0, "precision": 0.0, "recall": 0.0}


def test_the_score_of_cluener():
    """Strings of a text are a set, places do not count, and the mean is over types."""
    name = [(0, 2, "name", "张三"), (5, 7, "name", "张三")]
    references = [[*name, (3, 5, "address", "北京")], [(0, 2, "name", "李四")]]
    answers = [[(5, 7, "name", "张三")], [(0, 2, "name", "李四"), (3, 4, "address", "京")]]
    assert score_cluener(answers, references) == {"cluener_f1": 50.0}  # name 1, address 0
    assert score_spans(answers, references)["recall"] == 50
    assert score_cluener(references, references) == {"cluener_f1": 100.0}


def test_the_official_file_has_inclusive_ends(tokenizer):
    kind = tagging(TASKS["cluener"], tokenizer, 16, ["name"], False)
    entries = kind.entries([[(0, 2, "name", "张三"), (3, 5, "name", "张三")]], [row("张三和张三")])
    assert entries == [{"id": 0, "text": "张三和张三", "label": {"name": {"张三": [[0, 1], [3, 4]]}}}]


def test_the_dictionary():
    train = [row("北京人在北京大学", [(0, 2, "LOC"), (4, 8, "ORG")]), row("人", [(0, 1, "PER")])]
    found = dictionary_answers(train, [row("北京大学人", [])], words=False)
    assert found == [[(0, 4, "ORG", "北京大学")]]
    words = dictionary_answers(train, [row("北京人", [])], words=True)
    assert [answer[:2] for answer in words[0]] == [(0, 2), (2, 3)]
