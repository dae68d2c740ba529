"""Fine-tunes a model on benchmark tasks, or on tables of one's own, and scores it: classification, pairs, choice, tagging.

python eval/clue.py --model runs/quickstart/model --trust_remote_code true --task tnews afqmc --data_dir DIR
python eval/clue.py --model hfl/chinese-macbert-base --task available --data_dir DIR --grid clue --seeds 5 --predictions true
python eval/clue.py --model hfl/chinese-macbert-base --train_file a.csv --validation_file b.csv --text_column review
"""

from dataclasses import dataclass
from pathlib import Path

import zh_modernbert.train.common.extras  # names the extra of a missing package
import zh_modernbert.train.common.openmp  # noqa: F401  # before torch is loaded

from transformers import PreTrainedTokenizerBase

from zh_modernbert.eval.finetuning.loading import load_config, load_tokenizer
from zh_modernbert.eval.finetuning.settings import FineTuningSettings
from zh_modernbert.eval.kinds.choice import choice, cloze
from zh_modernbert.eval.kinds.classification import classification, in_order_of, regression
from zh_modernbert.eval.kinds.kind import Kind
from zh_modernbert.eval.kinds.running import load, run_kind, run_tasks
from zh_modernbert.eval.kinds.tagging import tagging
from zh_modernbert.eval.tasks.loading import Data, find_release, place_of
from zh_modernbert.eval.tasks.registry import TASKS, Release, Task
from zh_modernbert.eval.tasks.results import check_name
from zh_modernbert.train.common.cli import InputError, run, setting
from zh_modernbert.train.common.devices import check_environment
from zh_modernbert.train.common.model_folder import check_max_length
from zh_modernbert.train.corpus.tables import find_file, form_of

KINDS = ("classification", "regression", "choice", "cloze", "tagging", "segmentation")
NAMES = [name for name, task in TASKS.items() if task.kind in KINDS]
AVAILABLE = "available"
PRIMARY = {"regression": "spearman", "tagging": "f1", "segmentation": "f1"}  # of tables of one's own
FORMS = {"choice": "choices", "cloze": "chid", "segmentation": "segmented"}


@dataclass
class Settings(FineTuningSettings):
    task: list[str] = setting([], f"{AVAILABLE}: all that have files in data_dir; or some of {', '.join(NAMES)}")
    name: str = setting("", "what the result of own files is called; the name of train_file where empty")
    train_file: str = setting("", "a table of one's own: .tsv, .csv or .jsonl with named columns; of tagging also a tag a line")
    validation_file: str = setting("", "the same, to score")
    kind: str = setting("classification", "of train_file and validation_file", choices=KINDS)
    text_column: str = setting("text", "of train_file and validation_file")
    text_pair_column: str = setting("", "second text, for pairs")
    label_column: str = setting("label", "of train_file and validation_file")
    split_characters: bool = setting(False, "tagging: each character is a token; segmentation always does so")


def own_task(settings: Settings) -> tuple[str, Task]:
    """The row of a task whose files the user names."""
    if not (settings.train_file and settings.validation_file):
        raise InputError("clue: train_file and validation_file go together")
    form = FORMS.get(settings.kind, "table")
    if settings.kind == "tagging":
        form = "spans" if form_of(find_file(settings.train_file)) in (".jsonl", ".json") else "tagged"
    columns = {"id": "id", "text": settings.text_column, "label": settings.label_column}
    columns |= {"text_pair": settings.text_pair_column} if settings.text_pair_column else {}
    files = {
        "train": (str(find_file(settings.train_file).resolve()),),
        "validation": (str(find_file(settings.validation_file).resolve()),),
    }
    release = Release(files, form=form, columns=columns)
    task = Task(settings.kind, (release,), primary_metric=PRIMARY.get(settings.kind, "accuracy"), folder=".")
    return settings.name or Path(settings.train_file).name.split(".")[0], task


def tasks_of(settings: Settings) -> dict[str, Task]:
    """The tasks to run, by name.

    Raises:
        InputError: both tasks and files are given or neither, a task is unknown, or none has files.
    """
    if bool(settings.task) == bool(settings.train_file or settings.validation_file):
        raise InputError("clue: give either task and data_dir, or train_file and validation_file")
    if not settings.task:
        check_name(settings.name)
        return dict([own_task(settings)])
    if settings.name:
        raise InputError("clue: a task has a name; leave out --name, which is of train_file and validation_file")
    if settings.task == [AVAILABLE]:
        found = [name for name in NAMES if find_release(place_of(settings.data_dir, TASKS[name]), TASKS[name], settings.split)]
        if not found:
            raise InputError(f"{settings.data_dir or '.'}: no task has its files here, or in folders of this folder")
        return {name: TASKS[name] for name in found}
    for name in settings.task:
        if name not in NAMES:
            raise InputError(f"clue: unknown task {name!r}; known are {AVAILABLE}, {', '.join(NAMES)}")
    return {name: TASKS[name] for name in settings.task}


def kind_of(settings: Settings, task: Task, data: Data, tokenizer: PreTrainedTokenizerBase, config, max_length: int) -> Kind:
    rows = [row.values for rows in data.splits.values() for row in rows]
    if task.kind == "classification":
        return classification(task, tokenizer, max_length, in_order_of(config.label2id, data.labels))
    if task.kind == "regression":
        return regression(tokenizer, max_length)
    if task.kind == "choice":
        return choice(tokenizer, max_length, max(len(values["choices"]) for values in rows))
    if task.kind == "cloze":
        return cloze(tokenizer, max_length, max(len(values["candidates"]) for values in rows))
    return tagging(task, tokenizer, max_length, data.labels, settings.split_characters or task.kind == "segmentation")


def run_task(settings: Settings, name: str, task: Task) -> list[dict]:
    """The results of a task, one a seed, which are written too."""
    data = load(settings, name, task)
    tokenizer = load_tokenizer(settings.model, settings.trust_remote_code)
    config = load_config(settings.model, settings.trust_remote_code)
    max_length = settings.max_length or task.max_length
    check_max_length(config, max_length)
    kind = kind_of(settings, task, data, tokenizer, config, max_length)
    details = {"max_length": max_length, **({"split_characters": True} if settings.split_characters else {})}
    return run_kind(settings, task, data, kind, tokenizer, details)


def main(settings: Settings) -> dict:
    check_environment(mixed_precision="no")
    return run_tasks(settings, tasks_of(settings), lambda name, task: run_task(settings, name, task))


if __name__ == "__main__":
    run(main, Settings)
