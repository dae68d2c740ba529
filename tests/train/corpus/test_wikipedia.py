"""Dumps of Chinese Wikipedia: XML to pages, conversion marks to readings, wikitext to prose."""

import bz2
import gzip
import io
import random
import re
import tracemalloc
from xml.parsers.expat import ExpatError
from xml.sax.saxutils import escape

import pytest
import zstandard

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.corpus.source import Source, read_source
from zh_modernbert.train.corpus.wikipedia import plain_text, read_articles, read_pages

HEAD = (
    '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xml:lang="zh">\n'
    "<siteinfo><base>https://zh.wikipedia.org/wiki/Wikipedia:%E9%A6%96%E9%A1%B5</base></siteinfo>\n"
)
TAIL = "</mediawiki>\n"


def page(title: str, wikitext: str, number: int = 1, namespace: int = 0, more: str = "") -> str:
    return (
        f"<page>\n<title>{escape(title)}</title>\n<ns>{namespace}</ns>\n<id>{number}</id>\n{more}<revision>\n<id>99</id>\n"
        f"<contributor><username>甲</username><id>77</id></contributor>\n<text>{escape(wikitext)}</text>\n</revision>\n</page>\n"
    )


def dump(*pages: str) -> bytes:
    return "".join([HEAD, *pages, TAIL]).encode()


def articles(*pages: str) -> list[dict]:
    return [row for _, row in read_articles(io.BytesIO(dump(*pages)))]


# --- XML ---


def test_articles_have_their_own_id_title_and_address():
    rows = list(read_articles(io.BytesIO(dump(page("甲 <乙>", "正文&amp;。", 5), page("AT&T", "第二篇。", 6)))))
    assert [number for number, _ in rows] == [3, 13], "the line where the page begins"
    assert [row for _, row in rows] == [
        {"id": "5", "title": "甲 <乙>", "text": "正文&。", "script": None}
        | {"url": "https://zh.wikipedia.org/wiki/%E7%94%B2_%3C%E4%B9%99%3E"},
        {"id": "6", "title": "AT&T", "text": "第二篇。", "script": None, "url": "https://zh.wikipedia.org/wiki/AT%26T"},
    ]


@pytest.mark.parametrize(
    "other",
    [
        page("Talk:甲", "讨论。", namespace=1),
        page("Template:甲", "模板。", namespace=10),
        page("乙", "#REDIRECT [[甲]]", more='<redirect title="甲" />\n'),
        page("乙", "#重定向 [[甲]]"),
        page("乙", "'''乙'''可以指：\n* [[甲]]\n{{disambig}}"),
        page("乙", "'''乙'''可以指：\n* [[甲]]\n{{消歧义}}"),
        page("乙", "'''乙'''可以指：\n* [[甲]]\n{{人名消歧義|cat=甲}}"),
        page("乙", "'''乙'''可以指：\n* [[甲]]\n{{Hndis}}"),
        page("乙", "__DISAMBIG__\n* [[甲]]"),
        page("乙 (消歧义)", "* [[甲]]"),
        "<page><title>没有编号</title><ns>0</ns></page>",
    ],
)
def test_other_pages_are_left_out(other):
    assert [row["title"] for row in articles(other, page("丙", "正文。"))] == ["丙"]


