"""Fine-tunes a model to answer questions by a span of a passage, and scores it as CMRC2018 or DRCD does.

python eval/mrc.py --model runs/quickstart/model --trust_remote_code true --task drcd --data_dir DIR
python eval/mrc.py --model hfl/chinese-macbert-base --task cmrc2018 --data_dir DIR --grid clue --seeds 5 --predictions true
python eval/mrc.py --model hfl/chinese-macbert-base --train_file my_train.json --validation_file my_dev.json
python eval/mrc.py --validation_file cmrc2018_dev.json --predictions_file answers.json --scorer cmrc2018

The last one scores answers that are there already, of a JSON object with ids of questions and texts. It works with --task, too.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import zh_modernbert.train.common.extras  # names the extra of a missing package
import zh_modernbert.train.common.openmp  # noqa: F401  # before torch is loaded

from zh_modernbert.eval.finetuning.loading import load_config, load_tokenizer
from zh_modernbert.eval.finetuning.settings import FineTuningSettings
from zh_modernbert.eval.kinds.reading import SCORERS, leave_out_unanswerable, overlap_baseline, questions_of, reading
from zh_modernbert.eval.kinds.running import load, run_kind, run_tasks
from zh_modernbert.eval.tasks.loading import load_split
from zh_modernbert.eval.tasks.registry import TASKS, Release, Task
from zh_modernbert.eval.tasks.results import check_name, make_result, write_result
from zh_modernbert.eval.tasks.rows import NAMED, hash_rows
from zh_modernbert.train.common.cli import InputError, run, setting
from zh_modernbert.train.common.devices import check_environment
from zh_modernbert.train.common.files import read_json
from zh_modernbert.train.common.model_folder import check_max_length
from zh_modernbert.train.corpus.tables import find_file

NOT_OF_ANSWERS = ("script", "from_hub", "max_eval_examples", "max_train_examples", "grid", "predictions", "output_dir")
NAMES = [name for name, task in TASKS.items() if task.kind == "reading"]


@dataclass
class Settings(FineTuningSettings):
    model: str = setting("", "model folder or Hub id")
    task: list[str] = setting([], f"some of {', '.join(NAMES)}", choices=tuple(NAMES))
    name: str = setting("", "what the result of own files is called; the name of train_file where empty, or of validation_file")
    train_file: str = setting("", "questions of one's own: JSON in SQuAD's form, or rows with id, question, context, answers")
    validation_file: str = setting("", "the same, to score")
    predictions_file: str = setting("", "score these answers to validation_file, of no model")
    scorer: str = setting("", "whose rules count; empty: the task's, or cmrc2018", choices=("", *SCORERS))
    stride: int = setting(128, "tokens that windows of a long passage share", least=0)
    n_best: int = setting(20, "starts, and ends for each, that are looked at in a window", least=1)
    max_answer_characters: int = setting(100, "longest answer", least=1)


def own_task(settings: Settings) -> Task:
    """The row of a task whose files the user names. Its settings are those of CMRC2018."""
    files = {"train": settings.train_file, "validation": settings.validation_file}
    release = Release({split: (str(find_file(path).resolve()),) for split, path in files.items() if path}, form="reading")
    return replace(TASKS["cmrc2018"], releases=(release,), folder=".", predictions={}, hub=None)


def tasks_of(settings: Settings) -> dict[str, Task]:
    """The tasks to run, by name.

    Raises:
        InputError: both tasks and files are given, or neither, or one of two files.
    """
    if bool(settings.task) == bool(settings.train_file or settings.validation_file):
        raise InputError("mrc: give either task and data_dir, or train_file and validation_file")
    if settings.task and settings.name:
        raise InputError("mrc: a task has a name; leave out --name, which is of train_file and validation_file")
    if settings.task:
        return {name: TASKS[name] for name in settings.task}
    if not settings.validation_file or not (settings.train_file or settings.predictions_file):
        raise InputError("mrc: train_file and validation_file go together; predictions_file needs validation_file alone")
    check_name(settings.name)
    return {settings.name or Path(settings.train_file or settings.validation_file).name.split(".")[0]: own_task(settings)}


def name_by(name: str, task: Task, scorer: str) -> str:
    """The name of a task, which says whose rules count where they are not the task's own."""
    return name if scorer == task.scorer else f"{name}_by_{scorer}"


def run_task(settings: Settings, name: str, task: Task) -> list[dict]:
    """The results of a task, one a seed, which are written too."""
    data = leave_out_unanswerable(load(settings, name, task))
    scorer = settings.scorer or task.scorer
    data.name = name_by(data.name, task, scorer)
    tokenizer = load_tokenizer(settings.model, settings.trust_remote_code)
    max_length = settings.max_length or task.max_length
    check_max_length(load_config(settings.model, settings.trust_remote_code), max_length)
    windows = {
        "max_length": max_length,
        "stride": settings.stride,
        "n_best": settings.n_best,
        "max_answer_characters": settings.max_answer_characters,
        "scorer": scorer,
    }
    return run_kind(settings, task, data, reading(tokenizer, **windows), tokenizer, windows)


def score_answers(settings: Settings, name: str, task: Task) -> list[dict]:
    """The result of answers that are there already."""
    started = time.perf_counter()
    split = settings.split or ("dev" if settings.task else "validation")
    rows, notes = load_split(name, task, settings.data_dir, split, settings.skip_bad_rows)
    questions, scorer = questions_of(rows), settings.scorer or task.scorer
    answers = {identity: str(text) for identity, text in read_json(settings.predictions_file).items()}
    if missing := [question.id for question in questions if question.id not in answers]:
        notes.append(f"without an answer, which counts as wrong: {len(missing)} ({', '.join(missing[:NAMED])})")
    scores = SCORERS[scorer]({question.id: question.references for question in questions}, answers)
    result = make_result(
        task=name_by(name, task, scorer),
        split=split,
        model=settings.predictions_file,
        primary_metric=task.primary_metric,
        metrics=scores | overlap_baseline(questions, scorer),
        num_examples=len(questions),
        seed=settings.seed,
        hyperparameters={"data": hash_rows(rows), "scorer": scorer},
        notes=notes,
        seconds=time.perf_counter() - started,
    )
    write_result(settings.results_dir, result)
    return [result]


def main(settings: Settings) -> dict:
    if bool(settings.model) == bool(settings.predictions_file):
        raise InputError("mrc: give either model, to be fine-tuned, or predictions_file, with answers to score")
    if settings.predictions_file and (given := [name for name in NOT_OF_ANSWERS if getattr(settings, name)]):
        raise InputError(f"mrc: {given[0]} means nothing beside predictions_file; leave it out")
    check_environment(mixed_precision="no")
    do = score_answers if settings.predictions_file else run_task
    return run_tasks(settings, tasks_of(settings), lambda name, task: do(settings, name, task))


if __name__ == "__main__":
    run(main, Settings)
