"""What rows of a task must be, by its kind. Rows that are not so are reported, and left out."""

from collections.abc import Callable

from zh_modernbert.eval.tasks.forms import MARK
from zh_modernbert.eval.tasks.reading import check_reading
from zh_modernbert.eval.tasks.registry import Task
from zh_modernbert.eval.tasks.rows import BadRows, Row

Check = Callable[[dict, Task], str]  # what is wrong with a row, or nothing


def is_text(value) -> bool:
    return isinstance(value, str) and bool(value.strip())


def check_texts(values: dict, task: Task) -> str:
    for name in ("text", "text_pair"):
        if name in values and not is_text(values[name]):
            return f"{name} is empty"
    return "" if "text" in values else "no text"


def check_label(values: dict, task: Task) -> str:
    label = values.get("label")
    if label is not None and task.labels and label not in task.labels:
        return f"unknown label {label!r}; known are {', '.join(task.labels)}"
    return "" if label is None or str(label).strip() else "label is empty"


def check_number(values: dict, task: Task) -> str:
    try:
        return "" if "label" not in values or abs(float(values["label"])) < float("inf") else "label is no number"
    except ValueError:
        return f"label {values['label']!r} is no number"


def check_choices(values: dict, task: Task) -> str:
    choices = values["choices"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(map(is_text, choices)):
        return f"choices are {choices!r}; a list of two texts or more is needed"
    if "label" in values and values["label"] not in choices:
        return f"the answer {values['label']!r} is none of the choices"
    return "" if isinstance(values["question"], str) else "no question"


def check_cloze(values: dict, task: Task) -> str:
    candidates, passages = values["candidates"], values["passages"]
    if not isinstance(candidates, list) or len(candidates) < 2 or not all(map(is_text, candidates)):
        return f"candidates are {candidates!r}; a list of two texts or more is needed"
    if not all(map(is_text, passages)):
        return "a passage is empty"
    marks = [mark for passage in passages for mark in MARK.findall(passage)]
    if not marks or len(set(marks)) < len(marks):
        return "no #idiom...# in the passages, or one twice"
    for mark in marks if "labels" in values else ():
        label = values["labels"].get(mark)
        if not isinstance(label, int) or not 0 <= label < len(candidates):
            return f"the answer to {mark} is {label!r}, which is the number of no candidate"
    return ""


def check_entities(values: dict, task: Task) -> str:
    end = 0
    for start, stop, kind in values.get("entities", ()):
        if not (isinstance(start, int) and isinstance(stop, int) and 0 <= start < stop <= len(values["text"])):
            return f"an entity from {start!r} to {stop!r} is outside the text"
        if start < end:
            return f"the entity from {start} to {stop} overlaps another"
        if not is_text(kind):
            return f"the type of an entity is {kind!r}"
        end = stop
    return ""


CHECKS: dict[str, tuple[Check, ...]] = {
    "classification": (check_texts, check_label),
    "regression": (check_texts, check_number),
    "choice": (check_texts, check_choices),
    "cloze": (check_cloze,),
    "tagging": (check_texts, check_entities),
    "segmentation": (check_texts, check_entities),
    "reading": (lambda values, task: check_reading(values),),
}
LABELS = {
    "cloze": "labels",
    "tagging": "entities",
    "segmentation": "entities",
    "reading": "answers",
}  # what a row is labelled by, if not `label`


def label_field(task: Task) -> str:
    return LABELS.get(task.kind, "label")


def check_rows(rows: list[Row], task: Task, bad_rows: BadRows) -> list[Row]:
    """The rows of one split that can be used. Those that the benchmark itself drops are left out without a word."""
    kept, identities, labelled = [], set(), any(label_field(task) in row.values for row in rows)
    for row in rows:
        if row.values.get("label") in task.dropped_labels:
            continue
        reason = next(filter(None, (check(row.values, task) for check in CHECKS[task.kind])), "")
        if not reason and labelled and label_field(task) not in row.values:
            reason = f"no {label_field(task)}, which other rows have"
        identity = (row.path, str(row.values.get("id")))
        if not reason and "id" in row.values and identity in identities:
            reason = f"the id {row.values['id']!r} is there twice"
        if reason:
            bad_rows.report(row.path, row.number, reason)
        else:
            identities.add(identity)
            kept.append(row)
    return kept
