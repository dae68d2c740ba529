"""Corpus -> the same corpus with its text normalised and bad documents dropped, each for a named and counted reason.

Every rule is a plain function of the text in `NORMALISERS` or `FILTERS`; the first filter that gives a document up names the
reason. The kept documents get their `script`: hans (Simplified), hant (Traditional), or mixed.

    python train/clean.py --input_dir runs/mine/sources --output_dir runs/mine/clean
"""

import html
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import opencc
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from zh_modernbert.train.cli import InputError, run, setting
from zh_modernbert.train.files import corpus_shards, write_json
from zh_modernbert.train.pipeline import CorpusReader, CorpusWriter, ParallelSettings, run_pipeline
from zh_modernbert.train.sources import SCRIPTS
from zh_modernbert.train.stage import run_stage


@dataclass
class Settings(ParallelSettings):
    input_dir: str = setting(help="corpus folder to read")
    output_dir: str = setting(help="corpus folder to write")
    min_han_characters: int = setting(10, "drop documents with fewer Han characters")
    min_han_share: float = setting(0.4, "drop documents where Han is less of the characters that are no space or punctuation")
    max_kana_share: float = setting(0.05, "drop documents with more Japanese kana, of the same characters")
    max_garbled_share: float = setting(0.01, "drop documents with more characters that only damaged text has")
    max_repeated_share: float = setting(0.3, "drop documents with more characters in repeated lines, or in one repeated bigram")
    max_spam_per_thousand: float = setting(
        5.0, "drop documents with more gambling, adult or advertising terms per 1,000 characters"
    )
    scripts: list[str] = setting(list(SCRIPTS), "keep these scripts only", SCRIPTS)
    save_rejects: bool = setting(False, "keep dropped documents in rejects/, with their `filter_reason`")


# --- normalising: text -> text ---

_HAN = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
HAN = re.compile(f"[{_HAN}]")
KANA = re.compile(r"[\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff]")
_INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff\ufff9-\ufffb]")
_SPACES = re.compile(r"[ \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
_BREAK_TAG = re.compile(r"<\s*(?:br|/p|/div|/li|/tr|/h[1-6])\b[^<>]*>", re.IGNORECASE)
_TAG = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]*(?:\s[^<>]*)?/?>|<!--.*?-->", re.DOTALL)
_URL = re.compile(r"(?:https?://|www\.)[A-Za-z0-9\-._~:/?#\[\]@!$&'*+;=%]+", re.IGNORECASE)
_CITATION = re.compile(r"\[(?:\d{1,3}|注 ?\d{0,3}|註 ?\d{0,3}|来源请求|來源請求|citation needed|编辑|編輯)\]")
# Full-width Latin letters and digits are only a matter of layout; full-width punctuation is Chinese.
_HALF_WIDTH = {
    code: code - 0xFEE0
    for first, last in (("０", "９"), ("Ａ", "Ｚ"), ("ａ", "ｚ"))
    for code in range(ord(first), ord(last) + 1)
}


def normalise_unicode(text: str) -> str:
    """NFC, half-width letters and digits, no control or invisible characters."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n"))
    return _INVISIBLE.sub("", text.translate(_HALF_WIDTH))


def strip_markup(text: str) -> str:
    """No HTML tags or entities."""
    if "<" in text:
        text = _TAG.sub("", _BREAK_TAG.sub("\n", text))
    return html.unescape(text) if "&" in text else text


def strip_references(text: str) -> str:
    """No URLs and no citation marks."""
    return _CITATION.sub("", _URL.sub("", text))


def normalise_whitespace(text: str) -> str:
    """One space between, none at the ends of lines; no blank lines."""
    lines = (_SPACES.sub(" ", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


NORMALISERS = (strip_markup, normalise_unicode, strip_references, normalise_whitespace)


def normalise(text: str) -> str:
    """All normalisers, again and again until nothing changes: what one takes away can bring forth work for another."""
    before = None
    while text != before:
        before = text
        for normaliser in NORMALISERS:
            text = normaliser(text)
    return text


# --- script ---


@cache
def one_script_characters() -> tuple[frozenset, frozenset]:
    """Characters that only Simplified text has, and that only Traditional has, by OpenCC's tables."""
    characters = [chr(code) for first, last in ((0x3400, 0x4DBF), (0x4E00, 0x9FFF)) for code in range(first, last + 1)]
    lines = "\n".join(characters)
    to_hant = opencc.OpenCC("s2t").convert(lines).split("\n")
    to_hans = opencc.OpenCC("t2s").convert(lines).split("\n")
    hans = frozenset(c for c, hant, same in zip(characters, to_hant, to_hans, strict=True) if hant != c and same == c)
    hant = frozenset(c for c, same, hans in zip(characters, to_hant, to_hans, strict=True) if hans != c and same == c)
    return hans, hant


def detect_script(text: str) -> str:
    """`hans`, `hant`, or `mixed` where each has more than a tenth of the characters that tell them apart (or none has)."""
    only_hans, only_hant = one_script_characters()
    counts = Counter(text)
    hans = sum(count for character, count in counts.items() if character in only_hans)
    hant = sum(count for character, count in counts.items() if character in only_hant)
    if (hans * 9 > hant and hant * 9 > hans) or hans == hant == 0:
        return "mixed"
    return "hans" if hans > hant else "hant"


