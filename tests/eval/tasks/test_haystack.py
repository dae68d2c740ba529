"""A passage among others: at its place, found again, of the length that was asked for."""

import random

import pytest

from zh_modernbert.eval.tasks.haystack import Passage, hide, hide_all, passages_of
from zh_modernbert.eval.tasks.reading import Answer, Question


def count(texts: list[str]) -> list[int]:
    """A token a character."""
    return [len(text) for text in texts]


def make_questions(number: int) -> list[Question]:
    """Two questions on each passage, two passages under each title."""
    generator = random.Random(0)
    questions = []
    for index in range(number):
        passage = f"第{index}篇" + "".join(generator.choices("甲乙丙丁戊己", k=generator.randint(20, 60))) + "。"
        for part in range(2):
            answers = (Answer("黄河", -1), Answer(f"第{index}篇", 0), Answer("篇", 99))
            questions.append(Question(f"{index}-{part}", "哪一篇？", passage, answers, f"题{index // 2}"))
    return questions


@pytest.mark.parametrize("length", [100, 400, 1000])
def test_documents_have_the_length_and_hold_the_passage(length):
    questions = make_questions(60)
    passages = passages_of(questions, count)
    assert len(passages) == 60
    found = hide_all(questions, passages, [length] * len(questions), count)
    for question, hidden in zip(questions, found, strict=True):
        document = hidden.question.context
        assert document[hidden.start : hidden.end] == question.context
        assert length - 65 < len(document) + len(question.question) <= length
        assert sorted(hidden.question.references) == sorted(question.references)  # none is lost
        own, *rest = hidden.question.answers
        assert hidden.start <= own.start < hidden.end
        assert hidden.question.span() == (own.start, own.start + len(own.text))
        assert rest[-1] == Answer("黄河")  # which is nowhere, comes last
        same = [passage.text for passage in passages if passage.title == question.title and passage.text != question.context]
        assert not any(text in document for text in same)
    places = {hidden.start * 4 // length for hidden in found}
    assert len(places) >= min(4, length // 200)


def test_documents_are_the_same_each_time_and_others_for_another_question():
    questions = make_questions(20)
    passages = passages_of(questions, count)
    first, again = (hide_all(questions[:4], passages, [300] * 4, count) for _ in range(2))
    assert first == again
    assert first[0].question.context != first[1].question.context  # the two are on one passage


def test_a_passage_that_is_longer_stays_alone():
    question = make_questions(1)[0]
    own = Passage("题0", question.context, len(question.context))
    hidden = hide(question, own, [own, Passage("题9", "很短。", 3)], 10, random.Random(0))
    assert hidden.question.context == question.context
