"""Merges stay inside words, the same corpus gives the same tokenizer, and a wrong one is refused."""

import gzip
import json
import random
import shutil
from collections import Counter

import pytest
from tokenizers import pre_tokenizers

from zh_modernbert.tokenization_zh_modernbert import SPECIAL_TOKENS
from zh_modernbert.train import train_tokenizer
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.corpus.documents import read_corpus, write_corpus
from zh_modernbert.train.corpus.held_out import is_held_out
from zh_modernbert.train.tokenizer.learning import compose, frequent_characters, mark_words, set_apart, train
from zh_modernbert.train.tokenizer.loading import fingerprint, load_tokenizer
from zh_modernbert.train.tokenizer.spelling import spell
from zh_modernbert.train.train_tokenizer import Settings, kept_fractions, stratified_sample

SENTENCES = ["我们研究经济问题。", "他們討論歷史文化！", "公司准备发表报告，大家都很高兴。", "BERT 與 GPT-4 在2024年"]
SMALLEST = 256 + len(SPECIAL_TOKENS)


def learned(tokenizer) -> list[str]:
    """The tokens that merges made, as they are spelled."""
    return [token for token in tokenizer.get_vocab() if token not in SPECIAL_TOKENS and len(token) > 1]


@pytest.mark.parametrize("size", [-64, 0, 64, 256, SMALLEST - 1])
def test_vocabulary_too_small(size):
    with pytest.raises(InputError, match=f"vocab_size is {size}.*too small"):
        train(lambda: SENTENCES, size)


@pytest.mark.parametrize(("size", "better"), [(SMALLEST, 320), (500, 512), (321, 384)])
def test_vocabulary_that_is_no_multiple_of_64(size, better):
    with pytest.raises(InputError, match=f"vocab_size is {size}.*multiple of 64.*{better}"):
        train(lambda: SENTENCES, size)


@pytest.mark.parametrize(("field", "value"), [("vocab_size", 64 * 10**18), ("min_frequency", -1), ("min_frequency", 2**70)])
def test_numbers_no_trainer_takes(stages, tmp_path, field, value):
    settings = {"vocab_size": 320, field: value}
    with pytest.raises(InputError, match=field):
        train_tokenizer.main(Settings(input_dir=str(stages / "corpus"), output_dir=str(tmp_path / "out"), **settings))


def test_mark_words_marks_only_between_han_words():
    text = "我们研究BERT，他說 3 次"
    marked = mark_words(text)
    assert marked.replace("\x1f", "") == text
    assert marked == "我们\x1f研究BERT，他\x1f說 3 次"
    assert mark_words("") == ""


def test_dropout_lets_its_share_of_the_boundaries_go():
    text = "他都很好，" * 2000
    marks = [mark_words(text, dropout, random.Random(0)).count("\x1f") for dropout in (0.0, 0.25, 1.0)]
    assert marks[0] > 3000
    assert abs(marks[1] / marks[0] - 0.75) < 0.05
    assert marks[2] == 0


def test_special_tokens_and_bytes_are_all_there():
    tokenizer = train(lambda: SENTENCES * 3, 320)
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(tokenizer.get_vocab())
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer))) == list(range(320))


def test_merges_stay_inside_the_words_of_the_training_text():
    """With plenty of room everything frequent is merged, and still every token is a piece of what stands between marks."""
    texts = [*SENTENCES, "经济问题"] * 50
    allowed = {spell(piece) for text in texts for piece in mark_words(text).split("\x1f")}
    tokens = learned(train(lambda: texts, 640))
    assert all(any(token in piece for piece in allowed) for token in tokens)
    # ... which means something only if whole words were learned, and pairs of words were not, though they are as frequent.
    assert spell("经济") in tokens
    assert spell("经济问题") not in tokens
    assert spell("经济问题") in learned(train(lambda: texts, 640, boundary_dropout=1.0))


def test_no_token_reaches_out_of_a_character():
    """A token is some whole characters, or the first bytes of one, or a single byte."""
    texts = ["好𠮷é你ноあ😀𠮷é" * 50, *SENTENCES * 20]
    tokenizer = train(lambda: texts, 640, character_coverage=0.99)
    decode = tokenizer.backend_tokenizer.decoder.decode
    for token in learned(tokenizer):
        text = decode([token])
        assert text == "\ufffd" or spell(text) == token


