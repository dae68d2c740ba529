"""Documents from wherever they are -> one corpus folder.

Reads JSONL, Parquet and text files, Wikipedia dumps, and Hub datasets; writes `.jsonl.zst` shards of documents. Texts are not
changed, since cleaning is the next stage; only empty texts and what `where` leaves out are dropped. A line or page that cannot
be read goes to `quarantine/` with its file and number; more than 1% of such lines stop the run. Files, and shards of Hub
datasets, are read in parallel.

    python train/sources.py --input my_texts/ more.jsonl.zst --output_dir runs/mine/sources
    python train/sources.py train/configs/system_a/data.yaml
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import zh_modernbert.train.common.extras  # noqa: F401  # names the extra of a missing package

from datatrove.pipeline.base import PipelineStep

from zh_modernbert.train.common.cli import InputError, run, setting
from zh_modernbert.train.common.stage import run_stage
from zh_modernbert.train.corpus.documents import write_corpus
from zh_modernbert.train.corpus.engine import QUARANTINE, ParallelSettings, run_pipeline
from zh_modernbert.train.corpus.lines import Quarantine
from zh_modernbert.train.corpus.source import Part, Source, parts_of, place_of, read_part

TASK_BYTES = 1 << 24  # small files are read by one task, up to so many bytes


@dataclass
class Settings(ParallelSettings):
    output_dir: str = setting(help="corpus folder to write")
    input: list[str | Source] = setting([], "paths, or mappings with the fields of a Source")


# --- the stage ---


def tasks_of(source: Source) -> list[list[Part]]:
    """The parts of a source, in a list for each task: small files together, or all parts if `max_documents` limits them."""
    parts = parts_of(source)
    if source.max_documents:
        return [parts]
    tasks, room = [], 0
    for part in parts:
        size = TASK_BYTES if isinstance(part, int) else part.stat().st_size
        if not tasks or size > room:
            tasks.append([])
            room = TASK_BYTES
        tasks[-1].append(part)
        room -= size
    return tasks


def id_prefixes(places: list[set[str]]) -> list[str]:
    """What comes before the places of each source in ids: its number, where an earlier source has a place of the same name."""
    taken, prefixes = set(), []
    for number, own in enumerate(places, 1):
        prefixes.append("" if own.isdisjoint(taken) else f"{number}/")
        taken |= {prefixes[-1] + place for place in own}
    return prefixes


class SourceReader(PipelineStep):
    """Task r reads the parts of `tasks[r]` and writes their documents as shards."""

    type = "reader"
    name = "sources"

    def __init__(self, tasks: list[tuple[Source, str, list[Part]]], folder: Path):
        super().__init__()
        self.tasks, self.folder = tasks, folder

    def run(self, data=None, rank: int = 0, world_size: int = 1) -> None:
        source, prefix, parts = self.tasks[rank]
        quarantine = Quarantine(self.folder / QUARANTINE / f"{rank:05d}.jsonl")

        def documents() -> Iterator[dict]:
            for part in parts:
                for document in read_part(source, part, quarantine, prefix):
                    if document:
                        self.stat_update(f"source/{document['source']}")
                        yield document

        counts = write_corpus(self.folder, islice(documents(), source.max_documents or None), f"{rank:05d}-")
        for name, value in (counts | {"quarantined": quarantine.count, "lines": quarantine.lines}).items():
            self.stat_update(name, value=value)


def build(settings: Settings, sources: list[Source], folder: Path) -> dict:
    of_sources = [(source, tasks_of(source)) for source in sources]
    prefixes = id_prefixes([{place_of(source, part) for parts in own for part in parts} for source, own in of_sources])
    tasks = [(source, prefix, parts) for (source, own), prefix in zip(of_sources, prefixes, strict=True) for parts in own]
    counts = run_pipeline([SourceReader(tasks, folder)], len(tasks), settings, folder, "sources")
    if not counts["documents"]:
        raise InputError(f"{', '.join(s.path or s.dataset for s in sources)}: an empty corpus: no text in it")
    per_source = {name.removeprefix("source/"): counts[name] for name in counts if name.startswith("source/")}
    return {**{name: counts[name] for name in ("documents", "characters", "quarantined")}, "per_source": per_source}


def main(settings: Settings) -> dict:
    sources = [Source(path=source) if isinstance(source, str) else source for source in settings.input]
    if not sources:
        raise InputError("sources: no input; give --input PATH ...")
    settings = replace(settings, input=sources)
    return run_stage(settings, partial(build, settings, sources), [source.path for source in sources if source.path])


if __name__ == "__main__":
    run(main, Settings)
