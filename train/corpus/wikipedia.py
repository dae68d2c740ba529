"""A Chinese Wikipedia dump (`zhwiki-*-pages-articles*.xml`) -> the plain text of its articles.

mwparserfromhell parses the wikitext. This module adds what it does not know: language conversion
(`-{zh-hans:程序;zh-hant:程式}-` and NoteTA), templates that stand for words of a sentence, Chinese names of namespaces, and
sections without prose.
"""

import re
from collections.abc import Iterator
from io import BufferedIOBase
from operator import ne
from urllib.parse import quote
from xml.parsers import expat

import mwparserfromhell
from mwparserfromhell.nodes import Argument, ExternalLink, Heading, HTMLEntity, Tag, Template, Text, Wikilink
from mwparserfromhell.wikicode import Wikicode

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.corpus.characters import convert_script, converter

# Marks in unfinished text: around a span whose script is fixed, before a heading and its level, for the colon of a definition.
# XML cannot hold these characters, so no page has them.
OPEN, CLOSE, HEADING, COLON = "\x01", "\x02", "\x03", "\x04"

# --- XML -> pages ---


def read_pages(file: BufferedIOBase) -> Iterator[tuple[int, dict]]:
    """(number of its first line, fields) of every page of a dump: `title`, `ns`, `id`, `redirect`, `revision/text`, `base` ...

    Hardly more than one page is in memory at a time. A document type could declare entities and no dump has one, so it is
    refused.

    Raises:
        InputError: the file is no MediaWiki dump.
        expat.ExpatError: the file is not well-formed XML.
    """
    parser = expat.ParserCreate()
    parser.buffer_text, parser.buffer_size = True, 1 << 20
    path, value, pages, site = [], [], [], {}

    def start(tag: str, _attributes: dict):
        if not path and tag != "mediawiki":
            raise InputError(f"not a MediaWiki dump: its root is <{tag}>")
        path.append(tag)
        value.clear()
        if path[1:] == ["page"]:
            pages.append((parser.CurrentLineNumber, dict(site)))

    def end(_tag: str):
        if path[1:2] == ["page"]:
            pages[-1][1]["/".join(path[2:])] = "".join(value)
        elif path[1:] == ["siteinfo", "base"]:
            site["base"] = "".join(value)
        path.pop()
        value.clear()

    def refuse(*_):
        raise InputError("a document type, which no MediaWiki dump has")

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, value.append
    parser.StartDoctypeDeclHandler = refuse
    while chunk := file.read(1 << 18):
        parser.Parse(chunk)
        while len(pages) > (path[1:2] == ["page"]):  # the last page is unfinished while the parser is inside it
            yield pages.pop(0)
    parser.Parse(b"", True)


_DISAMBIGUATION = re.compile(
    r"__DISAMBIG__|\{\{\s*(?:[^{}|\n]*(?<!需要)消歧[义義]頁?页?|[^{}|\n]*disambig(?:uation)?|disamb|dab|[a-z]{2,8}dis)\s*(?:\||\}\})",
    re.IGNORECASE,
)
_REDIRECT = re.compile(r"\s*#(?:redirect|重定向)", re.IGNORECASE)


def is_article(page: dict) -> bool:
    """Whether a page is in the main namespace, and neither a redirect nor a disambiguation."""
    if page.get("ns") != "0" or not {"id", "title", "revision/text"} <= page.keys():
        return False
    wikitext = page["revision/text"]
    return not ("redirect" in page or _REDIRECT.match(wikitext) or _DISAMBIGUATION.search(wikitext) or "(消歧" in page["title"])


def read_articles(file: BufferedIOBase, script: str | None = None) -> Iterator[tuple[int, dict]]:
    """(number of its first line, row) of every article of a dump, rendered by `plain_text`.

    Raises:
        InputError, expat.ExpatError: as `read_pages`.
    """
    for number, page in read_pages(file):
        if is_article(page):
            title = page["title"]
            row = {"id": page["id"], "title": title, "text": plain_text(page["revision/text"], script), "script": script}
            if "base" in page:
                row["url"] = f"{page['base'].rpartition('/')[0]}/{quote(title.replace(' ', '_'))}"
            yield number, row


