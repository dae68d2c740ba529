"""Passages as windows, labels in them, and answers cut from the passages."""

from pathlib import Path

import numpy as np
import pytest

from zh_modernbert.eval.kinds.spans import (
    Window,
    answer_all,
    best_spans,
    check_stride,
    edge_counts,
    make_windows,
    tokens_of,
    window_labels,
    windows_dataset,
)
from zh_modernbert.eval.tasks.reading import Answer, Question
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.tokenizer.loading import load_tokenizer

PASSAGE = "".join(f"第{number}句讲的是别的事情。" for number in range(30)) + "北京在北方。"


def ask(context: str, *answers: str, question: str = "在哪里？") -> Question:
    return Question("1", question, context, tuple(Answer(answer) for answer in answers))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(Path(__file__).parents[3])


def window(text: str, first: int = 3) -> Window:
    """A window of a token a character."""
    return Window(0, first, np.array([(place, place + 1) for place in range(len(text))]))


def gold_logits(windows: list[Window], spans: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    logits = np.full((2, len(windows), 512), -9.0)
    for row, of in enumerate(windows):
        if tokens := tokens_of(of, spans[of.question]):
            logits[0, row, tokens[0]] = logits[1, row, tokens[1]] = 9
    return logits[0], logits[1]


def test_windows_cover_the_passage_and_overlap(tokenizer):
    whole, _ = make_windows([ask(PASSAGE)], tokenizer, 1024, 16)
    windows, inputs = make_windows([ask(PASSAGE)], tokenizer, 64, 16)
    assert len(whole) == 1
    assert len(windows) > 3
    assert max(map(len, inputs["input_ids"])) == 64
    places = [tuple(place) for place in whole[0].places]
    begins = [places.index(tuple(of.places[0])) for of in windows]
    ends = [begin + len(of.places) for begin, of in zip(begins, windows, strict=True)]
    assert (begins[0], ends[-1]) == (0, len(places))
    assert all(end - begin == 16 for begin, end in zip(begins[1:], ends, strict=False))


def test_a_long_question_is_cut(tokenizer):
    windows, inputs = make_windows([ask(PASSAGE, question="为什么" * 200)], tokenizer, 64, 16)
    assert max(map(len, inputs["input_ids"])) == 64
    assert windows[0].first == 64 // 4 + 2


@pytest.mark.parametrize(("max_length", "stride"), [(64, 33), (10, 5), (4, 0)])
def test_windows_that_would_not_go_on(tokenizer, max_length, stride):
    with pytest.raises(InputError, match=r"stride is|nothing to the passage"):
        check_stride(tokenizer, max_length, stride)
    assert make_windows([ask(PASSAGE)], tokenizer, 10, 4)[0]


def test_labels_point_to_the_answer_where_a_window_has_it(tokenizer):
    questions = [ask(PASSAGE, "黄河", "北方", "第0句"), ask(PASSAGE, PASSAGE), ask(PASSAGE, "黄河"), ask("我们今天", "们今")]
    windows, inputs = make_windows(questions, tokenizer, 64, 16)
    features = windows_dataset(inputs, window_labels(questions, windows))
    assert len(features) == len(windows)
    labels = zip(windows, features["start_positions"], features["end_positions"], strict=True)
    found = [(row, of, start, end) for row, (of, start, end) in enumerate(labels) if end]
    assert [of.question for _, of, _, _ in found] == [0, 3]
    for row, of, start, end in found:
        question = questions[of.question]
        answer = question.context[of.places[start - of.first, 0] : of.places[end - of.first, 1]]
        assert tokenizer.decode(features[row]["input_ids"][start : end + 1]) == answer
        assert {0: "北方", 3: "们今"}[of.question] in answer
        assert len(answer) <= 4  # a token may straddle the edge
    assert edge_counts(questions, windows) == {"answers_in_no_window": 1, "answers_off_token_edges": 1}


def test_a_word_after_a_space_is_on_token_edges(tokenizer):
    """Of which the token begins with the space."""
    questions = [ask("他见了 Obama 先生", "Obama"), ask("他见了 Obama 先生", "Obama "), ask("他见了 Obama 先生", "bama")]
    windows, _ = make_windows(questions, tokenizer, 64, 8)
    assert edge_counts(questions, windows) == {"answers_in_no_window": 0, "answers_off_token_edges": 1}


@pytest.mark.parametrize("max_length", [64, 512])
def test_what_is_labelled_is_what_is_answered(tokenizer, max_length):
    questions = [ask(PASSAGE, "北方"), ask("今天 天气很好。", "天气"), ask("…是的", "…")]
    windows, _ = make_windows(questions, tokenizer, max_length, 16)
    logits = gold_logits(windows, [question.span() for question in questions])
    answers = answer_all(questions, windows, logits, n_best=3, most_characters=100)
    for question, candidates in zip(questions, answers, strict=True):
        assert question.references[0] in candidates[0]["text"]
        assert len(candidates[0]["text"]) <= len(question.references[0]) + 2
        assert question.context.startswith(candidates[0]["text"], candidates[0]["start"])
        assert len({candidate["text"] for candidate in candidates}) == len(candidates)
        assert [candidate["score"] for candidate in candidates] == sorted((row["score"] for row in candidates), reverse=True)


def test_answers_are_in_the_passage_in_order_and_short():
    logits = np.zeros((2, 12))
    logits[0, 0] = logits[1, 1] = 99  # in the question
    logits[0, 11] = logits[1, 11] = 99  # behind the passage
    logits[0, 8], logits[1, 4] = 5, 7  # the end before the start
    logits[0, 3], logits[1, 9] = 4, 5  # too far apart
    [best, *others] = best_spans(window("一二三四五六七"), *logits, n_best=4, most_characters=5)
    assert (best.start, best.end, best.score) == (0, 2, 11)
    assert all(0 <= found.start < found.end <= found.start + 5 <= 12 for found in others)
    assert (others[0].start, others[0].end) == (5, 7)  # the best start, and the end that may follow it


def test_no_answer_is_made_of_two_windows():
    """The best start is in the first window, the best end in the second."""
    question = ask("一二三四五六七八")
    windows = [
        Window(0, 2, np.array([(i, i + 1) for i in range(5)])),
        Window(0, 2, np.array([(i, i + 1) for i in range(3, 8)])),
    ]
    starts, ends = np.zeros((2, 7)), np.zeros((2, 7))
    starts[0, 2], ends[0, 3], starts[1, 5], ends[1, 6] = 9, 1, 1, 8
    [answers] = answer_all([question], windows, (starts, ends), n_best=20, most_characters=8)
    assert answers[0] == {"text": "一二", "score": 10, "start": 0}
    assert {"text": "七八", "score": 9, "start": 6} in answers


def test_answers_are_not_empty():
    logits = np.zeros((1, 4))
    logits[0, 1] = 9
    [candidates] = answer_all([ask("好 人")], [window("好 人", 0)], (logits, logits), n_best=9, most_characters=1)
    assert [candidate["text"] for candidate in candidates] == ["好", "人"]
    assert answer_all([ask("好")], [], (np.zeros((0, 3)), np.zeros((0, 3))), 2, 2) == [[]]
