"""Bytes that rot between stages: a flipped bit, anywhere in what a stage wrote, is noticed or changes nothing that is read."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import zstandard

from zh_modernbert.train import clean
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.manifest import write_manifest
from zh_modernbert.train.corpus.documents import read_corpus
from zh_modernbert.train.corpus.lines import read_jsonl
from zh_modernbert.train.encode import Settings
from zh_modernbert.train.pack import Group
from zh_modernbert.train.rows.encoded import encoded_shards, load_manifest, load_shard
from zh_modernbert.train.rows.packed import PackedRows

FLIPS = 200


def all_of_encoded(folder: Path) -> list:
    result = load_manifest(folder, "encode")["result"]
    shards = [load_shard(shard, result["vocab_size"]) for shard in encoded_shards(folder)]
    group = Group(shards)
    documents = [group.tokens(*piece) for piece in group.pieces(np.arange(len(group.lengths)), 1 << 20)]
    return [[(ids.tolist(), starts.tolist()) for ids, starts in documents], group.sources.tolist()]


def all_of_packed(folder: Path) -> list:
    rows = PackedRows(folder)
    return [rows.seq_len, rows.vocab_size, rows.tokens, [[part.tolist() for part in rows.row(i)] for i in range(len(rows))]]


READERS = {"corpus": lambda folder: list(read_corpus(folder)), "encoded": all_of_encoded, "packed": all_of_packed}


@pytest.fixture(scope="module")
def written(stages, tmp_path_factory) -> Path:
    """What each stage wrote, with few documents; the corpus with a manifest."""
    folder = tmp_path_factory.mktemp("written")
    shutil.copytree(stages / "corpus", folder / "corpus")
    write_manifest(folder / "corpus", Settings(output_dir="", input_dir="", tokenizer_dir=""), "", {})
    for name in ("encoded", "packed"):
        shutil.copytree(stages / name, folder / name)
    return folder


def flip(path: Path, place: int) -> None:
    with open(path, "r+b") as file:
        file.seek(place // 8)
        (byte,) = file.read(1)
        file.seek(place // 8)
        file.write(bytes([byte ^ 1 << place % 8]))


@pytest.mark.parametrize("name", READERS)
def test_flipped_bits(written, name):
    """In each of a stage's files as often; in small ones too, where bounds and counts are."""
    folder, read, generator = written / name, READERS[name], random.Random(0)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "settings.json"]
    expected, missed = read(folder), []
    for number in range(FLIPS):
        path = files[number % len(files)]
        place = generator.randrange(8 * path.stat().st_size)
        flip(path, place)
        try:
            if read(folder) != expected:
                missed.append(f"{path.name}, bit {place}")
        except InputError:
            pass
        finally:
            flip(path, place)
    assert not missed
    assert read(folder) == expected


def test_shards_notice_damage_without_their_manifest(stages, tmp_path):
    """Also where they are read as any source is."""
    (path,) = shutil.copytree(stages / "corpus", tmp_path / "corpus").glob("*.zst")
    expected, generator, noticed = list(read_jsonl(path)), random.Random(0), 0
    for _ in range(FLIPS):
        place = generator.randrange(8 * path.stat().st_size)
        flip(path, place)
        try:
            assert list(read_jsonl(path)) == expected
        except InputError:
            noticed += 1
        flip(path, place)
    assert noticed > 0.9 * FLIPS


def test_all_shards_have_checksums(stages, tmp_path):
    """Those that stages write through datatrove, too."""
    settings = {"input_dir": str(stages / "corpus"), "output_dir": str(tmp_path / "clean"), "save_rejects": True}
    clean.main(clean.Settings(**settings))
    shards = [*tmp_path.rglob("*.zst"), *stages.rglob("*.zst")]
    assert len(shards) >= 2
    assert all(zstandard.get_frame_parameters(shard.read_bytes()).has_checksum for shard in shards)
