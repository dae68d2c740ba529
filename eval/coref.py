"""Coreference: trains a head on any encoder and scores it by CoNLL F1, or scores given predictions.

Files are CoNLL-2012 or JSON Lines; see `eval/tasks/coreference.py`. Of documents longer than `max_length`, each part stands for
itself. `--predictions true` writes the clusters that are found.

    python eval/coref.py --model runs/published --trust_remote_code true --train_file train.conll --validation_file dev.conll
    python eval/coref.py --validation_file dev.conll --predictions_file predicted.jsonl
"""

import time
from dataclasses import dataclass, replace

import zh_modernbert.train.common.extras  # names the extra of a missing package
import zh_modernbert.train.common.openmp  # noqa: F401  # before torch is loaded

from zh_modernbert.eval.finetuning.loading import load_config, load_tokenizer
from zh_modernbert.eval.finetuning.settings import FineTuningSettings
from zh_modernbert.eval.kinds.coreference import coreference_kind, lost_mentions
from zh_modernbert.eval.kinds.running import run_kind, summaries
from zh_modernbert.eval.metrics import coreference
from zh_modernbert.eval.tasks.coreference import read_documents
from zh_modernbert.eval.tasks.loading import Data, cut
from zh_modernbert.eval.tasks.registry import Grid, Task
from zh_modernbert.eval.tasks.results import check_name, make_result, write_result
from zh_modernbert.eval.tasks.rows import BadRows, Row, hash_rows, settle
from zh_modernbert.train.common.cli import InputError, run, setting
from zh_modernbert.train.common.devices import check_environment
from zh_modernbert.train.common.model_folder import check_max_length

OF_TASKS = ("data_dir", "from_hub", "script", "output_dir")  # settings for tasks with a home, and for heads of transformers
TASK = Task(
    "coreference",
    (),
    primary_metric="conll_f1",
    max_length=512,
    learning_rate=5e-5,
    batch_size=4,
    num_train_epochs=20,
    grid=Grid(batch_sizes=(4, 8), num_train_epochs=20),
)


@dataclass
class Settings(FineTuningSettings):
    model: str = setting("", "model folder or Hub id")
    train_file: str = setting("", "documents with clusters: CoNLL-2012, or .jsonl")
    validation_file: str = setting("", "the same, to score")
    predictions_file: str = setting("", "the same with predicted clusters, to score instead of a model")
    name: str = setting("coreference", "what the result is called")
    split: str = setting("dev", "what validation_file is", choices=("dev", "test"))


def read(path: str, split: str, settings: Settings) -> tuple[list[Row], list[str]]:
    """The documents of a file, and what there is to say of its bad rows."""
    bad_rows = BadRows()
    rows = read_documents(path, bad_rows)
    return rows, settle({split: rows}, {split: bad_rows}, settings.skip_bad_rows, {})


def score_predictions(settings: Settings) -> dict:
    """The result of a file of predictions. A document that it lacks has no clusters.

    Raises:
        InputError: it has a document that is not to be scored, or another text of one.
    """
    started = time.perf_counter()
    rows, notes = read(settings.validation_file, settings.split, settings)
    found, more = read(settings.predictions_file, "predictions", settings)
    expected, predicted = ({row.values["id"]: row for row in part} for part in (rows, found))
    for name, row in predicted.items():
        if name not in expected or row.values["text"] != expected[name].values["text"]:
            raise InputError(f"{row.where}: document {name!r} is not in {settings.validation_file}, or has another text there")
    clusters = [predicted[name].values["clusters"] if name in predicted else [] for name in expected]
    metrics = coreference.score([row.values["clusters"] for row in rows], clusters)
    if missing := len(expected) - len(predicted):
        notes.append(f"documents without a prediction, which counts as none found: {missing}")
    result = make_result(
        task=settings.name,
        split=settings.split,
        model=settings.predictions_file,
        primary_metric=TASK.primary_metric,
        metrics=metrics,
        num_examples=len(rows),
        seed=settings.seed,
        hyperparameters={"data": hash_rows(rows)},
        notes=notes + more,
        seconds=time.perf_counter() - started,
    )
    write_result(settings.results_dir, result)
    return result


def train(settings: Settings) -> dict:
    """The result of a seed, or of several, their summary."""
    training, notes = read(settings.train_file, "train", settings)
    scored, more = read(settings.validation_file, settings.split, settings)
    notes += more
    training = cut(training, settings.max_train_examples, "train", notes)
    scored = cut(scored, settings.max_eval_examples, settings.split, notes)
    data = Data(settings.name, settings.split, {"train": training, settings.split: scored}, settings.split, [], notes)
    tokenizer = load_tokenizer(settings.model, settings.trust_remote_code)
    max_length = settings.max_length or TASK.max_length
    check_max_length(load_config(settings.model, settings.trust_remote_code), max_length)
    kind = coreference_kind(tokenizer, max_length)
    if lost := lost_mentions(kind.encode(scored)):
        notes.append(f"mentions that no model can find, within tokens, in two parts or too wide: {lost}")
    task = replace(TASK, predictions={settings.split: f"{settings.name}_{settings.split}.jsonl"})
    results = run_kind(settings, task, data, kind, tokenizer, {"max_length": max_length})
    return results[0] if len(results) == 1 else {"results": summaries(results)}


def main(settings: Settings) -> dict:
    check_environment(mixed_precision="no")
    check_name(settings.name)
    if not settings.validation_file:
        raise InputError("coref: no documents to score; give --validation_file FILE")
    if bool(settings.predictions_file) == bool(settings.model and settings.train_file):
        raise InputError("coref: give either predictions_file, or model and train_file")
    if given := [name for name in OF_TASKS if getattr(settings, name)]:
        raise InputError(f"coref: {given[0]} means nothing here; leave it out")
    return score_predictions(settings) if settings.predictions_file else train(settings)


if __name__ == "__main__":
    run(main, Settings)
