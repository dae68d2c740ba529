"""A Chinese Wikipedia dump (`zhwiki-*-pages-articles*.xml`) -> the plain text of its articles.

This module reads the dump, and knows language conversion (`-{zh-hans:程序;zh-hant:程式}-` and NoteTA). Other markup is for
train/corpus/wikitext.py, and templates for train/corpus/wiki_templates.py.
"""

import re
from collections.abc import Iterator
from functools import cached_property
from io import BufferedIOBase
from operator import ne
from pathlib import Path
from urllib.parse import quote
from xml.parsers import expat

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.corpus.characters import convert_script, converter
from zh_modernbert.train.corpus.lines import STRICT, BadLines
from zh_modernbert.train.corpus.rules import RuleError, apply_rule
from zh_modernbert.train.corpus.wiki_templates import split_template, template_text
from zh_modernbert.train.corpus.wikitext import CLOSE, OPEN, cut_elements, lines_of, put_back, replace_nested

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


_TEMPLATE_NAME = re.compile(r"\{\{([^{}|]*+)(?:\||\}\})")
_DISAMBIGUATION = re.compile(
    r"[^\n]*(?:(?<!需要)消歧[义義](?:頁|页)?|disambig(?:uation)?)|disamb|dab|[a-z]{2,8}dis", re.IGNORECASE
)
_REDIRECT = re.compile(r"\s*#(?:redirect|重定向)", re.IGNORECASE)


def is_article(page: dict) -> bool:
    """Whether a page is in the main namespace, and neither a redirect nor a disambiguation."""
    if page.get("ns") != "0" or not {"id", "title", "revision/text"} <= page.keys():
        return False
    wikitext = page["revision/text"]
    if "redirect" in page or "(消歧" in page["title"] or "__DISAMBIG__" in wikitext or _REDIRECT.match(wikitext):
        return False
    return not any(_DISAMBIGUATION.fullmatch(name.strip()) for name in _TEMPLATE_NAME.findall(wikitext))


def article_of(page: dict, script: str | None) -> dict | None:
    """The row of a page, rendered by `plain_text`; None if it is no article."""
    if not is_article(page):
        return None
    title = page["title"]
    row = {"id": page["id"], "title": title, "text": apply_rule(plain_text, page["revision/text"], script), "script": script}
    if "base" in page:
        row["url"] = f"{page['base'].rpartition('/')[0]}/{quote(title.replace(' ', '_'))}"
    return row


def read_articles(
    file: BufferedIOBase, script: str | None = None, path: str | Path = "", bad_lines: BadLines = STRICT
) -> Iterator[tuple[int, dict]]:
    """(number of its first line, row) of every article of a dump.

    Args:
        path: what the dump is called.
        bad_lines: is told of a page on which a rule raises, with its id and the rule's name, as if the page were a line.

    Raises:
        InputError, expat.ExpatError: as `read_pages`.
    """
    pages = 0
    for number, page in read_pages(file):
        pages += 1
        try:
            row = apply_rule(article_of, page, script)
        except RuleError as error:
            bad_lines.report(path, number, f"page {page.get('id')}, {error}", page.get("revision/text", ""))
        else:
            if row:
                yield number, row
    bad_lines.end_file(path, pages)


# --- language conversion (https://www.mediawiki.org/wiki/Writing_systems/Syntax) ---

# The variants that may be shown in each script. The first that a rule has is taken.
VARIANTS = {"hans": ("zh-cn", "zh-hans", "zh-sg", "zh-my", "zh"), "hant": ("zh-tw", "zh-hant", "zh-hk", "zh-mo", "zh")}
_VARIANT = r"zh(?:-(?:hans|hant|cn|tw|hk|mo|sg|my))?"
_RULE = re.compile(rf"(?:[^:=]*+=>)?\s*({_VARIANT})\s*:")
_MARK = re.compile(r"-\{(?!\{[^{])|(\}-)")  # `-{{` is a hyphen before a template
_FLAGS = re.compile(rf"\s*(?:([A-Z+\-][A-Z+\-;\s]*+)|{_VARIANT}(?:\s*;\s*{_VARIANT})*)\|")
_TEMPLATE = re.compile(r"\{\{|(\}\})")
_SPAN = re.compile(f"{OPEN}[^{OPEN}{CLOSE}]*+{CLOSE}")
LONGEST_WORD = 64  # of those that a page wants replaced everywhere


def dominant_script(text: str) -> str:
    """The script of more of the characters that only one script has; hans if both have as many."""
    hans = sum(map(ne, text, converter("s2t").convert(text)))
    hant = sum(map(ne, text, converter("t2s").convert(text)))
    return "hant" if hant > hans else "hans"


