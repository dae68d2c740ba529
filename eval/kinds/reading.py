"""Answers to questions, cut from passages: windows of passages, the benchmarks' own scores, and a baseline without a model."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace

from transformers import AutoModelForQuestionAnswering, DataCollatorWithPadding

from zh_modernbert.eval.finetuning.training import Examples, Metrics
from zh_modernbert.eval.kinds.kind import Kind
from zh_modernbert.eval.kinds.spans import answer_all, check_stride, edge_counts, make_windows, window_labels, windows_dataset
from zh_modernbert.eval.metrics import cmrc2018, drcd
from zh_modernbert.eval.tasks.loading import Data
from zh_modernbert.eval.tasks.reading import Question
from zh_modernbert.eval.tasks.rows import NAMED, Row
from zh_modernbert.train.common.cli import InputError

SCORERS = {"cmrc2018": cmrc2018.score, "drcd": drcd.score}
SENTENCE = re.compile(r"[^。！？!?；;\n]+")
PIECE = re.compile(r"[^\s，。、！？；：,!?;:（）()「」『』《》〈〉“”\"—…]+")


def questions_of(rows: Sequence[Row]) -> list[Question]:
    return [Question.of(row.values) for row in rows]


# --- without a model ---


def pairs_of(text: str) -> set[str]:
    return {text[place : place + 2] for place in range(len(text) - 1)}


def overlapping_span(question: Question) -> str:
    """An answer by shared pairs of characters alone.

    The sentence that shares most pairs with the question, for its length, holds the answer. It is the piece between punctuation
    marks or words of the question that is nearest to what the sentence shares with the question.
    """
    asked = pairs_of(question.question)
    sentences = [found[0] for found in SENTENCE.finditer(question.context)] or [question.context]
    sentence = max(sentences, key=lambda text: len(asked & pairs_of(text)) / math.sqrt(len(text) + 1))
    shared = [place for place in range(len(sentence) - 1) if sentence[place : place + 2] in asked]
    covered = {place + offset for place in shared for offset in (0, 1)}
    rest = "".join(" " if place in covered else character for place, character in enumerate(sentence))
    middle = sum(covered) / len(covered) if covered else 0
    pieces = [found.span() for found in PIECE.finditer(rest)]
    pieces = [span for span in pieces if span[1] - span[0] > 1] or pieces or [(0, len(sentence))]
    start, end = min(pieces, key=lambda span: min(abs(span[0] - middle), abs(span[1] - middle)))
    return sentence[start:end]


# --- with one ---


def score_texts(scorer: str, texts: Sequence[str], references: Sequence[list[str]]) -> Metrics:
    """The scores of answers, one to each list of references."""
    places = [str(place) for place in range(len(texts))]
    return SCORERS[scorer](dict(zip(places, references, strict=True)), dict(zip(places, texts, strict=True)))


def overlap_baseline(questions: Sequence[Question], scorer: str) -> Metrics:
    scores = score_texts(scorer, [*map(overlapping_span, questions)], [question.references for question in questions])
    return {f"overlap_{name}": value for name, value in scores.items()}


def best_texts(answers: Sequence[list[dict]]) -> list[str]:
    """The first of the answers of each question, as `answer_all` gives them."""
    return [found[0]["text"] if found else "" for found in answers]


def leave_out_unanswerable(data: Data) -> Data:
    """The data without training examples that have no answer in the passage. They are counted and named."""
    kept, left_out = [], []
    for row in data.splits["train"]:
        if Question.of(row.values).span():
            kept.append(row)
        else:
            left_out.append(row.values["id"])
    if not kept:
        raise InputError(f"{data.name}: no question of training has an answer in its passage")
    notes = [f"left out of training, for no answer is in the passage: {len(left_out)} ({', '.join(left_out[:NAMED])})"]
    return replace(data, splits={**data.splits, "train": kept}, notes=data.notes + (notes if left_out else []))


def reading(tokenizer, max_length: int, stride: int, n_best: int, max_answer_characters: int, scorer: str) -> Kind:
    """Questions on passages. An answer is a list of candidates, as of `answer_all`, of which the first counts.

    Args:
        max_length: tokens of a window. A passage that is longer is several, `stride` tokens of which overlap.
        n_best, max_answer_characters: as of `answer_all`.
        scorer: a name in `SCORERS`.

    Raises:
        InputError: as of `check_stride`.
    """
    check_stride(tokenizer, max_length, stride)

    def encode(rows: list[Row]) -> Examples:
        questions = questions_of(rows)
        windows, inputs = make_windows(questions, tokenizer, max_length, stride)
        return Examples(
            features=windows_dataset(inputs, window_labels(questions, windows)),
            references=[question.references for question in questions],
            decode=lambda logits: answer_all(questions, windows, logits, n_best, max_answer_characters),
            groups=[question.context for question in questions],
        )

    def score(answers: list[list[dict]], references: list[list[str]]) -> Metrics:
        return score_texts(scorer, best_texts(answers), references)

    def baseline(train: list[Row], scored: list[Row]) -> Metrics:
        questions = questions_of(scored)
        windows, _ = make_windows(questions, tokenizer, max_length, stride)
        return {**overlap_baseline(questions, scorer), **edge_counts(questions, windows)}

    def entries(answers: list[list[dict]], rows: list[Row]) -> dict[str, str]:
        return dict(zip((row.values["id"] for row in rows), best_texts(answers), strict=True))

    return Kind(AutoModelForQuestionAnswering, {}, encode, DataCollatorWithPadding(tokenizer), score, baseline, entries)
