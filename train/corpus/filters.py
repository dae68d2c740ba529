"""The rules by which a normalised document is dropped. Each is a plain function; its name is the reason in reports.

Thresholds marked (FineWeb-2) are those of its Chinese configuration: `configs/cmn_Hani.yml` and `fineweb-2-pipeline.py` of
https://github.com/huggingface/fineweb-2. (Gopher) is table A1 of https://arxiv.org/abs/2112.11446. Both count words of jieba;
the rules here count characters. Some published thresholds drop statutes, minutes, poems or manuals. Ours are wider there and
say so.
"""

import re
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from zh_modernbert.train.common.cli import BaseSettings, InputError, setting
from zh_modernbert.train.corpus.characters import Counts, Kind, code_points, in_both_scripts, script_of
from zh_modernbert.train.corpus.normalise import MISREAD_AS_GBK
from zh_modernbert.train.corpus.rules import apply_rule
from zh_modernbert.train.corpus.source import SCRIPTS


def _share_setting(default: float, help: str):
    return setting(default, help, least=0, most=1)


@dataclass(kw_only=True)
class Thresholds(BaseSettings):
    min_han_characters: int = setting(50, "drop documents with fewer Han characters", least=0)
    max_garbled_share: float = _share_setting(0.02, "drop documents with more characters that only damaged text has")
    max_rare_share: float = _share_setting(
        0.15, "drop documents with more rare characters in the Han: text read in a wrong encoding"
    )
    min_han_share: float = _share_setting(0.3, "drop documents where Han is less of the letters and digits")
    max_kana_share: float = _share_setting(0.1, "drop documents with more Japanese kana in the letters and digits")
    max_cantonese_share: float = _share_setting(0.05, "drop documents with more characters of written Cantonese in the Han")
    scripts: list[str] = setting(list(SCRIPTS), "keep these scripts only", SCRIPTS)
    min_letter_share: float = _share_setting(
        0.5, "drop documents where letters and digits are less of the characters but spaces"
    )
    min_function_word_share: float = _share_setting(
        0.006, "drop documents where function words, 的 and the like, are less of the characters"
    )
    min_sentence_line_share: float = _share_setting(
        0.106, "drop documents with fewer lines that have any punctuation (FineWeb-2)"
    )
    max_bare_lines: float = setting(
        0.111, "drop documents with more lines without punctuation for each character (FineWeb-2's newlines: 0.178 a word)"
    )
    max_list_function_word_share: float = _share_setting(
        0.09, "... in both cases only if function words are no more of those lines"
    )
    max_bullet_line_share: float = _share_setting(0.9, "drop documents with more lines that start with a bullet (Gopher)")
    max_ellipsis_line_share: float = _share_setting(0.3, "drop documents with more lines that break off in ... or … (Gopher)")
    max_repeated_line_share: float = _share_setting(
        0.3,
        "drop documents with more characters in lines that occurred before (FineWeb-2: 0.1; ours keeps minutes and manuals)",
    )
    max_top_ngram_share: float = _share_setting(
        0.55, "drop documents with more characters in one 4-gram (FineWeb-2: 0.256 in two words; ours keeps rhymes and tables)"
    )
    max_repeated_ngram_share: float = _share_setting(
        0.7,
        "drop documents where more 16-grams occurred before (FineWeb-2: 0.127 in ten words; ours keeps minutes and manuals)",
    )
    max_spam_per_thousand: float = setting(
        5.0, "drop documents with more gambling, adult or advertising terms per 1,000 characters"
    )
    min_spam_terms: int = setting(4, "... if at least so many different ones of a kind", least=1)
    language_model: str | None = setting(
        None, "path of a fastText model (GlotLID, lid.176) that has to find the text Chinese too"
    )
    languages: list[str] = setting(["cmn_Hani", "lzh_Hani", "zh"], "the labels of that model to keep")
    min_language_score: float = _share_setting(0.692, "drop documents where they have less probability together (FineWeb-2)")


class Page:
    """A document's text, and what several rules compute from it."""

    def __init__(self, text: str):
        self.text = text
        self.lines = text.split("\n")
        self.codes = code_points(text)
        self.counts = Counts(self.codes)

    def share(self, kind: int, of: int) -> float:
        return self.counts[kind] / max(self.counts[of], 1)

    @cached_property
    def bare_lines(self) -> list[str]:
        """The lines without punctuation of sentences: headings, menus, items of lists."""
        return [line for line in self.lines if not _PUNCTUATION.search(line)]


# --- encoding, language and script ---

