"""Scorers follow the rules of their benchmarks, odd texts included, and load as `evaluate` modules without the Hub."""

import importlib.util
import os
import random
from functools import partial
from pathlib import Path

import evaluate
import nltk
import pytest

from zh_modernbert.eval.metrics import cluener, cmrc2018, drcd

METRICS = Path(cmrc2018.__file__).parent
ODD = [
    "…",
    "……",
    "",
    "  ",
    "，",
    "。。",
    "U.S.",
    "e.g. one. Two",
    "can't",
    '"x"',
    "1,000.5",
    "㐀㐀",
    "𠀀",
    "龥龦",
    "İ",
    "the a",
]


@pytest.fixture
def without_punkt(monkeypatch):
    monkeypatch.setattr(cmrc2018, "has_punkt", lambda: False)


@pytest.mark.usefixtures("without_punkt")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("北京ABC公司", ["北", "京", "abc", "公", "司"]),
        ("《三国》：3.5%", ["三", "国", "3.5", "%"]),  # half-width punctuation is cut off, full-width is dropped
        ("a-b", ["ab"]),  # so is the hyphen, before words are made
        ("约 1,000 km", ["约", "1,000", "km"]),
        ("…", ["…"]),  # what is ignored is the pair
        ("，。", []),
        ("", []),
        ("㐀㐁龥龦", ["㐀㐁", "龥", "龦"]),  # beyond U+4E00 to U+9FA5: one word
        ("C.L. Max", ["c.l.", "max"]),
    ],
)
def test_words_of_cmrc2018(text, expected):
    assert list(cmrc2018.words(text)) == expected


@pytest.mark.skipif(not cmrc2018.has_punkt(), reason="nltk's Punkt data is not installed")
def test_punkt_splits_sentences_within_a_piece():
    assert list(cmrc2018.words("C.L. Max")) == ["c.l", ".", "max"]


@pytest.mark.parametrize(
    ("prediction", "reference", "em", "f1"),
    [
        ("北京市", "北京市", 1, 1),
        ("北京市。", " 北京市", 1, 1),
        ("在北京市", "北京市", 0, 6 / 7),
        ("北方京城", "北京", 0, 2 / 6),  # the longest run is one character, whatever else is shared
        ("京北", "北京", 0, 2 / 4),
        ("上海", "北京", 0, 0),
        ("", "北京", 0, 0),
        ("", "，", 1, 0),  # nothing is left of either
        ("…", "……", 0, 0),
        ("3,5", "3，5", 0, 0),
    ],
)
@pytest.mark.usefixtures("without_punkt")
def test_cmrc2018(prediction, reference, em, f1):
    assert cmrc2018.exact_match(prediction, reference) == em
    assert cmrc2018.f1(prediction, reference) == pytest.approx(f1, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "reference", "em", "f1"),
    [
        ("臺北市", "臺北市", 1, 1),
        ("《臺北市》", "臺北市。", 1, 1),
        ("「臺北」", "臺北", 0, 4 / 6),  # these marks count
        ("京北", "北京", 0, 1),  # a bag: order does not count
        ("The U.S.", "us", 1, 1),
        ("a b", "b", 1, 1),
        ("x y", "xy", 0, 4 / 5),  # a space between is a character
        ("，", "。", 1, 0),
        ("上海", "北京", 0, 0),
    ],
)
def test_drcd(prediction, reference, em, f1):
    assert drcd.exact_match(prediction, reference) == em
    assert drcd.f1(prediction, reference) == pytest.approx(f1, abs=1e-12)


@pytest.mark.parametrize("scorer", [cmrc2018, drcd])
def test_the_best_reference_counts_and_every_question(scorer):
    references = {"1": ["北京", "北京市"], "2": ["上海"], "3": ["上海"], "4": []}
    scores = scorer.score(references, {"1": "北京市", "2": "上海", "4": "x", "5": "of another set"})
    assert (scores["em"], scores["f1"]) == (50, 50)


def test_cluener():
    """One text names a person twice and a place; the other has the same name again, and a book that is not there."""
    expected = [{"name": {"王小明": [[0, 2], [8, 10]]}, "address": {"北京": [[4, 5]]}}, {"name": {"王小明": [[0, 2]]}}]
    predicted = [{"name": ["王小明", "王小明"], "address": ["京"]}, {"book": ["王小明"]}]
    scores = cluener.score(expected, predicted)
    assert scores == {"f1": pytest.approx(100 / 3), "f1_name": pytest.approx(100 * 2 / 3), "f1_address": 0}
    assert cluener.score(expected, expected)["f1"] == 100
    assert cluener.score([{}], [{"name": ["王"]}]) == {"f1": 0}


def test_they_load_without_the_hub():
    references = [{"id": name, "answers": {"text": ["北京市", "北京"], "answer_start": [3, 3]}} for name in "12"]
    predictions = [{"id": "1", "prediction_text": "北京"}, {"id": "2", "prediction_text": None}]
    for module in (cmrc2018, drcd):
        metric = evaluate.load(str(module.__file__))
        scores = metric.compute(predictions=predictions, references=references)
        assert scores == module.score({"1": ["北京市", "北京"], "2": ["北京市"]}, {"1": "北京"})
    row = [{"type": "name", "text": "王小明"}, {"type": "book", "text": "红楼梦"}]
    scores = evaluate.load(str(METRICS / "cluener.py")).compute(predictions=[row[:1], []], references=[row, []])
    assert (scores["f1_name"], scores["f1_book"], scores["f1"]) == (100, 0, 50)


@pytest.mark.skipif("CMRC2018_EVALUATE" not in os.environ, reason="CMRC2018_EVALUATE does not name the benchmark's own script")
def test_the_benchmarks_own_script_gives_the_same(monkeypatch):
    spec = importlib.util.spec_from_file_location("official", os.environ["CMRC2018_EVALUATE"])
    official = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(official)
    if not cmrc2018.has_punkt():
        monkeypatch.setattr(nltk, "word_tokenize", partial(nltk.word_tokenize, preserve_line=True))
    generator = random.Random(0)
    characters = ["北", "京", "市", "a", "b", " ", "。", "-", *ODD]
    texts = [["".join(generator.choices(characters, k=generator.randint(0, 6))) for _ in range(4)] for _ in range(500)]
    questions = [{"id": str(i), "answers": [{"text": text} for text in row[1:]]} for i, row in enumerate(texts)]
    predictions = {str(i): row[0] for i, row in enumerate(texts) if i % 10}
    f1, em, _, _ = official.evaluate({"data": [{"paragraphs": [{"qas": questions}]}]}, predictions)
    ours = cmrc2018.score({str(i): row[1:] for i, row in enumerate(texts)}, predictions)
    assert (ours["f1"], ours["em"]) == pytest.approx((f1, em), abs=1e-9)


def test_cmrc2018_averages_both():
    scores = cmrc2018.score({"1": ["北京"], "2": ["上海"]}, {"1": "北京", "2": "上"})
    assert scores == pytest.approx({"em": 50, "f1": 250 / 3, "average": 200 / 3})
