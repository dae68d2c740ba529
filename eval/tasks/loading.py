"""The splits of a task: from a release's files, or from the Hub; checked, and cut where asked."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zh_modernbert.eval.tasks.checks import check_rows, label_field
from zh_modernbert.eval.tasks.conversion import convert_rows
from zh_modernbert.eval.tasks.forms import SHARE, read_files
from zh_modernbert.eval.tasks.hub import read_hub
from zh_modernbert.eval.tasks.reading import check_defects
from zh_modernbert.eval.tasks.registry import Release, Task
from zh_modernbert.eval.tasks.rows import PART, BadRows, Row, part_note, settle
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.corpus.lines import PACKED
from zh_modernbert.train.corpus.ngrams import ngram_hashes, tokens

HELD_OUT = 10  # every tenth example of training chooses, where no other split may,
MOST_HELD_OUT = 2000  # and no more than these
WINDOW = 13  # characters, or words of other scripts: so many in a row are the same text, and hardly ever a common phrase
CHOOSING = ("dev", "validation")  # splits that choose epoch and setting for themselves and others


@dataclass
class Data:
    """What a task is trained on and scored on.

    Attributes:
        name: of the task, with `_hans` or `_hant` where it was brought into that script, and `_substitute` where a release
            stands in for the official one.
        splits: `train`, the scored split, `dev` where it is another one, and unlabelled ones that are to be predicted.
        chosen_on: the split that chooses epoch and setting: dev, or a part of training, `held_out`.
        labels: the names of classes, or the types of spans, sorted: those of training, before it was cut, and of the task.
        notes: what a reader of the score has to know.
        official: these are the benchmark's own files, whole and in their own script.
    """

    name: str
    split: str
    splits: dict[str, list[Row]]
    chosen_on: str
    labels: list[str]
    notes: list[str]
    official: bool = True

    def __post_init__(self):
        """Each half of the split that chooses has to have an example: see `eval/finetuning/runs.py`.

        Raises:
            InputError: a split has too few examples.
        """
        for split, least in {"train": 1, self.split: 1, self.chosen_on: 2}.items():
            if (count := len(self.splits[split])) < least:
                said = "".join(f"; {note}" for note in self.notes)
                raise InputError(f"{self.name}: {count} examples of {split} are left, and {least} or more are needed{said}")


# --- finding files ---


def place_of(data_dir: str | Path, task: Task) -> Path:
    """The folder of the task's files: below a folder of tasks, or `data_dir` itself."""
    below = Path(data_dir) / task.folder
    return below if below.is_dir() else Path(data_dir)


def is_there(folder: Path, name: str) -> bool:
    share = SHARE.fullmatch(name)
    path = folder / (share[1] if share else name)
    return any(Path(f"{path}{suffix}").is_file() for suffix in ("", *PACKED))


def has(folder: Path, release: Release, split: str) -> bool:
    return split in release.splits and all(is_there(folder, name) for name in release.splits[split])


def find_release(folder: Path, task: Task, split: str) -> tuple[Release, str] | None:
    """The first release of which training and the scored split are in `folder`, and the name of that split.

    Args:
        split: to score; empty: dev, or where a release has none, test.
    """
    for release in task.releases:
        scored = next((name for name in ([split] if split else [*CHOOSING, "test"]) if has(folder, release, name)), None)
        if scored and has(folder, release, "train"):
            return release, scored
    return None


def require_release(folder: Path, name: str, task: Task, split: str) -> tuple[Release, str]:
    """As `find_release`.

    Raises:
        InputError: the task has no such split, or no release has all its files in `folder`.
    """
    known = list(dict.fromkeys(known for release in task.releases for known in release.splits if known != "train"))
    if split and split not in known:
        raise InputError(f"{name} has no split {split!r}; it has {', '.join(known)}")
    if found := find_release(folder, task, split):
        return found
    official = task.releases[0].splits
    names = [file for part in ("train", split or known[0]) for file in official.get(part, ())]
    missing = [file for file in names if not is_there(folder, file)]
    needed = ", ".join(missing or names)
    raise InputError(f"{folder}: {name} needs {needed}, plain or compressed; give the folder as --data_dir")


# --- rows ---