# --- language conversion (https://www.mediawiki.org/wiki/Writing_systems/Syntax) ---

# The variants that may be shown in each script. The first that a rule has is taken.
VARIANTS = {"hans": ("zh-cn", "zh-hans", "zh-sg", "zh-my", "zh"), "hant": ("zh-tw", "zh-hant", "zh-hk", "zh-mo", "zh")}
_VARIANT = r"zh(?:-(?:hans|hant|cn|tw|hk|mo|sg|my))?"
_RULE_END = re.compile(rf";(?=\s*(?:[^;]*?=>\s*)?{_VARIANT}\s*:|\s*$)")
_RULE = re.compile(rf"\s*(?:.*?=>\s*)?({_VARIANT})\s*:\s*(.*?)\s*", re.DOTALL)
# A conversion mark with no other inside, or an element whose braces are its own. `-{{` is a hyphen before a template.
_MARK = re.compile(r"<(math|chem|ce|nowiki)\b[^<>]*>.*?</\1\s*>|-\{(?!\{[^{])((?:(?!-\{|\}-).)*)\}-", re.DOTALL | re.IGNORECASE)
_FLAGS = re.compile(rf"\s*(?:([A-Z+\-][A-Z+\-;\s]*)|{_VARIANT}(?:\s*;\s*{_VARIANT})*)\|")
_NOTE_TA = re.compile(r"\{\{\s*NoteTA\s*\|(.*?)\}\}", re.DOTALL | re.IGNORECASE)


def dominant_script(text: str) -> str:
    """The script of more of the characters that only one script has; hans if both have as many."""
    hans = sum(map(ne, text, converter("s2t").convert(text)))
    hant = sum(map(ne, text, converter("t2s").convert(text)))
    return "hant" if hant > hans else "hans"


def readings(rules: str) -> dict[str, str]:
    """`zh-hans:程序;zh-hant:程式` as a mapping from variant to word; empty if the text has another form."""
    stated = [rule for rule in _RULE_END.split(rules) if rule.strip()]
    matches = [match for rule in stated if (match := _RULE.fullmatch(rule))]
    return {match[1]: match[2] for match in matches} if len(matches) == len(stated) else {}


def reading_for(script: str, by_variant: dict[str, str]) -> str:
    return next((by_variant[v] for v in VARIANTS[script] if v in by_variant), next(iter(by_variant.values())))


def resolve_marks(wikitext: str, script: str) -> tuple[str, dict[str, str]]:
    """Replaces each conversion mark by its reading in one script, between OPEN and CLOSE.

    Returns:
        The wikitext, and the words that the page wants replaced everywhere, with their replacements.
    """
    words = {}

    def add_words(by_variant: dict[str, str]) -> None:
        wanted = reading_for(script, by_variant)
        words.update({word: wanted for word in by_variant.values() if word and word != wanted})

    def resolve(mark: re.Match) -> str:
        if mark[1]:
            return mark[0]
        prefix = _FLAGS.match(mark[2])
        rules = mark[2][prefix.end() :] if prefix else mark[2]
        flags = set(prefix[1] or "") if prefix else set()
        by_variant = readings(rules)
        if by_variant and flags & set("AH"):
            add_words(by_variant)
        if flags & set("HTDN+-"):
            return ""
        return OPEN + (reading_for(script, by_variant) if by_variant else rules) + CLOSE

    for note in _NOTE_TA.findall(wikitext):
        for parameter in note.split("|"):
            key, equals, value = parameter.partition("=")
            by_variant = readings(value if equals and key.strip().isdecimal() else parameter)
            if by_variant:
                add_words(by_variant)
    before = None
    while wikitext != before:
        before, wikitext = wikitext, _MARK.sub(resolve, wikitext)
    return wikitext, words


