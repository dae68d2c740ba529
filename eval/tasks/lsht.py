"""LSHT of LongBench (https://github.com/THUDM/LongBench): the class of a news article.

LongBench asks a generative model, and puts articles with their classes before the one that is asked for. Here the former are
what an encoder is trained on, and the latter is what it is scored on. So a score is of the same texts, not by the same means.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from zh_modernbert.eval.tasks.hub import download
from zh_modernbert.eval.tasks.loading import Data, cut, hold_out
from zh_modernbert.eval.tasks.registry import Grid, Task
from zh_modernbert.eval.tasks.rows import BadRows, Row, settle
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.corpus.lines import read_jsonl
from zh_modernbert.train.corpus.tables import find_file

TASK = Task("classification", (), primary_metric="accuracy", max_length=512, num_train_epochs=5, grid=Grid(num_train_epochs=5))
FILE = "lsht.jsonl"
ON_HUB = "hf://datasets/THUDM/LongBench@refs%2Fconvert%2Fparquet/lsht/test/*.parquet"
TEXT, LABEL = "新闻内容：", "类别："


def articles(text: str) -> Iterator[tuple[str, str]]:
    """(text, class) of the articles in a prompt; the class of the one that is asked for is empty."""
    for part in text.split(TEXT)[1:]:
        article, _, label = part.rpartition(LABEL)
        yield article.strip(), label.strip()


def split_rows(entries: Iterable[Row], bad_rows: BadRows) -> tuple[list[Row], list[Row]]:
    """The articles to train on, each text once, and those to score. A text that is scored is not trained on."""
    train: dict[str, Row] = {}
    scored: dict[str, Row] = {}
    for entry in entries:
        try:
            [(asked, _)] = articles(entry.values["input"])
            [label, *_] = entry.values["answers"]
            shown = [*articles(entry.values["context"])]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            bad_rows.report(entry.path, entry.number, f"not an entry of LSHT ({type(error).__name__}: {error})")
            continue
        scored[asked] = entry._replace(values={"text": asked, "label": label})
        for text, name in shown:
            if text and name:
                train[text] = entry._replace(values={"text": text, "label": name})
    return [row for text, row in train.items() if text not in scored], [*scored.values()]


def load_lsht(data_dir: str, from_hub: bool, skip_bad_rows: bool, max_train_examples: int, max_eval_examples: int) -> Data:
    """LSHT as a task of classification; a tenth of training chooses the epoch.

    Raises:
        InputError: the file is missing or of another form, or has a class that training has not.
    """
    bad_rows = BadRows()
    if from_hub:
        found = download(ON_HUB, "parquet", data_files=ON_HUB, split="train")
        entries = [Row("THUDM/LongBench (lsht)", number, dict(values)) for number, values in enumerate(found, 1)]
    else:
        path = find_file(Path(data_dir) / FILE)
        entries = [Row(str(path), number, values) for number, values in read_jsonl(path)]
    train, scored = split_rows(entries, bad_rows)
    labels = sorted({row.values["label"] for row in train})
    for row in scored:
        if row.values["label"] not in labels:
            bad_rows.report(row.path, row.number, f"class {row.values['label']!r} does not occur in the examples")
    scored = [row for row in scored if row.values["label"] in labels]
    notes = ["trained on the examples of LongBench's prompts", *settle({"test": scored}, {"test": bad_rows}, skip_bad_rows, {})]
    if len(labels) < 2 or not scored:
        raise InputError(
            f"lsht: {len(labels)} classes to train on and {len(scored)} articles to score; is it {FILE} of LongBench?"
        )
    train, scored = cut(train, max_train_examples, "train", notes), cut(scored, max_eval_examples, "test", notes)
    splits = {**hold_out(train), "test": scored}
    return Data("lsht", "test", splits, "held_out", labels, notes)