def test_characters_come_before_words():
    """Rare characters have their token although far more frequent words wait for one."""
    texts = [*SENTENCES * 100, "齉龘靐㐀"]
    tokenizer = train(lambda: texts, 512, character_coverage=1.0)
    for character in set("".join(texts)):
        assert tokenizer.backend_tokenizer.encode(character, add_special_tokens=False).tokens == [spell(character)]
    tokenizer = train(lambda: texts, 512, character_coverage=0.999)
    assert len(tokenizer.tokenize("齉")) == 3
    assert len(tokenizer.tokenize("都")) == 1


def test_characters_take_half_of_the_room_at_most():
    first, characters = [spell(chr(code)) for code in range(128)], [chr(0xE0 + i) for i in range(31)]
    alone = [spell("à")[0], *(spell(character)[1] for character in characters)]
    vocab, merges = compose([*first, *alone], characters, [], size=180)
    assert [spell(character) for character in characters[:10]] == list(vocab)[len(first) + len(alone) :]
    assert [left + right for left, right in merges] == [spell(character) for character in characters[:10]]


def test_merges_bring_the_characters_they_need():
    first = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [["中", "丮"], ["a", "b"], ["中丮", "ab"], ["龘", "龖"], ["龘龖", "a"], ["b", "a"]]
    vocab, merges = compose(first, [], pairs, size=256 + 7)
    made = ["中", "丮", "中丮", "ab", "中丮ab"]
    # 中 and 丮 share their first two bytes; 龘龖 has no room, so neither has what is made of it; ba has.
    assert set(vocab) - set(first) == {spell("中")[:2], *map(spell, made), "ba"}
    assert len(merges) == 7
    assert [left + right for left, right in merges] == list(vocab)[256:]


@pytest.mark.parametrize(("coverage", "expected"), [(1.0, "天地人"), (0.99, "天地人"), (0.9, "天地"), (0.6, "天"), (0.0, "")])
def test_frequent_characters_cover_what_they_should(coverage, expected):
    assert frequent_characters(Counter("天" * 60 + "地" * 30 + "人" * 10), coverage) == list(expected)


def test_tokens_are_no_longer_than_allowed():
    texts = ["天地玄黃宇宙洪荒 internationalization " * 30 + "=" * 300] * 3
    for longest in (4, 12):
        tokenizer = train(lambda: texts, 384, max_token_length=longest)
        assert max(len(tokenizer.decode([i])) for i in range(len(SPECIAL_TOKENS), len(tokenizer))) == longest


def test_unused_entries_wait_for_special_tokens(tmp_path):
    tokenizer = train(lambda: SENTENCES * 3, 320, unused_tokens=8)
    text = "[unused0]我们[unused7]"
    assert tokenizer.convert_tokens_to_ids(["[unused0]", "[unused7]"]) == [5, 12]
    assert not set(range(5, 13)) & set(tokenizer(text)["input_ids"])
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    loaded.add_special_tokens({"additional_special_tokens": ["[unused7]"]})
    assert len(loaded) == len(tokenizer) == 320
    assert loaded(text, add_special_tokens=False)["input_ids"][-1] == 12


def test_boundary_marks_leave_no_trace():
    """Neither in what is learned, nor in how the trained tokenizer treats text that holds such a character."""
    text = "我们\x1f研究"
    tokenizer = train(lambda: [text, *SENTENCES] * 50, 448)
    assert all(spell("\x1f") not in token for token in learned(tokenizer))
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_same_corpus_same_tokenizer(stages, tmp_path):
    for name in ("a", "b"):
        train_tokenizer.main(Settings(input_dir=str(stages / "corpus"), output_dir=str(tmp_path / name), vocab_size=512))
    first, second, fixture = (
        (folder / "tokenizer.json").read_bytes() for folder in (tmp_path / "a", tmp_path / "b", stages / "tokenizer")
    )
    assert first == second == fixture


# --- sampling ---


def sample_documents() -> list[dict]:
    generator = random.Random(0)
    strata = [("news", "hans")] * 400 + [("news", "hant")] * 100 + [("web", "hans")] * 300 + [("web", None)] * 20
    generator.shuffle(strata)
    return [
        {"id": str(i), "source": source, "text": "x" * generator.randint(1, 500)} | ({"script": script} if script else {})
        for i, (source, script) in enumerate(strata)
    ]


