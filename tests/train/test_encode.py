"""Token ids that are the text, words that stay together, exact counts, and damage that is noticed."""

import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tokenizers import normalizers

from zh_modernbert.tokenization_zh_modernbert import SPECIAL_TOKENS
from zh_modernbert.train import encode
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.files import read_json
from zh_modernbert.train.common.stage import TOKENIZER_FILES
from zh_modernbert.train.corpus.documents import read_corpus, write_corpus
from zh_modernbert.train.encode import Settings
from zh_modernbert.train.rows.encoded import encoded_shards, load_shard
from zh_modernbert.train.tokenizer.loading import load_tokenizer
from zh_modernbert.train.tokenizer.segment import split_words, word_boundaries

NASTY = [
    "[MASK][SEP] 我们 [CLS][PAD][UNK] 研究",
    "𠮷野家的😀👨‍👩‍👧表情𪚥",
    "a\x00b\ufeff \u3000\n\t ",
    "  兩個  空格 two  spaces",
    "e\u0301が한\u11a8ﷺ㍿",
    "don't stop 3.14e-5 １２３４５６ 123456",
    "，。！？「」……——",
    "龘靐齉齾爩鱻麤龗灪吁龖",
    "x",
    " ",
]


@pytest.fixture(scope="module")
def nasty(stages, tmp_path_factory):
    """Texts the tokenizer never saw, encoded; and what the stage returned."""
    folder = tmp_path_factory.mktemp("nasty")
    (folder / "corpus").mkdir()
    write_corpus(folder / "corpus", [{"id": str(i), "source": f"s{i % 3}", "text": text} for i, text in enumerate(NASTY)])
    result = encode.main(
        Settings(input_dir=str(folder / "corpus"), tokenizer_dir=str(stages / "tokenizer"), output_dir=str(folder / "encoded"))
    )
    return folder, result


def load_encoded(folder):
    """The only shard of a corpus with a small vocabulary."""
    (shard,) = encoded_shards(folder)
    return load_shard(shard, 512)


def documents_of(corpus):
    for start, end in pairwise(corpus.offsets.tolist()):
        yield corpus.input_ids[start:end], corpus.word_starts[start:end]


def folders(stages, nasty):
    return ((stages / "corpus", stages / "encoded"), (nasty[0] / "corpus", nasty[0] / "encoded"))


def test_ids_are_the_text(stages, nasty):
    backend = load_tokenizer(stages / "tokenizer").backend_tokenizer
    for corpus_folder, encoded_folder in folders(stages, nasty):
        texts = [document["text"] for document in read_corpus(corpus_folder)]
        decoded = [
            backend.decode(ids.tolist(), skip_special_tokens=False) for ids, _ in documents_of(load_encoded(encoded_folder))
        ]
        assert decoded == texts


def test_text_never_gives_special_tokens(stages, nasty):
    for _, folder in folders(stages, nasty):
        assert load_encoded(folder).input_ids[:].min() >= len(SPECIAL_TOKENS)


def test_tokens_of_a_word_stay_together(stages, nasty):
    """For every segmenter word, all tokens that overlap it are of one group: in both scripts, and for bytes of characters."""
    backend = load_tokenizer(stages / "tokenizer").backend_tokenizer
    backend.encode_special_tokens = True
    split = 0
    for corpus_folder, encoded_folder in folders(stages, nasty):
        for document, (ids, starts) in zip(read_corpus(corpus_folder), documents_of(load_encoded(encoded_folder)), strict=True):
            encoding = backend.encode(document["text"], add_special_tokens=False)
            assert encoding.ids == ids.tolist()
            assert starts[0] == 1
            groups, position = np.cumsum(starts), 0
            for word in split_words(document["text"]):
                end = position + len(word)
                inside = {int(g) for g, (a, b) in zip(groups, encoding.offsets, strict=True) if a < end and b > position}
                assert len(inside) == 1, (document["text"], word)
                position = end
            split += len(ids) - int(starts.sum())
    assert split > 1000, "a test of words with one token each would show nothing"


