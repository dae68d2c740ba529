"""Wikitext -> lines of text, in one pass for each kind of markup, so that no page takes more than linear time.

Templates come in between, from train/corpus/wiki_templates.py. Markup that is not closed, or nested too deep, is text.
"""

import html
import re
from collections.abc import Callable

from zh_modernbert.train.corpus.characters import converter

# Marks in unfinished text. XML cannot hold these characters, and entities do not give them, so no page has them.
OPEN, CLOSE = "\x01", "\x02"  # around a span whose script is fixed
HEADING = "\x03"  # before a heading and its level
LOST = "\x04"  # where a sentence lacks a number or a word, and has to go
GAP = "\x05"  # where a template stood of which nothing is known
KEPT, END = "\x06", "\x07"  # around the number of a text that was set aside

MOST_DEPTH = 20  # of nested templates, links, tables, brackets

# --- nesting ---


def replace_nested(text: str, token: re.Pattern, replace: Callable[[str], str], depth: int = MOST_DEPTH) -> str:
    """Replaces what stands between an opening and its closing token, inner ones first.

    Tokens without their counterpart, and those nested deeper than `depth`, stay.

    Args:
        token: matches opening tokens, and closing ones as group 1.
        replace: is given what stands between the tokens.
    """
    levels, deeper, end = [[]], 0, 0
    while match := token.search(text, end):
        levels[-1].append(text[end : match.start()])
        end = match.end()
        closes = match[1] is not None
        if closes and len(levels) == 1:  # it closes nothing, so that its end may be the start of another: }-{
            end = match.start() + 1
            levels[-1].append(match[0][0])
            continue
        if not closes and len(levels) <= depth:
            levels.append([match[0]])
        elif closes and not deeper:
            inside = "".join(levels.pop()[1:])
            levels[-1].append(replace(inside))
        else:
            levels[-1].append(match[0])
            deeper = max(deeper + (-1 if closes else 1), 0)
    return "".join([piece for level in levels for piece in level] + [text[end:]])


# --- elements ---

# Elements without prose, and those whose contents are no wikitext.
_NO_WIKITEXT = "math|chem|ce|nowiki"
_NAME = re.compile(r"!--|\w+")
_ELEMENT = re.compile(
    r"<(!--|(?:ref|references|gallery|timeline|score|imagemap|hiero|graph|mapframe|maplink|syntaxhighlight|source|pre|table"
    rf"|templatedata|templatestyles|inputbox|categorytree|indicator|section|{_NO_WIKITEXT})\b[^<>]*+>)",
    re.IGNORECASE,
)
_BLOCK = re.compile(r"</?(?:p|div|blockquote|center|poem|li|dt|hr|br)(?:\s[^<>]*+)?/?>", re.IGNORECASE)
_SUPERSCRIPT = re.compile(r"<sup(?:\s[^<>]*+)?>([-−+0-9n]{1,9})</sup\s*+>", re.IGNORECASE)
_TAG = re.compile(r"</?[a-z][a-z0-9]*+(?:\s[^<>]*+)?/?>", re.IGNORECASE)
_RAISED = str.maketrans("0123456789+-−n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻ⁿ")


def superscript(text: str) -> str:
    """The text in raised characters, if it is a number. Without them 10<sup>6</sup> would become 106."""
    return text.translate(_RAISED) if re.fullmatch(r"[-−+0-9n]+", text) else text


def cut_elements(wikitext: str, kept: list[str]) -> str:
    """The wikitext without comments and elements that have no prose.

    Formulas and the like, which are no wikitext, are added to `kept`, and stand as their numbers there.
    """
    closings, pieces, end = {}, [], 0
    for start in _ELEMENT.finditer(wikitext):
        if start.start() < end:
            continue
        name = _NAME.findall(start[1])[0].lower()
        pieces.append(wikitext[end : start.start()])
        end = start.end()
        if start[1].endswith("/>"):
            continue
        closing = closings.get(name, start)  # the last one found; None if there is no more
        if closing is not None and closing.start() < end:
            pattern = "-->" if name == "!--" else rf"</{name}\s*+>"
            closing = closings[name] = re.compile(pattern, re.IGNORECASE).search(wikitext, end)
        if closing is not None:
            if name in _NO_WIKITEXT.split("|"):
                pieces.append(f"{KEPT}{len(kept)}{END}")
                kept.append(" ".join(wikitext[end : closing.start()].split()))
            end = closing.end()
    return "".join([*pieces, wikitext[end:]])


def put_back(text: str, kept: list[str]) -> str:
    return re.sub(f"{KEPT}(\\d+){END}", lambda match: f"{OPEN}{unescape(kept[int(match[1])])}{CLOSE}", text)


# --- links, tables, entities ---

_HIDDEN_LINK = re.compile(
    r"\s*(?:(?:file|image|media|category|文件|檔案|档案|图像|圖像|图片|圖片|媒体|媒體|分类|分類)|(?-i:[a-z]{2,3}(?:-[a-z-]+)?))\s*:",
    re.IGNORECASE,
)
_LINK = re.compile(r"\[\[|(\]\])")
_TABLE = re.compile(r"^[ \t:*]*+\{\||^[ \t]*+(\|\})(?!\})", re.MULTILINE)
_EXTERNAL_LINK = re.compile(r"\[(?:(?:https?|ftp)?:?//|mailto:)[^\s\[\]<>]*+([^\[\]\n]*+)\]", re.IGNORECASE)
_ADDRESS = re.compile(r"(?:https?|ftp)://[!-~]*+", re.IGNORECASE)  # Chinese directly behind belongs to the text
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,30});")


