"""Merges stay inside words, the same corpus gives the same tokenizer, and a wrong one is refused."""

import json
import random
import shutil
from collections import Counter

import pytest
from tokenizers import pre_tokenizers

from zh_modernbert.tokenization_zh_modernbert import SPECIAL_TOKENS
from zh_modernbert.train import train_tokenizer
from zh_modernbert.train.cli import InputError
from zh_modernbert.train.files import read_corpus, write_corpus
from zh_modernbert.train.segment import split_words
from zh_modernbert.train.train_tokenizer import Settings, fingerprint, load_tokenizer, mark_words, stratified_sample, train

SENTENCES = ["我们研究经济问题。", "他們討論歷史文化！", "公司准备发表报告，大家都很高兴。", "BERT 與 GPT-4 在2024年"]
SMALLEST = 256 + len(SPECIAL_TOKENS)


def spelled(text: str) -> str:
    """`text` as tokens spell it, one character a byte."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0]


def learned(tokenizer) -> list[str]:
    """The tokens that merges made, as they are spelled."""
    return [token for token in tokenizer.get_vocab() if token not in SPECIAL_TOKENS and len(token) > 1]


@pytest.mark.parametrize("size", [-64, 0, 64, 256, SMALLEST - 1])
def test_vocabulary_too_small(size):
    with pytest.raises(InputError, match=f"vocab_size is {size}.*too small"):
        train(iter(SENTENCES), size)


@pytest.mark.parametrize(("size", "better"), [(SMALLEST, 320), (500, 512), (321, 384)])
def test_vocabulary_that_is_no_multiple_of_64(size, better):
    with pytest.raises(InputError, match=f"vocab_size is {size}.*multiple of 64.*{better}"):
        train(iter(SENTENCES), size)


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


def test_special_tokens_and_bytes_are_all_there():
    tokenizer = train(iter(SENTENCES * 3), 320)
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(tokenizer.get_vocab())
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


def test_merges_stay_inside_the_words_of_the_training_text():
    """With plenty of room everything frequent is merged; no token may be more than a piece of a word."""
    generator = random.Random(0)
    words = [word for sentence in SENTENCES for word in split_words(sentence) if "\u4e00" <= word[0] <= "\u9fff"]
    # The same words side by side again and again: plain BPE would merge across them.
    texts = ["".join(generator.choices(words, k=12)) for _ in range(200)] + SENTENCES * 50
    allowed = {spelled(piece) for text in texts for piece in mark_words(text).split("\x1f")}
    tokens = learned(train(iter(texts), 640))
    assert len(tokens) > 40
    assert all(any(token in piece for piece in allowed) for token in tokens)
    # ... which means something only if whole words were learned, and pairs of words were not, though they are frequent.
    assert spelled("经济") in tokens
    assert spelled("经济问题") not in tokens
    assert "".join(SENTENCES).count("经济问题") == 1


def test_boundary_marks_leave_no_trace():
    """Neither in what is learned, nor in how the trained tokenizer treats text that holds such a character."""
    tokenizer = train(iter(SENTENCES * 50), 320)
    assert all(spelled("\x1f") not in token for token in learned(tokenizer))
    text = "我们\x1f研究"
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
        {"id": str(i), "source": source, "text": "x"} | ({"script": script} if script else {})
        for i, (source, script) in enumerate(strata)
    ]


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.25, 0.1, 0.05, 0.3, 1 / 3, 0.7])
def test_every_stratum_keeps_its_share(fraction):
    documents = sample_documents()
    chosen = list(stratified_sample(iter(documents), fraction))
    before, after = (Counter((d["source"], d.get("script")) for d in some) for some in (documents, chosen))
    assert {stratum: after[stratum] for stratum in before} == {
        stratum: int(count * fraction + 1e-6) for stratum, count in before.items()
    }
    assert chosen == [document for document in documents if document in chosen], "the order changed"


@pytest.mark.parametrize("fraction", [0, -0.5, 1.01, float("nan")])
def test_bad_fraction(stages, tmp_path, fraction):
    with pytest.raises(InputError, match="sample_fraction"):
        train_tokenizer.main(
            Settings(input_dir=str(stages / "corpus"), output_dir=str(tmp_path / "o"), vocab_size=320, sample_fraction=fraction)
        )


def test_counts_tell_the_sample(stages, tmp_path):
    result = train_tokenizer.main(
        Settings(input_dir=str(stages / "corpus"), output_dir=str(tmp_path / "o"), vocab_size=320, sample_fraction=0.25)
    )
    chosen = list(stratified_sample(read_corpus(stages / "corpus"), 0.25))
    assert result["documents"] == len(chosen) < 110
    assert result["characters"] == sum(len(document["text"]) for document in chosen)
    assert result["vocab_size"] == 320


def test_sample_without_a_document_is_an_error(tmp_path):
    """Otherwise a tokenizer of bare bytes comes out, and nobody is told."""
    (tmp_path / "in").mkdir()
    write_corpus(tmp_path / "in", [{"id": "1", "source": "s", "text": SENTENCES[0]}])
    with pytest.raises(InputError, match="sample"):
        train_tokenizer.main(
            Settings(input_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "o"), vocab_size=320, sample_fraction=0.01)
        )


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