def test_groups_begin_exactly_where_words_begin(stages):
    """No word start is lost where the tokenizer cuts at it."""
    backend = load_tokenizer(stages / "tokenizer").backend_tokenizer
    for document, (_, starts) in zip(
        read_corpus(stages / "corpus"), documents_of(load_encoded(stages / "encoded")), strict=True
    ):
        offsets, seen, expected = backend.encode(document["text"], add_special_tokens=False).offsets, 0, []
        boundaries = word_boundaries(document["text"])
        for a, b in offsets:
            expected.append(int(boundaries[a] and a >= seen))
            seen = b
        assert starts.tolist() == expected


def test_bytes_of_a_character_never_start_a_word(stages):
    backend = load_tokenizer(stages / "tokenizer").backend_tokenizer
    text = "龘靐齉😀𠮷"
    encoding = backend.encode(text, add_special_tokens=False)
    offsets = np.array(encoding.offsets)
    assert len(offsets) > 2 * len(text), "these characters are not in pieces"
    starts = encode.word_starts(text, encode.token_bytes(backend)[encoding.ids])
    for position in range(len(text)):
        assert not starts[offsets[:, 0] == position][1:].any()
    assert starts[0]


def test_a_tokenizer_that_changes_text_is_refused(stages):
    """Where its tokens stand in the text cannot be told from their bytes."""
    backend = load_tokenizer(stages / "tokenizer").backend_tokenizer
    backend.normalizer = normalizers.Lowercase()
    assert len(
        encode.ids_and_starts("Python", backend.encode("Python", add_special_tokens=False), encode.token_bytes(backend))[0]
    )
    backend.normalizer = normalizers.NFD()
    with pytest.raises(InputError, match="does not give 'caf\u00e9' back"):
        encode.ids_and_starts("caf\u00e9", backend.encode("caf\u00e9", add_special_tokens=False), encode.token_bytes(backend))


def test_counts_are_exact(stages, nasty):
    folder, result = nasty
    corpus = load_encoded(folder / "encoded")
    assert result["documents"] == len(NASTY) == len(corpus.offsets) - 1
    assert result["characters"] == sum(map(len, NASTY))
    assert result["tokens"] == len(corpus.input_ids) == len(corpus.word_starts) == corpus.offsets[-1]
    assert result["words"] == int(corpus.word_starts[:].sum())
    assert result["characters_per_token"] == pytest.approx(sum(map(len, NASTY)) / len(corpus.input_ids), abs=1e-4)
    assert [corpus.names[source] for source in corpus.sources] == [f"s{i % 3}" for i in range(len(NASTY))]
    for source, name in enumerate(corpus.names):
        assert result["per_source"][name] == np.diff(corpus.offsets)[corpus.sources == source].sum()
    assert corpus.input_ids.dtype == np.uint16
    assert result["vocab_size"] == 512


def test_shards_and_workers_do_not_show(stages, tmp_path, monkeypatch):
    """The documents of all shards, one behind the other, are those of one big shard, however many processes write them."""
    documents = list(read_corpus(stages / "corpus"))
    monkeypatch.setattr("zh_modernbert.train.corpus.documents.DOCUMENTS_PER_SHARD", 150)
    (tmp_path / "corpus").mkdir()
    write_corpus(tmp_path / "corpus", documents)
    whole = load_encoded(stages / "encoded")
    for workers in (1, 2):
        encode.main(
            Settings(
                input_dir=str(tmp_path / "corpus"),
                tokenizer_dir=str(stages / "tokenizer"),
                output_dir=str(tmp_path / f"encoded_{workers}"),
                workers=workers,
            )
        )
        shards = [load_shard(shard, 512) for shard in encoded_shards(tmp_path / f"encoded_{workers}")]
        assert len(shards) == 3
        assert np.array_equal(np.concatenate([shard.input_ids[:] for shard in shards]), whole.input_ids[:])
        assert np.array_equal(np.concatenate([shard.word_starts[:] for shard in shards]), whole.word_starts[:])
        sources = [shard.names[source] for shard in shards for source in shard.sources]
        assert sources == [document["source"] for document in documents]
    first, second = (read_json(tmp_path / f"encoded_{workers}" / "manifest.json") for workers in (1, 2))
    assert first == second


