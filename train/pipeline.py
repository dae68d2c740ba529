"""datatrove as the engine of the corpus stages: strict reading, writing, and running of pipelines over shards.

One shard is one task, so that a stage runs alike on one core, on many, or on a cluster.
"""

import contextlib
import os
from collections import Counter
from pathlib import Path

from datatrove.data import Document
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers.jsonl import JsonlWriter
from tqdm import tqdm

from zh_modernbert.train.files import corpus_shards, read_corpus_shard


class CorpusReader(PipelineStep):
    """Task r reads shard r. Unlike datatrove's own reader it stops at a damaged line, with its file and number."""

    type = "reader"
    name = "corpus"

    def __init__(self, folder: str | Path):
        super().__init__()
        self.folder = str(folder)

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        shard = corpus_shards(self.folder)[rank]
        for document in tqdm(read_corpus_shard(shard), desc=shard.name, unit=" documents", leave=False):
            yield Document(text=document.pop("text"), id=document.pop("id"), metadata=document)


def corpus_writer(folder: Path) -> JsonlWriter:
    """Writes each task's documents to `folder`/RANK.jsonl.zst, their fields side by side."""
    return JsonlWriter(str(folder), compression="zstd", expand_metadata=True)


def run_pipeline(steps: list, tasks: int, workers: int, scratch: Path) -> Counter:
    """Runs `steps` for ranks 0 to `tasks` - 1, `workers` at a time; datatrove's logs go to `scratch`.

    Returns:
        All statistics of all steps, by name.
    """
    executor = LocalPipelineExecutor(steps, tasks=tasks, workers=min(workers, tasks), logging_dir=str(scratch / "logs"))
    # datatrove logs every step of every task to stderr too; the folder has the same.
    with open(os.devnull, "w") as silence, contextlib.redirect_stderr(silence):
        statistics = executor.run()
    totals = Counter()
    for step in statistics.stats:
        for name, metric in step.stats.items():
            totals[name] += metric.total
    return totals
