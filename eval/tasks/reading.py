"""Questions on passages, from the files of CMRC2018, DRCD and SQuAD, or from rows of one's own; and what is wrong with some.

Official files have defects, and a benchmark's score is over all of its references, right or wrong. So scoring takes a reference
as it is. Training takes an answer from where it stands: where the file's place is wrong, from the nearest place that has its
text. Where the passage has not the text, the answer is left out.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from zh_modernbert.eval.tasks.rows import NAMED, Row
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.corpus.lines import read_lines

# Defects, as `find_defects` names them.
MOVED = "an answer that is not at its answer_start"
ABSENT = "an answer that is nowhere in the passage"
NO_QUESTION = "an empty question"
# What stands in CMRC2018's test file for answers, which are not published.
FAKE = re.compile(r"FAKE_ANSWER_\d+")
JSON_NAMES = {list: "array", dict: "object"}
# Our names of fields -> CMRC2018's own.
CMRC_NAMES = {"id": "query_id", "question": "query_text", "context": "context_text"}


@dataclass(frozen=True)
class Answer:
    text: str
    start: int | None = None  # its place in the passage, in characters, as the file has it

    def stands_in(self, context: str) -> bool:
        return self.start is not None and self.start >= 0 and context.startswith(self.text, self.start)

    def find(self, context: str) -> int | None:
        """The place of the text in the passage: the one that the file has, else the one nearest to it."""
        if self.stands_in(context):
            return self.start
        wanted = max(self.start or 0, 0)
        places = [context.rfind(self.text, 0, wanted + len(self.text)), context.find(self.text, wanted)]
        return min((place for place in places if place >= 0), key=lambda place: abs(place - wanted), default=None)


@dataclass(frozen=True)
class Question:
    """A question on a passage; `answers` is empty where they are not published."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] = ()
    title: str = ""  # passages under one title are about the same thing

    @classmethod
    def of(cls, values: Mapping) -> "Question":
        """The question of a row, as `shape_reading` makes them. What else is in the row is left aside."""
        answers = tuple(Answer(**answer) for answer in values.get("answers", ()))
        return cls(values["id"], values["question"], values["context"], answers, values["title"])

    def to_values(self) -> dict:
        """The row of which `of` makes the question."""
        return asdict(self) | {"answers": [asdict(answer) for answer in self.answers]}

    @property
    def references(self) -> list[str]:
        return [answer.text for answer in self.answers]

    def span(self) -> tuple[int, int] | None:
        """Where the first answer that is in the passage stands, without spaces around it: (start, end)."""
        for answer in self.answers:
            if (start := answer.find(self.context)) is not None and (text := answer.text.strip()):
                start += answer.text.index(text)
                return start, start + len(text)
        return None


# --- reading ---


def load_json(path: str | Path, expected: type = object) -> Any:
    """The JSON value of a file, plain or compressed, or the list of the values of its lines.

    Args:
        expected: list or dict, where it must be that.

    Raises:
        InputError: the file is missing or damaged, or holds no such value.
    """
    lines = [line for _, line in read_lines(path)]
    try:
        value = orjson.loads("\n".join(lines))
    except ValueError as whole:
        try:
            value = [orjson.loads(line) for line in lines if line.strip()]
        except ValueError:
            value = []
        if not value:
            raise InputError(f"{path}: neither a JSON value nor one a line: {whole}") from whole
    if not isinstance(value, expected):
        raise InputError(f"{path}: expected a JSON {JSON_NAMES[expected]}, got {type(value).__name__}")
    return value


def read_passages(path: Path) -> Iterator[tuple[int, dict]]:
    """(number, question with its passage) of a file in SQuAD's form or CMRC2018's own, or of rows of one's own.

    Raises:
        InputError: the file is of another form.
    """
    value, number = load_json(path), 0
    try:
        for article in value["data"] if isinstance(value, dict) else value:
            for passage in article.get("paragraphs", [article]):
                shared = {"title": article.get("title"), **passage}
                for entry in shared.pop("qas", [{}]):
                    number += 1
                    yield number, {**shared, **entry}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not of SQuAD's form (data, paragraphs, context, qas, answers): {error!r}") from error


def shape_answers(given: Any) -> list[dict]:
    """{text, start} of answers: of a list of texts or of {text, answer_start}, or of {text: [...], answer_start: [...]}."""
    if isinstance(given, dict):
        starts = given.get("answer_start") or [None] * len(given["text"])
        given = [{"text": text, "answer_start": start} for text, start in zip(given["text"], starts, strict=True)]
    pairs = [(row["text"], row.get("answer_start")) if isinstance(row, dict) else (row, None) for row in given]
    # CMRC2018's own form has answers that are numbers: its authors' script takes them as text.
    texts = [(str(text), None if start is None else int(start)) for text, start in pairs]
    return [{"text": text, "start": start} for text, start in texts if not FAKE.fullmatch(text)]


def shape_reading(values: dict, columns: dict[str, str]) -> dict:
    """The fields of a `Question`, by our names and in a form that JSON keeps."""

    def field(name: str) -> Any:
        theirs = columns.get(name, name)
        return values[theirs] if theirs in values else values[CMRC_NAMES.get(name, theirs)]

    row = {"id": str(field("id")), "question": field("question"), "context": field("context")}
    row["title"] = str(values.get(columns.get("title", "title")) or "")
    answers = shape_answers(values.get(columns.get("answers", "answers")) or ())
    return row | ({"answers": answers} if answers else {})


def check_reading(values: Mapping) -> str:
    """Why a question cannot be scored; nothing where it can."""
    if not (isinstance(values["question"], str) and isinstance(values["context"], str) and values["context"].strip()):
        return "question or context is empty, or no text"
    return "an answer is empty" if any(not answer["text"].strip() for answer in values.get("answers", ())) else ""


# --- defects ---


def find_defects(questions: Iterable[Question]) -> dict[str, list[str]]:
    """What is wrong with questions that can be scored: defect -> the question's id, once for each answer that has it."""
    found: dict[str, list[str]] = {}
    for question in questions:
        if not question.question.strip():
            found.setdefault(NO_QUESTION, []).append(question.id)
        for answer in question.answers:
            if answer.find(question.context) is None:
                found.setdefault(ABSENT, []).append(question.id)
            elif answer.start is not None and not answer.stands_in(question.context):
                found.setdefault(MOVED, []).append(question.id)
    return found


def check_defects(rows: list[Row], known: Mapping[str, int], skip: bool) -> list[str]:
    """A note for each defect of each file.

    Args:
        known: defect -> how many of it an official file has. So many pass.
        skip: any number passes.

    Raises:
        InputError: a file has more of a defect than are known.
    """
    notes = []
    for path in dict.fromkeys(row.path for row in rows):
        for defect, ids in find_defects(Question.of(row.values) for row in rows if row.path == path).items():
            names = list(dict.fromkeys(ids))
            note = f"{len(ids)} times {defect} ({', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''})"
            if len(ids) > known.get(defect, 0) and not skip:
                raise InputError(
                    f"{path}: {note}; mend the file, or give --skip_bad_rows true: scoring takes references as they are, "
                    "training takes an answer from the nearest place that has its text, or leaves it out"
                )
            notes.append(f"{Path(path).name}: {note}")
    return notes