def is_labelled(rows: list[Row], task: Task) -> bool:
    return bool(rows) and label_field(task) in rows[0].values


def drop_spaces(text: str) -> str:
    """The text without spaces that touch a Chinese character or full-width sign: those between words of ASCII stay."""
    parts = text.split()
    joined = parts[0] if parts else ""
    for part in parts[1:]:
        joined += (" " if joined[-1].isascii() and part[0].isascii() else "") + part
    return joined


def spaced(row: Row) -> Row:
    texts = {name: drop_spaces(row.values[name]) for name in ("text", "text_pair") if name in row.values}
    return row._replace(values={**row.values, **texts})


def sample(rows: list[Row], count: int) -> list[Row]:
    """All rows, or `count` of them, drawn the same way each time: files are often sorted by label. Their order stays."""
    if not count or count >= len(rows):
        return rows
    return [rows[i] for i in sorted(random.Random(0).sample(range(len(rows)), count))]


def cut(rows: list[Row], most: int, split: str, notes: list[str]) -> list[Row]:
    """As `sample`, with a note on what it leaves of the split."""
    if 0 < most < len(rows):
        notes.append(part_note(most, len(rows), split))
    return sample(rows, most)


def labels_of(train: list[Row], task: Task) -> list[str]:
    names = set(task.labels.values())
    if task.kind == "classification":
        names |= {task.name_of(row.values["label"]) for row in train if "label" in row.values}
    elif label_field(task) == "entities":
        names |= {kind for row in train for _, _, kind in row.values.get("entities", ())}
    return sorted(names)


def without_new_labels(rows: list[Row], task: Task, labels: list[str], bad_rows: BadRows) -> list[Row]:
    """The rows of a task without fixed labels whose classes training has."""
    if task.kind != "classification" or task.labels:
        return rows
    kept = []
    for row in rows:
        if (label := row.values.get("label")) is None or label in labels:
            kept.append(row)
        else:
            bad_rows.report(row.path, row.number, f"label {label!r} does not occur in training")
    return kept


def texts_of(row: Row) -> tuple[str, ...]:
    """What an example is, without its label."""
    names = ("text", "text_pair", "question", "context", "passages")
    return tuple(str(row.values[name]) for name in names if name in row.values)


def windows_of(row: Row) -> list[int]:
    """Hashes of all windows of an example's texts, whatever their width, case, script, spaces and punctuation.

    An example that is shorter than a window has one hash, of the whole.
    """
    return ngram_hashes(tokens("\n".join(texts_of(row)))[0], WINDOW).tolist()


def load_split(name: str, task: Task, data_dir: str, split: str, skip_bad_rows: bool) -> tuple[list[Row], list[str]]:
    """The rows of one split, and notes: to score answers that are there already, for which there need be no training files.

    Raises:
        InputError: files or the split are missing, rows are bad, or have no labels.
    """
    folder, bad_rows = place_of(data_dir, task), BadRows()
    release = next((release for release in task.releases if has(folder, release, split)), None)
    if not release:
        raise InputError(f"{folder}: no files of {name}, {split}; give the folder as --data_dir")
    rows = check_rows(read_files(folder, release.splits[split], release, bad_rows), task, bad_rows)
    notes = settle({split: rows}, {split: bad_rows}, skip_bad_rows, release.known_defects)
    if not is_labelled(rows, task):
        raise InputError(f"{name}: {split} has no labels ({label_field(task)})")
    return rows, notes + (check_defects(rows, release.known_defects, skip_bad_rows) if task.kind == "reading" else [])


def readers(
    name: str, task: Task, data_dir: str, split: str, from_hub: bool
) -> tuple[Release, str, list[str], Callable[[str, BadRows], list[Row]]]:
    """The release that is read, the split to score, the splits that are there, and what reads one of them.

    Raises:
        InputError: the task has no such split, its files are missing, or it has no home on the Hub.
    """
    if from_hub:
        if not task.hub:
            raise InputError(f"{name}: no home on the Hub is known; give its files as --data_dir")
        hub, release = task.hub, task.releases[0]
        return release, split or "dev", list(hub.splits), lambda part, bad_rows: read_hub(hub, part, release, bad_rows)
    folder = place_of(data_dir, task)
    release, split = require_release(folder, name, task, split)
    there = [part for part in release.splits if has(folder, release, part)]
    return release, split, there, lambda part, bad_rows: read_files(folder, release.splits[part], release, bad_rows)