# --- filters: (text, settings) -> whether to drop ---

# Replacement and private characters, what wrong conversions to GBK leave, and UTF-8 that was read as Windows-1252.
_GARBLED = re.compile(
    r"[\ufffd\ue000-\uf8ff]|锟斤拷|錕斤拷|烫烫烫|屯屯屯|"
    r"[\u00c2-\u00f4][\u00a1-\u00ba\u00bc-\u00bf\u0152-\u0192\u02c6\u02dc\u2013-\u203a\u20ac\u2122]+"
)
_SPAM = re.compile(
    "博彩|赌场|賭場|赌博网|百家乐|百家樂|六合彩|时时彩|時時彩|老虎机|老虎機|棋牌平台|体育投注|體育投注|北京赛车|彩票平台|真人娱乐|真人娛樂|"
    "成人电影|成人影片|成人視頻|成人视频|激情视频|激情視頻|一夜情|裸聊|约炮|約炮|援交|黄色网站|色情网|"
    "代开发票|代開發票|办证刻章|加微信|加賴|加LINE|加我QQ|点击购买|點擊購買|限时抢购|限時搶購|免费领取|免費領取|贷款秒批|刷单兼职|扫码进群"
)


def _letters(text: str) -> int:
    return sum(character.isalnum() for character in text) or 1


def too_short(text: str, settings: Settings) -> bool:
    return len(HAN.findall(text)) < settings.min_han_characters


def not_chinese(text: str, settings: Settings) -> bool:
    return len(HAN.findall(text)) < settings.min_han_share * _letters(text)


def japanese(text: str, settings: Settings) -> bool:
    return len(KANA.findall(text)) > settings.max_kana_share * _letters(text)


def garbled(text: str, settings: Settings) -> bool:
    return sum(map(len, _GARBLED.findall(text))) > settings.max_garbled_share * len(text)


def repetitive(text: str, settings: Settings) -> bool:
    """Repeated lines (Gopher, https://arxiv.org/abs/2112.11446, table A1), or one bigram again and again."""
    lines = Counter(text.split("\n"))
    if sum(len(line) * (count - 1) for line, count in lines.items()) > settings.max_repeated_share * len(text):
        return True
    letters = "".join(character for character in text if character.isalnum())
    bigrams = Counter(pairwise(letters))
    return len(letters) >= 20 and 2 * max(bigrams.values()) > settings.max_repeated_share * len(text)


def spam(text: str, settings: Settings) -> bool:
    return 1000 * len(_SPAM.findall(text)) > settings.max_spam_per_thousand * max(len(text), 200)


def wrong_script(text: str, settings: Settings) -> bool:
    return detect_script(text) not in settings.scripts


FILTERS = {rule.__name__: rule for rule in (too_short, garbled, not_chinese, japanese, repetitive, spam, wrong_script)}


def drop_reason(text: str, settings: Settings) -> str | None:
    """The name of the first filter that gives this (normalised) text up, or None."""
    return next((name for name, drops in FILTERS.items() if drops(text, settings)), None)


class CleanFilter(BaseFilter):
    """The rules above as one datatrove filter that also counts per source."""

    name = "clean"

    def __init__(self, settings: Settings, exclusion_writer=None):
        super().__init__(exclusion_writer)
        self.settings = settings

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        source = doc.metadata["source"]
        self.stat_update(f"in/{source}")
        self.stat_update("characters_in", value=len(doc.text))
        doc.text = normalise(doc.text)
        reason = drop_reason(doc.text, self.settings)
        if reason:
            self.stat_update(f"{reason}/{source}")
            return False, reason
        doc.metadata["script"] = detect_script(doc.text)
        self.stat_update("characters_out", value=len(doc.text))
        return True


def build(settings: Settings, folder: Path) -> dict:
    rejects = CorpusWriter(folder / "rejects") if settings.save_rejects else None
    steps = [CorpusReader(settings.input_dir, folder), CleanFilter(settings, rejects), CorpusWriter(folder)]
    counts = run_pipeline(steps, len(corpus_shards(settings.input_dir)), settings, folder, "clean")
    sources = sorted(name.partition("/")[2] for name in counts if name.startswith("in/"))
    report = {
        "documents_in": sum(counts[f"in/{source}"] for source in sources),
        "documents": sum(counts[f"in/{source}"] - sum(counts[f"{r}/{source}"] for r in FILTERS) for source in sources),
        "quarantined": counts["quarantined"],
        "characters_in": counts["characters_in"],
        "characters": counts["characters_out"],
        "dropped": {reason: sum(counts[f"{reason}/{source}"] for source in sources) for reason in FILTERS},
    }
    if not report["documents_in"]:
        raise InputError(f"{settings.input_dir}: an empty corpus: no documents in it")
    if not report["documents"]:
        raise InputError(f"{settings.input_dir}: cleaning drops every document: {report['dropped']}")
    per_source = {
        source: {"documents_in": counts[f"in/{source}"]}
        | {reason: counts[f"{reason}/{source}"] for reason in FILTERS if counts[f"{reason}/{source}"]}
        for source in sources
    }
    write_json(folder / "report.json", report | {"per_source": per_source})
    return report


def main(settings: Settings) -> dict:
    return run_stage(settings, partial(build, settings))


if __name__ == "__main__":
    run(main, Settings)
