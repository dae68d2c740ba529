"""What a kind of task is to a model: a head, inputs, answers and their score."""

from collections.abc import Callable
from dataclasses import dataclass

from zh_modernbert.eval.finetuning.training import Examples, Metrics, Score
from zh_modernbert.eval.tasks.rows import Row


@dataclass
class Kind:
    """How the rows of a task are put to a model.

    Attributes:
        head: the Auto class that loads it.
        config: what the model's config has to say, as `num_labels`.
        encode: rows to what the model reads, what is right, and how outputs become answers.
        collator: features to a batch.
        score: of answers and references.
        baseline: (rows of training, scored rows) -> scores without a model, which stand beside the model's.
        entries: (answers, rows) -> what the official file of predictions holds: a list for lines, a dict for one object.
        around: the model that `head` loads -> what is trained, where it has a head of ours.
    """

    head: type
    config: dict
    encode: Callable[[list[Row]], Examples]
    collator: Callable
    score: Score
    baseline: Callable[[list[Row], list[Row]], Metrics]
    entries: Callable[[list, list[Row]], list[dict] | dict]
    around: Callable = lambda model: model


def identity(row: Row, index: int):
    """The id by which an official file of predictions calls a row: its own, or its number from 0."""
    return row.values.get("id", index)
