"""Corpus -> the same corpus without duplicates and near-duplicates, across all sources, and without evaluation data.

Texts are compared by the sets of 5-grams of their letters and digits. Each set has a sketch of 32 bands of 8 numbers. Two texts
with an equal band are candidates; they are duplicates if their sketches agree in as many places as sets with a Jaccard index of
`min_jaccard`. Texts with the same letters and digits are always duplicates, however short. Documents are taken in order, the
sources in `priority` first. A document is removed only if it is a duplicate of a document that stays, so a chain of similar
documents loses none that is unlike all that stay. `--decontaminate` removes documents with evaluation data too
(train/corpus/decontaminate.py).

    python train/dedup.py --input_dir runs/mine/clean --output_dir runs/mine/dedup --priority wikipedia books
    python train/dedup.py --input_dir runs/mine/clean --output_dir runs/mine/dedup --decontaminate my_tasks/
"""

import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import zh_modernbert.train.common.extras  # noqa: F401  # names the extra of a missing package

from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import MinhashDedupFilter

from zh_modernbert.train.common.cli import InputError, run, setting
from zh_modernbert.train.common.manifest import SCRATCH
from zh_modernbert.train.common.stage import run_stage
from zh_modernbert.train.corpus.decontaminate import DecontaminationFilter, Index, evaluation_files
from zh_modernbert.train.corpus.documents import corpus_shards
from zh_modernbert.train.corpus.engine import CorpusReader, CorpusWriter, ParallelSettings, raised, run_pipeline, under
from zh_modernbert.train.corpus.sketches import Pairs, Removals, Sketches

SHARDS_PER_PART = 20  # a task that looks for pairs holds as many records as the bands of so many shards have


@dataclass
class Settings(ParallelSettings):
    input_dir: str = setting(help="corpus folder to read")
    output_dir: str = setting(help="corpus folder to write")
    priority: list[str] = setting([], "sources whose documents stay before those of others, in this order")
    min_jaccard: float = setting(0.7, "near-duplicates share this much of their 5-grams", least=0, most=1)
    fold_scripts: bool = setting(False, "a text in Simplified and in Traditional counts as one")
    num_buckets: int = setting(32, "bands: more find more duplicates", least=1, most=256)
    hashes_per_bucket: int = setting(8, "numbers of a band: more ask for more likeness", least=1, most=64)
    decontaminate: list[str] = setting([], "evaluation files and folders; documents that contain their texts go too")
    save_rejects: bool = setting(False, "keep what goes in rejects/duplicates/ and rejects/contaminated/")
    seed: int = setting(1, "of the sketches", least=0, most=2**32 - 1)


def check_sources(settings: Settings, sources: dict[str, int]) -> None:
    """Raises InputError if there is no document at all, or none of a source that `priority` names."""
    if not sources:
        raise InputError(f"{settings.input_dir}: an empty corpus: no documents in it")
    for source in settings.priority:
        if source not in sources:
            raise InputError(f"dedup: priority names {source!r}, and the corpus has only {', '.join(sources)}")


def check_passages(passages: dict[str, int]) -> None:
    """Warns of evaluation files without a passage to look for.

    Raises:
        InputError: no file has one.
    """
    for file, count in passages.items():
        if not count:
            print(f"warning: {file}: no passage long enough to look for", file=sys.stderr)
    if not any(passages.values()):
        raise InputError(f"dedup: decontaminate: no passage long enough to look for in {', '.join(passages)}")


def build(settings: Settings, folder: Path) -> dict:
    shards, files = corpus_shards(settings.input_dir), evaluation_files(settings.decontaminate)
    sketches, pairs, removals, index = (folder / SCRATCH / name for name in ("sketches", "pairs", "removals", "index"))
    rejects: list[Any] = [None, None]
    if settings.save_rejects:
        rejects = [CorpusWriter(folder / "rejects" / name) for name in ("duplicates", "contaminated")]
    duplicates, contaminated = rejects
    reader = CorpusReader(settings.input_dir, folder)
    drop: list[PipelineStep] = [MinhashDedupFilter(str(removals), duplicates)]
    pipelines = [
        ("sketches", [reader, Sketches(sketches, folder, settings)], len(shards)),
        ("pairs", [Pairs(sketches, pairs, settings)], -(-len(shards) // SHARDS_PER_PART)),
        ("removals", [Removals(sketches, pairs, removals)], 1),
    ]
    if files:
        pipelines.append(("index", [Index(files, index)], 1))
        drop.append(DecontaminationFilter(files, index, folder, contaminated))
    pipelines.append(("filter", [reader, *drop, CorpusWriter(folder)], len(shards)))
    counts = Counter()
    for name, steps, tasks in pipelines:
        found = run_pipeline(steps, tasks, settings, folder, name)
        if name == "sketches":
            check_sources(settings, under("in/", found))
        if name == "index":
            check_passages(under("passages_in/", found))
        counts |= found  # a name in two pipelines has the same count in both
    documents = (
        under("in/", counts).total() - raised(counts)["contained_in"]
    )  # those with a sketch, and compared with evaluation data
    return {
        "documents_in": documents,
        "documents": documents - counts["duplicates"] - counts["contaminated"],
        "quarantined": counts["quarantined"] + raised(counts).total(),
        "raised": raised(counts),
        "duplicates": counts["duplicates"],
        "exact_duplicates": counts["exact"],
        "evaluation_passages": under("passages_in/", counts).total(),
        "contaminated": counts["contaminated"],
        "contaminated_characters": counts["contaminated_characters"],
        "contaminated_by_source": under("contaminated_in/", counts),
        "contaminated_by_file": under("contaminated_by/", counts),
    }


def main(settings: Settings) -> dict:
    return run_stage(settings, partial(build, settings), settings.decontaminate)


if __name__ == "__main__":
    run(main, Settings)
