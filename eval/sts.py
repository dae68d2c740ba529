"""How well a model's embeddings tell what is alike: similarity of pairs, and retrieval. Nothing is trained.

A model is a folder of sentence-transformers, or a bare encoder, whose embedding is the mean over its tokens. Similarity is the
cosine's correlation with the labels. Beside it stands that of the share of common characters. Retrieval finds a query's
documents among all. Needs `pip install '.[embeddings]'`, and `--through mteb` needs `.[mteb]`.

    python eval/sts.py --model runs/published --trust_remote_code true --task simclue sts_b --data_dir DIR
    python eval/sts.py --model runs/published --trust_remote_code true --pairs_file mine.csv --label_column score
    python eval/sts.py --model runs/published --trust_remote_code true --name t2ranking --queries_file queries.dev.tsv \\
        --corpus_file collection.tsv --qrels_file qrels.retrieval.dev.tsv
    python eval/sts.py --model runs/published --trust_remote_code true --task mldr_zh --data_dir DIR --max_length 8192
"""

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import zh_modernbert.train.common.extras  # names the extra of a missing package
import zh_modernbert.train.common.openmp  # noqa: F401  # before torch is loaded

from transformers import AutoModel

from zh_modernbert.eval.finetuning.loading import check_vocabulary, model_hash_of
from zh_modernbert.eval.kinds.classification import overlap, score_numbers
from zh_modernbert.eval.tasks.checks import check_rows
from zh_modernbert.eval.tasks.forms import read_files
from zh_modernbert.eval.tasks.loading import cut, has, place_of
from zh_modernbert.eval.tasks.mldr import SOURCES as LONG
from zh_modernbert.eval.tasks.mldr import read_mldr
from zh_modernbert.eval.tasks.registry import TASKS, Release, Task
from zh_modernbert.eval.tasks.results import check_name, check_no_other, make_result, results_folder, write_result
from zh_modernbert.eval.tasks.retrieval import of_pairs
from zh_modernbert.eval.tasks.rows import BadRows, Row, hash_rows, settle
from zh_modernbert.train.common.cli import BaseSettings, InputError, describe, run, setting
from zh_modernbert.train.common.devices import default_dtype
from zh_modernbert.train.common.files import hash_json
from zh_modernbert.train.common.model_folder import check_max_length, load_by_auto_class
from zh_modernbert.train.corpus.retrieval import Retrieval, read_retrieval
from zh_modernbert.train.corpus.tables import find_file

SEED = 0  # nothing here is drawn
SPLITS = ("test", "dev")  # what is scored where nothing else is asked for: the first that is there
TABLES = [name for name, task in TASKS.items() if "text_pair" in task.releases[0].columns]


@dataclass
class Settings(BaseSettings):
    model: str = setting(help="model folder or Hub id")
    trust_remote_code: bool = setting(False, "run the code that the model's folder brings")
    task: list[str] = setting(
        [], f"some of {', '.join(TABLES)}: pairs whose labels are numbers; or of {', '.join(LONG)}: retrieval of long documents"
    )
    data_dir: str = setting("", "folder of a task's files, or of folders of tasks")
    from_hub: bool = setting(False, f"download {' or '.join(LONG)} from the Hub instead")
    split: str = setting("", f"the split to score; empty: {', or where it has no labels, '.join(SPLITS)}")
    pairs_file: str = setting("", "a table of one's own: .tsv, .csv or .jsonl with named columns")
    text_column: str = setting("text", "of pairs_file")
    text_pair_column: str = setting("text_pair", "of pairs_file")
    label_column: str = setting("label", "of pairs_file; a number")
    retrieval: bool = setting(False, "of pairs: find the second text of the first, among all, instead of their likeness")
    queries_file: str = setting("", "queries as T2Ranking has them: tab-separated qid and text")
    corpus_file: str = setting("", "documents: pid and text")
    qrels_file: str = setting("", "what is relevant: qid and pid, or qid, -, pid and relevance")
    min_relevance: float = setting(1.0, "lowest relevance or label that is right, in retrieval")
    name: str = setting("", "what the result of own files is called; their name where empty")
    through: str = setting("sentence_transformers", "what scores the pairs", choices=("sentence_transformers", "mteb"))
    max_length: int = setting(512, "most tokens of a text", least=3)
    max_examples: int = setting(0, "score only so many pairs, drawn the same way each time; 0 scores all", least=0)
    dtype: str = setting("", "of weights and computation; on a GPU bfloat16 where empty", ("", "float32", "bfloat16"))
    batch_size: int = setting(32, "texts computed at once", least=1, running=True)
    skip_bad_rows: bool = setting(False, "leave out rows that cannot be used, instead of stopping; they are counted and named")
    results_dir: str = setting("results", "where the result file goes")


