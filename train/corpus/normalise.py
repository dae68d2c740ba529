"""Text -> clean text: encoding, markup, Unicode, references, boilerplate lines, personal data, white space.

Every normaliser is a plain function. `normalise` applies all of `NORMALISERS`.
"""

import html
import re
import unicodedata
from collections.abc import Callable

from zh_modernbert.train.corpus.boilerplate import strip_boilerplate
from zh_modernbert.train.corpus.characters import (
    REMOVED,
    code_points,
    from_code_points,
    half_width,
    in_both_scripts,
    limit_marks,
)
from zh_modernbert.train.corpus.personal_data import mask_personal_data
from zh_modernbert.train.corpus.rules import apply_rule

# --- encoding ---

# The characters of the bytes 0x80 to 0xff in Windows-1252, and in Latin-1 where Windows-1252 has none.
_AS_WESTERN = [bytes([byte]).decode("cp1252", "replace").replace("\ufffd", chr(byte)) for byte in range(0x80, 0x100)]
_WESTERN_RUN = re.compile(f"[{''.join(map(re.escape, _AS_WESTERN))}\x80-\x9f]{{3,}}")
_TO_LATIN1 = {ord(character): byte for byte, character in enumerate(_AS_WESTERN, 0x80)}
# Characters that come of the UTF-8 of 的，。「 and full-width marks read as GBK. Other text seldom has them.
MISREAD_AS_GBK = re.compile("[鐨锛銆殑紝]")


def _decoded(run: str, encode: Callable[[str], bytes]) -> str:
    """The text that the bytes of `run` are in UTF-8, else `run`. Three bytes are hardly ever valid UTF-8 by chance."""
    try:
        return encode(run).decode("utf-8")
    except UnicodeError:
        return run


def repair_encoding(text: str) -> str:
    """Undoes reading UTF-8 as Windows-1252, Latin-1 or GBK, where no byte was lost."""
    text = _WESTERN_RUN.sub(lambda run: _decoded(run[0], lambda s: s.translate(_TO_LATIN1).encode("latin-1")), text)
    if MISREAD_AS_GBK.search(text):
        text = "\n".join(_decoded(line, lambda s: s.encode("gb18030")) for line in text.split("\n"))
    return text


# --- markup ---

_TAGS = (
    "a|abbr|address|article|aside|b|big|blockquote|body|button|caption|center|cite|code|col|dd|del|div|dl|dt|em|embed|fieldset|"
    "figcaption|figure|font|footer|form|h[1-6]|head|header|hr|html|i|iframe|img|input|ins|kbd|label|legend|li|link|main|mark|"
    "meta|nav|nobr|noscript|object|ol|option|p|param|pre|q|ref|s|section|select|small|source|span|strike|strong|style|sub|sup|"
    "svg|table|tbody|td|textarea|tfoot|th|thead|title|tr|tt|u|ul|video|wbr"
)
# The search for a closing tag ends at the next opening one. Otherwise a page of opening tags would take quadratic time.
_HIDDEN_ELEMENT = re.compile(
    r"<(script|style|noscript|iframe|ref)\b[^<>]*(?<!/)>(?:(?!<\1\b).)*?</\1\s*>", re.IGNORECASE | re.DOTALL
)
_COMMENT = re.compile(r"<!--(?:(?!<!--).)*?-->", re.DOTALL)
_BREAK_TAG = re.compile(
    r"<(?:br|hr|/?(?:p|div|li|tr|ul|ol|table|h[1-6]|title|dd|dt|blockquote|option))\b[^<>]*>", re.IGNORECASE
)
_TAG = re.compile(rf"</?(?:{_TAGS}|br|script)(?:\s[^<>]*)?/?>", re.IGNORECASE)
_LEFT_OVER_TAG = re.compile(r"</[a-z]|-->|<(?:br|p|hr)\b|/>|<[a-z]+ [a-z]+=", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,30});")

_WIKI_FILE = in_both_scripts(
    r"\[\[\s*:?(?:(?i:file|image|category|media)|文件|图像|档案|分类)\s*:(?:[^\[\]]|\[\[[^\[\]]*\]\])*\]\]"
)
_WIKI_LINK = re.compile(r"\[\[(?! )(?=[^\[\]\n]*(?:[\u4e00-\u9fff]|\|))(?:[^\[\]\n|]*\|)?([^\[\]\n|]*)\]\]")
_WIKI_TEMPLATE = re.compile(r"\{\{(?! )(?=[^{}\n|]*(?:[\u4e00-\u9fff]|\|))[^{}|]*(?:\|[^{}]*)?\}\}")
_WIKI_TABLE = re.compile(r"^\{\|(?:(?!^\{\|).)*?^\|\}", re.DOTALL | re.MULTILINE)
_WIKI_VARIANT = re.compile(r"-\{([^{}]*+)\}-")
_WIKI_HEADING = re.compile(r"^ *(={2,6})([^=\n]+)\1 *$", re.MULTILINE)
_WIKI_BOLD = re.compile(r"(?<!')('{3}|'{5})(?=[^'\n]*[\u4e00-\u9fff])([^'\n]+)\1(?!')")

