"""Every normaliser by example, in both scripts; all of them together are idempotent and leave good text alone."""

import random
import time

import opencc
import pytest

from zh_modernbert.train.corpus.normalise import (
    NORMALISERS,
    normalise,
    normalise_unicode,
    normalise_whitespace,
    repair_encoding,
    strip_bbcode,
    strip_citations,
    strip_html,
    strip_urls,
    strip_wiki,
)

HANS = "这本书讲述了中国历史上几个重要时期的经济发展，作者认为农业与贸易同样重要。"
HANT = opencc.OpenCC("s2t").convert(HANS)
PUNCTUATION = "，。！？；：、「」『』（）《》〈〉【】〔〕……——～·“”‘’％＋＝＠＃￥"


def clean(text: str) -> str:
    return normalise(text)[0]


# --- encoding ---


def misread(text: str, codec: str) -> str:
    """UTF-8 text read in another encoding; bytes that this leaves undefined become control characters, as in browsers."""
    if codec == "gb18030":
        return text.encode().decode("gb18030")
    return "".join(
        bytes([byte]).decode(codec, "replace").replace("\ufffd", chr(byte)) if byte > 0x7F else chr(byte)
        for byte in text.encode()
    )


@pytest.mark.parametrize("codec", ["latin-1", "cp1252"])
@pytest.mark.parametrize("text", [HANS, HANT, "混合 English 和数字 12.5%，「引号」……", "𠮷野家"])
def test_repair_of_utf8_read_as_western(text, codec):
    assert misread(text, codec) != text
    assert repair_encoding(misread(text, codec)) == text
    assert repair_encoding(HANS + "\n" + misread(text, codec) + HANT) == HANS + "\n" + text + HANT


@pytest.mark.parametrize("text", ["我们的祖国是花园，花", "圖書館的書，看的"])
def test_repair_of_utf8_read_as_gbk(text):
    assert repair_encoding(misread(text, "gb18030")) == text
    assert repair_encoding(HANS + "\n" + misread(text, "gb18030")) == HANS + "\n" + text


@pytest.mark.parametrize(
    "text",
    [
        HANS,
        HANT,
        PUNCTUATION,
        "“弯引号”‘单引号’——破折号……",
        "café naïve São Paulo Müller «voilà» ½ × ÷ ±5°",
        "Ã©",
        "æøå ÆØÅ ðþ",
        "锛子和鐨字都是生僻字。",
        misread("中文", "cp1252")[:-1] + " 丢了一个字节",
    ],
)
def test_repair_leaves_alone_what_is_not_surely_broken(text):
    assert repair_encoding(text) == text


# --- one rule at a time ---