def characters_by_stratum(documents) -> Counter:
    counts = Counter()
    for document in documents:
        counts[document["source"], document.get("script")] += len(document["text"])
    return counts


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.25, 0.1, 0.05, 1 / 3, 0.7, 0.0])
def test_every_stratum_keeps_its_rate_of_characters(fraction):
    documents = sample_documents()
    before = characters_by_stratum(documents)
    fractions = {stratum: fraction * (0.5 if stratum == ("web", "hans") else 1.0) for stratum in before}
    chosen = list(stratified_sample(iter(documents), fractions))
    after = characters_by_stratum(chosen)
    for stratum, count in before.items():
        assert abs(after[stratum] - fractions[stratum] * count) <= 250, stratum
    assert chosen == [document for document in documents if document in chosen], "the order changed"
    if fraction == 1.0:
        assert after["news", "hans"] == before["news", "hans"]


@pytest.mark.parametrize("share", [0.5, 0.2, 0.9])
def test_scripts_get_their_share_and_sources_their_weight(share):
    characters = {("news", "hans"): 4000, ("novels", "hans"): 6000, ("news", "hant"): 2000, ("web", None): 100}
    fractions = kept_fractions(characters, share, {"novels": 0.5})
    taken = {stratum: fractions[stratum] * count for stratum, count in characters.items()}
    hans, hant = taken["news", "hans"] + taken["novels", "hans"], taken["news", "hant"]
    assert hans / (hans + hant) == pytest.approx(share)
    assert fractions["novels", "hans"] == pytest.approx(fractions["news", "hans"] / 2)
    assert max(fractions["news", "hans"], fractions["news", "hant"]) == pytest.approx(1), "more than one script was cut down"
    assert fractions["web", None] == 1


def test_nothing_to_balance():
    one_script = {("news", "hans"): 4000, ("web", None): 100}
    assert set(kept_fractions(one_script, 0.5, {}).values()) == {1.0}
    both = one_script | {("news", "hant"): 1}
    assert kept_fractions(both, None, {"web": 0.1}) == {("news", "hans"): 1, ("news", "hant"): 1, ("web", None): 0.1}


def test_weight_of_an_unknown_source():
    with pytest.raises(InputError, match="no source 'novel' in the corpus; it has news, web"):
        kept_fractions({("news", "hans"): 1, ("web", None): 1}, 0.5, {"novel": 0.1})


@pytest.mark.parametrize(
    "wrong",
    [{"sample_fraction": value} for value in (0, -0.5, 1.01, float("nan"))]
    + [{"hans_share": value} for value in (0, 1, -1.0, float("nan"))]
    + [{"held_out": value} for value in (-0.1, 1, float("nan"))]
    + [{"source_weights": {"news": value}} for value in (-1, 1.5, float("nan"))]
    + [{"word_share": value} for value in (-0.1, 1, float("nan"))]
    + [{"character_coverage": 1.5}, {"boundary_dropout": -0.1}, {"unused_tokens": -1}, {"max_token_length": 0}],
)
def test_settings_out_of_bounds(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Settings(input_dir="in", output_dir="out", **wrong)


def test_held_out_documents_are_one_share_by_id_alone():
    documents = [{"id": f"article/{i}", "source": source} for source in ("a", "b") for i in range(5000)]
    held_out = [is_held_out(document["id"], 0.02) for document in documents]
    assert held_out[:5000] == held_out[5000:]
    assert 150 < 2 * sum(held_out[:5000]) < 250
    assert not any(is_held_out(document["id"], 0.0) for document in documents)


def test_held_out_documents_are_not_learned_from(tmp_path):
    documents = [{"id": str(i), "source": "s", "text": SENTENCES[i % 4] * 5} for i in range(60)]
    held_out = [document for document in documents if is_held_out(document["id"], 0.2)]
    assert len(held_out) > 3
    for document in held_out:
        document["text"] = "囍囍囍"
    (tmp_path / "in").mkdir()
    write_corpus(tmp_path / "in", documents)
    characters = {}
    for share in (0.0, 0.2):
        settings = Settings(input_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "o"), vocab_size=512, held_out=share)
        characters[share] = train_tokenizer.main(settings)["characters"]
        assert (len(load_tokenizer(tmp_path / "o").tokenize("囍")) == 1) == (share == 0)
    assert characters[0.0] - characters[0.2] == 3 * len(held_out)


