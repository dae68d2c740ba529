"""Reading comprehension for a model: passages as windows, and answers cut from passages by what it gives for their windows.

A window is the question and as much of the passage as fits. The next one begins `stride` tokens before this one ends. A passage
that fits as a whole is one window, of up to 8,192 tokens where the model takes so many. The model is trained to point to the
first token where a window does not hold the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from zh_modernbert.eval.kinds.offsets import trimmed
from zh_modernbert.eval.tasks.reading import Question
from zh_modernbert.train.common.cli import InputError

BATCH = 256  # questions of a call of the tokenizer
MODEL_INPUTS = ("input_ids", "token_type_ids", "attention_mask")


@dataclass
class Window:
    """A part of a passage.

    Attributes:
        question: the number of its question.
        first: the place of its first token of the passage, among all its tokens.
        places: `(N, 2)` int: where each token of the passage begins and ends, in characters.
    """

    question: int
    first: int
    places: np.ndarray


@dataclass
class Candidate:
    """A possible answer of a window: its place in the passage, in characters, and the sum of its start and end logits."""

    score: float
    start: int
    end: int


def shorten(tokenizer: PreTrainedTokenizerBase, texts: list[str], most_tokens: int) -> list[str]:
    """Texts cut to so many tokens."""
    encoded = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=most_tokens, return_offsets_mapping=True)
    places = encoded["offset_mapping"]
    return [text[: place[-1][1]] if len(place) == most_tokens else text for text, place in zip(texts, places, strict=True)]


def check_stride(tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int) -> None:
    """Checks that windows go on: `stride` is at most half of `max_length`, and less than what that leaves to the passage.

    Raises:
        InputError: it is not.
    """
    room = max_length - max_length // 4 - tokenizer.num_special_tokens_to_add(pair=True)
    if room < 1:
        raise InputError(f"max_length is {max_length}, which leaves nothing to the passage")
    if stride > (most := min(max_length // 2, room - 1)):
        raise InputError(f"stride is {stride}; with max_length {max_length} it must be at most {most}")


def make_windows(
    questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int
) -> tuple[list[Window], dict[str, list]]:
    """The windows of all questions, and the model's inputs, one a window. Questions are cut to a quarter of `max_length`."""
    windows: list[Window] = []
    inputs: dict[str, list] = {}
    for begin in range(0, len(questions), BATCH):
        batch = questions[begin : begin + BATCH]
        encoded = tokenizer(
            shorten(tokenizer, [question.question for question in batch], max_length // 4),
            [question.context for question in batch],
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        for row, number in enumerate(encoded["overflow_to_sample_mapping"]):
            of_passage = [place for place, part in enumerate(encoded.sequence_ids(row)) if part == 1]
            if of_passage:
                places = np.array(encoded["offset_mapping"][row][of_passage[0] : of_passage[-1] + 1], dtype=np.int32)
                windows.append(Window(begin + number, of_passage[0], places))
                for name in MODEL_INPUTS:
                    if name in encoded:
                        inputs.setdefault(name, []).append(encoded[name][row])
    return windows, inputs


def tokens_of(window: Window, span: tuple[int, int]) -> tuple[int, int] | None:
    """The first and last token that have characters of a span, as places in the window; None where it is not all in there."""
    starts, ends = window.places.T
    first, last = int(np.searchsorted(ends, span[0], "right")), int(np.searchsorted(starts, span[1], "left")) - 1
    if first > last or starts[0] > span[0] or ends[-1] < span[1]:
        return None
    return window.first + first, window.first + last


def window_labels(questions: Sequence[Question], windows: Sequence[Window]) -> list[tuple[int, int]]:
    """The first and last token of the answer in each window; the window's first token where it is not in there."""
    spans = [question.span() for question in questions]
    return [((span := spans[window.question]) and tokens_of(window, span)) or (0, 0) for window in windows]


def windows_dataset(inputs: dict[str, list], labels: list[tuple[int, int]]) -> Dataset:
    starts, ends = [start for start, _ in labels], [end for _, end in labels]
    return Dataset.from_dict({**inputs, "start_positions": starts, "end_positions": ends})


def edge_counts(questions: Sequence[Question], windows: Sequence[Window]) -> dict[str, int]:
    """How many answers no window holds, being longer than windows overlap; and how many do not begin and end with a token.

    Of the latter the model learns more than the answer, and its exact match is lost.
    """
    whole, on_edges = set(), set()
    spans = [question.span() for question in questions]
    for window in windows:
        span = spans[window.question]
        if span and (tokens := tokens_of(window, span)):
            first, last = (token - window.first for token in tokens)
            whole.add(window.question)
            text, found = questions[window.question].context, (int(window.places[first, 0]), int(window.places[last, 1]))
            if trimmed(text, *found) == trimmed(text, *span):
                on_edges.add(window.question)
    answered = sum(span is not None for span in spans)
    return {"answers_in_no_window": answered - len(whole), "answers_off_token_edges": len(whole) - len(on_edges)}


# --- answers ---


def best_spans(
    window: Window, start_logits: np.ndarray, end_logits: np.ndarray, n_best: int, most_characters: int
) -> list[Candidate]:
    """The best pairs of a start and an end in a window's passage, for each of the `n_best` best starts.

    Args:
        start_logits, end_logits: `(T,)`, of all tokens of the window; more may follow.
        most_characters: of an answer. A start whose token alone is longer has that token as its answer.
    """
    tokens = slice(window.first, window.first + len(window.places))
    start_logits, end_logits = start_logits[tokens], end_logits[tokens]
    starts, ends = window.places.T
    found = []
    for first in np.argsort(-start_logits, kind="stable")[:n_best]:
        after = max(int(np.searchsorted(ends, starts[first] + most_characters, "right")), first + 1)
        for last in first + np.argsort(-end_logits[first:after], kind="stable")[:n_best]:
            found.append(Candidate(float(start_logits[first] + end_logits[last]), int(starts[first]), int(ends[last])))
    return sorted(found, key=lambda candidate: -candidate.score)[:n_best]


def answer_all(
    questions: Sequence[Question],
    windows: Sequence[Window],
    logits: tuple[np.ndarray, np.ndarray],
    n_best: int,
    most_characters: int,
) -> list[list[dict]]:
    """The `n_best` best answers to each question over all its windows, `{"text", "score", "start"}`, the best one first.

    `start` is the answer's place in the passage. No answer is empty, and no two of a question are the same text.

    Args:
        logits: of starts and of ends, `(windows, T)` each.
    """
    found: list[list[Candidate]] = [[] for _ in questions]
    for window, start_logits, end_logits in zip(windows, *logits, strict=True):
        found[window.question] += best_spans(window, start_logits, end_logits, n_best, most_characters)
    answers = []
    for question, candidates in zip(questions, found, strict=True):
        texts: dict[str, dict] = {}
        for candidate in sorted(candidates, key=lambda candidate: -candidate.score):
            start, end = trimmed(question.context, candidate.start, candidate.end)
            if text := question.context[start:end]:
                texts.setdefault(text, {"text": text, "score": round(candidate.score, 4), "start": start})
        answers.append([*texts.values()][:n_best])
    return answers
