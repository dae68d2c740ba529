"""A row is what lies between its offsets, and a damaged folder is noticed before it is read."""

import pickle
import resource
import shutil

import numpy as np
import pytest

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.rows.encoded import load_manifest
from zh_modernbert.train.rows.packed import PackedRows


@pytest.mark.parametrize("index", [0, 1, -1])
def test_row_bounds(stages, index):
    """Bounds count from 0 in any row, and a row is what lies between its offsets."""
    rows = PackedRows(stages / "packed")
    if index < 0:
        index += len(rows)
    ids, starts, bounds = rows.row(index)
    (shard,) = rows.shards
    row_offsets = shard.row_offsets[:]
    offsets = shard.document_offsets[row_offsets[index] : row_offsets[index + 1] + 1]
    assert bounds.tolist() == (offsets - offsets[0]).tolist()
    assert np.array_equal(ids, shard.input_ids[offsets[0] : offsets[-1]])
    assert np.array_equal(starts, shard.word_starts[offsets[0] : offsets[-1]])


def test_row_that_is_none(stages):
    rows = PackedRows(stages / "packed")
    with pytest.raises(IndexError):
        rows.row(len(rows))


@pytest.fixture
def copy(stages, tmp_path):
    return shutil.copytree(stages / "packed", tmp_path / "packed")


def test_groups_are_one_list_of_all_their_rows(copy):
    shutil.copytree(copy / "00000", copy / "00001")
    rows = PackedRows(copy)
    packed = load_manifest(copy, "pack")["result"]
    assert (len(rows), rows.documents) == (2 * packed["rows"], 2 * sum(len(rows.row(i)[2]) - 1 for i in range(packed["rows"])))
    for index in (0, packed["rows"] - 1):
        assert all(map(np.array_equal, rows.row(index), rows.row(packed["rows"] + index)))


def test_a_folder_of_more_files_than_a_process_may_have_open(copy):
    """A terabyte has some 900 groups, of five files each. Rows are read in any order, at random from all of them."""
    for number in range(1, 260):
        shutil.copytree(copy / "00000", copy / f"{number:05d}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        rows = PackedRows(copy)
        count = len(rows) // 260
        expected = [part.tolist() for part in rows.row(3)]
        found = [rows.row(count * group + 3) for group in range(260)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert all([part.tolist() for part in row] == expected for row in found)
    assert [part.tolist() for part in pickle.loads(pickle.dumps(rows)).row(3)] == expected


@pytest.mark.parametrize("name", ["input_ids", "word_starts", "document_offsets", "row_offsets", "checksums"])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_damaged_arrays_are_named(copy, name, damage):
    path = copy / "00000" / f"{name}.bin"
    data = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(data[:-1])
    with pytest.raises(InputError, match=rf"{name}\.bin"):
        PackedRows(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stage": "pack"}', '{"stage": "pack", "files": {}}'])
def test_damaged_manifest(copy, text):
    (copy / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="packed"):
        PackedRows(copy)


@pytest.mark.parametrize("name", ["nothing", "corpus", "tokenizer", "encoded"])
def test_other_folders_are_refused(stages, name):
    with pytest.raises(InputError, match=name):
        PackedRows(stages / name)
