"""Words, and where they begin, in both scripts."""

import random
from itertools import pairwise

import numpy as np
import opencc
import pytest

from zh_modernbert.train.tokenizer.segment import split_words, word_boundaries

SENTENCES = [
    "我们正在研究中国历史文化的发展问题。",
    "气象台说明天下午有大雨，请大家带好雨伞。",
    "这家公司的软件开发人员认真地修改了程序。",
    "南京市长江大桥是一座很长的桥。",
    "头发干了以后，她发现面条里有鸡蛋。",
    "他在 Python 3.12 里写了１２行代码！",
]
NASTY = [
    "",
    " ",
    "\n\t \u3000\u00a0",
    "😀👨‍👩‍👧🇹🇼",
    "𠮷野家𪚥𪚥",
    "a\x00b好\x00\x00",
    "\ufeff零\u200b寬\u200d",
    "e\u0301が한\u11a8",
    "don't stop-me now 3.14e-5 http://例え.jp/路徑?q=一",
    "，。！？「」《》……——",
    "\ue000\ufffd\U0010ffff",
    "干乾幹后後里裡發髮",
    "ﷺ㍿ﬀ①㊀",
    "\r\n一\r二\n",
]


@pytest.mark.parametrize("text", NASTY + SENTENCES, ids=ascii)
def test_words_are_the_text(text):
    words = split_words(text)
    assert "".join(words) == text
    assert all(words), "an empty word"


def test_words_are_the_text_for_random_text():
    generator = random.Random(0)
    ranges = [
        (0, 0x250),
        (0x2000, 0x2100),
        (0x3000, 0x3100),
        (0x4E00, 0x9FFF),
        (0xF900, 0xFB00),
        (0x1F300, 0x1F700),
        (0x20000, 0x2A6DF),
    ]
    for _ in range(300):
        text = "".join(chr(generator.randint(*generator.choice(ranges))) for _ in range(generator.randint(0, 40)))
        assert "".join(split_words(text)) == text


@pytest.mark.parametrize("text", SENTENCES)
@pytest.mark.parametrize("conversion", ["s2t", "s2tw", "s2hk"])
def test_both_scripts_have_the_same_boundaries(text, conversion):
    converted = opencc.OpenCC(conversion).convert(text)
    assert len(converted) == len(text), "this test needs a conversion character by character"
    assert converted != text
    assert word_boundaries(converted).tolist() == word_boundaries(text).tolist()


@pytest.mark.parametrize("text", ["我們研究經濟問題", "我们研究经济问题"])
def test_words_are_words(text):
    """Neither single characters nor whole runs."""
    assert [len(word) for word in split_words(text)] == [2, 2, 2, 2]


@pytest.mark.parametrize("text", NASTY + SENTENCES, ids=ascii)
def test_boundaries(text):
    boundaries = word_boundaries(text)
    assert boundaries.shape == (len(text) + 1,)
    assert boundaries.dtype == bool
    assert boundaries[0]
    assert boundaries[-1]
    edges = np.flatnonzero(boundaries)
    assert [text[a:b] for a, b in pairwise(edges)] == split_words(text)
