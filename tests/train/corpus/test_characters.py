"""Kinds of characters, and the script of a text by characters that only one script has."""

import unicodedata

import opencc
import pytest

from zh_modernbert.train.corpus.characters import (
    Counts,
    Kind,
    code_points,
    convert_script,
    detect_script,
    from_code_points,
    half_width,
    in_both_scripts,
    kinds,
)

HANS = "这本书讲述了中国历史上几个重要时期的经济发展，作者认为农业与贸易同样重要。"
HANT = opencc.OpenCC("s2t").convert(HANS)


@pytest.mark.parametrize("text", ["", "中文 abc", "𠮷野家😀\n", "\x00\U0010ffff"])
def test_code_points_round_trip(text):
    assert from_code_points(code_points(text)) == text
    assert code_points(text).tolist() == [ord(character) for character in text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("中文a1，。 \n", {Kind.HAN: 2, Kind.LETTER: 4, Kind.SPACE: 2, Kind.KANA: 0, Kind.RARE: 0}),
        ("国國中", {Kind.HAN: 3, Kind.HANS: 1, Kind.HANT: 1}),
        ("日本のカメラー", {Kind.HAN: 2, Kind.KANA: 5, Kind.LETTER: 7}),
        ("佢哋嘅嘢", {Kind.HAN: 4, Kind.CANTONESE: 4, Kind.RARE: 0}),
        ("𠮷龘", {Kind.HAN: 2, Kind.RARE: 2}),
        ("", {Kind.HAN: 0, Kind.LETTER: 0}),
    ],
)
def test_counts(text, expected):
    counts = Counts(code_points(text))
    assert {kind: counts[kind] for kind in expected} == expected


def test_letters_and_spaces_are_what_python_says():
    table = kinds()
    for code in range(0, 0x110000, 7):
        assert bool(table[code] & Kind.LETTER) == chr(code).isalnum()
        assert bool(table[code] & Kind.SPACE) == (chr(code).isspace() and not chr(code).isalnum())


@pytest.mark.parametrize("character", "后里干台于松云云准价占")
def test_characters_that_both_scripts_write_tell_nothing(character):
    assert not kinds()[ord(character)] & (Kind.HANS | Kind.HANT)


def test_no_character_is_of_both_scripts():
    assert not ((kinds() & Kind.HANS > 0) & (kinds() & Kind.HANT > 0)).any()


@pytest.mark.parametrize(
    ("text", "script"),
    [
        (HANS, "hans"),
        (HANT, "hant"),
        (HANS + HANT, "mixed"),
        (HANS * 20 + "發展", "hans"),
        (HANT * 20 + "发展", "hant"),
        ("臺灣的皇后住在十公里外，干預了后妃的事。", "hant"),
        ("你好，天下太平。", "mixed"),
        ("Hello 123", "mixed"),
        ("", "mixed"),
    ],
)
def test_detect_script(text, script):
    assert detect_script(text) == script


def test_half_width_is_idempotent_and_leaves_han_and_punctuation_alone():
    table = half_width()
    kept = table[table < len(table)]
    assert (table[kept] == kept).all()
    for character in "，。！？；：、「」『』（）《》〈〉【】〔〕……——～·“”‘’％＋＝＠＃￥𠮷😀":
        assert chr(table[ord(character)]) == character
    for code in range(len(table)):
        if table[code] != code:
            category = unicodedata.category(chr(code))
            assert category[0] in "CZ" or "０" <= chr(code) <= "ｚ"


def test_patterns_hold_for_both_scripts():
    pattern = in_both_scripts("网站|后台")
    assert all(pattern.fullmatch(word) for word in ("网站", "網站", "后台", "後臺"))


@pytest.mark.parametrize(
    ("to", "text", "expected"), [("hant", "软件发展", "軟件發展"), ("hans", "臺灣軟體發展", "台湾软体发展")]
)
def test_convert_script(to, text, expected):
    assert convert_script(text, to) == expected