EXAMPLES = {
    strip_html: [
        ("<p>一</p><p>二</p>", "\n一\n\n二\n"),
        ("一<br>二<br/>三<BR />四", "一\n二\n三\n四"),
        ('<a href="x?a=1&b=2">链接</a>', "链接"),
        ("一<!-- 註\n解 -->二", "一二"),
        ("正文<script>var a = '广告';</script>继续<style type='text/css'>p{}</style>。", "正文继续。"),
        ('史实<ref name="a">《史记》</ref>如此', "史实如此"),
        ("甲&nbsp;乙 &lt;丙&gt; &amp; &#20013;&#x6587;", "甲\xa0乙 <丙> & 中文"),
        ("如果a<b且c>d", "如果a<b且c>d"),
        ("3 < 5 & 7 > 6", "3 < 5 & 7 > 6"),
        ("《书》<<參>>〈一〉", "《书》<<參>>〈一〉"),
        ("AT&T 和 R&D &copy=1", "AT&T 和 R&D &copy=1"),
        ("用 <div> 元素包住它。", "用 <div> 元素包住它。"),
        ("std::vector<int> 与 List<String>，</p>", "std::vector<int> 与 List<String>，\n"),
    ],
    strip_wiki: [
        ("[[北京]]是[[中华人民共和国|中国]]首都", "北京是中国首都"),
        ("[[File:a.jpg|thumb|[[北京]]街景]]正文[[分类:城市]][[Category:城市]][[檔案:b.png]]", "正文"),
        ("{{NoteTA|zh-hans:软件}}{{来源请求}}正文{{cite web|url=x|title=y}}", "正文"),
        ("甲\n{| class=wikitable\n! 头\n|-\n| 格\n|}\n乙", "甲\n\n乙"),
        ("-{zh-hans:内存;zh-hant:記憶體}-与-{台湾}-", "内存与台湾"),
        ("-{A|zh-cn:信息; zh-tw:資訊}-、-{R|乾}-、-{zh;zh-tw|甲|乙}-、-{}-、-{甲}", "信息、乾、zh、、-{甲}"),
        ("== 历史 ==\n'''北京'''，''旧称''", " 历史 \n北京，''旧称''"),
        ("if [[ -f a ]]; x = [[1, 2], [3, 4]]", "if [[ -f a ]]; x = [[1, 2], [3, 4]]"),
        ("{{ message }} 是模板变量，a == b", "{{ message }} 是模板变量，a == b"),
        ("s = '' + 'a'", "s = '' + 'a'"),
    ],
    strip_bbcode: [
        ("[b]粗[/b][url=http://a.b]链接[/url]", "粗链接"),
        ("看图[img]http://a.b/c.jpg[/img]，[color=#ff0000][size=4]红[/size][/color]", "看图，红"),
        ("[attach]12345[/attach]下载", "下载"),
        ("a[i] = b[u]", "a[i] = b[u]"),
    ],
    normalise_unicode: [
        ("e\u0301", "é"),
        ("ＡＢｃ１２", "ABc12"),
        ("第１２頁", "第12頁"),
        ("a" + "\u0301\u0323" * 20 + "b", "ạ" + "\u0323" * 14 + "\u0301" * 15 + "b"),
        ("零\u200b寬\ufeff\u00ad\u200d", "零寬"),
        ("a\x00b\x1fc\x7f\x85", "abc"),
        ("私\ue004用\U000f0000區", "私用區"),
        ("一\r二\u2028三\x0c四", "一\n二\n三\n四"),
        ("一\t二\u3000三\xa0四\n", "一 二 三 四\n"),
        ("\u202eabc\u2066", "abc"),
        ("", ""),
        (PUNCTUATION, PUNCTUATION),
        ("𠮷野家𪚥㗎嘅😀🇹🇼𰻝", "𠮷野家𪚥㗎嘅😀🇹🇼𰻝"),
    ],
    normalise_whitespace: [("  一   二 \n\n \n三 ", "一 二\n三"), ("一二", "一二"), ("\n\n", ""), ("", "")],
    strip_urls: [
        ("見https://zh.wikipedia.org/wiki/%E4%B8%AD?a=1#b。完", "見。完"),
        ("见 www.example.com，好", "见 ，好"),
        ("文件（http://a.b/c）在此", "文件在此"),
        ("见http://a.b/c,然后看www.iso.ch. 完", "见,然后看. 完"),
        ("函数 f() 与 www是万维网", "函数 f() 与 www是万维网"),
        ('请看[文档](https://a.b/c "题")和![图](http://a.b/d.png)。', "请看文档和。"),
        ("FTP://A.B/c 与 ftp://x.y", " 与 "),
    ],
    strip_citations: [
        ("事實[1]。事实[23][註 4][来源请求]", "事實。事实"),
        ("说法［2］，又说[3][4]；[0-9]匹配数字，形状为[2, 3]", "说法，又说；[0-9]匹配数字，形状为[2, 3]"),
        ("历史[编辑]\n起源", "历史\n起源"),
        ("歷史[編輯]", "歷史"),
        ("按一下 [編輯]，再選擇[編輯]功能表", "按一下 [編輯]，再選擇[編輯]功能表"),
        ("数组a[1]与x[0][2]与区间[甲]与[1000]", "数组a[1]与x[0][2]与区间[甲]与[1000]"),
        ("x = [1]", "x = [1]"),
    ],
}


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [(rule, *example) for rule, examples in EXAMPLES.items() for example in examples],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_examples(rule, text, expected):
    assert rule(text) == expected


