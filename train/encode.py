"""Corpus + tokenizer -> token ids and word starts of each document.

A token starts a word if a word of the segmenter begins at the token's first character. Every other token belongs to the word of
the token before it. Each shard of the corpus becomes a folder; train/rows/encoded.py describes and reads its files.

    python train/encode.py --input_dir runs/mine/dedup --tokenizer_dir runs/mine/tokenizer --output_dir runs/mine/encoded
"""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import zh_modernbert.train.common.extras  # noqa: F401  # names the extra of a missing package

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from tokenizers import Encoding, Tokenizer

from zh_modernbert.train.common.cli import InputError, run, setting
from zh_modernbert.train.common.files import replacing, write_json
from zh_modernbert.train.common.stage import run_stage, tokenizer_files
from zh_modernbert.train.corpus.documents import corpus_shards
from zh_modernbert.train.corpus.engine import CorpusReader, ParallelSettings, each, quarantine_of, raised, run_pipeline
from zh_modernbert.train.corpus.held_out import is_held_out
from zh_modernbert.train.corpus.rules import apply_rule
from zh_modernbert.train.rows.encoded import encoded_shards, ids_dtype, tokens_per_source
from zh_modernbert.train.tokenizer.loading import fingerprint, load_tokenizer
from zh_modernbert.train.tokenizer.segment import word_boundaries

BATCH = 1 << 19  # a batch for the tokenizer ends with the document that reaches so many characters


@dataclass
class Settings(ParallelSettings):
    input_dir: str = setting(help="corpus folder to read")
    tokenizer_dir: str = setting(help="tokenizer folder")
    output_dir: str = setting(help="encoded folder to write")
    held_out: float = setting(0.0, "share of the documents that are not for training", least=0, most=0.5)
    part: str = setting("training", "which documents are encoded: all others, or those", ("training", "held_out"))

    def __post_init__(self):
        super().__post_init__()
        if self.part == "held_out" and not self.held_out:
            raise InputError("encode: part is held_out, but held_out is 0; give the share that was held out of training")


def token_bytes(backend) -> np.ndarray:
    """`(V,)`: for each token of a byte-level `tokenizers.Tokenizer`, how many bytes of text it stands for."""
    vocab = backend.get_vocab()
    lengths = np.zeros(max(vocab.values()) + 1, dtype=np.int64)
    for token, index in vocab.items():
        lengths[index] = len(token)  # spelled with one character for each byte
    return lengths