@pytest.mark.parametrize("wikitext", ["见{{消歧义链接|乙}}。", "乙{{需要消歧义}}。", "{{about|甲|乙|乙 (消歧义)}}正文。"])
def test_articles_that_only_name_a_list_of_meanings_are_kept(wikitext):
    assert len(articles(page("甲", wikitext))) == 1


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("zhwiki-20250520-pages-articles.xml", bytes),
        ("zhwiki.xml.bz2", bz2.compress),
        ("zhwiki.xml.gz", gzip.compress),
        ("zhwiki.xml.zst", zstandard.compress),
        ("zhwiki-pages-articles-multistream1.xml-p1p187712.bz2", bz2.compress),
    ],
)
def test_dumps_are_sources(tmp_path, name, compress):
    """Each part compressed alone, as multistream dumps are."""
    parts = [HEAD, page("甲", "第一篇。", 1), page("乙", "第二篇。", 2), TAIL]
    (tmp_path / name).write_bytes(b"".join(compress(part.encode()) for part in parts))
    documents = list(read_source(Source(path=str(tmp_path), name="wikipedia", wiki_script="hant")))
    assert [(d["id"], d["source"], d["text"], d["script"]) for d in documents] == [
        ("1", "wikipedia", "第一篇。", "hant"),
        ("2", "wikipedia", "第二篇。", "hant"),
    ]


def test_one_page_is_in_memory_at_a_time():
    class Endless(io.RawIOBase):
        """300 pages of 100 kB."""

        def __init__(self):
            self.parts = iter([HEAD, *[page("甲", "正" * 33_000)] * 300, TAIL])

        def read(self, _size=-1):
            return next(self.parts, "").encode()

    tracemalloc.start()
    assert sum(1 for _ in read_pages(Endless())) == 300
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000


BOMB = '<!DOCTYPE mediawiki [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("xml", "said"),
    [
        (BOMB + "<mediawiki><page><title>&b;</title></page></mediawiki>", "document type"),
        ('<!DOCTYPE m [<!ENTITY x SYSTEM "file:///etc/passwd">]><mediawiki>&x;</mediawiki>', "document type"),
        ('<!DOCTYPE m SYSTEM "http://localhost/x.dtd"><mediawiki/>', "document type"),
        ("<html></html>", "root is <html>"),
    ],
)
def test_what_is_no_dump_is_refused(tmp_path, xml, said):
    (tmp_path / "a.xml").write_text(xml)
    with pytest.raises(InputError, match=said) as caught:
        list(read_source(Source(path=str(tmp_path / "a.xml"))))
    assert "a.xml" in str(caught.value)


@pytest.mark.parametrize("xml", ["<mediawiki>&b;</mediawiki>", "<mediawiki><page>", "", "<mediawiki></page></mediawiki>"])
def test_damaged_xml(tmp_path, xml):
    with pytest.raises(ExpatError):
        list(read_pages(io.BytesIO(xml.encode())))
    (tmp_path / "a.xml").write_text(xml)
    with pytest.raises(InputError, match=r"a\.xml.*line 1"):
        list(read_source(Source(path=str(tmp_path / "a.xml"))))


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_dump_that_breaks_off(tmp_path, share):
    data = bz2.compress(dump(*(page(f"条目{i}", f"正文{i}。", i) for i in range(500))))
    (tmp_path / "a.xml.bz2").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"a\.xml\.bz2"):
        list(read_source(Source(path=str(tmp_path / "a.xml.bz2"))))


# --- conversion marks ---

MARKS = [  # wikitext, as read in hans, in hant
    ("-{zh-hans:程序;zh-hant:程式}-", "程序", "程式"),
    ("-{zh-hans:程序; zh-hant:程式;}-", "程序", "程式"),
    ("-{zh-cn:软件; zh-tw:軟體; zh-hk:軟件;}-", "软件", "軟體"),
    ("-{zh-sg:软体; zh-hk:軟件;}-", "软体", "軟件"),
    ("-{zh:甲;zh-hk:乙}-", "甲", "乙"),
    ("-{zh-tw:只有一個}-", "只有一個", "只有一個"),
    ("-{后}-", "后", "后"),
    ("-{R|乾}-", "乾", "乾"),
    ("-{}-", "", ""),
    ("-{A|zh-cn:信息; zh-tw:資訊}-", "信息", "資訊"),
    ("-{H|zh-cn:信息; zh-tw:資訊}-", "", ""),
    ("-{T|zh-cn:信息; zh-tw:資訊}-", "", ""),
    ("-{zh-hans;zh-hant|不变}-", "不变", "不变"),
    ("-{内存=>zh-tw:記憶體;}-", "記憶體", "記憶體"),
    ("-{zh-hans:[[程序|程序]];zh-hant:{{lang|zh|程式}}}-", "程序", "程式"),
    ("[[程序|-{zh-hans:程序;zh-hant:程式}-]]", "程序", "程式"),
    ("'''亨利·-{zh-cn:阿尔弗雷德;zh-tw:阿佛列;}-'''", "亨利·阿尔弗雷德", "亨利·阿佛列"),
    ("-{zh-hans:外-{内}-;zh-hant:外}-", "外内", "外"),
    ("{{lang|en|A}}-{{lang|en|B}}-完", "A-B-完", "A-B-完"),
    ("<math>e^{-{x}}</math>和-{甲}-", "e^{-{x}}和甲", "e^{-{x}}和甲"),
    ("-{未闭合", "-{未闭合", "-{未闭合"),
]