# --- all together ---


@pytest.mark.parametrize("text", [HANS, HANT, "a\nb", ""])
def test_good_text_is_left_alone(text):
    assert normalise(text) == (text, [])


def test_what_changed_a_text_is_named():
    assert normalise("<p>好</p>见http://a.b") == ("好\n见", ["strip_html", "strip_urls", "normalise_whitespace"])
    assert normalise("Ａ")[1] == ["normalise_unicode"]


def test_a_nasty_page():
    page = (
        '<div class="nav">首页 &gt; 新闻</div><h1>【快讯】某市召开会议</h1><script>ad("博彩");</script>\r\n'
        "\u3000\u3000某市\u200b昨日召开会议[1]，联系人：张三13812345678，邮箱zs@example.cn。<br/>"
        "更多见<a href='http://a.b/c'>http://a.b/c</a>。</p>\n责任编辑：李四\n"
        "上一篇：没有了\n分享到：微博\nCopyright © 2020 某网\n"
    )
    expected = "【快讯】某市召开会议\n某市昨日召开会议，联系人：张三000-0000-0000，邮箱user@example.com。\n更多见。"
    assert clean(page) == expected
    assert clean(opencc.OpenCC("s2tw").convert(page)) == opencc.OpenCC("s2tw").convert(expected)


PIECES = [
    *"中国文化歷史經濟a b1，。[]<>&;/#{|}='-",
    *(
        "<p>",
        "</p>",
        "<br>",
        "<ref>",
        "</ref>",
        "<!--",
        "-->",
        "&amp;",
        "&lt;",
        "&gt;",
        "&nbsp;",
        "&#65;",
        "lt;",
        "{{",
        "}}",
        "[[",
    ),
    *("]]", "[b]", "[/b]", "'''", "-{", "}-", "[1]", "[註]", "http://", "www.", "a.b/c", "上一篇：", "首页", "ICP备12345号"),
    *(
        "13812345678",
        "@b.cn",
        "\n",
        "\r\n",
        "\u3000",
        "\u200b",
        "\ufeff",
        "\x00",
        "e",
        "\u0301",
        "Ａ",
        "１",
        "한",
        "\u11a8",
        "😀",
    ),
    *("\ufffd", "å\x9b½", "锛", "鐨", "|", " > "),
]


def test_normalise_is_idempotent_for_random_text():
    generator = random.Random(0)
    seen = set()
    for _ in range(3000):
        text, changed = normalise("".join(generator.choices(PIECES, k=generator.randint(1, 15))))
        assert normalise(text) == (text, [])
        seen.update(changed)
    assert seen == set(NORMALISERS)


@pytest.mark.parametrize(
    "text", ["&amp;nbsp;", "&lt;p&gt;好&lt;/p&gt;", "好[[1]1]", "<<b>i>好</b>", "<\u200bbr>", "e\u200b\u0301"]
)
def test_normalise_is_idempotent_where_one_rule_uncovers_work_for_another(text):
    assert normalise(clean(text)) == (clean(text), [])


@pytest.mark.parametrize(
    "text",
    [
        "<" * 50_000,
        "[[" * 20_000,
        "{{" * 20_000,
        "a" * 100_000 + "@",
        "1" * 100_000,
        "<!--" * 10_000,
        "（" * 50_000,
        "<script>" * 20_000,
        "&" + "amp;" * 20_000,
        "==" + " " * 50_000 + "x",
        "a" * 50_000 + "\n锛",
        "http://a" + "." * 50_000,
        "<" * 10_000 + "b>" * 10_000,
        "-->" + "<!--" * 20_000,
        "{|\n" * 20_000,
        "{{" + "中" * 50_000,
        "'''" + "中" * 50_000,
        "[[" + "中" * 50_000,
    ],
)
def test_hostile_text_takes_linear_time(text):
    """A pattern that looks ahead from every place would take minutes."""
    started = time.process_time()
    normalise(text + "</p>")
    assert time.process_time() - started < 2
