"""datatrove as the engine of the corpus stages: strict reading, writing, and running of pipelines over shards.

One shard is one task, so that a stage runs alike on one core, on many, or on a cluster.
"""

import contextlib
import os
import sys
from collections import Counter
from pathlib import Path
from typing import IO

import orjson
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
        for document in tqdm(read_corpus_shard(shard), desc=shard.name, unit=" documents", file=sys.__stderr__):
            yield Document(text=document.pop("text"), id=document.pop("id"), metadata=document)


class CorpusWriter(JsonlWriter):
    """Task r writes `folder`/0000r.jsonl.zst, a document's fields side by side, whatever they are called."""

    def __init__(self, folder: Path):
        super().__init__(str(folder), compression="zstd")

    def _default_adapter(self, document: Document) -> dict:
        return {"id": document.id, "text": document.text, **document.metadata}

    def _write(self, document: dict, file_handler: IO, _filename: str):
        file_handler.write(orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE))


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