def link_text(inside: str) -> str:
    target, bar, text = inside.partition("|")
    if _HIDDEN_LINK.match(target):
        return ""
    return text if bar else target.removeprefix(":")


def unescape(text: str) -> str:
    """The text with entities decoded. Those of no character (controls, surrogates) are nothing."""
    return _ENTITY.sub(lambda entity: html.unescape(entity[0]).replace("\ufffd", ""), text)


# --- lines ---

_LEFT_OVER = re.compile(r"'{2,}+|\[\[|\]\]|\{\{|\}\}|__[^\W\d_]++__")
_NO_PROSE = re.compile(
    r"(?:参考|参照|引用|资料|来源|文献|书目|书籍|注释|注解|注脚|注|脚注|附注|备注|出处"
    r"|外部(?:链接|连结|连接|链结)|参见|参看|参阅|另见|相关条目|相关链接|相关连结|延伸阅读|扩展阅读|画廊|图集|图库|与|和|以及|及|、|/|\s)++"
)
_BRACKETS = {pair: re.compile(rf"\{pair[0]}|(\{pair[1]})") for pair in ("（）", "()")}
_HANGING = re.compile(r"[，、；]++。?|(?<!\s)\s++(?=[，。、：！？）])")
_SPACES = re.compile(r"\s++")
_HOLE = re.compile(rf"(?<=\w) *+{GAP}[ {GAP}]*+(?=\w)")
_SENTENCE = re.compile(r"[^。！？]*+[。！？]*+[」』”’）)]*+")


def tidy_brackets(line: str) -> str:
    """Drops what dropped templates left at the ends of brackets, and the brackets that have no text or lack some of it."""

    def tidy_bracket(inside: str) -> str:
        text = inside.strip(f" \t\u3000\xa0，、；：;,{GAP}")
        return f"{pair[0]}{text}{pair[1]}" if text.strip(":·/") and LOST not in text else ""

    for pair, token in _BRACKETS.items():
        line = replace_nested(line, token, tidy_bracket) if pair[0] in line else line
    return line


def thin_out(match: re.Match) -> str:
    """Of marks that came to stand together the last, and a full stop rather than commas. 、 behind a comma stays."""
    run = match[0]
    if run.isspace():
        return ""
    last = max(run.rfind(mark) for mark in "，；。")
    return run[max(last, 0) :]


def tidy(line: str) -> str:
    """The line without traces of dropped templates and unpaired markup, and without sentences that lack a word or number."""
    line = unescape(_LEFT_OVER.sub("", line))
    line = _SPACES.sub(" ", tidy_brackets(_HOLE.sub(LOST, line)).replace(GAP, ""))
    if LOST in line:
        line = "".join(sentence for sentence in _SENTENCE.findall(line) if LOST not in sentence)
    return _HANGING.sub(thin_out, line).strip()


def text_of_line(line: str) -> str:
    """What a reader sees of a line, with HEADING and the level before a heading; empty for a part of a broken table."""
    line = line.strip()
    if line.startswith(("|", "!", "{|")):
        return ""
    if line.startswith("=") and line.endswith("=") and (title := line.strip("=")):
        level = min(len(line) - len(line.lstrip("=")), len(line) - len(line.rstrip("=")), 6)
        title = tidy(title)
        return f"{HEADING}{level}{title}" if title else ""
    text = line.lstrip("*#:;")
    if ";" in line[: len(line) - len(text)]:
        term, _, definition = map(tidy, text.partition(":"))
        return f"{term}：{definition}" if term and definition else term or definition
    return tidy(text)


def with_prose(lines: list[str]) -> list[str]:
    """Drops the sections that list sources and links, then the headings without text below."""
    kept, dropped_level = [], 9
    for line in lines:
        if line.startswith(HEADING) and int(line[1]) <= dropped_level:
            dropped_level = int(line[1]) if _NO_PROSE.fullmatch(converter("t2s").convert(line[2:])) else 9
        if dropped_level == 9:
            kept.append(line)
    prose, below = [], 0  # below: the level of the line kept last; 9 for text
    for line in reversed(kept):
        level = int(line[1]) if line.startswith(HEADING) else 9
        if level == 9 or level < below:
            prose.append(line[2:] if level < 9 else line)
            below = level
    return prose[::-1]


def lines_of(wikitext: str) -> list[str]:
    """The lines of prose in wikitext without templates: paragraphs, headings and list items."""
    wikitext = replace_nested(replace_nested(wikitext, _TABLE, lambda _: ""), _LINK, link_text)
    wikitext = _ADDRESS.sub("", _EXTERNAL_LINK.sub(lambda link: link[1].strip(), wikitext))
    wikitext = _SUPERSCRIPT.sub(lambda match: superscript(match[1]), wikitext)
    lines = map(text_of_line, _TAG.sub("", _BLOCK.sub("\n", wikitext)).split("\n"))
    return with_prose([line for line in lines if line])