# --- texts ---


def own_pairs(settings: Settings) -> tuple[str, Task]:
    columns = {"text": settings.text_column, "text_pair": settings.text_pair_column, "label": settings.label_column}
    release = Release({"test": (str(find_file(settings.pairs_file).resolve()),)}, columns=columns)
    return settings.name or Path(settings.pairs_file).name.split(".")[0], Task("regression", (release,), folder=".")


def read_pairs(settings: Settings, name: str, task: Task) -> tuple[str, str, list[Row], list[str]]:
    """What the result is called, with `_substitute` where others stand in for official files, the split, pairs, and notes.

    Raises:
        InputError: no such split is there with labels, or rows are bad or have no number for a label.
    """
    folder = place_of(settings.data_dir, task)
    for split in [settings.split] if settings.split else SPLITS:
        release = next((release for release in task.releases if has(folder, release, split)), None)
        if release is None:
            continue
        bad_rows = BadRows()
        # Its labels are numbers here, whatever its classes are called.
        rows = check_rows(
            read_files(folder, release.splits[split], release, bad_rows), replace(task, kind="regression"), bad_rows
        )
        notes = settle({split: rows}, {split: bad_rows}, settings.skip_bad_rows, release.known_defects)
        if rows and "label" in rows[0].values:
            official = release.splits[split] == task.releases[0].splits.get(split)  # though those of training may not be
            name += ("_retrieval" if settings.retrieval else "_similarity") + ("" if official else "_substitute")
            return name, split, cut(rows, settings.max_examples, split, notes), notes
    raise InputError(
        f"{folder}: no labelled files of {name} for {settings.split or ' or '.join(SPLITS)}; give the folder as --data_dir"
    )


# --- models ---


def load(settings: Settings):
    """A model of sentence-transformers, with the mean over tokens where the folder is a bare encoder."""
    from sentence_transformers import SentenceTransformer  # slow to import

    if Path(settings.model).is_dir() and not (Path(settings.model) / "modules.json").is_file():
        load_by_auto_class(AutoModel, settings.model, new_head=True, trust_remote_code=settings.trust_remote_code)  # a check
    try:
        model = SentenceTransformer(
            settings.model,
            trust_remote_code=settings.trust_remote_code,
            model_kwargs={"use_safetensors": True, "dtype": settings.dtype or default_dtype()},
        )
    except Exception as error:  # it raises many kinds
        raise InputError(f"{settings.model}: cannot be loaded: {describe(error)}") from error
    check_vocabulary(model.tokenizer, settings.model)
    check_max_length(getattr(model[0], "auto_model", model[0]).config, settings.max_length)
    model.max_seq_length = settings.max_length
    return model


# --- scores ---


def score_pairs(model, name: str, split: str, rows: list[Row], settings: Settings) -> dict[str, float]:
    labels = [float(row.values["label"]) for row in rows]
    if len(set(labels)) < 2:
        raise InputError(f"{rows[0].path}: all labels are {labels[0]:g}; a correlation needs two different ones")
    if settings.through == "mteb":
        try:
            from zh_modernbert.eval.kinds.local_mteb import evaluate_pairs
        except ImportError as error:
            raise InputError(f"sts: mteb is missing: pip install '.[mteb]' ({error})") from error
        found = evaluate_pairs(model, name, split, rows, settings.batch_size)
    else:
        from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

        first, second = ([row.values[part] for row in rows] for part in ("text", "text_pair"))
        evaluator = EmbeddingSimilarityEvaluator(
            *(first, second, labels), main_similarity="cosine", batch_size=settings.batch_size, write_csv=False
        )
        scores = evaluator(model)
        found = {metric: float(scores[f"{metric}_cosine"]) for metric in ("pearson", "spearman")}
    alike = score_numbers([overlap(row) for row in rows], labels)
    return {**found, **{f"overlap_{metric}": value for metric, value in alike.items()}}


