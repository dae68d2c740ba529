"""Near-duplicates among the documents of a corpus: sketches of their n-grams, similar pairs, and what is removed.

These are the steps of train/dedup.py, and take its settings.
"""

import hashlib
from pathlib import Path

import numpy as np
from datatrove.pipeline.base import PipelineStep

from zh_modernbert.train.corpus.engine import each, quarantine_of
from zh_modernbert.train.corpus.ngrams import letters, mix, ngram_hashes, random_numbers

NGRAM = 5
# The key of a document: priority of its source (8 bits), shard (24), number in the shard (32). Keys sort as documents are
# taken.
FILE_BITS, DOCUMENT_BITS = 24, 32
TURNS = 64  # so many unlike rows of a group are compared with all of it
BAND = np.dtype([("hash", "<u8"), ("key", "<u8")])


def sketch(hashes: np.ndarray, size: int, seed: int) -> np.ndarray:
    """`(size,)` uint64: a sketch of a set of hashes.

    Two sketches agree at a place with the probability of the sets' Jaccard index. This is fast similarity sketching
    (https://arxiv.org/abs/1704.04370). There are 2 `size` rounds. In each of the first `size` rounds every hash falls into one
    place; each of the others fills one place. A place keeps the least hash of the earliest round that reached it. For long
    texts one or two rounds fill all places; MinHash would need `size`.
    """
    empty = np.iinfo(np.uint64).max
    values = np.full(size, empty, np.uint64)
    seeds = random_numbers(2 * size, seed)
    at_once = -(-8 * size // len(hashes))  # so many rounds mostly fill all places
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
    """In how many places sketches of `size` bytes agree on average; 1 in 256 of the others is equal by chance, and counted."""
    return size * (min_jaccard + (1 - min_jaccard) / 256)


def alike(sketches: np.ndarray, pairs: np.ndarray, least: float) -> np.ndarray:
    """`(P,)` bool: whether the rows of `sketches` in each of the pairs `(P, 2)` agree in at least `least` places."""
    parts = np.array_split(pairs, len(pairs) // 65536 + 1)
    return np.concatenate([(sketches[a] == sketches[b]).sum(axis=1) >= least for a, b in (part.T for part in parts)])


def find_pairs(hashes: np.ndarray, sketches: np.ndarray, least: float) -> np.ndarray:
    """`(P, 2)`: pairs of similar rows with the same hash, the earlier row first.

    The first row of each group of one hash is compared with all others. Those that are not similar to it are a group again.
    Pages from one template are many in a group, and unlike. So groups are split by one more place of the sketches after every
    `TURNS` turns, and no row is compared with all. A pair that this parts mostly shares another band, where less is template.
    """
    rows, found, turn = np.arange(len(hashes)), [], 0
    while len(rows):
        _, first, group = np.unique(hashes[rows], return_index=True, return_inverse=True)
        pairs = np.stack([rows[first[group]], rows], axis=1)
        like = alike(sketches, pairs, least)
        found.append(pairs[like & (pairs[:, 0] != pairs[:, 1])])
        rows = rows[~like]
        turn += 1
        if turn % TURNS == 0:
            hashes = mix(hashes ^ sketches[:, turn // TURNS - 1])
    return np.concatenate([np.empty((0, 2), np.int64), *found])


def choose_removals(pairs: np.ndarray) -> np.ndarray:
    """The keys to remove, in order: those that are paired with a lesser key that stays.

    Args:
        pairs: `(P, 2)` keys, the lesser first.
    """
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
    """The shards, and the numbers of the documents in them, of keys."""
    return (keys >> DOCUMENT_BITS & (2**FILE_BITS - 1)).astype(np.int64), (keys & (2**DOCUMENT_BITS - 1)).astype(np.int64)


def by_shard(keys: np.ndarray):
    """For each shard: its number, the places of its keys in `keys`, and the numbers of their documents."""
    shards, documents = split_keys(keys)
    order = np.argsort(shards, kind="stable")
    found, starts = np.unique(shards[order], return_index=True)
    for shard, places in zip(found.tolist(), np.split(order, starts)[1:], strict=True):
        yield shard, places, documents[places]


class Sketches(PipelineStep):
    """Task r sketches shard r. A document that cannot be sketched goes into the quarantine in `output_dir`.

    `r.bands.npy` `(1 + bands, documents)` has a BAND record of each document and band, each band sorted by hash. The first row
    has the hash of the whole text instead. `r.sketches.npy` `(documents, places)` has the last byte of each number of the
    sketches. `r.without.npy` has the keys of documents without a sketch.
    """

    type, name = "dedup", "sketches"

    def __init__(self, folder: Path, output_dir: Path, settings):
        super().__init__()
        self.folder, self.output_dir, self.settings = folder, output_dir, settings

    def sketch(self, document) -> tuple[np.ndarray, np.ndarray]:
        """The hashes of the whole text and of each band, and the last bytes of the sketch."""
        settings = self.settings
        shape = settings.num_buckets, settings.hashes_per_bucket
        with self.track_time():
            codes = letters(document.text, settings.fold_scripts)
            if not len(codes):  # punctuation only
                codes = np.frombuffer(document.text.encode("utf-32-le"), "<u4")
            values = sketch(ngram_hashes(codes, NGRAM), shape[0] * shape[1], settings.seed)
            text_hash = int.from_bytes(hashlib.blake2b(codes.tobytes(), digest_size=8).digest(), "little")
            bands = mix((values.reshape(shape) * random_numbers(shape[1])).sum(axis=1))
            return np.append(bands, np.uint64(text_hash))[::-1], values.astype(np.uint8)

    def run(self, data, rank: int = 0, world_size: int = 1):
        settings = self.settings
        shape = settings.num_buckets, settings.hashes_per_bucket
        hashes, sketches, keys, all_keys = [], [], [], []

        def with_keys(documents):
            for number, document in enumerate(documents):
                source = document.metadata["source"]
                priority = settings.priority.index(source) if source in settings.priority else len(settings.priority)
                all_keys.append((priority << FILE_BITS | rank) << DOCUMENT_BITS | number)
                yield document

        quarantine = quarantine_of(self, self.output_dir, rank)
        for document, (bands, values) in each(self, with_keys(data), self.sketch, quarantine):
            self.stat_update(f"in/{document.metadata['source']}")
            hashes.append(bands)
            sketches.append(values)
            keys.append(all_keys[-1])
        bands = np.empty((len(keys), shape[0] + 1), BAND)
        bands["hash"], bands["key"] = np.array(hashes, np.uint64).reshape(bands.shape), np.array(keys, np.uint64)[:, None]
        bands = np.take_along_axis(bands, np.argsort(bands["hash"], axis=0), axis=0).T
        self.folder.mkdir(parents=True, exist_ok=True)
        np.save(self.folder / f"{rank:05d}.bands.npy", np.ascontiguousarray(bands))
        np.save(self.folder / f"{rank:05d}.without.npy", np.setdiff1d(np.array(all_keys, np.uint64), keys))
        np.save(self.folder / f"{rank:05d}.sketches.npy", np.array(sketches, np.uint8).reshape(len(keys), shape[0] * shape[1]))


class Pairs(PipelineStep):
    """Task r finds the pairs whose hash in some band is in range r of all hashes: `r.npy` `(pairs, 2)` of keys."""

    type, name = "dedup", "pairs"

    def __init__(self, sketches: Path, folder: Path, settings):
        super().__init__()
        self.sketches, self.folder, self.settings = sketches, folder, settings

    def read_part(self, part: int, parts: int) -> list[np.ndarray]:
        """For each band the BAND records whose hash is in range `part` of `parts` equal ranges, sorted by hash and key."""
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
    """One task chooses what is removed, and writes it as datatrove's MinhashDedupFilter reads it.

    Documents without a sketch are removed too.
    """

    type, name = "dedup", "removals"

    def __init__(self, sketches: Path, pairs: Path, folder: Path):
        super().__init__()
        self.sketches, self.pairs, self.folder = sketches, pairs, folder

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        with self.track_time():
            keys = choose_removals(np.concatenate([np.load(path) for path in sorted(self.pairs.glob("*.npy"))]))
            self.stat_update("duplicates", value=len(keys))
            keys = np.concatenate([keys, *(np.load(path) for path in sorted(self.sketches.glob("*.without.npy")))])
            self.folder.mkdir(parents=True, exist_ok=True)
            for shard, _, documents in by_shard(keys):
                np.sort(documents).astype("<u4").tofile(self.folder / f"{shard:06d}.remove")
