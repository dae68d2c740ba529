"""Rows of a task in the other script, by OpenCC. All places stay where they were: a converted text is as long as the text."""

from collections.abc import Mapping
from functools import lru_cache

from zh_modernbert.eval.tasks.reading import Answer
from zh_modernbert.eval.tasks.rows import Row
from zh_modernbert.train.corpus.characters import convert_script

# The fields that are text, or lists of texts, in the rows of any kind of task. Marks of idioms have no Chinese in them.
TEXTS = ("text", "text_pair", "question", "context", "title", "choices", "passages", "candidates")


@lru_cache(maxsize=256)  # a passage has several questions
def convert_in_place(text: str, to: str) -> str:
    """A text in script `to`, each character at its place. Where its words would change its length, it is done by characters."""
    converted = convert_script(text, to)
    return converted if len(converted) == len(text) else "".join(convert_script(character, to) for character in text)


def convert_answer(values: Mapping, context: str, converted_context: str, to: str) -> dict:
    """An answer as it stands in the converted passage: what is around a word can decide its form.

    The text of an answer that is nowhere in the passage is converted alone.
    """
    answer = Answer(**values)
    if (start := answer.find(context)) is None:
        return {**values, "text": convert_in_place(answer.text, to)}
    return {"text": converted_context[start : start + len(answer.text)], "start": start}


def convert_values(values: Mapping, kind: str, to: str) -> dict:
    """The values of a row. Labels stay what they are, but where they are one of the choices."""
    converted = dict(values)
    for name in TEXTS + (("label",) if kind == "choice" else ()):
        if isinstance(value := values.get(name), str):
            converted[name] = convert_in_place(value, to)
        elif value:
            converted[name] = [convert_in_place(text, to) for text in value]
    if "answers" in values:
        context = values["context"]
        converted["answers"] = [convert_answer(answer, context, converted["context"], to) for answer in values["answers"]]
    return converted


def convert_rows(rows: list[Row], kind: str, to: str) -> list[Row]:
    """Rows of a task of one kind in script `to`, "hans" or "hant"."""
    return [row._replace(values=convert_values(row.values, kind, to)) for row in rows]
