"""Long documents made from short passages: the passage that answers a question, somewhere among passages about other things.

Passages of the reading sets have some hundred tokens, which says nothing of how well a model finds an answer in 8,192. The
other passages are of the same set, under other titles.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zh_modernbert.eval.tasks.reading import Answer, Question

BETWEEN = "\n"


@dataclass(frozen=True)
class Passage:
    title: str
    text: str
    tokens: int


@dataclass(frozen=True)
class Hidden:
    """A question on a long document, and where in the document its own passage begins and ends."""

    question: Question
    start: int
    end: int


def passages_of(questions: Sequence[Question], count_tokens: Callable[[list[str]], list[int]]) -> list[Passage]:
    """The different passages of a set, with their lengths."""
    titles = {question.context: question.title for question in questions}
    return [Passage(title, text, count) for (text, title), count in zip(titles.items(), count_tokens([*titles]), strict=True)]


def fill(own: Passage, passages: Sequence[Passage], tokens: int, generator: random.Random) -> list[str]:
    """Passages under other titles that fit beside `own` into so many tokens, each with a token between."""
    room, chosen = tokens - own.tokens, []
    for place in generator.sample(range(len(passages)), len(passages)):
        passage = passages[place]
        if passage.tokens < room and passage.text != own.text and (not own.title or passage.title != own.title):
            chosen.append(passage.text)
            room -= passage.tokens + 1
        if room < tokens // 50:
            break
    return chosen


def hide(question: Question, own: Passage, passages: Sequence[Passage], tokens: int, generator: random.Random) -> Hidden:
    """The question on a document of at most `tokens` tokens, its passage at a random place among others.

    Answers that are in the passage come first, at their places in the document. A passage that is longer stays alone.
    """
    others = fill(own, passages, tokens, generator)
    before = generator.randint(0, len(others))
    parts = [*others[:before], question.context, *others[before:]]
    start = sum(len(part) + len(BETWEEN) for part in others[:before])
    places = [answer.find(question.context) for answer in question.answers]
    answers = [
        Answer(answer.text, None if place is None else start + place)
        for answer, place in sorted(zip(question.answers, places, strict=True), key=lambda pair: pair[1] is None)
    ]
    hidden = Question(question.id, question.question, BETWEEN.join(parts), tuple(answers), question.title)
    return Hidden(hidden, start, start + len(question.context))


def hide_all(
    questions: Sequence[Question],
    passages: Sequence[Passage],
    lengths: Sequence[int],
    count_tokens: Callable[[list[str]], list[int]],
) -> list[Hidden]:
    """Each question on a document of as many tokens as stand at its place in `lengths`, its own ones included.

    A question has the same document each time, whatever the seed of the run, so that scores of several seeds are of one text.

    Args:
        passages: all there are, those of the questions among them.
    """
    by_text = {passage.text: passage for passage in passages}
    asked = count_tokens([question.question for question in questions])
    hidden = []
    for question, length, of_question in zip(questions, lengths, asked, strict=True):
        generator = random.Random(f"{question.id} {length}")
        hidden.append(hide(question, by_text[question.context], passages, length - of_question, generator))
    return hidden
