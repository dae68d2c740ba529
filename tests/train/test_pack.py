"""Rows are never too long, documents are whole and there once, and what is cut is cut between words."""

import json
import random
import shutil
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from zh_modernbert.train import pack, train_tokenizer
from zh_modernbert.train.cli import InputError
from zh_modernbert.train.encode import load_encoded
from zh_modernbert.train.pack import CLS, SEP, Settings, best_fit_decreasing, cut, load_packed
from zh_modernbert.train.train_tokenizer import fingerprint

FIRST = 10  # the id of the first token of the first document


def write_encoded(folder, stages, lengths, sources=None, word_length=3, seed=0):
    """An encoded folder where token t of the corpus has the id t + FIRST, so that each piece tells where it comes from."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    lengths = np.asarray(lengths, dtype=np.int64)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    names = sorted(set(sources)) if sources is not None else ["s"]
    starts = (generator.random(offsets[-1]) < 1 / word_length).astype(np.uint8)
    starts[offsets[:-1]] = 1
    arrays = {
        "input_ids": np.arange(FIRST, FIRST + offsets[-1], dtype=np.uint32),
        "word_starts": starts,
        "offsets": offsets,
        "sources": np.array([names.index(s) for s in sources] if sources is not None else [0] * len(lengths), dtype=np.uint16),
    }
    for name, array in arrays.items():
        array.tofile(folder / f"{name}.bin")
    shutil.copytree(stages / "tokenizer", folder / "tokenizer")
    manifest = {
        "kind": "encoded",
        "source_names": names,
        "vocab_size": 512,
        "tokenizer": fingerprint(folder / "tokenizer"),
        "arrays": {name: [array.dtype.name, len(array)] for name, array in arrays.items()},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def run(encoded, output, **fields):
    result = pack.main(Settings(input_dir=str(encoded), output_dir=str(output), **fields))
    return result, load_packed(output)


def pieces_of(rows):
    """(row, first corpus token, one past the last, word starts) of every piece, after checking its special tokens."""
    for index in range(len(rows)):
        ids, starts, bounds = rows.row(index)
        assert bounds[0] == 0
        assert bounds[-1] == len(ids) == len(starts) > 2
        for a, b in pairwise(bounds.tolist()):
            piece = ids[a:b].astype(np.int64)
            assert (piece[0], piece[-1]) == (CLS, SEP)
            assert np.array_equal(piece[1:-1], np.arange(piece[1], piece[1] + b - a - 2)), "not one run of the corpus"
            assert starts[a] == starts[b - 1] == starts[a + 1] == 1
            yield index, int(piece[1]) - FIRST, int(piece[-2]) + 1 - FIRST, starts[a + 1 : b - 1]


# --- whole folders ---


@pytest.fixture(scope="module")
def realistic(stages, tmp_path_factory):
    """5,000 documents of lognormal lengths, some of them many rows long, packed to 1,024."""
    folder = tmp_path_factory.mktemp("realistic")
    lengths = np.random.default_rng(0).lognormal(5.3, 1.2, 5000).astype(int) + 1
    assert (lengths > 1022).sum() > 100
    encoded = write_encoded(folder / "encoded", stages, lengths)
    return encoded, *run(encoded, folder / "packed", seq_len=1024)


def test_no_row_is_too_long(realistic):
    _, _, rows = realistic
    tokens = np.asarray(rows.document_offsets)[np.asarray(rows.row_offsets)]
    assert np.diff(tokens).max() <= 1024
    assert tokens[-1] == len(rows.input_ids)


def test_every_document_is_there_once_and_whole(realistic):
    encoded, result, rows = realistic
    corpus = load_encoded(encoded)
    found = sorted((start, end) for _, start, end, _ in pieces_of(rows))
    assert [start for start, _ in found] == [0, *(end for _, end in found[:-1])], "a token is missing or there twice"
    assert found[-1][1] == len(corpus.input_ids)
    edges = set(corpus.offsets.tolist())
    assert edges <= {start for start, _ in found} | {len(corpus.input_ids)}, "two documents lie in one piece"
    cuts = sorted({start for start, _ in found} - edges)
    lengths = np.diff(corpus.offsets)
    assert np.diff(found)[:, 0].max() <= 1022
    # Only what is longer than a row is cut, and that only where a word starts.
    assert {int(np.searchsorted(corpus.offsets, at, side="right")) - 1 for at in cuts} == set(
        np.flatnonzero(lengths > 1022).tolist()
    )
    assert corpus.word_starts[cuts].all()
    assert result["cut_documents"] == (lengths > 1022).sum()
    assert result["documents"] == 5000


def test_word_starts_are_carried(realistic):
    encoded, _, rows = realistic
    corpus = load_encoded(encoded)
    for _, start, end, starts in pieces_of(rows):
        assert np.array_equal(starts, corpus.word_starts[start:end])


def test_rows_are_full(realistic):
    _, result, rows = realistic
    assert result["fill"] == pytest.approx(len(rows.input_ids) / (len(rows) * 1024), abs=1e-5)
    assert result["fill"] > 0.99


def test_counts_of_the_manifest(realistic):
    _, result, rows = realistic
    assert rows.manifest["rows"] == result["rows"] == len(rows)
    assert rows.manifest["tokens"] == result["tokens"] == len(rows.input_ids)
    assert rows.manifest["seq_len"] == 1024
    assert rows.input_ids.dtype == np.uint32


def test_order_is_shuffled(realistic):
    """Neither the corpus's order, nor longest first: in neither of rows, nor of documents in a row."""
    _, _, rows = realistic
    places, longest_first, several = [], 0, 0
    for index in range(len(rows)):
        _, _, bounds = rows.row(index)
        lengths = np.diff(bounds)
        if len(set(lengths.tolist())) > 1:
            several += 1
            longest_first += lengths.argmax() == 0
    places = [start for _, start, _, _ in pieces_of(rows)]
    assert abs(np.corrcoef(np.arange(len(places)), places)[0, 1]) < 0.1
    assert longest_first < 0.6 * several


