"""datatrove as the engine of the corpus stages: reading with a quarantine, writing, and running pipelines over shards.

One shard is one task, and a task's output depends on its shard alone. So a stage writes the same bytes on one core, on many, or
on a cluster. A finished task leaves a mark. After a run was killed, the same command does the tasks without a mark.
"""

import contextlib
import importlib.util
import inspect
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any, TypeVar

import orjson
from datatrove.data import Document
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers.jsonl import JsonlWriter
from datatrove.utils.stats import Stats
from fsspec.compression import register_compression
from tqdm import tqdm

from zh_modernbert.train.common.cli import BaseSettings, InputError, setting
from zh_modernbert.train.common.manifest import SCRATCH
from zh_modernbert.train.common.processes import signal_at_parents_end
from zh_modernbert.train.corpus.documents import compressing, corpus_shards, read_corpus_shard
from zh_modernbert.train.corpus.lines import Quarantine, read_jsonl
from zh_modernbert.train.corpus.rules import RuleError, apply_rule

QUARANTINE = "quarantine"  # in a stage's folder
MAX_QUARANTINED = 0.01  # share of the lines read; a run with more bad lines and documents stops
RAISED = "raised/"  # before a rule's name, in the statistics: documents on which the rule raised
Result = TypeVar("Result")


@dataclass(kw_only=True)
class ParallelSettings(BaseSettings):
    """How a stage runs its tasks. The output does not depend on these settings."""

    workers: int = setting(1, "tasks at the same time", least=1, running=True)
    executor: str = setting("local", "where: processes here, Slurm jobs, or Ray tasks", ("local", "slurm", "ray"), running=True)
    slurm: dict[str, int | str] = setting(
        {}, "partition, time, and other fields of datatrove's SlurmPipelineExecutor or options of sbatch", running=True
    )


def zstd_3(file: IO, mode: str, **_):
    """zstd at level 3. fsspec's own is level 10, which takes longer than the rest of a stage."""
    return compressing(file)


COMPRESSION = "zstd level 3"
register_compression(COMPRESSION, zstd_3, COMPRESSION)


class CorpusReader(PipelineStep):
    """Task r reads shard r. Lines that cannot be read go into the quarantine in `output_dir`; a damaged file is an error."""

    type = "reader"
    name = "corpus"

    def __init__(self, input_dir: str | Path, output_dir: Path):
        super().__init__()
        self.shards, self.output_dir = corpus_shards(input_dir), output_dir  # checked once, not by every task

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        shard = self.shards[rank]
        quarantine = Quarantine(self.output_dir / QUARANTINE / f"{rank:05d}.jsonl")
        for document in read_corpus_shard(shard, quarantine):
            yield Document(text=document.pop("text"), id=document.pop("id"), metadata=document)
        self.stat_update("lines", value=quarantine.lines)
        self.stat_update("quarantined", value=quarantine.count)


class CorpusWriter(JsonlWriter):
    """Task r writes `folder`/0000r.jsonl.zst, with a document's metadata beside `id` and `text`."""

    def __init__(self, folder: Path):
        super().__init__(str(folder), "${rank}.jsonl.zst", compression=COMPRESSION)

    def _default_adapter(self, document: Document) -> dict:
        return {"id": document.id, "text": document.text, **document.metadata}

    def _write(self, document: dict, file_handler: IO, _filename: str):
        file_handler.write(orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE))


def quarantine_of(step: PipelineStep, output_dir: Path, rank: int) -> Quarantine:
    """Where the step's task `rank` puts the documents on which a rule raises."""
    return Quarantine(output_dir / QUARANTINE / f"{rank:05d}-{step.name}.jsonl")


def each(
    step: PipelineStep, documents: Iterable[Document], work: Callable[[Document], Result], quarantine: Quarantine
) -> Iterator[tuple[Document, Result]]:
    """Each document, and what `work` returns for it.

    A document on which `work` raises goes into the quarantine instead, with its id and the name of the rule that raised; that
    is `work` itself if no rule in it did. The step's statistics count such documents.
    """
    for document in documents:
        text = document.text  # as it came; the work may replace it
        try:
            result = apply_rule(work, document)
        except RuleError as error:
            quarantine.set_aside(document.id, error.rule, error.reason, text)
            step.stat_update(f"{RAISED}{error.rule}")
        else:
            yield document, result


