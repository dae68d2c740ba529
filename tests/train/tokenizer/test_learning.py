"""Merges stay inside words, and characters come before them."""

import random
from collections import Counter

import pytest
from tokenizers import pre_tokenizers

from zh_modernbert.tokenization_zh_modernbert import SPECIAL_TOKENS
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.tokenizer.learning import compose, frequent_characters, mark_words, set_apart, train
from zh_modernbert.train.tokenizer.loading import load_tokenizer
from zh_modernbert.train.tokenizer.spelling import spell

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