@pytest.mark.parametrize("seq_len", [8, 16, 64, 4096])
def test_any_row_length(stages, tmp_path, seq_len):
    """With lengths around the edges: one less than, exactly, and one more than what fits; and a word longer than a row."""
    inside = seq_len - 2
    lengths = [1, 2, inside - 1, inside, inside + 1, 2 * inside, 2 * inside + 1, 1]
    encoded = write_encoded(tmp_path / "encoded", stages, lengths, word_length=4)
    _, rows = run(encoded, tmp_path / "packed", seq_len=seq_len)
    assert len(rows) == rows.manifest["rows"]
    offsets = load_encoded(encoded).offsets
    spans = sorted((start, end) for _, start, end, _ in pieces_of(rows))
    assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert spans[-1][1] == sum(lengths)
    for document in (0, 1, 2, 3, 7):
        assert (offsets[document], offsets[document + 1]) in spans
    assert all(len(rows.row(index)[0]) <= seq_len for index in range(len(rows)))


def test_same_seed_same_bytes(stages, tmp_path):
    encoded = write_encoded(tmp_path / "encoded", stages, np.random.default_rng(1).integers(1, 200, 300))
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(encoded, tmp_path / name, seq_len=128, seed=seed)
    for array in ("input_ids", "word_starts", "document_offsets", "row_offsets"):
        first, same, other = ((tmp_path / name / f"{array}.bin").read_bytes() for name in "abc")
        assert first == same
        if array == "input_ids":
            assert first != other


def test_real_text(stages):
    """The fixture's own folder: every document's ids between [CLS] and [SEP], but of those that were cut."""
    corpus, rows = load_encoded(stages / "encoded"), load_packed(stages / "packed")
    expected = Counter(tuple(corpus.input_ids[a:b].tolist()) for a, b in pairwise(corpus.offsets.tolist()) if b - a <= 126)
    found = Counter()
    for index in range(len(rows)):
        ids, _, bounds = rows.row(index)
        found.update(tuple(ids[a + 1 : b - 1].tolist()) for a, b in pairwise(bounds.tolist()))
    assert sum(expected.values()) > 300
    assert expected <= found
    assert rows.manifest["fill"] > 0.97


# --- its parts ---


