"""Rows are never too long, documents are whole and there once, and what is cut is cut between words."""

import random
import shutil
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from zh_modernbert.tokenization_zh_modernbert import SPECIAL_TOKENS
from zh_modernbert.train import encode, pack
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.files import read_json, write_json
from zh_modernbert.train.common.manifest import write_manifest
from zh_modernbert.train.pack import Group, Settings, best_fit_decreasing, cut
from zh_modernbert.train.rows.encoded import encoded_shards, load_manifest, load_shard
from zh_modernbert.train.rows.packed import PackedRows
from zh_modernbert.train.tokenizer.loading import fingerprint

CLS, SEP = SPECIAL_TOKENS.index("[CLS]"), SPECIAL_TOKENS.index("[SEP]")

FIRST = 10  # the id of the first token of the first document


def write_encoded(folder, stages, lengths, sources=None, word_length=3, seed=0, shards=1):
    """An encoded folder where token t of the corpus has the id t + FIRST, so that each piece tells where it comes from."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    lengths = np.asarray(lengths, dtype=np.int64)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    names = sorted(set(sources)) if sources is not None else ["s"]
    starts = (generator.random(offsets[-1]) < 1 / word_length).astype(np.uint8)
    starts[offsets[:-1]] = 1
    ids = np.arange(FIRST, FIRST + offsets[-1], dtype=np.uint32)
    numbers = np.array([names.index(s) for s in sources] if sources is not None else [0] * len(lengths), dtype=np.uint16)
    for shard, documents in enumerate(np.array_split(np.arange(len(lengths)), shards)):
        path = folder / f"{shard:05d}"
        path.mkdir()
        edges = offsets[documents[0] : documents[-1] + 2] if len(documents) else offsets[:1]
        ids[edges[0] : edges[-1]].tofile(path / "input_ids.bin")
        starts[edges[0] : edges[-1]].tofile(path / "word_starts.bin")
        (edges - edges[0]).tofile(path / "offsets.bin")
        numbers[documents].tofile(path / "sources.bin")
        tokens = {name: int(lengths[documents][numbers[documents] == i].sum()) for i, name in enumerate(names)}
        write_json(path / "shard.json", {"per_source": tokens})
    shutil.copytree(stages / "tokenizer", folder / "tokenizer")
    result = {
        "tokens": int(offsets[-1]),
        "per_source": {name: int(lengths[numbers == i].sum()) for i, name in enumerate(names)},
        "vocab_size": 1 << 20,
        "tokenizer": fingerprint(folder / "tokenizer"),
    }
    write_manifest(folder, encode.Settings(output_dir="", input_dir="", tokenizer_dir=""), "", result)
    return folder


def run(encoded, output, **fields):
    result = pack.main(Settings(input_dir=str(encoded), output_dir=str(output), **fields))
    return result, PackedRows(output)


class Corpus:
    """All shards of an encoded folder as one."""

    def __init__(self, folder):
        vocab_size = load_manifest(folder, "encode")["result"]["vocab_size"]
        shards = [load_shard(shard, vocab_size) for shard in encoded_shards(folder)]
        self.input_ids, self.word_starts = (
            np.concatenate([getattr(s, a)[:] for s in shards]) for a in ("input_ids", "word_starts")
        )
        self.lengths = np.concatenate([np.diff(shard.offsets) for shard in shards])
        self.offsets = np.concatenate(([0], np.cumsum(self.lengths)))
        self.sources = [shard.names[source] for shard in shards for source in shard.sources]


def packed_lengths(rows):
    """The lengths of all rows."""
    return [len(rows.row(index)[0]) for index in range(len(rows))]


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
    _, result, rows = realistic
    lengths = packed_lengths(rows)
    assert max(lengths) <= 1024
    assert sum(lengths) == result["tokens"]


def test_every_document_is_there_once_and_whole(realistic):
    encoded, result, rows = realistic
    corpus = Corpus(encoded)
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
    corpus = Corpus(encoded)
    for _, start, end, starts in pieces_of(rows):
        assert np.array_equal(starts, corpus.word_starts[start:end])


def test_rows_are_full(realistic):
    _, result, rows = realistic
    assert result["fill"] == pytest.approx(sum(packed_lengths(rows)) / (len(rows) * 1024), abs=1e-5)
    assert result["fill"] > 0.99


def test_counts_of_the_manifest(realistic):
    _, result, rows = realistic
    assert result["rows"] == len(rows)
    assert rows.seq_len == result["seq_len"] == 1024
    assert rows.row(0)[0].dtype == np.uint32


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
    offsets = Corpus(encoded).offsets
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
    first, same, other = (read_json(tmp_path / name / "manifest.json") for name in "abc")
    assert first == same
    assert first["files"]["00000/input_ids.bin"] != other["files"]["00000/input_ids.bin"]


def test_real_text(stages):
    """The fixture's own folder: every document's ids between [CLS] and [SEP], but of those that were cut."""
    corpus, rows = Corpus(stages / "encoded"), PackedRows(stages / "packed")
    expected = Counter(tuple(corpus.input_ids[a:b].tolist()) for a, b in pairwise(corpus.offsets.tolist()) if b - a <= 126)
    found = Counter()
    for index in range(len(rows)):
        ids, _, bounds = rows.row(index)
        found.update(tuple(ids[a + 1 : b - 1].tolist()) for a, b in pairwise(bounds.tolist()))
    assert sum(expected.values()) > 300
    assert expected <= found
    assert read_json(stages / "packed" / "manifest.json")["result"]["fill"] > 0.97


def test_groups(stages, tmp_path):
    """Shards packed in several groups, by several processes: every document still once, rows full, the same bytes."""
    lengths = np.random.default_rng(2).integers(1, 90, 6000)
    sources = np.repeat(["a", "b", "c"], 2000).tolist()
    encoded = write_encoded(tmp_path / "encoded", stages, lengths, sources, shards=6)
    fields = {"seq_len": 128, "group_tokens": int(lengths.sum()) // 3}
    result, rows = run(encoded, tmp_path / "packed", **fields)
    assert len(rows.shards) == 3
    assert all(len(shard.row_offsets) > 100 for shard in rows.shards)
    spans = sorted((start, end) for _, start, end, _ in pieces_of(rows))
    offsets = Corpus(encoded).offsets.tolist()
    assert spans == list(pairwise(offsets))
    assert result["documents"] == 6000
    assert result["fill"] > 0.99
    run(encoded, tmp_path / "again", workers=2, **fields)
    assert read_json(tmp_path / "packed" / "manifest.json") == read_json(tmp_path / "again" / "manifest.json")


def test_groups_keep_the_mixture(stages, tmp_path):
    generator = np.random.default_rng(3)
    sources = sorted(generator.choice(["a", "b", "c"], size=6000, p=[0.2, 0.3, 0.5]).tolist())
    encoded = write_encoded(tmp_path / "encoded", stages, generator.integers(20, 100, 6000), sources, shards=7)
    mixture = {"a": 0.5, "b": 0.2, "c": 0.3}
    _, rows = run(encoded, tmp_path / "packed", seq_len=256, mixture=mixture, group_tokens=40_000)
    assert len(rows.shards) > 2
    counts = tokens_per_source(encoded, rows)
    for name, share in mixture.items():
        assert counts[name] / sum(counts.values()) == pytest.approx(share, abs=0.01)


def test_groups_are_of_what_is_kept(stages, tmp_path, monkeypatch):
    """A folder a source, of a corpus of shards of one source each, as train/configs/system_a has it."""
    lengths = np.random.default_rng(4).integers(20, 100, 3000)
    sources = np.repeat(["a", "b", "c"], [300, 700, 2000]).tolist()
    encoded = write_encoded(tmp_path / "encoded", stages, lengths, sources, shards=30)
    loaded = []
    monkeypatch.setattr(pack, "load_shard", lambda shard, size: loaded.append(shard.name) or load_shard(shard, size))
    result, rows = run(encoded, tmp_path / "packed", seq_len=256, mixture={"a": 1}, group_tokens=int(lengths[:300].sum()) // 2)
    assert len(rows.shards) == 2
    assert sorted(loaded) == ["00000", "00001", "00002"]
    assert (result["documents"], tokens_per_source(encoded, rows)) == (300, {"a": lengths[:300].sum()})


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
    corpus, counts = Corpus(encoded), {}
    spans = [(start, end) for _, start, end, _ in pieces_of(rows)]
    assert len(spans) == len(set(spans)), "a document is there twice"
    for start, end in spans:
        document = np.searchsorted(corpus.offsets, start, side="right") - 1
        name = corpus.sources[document]
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


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.37, 0.5, 0.9, 1.0])
def test_a_source_has_its_fraction_to_half_a_document(fraction):
    """In the order drawn, all before a document and none behind it: the one whose middle is where the fraction ends."""
    lengths = np.random.default_rng(0).integers(1, 400, size=200)
    shard = SimpleNamespace(names=["book"], sources=np.zeros(200, dtype=int), offsets=np.cumsum([0, *lengths]))
    kept = Group([shard]).mix({"book": fraction}, np.random.default_rng(1))
    order = np.random.default_rng(1).permutation(200)
    assert kept.tolist() == order[: len(kept)].tolist()
    wanted, edge = fraction * lengths.sum(), lengths[order[max(len(kept) - 1, 0) : len(kept) + 1]].max()
    assert abs(lengths[kept].sum() - wanted) <= edge / 2


def test_any_number_of_sources_each_has_its_fraction():
    """As going through the sources one by one gives it. Each shard numbers them its own way; one is not wanted."""
    generator = np.random.default_rng(3)
    names = [f"file {number}" for number in range(60)]
    shards = []
    for _ in range(3):
        own = generator.permutation(names)[:50].tolist()
        sources, lengths = generator.integers(0, 50, 400).astype(np.uint16), generator.integers(0, 300, 400)
        shards.append(SimpleNamespace(names=own, sources=sources, offsets=np.cumsum([0, *lengths])))
    fractions = dict(zip([*names[1:], "elsewhere"], generator.random(60).tolist(), strict=True)) | {"file 7": 1.0}
    group = Group(shards)
    of_documents = np.array([shard.names[source] for shard in shards for source in shard.sources])
    order, keep = np.random.default_rng(4).permutation(1200), np.zeros(1200, dtype=bool)
    for name, fraction in fractions.items():
        own = order[of_documents[order] == name]
        lengths = group.lengths[own]
        keep[own[np.cumsum(lengths) - lengths / 2 <= fraction * lengths.sum()]] = True
    assert group.mix(fractions, np.random.default_rng(4)).tolist() == order[keep[order]].tolist()
    assert [group.names[source] for source in group.sources] == of_documents.tolist()


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


# --- what is refused ---


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
    with pytest.raises(InputError, match="no documents"):
        run(encoded, tmp_path / "packed")


@pytest.mark.parametrize("name", ["nothing", "corpus", "tokenizer"])
def test_other_folders_are_refused(stages, tmp_path, name):
    with pytest.raises(InputError, match=name):
        run(stages / name, tmp_path / "packed")


def test_output_never_replaces_the_input(stages, tmp_path):
    encoded = shutil.copytree(stages / "encoded", tmp_path / "encoded")
    with pytest.raises(InputError):
        run(encoded, encoded)
    assert load_manifest(encoded, "encode")
