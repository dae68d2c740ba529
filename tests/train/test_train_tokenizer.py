"""The same corpus gives the same tokenizer, and of the sample each script and source has its share."""

import gzip
import random
import re
from collections import Counter

import pytest

from zh_modernbert.train import train_tokenizer
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.corpus.documents import read_corpus, write_corpus
from zh_modernbert.train.corpus.held_out import is_held_out
from zh_modernbert.train.tokenizer.loading import fingerprint, load_tokenizer
from zh_modernbert.train.tokenizer.spelling import spell
from zh_modernbert.train.train_tokenizer import Settings, kept_fractions, stratified_sample

SENTENCES = ["我们研究经济问题。", "他們討論歷史文化！", "公司准备发表报告，大家都很高兴。", "BERT 與 GPT-4 在2024年"]


@pytest.mark.parametrize(("field", "value"), [("vocab_size", 64 * 10**18), ("min_frequency", -1), ("min_frequency", 2**70)])
def test_numbers_no_trainer_takes(stages, tmp_path, field, value):
    settings = {"vocab_size": 320, field: value}
    with pytest.raises(InputError, match=field):
        train_tokenizer.main(Settings(input_dir=str(stages / "corpus"), output_dir=str(tmp_path / "out"), **settings))


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


@pytest.mark.parametrize(("hant", "share", "warned"), [(2, 0.5, True), (2, None, False), (30, 0.5, False)])
def test_a_corpus_of_nearly_one_script(tmp_path, capsys, hant, share, warned):
    """Balancing leaves next to nothing of it, and says so."""
    (tmp_path / "in").mkdir()
    scripts = ["hans"] * (60 - hant) + ["hant"] * hant
    write_corpus(
        tmp_path / "in",
        [{"id": str(i), "source": "s", "script": script, "text": SENTENCES[0] * 5} for i, script in enumerate(scripts)],
    )
    settings = Settings(input_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "o"), vocab_size=320, hans_share=share)
    result = train_tokenizer.main(settings)
    assert result["documents"] == (60 if share is None else 2 * hant)
    said = r"warning: hans_share is 0\.5, and .*in has \d+ characters of hans and \d+ of hant: 6\.7% is left"
    assert bool(re.search(said, capsys.readouterr().err)) == warned


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
    assert not any(spell("齉龘") in token for token in after.get_vocab() if token != spell("齉龘"))
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
