"""The forms of official files, and the rows they become.

A kind of task has one form of rows, whatever its files look like:

    classification, regression   text, text_pair (of pairs), label
    choice                       text, question, choices, label (the text of the right choice)
    cloze                        passages, candidates, labels (mark -> number of its candidate)
    tagging, segmentation        text, entities (start, end, type; of words, the type is W)
    reading                      question, context, answers (text, start), title

`id` is there where the files give one, `label` and its like where they are labelled. `READERS` read a file of a form into raw
rows. `SHAPES` make rows of those, for a file or a data set of the Hub alike.
"""

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from zh_modernbert.eval.tasks.reading import load_json, read_passages, shape_reading
from zh_modernbert.eval.tasks.registry import Release
from zh_modernbert.eval.tasks.rows import BadRows, Row
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.corpus.lines import read_jsonl, read_lines
from zh_modernbert.train.corpus.tables import find_file, form_of, read_table

Numbered = Iterator[tuple[int, dict]]
MARK = re.compile(r"#idiom\d*#")
SHARE = re.compile(r"(.+)\[(?:(\d+)%)?:(?:(\d+)%)?\]")
PIECE = "W"  # the type of a word, where words are what is tagged


class BadRowError(Exception):
    """A row that cannot be used; its text says why."""


# --- readers: a file to raw rows ---


def read_c3(path: Path, release: Release, bad_rows: BadRows) -> Numbered:
    """A question a row, of `[[sentences], [questions], id]`. The number is that of the dialogue or text."""
    for number, entry in enumerate(load_json(path, list), 1):
        try:
            sentences, questions, _ = entry
            for question in questions:
                yield number, {"context": list(sentences), **question}
        except (TypeError, ValueError):
            bad_rows.report(path, number, "not [[sentences], [questions], id]")


def read_chid(path: Path, release: Release, bad_rows: BadRows) -> Numbered:
    """Rows with a passage or several, and their candidates. Answers lie in the row, or in `*_answer.json` beside the file."""
    beside = path.with_name(path.name.replace(".json", "_answer.json", 1))
    answers = load_json(beside, dict) if beside.is_file() else {}
    for number, values in read_jsonl(path, bad_rows):
        content = values.get("content")
        passages = content if isinstance(content, list) else [content]
        marks = [mark for passage in passages if isinstance(passage, str) for mark in MARK.findall(passage)]
        known = {mark: answers[mark] for mark in marks if mark in answers}
        if "answer" in values and len(marks) == 1:  # FewCLUE
            known = {marks[0]: values["answer"]}
        yield number, {**values, "content": passages, "answers": known or None}


def blocks(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, lines) of what blank lines divide."""
    start, lines = 1, []
    for number, line in read_lines(path):
        if line.strip():
            start, lines = (number, [line]) if not lines else (start, [*lines, line])
        elif lines:
            yield start, lines
            lines = []
    if lines:
        yield start, lines


def read_tagged(path: Path, release: Release, bad_rows: BadRows) -> Numbered:
    """A character and its tag a line, sentences divided by blank lines. BIO or BMES."""
    for number, lines in blocks(path):
        characters, tags = [], []
        for offset, line in enumerate(lines):
            character, _, tag = line.rstrip().rpartition("\t") if "\t" in line else line.rstrip().rpartition(" ")
            if not character:
                bad_rows.report(path, number + offset, f"{line!r} is not a character and a tag")
                break
            characters.append(character)
            tags.append(tag)
        else:
            yield number, {"characters": characters, "tags": tags}


def read_weibo(path: Path, release: Release, bad_rows: BadRows) -> Numbered:
    """As `read_tagged`; each character is followed by its place in its word."""
    for number, values in read_tagged(path, release, bad_rows):
        yield number, {**values, "characters": [character[:1] for character in values["characters"]]}


def read_segmented(path: Path, release: Release, bad_rows: BadRows) -> Numbered:
    """Words of a sentence: CoNLL-U, words/with tags, or words between spaces."""
    if form_of(path) == ".conllu":
        for number, lines in blocks(path):
            cells = [line.split("\t") for line in lines if not line.startswith("#")]
            yield number, {"words": [cell[1] for cell in cells if len(cell) > 1 and cell[0].isdigit()]}
        return
    for number, line in read_lines(path):
        words = line.split()
        if words and all("/" in word[1:] for word in words):
            words = [word.rpartition("/")[0] for word in words]
        if words:
            yield number, {"words": words}


def read_plain(path: Path, release: Release, bad_rows: BadRows) -> Numbered:
    """A table. Its texts must be there; labels may be missing."""
    columns = [theirs for ours, theirs in release.columns.items() if ours in ("text", "text_pair")]
    return iter(read_table(path, columns, release.header, release.separator, bad_rows))


READERS: dict[str, Callable[[Path, Release, BadRows], Numbered]] = {
    "table": read_plain,
    "cluewsc": read_plain,
    "cluener": read_plain,
    "spans": read_plain,
    "choices": read_plain,
    "c3": read_c3,
    "chid": read_chid,
    "tagged": read_tagged,
    "weibo": read_weibo,
    "segmented": read_segmented,
    "reading": lambda path, release, bad_rows: read_passages(path),
}


# --- shapes: raw rows to rows ---


def identity(values: dict) -> dict:
    """The row's id, where it has one."""
    return {"id": values["id"]} if values.get("id") is not None else {}