# Replacement characters, the traces of failed conversions, UTF-8 or GBK read in a western encoding, Base64.
_GARBLED = re.compile(
    r"\ufffd|锟斤拷|錕斤拷|烫烫烫|屯屯屯|[\u00c2-\u00f4][\u00a1-\u00ba\u00bc-\u00bf\u0152-\u0192\u02c6\u02dc\u2013-"
    rf"\u203a\u20ac\u2122]+|[\u00a1-\u00b6\u00b8-\u00d6\u00d8-\u00ff]{{4,}}|{MISREAD_AS_GBK.pattern}|[A-Za-z0-9+/]{{200,}}"
)


def too_short(page: Page, settings: Thresholds) -> bool:
    return page.counts[Kind.HAN] < settings.min_han_characters


def garbled(page: Page, settings: Thresholds) -> bool:
    damaged = sum(map(len, _GARBLED.findall(page.text)))
    return damaged > settings.max_garbled_share * len(page.text) or page.share(Kind.RARE, Kind.HAN) > settings.max_rare_share


def not_chinese(page: Page, settings: Thresholds) -> bool:
    return page.share(Kind.HAN, Kind.LETTER) < settings.min_han_share


def japanese(page: Page, settings: Thresholds) -> bool:
    return page.share(Kind.KANA, Kind.LETTER) > settings.max_kana_share


def cantonese(page: Page, settings: Thresholds) -> bool:
    return page.share(Kind.CANTONESE, Kind.HAN) > settings.max_cantonese_share


def wrong_script(page: Page, settings: Thresholds) -> bool:
    return script_of(page.counts) not in settings.scripts


@cache
def load_language_model(path: str):
    try:
        from fasttext.FastText import _FastText  # pyright: ignore[reportMissingImports]  # of the extra `language`
    except ImportError as error:
        raise InputError("language_model: fastText is missing; pip install fasttext-numpy2-wheel") from error
    try:
        return _FastText(path)
    except ValueError as error:
        raise InputError(f"language_model: {path}: not a fastText model: {error}") from error


def wrong_language(page: Page, settings: Thresholds) -> bool:
    if settings.language_model is None:
        return False
    labels, scores = load_language_model(settings.language_model).predict(page.text.replace("\n", " "), k=5)
    wanted = {f"__label__{language}" for language in settings.languages}
    return sum(score for label, score in zip(labels, scores, strict=True) if label in wanted) < settings.min_language_score


# --- prose ---

_PUNCTUATION = re.compile(r"[。！？；，．…]|[\u4e00-\u9fff][,.!?;]|[!?;:：.」』”’）)]$")
# FineWeb-2's stop words, and some more for statutes, classical texts and rhymes.
_FUNCTION_WORDS = "的年在月是和日了於·為有被人中为他與後也而由之者其以或不一這这我你"
_BULLETS = ("•", "-", "*", "·", "●", "■", "◆", "★", "※", "○", "➤", "►")


def count_function_words(text: str) -> int:
    return sum(map(text.count, _FUNCTION_WORDS))


def few_letters(page: Page, settings: Thresholds) -> bool:
    return page.counts[Kind.LETTER] < settings.min_letter_share * (len(page.text) - page.counts[Kind.SPACE])


def few_function_words(page: Page, settings: Thresholds) -> bool:
    """Few function words for the length. The first hundred characters need none."""
    return count_function_words(page.text) < settings.min_function_word_share * (len(page.text) - 100)


def _are_verses(lines: list[str], settings: Thresholds) -> bool:
    """Whether lines without punctuation are verses. Verses have function words, as sentences do; lists have hardly any."""
    text = "".join(lines)
    return count_function_words(text) > settings.max_list_function_word_share * len(text)


def few_sentences(page: Page, settings: Thresholds) -> bool:
    """Few lines with punctuation, and less than half of the text in them."""
    sentence_lines = len(page.lines) - len(page.bare_lines)
    few = len(page.bare_lines) > 2 and sentence_lines < settings.min_sentence_line_share * len(page.lines)
    return few and 2 * sum(map(len, page.bare_lines)) > len(page.text) and not _are_verses(page.bare_lines, settings)


def list_like(page: Page, settings: Thresholds) -> bool:
    """Many short lines without punctuation, or many bullets."""
    bullets = sum(line.startswith(_BULLETS) for line in page.lines)
    many = len(page.bare_lines) > settings.max_bare_lines * len(page.text) and not _are_verses(page.bare_lines, settings)
    return many or bullets > max(settings.max_bullet_line_share * len(page.lines), 3)


def broken_off(page: Page, settings: Thresholds) -> bool:
    """Many lines that break off, as in search results. …… is punctuation and does not count."""
    ellipses = sum(line.endswith(("...", "…")) and not line.endswith("……") for line in page.lines)
    return ellipses > max(settings.max_ellipsis_line_share * len(page.lines), 1)


# --- repetition ---