def test_counts_tell_the_sample(stages, tmp_path):
    result = train_tokenizer.main(
        Settings(
            input_dir=str(stages / "corpus"),
            output_dir=str(tmp_path / "o"),
            vocab_size=320,
            sample_fraction=0.25,
            source_weights={"web": 0.5},
        )
    )
    counts = characters_by_stratum(read_corpus(stages / "corpus"))
    hans, hant = result["characters_hans"], result["characters_hant"]
    assert hans + hant == result["characters"]
    assert hans / hant == pytest.approx(1, abs=0.1)
    weighed = {script: counts["news", script] + counts["web", script] / 2 for script in ("hans", "hant")}
    assert result["characters"] == pytest.approx(0.25 * 2 * min(weighed.values()), rel=0.1)
    assert result["documents"] < 110
    assert result["vocab_size"] == 320


def test_sample_without_a_document_is_an_error(tmp_path):
    """Otherwise a tokenizer of bare bytes comes out, and nobody is told."""
    (tmp_path / "in").mkdir()
    write_corpus(tmp_path / "in", [{"id": "1", "source": "s", "text": SENTENCES[0]}])
    with pytest.raises(InputError, match="sample"):
        train_tokenizer.main(
            Settings(input_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "o"), vocab_size=320, sample_fraction=0.01)
        )


# --- the word list ---


@pytest.fixture
def listed(stages, tmp_path):
    """`learn(name, **settings)`: the tokenizer that the stage makes of the small corpus, in `tmp_path / name`."""

    def learn(name: str, **settings):
        common = {"input_dir": str(stages / "corpus"), "output_dir": str(tmp_path / name), "vocab_size": 512}
        learn.result = train_tokenizer.main(Settings(**common | settings))
        return load_tokenizer(tmp_path / name)

    return learn


def test_words_that_the_corpus_lacks_are_learned_in_both_scripts(stages, listed, tmp_path):
    """... and only words: what stands side by side in the list is set apart."""
    path = tmp_path / "list.txt"
    path.write_text("齉龘 900 n\n饕餮骑马 300 n\n", encoding="utf-8")
    before, after = listed("before"), listed("after", word_list=str(path), word_share=0.3)
    for word in ("齉龘", "饕餮骑马", "饕餮騎馬"):
        assert not any(word in text["text"] for text in read_corpus(stages / "corpus"))
        assert len(before.tokenize(word)) > 1
        assert after.tokenize(word) == [spell(word)]
    assert spell("龘饕") not in after.get_vocab()
    assert not any(spell("齉龘") in token for token in learned(after) if token != spell("齉龘"))
    result = listed.result
    assert result["characters_of_words"] == pytest.approx(0.3 / 0.7 * result["characters"], rel=0.01)


@pytest.mark.parametrize("settings", [{"word_share": 0.5}, {"word_list": "list.txt", "word_share": 0.0}])
def test_without_list_or_share_nothing_changes(listed, tmp_path, monkeypatch, stages, settings):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("齉龘 900\n", encoding="utf-8")
    listed("same", **settings)
    assert (tmp_path / "same/tokenizer.json").read_bytes() == (stages / "tokenizer/tokenizer.json").read_bytes()
    assert listed.result["characters_of_words"] == 0


def test_same_list_same_tokenizer(listed, tmp_path):
    """Plain, compressed, or with the tags left out; another list makes another tokenizer, under the same name too."""
    lines = [(f"{a}{b}", 1 + i * j % 7) for i, a in enumerate("天地玄黄宇宙洪荒") for j, b in enumerate("云腾致雨露结为霜")]
    (tmp_path / "a.txt").write_text("".join(f"{word} {count} n\n" for word, count in lines), encoding="utf-8")
    with gzip.open(tmp_path / "b.txt.gz", "wt", encoding="utf-8", newline="\r\n") as file:
        file.write("\n".join(f"{word}\t{count}\n" for word, count in lines))
    for name in ("a.txt", "b.txt.gz"):
        listed("of " + name, word_list=str(tmp_path / name))
    assert (tmp_path / "of a.txt/tokenizer.json").read_bytes() == (tmp_path / "of b.txt.gz/tokenizer.json").read_bytes()
    (tmp_path / "a.txt").write_text("天云 9\n", encoding="utf-8")
    assert listed("of a.txt", word_list=str(tmp_path / "a.txt")).tokenize("天云") == [spell("天云")]
    assert fingerprint(tmp_path / "of a.txt") != fingerprint(tmp_path / "of b.txt.gz")