def test_batches_do_not_show(stages, nasty, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "BATCH", 20)
    encode.main(
        Settings(input_dir=str(nasty[0] / "corpus"), tokenizer_dir=str(stages / "tokenizer"), output_dir=str(tmp_path / "e"))
    )
    assert read_json(tmp_path / "e" / "manifest.json")["files"] == read_json(nasty[0] / "encoded" / "manifest.json")["files"]


def test_documents_without_text_are_left_out(stages, tmp_path):
    """And a corpus of nothing else is an error."""
    for name, texts in (("some", ["", "我们", ""]), ("none", ["", ""])):
        (tmp_path / name).mkdir()
        write_corpus(tmp_path / name, [{"id": str(i), "source": "s", "text": text} for i, text in enumerate(texts)])

    def run(name):
        return encode.main(
            Settings(input_dir=str(tmp_path / name), tokenizer_dir=str(stages / "tokenizer"), output_dir=str(tmp_path / "out"))
        )

    assert run("some")["documents"] == 1
    with pytest.raises(InputError, match="empty corpus"):
        run("none")


def test_output_never_replaces_an_input(stages, tmp_path):
    """Each has a settings.json, so each looks like the output of some stage."""
    for name in ("corpus", "tokenizer"):
        shutil.copytree(stages / name, tmp_path / name)
    (tmp_path / "corpus" / "settings.json").write_text("{}")
    for name in ("corpus", "tokenizer"):
        settings = Settings(
            input_dir=str(tmp_path / "corpus"), tokenizer_dir=str(tmp_path / "tokenizer"), output_dir=str(tmp_path / name)
        )
        with pytest.raises(InputError):
            encode.main(settings)
    assert list(read_corpus(tmp_path / "corpus"))
    assert load_tokenizer(tmp_path / "tokenizer")


def test_the_tokenizer_of_a_clone(stages, tmp_path, monkeypatch, capsys):
    """Its root is a model's folder, in which the outputs lie too."""
    shutil.copytree(stages / "tokenizer", tmp_path / "clone", ignore=shutil.ignore_patterns("settings.json", "manifest.json"))
    (tmp_path / "clone" / "model.safetensors").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path / "clone")
    settings = Settings(input_dir=str(stages / "corpus"), tokenizer_dir=".", output_dir="runs/encoded")
    encode.main(settings)
    assert {path.name for path in Path("runs/encoded/tokenizer").iterdir()} <= set(TOKENIZER_FILES)
    assert load_tokenizer("runs/encoded/tokenizer")
    Path("notes.md").write_text("mine")
    encode.main(settings)
    assert "there already" in capsys.readouterr().err
    settings.output_dir = "."
    with pytest.raises(InputError, match="output_dir is where you are"):
        encode.main(settings)


def test_what_is_held_out_and_what_is_not_make_the_whole(stages, tmp_path):
    def documents(name: str, **settings) -> Counter:
        given = {"input_dir": str(stages / "corpus"), "tokenizer_dir": str(stages / "tokenizer")}
        encode.main(Settings(**given, output_dir=str(tmp_path / name), **settings))
        return Counter(ids.tobytes() for ids, _ in documents_of(load_encoded(tmp_path / name)))

    everything, training = documents("all"), documents("training", held_out=0.3)
    held_out = documents("held_out", held_out=0.3, part="held_out")
    assert training + held_out == everything
    assert 0.1 < held_out.total() / everything.total() < 0.5
    with pytest.raises(InputError, match="held_out is 0"):
        Settings("a", "b", "c", part="held_out")
