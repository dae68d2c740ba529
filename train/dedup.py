"""Corpus -> the same corpus without duplicates and near-duplicates, across all sources, and without evaluation data.

Texts are compared by the sets of 5-grams of their letters and digits: a sketch of each set, 32 bands of 8 numbers; texts that
agree in a band are candidates, and are duplicates where the sketches say that the sets overlap by `min_jaccard`. Documents are
taken in order, the sources named in `priority` first: one goes only where another that stays is like it, so that no chain of
likenesses takes away what is like nothing that is left. Texts with the same letters always count as duplicates, however short.
With `--decontaminate` the documents that contain evaluation data go too (`decontaminate.py`).

    python train/dedup.py --input_dir runs/mine/clean --output_dir runs/mine/dedup --priority wikipedia books
    python train/dedup.py --input_dir runs/mine/clean --output_dir runs/mine/dedup --decontaminate my_tasks/
"""

import hashlib
import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import MinhashDedupFilter

from zh_modernbert.train.cli import InputError, run, setting
from zh_modernbert.train.decontaminate import DecontaminationFilter, Index, evaluation_files
from zh_modernbert.train.files import corpus_shards
from zh_modernbert.train.ngrams import letters, mix, ngram_hashes, random_numbers
from zh_modernbert.train.pipeline import CorpusReader, CorpusWriter, ParallelSettings, run_pipeline
from zh_modernbert.train.stage import SCRATCH, run_stage

NGRAM = 5
SHARDS_PER_PART = 20  # so many shards' worth of bands are held by a worker that looks for pairs
# A document's key is its place in the order: source by priority (8 bits), shard (24), document (32).
FILE_BITS, DOCUMENT_BITS = 24, 32
BAND = np.dtype([("hash", "<u8"), ("key", "<u8")])


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


