"""Encoded documents -> rows of at most `seq_len` tokens, shuffled, once per `seq_len`.

A document becomes [CLS] tokens [SEP]. A document longer than a row is cut between words into pieces of at most a row; no other
document is cut. Rows are filled best-fit, longest document first. Where there are short documents to fill gaps, far less than
1% of the rows is empty.

Shards are packed in groups. Each group becomes a folder; train/rows/packed.py describes and reads its files.

    python train/pack.py --input_dir runs/mine/encoded --output_dir runs/mine/packed_1024 --seq_len 1024
"""

import math
import shutil
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import zh_modernbert.train.common.extras  # noqa: F401  # names the extra of a missing package

import numpy as np
from datatrove.pipeline.base import PipelineStep

from zh_modernbert.train.common.cli import InputError, run, setting
from zh_modernbert.train.common.files import replacing
from zh_modernbert.train.common.manifest import verify_files
from zh_modernbert.train.common.stage import run_stage
from zh_modernbert.train.corpus.engine import ParallelSettings, run_pipeline
from zh_modernbert.train.rows.encoded import (
    EncodedShard,
    encoded_shards,
    ids_dtype,
    load_manifest,
    load_shard,
    tokens_per_source,
)
from zh_modernbert.train.rows.packed import checksum
from zh_modernbert.train.tokenizer.loading import load_tokenizer


@dataclass
class Settings(ParallelSettings):
    input_dir: str = setting(help="encoded folder to read")
    output_dir: str = setting(help="packed folder to write")
    seq_len: int = setting(1024, "most tokens of a row", least=8, most=1 << 20)
    seed: int = setting(0, "of the documents' and the rows' order", least=0)
    mixture: dict[str, float] = setting(
        {}, "source -> its share of the tokens, less of it where need be; those left out are not used; empty keeps all as it is"
    )
    group_tokens: int = setting(
        1 << 28, "documents are packed together in groups of about so many tokens that are kept, one task each", least=1
    )


def cut(starts: np.ndarray, longest: int) -> list[int]:
    """The bounds, from 0 to `len(starts)`, of the pieces of a document, each of at most `longest` tokens.

    A piece ends before the start of a word. Only a word longer than `longest` is cut inside.

    Args:
        starts: `(tokens,)`, 1 where a token starts a word.
    """
    bounds = [0]
    while len(starts) - bounds[-1] > longest:
        last = bounds[-1] + longest
        words = np.flatnonzero(starts[bounds[-1] + 1 : last + 1])
        bounds.append(bounds[-1] + 1 + int(words[-1]) if len(words) else last)
    return [*bounds, len(starts)]


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Rows of indices into `lengths`, each row's sum at most `capacity`.

    Best-fit decreasing (Johnson 1974): the longest first, each into the fullest row with room for it. Rows lie in one stack for
    each amount of room. `occurring` has bit r set where the stack of room r is not empty; its lowest bit from `length` up is
    the fullest row that fits.
    """
    rows: list[list[int]] = []
    rows_with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    occurring = 0
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        fitting = occurring >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                occurring &= ~(1 << room)
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        rows_with_room[room - length].append(row)
        occurring |= 1 << (room - length)
    return rows


def kept_fractions(tokens: dict[str, int], mixture: dict[str, float]) -> dict[str, float]:
    """The fraction of each source's tokens that is kept, so that the sources have their shares of `mixture` in what is kept.

    The source with the fewest tokens for its share is kept whole. Without a mixture all sources are.

    Raises:
        InputError: a source is unknown, or a share is not above 0.
    """
    for name, share in mixture.items():
        if name not in tokens or not 0 < share < math.inf:
            raise InputError(f"mixture: {name}={share}: a share is above 0, and known sources are {', '.join(tokens)}")
    unit = min((tokens[name] / share for name, share in mixture.items()), default=0)
    return {name: unit * share / tokens[name] for name, share in mixture.items()} or dict.fromkeys(tokens, 1.0)


class Group:
    """The documents of several encoded shards as one list. Document d is lengths[d] tokens of shard[d], from offsets[d] on.

    Its source is names[sources[d]].
    """

    def __init__(self, shards: list[EncodedShard]):
        self.shards = shards
        self.shard = np.repeat(np.arange(len(shards)), [len(shard.sources) for shard in shards])
        self.offsets = np.concatenate([shard.offsets[:-1] for shard in shards])
        self.lengths = np.concatenate([np.diff(shard.offsets) for shard in shards])
        self.names = sorted({name for shard in shards for name in shard.names})
        numbers = {name: number for number, name in enumerate(self.names)}
        own = [np.array([numbers[name] for name in shard.names], int) for shard in shards]  # the numbers of each shard's names
        self.sources = np.concatenate([of[shard.sources] for of, shard in zip(own, shards, strict=True)])

    def mix(self, fractions: dict[str, float], generator: np.random.Generator) -> np.ndarray:
        """Numbers of documents in random order: of each source its fraction of the tokens, to within half a document."""
        order = generator.permutation(len(self.sources))
        by_source = order[np.argsort(self.sources[order], kind="stable")]
        own, lengths = self.sources[by_source], self.lengths[by_source]
        before = np.concatenate(([0], np.cumsum(lengths)))  # tokens before each document, and before the first of each source
        firsts = before[np.searchsorted(own, np.arange(len(self.names) + 1))]
        ends, totals = before[1:] - firsts[own], np.diff(firsts)[own]
        # A source that is not in the mixture has no fraction, and no number is below that.
        wanted = np.array([fractions.get(name, np.nan) for name in self.names])[own] * totals
        keep = np.zeros(len(order), dtype=bool)
        keep[by_source[ends - lengths / 2 <= wanted]] = True
        return order[keep[order]]

    def pieces(self, documents: np.ndarray, longest: int) -> np.ndarray:
        """`(pieces, 3)`: shard, first token and end of each document, or of each piece of a document longer than `longest`."""
        found = []
        for shard, start, length in zip(self.shard[documents], self.offsets[documents], self.lengths[documents], strict=True):
            if length <= longest:
                found.append((shard, start, start + length))
            else:
                edges = cut(self.shards[shard].word_starts[start : start + length], longest)
                found.extend((shard, start + a, start + b) for a, b in pairwise(edges))
        return np.array(found, dtype=np.int64).reshape(-1, 3)

    def tokens(self, shard: int, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and word starts of a piece."""
        return self.shards[shard].input_ids[start:end], self.shards[shard].word_starts[start:end]