def ngram_runs(codes: np.ndarray, n: int) -> np.ndarray:
    """How often each different n-gram occurs, in no order.

    Args:
        n: a power of two.

    n-grams are compared by hashes of 64 bits, so two may count as one by chance.
    """
    hashes, factor = codes.astype(np.uint64), 0x9E3779B97F4A7C15
    for width in (2**i for i in range(n.bit_length() - 1)):
        hashes = hashes[:-width] * np.uint64(factor) + hashes[width:]
        factor = factor**2 % 2**64
    hashes.sort()
    return np.diff(np.flatnonzero(np.concatenate(([True], hashes[1:] != hashes[:-1], [True]))))


def repeated_lines(page: Page, settings: Thresholds) -> bool:
    once = sum(map(len, set(page.lines)))
    return len(page.text) - (len(page.lines) - 1) - once > settings.max_repeated_line_share * len(page.text)


def repeated_ngrams(page: Page, settings: Thresholds) -> bool:
    if len(page.codes) < 32:
        return False
    often, runs = ngram_runs(page.codes, 4), ngram_runs(page.codes, 16)
    return (
        often.max() * 4 > settings.max_top_ngram_share * len(page.codes)
        or 1 - len(runs) / runs.sum() > settings.max_repeated_ngram_share
    )


# --- spam ---

_GAMBLING = in_both_scripts(
    "博彩|百家乐|六合彩|时时彩|老虎机|棋牌平台|体育投注|投注网|北京赛车|彩票平台|彩票网|真人娱乐|真人视讯|娱乐城|线上娱乐|澳门新葡京|"
    "葡京|威尼斯人|金沙娱乐|太阳城|皇冠体育|皇冠现金|现金网|开户送|首存|返水|注册送|捕鱼游戏|电子游艺|赛车pk10|快三|时彩|赔率|盘口|"
    "足球投注|球探|德州扑克|开奖结果|必赢|威廉希尔|亚博|bet365|运彩投注|百家樂|博弈平台|娱乐场|体验金|存款秒到"
)
_ADULT = in_both_scripts(
    "成人电影|成人影片|成人视频|成人网站|成人小说|激情视频|激情小说|色情网|黄色网站|黄片|av女优|无码|有码|一夜情|裸聊|裸照|约炮|援交|外送茶|叫小姐|"
    "情色|色图|自拍偷拍|巨乳|爆乳|美乳|骚妇|人妻|熟女|淫荡|淫乱|乱伦|情趣用品|伦理片|三级片|国产精品|日韩精品|亚洲精品|欧美精品|"
    "一区二区|一本道|免费观看av|久久精品|娇喘|肉棒|小穴|高清无|制服丝袜|啪啪"
)
_ADVERTISING = in_both_scripts(
    "代开发票|办证|刻章|加微信|加我微信|微信号|加赖|加line|加我qq|qq群|扣扣|咨询热线|订购热线|全国热线|服务热线|免费咨询|免费试听|"
    "点击购买|立即购买|立即抢购|限时抢购|限时优惠|优惠券|全场包邮|货到付款|厂家直销|批发价|免费领取|扫码领取|扫码进群|贷款秒批|无抵押贷款|"
    "小额贷款|信用卡套现|刷单|兼职日结|日赚|躺赚|月入过万|代写论文|代理加盟|招商加盟|诚招代理|减肥药|丰胸|壮阳|祛斑|特价|秒杀|欢迎来电|"
    "来电咨询|网赚|推广引流|刷粉|一站式服务|上门服务|24小时服务|价格优惠|质优价廉|售后无忧|现货供应|量大从优"
)


def _spam(terms: re.Pattern, page: Page, settings: Thresholds) -> bool:
    found = terms.findall(page.text)
    return len(set(found)) >= settings.min_spam_terms and 1000 * len(found) > settings.max_spam_per_thousand * max(
        len(page.text), 200
    )


def gambling(page: Page, settings: Thresholds) -> bool:
    return _spam(_GAMBLING, page, settings)


def adult(page: Page, settings: Thresholds) -> bool:
    return _spam(_ADULT, page, settings)


def advertising(page: Page, settings: Thresholds) -> bool:
    return _spam(_ADVERTISING, page, settings)


FILTERS = {
    rule.__name__: rule
    for rule in (
        too_short,
        garbled,
        japanese,
        not_chinese,
        cantonese,
        wrong_script,
        few_letters,
        few_function_words,
        few_sentences,
        list_like,
        broken_off,
        repeated_lines,
        repeated_ngrams,
        gambling,
        adult,
        advertising,
        wrong_language,
    )
}


def drop_reason(text: str, settings: Thresholds) -> str | None:
    """The name of the first rule that drops this normalised text, or None.

    Raises:
        RuleError: a rule raised.
    """
    page = Page(text)
    return next((name for name, drops in FILTERS.items() if apply_rule(drops, page, settings)), None)
