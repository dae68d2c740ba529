"""Corpus + tokenizer -> token ids and word starts, documents whole.

A token starts a word where a word of the segmenter begins with its first character; every other token belongs to the word
before it, so the tokens of one word always stay together. Writes `input_ids.bin` (uint16 where the vocabulary allows,
without special tokens), `word_starts.bin` (one byte a token), `offsets.bin` (int64, documents + 1), `sources.bin` (uint16 a
document), `manifest.json`, and the tokenizer.

    python train/encode.py --input_dir runs/mine/dedup --tokenizer_dir runs/mine/tokenizer --output_dir runs/mine/encoded
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from zh_modernbert.train.cli import BaseSettings, InputError, run, setting
from zh_modernbert.train.files import output_folder, read_corpus, read_json, require_folder, write_json
from zh_modernbert.train.segment import word_boundaries
from zh_modernbert.train.train_tokenizer import fingerprint, load_tokenizer

BATCH = 1000  # documents the tokenizer gets at once


@dataclass
class Settings(BaseSettings):
    input_dir: str = setting(help="corpus folder to read")
    tokenizer_dir: str = setting(help="tokenizer folder")
    output_dir: str = setting(help="encoded folder to write")


def word_starts(text: str, offsets: np.ndarray) -> np.ndarray:
    """`(tokens,)` bool from the tokens' `(tokens, 2)` character offsets.

    A token that begins inside a character (its other bytes are in the token before) starts nothing.
    """
    starts, previous_ends = offsets[:, 0], np.concatenate(([0], offsets[:-1, 1]))
    return word_boundaries(text)[starts] & (starts >= previous_ends)


def encode(texts: list[str], backend) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each text its token ids and word starts; `backend` is a `tokenizers.Tokenizer`."""
    for text, encoding in zip(texts, backend.encode_batch(texts, add_special_tokens=False), strict=True):
        ids = np.array(encoding.ids, dtype=np.int64)
        yield ids, word_starts(text, np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2))


@dataclass(frozen=True)
class EncodedCorpus:
    """A memory-mapped encoded folder; document d is tokens offsets[d] to offsets[d + 1]."""

    input_ids: np.ndarray
    word_starts: np.ndarray
    offsets: np.ndarray
    sources: np.ndarray
    manifest: dict
    tokenizer_dir: Path


def load_arrays(folder: str | Path, kind: str, holder: type):
    """A `holder` of what a folder of `kind` (encoded or packed) holds: memory-mapped arrays, `manifest`, and `tokenizer_dir`.

    Raises:
        InputError: it is something else, it is damaged, or the tokenizer in it is not the one that made the token ids.
    """
    folder = require_folder(folder, "manifest.json")
    manifest = read_json(folder / "manifest.json")
    if manifest.get("kind") != kind:
        raise InputError(f"{folder}: not {'an encoded' if kind == 'encoded' else 'a packed'} folder")
    loaded = {"manifest": manifest, "tokenizer_dir": folder / "tokenizer"}
    try:
        made_with, _ = manifest["tokenizer"], int(manifest["vocab_size"])
        for name, (dtype, length) in manifest["arrays"].items():
            path, size = folder / f"{name}.bin", np.dtype(dtype).itemsize * length
            if not path.is_file() or path.stat().st_size != size:
                raise InputError(f"{path}: missing or cut short; it must have {size} bytes. Run the stage that wrote it again")
            loaded[name] = np.memmap(path, dtype, "r", shape=(length,)) if length else np.empty(0, dtype)
        held = holder(**loaded)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / 'manifest.json'}: damaged ({error}); run the stage that wrote it again") from error
    if fingerprint(folder / "tokenizer") != made_with:
        raise InputError(f"{folder / 'tokenizer'}: this tokenizer does not match the encoded data; run train/encode.py again")
    return held


def load_encoded(folder: str | Path) -> EncodedCorpus:
    """The encoded corpus in a folder; see `load_arrays` for what it raises."""
    return load_arrays(folder, "encoded", EncodedCorpus)


def main(settings: Settings) -> dict:
    tokenizer = load_tokenizer(settings.tokenizer_dir)
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True  # text that spells "[MASK]" stays text
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)
    offsets, document_sources, names, characters, words = [0], [], {}, 0, 0
    with output_folder(settings.output_dir, settings) as folder:
        with open(folder / "input_ids.bin", "wb") as ids_file, open(folder / "word_starts.bin", "wb") as starts_file:
            stream = iter(tqdm(read_corpus(settings.input_dir), desc="encode", unit=" documents"))
            while documents := list(islice(stream, BATCH)):
                encoded = encode([document["text"] for document in documents], backend)
                for document, (ids, starts) in zip(documents, encoded, strict=True):
                    if not len(ids):
                        continue
                    ids.astype(dtype).tofile(ids_file)
                    starts.astype(np.uint8).tofile(starts_file)
                    offsets.append(offsets[-1] + len(ids))
                    document_sources.append(names.setdefault(document["source"], len(names)))
                    characters += len(document["text"])
                    words += int(starts.sum())
        if not offsets[-1]:
            raise InputError(f"{settings.input_dir}: an empty corpus: no text in it")
        np.array(offsets, dtype=np.int64).tofile(folder / "offsets.bin")
        np.array(document_sources, dtype=np.uint16).tofile(folder / "sources.bin")
        shutil.copytree(settings.tokenizer_dir, folder / "tokenizer", ignore=shutil.ignore_patterns("settings.json"))
        counts = {"documents": len(offsets) - 1, "characters": characters, "words": words, "tokens": offsets[-1]}
        arrays = {
            "input_ids": [dtype.name, offsets[-1]],
            "word_starts": ["uint8", offsets[-1]],
            "offsets": ["int64", len(offsets)],
            "sources": ["uint16", len(offsets) - 1],
        }
        manifest = {
            "kind": "encoded",
            **counts,
            "source_names": list(names),
            "vocab_size": len(tokenizer),
            "tokenizer": fingerprint(settings.tokenizer_dir),
            "arrays": arrays,
        }
        write_json(folder / "manifest.json", manifest)
    return {**counts, "characters_per_token": round(characters / offsets[-1], 4), "output_dir": settings.output_dir}


if __name__ == "__main__":
    run(main, Settings)