def shape_table(values: dict, columns: dict[str, str]) -> dict:
    """The columns by our names. A list, as of keywords, is joined by spaces."""
    row = {}
    for ours, theirs in columns.items():
        value = values.get(theirs)
        if value is not None:
            row[ours] = value if ours == "id" else " ".join(value) if isinstance(value, list) else str(value)
    return row


def shape_cluewsc(values: dict, columns: dict[str, str]) -> dict:
    """The text with both spans marked, `_so_` and `[so]`, where their offsets say."""
    text, target = values["text"], values["target"]
    marked = []
    for span, (left, right) in (("span1", "__"), ("span2", "[]")):
        start, words = target[f"{span}_index"], target[f"{span}_text"]
        if text[start : start + len(words)] != words:
            raise BadRowError(f"{words!r} does not stand at {start}, where {text[start : start + len(words)]!r} stands")
        marked.append((start, start + len(words), left, right))
    for start, end, left, right in sorted(marked, reverse=True):
        text = text[:start] + left + text[start:end] + right + text[end:]
    label = values.get("label")
    return {**identity(values), "text": text, **({} if label is None else {"label": str(label).lower()})}


def shape_c3(values: dict, columns: dict[str, str]) -> dict:
    row = {
        **identity(values),
        "text": "\n".join(values["context"]),
        "question": values["question"],
        "choices": values["choice"],
    }
    return row | ({"label": values["answer"]} if values.get("answer") else {})


def shape_choices(values: dict, columns: dict[str, str]) -> dict:
    """A table of one's own: `choices` is a list, `label` one of them."""
    row = {**identity(values), "text": values["text"], "question": values.get("question") or "", "choices": values["choices"]}
    return row | ({"label": values["label"]} if values.get("label") is not None else {})


def shape_chid(values: dict, columns: dict[str, str]) -> dict:
    """The Hub's answers are `{"text": [marks], "candidate_id": [numbers]}`."""
    answers = values.get("answers")
    if answers and set(answers) == {"text", "candidate_id"}:
        answers = dict(zip(answers["text"], answers["candidate_id"], strict=True))
    row = {**identity(values), "passages": values["content"], "candidates": values["candidates"]}
    return row | ({"labels": answers} if answers else {})


def shape_cluener(values: dict, columns: dict[str, str]) -> dict:
    """`label` is type -> words -> places, whose ends are inclusive."""
    row = {**identity(values), "text": values["text"]}
    if values.get("label") is None:
        return row
    entities = []
    for kind, found in values["label"].items():
        for words, places in found.items():
            for start, last in places:
                if row["text"][start : last + 1] != words:
                    raise BadRowError(
                        f"{words!r} does not stand at {start} to {last}, where {row['text'][start : last + 1]!r} stands"
                    )
                entities.append((start, last + 1, kind))
    return {**row, "entities": sorted(entities)}