@pytest.mark.parametrize(("wikitext", "hans", "hant"), MARKS)
def test_marks_take_the_reading_of_the_page(wikitext, hans, hant):
    """As written, a page of mostly one script takes that script's readings; nothing else is changed."""
    assert plain_text(f"这个计算机。{wikitext}") == f"这个计算机。{hans}"
    assert plain_text(f"這個電腦與網際網路。{wikitext}") == f"這個電腦與網際網路。{hant}"


def test_rendering_in_one_script():
    wikitext = (
        "{{NoteTA|T=zh-cn:标题;zh-tw:標題|G1=IT\n|1=zh-cn:网络; zh-tw:網路; zh-hk:網絡;\n|zh-cn:软件;zh-tw:軟體}}"
        "-{H|zh-cn:信息;zh-tw:資訊}-网络與信息软件，網路与资讯軟體，皇-{后}-在后面。"
    )
    assert plain_text(wikitext, "hant") == "網路與資訊軟體，網路與資訊軟體，皇后在後面。"
    assert plain_text(wikitext, "hans") == "网络与信息软件，网络与资讯软件，皇后在后面。"
    assert plain_text(wikitext) == "网络與信息软件，網路与资讯軟體，皇后在后面。"
    longest = "{{NoteTA|1=zh-cn:信息;zh-tw:資訊|2=zh-cn:信息论;zh-tw:資訊理論}}信息论与信息。"
    assert plain_text(longest, "hant") == "資訊理論與資訊。"


# --- wikitext ---

