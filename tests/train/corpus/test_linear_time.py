"""Every pattern and every rule takes linear time, whatever the text: twice the text takes about twice the time."""

import re
import time
from collections.abc import Callable

import pytest

from zh_modernbert.train.corpus import (
    boilerplate,
    characters,
    decontaminate,
    filters,
    normalise,
    personal_data,
    wiki_templates,
    wikipedia,
    wikitext,
)
from zh_modernbert.train.corpus.ngrams import letters
from zh_modernbert.train.tokenizer.segment import word_boundaries

LENGTH = 20_000
QUICK = 0.05  # CPU seconds; going over the rest of such a text from every place takes far longer
MOST = 3.0  # times as long may twice the text take; quadratic are 4

# What markup, addresses, numbers and lines of pages begin with, and what closes it, if anything does.
OPENERS = {
    "-{": "}-",
    "{{": "}}",
    "{{a|": "}}",
    "[[": "]]",
    "[[a|": "]]",
    "[": "]",
    "<!--": "-->",
    "<ref>": "</ref>",
    "<ref ": "/>",
    "<sup>": "</sup>",
    "（": "）",
    "(": ")",
    "'''": "'''",
    "\n{|": "\n|}",
    "[img]": "[/img]",
    "{{NoteTA|": "}}",
    "-{H|zh:a;": "}-",
    "<math>": "</math>",
    "<script>": "</script>",
    "<a ": ">",
    "\n==": "==",
    "__": "__",
    "[1": "]",
    "[http://": "]",
    **dict.fromkeys(
        ["</ref", "&#", "http://", "www.", "[a](http://a", "[b=", "zh:a=>", "\n==资料", "\n;", "编辑：", "未经", "ICP备"], ""
    ),
    **dict.fromkeys(["Copyright ", "a@", "+86", "(02", "电话：", "62", "\ufffd", "{{convert|1|", "{{formatnum:1"], ""),
}
FILLERS = [" ", "a", "中", "|", "a|", ";", "、"]
OTHERS = [
    "a;",
    ":",
    "=",
    "'",
    "，",
    "）",
    "]",
    "}",
    "a.",
    "a-",
    "1-",
    "1.",
    "1 ",
    "a/n ",
    "资料来源",
    "首页 ",
    "首页|",
    "/",
    "…",
    "，a",
]
OTHERS += ["\u0301\u0323", "\u200b", "Ã©", "锛", "A/", "\n中\n", "\t", "1-|", "-|1|", "年", "。", "2)", "&amp;"]


def texts() -> dict[str, Callable[[int], str]]:
    """What it is -> the text of a length: one piece repeated, one opener before many fillers, many openers that are closed."""
    found = {}
    for piece in (*OPENERS, *FILLERS, *OTHERS):
        found[f"{piece} ..."] = lambda length, piece=piece: piece * (length // len(piece)) + "x"
    for opener, closer in OPENERS.items():
        for filler in FILLERS:
            found[f"{opener} {filler} ..."] = lambda length, a=opener, b=filler: a + b * (length // len(b)) + "x"
        if closer:
            found[f"{opener} ... {closer} ..."] = lambda length, a=opener, b=closer: (
                a * (length // 2 // len(a)) + "x" + b * (length // 2 // len(b))
            )
    return found


TEXTS = texts()


def seconds(work: Callable[[str], object], text: str) -> float:
    started = time.process_time()
    work(text)
    return time.process_time() - started


def is_linear(work: Callable[[str], object], text_of: Callable[[int], str]) -> bool:
    """Whether twice the text takes less than `MOST` times the CPU time. On a busy machine one of several tries has to."""
    for _ in range(5):
        taken = seconds(work, text_of(LENGTH))
        if taken < QUICK or seconds(work, text_of(2 * LENGTH)) < MOST * taken:
            return True
    return False


def slow(work: Callable[[str], object]) -> list[str]:
    return [what for what, text_of in TEXTS.items() if not is_linear(work, text_of)]


@pytest.mark.parametrize(("power", "linear"), [(1, True), (2, False), (3, False)])
def test_this_test_notices(monkeypatch, power, linear):
    monkeypatch.setitem(globals(), "seconds", lambda work, text: len(text) ** power)
    assert is_linear(len, TEXTS["a ..."]) == linear


# --- patterns ---

# Those that are given a whole line of at most 150 characters, and those that match from the start.
LINES = {"_PAGE_LINE", "_IMPRINT", "_SENTENCE", "_SEPARATORS", "TAG"}
FROM_THE_START = {
    "_NUMBER",
    "_NO_PROSE",
    "_DISAMBIGUATION",
    "_NOTHING",
    "_NUMBER_NAMES",
    "_SYMBOL",
    "_REDIRECT",
    "_RULE",
    "_FLAGS",
}
FROM_THE_START |= {"_HIDDEN_LINK", "NOT_DATA"}
MODULES = (boilerplate, characters, decontaminate, filters, normalise, wiki_templates, wikipedia, wikitext)
PATTERNS = {name: value for module in MODULES for name, value in vars(module).items() if isinstance(value, re.Pattern)}
PATTERNS |= {f"personal data: {name}": pattern for name, pattern, *_ in personal_data.PERSONAL_DATA}


@pytest.mark.parametrize("name", sorted(PATTERNS.keys() - LINES))
def test_patterns(name):
    pattern = PATTERNS[name]
    assert not slow(pattern.fullmatch if name in FROM_THE_START else pattern.findall)


# --- rules ---

RULES: dict[str, Callable[[str], object]] = {
    **normalise.NORMALISERS,
    "wikipedia": lambda text: wikipedia.plain_text(text, "hant"),
    "convert_script": lambda text: characters.convert_script(text, "hant"),
    "letters": letters,
    "tokens": decontaminate.tokens,
    "passages_of_lines": lambda text: list(decontaminate.passages_of_lines(text.split("\n"))),
    "word_boundaries": word_boundaries,
}


@pytest.mark.parametrize("name", RULES)
def test_rules(name):
    assert not slow(RULES[name])


@pytest.mark.parametrize("name", filters.FILTERS)
def test_filters(name):
    """They count characters and terms; so one piece repeated is enough."""
    settings, rule = filters.Thresholds(), filters.FILTERS[name]
    pieces = [TEXTS[f"{piece} ..."] for piece in (*FILLERS, *OTHERS)]
    assert all(is_linear(lambda text: rule(filters.Page(text), settings), text_of) for text_of in pieces)
