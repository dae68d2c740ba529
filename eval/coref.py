"""Coreference: trains a head on any encoder and scores it by CoNLL F1, or scores given predictions.

Files are CoNLL-2012 or JSON Lines; see `eval/tasks/coreference.py`. Of documents longer than `max_length`, each part stands for
itself.

    python eval/coref.py --model runs/published --trust_remote_code true --train_file train.conll --validation_file dev.conll
    python eval/coref.py --validation_file dev.conll --predictions_file predicted.jsonl
"""

import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import zh_modernbert.train.common.openmp  # noqa: F401  # before torch is loaded

import orjson
import torch
from transformers import AutoModel, set_seed

from zh_modernbert.eval.finetuning.loading import check_max_length, fingerprint, load_config, load_tokenizer
from zh_modernbert.eval.finetuning.runs import Outcome, best_on_dev, figures_on_dev, run_all
from zh_modernbert.eval.finetuning.settings import FineTuningSettings, grid_of, seeds_of
from zh_modernbert.eval.finetuning.training import Hyperparameters, fine_tune, predict
from zh_modernbert.eval.kinds.coreference import CoreferenceModel, collate, encode
from zh_modernbert.eval.metrics import coreference
from zh_modernbert.eval.tasks.coreference import read_documents
from zh_modernbert.eval.tasks.registry import Grid, Task
from zh_modernbert.eval.tasks.results import write_result
from zh_modernbert.eval.tasks.rows import BadRows, Row
from zh_modernbert.train.common.cli import InputError, describe, run, setting
from zh_modernbert.train.common.files import hash_json
from zh_modernbert.train.common.model_folder import load_by_auto_class
from zh_modernbert.train.pretraining.parallel import check_environment

METRIC = "conll_f1"
TASK = Task(
    "coreference",
    (),
    METRIC,
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
    split: str = setting("dev", "what validation_file is called in the result")
    output_file: str = setting("", "where the predicted clusters go, as .jsonl; nowhere where empty")


def read(path: str, settings: Settings, most: int = 0) -> list[Row]:
    """The documents of a file, or the first `most`."""
    bad_rows = BadRows()
    rows = read_documents(path, bad_rows)
    bad_rows.settle(settings.skip_bad_rows, {})
    return rows[: most or None]


def score_predictions(settings: Settings) -> dict[str, float]:
    """The scores of a file of predictions. A document that it lacks has no clusters.

    Raises:
        InputError: it has a document that is not to be scored, or another text of one.
    """
    expected, predicted = (
        {row.values["id"]: row for row in read(path, settings)}
        for path in (settings.validation_file, settings.predictions_file)
    )
    for name, row in predicted.items():
        if name not in expected or row.values["text"] != expected[name].values["text"]:
            raise InputError(f"{row.where}: document {name!r} is not in {settings.validation_file}, or has another text there")
    found = [predicted[name].values["clusters"] if name in predicted else [] for name in expected]
    return coreference.score([row.values["clusters"] for row in expected.values()], found)


def load_encoder(settings: Settings):
    if not settings.random_init:
        options = {"trust_remote_code": settings.trust_remote_code, "dtype": torch.float32}
        return load_by_auto_class(AutoModel, settings.model, new_head=True, **options)
    config = load_config(settings.model, settings.trust_remote_code)
    try:
        return AutoModel.from_config(config, trust_remote_code=settings.trust_remote_code, dtype=torch.float32)
    except Exception as error:  # transformers raises many kinds
        raise InputError(f"{settings.model}: cannot be loaded: {describe(error)}") from error


def result_of(settings: Settings, metrics: dict[str, float], seed: int, documents: int, started: float, **more) -> dict:
    result = {
        "task": settings.name,
        "split": settings.split,
        "model": settings.model or settings.predictions_file,
        "primary_metric": METRIC,
        "metrics": {name: round(value, 4) for name, value in metrics.items()},
        "num_examples": documents,
        "seed": seed,
        "hyperparameters": more.get("hyperparameters", {}),
        "notes": more.get("notes", ""),
        "runtime_seconds": round(time.perf_counter() - started, 1),
    }
    write_result(settings.results_dir, result)
    return result


def train(settings: Settings, started: float) -> list[dict]:
    """The results of the seeds."""
    rows = {
        "train": read(settings.train_file, settings, settings.max_train_examples),
        "dev": read(settings.validation_file, settings, settings.max_eval_examples),
    }
    tokenizer = load_tokenizer(settings.model, settings.trust_remote_code)
    max_length = settings.max_length or TASK.max_length
    check_max_length(load_config(settings.model, settings.trust_remote_code), max_length)
    (training, _), (dev, lost) = (encode(tokenizer, max_length, rows[part]) for part in ("train", "dev"))

    def run_one(hyperparameters: Hyperparameters, seed: int) -> Outcome:
        set_seed(seed)
        model = CoreferenceModel(load_encoder(settings))
        trainer, epochs = fine_tune(
            *(model, partial(collate, tokenizer), training, dev, hyperparameters, seed, coreference.score, METRIC),
            settings.device_batch_size,
        )
        return Outcome(epochs, answers={"dev": predict(trainer, dev)})

    recipe = {
        "model": fingerprint(settings.model, settings.random_init),
        "random_init": settings.random_init,
        "data": hash_json({part: [row.values for row in found] for part, found in rows.items()}),
        "max_length": max_length,
    }
    grid = grid_of(settings, TASK)
    outcomes = run_all(settings.results_dir, f"{settings.name}-{settings.split}", recipe, grid, seeds_of(settings), run_one)
    notes = ["fine-tuned from random weights"] if settings.random_init else []
    notes += [f"{lost} mentions cannot be found: within tokens, in two windows, or too wide"] if lost else []
    results = []
    for seed, figure in figures_on_dev(outcomes, METRIC).items():
        chosen = figure.chosen[0][0]
        results.append(
            result_of(
                *(
                    settings,
                    {**figure.metrics, "best_on_dev": best_on_dev(outcomes[seed], METRIC)},
                    seed,
                    len(rows["dev"]),
                    started,
                ),
                hyperparameters={**asdict(grid[chosen]), "max_length": max_length, "num_train_examples": len(rows["train"])},
                notes="; ".join(notes),
            )
        )
        if settings.output_file and seed == settings.seed:
            write_clusters(Path(settings.output_file), rows["dev"], outcomes[seed][chosen].answers["dev"])
    return results


def write_clusters(path: Path, rows: list[Row], clusters: list) -> None:
    lines = [orjson.dumps({**row.values, "clusters": found}) for row, found in zip(rows, clusters, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def main(settings: Settings) -> dict:
    started = time.perf_counter()
    check_environment(mixed_precision="no")
    if not settings.validation_file:
        raise InputError("coref: no documents to score; give --validation_file FILE")
    if bool(settings.predictions_file) == bool(settings.model and settings.train_file):
        raise InputError("coref: give either predictions_file, or model and train_file")
    if settings.predictions_file:
        documents = len(read(settings.validation_file, settings))
        return result_of(settings, score_predictions(settings), 0, documents, started)
    results = train(settings, started)
    return results[0] if len(results) == 1 else {"results": results}


if __name__ == "__main__":
    run(main, Settings)