PIECES = [  # wikitext within a line, what a reader sees
    ("平常的话", "平常的话"),
    ("[[链接]]", "链接"),
    ("[[目标|显示的]]", "显示的"),
    ("[[:en:Foo|外文]]", "外文"),
    ("[[:Category:语言]]", "Category:语言"),
    ("[[CSI:犯罪现场]]", "CSI:犯罪现场"),
    ("'''粗'''''斜''", "粗斜"),
    ("[http://x.cn 网站]", "网站"),
    ("<small>小</small>", "小"),
    ("<code>x</code>", "x"),
    ("A&nbsp;B", "A B"),
    ("&lt;标签&gt;", "<标签>"),
    ("<nowiki>'''原样'''</nowiki>", "'''原样'''"),
    (r"<math>\frac{a}{{b}}</math>", r"\frac{a}{{b}}"),
    ("{{lang|en|Python}}", "Python"),
    ("{{lang-en|Interface}}", "Interface"),
    ("{{Link-en|绿链|Green link}}", "绿链"),
    ("{{link-en|绿链|Green link|显示}}", "显示"),
    ("{{le|绿链|Green link}}", "绿链"),
    ("{{tsl|en|Green link|绿链}}", "绿链"),
    ("{{tsl|en|Green link||显示}}", "显示"),
    ("{{ill|en|绿链|Green link}}", "绿链"),
    ("{{Internal link helper/en|绿链|Green link}}", "绿链"),
    ("{{nowrap|{{lang|en|两层}}}}", "两层"),
    ("{{convert|10|km}}", "10km"),
]
# What stands in sentences: numbers, units, money, dates, countries, stations, languages, formulas.
TEMPLATES = [
    ("{{formatnum:1234567}}", "1,234,567"),
    ("{{formatnum:1234567.5}}", "1,234,567.5"),
    ("{{formatnum:1,234|R}}", "1234"),
    ("{{formatnum:{{formatnum:12345|R}}}}", "12,345"),
    ("{{val|1.5|0.2|e=6|u=kg}}", "1.5±0.2×10⁶ kg"),
    ("5{{e|24}}", "5×10²⁴"),
    ("10<sup>6</sup>", "10⁶"),
    ("10{{sup|-3}}", "10⁻³"),
    ("km<sup>2</sup>", "km²"),
    ("H<sub>2</sub>O", "H2O"),
    ("{{frac|1|2}}", "1/2"),
    ("{{frac|3}}", "1/3"),
    ("{{frac|2|1|3}}", "2 1/3"),
    ("{{convert|12|km|mi}}", "12km"),
    ("{{convert|12|x|13|m}}", "12×13m"),
    ("{{Convert|5|–|10|km2|sqmi|0|abbr=on}}", "5–10km²"),
    ("{{convert|1|and|2|or|3|kg}}", "1和2或3kg"),
    ("{{cvt|1500|ft|m|0}}", "1,500英尺"),
    ("{{convert|5|ft|10|in|m}}", "5英尺10英寸"),
    ("{{convert|-30|C|F}}", "-30°C"),
    ("{{convert|3|short ton}}", "3短吨"),
    ("{{NT$|300万}}", "NT$300万"),
    ("{{US$|1234567|link=yes}}", "US$1,234,567"),
    ("{{人民币|5亿}}", "¥5亿"),
    ("{{JPY|100}}", "JP¥100"),
    ("{{start date|2010|5|3}}", "2010年5月3日"),
    ("{{birth date and age|1990|01|02|df=y}}", "1990年1月2日"),
    ("{{bd|1893年|12月26日|1976年|9月9日|catIdx=M毛}}", "1893年12月26日－1976年9月9日"),
    ("{{as of|2010|5|lc=on}}", "截至2010年5月"),
    ("{{circa|1900年}}", "约1900年"),
    ("{{CHN}}", "中国"),
    ("{{flag|USA}}", "美国"),
    ("{{flag|蒙古|1911}}", "蒙古"),
    ("{{flagicon|JPN}}[[日本]]", "日本"),
    ("{{stn|西直门|BJS}}", "西直门站"),
    ("{{rws|北京南站}}", "北京南站"),
    ("{{jpn|j=漢字|hg=かんじ}}", "漢字"),
    ("{{nihongo|忍者|忍者|ninja}}", "忍者"),
    ("{{langx|en|Ninja}}", "Ninja"),
    ("{{en}}", ""),
    ("{{math|''x''}}", "x"),
    ("{{math|1=''x'' = {{sqrt|2}}}}", "x = √2"),
    ("{{chem|H|2|S|O|4}}", "H2SO4"),
    ("2{{times}}3{{nbsp}}米", "2×3 米"),
    ("{{#if:{{CHN}}|有|无}}", "有"),
    ("{{lang|zh|[[甲|乙]]}}", "乙"),
    ("{{color|red|甲{{=}}乙}}", "甲=乙"),
]
LOST = [  # nobody can tell what they show
    "{{convert|12|smoot}}",
    "{{convert|x|km}}",
    "{{convert|12|km|disp=out}}",
    "{{formatnum:{{#expr:1+2}}}}",
    "{{formatnum:很多}}",
    "{{NT$|{{inflation|US|1|2}}}}",
    "{{#expr:1+2}}",
    "{{age|1990|1|2}}",
    "{{NUMBEROFARTICLES}}",
    "{{通货膨胀后|300|1950}}",
    "{{民国纪年|99}}",
    "{{val|1|p=x}}",
    "{{XYZ}}",
    "{{某种写词的模板|词}}",
    "{{nowrap|{{convert|12|smoot}}}}",
]
NOTHING = [  # a reader of prose sees none of it
    "",
    "{{cn}}",
    "{{infobox|名={{lang|en|x}}|图=[[File:a.svg]]}}",
    "<!-- 注释 -->",
    "<ref>{{cite web|title=来源|url=http://x.cn}}</ref>",
    '<ref name="a/b" />',
    "<REF NAME=b>来源</ref>",
    "<gallery>\nFile:a.jpg|图[[链接]]\n</gallery>",
    "[[File:a.jpg|thumb|图里的[[链接]]'''字''']]",
    "[[文件:a.jpg|缩略图|字]]",
    "[[檔案:a.jpg|縮圖|字]]",
    "[[Category:语言]]",
    "[[分類:語言|*]]",
    "[[de:Schnittstelle]]",
    "__NOTOC__",
    "__不转换内容__",
    "http://x.cn/y",
    "\n{| class=wikitable\n! 甲 !! 乙\n|-\n| 一 || {{flag|中国}}\n{|\n| 里面\n|}\n|}\n",
    '<syntaxhighlight lang="c">int x = -{1}-;</syntaxhighlight>',
]


