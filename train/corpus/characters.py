"""What kinds of characters a text has, and their other forms. Tables over all code points let NumPy do a text in one pass."""

import re
import unicodedata
from functools import cache

import numpy as np
import opencc

HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")
_HAN_BLOCKS = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3134F))
_PRIVATE_BLOCKS = ((0xE000, 0xF8FF), (0xF0000, 0x10FFFF))
_KANA_BLOCKS = ((0x3041, 0x309F), (0x30A1, 0x30FA), (0x30FC, 0x30FF))
# Characters that only written Cantonese uses. 係 and 睇 are missing, since Mandarin has them too.
_CANTONESE = "嘅喺咗嚟哋冇唔佢啲嗰乜咁噉嘢冧嗌嚿瞓攞畀俾啱嗮晒嘥嬲孭乸嘞囖喎啩"

# In `half_width`: the character is removed.
REMOVED = 0xFFFFFFFF


class Kind:
    """Flags of a character."""

    HAN = 1
    HANS = 2  # Han that only Simplified text has
    HANT = 4  # Han that only Traditional text has
    RARE = 8  # Han outside the everyday characters of both scripts
    CANTONESE = 16
    KANA = 32
    LETTER = 64  # letters and digits of any script, Han and kana among them
    SPACE = 128


def _in_codec(character: str, codec: str, first: int = 0, last: int = 0xFFFF) -> bool:
    try:
        return first <= int.from_bytes(character.encode(codec), "big") <= last
    except UnicodeEncodeError:
        return False


@cache
def kinds() -> np.ndarray:
    """`(0x110000,)` uint8: the `Kind` flags of each code point.

    A character is HANS if OpenCC changes it to Traditional and Big5 lacks it, and HANT if OpenCC changes it to Simplified and
    GB 2312 lacks it. So 后 and 里 are neither: they are the Simplified forms of 後 and 裡, but Traditional text has them too.
    """
    table = np.zeros(0x110000, np.uint8)
    for code in range(len(table)):
        character = chr(code)
        if character.isalnum():
            table[code] = Kind.LETTER
        elif character.isspace():
            table[code] = Kind.SPACE
    for first, last in _KANA_BLOCKS:
        table[first : last + 1] |= Kind.KANA
    for first, last in _HAN_BLOCKS:
        table[first : last + 1] |= Kind.HAN | Kind.RARE
    unified = [chr(code) for first, last in _HAN_BLOCKS[:2] for code in range(first, last + 1)]
    as_hant, as_hans = (converter(config).convert("\n".join(unified)).split("\n") for config in ("s2t", "t2s"))
    for character, hant, hans in zip(unified, as_hant, as_hans, strict=True):
        code = ord(character)
        if hant != character == hans and not _in_codec(character, "big5"):
            table[code] |= Kind.HANS
        if hans != character == hant and not _in_codec(character, "gb2312"):
            table[code] |= Kind.HANT
        # The first level of GB 2312 and that of Big5 have the frequent characters.
        if _in_codec(character, "gb2312", 0xB0A1, 0xD7F9) or _in_codec(character, "big5", 0xA440, 0xC67E):
            table[code] &= 0xFF ^ Kind.RARE
    for character in _CANTONESE:
        table[ord(character)] |= Kind.CANTONESE
        table[ord(character)] &= 0xFF ^ Kind.RARE
    return table


def code_points(text: str) -> np.ndarray:
    """`(characters,)` uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def from_code_points(codes: np.ndarray) -> str:
    return codes.tobytes().decode("utf-32-le", "surrogatepass")


class Counts:
    """How many of some code points have each flag of `Kind`: `counts[Kind.HAN]`."""

    def __init__(self, codes: np.ndarray):
        self._by_bit = (_BITS @ np.bincount(kinds()[codes], minlength=256)).tolist()

    def __getitem__(self, kind: int) -> int:
        return self._by_bit[kind.bit_length() - 1]


# `(8, 256)`: 1 where the flag of the row is set in the combination of the column.
_BITS = np.arange(256) >> np.arange(8)[:, None] & 1


def script_of(counts: Counts) -> str:
    """`hans`, `hant`, or `mixed`, by the characters that only one script has.

    A text is `mixed` where each script has more than a tenth of these characters, or where there are none.
    """
    hans, hant = counts[Kind.HANS], counts[Kind.HANT]
    if (hans * 9 > hant and hant * 9 > hans) or hans == hant == 0:
        return "mixed"
    return "hans" if hans > hant else "hant"


def detect_script(text: str) -> str:
    return script_of(Counts(code_points(text)))


@cache
def half_width() -> np.ndarray:
    """`(0x110000,)` uint32: what each code point becomes in clean text, `REMOVED` if nothing.

    Full-width Latin letters and digits become half-width, since their width is only layout. Full-width punctuation stays, since
    it is Chinese. Every line end becomes a newline and every other space a plain one. Control, invisible and private characters
    go.
    """
    table = np.arange(0x110000, dtype=np.uint32)
    for first, last in (("０", "９"), ("Ａ", "Ｚ"), ("ａ", "ｚ")):
        table[ord(first) : ord(last) + 1] -= 0xFEE0
    for code in range(0x3001):
        character = chr(code)
        if character in "\r\x0b\x0c\u2028\u2029":
            table[code] = ord("\n")
        elif unicodedata.category(character) == "Zs":
            table[code] = ord(" ")
        elif unicodedata.category(character) in ("Cc", "Cf") and character not in "\t\n":
            table[code] = REMOVED
    table[ord("\t")] = ord(" ")
    table[[0xFEFF, 0xFFF9, 0xFFFA, 0xFFFB]] = REMOVED
    for first, last in _PRIVATE_BLOCKS:
        table[first : last + 1] = REMOVED
    return table


# Of the combining marks on one character. Unicode's Stream-Safe Text Format (UAX 15) has as many; languages have fewer.
MOST_MARKS = 30


@cache
def marks() -> np.ndarray:
    """`(0x110000,)` bool: the combining marks, which NFC sorts."""
    table = np.zeros(0x110000, bool)
    for code in range(0x20000):  # none are beyond
        table[code] = unicodedata.combining(unicodedata.normalize("NFD", chr(code))[0])
    return table


def limit_marks(codes: np.ndarray) -> np.ndarray:
    """The code points without the marks that go beyond `MOST_MARKS` on one character."""
    are_marks = marks()[codes]
    if np.count_nonzero(are_marks) <= MOST_MARKS:
        return codes
    places = np.arange(len(codes))
    bases = np.maximum.accumulate(np.where(are_marks, -1, places))
    return codes[places - bases <= MOST_MARKS]


# --- conversion ---


@cache
def converter(config: str) -> opencc.OpenCC:
    return opencc.OpenCC(config)


def in_both_scripts(pattern: str) -> re.Pattern:
    """A regular expression for both scripts, from one in Simplified: that, its Traditional form, and its form in Taiwan."""
    versions = (pattern, converter("s2t").convert(pattern), converter("s2tw").convert(pattern))
    return re.compile("|".join(dict.fromkeys(versions)))


# OpenCC's configurations. Hant has the forms used in Taiwan.
CONVERTERS = {"hans": "t2s", "hant": "s2tw"}


def convert_script(text: str, to: str) -> str:
    return converter(CONVERTERS[to]).convert(text)
