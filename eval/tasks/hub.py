"""Rows of a task from its home on the Hub. This is the one place that downloads; `--from_hub true` asks for it."""

from datasets import ClassLabel, Dataset, load_dataset

from zh_modernbert.eval.tasks.forms import shape_all
from zh_modernbert.eval.tasks.registry import Hub, Release
from zh_modernbert.eval.tasks.rows import BadRows, Row
from zh_modernbert.train.common.cli import InputError, describe

UNLABELLED = -1  # what the Hub has for a class in test splits


def download(where: str, *arguments, **options) -> Dataset:
    """A split of a data set, as `datasets.load_dataset` loads it.

    Raises:
        InputError: it cannot be loaded, naming `where`.
    """
    try:
        return load_dataset(*arguments, **options)
    except Exception as error:  # datasets and huggingface_hub raise many kinds
        raise InputError(f"{where}: cannot be loaded: {describe(error)}") from error


def read_hub(hub: Hub, split: str, release: Release, bad_rows: BadRows) -> list[Row]:
    """The rows of a split. Classes have their names; those of unlabelled rows are left out.

    Raises:
        InputError: the data set cannot be loaded, or has no such split.
    """
    where = f"{hub.repository}{f' ({hub.config})' if hub.config else ''}"
    if split not in hub.splits:
        raise InputError(f"{where}: no split {split!r}; it has {', '.join(hub.splits)}")
    found = download(where, hub.repository, hub.config or None, split=hub.splits[split])
    classes = {name: kind.names for name, kind in found.features.items() if isinstance(kind, ClassLabel)}

    def named(values: dict) -> dict:
        names = {name: None if values[name] == UNLABELLED else classes[name][values[name]] for name in classes}
        return {name: value for name, value in {**values, **names}.items() if value is not None}

    raw = (Row(f"{where}, {split}", number, named(values)) for number, values in enumerate(map(dict, found), 1))
    return shape_all(raw, release.form, hub.columns or release.columns, bad_rows)