def test_a_list_does_not_say_which_characters_are_tokens():
    """Its rare ones would take the room of words."""
    words = Counter({chr(code): 1 for code in range(0x9000, 0x9100)} | {"齉龘": 100})
    plain, tokenizer = (train(lambda: SENTENCES * 20, 448, words=w, character_coverage=1.0) for w in (None, words))
    assert spell("齉龘") in learned(tokenizer)
    assert spell(chr(0x9000)) not in learned(tokenizer)
    assert len(tokenizer.tokenize("".join(SENTENCES))) <= 1.1 * len(plain.tokenize("".join(SENTENCES)))


def test_frequent_words_are_set_apart_in_pieces():
    texts = list(set_apart(Counter({"天地": 2500, "玄": 1})))
    assert max(map(len, texts)) < 3000
    assert [word for text in texts for word in text.split("\x1f")] == ["天地"] * 2500 + ["玄"]


def test_script_without_documents_gets_no_words(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "list.txt").write_text("骑马 1\n", encoding="utf-8")
    settings = {"input_dir": str(tmp_path / "in"), "word_list": str(tmp_path / "list.txt"), "vocab_size": 512}
    write_corpus(tmp_path / "in", [{"id": "1", "source": "s", "script": "hans", "text": SENTENCES[0] * 9}])
    train_tokenizer.main(Settings(**settings, output_dir=str(tmp_path / "o")))
    tokenizer = load_tokenizer(tmp_path / "o")
    assert len(tokenizer.tokenize("骑马")) == 1
    assert len(tokenizer.tokenize("騎馬")) > 2
    write_corpus(tmp_path / "in", [{"id": "1", "source": "s", "text": SENTENCES[0] * 9}])
    with pytest.raises(InputError, match=r"word_share is 0\.3: no room for a word beside 0 characters of hans and 0 of hant"):
        train_tokenizer.main(Settings(**settings, output_dir=str(tmp_path / "o")))


def test_no_such_list(stages, tmp_path):
    settings = {"input_dir": str(stages / "corpus"), "output_dir": str(tmp_path / "o"), "word_list": str(tmp_path / "list.txt")}
    with pytest.raises(InputError, match=r"list\.txt: no such file"):
        train_tokenizer.main(Settings(**settings))


# --- loading ---


def test_save_load_and_fingerprint(stages, tmp_path):
    tokenizer = load_tokenizer(stages / "tokenizer")
    tokenizer.save_pretrained(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    assert again.get_vocab() == tokenizer.get_vocab()
    text = "我們研究 BERT。[MASK]"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert fingerprint(tmp_path / "again") == fingerprint(stages / "tokenizer")


def test_fingerprint_ignores_layout_and_knows_other_tokenizers(stages, tmp_path):
    original = json.loads((stages / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))

    def fingerprint_of(name, model) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(original | {"model": model}, indent=1))
        return fingerprint(tmp_path / name)

    model = original["model"]
    expected = fingerprint(stages / "tokenizer")
    swapped = {**model["vocab"]}
    (first, a), (second, b) = list(swapped.items())[-2:]
    swapped |= {first: b, second: a}
    joined = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    assert fingerprint_of("reordered", model | {"vocab": dict(reversed(model["vocab"].items()))}) == expected
    assert fingerprint_of("old_merges", model | {"merges": joined}) == expected
    assert fingerprint_of("swapped", model | {"vocab": swapped}) != expected
    assert fingerprint_of("merges", model | {"merges": model["merges"][::-1]}) != expected
    assert fingerprint_of("fewer", model | {"merges": model["merges"][:-1]}) != expected


@pytest.mark.parametrize("content", ["", "{}", "[]", "not json", '{"model": 5}', b"\xff\xfe"])
def test_file_that_is_no_tokenizer(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_tokenizer_with_other_special_tokens(stages, tmp_path):
    shutil.copytree(stages / "tokenizer", tmp_path / "t")
    path = tmp_path / "t" / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace("[MASK]", "<mask>"), encoding="utf-8")
    with pytest.raises(InputError, match=r"\[MASK\] is no special token"):
        load_tokenizer(tmp_path / "t")


@pytest.mark.parametrize(("name", "said"), [("nothing", "no such folder"), (".", r"no tokenizer\.json")])
def test_no_tokenizer(tmp_path, name, said):
    for load in (load_tokenizer, fingerprint):
        with pytest.raises(InputError, match=said):
            load(tmp_path / name)
