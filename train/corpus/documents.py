"""A corpus: a folder of `.jsonl.zst` shards. A line is a document, `{"id", "source", "text", "script"?, "url"?}`."""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import orjson
import zstandard

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.manifest import is_output, read_manifest, verify_files
from zh_modernbert.train.corpus.lines import STRICT, BadLines, read_jsonl, shown

DOCUMENTS_PER_SHARD = 20_000


def corpus_shards(folder: str | Path) -> list[Path]:
    """The shards of a corpus folder, in order.

    Raises:
        InputError: the folder or its shards are missing, or the shards are not those in its manifest.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    shards = sorted(path for path in folder.iterdir() if path.name.lower().endswith(".jsonl.zst"))
    if not shards:
        raise InputError(f"{folder}: an empty corpus: no .jsonl.zst shard in it")
    if is_output(folder):
        files = read_manifest(folder)["files"]
        for shard in shards:
            if shard.name not in files:
                raise InputError(f"{shard}: not what the stage wrote, by manifest.json; take it away, or read it as a source")
    return shards


def read_corpus_shard(shard: Path, bad_lines: BadLines = STRICT) -> Iterator[dict]:
    """The documents of one shard.

    Raises:
        InputError: the shard is not what the stage before wrote; as `read_jsonl`; or as `bad_lines` does, where a line is no
            document.
    """
    if is_output(shard.parent):
        verify_files(shard.parent, [shard.name])
    for number, document in read_jsonl(shard, bad_lines):
        missing = [field for field in ("id", "source", "text") if not isinstance(document.get(field), str)]
        if missing:
            bad_lines.report(shard, number, f"a document needs a string {missing[0]!r}", shown(document))
        else:
            yield document


def read_corpus(folder: str | Path) -> Iterator[dict]:
    """The documents of a corpus folder, in order.

    Raises:
        InputError: there is no document, or one cannot be read.
    """
    empty = True
    for shard in corpus_shards(folder):
        for document in read_corpus_shard(shard):
            empty = False
            yield document
    if empty:
        raise InputError(f"{folder}: an empty corpus: no documents in it")


def compressing(file: IO[bytes]) -> Any:
    """Writes to `file` what is written here as zstd of level 3, with a checksum: readers notice damage."""
    return zstandard.ZstdCompressor(level=3, write_checksum=True).stream_writer(file)


def write_corpus(folder: Path, documents: Iterable[dict], prefix: str = "") -> dict:
    """Writes shards `{prefix}00000.jsonl.zst`, `{prefix}00001.jsonl.zst` ...; returns how many documents and characters."""
    counts = {"documents": 0, "characters": 0}
    file = None
    try:
        for document in documents:
            if file is None or counts["documents"] % DOCUMENTS_PER_SHARD == 0:
                if file:
                    file.close()
                shard = folder / f"{prefix}{counts['documents'] // DOCUMENTS_PER_SHARD:05d}.jsonl.zst"
                file = io.BufferedWriter(compressing(shard.open("wb")), 1 << 20)
            file.write(orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE))
            counts["documents"] += 1
            counts["characters"] += len(document["text"])
    finally:
        if file:
            file.close()
    return counts