def require_labels(name: str, task: Task, part: str, rows: list[Row], release: Release) -> None:
    if rows and not is_labelled(rows, task):
        field = release.columns.get("label", label_field(task))
        site = "; score dev, and --predictions true writes what the benchmark's site scores"
        raise InputError(f"{name}: {part} has no labels ({field}){site if part in task.predictions else ''}")


def without(rows: list[Row], others: list[Row]) -> list[Row]:
    """The rows whose texts are not among those of others."""
    texts = {texts_of(row) for row in others}
    return [row for row in rows if texts_of(row) not in texts]


def without_copies(rows: list[Row], others: list[Row]) -> list[Row]:
    """The rows that share no window with any of others: the same texts may be cut and written in other ways."""
    windows = {window for row in others for window in windows_of(row)}
    return [row for row in rows if windows.isdisjoint(windows_of(row))]


def hold_out(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows of training as `train` and `held_out`, which chooses epoch and setting."""
    held_out = sample(rows, min(max(len(rows) // HELD_OUT, 2), MOST_HELD_OUT))
    return {"train": without(rows, held_out), "held_out": held_out}


def load_data(
    name: str,
    task: Task,
    data_dir: str,
    split: str = "",
    from_hub: bool = False,
    predicted: bool = False,
    skip_bad_rows: bool = False,
    max_train_examples: int = 0,
    max_eval_examples: int = 0,
    script: str = "",
) -> Data:
    """The splits of a task that a run needs.

    Args:
        split: to score; empty: dev, or where there is none, test.
        predicted: the splits that have an official file of predictions are read too, as far as they are there.
        script: "hans" or "hant": all texts are brought into it, and the name of the task says so.

    Raises:
        InputError: files or the split are missing, rows are bad, or what is to be scored has no labels.
    """
    release, split, there, read = readers(name, task, data_dir, split, from_hub)
    chosen_on = split if split in CHOOSING else next((part for part in CHOOSING if part in there), "held_out")
    parts = {"train", split, chosen_on} - {"held_out"}
    parts |= {part for part in task.predictions if part in there} if predicted else set()
    bad_rows = {part: BadRows() for part in sorted(parts)}
    splits = {part: check_rows(read(part, bad), task, bad) for part, bad in bad_rows.items()}
    for part in ("train", split, chosen_on):
        require_labels(name, task, part, splits.get(part, []), release)
    labels = labels_of(splits["train"], task)
    if task.kind == "classification" and len(labels) == 1:
        raise InputError(f"{name}: training has only the label {labels[0]!r}; it needs two or more")
    splits = {part: without_new_labels(rows, task, labels, bad_rows[part]) for part, rows in splits.items()}
    notes = settle(splits, bad_rows, skip_bad_rows, release.known_defects)
    if task.kind == "reading":
        notes += check_defects([row for rows in splits.values() for row in rows], release.known_defects, skip_bad_rows)
    if task.drop_spaces:
        splits = {part: [spaced(row) for row in rows] for part, rows in splits.items()}
    if release.substitute:
        notes.insert(0, f"not the benchmark's score: {release.substitute}")
        before = len(splits["train"])
        scored = [row for part in {split, chosen_on} - {"held_out"} for row in splits[part]]
        splits["train"] = without_copies(splits["train"], scored)
        if dropped := before - len(splits["train"]):
            notes.append(f"{dropped} training examples left out, for what is scored has {WINDOW} characters in a row of them")
    if script:
        splits = {part: convert_rows(rows, task.kind, script) for part, rows in splits.items()}
        notes.append(f"all texts brought into {script} by OpenCC")
    for part, most in {"train": max_train_examples, split: max_eval_examples, chosen_on: max_eval_examples}.items():
        if part in splits:
            splits[part] = cut(splits[part], most, part, notes)
    if chosen_on == "held_out":
        splits |= hold_out(splits["train"])
    name += (f"_{script}" if script else "") + ("_substitute" if release.substitute else "")
    official = not (release.substitute or script or PART.search("; ".join(notes)))
    return Data(name, split, splits, chosen_on, labels, notes, official)