def test_best_fit_never_overfills():
    generator = random.Random(0)
    for _ in range(300):
        capacity = generator.randint(1, 60)
        lengths = np.array(
            [generator.choice([1, capacity, generator.randint(1, capacity)]) for _ in range(generator.randint(0, 80))]
        )
        rows = best_fit_decreasing(lengths.astype(np.int64), capacity)
        assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
        sums = sorted(int(lengths[row].sum()) for row in rows)
        assert all(0 < total <= capacity for total in sums)
        # No two rows would fit into one: the least that best fit promises.
        assert len(sums) < 2 or sums[0] + sums[1] > capacity


@pytest.mark.parametrize(
    ("lengths", "capacity", "expected"),
    [
        ([10, 10, 10], 10, [[0], [1], [2]]),
        ([6, 5, 4, 3, 2], 10, [[0, 2], [1, 3, 4]]),
        # Room of 4 and of 3 is there for 3: the tighter one is taken, and the last 4 still fits.
        ([7, 6, 3, 4], 10, [[0, 2], [1, 3]]),
        ([1] * 7, 3, [[0, 1, 2], [3, 4, 5], [6]]),
        ([], 5, []),
    ],
)
def test_best_fit(lengths, capacity, expected):
    rows = best_fit_decreasing(np.array(lengths, dtype=np.int64), capacity)
    assert sorted(sorted(row) for row in rows) == expected


@pytest.mark.parametrize(
    ("starts", "longest", "expected"),
    [
        ([1, 1, 1, 1], 2, [0, 2, 4]),
        ([1, 1, 0, 1, 0], 2, [0, 1, 3, 5]),
        ([1, 0, 0, 0, 0, 1], 2, [0, 2, 4, 6]),
        ([1, 0, 1, 0], 4, [0, 4]),
        ([1, 0, 0, 1, 0, 0], 3, [0, 3, 6]),
    ],
)
def test_cut(starts, longest, expected):
    assert cut(np.array(starts), longest) == expected


def test_cut_in_general():
    generator = np.random.default_rng(0)
    for _ in range(300):
        starts = generator.random(generator.integers(1, 120)) < generator.choice([0.05, 0.3, 0.9])
        starts[0] = True
        longest = int(generator.integers(1, 30))
        bounds = cut(starts, longest)
        assert (bounds[0], bounds[-1]) == (0, len(starts))
        for a, b in pairwise(bounds):
            assert 0 < b - a <= longest
            if b < len(starts) and not starts[b]:
                assert b - a == longest
                assert not starts[a + 1 : b].any(), "cut inside a word though one begins before"


# --- mixture ---


@pytest.fixture(scope="module")
def three_sources(stages, tmp_path_factory):
    generator = np.random.default_rng(0)
    sources = generator.choice(["book", "news", "web"], size=4000, p=[0.1, 0.3, 0.6]).tolist()
    lengths = generator.integers(20, 200, len(sources))
    return write_encoded(tmp_path_factory.mktemp("mixture") / "encoded", stages, lengths, sources), np.array(sources), lengths


def tokens_per_source(encoded, rows) -> dict[str, int]:
    corpus, counts = load_encoded(encoded), {}
    spans = [(start, end) for _, start, end, _ in pieces_of(rows)]
    assert len(spans) == len(set(spans)), "a document is there twice"
    for start, end in spans:
        document = np.searchsorted(corpus.offsets, start, side="right") - 1
        name = corpus.manifest["source_names"][corpus.sources[document]]
        counts[name] = counts.get(name, 0) + end - start
    return counts


@pytest.mark.parametrize(
    "mixture",
    [
        {"book": 0.2, "news": 0.3, "web": 0.5},
        {"book": 1, "news": 1, "web": 1},
        {"book": 60, "news": 30, "web": 10},
        {"web": 0.9, "book": 0.1},
        {"news": 1.0},
    ],
    ids=str,
)
def test_shares_are_kept(three_sources, tmp_path, mixture):
    encoded, sources, lengths = three_sources
    result, rows = run(encoded, tmp_path / "packed", seq_len=512, mixture=mixture)
    counts = tokens_per_source(encoded, rows)
    total = sum(counts.values())
    assert set(counts) == set(mixture)
    for name, share in mixture.items():
        assert counts[name] / total == pytest.approx(share / sum(mixture.values()), abs=0.01)
    # As much as can be: one source is used up.
    assert any(counts[name] == lengths[sources == name].sum() for name in mixture)
    assert result["documents"] == len(list(pieces_of(rows)))


