"""The benchmark tasks: their files, columns and published settings. One row a task."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A task whose examples are rows of named columns, in files of one folder."""

    files: dict[str, str]  # split -> file name, which may end in .gz or .zst
    text_column: str
    label_column: str
    text_pair_column: str = ""
    max_length: int = 128
    learning_rate: float = 2e-5
    num_train_epochs: float = 3


TASKS = {
    # https://github.com/ymcui/Chinese-BERT-wwm, data/chnsenticorp: 9,600 / 1,200 / 1,200 reviews.
    "chnsenticorp": Task(
        files={"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"},
        text_column="text_a",
        label_column="label",
        max_length=256,
    ),
}