_BB_HIDDEN = re.compile(r"\[(img|flash|media|attach|video|audio|hide)(?:=[^\[\]]*)?\][^\[\]]*\[/\1\]", re.IGNORECASE)
_BB_TAG = re.compile(
    r"\[/?(?:b|i|u|s|url|email|img|quote|code|list|\*|color|size|font|align|center|left|right|table|tr|td|hr|backcolor|indent|"
    r"float|free|p)(?:=[^\[\]\n]{0,200})?\]",
    re.IGNORECASE,
)


def strip_html(text: str) -> str:
    """Removes tags, comments and scripts, and decodes entities.

    Text with no tag but opening ones may be about HTML, and keeps them.
    """
    if "<" in text and _LEFT_OVER_TAG.search(text):
        text = _HIDDEN_ELEMENT.sub("", text) if "</" in text else text
        text = _TAG.sub("", _BREAK_TAG.sub("\n", _COMMENT.sub("", text) if "-->" in text else text))
    return _ENTITY.sub(lambda entity: html.unescape(entity[0]), text) if "&" in text else text


def _first_variant(mark: re.Match) -> str:
    """The first word of `-{zh-hans:内存;zh-hant:記憶體}-`, behind its variant or the mark's flags."""
    first = mark[1].partition(";")[0]
    return first.rpartition(":")[2] if ":" in first else first.partition("|")[2] if "|" in first else first


def strip_wiki(text: str) -> str:
    """Replaces links and variants by what a reader sees; removes files, categories, templates, tables and marks of bold."""
    if "[[" in text:
        text = _WIKI_LINK.sub(r"\1", _WIKI_FILE.sub("", text))
    if "{{" in text:
        text = _WIKI_TEMPLATE.sub("", text)
    if "{|" in text:
        text = _WIKI_TABLE.sub("", text)
    if "-{" in text:
        text = _WIKI_VARIANT.sub(_first_variant, text)
    if "==" in text:
        text = _WIKI_HEADING.sub(r"\2", text)
    return _WIKI_BOLD.sub(r"\2", text) if "'''" in text else text


def strip_bbcode(text: str) -> str:
    return _BB_TAG.sub("", _BB_HIDDEN.sub("", text)) if "[/" in text else text


# --- characters and spaces ---


def normalise_unicode(text: str) -> str:
    """NFC, with half-width letters and digits, plain spaces and newlines, and no control or invisible characters.

    Of the marks on one character the first `MOST_MARKS` stay: NFC sorts them, which takes quadratic time.
    """
    codes = half_width()[code_points(text)]
    return unicodedata.normalize("NFC", from_code_points(limit_marks(codes[codes != REMOVED])))


def normalise_whitespace(text: str) -> str:
    """Makes runs of spaces one, and removes spaces at the ends of lines and blank lines."""
    if "  " in text:
        text = re.sub(" {2,}", " ", text)
    return "\n".join(line for line in map(str.strip, text.split("\n")) if line)


# --- references ---

_URL = r"(?:(?:https?|ftp)://|(?<![A-Za-z0-9.])www\.)[A-Za-z0-9\-._~:/?#\[\]@!$&'*+,;=%]+(?<![.,;:!?'])"
_MARKDOWN_LINK = re.compile(rf"(!?)\[([^\[\]\n]{{0,300}})\]\(\s*<?{_URL}>?[^()\n]{{0,200}}\)", re.IGNORECASE)
_ANY_URL = re.compile(rf"[（(<【]\s*{_URL}\s*[）)>】]|{_URL}", re.IGNORECASE)
_CITATIONS = in_both_scripts(
    r"(?<=[\u3400-\u9fff，。、；：！？」』”’）》％%])(?:[\[［](?:\d{1,3}|[注註] ?\d{0,3})[\]］])+"
    r"|[\[［](?:来源请求|原创研究|[注註] ?\d{1,3}|(?i:citation needed))[\]］]"
    r"|(?<=[\u3400-\u9fff])\[(?:编辑|编辑源代码)\](?=\n|$)"
)


def strip_urls(text: str) -> str:
    """Removes URLs and Markdown images, and replaces Markdown links by their text."""
    if "://" in text or "www." in text.lower():
        if "](" in text:
            text = _MARKDOWN_LINK.sub(lambda link: "" if link[1] else link[2], text)
        text = _ANY_URL.sub("", text)
    return text


def strip_citations(text: str) -> str:
    """Removes [1] and [注 2] after Chinese. `a[1]` is code and stays."""
    return _CITATIONS.sub("", text) if "[" in text or "［" in text else text


NORMALISERS = {
    rule.__name__: rule
    for rule in (
        repair_encoding,
        strip_html,
        strip_wiki,
        strip_bbcode,
        normalise_unicode,
        strip_urls,
        strip_citations,
        normalise_whitespace,
        strip_boilerplate,
        mask_personal_data,
    )
}


def normalise(text: str) -> tuple[str, list[str]]:
    """The text after all normalisers, and the names of those that changed it.

    They run again until nothing changes, at most ten times, because one can make text that another changes.

    Raises:
        RuleError: a normaliser raised.
    """
    changed = {}
    for _ in range(10):
        before = text
        for name, normaliser in NORMALISERS.items():
            after = apply_rule(normaliser, text)
            if after != text:
                changed[name] = True
                text = after
        if text == before:
            break
    return text, list(changed)
