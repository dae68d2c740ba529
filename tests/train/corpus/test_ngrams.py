"""Letters are what a reader would call the same; hashes of n-grams are those of the n-grams, whatever stands around them."""

import numpy as np
import pytest

from zh_modernbert.train.corpus.ngrams import letters, ngram_hashes, random_numbers, tokens


@pytest.mark.parametrize(
    ("text", "fold_scripts", "expected"),
    [
        ("一，二 三\n四。ABc_1", False, "一二三四abc1"),
        ("ＡＢＣ１２，ｘ", False, "abc12x"),
        ("圖書館 图书馆", False, "圖書館图书馆"),
        ("圖書館 图书馆", True, "图书馆图书馆"),
        ("頭髮、發現、乾燥、乾隆", True, "头发发现干燥干隆"),
        ("𠮷😀！", False, "𠮷"),
        ("", False, ""),
    ],
)
def test_letters(text, fold_scripts, expected):
    assert "".join(map(chr, letters(text, fold_scripts))) == expected


def test_tokens_are_characters_and_words():
    def hashes(text):
        return tokens(text)[0].tolist()

    assert [
        len(hashes(text)) for text in ("", "。", "一二，三", "Hello, world 2024 年", "iPhone15手机", "ｉＰｈｏｎｅ１５")
    ] == [
        0,
        0,
        3,
        4,
        3,
        1,
    ]
    assert hashes("我的 HELLO-World。") == hashes("我的hello world")
    assert hashes("圖書館") == hashes("图书馆")
    assert hashes("ab cd") != hashes("cd ab")
    assert hashes("ab")[0] not in (hashes("ba")[0], hashes("abc")[0], hashes("a")[0])
    assert hashes("\ud83d一") == hashes("一")  # half a surrogate pair, as JSON may hold
    assert tokens("，一 Hello二")[1].tolist() == [1, 3, 8]


def test_hashes_are_of_the_ngrams_alone():
    text = letters("一二三四五六七一二三四五")
    hashes = ngram_hashes(text, 5)
    assert len(hashes) == 8
    assert hashes[0] == hashes[7]
    assert len(set(hashes.tolist())) == 7
    assert ngram_hashes(text[2:7], 5).tolist() == [hashes[2]]


def test_shorter_texts_are_hashed_whole():
    assert len(ngram_hashes(letters("一二"), 5)) == 1
    assert ngram_hashes(letters("一二"), 5) != ngram_hashes(letters("二一"), 5)


def test_hashes_are_the_same_everywhere():
    """Signatures of one run may be made on many machines."""
    assert ngram_hashes(letters("一二三四五"), 5).tolist() == [8189909319752313492]
    assert random_numbers(2, 7).tolist() == [8360697188923789789, 3908143226370014917]


def test_hashes_spread():
    """Each bit of the hashes of 65,536 bigrams is set in half of them, and none are equal."""
    text = np.arange(65_537, dtype=np.uint32)
    hashes = ngram_hashes(text, 2)
    assert len(np.unique(hashes)) == len(hashes)
    bits = np.unpackbits(hashes.view(np.uint8).reshape(-1, 8), axis=1).mean(axis=0)
    assert abs(bits - 0.5).max() < 0.01