def render(text: str, script: str, words: dict[str, str]) -> str:
    """The text in one script, as its readers see it.

    Spans between OPEN and CLOSE stay, `words` get their replacements, and OpenCC converts the rest.
    """
    fixed = re.compile("|".join([f"{OPEN}[^{CLOSE}]*{CLOSE}", *map(re.escape, sorted(words, key=len, reverse=True))]))
    pieces, end = [], 0
    for match in fixed.finditer(text):
        pieces += convert_script(text[end : match.start()], script), words.get(match[0], match[0])
        end = match.end()
    return "".join([*pieces, convert_script(text[end:], script)])


# --- wikitext -> text ---

# Comments, and elements without prose.
_DROPPED = re.compile(
    r"<!--.*?-->|<(ref|references|gallery|timeline|score|imagemap|hiero|graph|mapframe|maplink|syntaxhighlight|source|pre|templatedata"
    r"|templatestyles|inputbox|categorytree|indicator|section)\b[^<>]*?(?:/>|>.*?</\1\s*>)",
    re.DOTALL | re.IGNORECASE,
)
_BLOCKS = {"p", "div", "blockquote", "center", "poem", "li", "dt", "hr", "br"}
_HIDDEN_LINK = re.compile(
    r"\s*(?:(?:file|image|media|category|文件|檔案|档案|图像|圖像|图片|圖片|媒体|媒體|分类|分類)|(?-i:[a-z]{2,3}(?:-[a-z-]+)?))\s*:",
    re.IGNORECASE,
)
# Templates that stand for words of a sentence, by the parameters shown: "12" is 1 and 2 together, "3 1" is 3, or 1 if 3 is
# empty.
_SHOWN = {
    name: parameters
    for parameters, names in {
        "12": "convert cvt",
        "1": "nowrap nobr small smaller big larger nobold abbr sub sup linktext flag flagcountry ruby nihongo 僻字 quote "
        "cquote quotation blockquote illm ill2 liw 多語言連結",
        "2": "lang color transl ill",
        "3 1": "le ilh",
        "4 3": "tsl translink",
    }.items()
    for name in names.split()
}
_SHOWN_FAMILIES = {"lang-": "1", "link-": "3 1", "internal link helper": "3 1"}
_TEMPLATE = re.compile(r"<(math|chem|ce|nowiki)\b[^<>]*>.*?</\1\s*>|\{\{([^{}|]*)(?:\|[^{}]*)?\}\}", re.DOTALL | re.IGNORECASE)
_NO_PROSE = re.compile(
    r"(?:参考|参照|引用|资料|来源|文献|书目|书籍|资料来源|注|注释|注解|注脚|脚注|附注|备注|出处"
    r"|外部(?:链接|连结|连接|链结)|参见|参看|参阅|另见|相关条目|相关链接|相关连结|延伸阅读|扩展阅读|画廊|图集|图库|与|和|及|以及|、|/|\s)+"
)
_ADDRESS = "".join(map(chr, range(33, 127)))
_MAGIC_WORD = re.compile(r"__[^\W\d_]+__")
_EMPTY_BRACKETS = re.compile(r"（[\s，、；：:;,·/]*）|\([\s，、；：:;,·/]*\)")
_AFTER_BRACKET = re.compile(r"([（(])[\s，、；：;,]+")
_BEFORE_BRACKET = re.compile(r"[\s，、；：;,]+(?=[）)])")
_HANGING = re.compile(r"[，、；]+(?=[，。；])|\s+(?=[，。、；：！？）])")
_UNPAIRED = re.compile(
    rf"({OPEN}[^{CLOSE}]*{CLOSE})|" r"'{2,}|\[\[|\]\]|\{\{|\}\}|</?(?:ref|small|div|span|center|font|b|i)\b[^<>]*>",
    re.IGNORECASE,
)
_DEFINITION = re.compile(rf"\s*{COLON}\s*")
_SPACES = re.compile(r"[ \t\u00a0]+")