class Filter(PipelineStep):
    """Passes on the documents that it finds no reason to drop. Those dropped go to `rejects`, with their `filter_reason`."""

    type = "filter"

    def __init__(self, folder: Path, rejects: CorpusWriter | None = None):
        super().__init__()
        self.folder, self.rejects = folder, rejects

    def drop_reason(self, document: Document) -> str | None:
        raise NotImplementedError

    def run(self, data, rank: int = 0, world_size: int = 1):
        with self.rejects or contextlib.nullcontext() as writer:
            for document, reason in each(self, data, self.drop_reason, quarantine_of(self, self.folder, rank)):
                if reason is None:
                    yield document
                elif writer:
                    document.metadata["filter_reason"] = reason
                    writer.write(document, rank)


class TaskStart:
    """The first step of every task's pipeline: starts the statistics at zero."""

    def __init__(self, steps: list[PipelineStep]):
        self.steps = steps

    def __call__(self, data, rank: int, world_size: int) -> None:
        # Tasks of one Slurm job share these objects. With the old statistics a task would count the documents of those before.
        for step in self.steps:
            step.stats = Stats(str(step))


class WorkerKilledError(Exception):
    """A worker process ended without a word.

    Args:
        ranks: of the tasks that were in work, each in a process of its own. All of them were given up.
    """

    def __init__(self, ranks: list[int]):
        super().__init__(ranks)
        self.ranks = ranks


class LocalExecutor(LocalPipelineExecutor):
    """datatrove's, which would wait forever for the task of a worker that the kernel killed."""

    def run(self) -> None:
        """Runs the tasks without a mark.

        Raises:
            WorkerKilledError: a worker was killed.
            Exception: what a task raised; the tasks that were in work beside it are brought to their ends first.
        """
        if self.workers == 1:
            super().run()
            return
        ranks, at_work = iter(self.get_incomplete_ranks()), {}
        # The kernel kills the workers when the run that started them dies. Otherwise they would write beside the next run.
        with ProcessPoolExecutor(self.workers, get_context("spawn"), signal_at_parents_end, (signal.SIGKILL,)) as pool:
            try:
                while True:
                    for rank in islice(ranks, self.workers - len(at_work)):
                        at_work[pool.submit(self._run_for_rank, rank)] = rank
                    if not at_work:
                        return
                    for task in wait(at_work, return_when=FIRST_COMPLETED).done:
                        task.result()
                        del at_work[task]
            except BrokenProcessPool as error:
                raise WorkerKilledError(self.get_incomplete_ranks(sorted(at_work.values()))) from error


def build_executor(steps: list, tasks: int, settings: ParallelSettings, logs: Path):
    """datatrove's executor for these settings.

    Raises:
        InputError: `slurm` lacks partition or time, or Slurm or Ray is not installed.
    """
    common: dict[str, Any] = {
        "pipeline": [TaskStart(steps), *steps],
        "tasks": tasks,
        "logging_dir": str(logs),
        "workers": min(settings.workers, tasks),
    }
    if settings.executor == "local":
        return LocalExecutor(**common)
    if settings.executor == "ray":
        if importlib.util.find_spec("ray") is None:
            raise InputError("executor is ray, which is not installed; pip install ray")
        return RayPipelineExecutor(**common)
    if not {"partition", "time"} <= settings.slurm.keys():
        raise InputError("slurm: needs partition and time, such as --slurm '{partition: cpu, time: \"20:00:00\"}'")
    for program in ("sbatch", "squeue"):
        if not shutil.which(program):
            raise InputError(f"executor is slurm, and there is no {program} here; start this where Slurm's commands are")
    known = inspect.signature(SlurmPipelineExecutor).parameters
    fields: dict[str, Any] = {key: value for key, value in settings.slurm.items() if key in known}
    options = {key: value for key, value in settings.slurm.items() if key not in known}
    return SlurmPipelineExecutor(**common, **fields, sbatch_args=options)