def score_retrieval(model, task: Retrieval, settings: Settings) -> dict[str, float]:
    """nDCG, MRR and recall, in %."""
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    evaluator = InformationRetrievalEvaluator(
        *(task.queries, task.corpus, task.relevant),
        precision_recall_at_k=[10, 50, 1000],
        main_score_function="cosine",
        batch_size=settings.batch_size,
        write_csv=False,
    )
    scores = evaluator(model)
    names = {
        "ndcg@10": "ndcg_10",
        "mrr@10": "mrr_10",
        "recall@10": "recall_10",
        "recall@50": "recall_50",
        "recall@1000": "recall_1000",
    }
    return {ours: 100 * float(scores[f"cosine_{theirs}"]) for theirs, ours in names.items()}


# --- jobs ---


@dataclass(frozen=True)
class Job:
    """One set of pairs or queries that is scored.

    Attributes:
        name, split: what the result is called.
        count: queries or pairs.
        data: a hash of what is scored.
        score: model of sentence-transformers -> metrics.
    """

    name: str
    split: str
    count: int
    data: str
    notes: list[str]
    score: Callable[[Any], dict[str, float]]


def retrieval_job(settings: Settings, name: str, split: str, found: Retrieval, notes: list[str]) -> Job:
    notes = [*notes, f"{len(found.corpus)} documents"]
    corpus = {name: hash_json(text) for name, text in found.corpus.items()}
    relevant = {name: sorted(documents) for name, documents in found.relevant.items()}
    data = hash_json([found.queries, corpus, relevant])[:16]
    return Job(name, split, len(found.queries), data, notes, lambda model: score_retrieval(model, found, settings))


def pairs_job(settings: Settings, name: str, task: Task) -> Job:
    name, split, rows, notes = read_pairs(settings, name, task)
    if settings.retrieval:
        return retrieval_job(settings, name, split, of_pairs(rows, settings.min_relevance), notes)
    return Job(name, split, len(rows), hash_rows(rows), notes, lambda model: score_pairs(model, name, split, rows, settings))


def jobs_of(settings: Settings) -> list[Job]:
    """What the settings ask for, read.

    Raises:
        InputError: files are missing or bad.
    """
    if settings.pairs_file:
        return [pairs_job(settings, *own_pairs(settings))]
    if settings.queries_file:
        found = read_retrieval(settings.queries_file, settings.corpus_file, settings.qrels_file, settings.min_relevance)
        name = settings.name or Path(settings.queries_file).name.split(".")[0]
        return [retrieval_job(settings, name, settings.split or "dev", found, [])]
    split, long = settings.split or SPLITS[0], [name for name in settings.task if name in LONG]
    return [
        *(
            retrieval_job(settings, f"{name}_long_{settings.max_length}", split, found, [])
            for name in long
            for found in [read_mldr(name, settings.data_dir, split, settings.from_hub)]
        ),
        *(pairs_job(settings, name, TASKS[name]) for name in settings.task if name in TABLES),
    ]


def write(settings: Settings, job: Job, model_hash: str, metrics: dict[str, float], started: float) -> dict:
    result = make_result(
        task=job.name,
        split=job.split,
        model=settings.model,
        primary_metric="spearman" if "spearman" in metrics else "ndcg_10",
        metrics=metrics,
        num_examples=job.count,
        seed=SEED,
        hyperparameters={
            "model_hash": model_hash,
            "data": job.data,
            "max_length": settings.max_length,
            "scorer": "cosine",
            "through": settings.through,
            "dtype": settings.dtype or default_dtype(),
        },
        notes=job.notes,
        seconds=time.perf_counter() - started,
    )
    write_result(settings.results_dir, result)
    return result


def main(settings: Settings) -> dict:
    files = [settings.queries_file, settings.corpus_file, settings.qrels_file]
    if (bool(settings.task), bool(settings.pairs_file), any(files)).count(True) != 1 or any(files) != all(files):
        raise InputError("sts: give either task and data_dir, or pairs_file, or queries_file, corpus_file and qrels_file")
    for name in settings.task:
        if name not in (*TABLES, *LONG):
            raise InputError(f"sts: unknown task {name!r}; known are {', '.join((*TABLES, *LONG))}")
    check_name(settings.name)
    started = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        jobs = jobs_of(settings)
        for job in jobs:
            said = {"data": job.data, "max_length": settings.max_length}
            check_no_other(settings.results_dir, job.name, job.split, [SEED], settings.model, said)
        model, model_hash = load(settings), model_hash_of(settings.model)
        results_folder(settings.results_dir)
        results = [write(settings, job, model_hash, job.score(model), started) for job in jobs]
    return results[0] if len(results) == 1 else {"results": results}


if __name__ == "__main__":
    run(main, Settings)