def shown_parameters(name: str) -> str:
    name = name.strip().replace("_", " ").lower()
    return _SHOWN.get(name) or next((shown for prefix, shown in _SHOWN_FAMILIES.items() if name.startswith(prefix)), "")


def drop_templates(wikitext: str) -> str:
    """Removes the templates that show nothing. The parser would spend most of its time on them."""

    def drop(match: re.Match) -> str:
        return match[0] if match[1] or shown_parameters(match[2]) else ""

    before = None
    while wikitext != before:
        before, wikitext = wikitext, _TEMPLATE.sub(drop, wikitext)
    return wikitext


def template_text(template: Template) -> str:
    for together in shown_parameters(str(template.name)).split():
        text = "".join(text_of(template.get(name).value) for name in together if template.has(name))
        if text.strip():
            return text
    return ""


def tag_text(tag: Tag) -> str:
    name = str(tag.tag).strip().lower()
    if name == "table":
        return ""
    if tag.wiki_markup in ("*", "#", ":", ";"):
        return COLON if name == "dd" else ""
    contents = text_of(tag.contents)
    if name in ("math", "chem", "ce", "nowiki"):
        return OPEN + contents.strip() + CLOSE
    return f"\n{contents}\n" if name in _BLOCKS else contents


def text_of(code: Wikicode | None) -> str:
    """What a reader sees of the nodes, with marks: HEADING and the level before a heading, COLON before a definition."""
    pieces = []
    for node in code.nodes if code else ():
        match node:
            case Text():
                pieces.append(node.value)
            case Wikilink():
                if not _HIDDEN_LINK.match(str(node.title)):
                    pieces.append(text_of(node.title if node.text is None else node.text).removeprefix(":"))
            case Tag():
                pieces.append(tag_text(node))
            case Template():
                pieces.append(template_text(node))
            case Heading():
                pieces.append(f"\n{HEADING}{node.level}{text_of(node.title).strip()}\n")
            case ExternalLink():
                # The parser takes Chinese directly after a bare address for a part of it.
                pieces.append(text_of(node.title) if node.title else str(node.url).lstrip(_ADDRESS))
            case HTMLEntity():
                pieces.append(node.normalize())
            case Argument():
                pieces.append(text_of(node.default))
    return "".join(pieces)


def tidy(line: str) -> str:
    """The line without the traces of dropped templates, references and unpaired markup; empty for a part of a broken table."""
    line = _UNPAIRED.sub(lambda match: match[1] or "", _MAGIC_WORD.sub("", line))
    before = None
    while line != before:
        before = line
        line = _BEFORE_BRACKET.sub("", _AFTER_BRACKET.sub(r"\1", _EMPTY_BRACKETS.sub("", line)))
    line = _SPACES.sub(" ", _HANGING.sub("", line)).strip().lstrip(COLON)
    line = _DEFINITION.sub("：", line).strip()
    return "" if line.startswith(("|", "!", "{|")) else line


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


def plain_text(wikitext: str, script: str | None = None) -> str:
    """The prose of an article. Each paragraph, heading and list item is a line.

    Args:
        script: hans or hant to render the text in it. Without, the text stays as written, in any mixture of scripts, and
            conversion marks become the reading of the page's dominant script.
    """
    wikitext = _DROPPED.sub("", wikitext)
    words = {}
    if script or "-{" in wikitext:
        wikitext, words = resolve_marks(wikitext, script or dominant_script(wikitext))
    lines = map(tidy, text_of(mwparserfromhell.parse(drop_templates(wikitext))).split("\n"))
    text = "\n".join(with_prose([line for line in lines if line]))
    if script:
        text = render(text, script, words)
    return text.replace(OPEN, "").replace(CLOSE, "")