@pytest.mark.parametrize(("wikitext", "seen"), PIECES)
def test_what_is_seen(wikitext, seen):
    assert plain_text(f"前{wikitext}后。") == f"前{seen}后。"


@pytest.mark.parametrize("wikitext", NOTHING)
def test_what_is_not_seen(wikitext):
    assert plain_text(f"前面的话。{wikitext}后面的话。").replace("\n", "") == "前面的话。后面的话。"


@pytest.mark.parametrize(("wikitext", "seen"), TEMPLATES)
def test_what_templates_show(wikitext, seen):
    assert plain_text(f"前{wikitext}后。") == f"前{seen}后。"


def test_words_of_templates_are_in_the_script_of_the_page():
    assert plain_text("這個電腦在{{FRG}}，高{{convert|5|yd}}。") == "這個電腦在西德，高5碼。"


@pytest.mark.parametrize("wikitext", LOST)
def test_sentences_that_lack_a_number_or_a_word_go(wikitext):
    """With all of the sentence, and nothing of others. What stands in brackets goes alone."""
    assert plain_text(f"甲是乙。人口为{wikitext}人，是首都！“丙是丁。”\n* 戊") == "甲是乙。“丙是丁。”\n戊"
    assert plain_text(f"甲（约{wikitext}米）是乙。") == "甲是乙。"
    assert plain_text(f"== 乙 ==\n人口{wikitext}人") == ""


@pytest.mark.parametrize(
    "wikitext",
    [
        "甲{{某种注记|乙}}。",
        "甲{{某种注记}}，乙。",
        "{{某种方框}}甲。",
        "甲{{cn}}乙",
        "甲{{CN}}乙",
        "甲{{WHO}}乙",
        "甲{{sfn|Smith|2005|p=4}}乙",
    ],
)
def test_unknown_templates_at_the_ends_of_phrases_are_notes(wikitext):
    assert plain_text(wikitext) == re.sub(r"\{\{.*\}\}", "", wikitext)


def test_entities_of_no_character():
    """A surrogate would end the dump; XML cannot hold the characters that mark unfinished text."""
    assert plain_text("&#xD800;甲&#55296;&#1;&#x2;&#0;乙&#x110000;&#20013;&lt;") == "甲乙中<"


def test_any_mixture_of_them():
    generator = random.Random(0)
    for _ in range(200):
        pieces = generator.choices([piece for piece in PIECES if "'" not in piece[0]], k=6)
        hidden = generator.choices([piece for piece in NOTHING if "\n" not in piece and "http" not in piece], k=6)
        wikitext = "，".join(piece + nothing for (piece, _), nothing in zip(pieces, hidden, strict=True))
        assert plain_text(wikitext + "。") == "，".join(seen for _, seen in pieces) + "。"