def sketch(hashes: np.ndarray, size: int, seed: int) -> np.ndarray:
    """`(size,)` uint64 of a set of hashes; two sketches agree at each place with the probability of the sets' Jaccard likeness.

    Fast similarity sketching (https://arxiv.org/abs/1704.04370): in each round every hash falls into one place, where the
    least stays, earlier rounds before later ones; for long texts one or two rounds fill all places, where MinHash takes `size`.
    The last `size` rounds fill one place each.
    """
    empty = np.iinfo(np.uint64).max
    values = np.full(size, empty, np.uint64)
    seeds = random_numbers(2 * size, seed)
    at_once = -(-8 * size // len(hashes))  # these mostly fill all places
    for start in range(0, 2 * size, at_once):
        rounds = np.arange(2 * size)[start : start + at_once, None]
        mixed = mix(hashes ^ seeds[rounds])
        places = ((mixed >> 32) * np.uint64(size) >> 32).astype(np.int64)
        if len(rounds) + start > size:
            places = np.where(rounds < size, places, rounds - size)
        np.minimum.at(values, places.ravel(), (mixed & 0xFFFFFFFF | rounds.astype(np.uint64) << 32).ravel())
        if values.max() < empty:
            break
    return values


def agreement(min_jaccard: float, size: int) -> float:
    """The least number of places in which sketches of `size` bytes agree where the sets overlap so; 1 in 256 does by chance."""
    return size * (min_jaccard + (1 - min_jaccard) / 256)


def alike(sketches: np.ndarray, pairs: np.ndarray, least: float) -> np.ndarray:
    """Of each of P pairs `(P, 2)` of rows of `sketches`, whether they agree in `least` places."""
    parts = np.array_split(pairs, len(pairs) // 65536 + 1)
    return np.concatenate([(sketches[a] == sketches[b]).sum(axis=1) >= least for a, b in (part.T for part in parts)])


def find_pairs(hashes: np.ndarray, sketches: np.ndarray, least: float) -> np.ndarray:
    """`(P, 2)` rows, an earlier one and a later one that is like it, among those that share a hash.

    The first row of each group is compared with all others; those that it is not like are a group again.
    """
    rows, found = np.arange(len(hashes)), []
    while len(rows):
        _, first, group = np.unique(hashes[rows], return_index=True, return_inverse=True)
        pairs = np.stack([rows[first[group]], rows], axis=1)
        like = alike(sketches, pairs, least)
        found.append(pairs[like & (pairs[:, 0] != pairs[:, 1])])
        rows = rows[~like]
    return np.concatenate([np.empty((0, 2), np.int64), *found])


def choose_removals(pairs: np.ndarray) -> np.ndarray:
    """Of pairs `(P, 2)` of keys, the less first, all keys that go: those paired with a lesser one that stays; in order."""
    keys, pairs = np.unique(pairs, return_inverse=True)
    pairs = pairs.reshape(-1, 2)
    removed = np.zeros(len(keys), bool)
    while len(pairs):
        stays = np.ones(len(keys), bool)
        stays[pairs[:, 1]] = False
        removed[pairs[stays[pairs[:, 0]], 1]] = True
        pairs = pairs[~removed[pairs].any(axis=1)]
    return keys[removed]


def split_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(shards, documents) of keys."""
    return (keys >> DOCUMENT_BITS & (2**FILE_BITS - 1)).astype(np.int64), (keys & (2**DOCUMENT_BITS - 1)).astype(np.int64)


def by_shard(keys: np.ndarray):
    """(shard, the places of its keys, their documents), shard by shard."""
    shards, documents = split_keys(keys)
    order = np.argsort(shards, kind="stable")
    found, starts = np.unique(shards[order], return_index=True)
    for shard, places in zip(found.tolist(), np.split(order, starts)[1:], strict=True):
        yield shard, places, documents[places]


class Sketches(PipelineStep):
    """Task r sketches shard r: `r.bands.npy`, (1 + bands, documents) of hash and key, each band in order of its hashes, the
    first of them of the whole text; `r.sketches.npy`, (documents, places), of each number in the sketch its last byte.
    """

    type, name = "dedup", "sketches"

    def __init__(self, folder: Path, settings: Settings):
        super().__init__()
        self.folder, self.settings = folder, settings

    def run(self, data, rank: int = 0, world_size: int = 1):
        settings = self.settings
        shape = settings.num_buckets, settings.hashes_per_bucket
        factors = random_numbers(shape[1])
        hashes, sketches, keys = [], [], []
        for number, document in enumerate(data):
            source = document.metadata["source"]
            self.stat_update(f"in/{source}")
            with self.track_time():
                codes = letters(document.text, settings.fold_scripts)
                if not len(codes):  # punctuation only
                    codes = np.frombuffer(document.text.encode("utf-32-le"), "<u4")
                values = sketch(ngram_hashes(codes, NGRAM), shape[0] * shape[1], settings.seed)
                whole = int.from_bytes(hashlib.blake2b(codes.tobytes(), digest_size=8).digest(), "little")
                hashes.append(np.append(mix((values.reshape(shape) * factors).sum(axis=1)), np.uint64(whole))[::-1])
                sketches.append(values.astype(np.uint8))
                priority = settings.priority.index(source) if source in settings.priority else len(settings.priority)
                keys.append((priority << FILE_BITS | rank) << DOCUMENT_BITS | number)
        bands = np.empty((len(keys), shape[0] + 1), BAND)
        bands["hash"], bands["key"] = np.array(hashes, np.uint64).reshape(bands.shape), np.array(keys, np.uint64)[:, None]
        bands = np.take_along_axis(bands, np.argsort(bands["hash"], axis=0), axis=0).T
        self.folder.mkdir(parents=True, exist_ok=True)
        np.save(self.folder / f"{rank:05d}.bands.npy", np.ascontiguousarray(bands))
        np.save(self.folder / f"{rank:05d}.sketches.npy", np.array(sketches, np.uint8).reshape(len(keys), shape[0] * shape[1]))


class Pairs(PipelineStep):
    """Task r finds the pairs in all bands, among the documents whose hash there is in range r: `r.npy`, (pairs, 2) of keys."""

    type, name = "dedup", "pairs"

    def __init__(self, sketches: Path, folder: Path, settings: Settings):
        super().__init__()
        self.sketches, self.folder, self.settings = sketches, folder, settings

    def read_part(self, part: int, parts: int) -> list[np.ndarray]:
        """For each band the BAND records, of all shards, whose hash is in one of `parts` equal ranges; in order."""
        first, last = (np.uint64(2**64 * (part + i) // parts - i) for i in (0, 1))
        pieces = [[] for _ in range(self.settings.num_buckets + 1)]
        for path in sorted(self.sketches.glob("*.bands.npy")):
            for records, band in zip(np.load(path, mmap_mode="r"), pieces, strict=True):
                start, stop = np.searchsorted(records["hash"], first), np.searchsorted(records["hash"], last, side="right")
                band.append(np.array(records[start:stop]))  # a copy, so that the file is closed
        bands = map(np.concatenate, pieces)
        return [records[np.lexsort((records["key"], records["hash"]))] for records in bands]

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        size = self.settings.num_buckets * self.settings.hashes_per_bucket
        with self.track_time():
            found = []
            for records in self.read_part(rank, world_size):
                _, group, counts = np.unique(records["hash"], return_inverse=True, return_counts=True)
                records = records[counts[group] > 1]
                sketches = np.empty((len(records), size), np.uint8)
                for shard, places, documents in by_shard(records["key"]):
                    sketches[places] = np.load(self.sketches / f"{shard:05d}.sketches.npy", mmap_mode="r")[documents]
                rows = find_pairs(records["hash"], sketches, agreement(self.settings.min_jaccard, size))
                found.append(records["key"][rows])
            self.stat_update("exact", value=len(found[0]))
            self.folder.mkdir(parents=True, exist_ok=True)
            np.save(self.folder / f"{rank:05d}.npy", np.concatenate(found))


class Removals(PipelineStep):
    """One task chooses what goes, and writes it as datatrove's MinhashDedupFilter reads it."""

    type, name = "dedup", "removals"

    def __init__(self, pairs: Path, folder: Path):
        super().__init__()
        self.pairs, self.folder = pairs, folder

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        with self.track_time():
            keys = choose_removals(np.concatenate([np.load(path) for path in sorted(self.pairs.glob("*.npy"))]))
            self.stat_update("duplicates", value=len(keys))
            self.folder.mkdir(parents=True, exist_ok=True)
            for shard, _, documents in by_shard(keys):
                np.sort(documents).astype("<u4").tofile(self.folder / f"{shard:06d}.remove")


def check_sources(settings: Settings, sources: dict[str, int]) -> None:
    """Raises InputError where there are no documents, or none of a source that `priority` names."""
    if not sources:
        raise InputError(f"{settings.input_dir}: an empty corpus: no documents in it")
    for source in settings.priority:
        if source not in sources:
            raise InputError(f"dedup: priority names {source!r}, and the corpus has only {', '.join(sources)}")


def check_passages(passages: dict[str, int]) -> None:
    """Says which evaluation files have nothing to look for.

    Raises:
        InputError: none has.
    """
    for file, count in passages.items():
        if not count:
            print(f"warning: {file}: no passage long enough to look for", file=sys.stderr)
    if not any(passages.values()):
        raise InputError(f"dedup: decontaminate: no passage long enough to look for in {', '.join(passages)}")


def under(prefix: str, counts: Counter) -> dict[str, int]:
    """The counts whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): counts[name] for name in sorted(counts) if name.startswith(prefix)}


def build(settings: Settings, folder: Path) -> dict:
    shards, files = corpus_shards(settings.input_dir), evaluation_files(settings.decontaminate)
    sketches, pairs, removals, index = (folder / SCRATCH / name for name in ("sketches", "pairs", "removals", "index"))
    duplicates, contaminated = (
        CorpusWriter(folder / "rejects" / name) if settings.save_rejects else None for name in ("duplicates", "contaminated")
    )
    reader = CorpusReader(settings.input_dir, folder)
    drop = [MinhashDedupFilter(str(removals), duplicates)]
    pipelines = [
        ("sketches", [reader, Sketches(sketches, settings)], len(shards)),
        ("pairs", [Pairs(sketches, pairs, settings)], -(-len(shards) // SHARDS_PER_PART)),
        ("removals", [Removals(pairs, removals)], 1),
    ]
    if files:
        pipelines.append(("index", [Index(files, index)], 1))
        drop.append(DecontaminationFilter(files, index, contaminated))
    pipelines.append(("filter", [reader, *drop, CorpusWriter(folder)], len(shards)))
    counts = Counter()
    for name, steps, tasks in pipelines:
        found = run_pipeline(steps, tasks, settings, folder, name)
        if name == "sketches":
            check_sources(settings, under("in/", found))
        if name == "index":
            check_passages(under("passages_in/", found))
        counts |= found  # what two pipelines count, they count alike
    documents = sum(under("in/", counts).values())
    return {
        "documents_in": documents,
        "documents": documents - counts["duplicates"] - counts["contaminated"],
        "quarantined": counts["quarantined"],
        "duplicates": counts["duplicates"],
        "exact_duplicates": counts["exact"],
        "evaluation_passages": sum(under("passages_in/", counts).values()),
        "contaminated": counts["contaminated"],
        "contaminated_characters": counts["contaminated_characters"],
        "contaminated_by_source": under("contaminated_in/", counts),
        "contaminated_by_file": under("contaminated_by/", counts),
    }


def main(settings: Settings) -> dict:
    return run_stage(settings, partial(build, settings), settings.decontaminate)


if __name__ == "__main__":
    run(main, Settings)