def test_no_mixture_keeps_everything(three_sources, tmp_path):
    encoded, _, lengths = three_sources
    _, rows = run(encoded, tmp_path / "packed", seq_len=512)
    assert sum(tokens_per_source(encoded, rows).values()) == lengths.sum()


@pytest.mark.parametrize(
    "mixture",
    [
        {"book": 0},
        {"book": -1.0},
        {"boook": 1.0},
        {"book": 1, "": 1},
        {"book": float("nan")},
        {"book": float("inf"), "web": 1.0},
    ],
    ids=str,
)
def test_bad_mixture(three_sources, tmp_path, mixture):
    with pytest.raises(InputError, match=r"^mixture"):
        run(three_sources[0], tmp_path / "packed", mixture=mixture)
    assert not (tmp_path / "packed").exists()


# --- settings, loading, damage ---


@pytest.mark.parametrize(
    "fields", [{"seq_len": 0}, {"seq_len": -1}, {"seq_len": 7}, {"seq_len": 10**12}, {"seed": -1}], ids=str
)
def test_bad_settings(stages, tmp_path, monkeypatch, fields):
    """Before any row is filled: with 10**12 tokens a row that takes all memory."""
    monkeypatch.setattr(pack, "best_fit_decreasing", lambda *_: pytest.fail("rows are filled"))
    with pytest.raises(InputError, match=next(iter(fields))):
        run(stages / "encoded", tmp_path / "packed", **fields)


def test_empty_corpus(stages, tmp_path):
    encoded = write_encoded(tmp_path / "encoded", stages, [])
    with pytest.raises(InputError, match="empty corpus"):
        run(encoded, tmp_path / "packed")


@pytest.mark.parametrize("index", [0, 1, -1])
def test_row_bounds(stages, index):
    """Bounds count from 0 in any row, and a row is what lies between its offsets."""
    rows = load_packed(stages / "packed")
    if index < 0:
        index += len(rows)
    ids, starts, bounds = rows.row(index)
    offsets = np.asarray(rows.document_offsets[rows.row_offsets[index] : rows.row_offsets[index + 1] + 1])
    assert bounds.tolist() == (offsets - offsets[0]).tolist()
    assert np.array_equal(ids, rows.input_ids[offsets[0] : offsets[-1]])
    assert np.array_equal(starts, rows.word_starts[offsets[0] : offsets[-1]])


def test_row_that_is_none(stages):
    rows = load_packed(stages / "packed")
    with pytest.raises(IndexError):
        rows.row(len(rows))


@pytest.fixture
def copy(stages, tmp_path):
    return shutil.copytree(stages / "packed", tmp_path / "packed")


@pytest.mark.parametrize("name", ["input_ids", "word_starts", "document_offsets", "row_offsets"])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_damaged_arrays_are_named(copy, name, damage):
    path = copy / f"{name}.bin"
    data = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(data[:-1])
    with pytest.raises(InputError, match=rf"{name}\.bin"):
        load_packed(copy)


def test_swapped_tokenizer_is_noticed(copy, stages, tmp_path):
    shutil.rmtree(copy / "tokenizer")
    train_tokenizer.main(
        train_tokenizer.Settings(input_dir=str(stages / "corpus"), output_dir=str(copy / "tokenizer"), vocab_size=576)
    )
    with pytest.raises(InputError, match="does not match"):
        load_packed(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "packed"}', '{"kind": "packed", "arrays": {}}'])
def test_damaged_manifest(copy, text):
    (copy / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="packed"):
        load_packed(copy)


@pytest.mark.parametrize("name", ["nothing", "corpus", "tokenizer", "encoded"])
def test_other_folders_are_refused(stages, tmp_path, name):
    with pytest.raises(InputError, match=name):
        load_packed(stages / name)
    if name != "encoded":
        with pytest.raises(InputError, match=name):
            run(stages / name, tmp_path / "packed")


def test_output_never_replaces_the_input(stages, tmp_path):
    encoded = shutil.copytree(stages / "encoded", tmp_path / "encoded")
    with pytest.raises(InputError):
        run(encoded, encoded)
    assert load_encoded(encoded).manifest["kind"] == "encoded"