def readings(rules: str) -> dict[str, str]:
    """`zh-hans:程序;zh-hant:程式` as a mapping from variant to word; empty if the text has another form.

    A semicolon with no variant behind belongs to the word.
    """
    words, variant = {}, None
    for piece in rules.split(";"):
        if rule := _RULE.match(piece.lstrip()):
            variant = rule[1]
            words[variant] = [piece.lstrip()[rule.end() :]]
        elif variant:
            words[variant].append(piece)
        elif piece.strip():
            return {}
    return {variant: ";".join(word).strip().removesuffix(";").rstrip() for variant, word in words.items()}


def reading_for(script: str, by_variant: dict[str, str]) -> str:
    return next((by_variant[v] for v in VARIANTS[script] if v in by_variant), next(iter(by_variant.values())))


class Conversion:
    """Language conversion of one page.

    Attributes:
        words: those that the page wants replaced everywhere, with their replacements.
        script: the one that was asked for, else the page's dominant one, which is found out when it is needed.
    """

    def __init__(self, wikitext: str, script: str | None):
        self.wikitext, self.given, self.words = wikitext, script, {}

    @cached_property
    def script(self) -> str:
        return self.given or dominant_script(self.wikitext)

    def add_words(self, by_variant: dict[str, str]) -> None:
        if by_variant:
            wanted = reading_for(self.script, by_variant)
            self.words.update({w: wanted for w in by_variant.values() if w and w != wanted and len(w) <= LONGEST_WORD})

    def reading(self, mark: str) -> str:
        """What a conversion mark shows, between OPEN and CLOSE. Its words are noted if it says so."""
        mark = mark.replace(OPEN, "").replace(CLOSE, "")
        prefix = _FLAGS.match(mark)
        rules = mark[prefix.end() :] if prefix else mark
        flags = set(prefix[1] or "") if prefix else set()
        by_variant = readings(rules)
        if flags & set("AH"):
            self.add_words(by_variant)
        if flags & set("HTDN+-"):
            return ""
        return OPEN + (reading_for(self.script, by_variant) if by_variant else rules) + CLOSE

    def template(self, inside: str) -> str:
        """What a template shows. The words of NoteTA are noted."""
        name, values, named = split_template(inside)
        if name.lower() != "noteta":
            return template_text(inside, self.script)
        for rules in (*values, *(value for key, value in named.items() if key.isdecimal())):
            self.add_words(readings(rules))
        return ""

    def render(self, text: str) -> str:
        """The text in one script, as its readers see it. Spans between OPEN and CLOSE stay."""
        replaced = WordReplacer(self.words, self.script)
        pieces, end = [], 0
        for span in _SPAN.finditer(text):
            pieces += replaced(text[end : span.start()]), span[0]
            end = span.end()
        return "".join([*pieces, replaced(text[end:])])


class WordReplacer:
    """Gives a text in one script, with some words replaced; of those that begin at one place the longest."""

    def __init__(self, words: dict[str, str], script: str):
        self.words, self.script = words, script
        lengths = {}
        for word in words:
            lengths.setdefault(word[0], set()).add(len(word))
        self.lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        self.firsts = re.compile(f"[{''.join(map(re.escape, lengths))}]" if lengths else "(?!)")

    def __call__(self, text: str) -> str:
        pieces, end = [], 0
        for first in self.firsts.finditer(text):
            place = first.start()
            if place < end:
                continue  # inside a word
            found = (text[place : place + length] for length in self.lengths[first[0]])
            if word := next((word for word in found if word in self.words), None):
                pieces += convert_script(text[end:place], self.script), self.words[word]
                end = place + len(word)
        return "".join([*pieces, convert_script(text[end:], self.script)])


# --- wikitext -> text ---


def plain_text(wikitext: str, script: str | None = None) -> str:
    """The prose of an article. Each paragraph, heading and list item is a line.

    Args:
        script: hans or hant to render the text in it. Without, the text stays as written, in any mixture of scripts, and
            conversion marks become the reading of the page's dominant script.
    """
    kept = []
    wikitext = cut_elements(wikitext, kept)
    conversion = Conversion(wikitext, script)
    wikitext = replace_nested(wikitext, _MARK, conversion.reading)
    wikitext = replace_nested(wikitext, _TEMPLATE, conversion.template)
    text = put_back("\n".join(lines_of(wikitext)), kept)
    if script:
        text = conversion.render(text)
    return text.replace(OPEN, "").replace(CLOSE, "")