class Packer(PipelineStep):
    """Task g packs group g: every `world_size`-th shard from g on, so that each group has documents of all sources."""

    type = "packer"
    name = "pack"

    def __init__(self, settings: Settings, folder: Path, shards: list[Path], vocab_size: int, fractions: dict[str, float]):
        super().__init__()
        self.settings, self.folder, self.shards = settings, folder, shards
        self.vocab_size, self.fractions = vocab_size, fractions

    def run(self, data=None, rank: int = 0, world_size: int = 1) -> None:
        settings = self.settings
        generator = np.random.default_rng((settings.seed, rank))
        group = Group([load_shard(shard, self.vocab_size) for shard in self.shards[rank::world_size]])
        tokenizer = load_tokenizer(Path(settings.input_dir) / "tokenizer")
        cls, sep = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
        documents = group.mix(self.fractions, generator)
        pieces = group.pieces(documents, settings.seq_len - 2)
        rows = best_fit_decreasing(pieces[:, 2] - pieces[:, 1] + 2, settings.seq_len)
        # Best-fit leaves the documents of a row, and the rows, in order of length. Training should not see such an order.
        rows = [generator.permutation(rows[index]) for index in generator.permutation(len(rows))]
        document_offsets, row_offsets, checksums, dtype = [0], [0], [], ids_dtype(self.vocab_size)
        with replacing(self.folder / f"{rank:05d}") as shard:
            with open(shard / "input_ids.bin", "wb") as ids_file, open(shard / "word_starts.bin", "wb") as starts_file:
                for row in rows:
                    ids, starts = [], []
                    for piece in pieces[row].tolist():
                        inner_ids, inner_starts = group.tokens(*piece)
                        ids.append(np.concatenate((cls, inner_ids, sep)).astype(dtype))
                        starts.append(np.concatenate(([1], inner_starts, [1])).astype(np.uint8))
                        starts[-1][1] = 1  # the first token of a piece starts a word, even if it was cut out of one
                    bounds = np.cumsum([0, *map(len, ids)])
                    ids, starts = np.concatenate(ids), np.concatenate(starts)
                    ids_file.write(ids.tobytes())
                    starts_file.write(starts.tobytes())
                    checksums.append(checksum(ids, starts, bounds))
                    document_offsets.extend((document_offsets[-1] + bounds[1:]).tolist())
                    row_offsets.append(len(document_offsets) - 1)
            (shard / "document_offsets.bin").write_bytes(np.array(document_offsets, dtype=np.int64).tobytes())
            (shard / "row_offsets.bin").write_bytes(np.array(row_offsets, dtype=np.int64).tobytes())
            (shard / "checksums.bin").write_bytes(np.array(checksums, dtype=np.uint32).tobytes())
        self.stat_update("rows", value=len(rows))
        self.stat_update("documents", value=len(documents))
        self.stat_update("cut_documents", value=int((group.lengths[documents] > settings.seq_len - 2).sum()))
        self.stat_update("tokens", value=document_offsets[-1])


def shards_to_pack(settings: Settings) -> list[Path]:
    """The shards of the encoded folder; with a mixture, those that have a document of its sources."""
    folder, shards = Path(settings.input_dir), encoded_shards(settings.input_dir)
    if settings.mixture:
        verify_files(folder, [f"{shard.name}/shard.json" for shard in shards])
        shards = [shard for shard in shards if not tokens_per_source([shard]).keys().isdisjoint(settings.mixture)]
    return shards


def build(settings: Settings, folder: Path) -> dict:
    encoded = load_manifest(settings.input_dir, "encode")["result"]
    fractions = kept_fractions(encoded["per_source"], settings.mixture)
    shards = shards_to_pack(settings)
    kept = sum(encoded["per_source"][name] * fraction for name, fraction in fractions.items())
    groups = max(1, min(len(shards), round(kept / settings.group_tokens)))
    steps = [Packer(settings, folder, shards, encoded["vocab_size"], fractions)]
    counts = run_pipeline(steps, groups, settings, folder, f"pack {settings.seq_len}")
    if not counts["rows"]:
        raise InputError(f"{settings.input_dir}: no documents to pack")
    shutil.copytree(Path(settings.input_dir) / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    return {
        **{name: counts[name] for name in ("rows", "documents", "cut_documents", "tokens")},
        "fill": round(counts["tokens"] / (counts["rows"] * settings.seq_len), 5),
        "seq_len": settings.seq_len,
        "vocab_size": encoded["vocab_size"],
        "tokenizer": encoded["tokenizer"],
    }


def main(settings: Settings) -> dict:
    return run_stage(settings, partial(build, settings))


if __name__ == "__main__":
    run(main, Settings)