def wait_for_slurm(executor: SlurmPipelineExecutor) -> None:
    """Waits until no job of the executor is queued or running."""
    while executor.get_incomplete_ranks() and executor.job_id not in (None, -1):
        queue = subprocess.run(["squeue", "-h", "-j", str(executor.job_id)], capture_output=True, text=True)
        if queue.returncode or not queue.stdout.strip():
            return
        time.sleep(5)


@contextlib.contextmanager
def silence() -> Iterator[IO]:
    """Keeps stderr silent, for this process and those it starts meanwhile; the file that it yields still writes there.

    datatrove logs every step of every task to stderr. Its log files have the same lines.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(stderr, "w", encoding="utf-8") as file, open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        os.dup2(nowhere.fileno(), 2)
        try:
            yield file
        finally:
            os.dup2(stderr, 2)


@contextlib.contextmanager
def progress(executor, name: str, file: IO):
    """Shows in `file` how many tasks are done, wherever they run."""
    stop = threading.Event()

    def watch(bar: tqdm):
        while not stop.wait(0.5):
            bar.update(executor.world_size - len(executor.get_incomplete_ranks()) - bar.n)

    done = executor.world_size - len(executor.get_incomplete_ranks())
    with tqdm(total=executor.world_size, initial=done, desc=name, unit=" shards", file=file) as bar:
        thread = threading.Thread(target=watch, args=(bar,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        bar.update(executor.world_size - len(executor.get_incomplete_ranks()) - bar.n)


def under(prefix: str, counts: Counter) -> Counter:
    """The counts whose names begin with `prefix`, under names without it."""
    return Counter({name.removeprefix(prefix): counts[name] for name in sorted(counts) if name.startswith(prefix)})


def raised(counts: Counter) -> Counter:
    """How many documents each rule raised on, from the statistics of a pipeline."""
    return under(RAISED, counts)


def run_pipeline(steps: list, tasks: int, settings: ParallelSettings, folder: Path, name: str) -> Counter:
    """Runs `steps` for the ranks 0 to `tasks` - 1, without those that are done; marks and logs are in the scratch of `folder`.

    Args:
        folder: the stage's output, with its quarantine.
        name: the name of the pipeline within its stage.

    Returns:
        Each statistic by name, summed over all steps and tasks, those of earlier runs among them. `quarantined` are the lines
        that could not be read.

    Raises:
        InputError: more than `MAX_QUARANTINED` of the lines went into the quarantine, a worker was killed, or tasks failed on a
            cluster.
    """
    logs = folder / SCRATCH / name
    executor = build_executor(steps, tasks, settings, logs)
    try:
        with silence() as stderr, progress(executor, name, stderr):
            executor.run()
            if isinstance(executor, SlurmPipelineExecutor):
                wait_for_slurm(executor)
    except WorkerKilledError as error:
        shards = steps[0].shards if isinstance(steps[0], CorpusReader) else [f"{name} {rank:05d}" for rank in range(tasks)]
        places = " or ".join(str(shards[rank]) for rank in error.ranks)
        raise InputError(
            f"{places or name}: its worker was killed, perhaps for want of memory; the same command goes on, "
            "with fewer --workers in less memory"
        ) from error
    if missing := executor.get_incomplete_ranks():
        raise InputError(f"{logs}/logs: {len(missing)} of {tasks} tasks failed, see there; the same command goes on")
    totals = Counter()
    for task in sorted((logs / "stats").glob("*.json")):
        for step in orjson.loads(task.read_bytes()):
            for key, value in step["stats"].items():
                totals[key] += value["total"] if isinstance(value, dict) else value
    bad = totals["quarantined"] + raised(totals).total()
    if bad > MAX_QUARANTINED * totals["lines"]:
        _, first = next(read_jsonl(min((folder / QUARANTINE).glob("*.jsonl"))))
        place = f"{first['file']}, line {first['line']}" if "file" in first else f"document {first['id']}, {first['rule']}"
        raise InputError(
            f"{place}: {first['reason']}. {bad} of {totals['lines']} lines cannot be read, or a rule raises on "
            f"them, more than {MAX_QUARANTINED:.0%}: mend the input"
        )
    return totals