def word_starts(text: str, lengths: np.ndarray) -> np.ndarray:
    """`(tokens,)` bool: whether a word begins with the token.

    A token that begins inside a character starts no word.

    Args:
        lengths: `(tokens,)`, the bytes of each token.
    """
    data = np.frombuffer(text.encode(), dtype=np.uint8)
    boundaries = np.zeros(len(data), dtype=bool)
    boundaries[data & 0xC0 != 0x80] = word_boundaries(text)[:-1]
    return boundaries[np.cumsum(lengths) - lengths]


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """The documents in lists. A list ends as soon as its texts have `BATCH` characters together."""
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def ids_and_starts(text: str, encoding: Encoding, bytes_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The token ids `(tokens,)` and word starts `(tokens,)` of a text.

    Args:
        bytes_of: `token_bytes` of the tokenizer.

    Raises:
        InputError: the tokens have not as many bytes as the text, so their places are unknown.
    """
    ids = np.array(encoding.ids, dtype=np.int64)
    lengths = bytes_of[ids]
    if lengths.sum() != len(text.encode()):
        raise InputError(f"the tokenizer does not give {text[:40]!r} back; it must be byte-level and change no text")
    return ids, word_starts(text, lengths)


@lru_cache(maxsize=1)
def load_backend(tokenizer_dir: str, fingerprint: str) -> tuple[Tokenizer, np.ndarray]:
    """The tokenizer with that fingerprint, and its `token_bytes`. Loaded once a process: tokenizers never frees its caches."""
    backend = load_tokenizer(tokenizer_dir).backend_tokenizer
    backend.encode_special_tokens = True  # text that spells "[MASK]" stays text
    return backend, token_bytes(backend)


class Encoder(PipelineStep):
    """Task r writes shard r of the encoded corpus."""

    type = "encoder"
    name = "encode"

    def __init__(self, folder: Path, settings: Settings):
        super().__init__()
        self.folder, self.tokenizer = folder, (settings.tokenizer_dir, fingerprint(settings.tokenizer_dir))
        self.held_out, self.part = settings.held_out, settings.part

    def takes(self, document: Document) -> bool:
        return is_held_out(document.id, self.held_out) == (self.part == "held_out")

    def encode(self, data: Iterable[Document], rank: int) -> Iterator[tuple[Document, tuple[np.ndarray, np.ndarray]]]:
        """Each document with its `ids_and_starts`, if they can be had."""
        backend, bytes_of = load_backend(*self.tokenizer)
        quarantine = quarantine_of(self, self.folder, rank)
        for documents in batches(filter(self.takes, data)):
            encodings = iter(backend.encode_batch_fast([document.text for document in documents], add_special_tokens=False))

            def next_one(document: Document) -> tuple[np.ndarray, np.ndarray]:
                return apply_rule(ids_and_starts, document.text, next(encodings), bytes_of)  # noqa: B023

            yield from each(self, documents, next_one, quarantine)

    def run(self, data, rank: int = 0, world_size: int = 1) -> None:
        _, bytes_of = load_backend(*self.tokenizer)
        dtype = ids_dtype(len(bytes_of))
        offsets, sources, numbers, per_source, counts = [0], [], {}, Counter(), Counter()
        with replacing(self.folder / f"{rank:05d}") as shard:
            with open(shard / "input_ids.bin", "wb") as ids_file, open(shard / "word_starts.bin", "wb") as starts_file:
                for document, (ids, starts) in self.encode(data, rank):
                    if not len(ids):
                        continue
                    ids_file.write(ids.astype(dtype).tobytes())
                    starts_file.write(starts.astype(np.uint8).tobytes())
                    offsets.append(offsets[-1] + len(ids))
                    source = document.metadata["source"]
                    sources.append(numbers.setdefault(source, len(numbers)))
                    per_source[source] += len(ids)
                    counts["characters"] += len(document.text)
                    counts["words"] += int(starts.sum())
            (shard / "offsets.bin").write_bytes(np.array(offsets, dtype=np.int64).tobytes())
            (shard / "sources.bin").write_bytes(np.array(sources, dtype=np.uint16).tobytes())
            write_json(shard / "shard.json", {"per_source": per_source})
        for name, value in (counts | {"documents": len(sources), "tokens": offsets[-1]}).items():
            self.stat_update(name, value=value)


def build(settings: Settings, folder: Path) -> dict:
    tokenizer = load_tokenizer(settings.tokenizer_dir)
    steps = [CorpusReader(settings.input_dir, folder), Encoder(folder, settings)]
    counts = run_pipeline(steps, len(corpus_shards(settings.input_dir)), settings, folder, "encode")
    if not counts["tokens"]:
        raise InputError(
            f"{settings.input_dir}: an empty corpus: no text in it{' that is held out' if settings.part == 'held_out' else ''}"
        )
    (folder / "tokenizer").mkdir(exist_ok=True)
    for path in tokenizer_files(settings.tokenizer_dir):
        shutil.copyfile(path, folder / "tokenizer" / path.name)
    return {
        **{name: counts[name] for name in ("documents", "characters", "words", "tokens")},
        "quarantined": counts["quarantined"] + raised(counts).total(),
        "raised": raised(counts),
        "characters_per_token": round(counts["characters"] / counts["tokens"], 4),
        "vocab_size": len(tokenizer),
        "tokenizer": fingerprint(settings.tokenizer_dir),
        "per_source": tokens_per_source(encoded_shards(folder)),
    }


def main(settings: Settings) -> dict:
    return run_stage(settings, partial(build, settings))


if __name__ == "__main__":
    run(main, Settings)