def test_paragraphs_lists_and_definitions_are_lines():
    wikitext = "第一段。\n\n第二段。<br/>断行。\n* 一\n** 二\n# 三\n; 词 : 意思\n: 缩进\n<poem>床前\n明月</poem>完。"
    assert plain_text(wikitext).split("\n") == [
        *("第一段。", "第二段。", "断行。", "一", "二", "三", "词：意思", "缩进", "床前", "明月", "完。")
    ]


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        ("序。\n== 甲 ==\n文。\n=== 乙 ===\n文。\n== 丙 ==\n文。", "序。|甲|文。|乙|文。|丙|文。"),
        ("序。\n== 空 ==\n== 丙 ==\n文。", "序。|丙|文。"),
        ("序。\n== 甲 ==\n=== 乙 ===\n文。", "序。|甲|乙|文。"),
        ("序。\n== 甲 ==\n=== 空 ===\n== 丙 ==\n文。\n== 尾 ==\n{{navbox}}", "序。|丙|文。"),
        ("序。\n== 参考文献 ==\n* 书\n=== 注释 ===\n* 注\n== 丙 ==\n文。\n== 外部連結 ==\n* [http://x 站]", "序。|丙|文。"),
        ("序。\n== 甲 ==\n文。\n=== 參考資料 ===\n* 书\n=== 乙 ===\n文。", "序。|甲|文。|乙|文。"),
        ("序。\n== 注释与参考文献 ==\n书\n== 参见 ==\n* [[a]]\n== 延伸閱讀 ==\n书\n== 外部链接 ==\n站", "序。"),
        ("序。\n== 注释的历史 ==\n文。", "序。|注释的历史|文。"),
        ("序。\n==[[甲]]<ref>x</ref>==\n文。", "序。|甲|文。"),
    ],
)
def test_sections_without_prose_are_dropped(wikitext, expected):
    assert plain_text(wikitext).split("\n") == expected.split("|")


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        ("'''甲'''（{{IPA|x}}）是。", "甲是。"),
        ("'''甲'''（{{IPA|x}}，{{lang-en|A}}）是。", "甲（A）是。"),
        ("'''甲'''（{{lang-en|A}}；{{bd|1900年}}）是。", "甲（A；1900年－）是。"),
        ("甲、{{flagicon|CHN}}，乙{{cn}}。", "甲，乙。"),
        ("正文<ref>x</ref> 。", "正文。"),
        ("正文。\n{{未闭合\n| 参数 = 值\n完。", "正文。|未闭合|完。"),
        ("正文。\n{| \n|-\n| 坏的表格\n\n完。", "正文。|完。"),
        ("'''未闭合的粗体。\n[[未闭合的链接。\n<ref>未闭合的注。", "未闭合的粗体。|未闭合的链接。|未闭合的注。"),
    ],
)
def test_what_is_left_over_is_tidied(wikitext, expected):
    assert plain_text(wikitext).split("\n") == expected.split("|")


def test_no_wikitext_is_an_error():
    """Random slices of all markup above, put together."""
    markup = "\n* ".join(
        [piece[0] for piece in MARKS + PIECES + TEMPLATES]
        + LOST
        + NOTHING
        + ["{{NoteTA|1=zh-cn:网络; zh-tw:網路}}\n== 甲 ==\n"]
    )
    generator = random.Random(0)
    for _ in range(300):
        starts = generator.choices(range(len(markup)), k=20)
        wikitext = "".join(markup[start : start + generator.randint(1, 30)] for start in starts)
        text = plain_text(wikitext, generator.choice([None, "hans", "hant"]))
        assert not set(text) & set("\x01\x02\x03\x04\x05\x06\x07")
