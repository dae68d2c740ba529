"""A damaged encoded folder is noticed before it is read."""

import json
import shutil

import pytest

from zh_modernbert.train import train_tokenizer
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.rows.encoded import load_manifest


@pytest.fixture
def copy(stages, tmp_path):
    return shutil.copytree(stages / "encoded", tmp_path / "encoded")


@pytest.mark.parametrize("name", ["input_ids", "word_starts", "offsets", "sources"])
@pytest.mark.parametrize("damage", ["truncated", "longer", "missing"])
def test_damaged_arrays_are_named(copy, name, damage):
    path = copy / "00000" / f"{name}.bin"
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if damage == "truncated" else data + b"\0")
    with pytest.raises(InputError, match=rf"{name}\.bin"):
        load_manifest(copy, "encode")


def test_swapped_tokenizer_is_noticed(copy):
    """Another tokenizer of the same size: two of its merges change places."""
    path = copy / "tokenizer" / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    merges = data["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]
    size = path.stat().st_size
    path.write_text(json.dumps(data, ensure_ascii=False, indent=2), encoding="utf-8")
    assert path.stat().st_size == size
    with pytest.raises(InputError, match=r"tokenizer\.json: damaged"):
        load_manifest(copy, "encode")


@pytest.mark.parametrize("damage", ["missing", "another"])
def test_damaged_tokenizer_is_named(copy, stages, damage):
    shutil.rmtree(copy / "tokenizer")
    if damage == "another":
        train_tokenizer.main(
            train_tokenizer.Settings(input_dir=str(stages / "corpus"), output_dir=str(copy / "tokenizer"), vocab_size=576)
        )
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        load_manifest(copy, "encode")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: '{"stage": "encode"}',
        lambda text: json.dumps(json.loads(text) | {"files": []}),
        lambda text: json.dumps(json.loads(text) | {"files": {"00000/offsets.bin": 5}}),
        lambda text: json.dumps(json.loads(text) | {"result": {}}),
    ],
    ids=["empty", "truncated", "list", "bare", "no files", "no sizes", "no tokenizer"],
)
def test_damaged_manifest(copy, damage):
    path = copy / "manifest.json"
    path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(InputError, match="encoded"):
        load_manifest(copy, "encode")


@pytest.mark.parametrize(
    ("name", "said"),
    [("nothing", "no such folder"), ("corpus", "no manifest"), ("tokenizer", "not what"), ("packed", "not what")],
)
def test_other_folders_are_refused(stages, name, said):
    with pytest.raises(InputError, match=said):
        load_manifest(stages / name, "encode")