def shape_spans(values: dict, columns: dict[str, str]) -> dict:
    """A table of one's own: `entities` is a list of `[start, end, type]`, by characters, with the end excluded."""
    row = {**identity(values), "text": values["text"]}
    if values.get("entities") is not None:
        row["entities"] = sorted((start, end, kind) for start, end, kind in values["entities"])
    return row


def entities_of_tags(tags: list[str], lengths: list[int]) -> list[tuple[int, int, str]]:
    """The entities of strict IOB2 or BMES tags of pieces of text. What begins with no B or S is none."""
    entities, start, kind, place = [], None, "", 0
    for tag, length in zip(tags, lengths, strict=True):
        prefix, _, name = tag.partition("-")
        if start is not None and not (prefix in "IME" and name == kind):
            entities.append((start, place, kind))
            start = None
        if prefix in "BS":
            start, kind = place, name
        place += length
        if start is not None and prefix in "ES":
            entities.append((start, place, kind))
            start = None
    if start is not None:
        entities.append((start, place, kind))
    return entities


def shape_tagged(values: dict, columns: dict[str, str]) -> dict:
    characters, tags = values["characters"], values["tags"]
    for tag in tags:
        if tag != "O" and not (tag[:2] in ("B-", "I-", "M-", "E-", "S-") and tag[2:]):
            raise BadRowError(f"{tag!r} is no BIO or BMES tag")
    return {"text": "".join(characters), "entities": entities_of_tags(tags, [*map(len, characters)])}


def shape_segmented(values: dict, columns: dict[str, str]) -> dict:
    entities, place = [], 0
    for word in values["words"]:
        entities.append((place, place + len(word), PIECE))
        place += len(word)
    return {"text": "".join(values["words"]), "entities": entities}


SHAPES: dict[str, Callable[[dict, dict[str, str]], dict]] = {
    "table": shape_table,
    "cluewsc": shape_cluewsc,
    "c3": shape_c3,
    "choices": shape_choices,
    "chid": shape_chid,
    "cluener": shape_cluener,
    "spans": shape_spans,
    "tagged": shape_tagged,
    "weibo": shape_tagged,
    "segmented": shape_segmented,
    "reading": shape_reading,
}


# --- both ---


def shape_all(raw: Iterator[Row], form: str, columns: dict[str, str], bad_rows: BadRows) -> list[Row]:
    rows = []
    for row in raw:
        try:
            rows.append(row._replace(values=SHAPES[form](row.values, columns)))
        except BadRowError as error:
            bad_rows.report(row.path, row.number, str(error))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            bad_rows.report(row.path, row.number, f"a field is missing or of another kind ({type(error).__name__}: {error})")
    return rows


def share_of(rows: list, start: int, end: int) -> list:
    """The share from `start` to `end` percent of rows in an order that is always the same."""
    order = random.Random(0).sample(rows, len(rows))
    return order[len(rows) * start // 100 : len(rows) * end // 100]


def read_files(folder: Path, files: tuple[str, ...], release: Release, bad_rows: BadRows) -> list[Row]:
    """The rows of a split's files. `*_answer.json` are no files of rows: they are read with those that they answer.

    Raises:
        InputError: a file is missing, damaged or holds no rows.
    """
    rows = []
    for name in files:
        if name.endswith("_answer.json"):
            continue
        share = SHARE.fullmatch(name)
        path = find_file(folder / (share[1] if share else name))
        raw = (Row(str(path), number, values) for number, values in READERS[release.form](path, release, bad_rows))
        found = shape_all(raw, release.form, release.columns, bad_rows)
        if not found:
            raise InputError(f"{path}: no row of it can be used{f': {bad_rows}' if bad_rows.found else ''}")
        rows += share_of(found, int(share[2] or 0), int(share[3] or 100)) if share else found
    return rows
