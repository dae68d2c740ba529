"""Every normaliser and every filter by example, in both scripts, and the report of the stage."""

import json
import random

import opencc
import pytest

from zh_modernbert.train import clean
from zh_modernbert.train.clean import (
    FILTERS,
    Settings,
    detect_script,
    drop_reason,
    normalise,
    normalise_unicode,
    normalise_whitespace,
    strip_markup,
    strip_references,
)
from zh_modernbert.train.cli import InputError
from zh_modernbert.train.files import read_corpus, write_corpus

SETTINGS = Settings(input_dir="", output_dir="")
HANS = "这本书讲述了中国历史上几个重要时期的经济发展，作者认为农业与贸易同样重要。"
HANT = opencc.OpenCC("s2t").convert(HANS)


def write_shards(folder, *shards: list[dict]):
    """A corpus of the given shards, each under its own number."""
    folder.mkdir()
    for number, documents in enumerate(shards):
        write_corpus(folder, documents)
        (folder / "00000.jsonl.zst").rename(folder / f"{number + 100:05d}.jsonl.zst")
    return str(folder)


def documents_of(texts, source="s") -> list[dict]:
    return [{"id": f"{source}-{i}", "source": source, "text": text} for i, text in enumerate(texts)]


# --- normalisers ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("e\u0301", "é"),
        ("ＡＢｃ１２", "ABc12"),
        ("第１２頁", "第12頁"),
        ("零\u200b寬\ufeff\u00ad\u200d", "零寬"),
        ("a\x00b\x1fc\x7f\x85", "abc"),
        ("一\r\n二\r三\u2028四", "一\n二\n三\n四"),
        ("一\t二\n三", "一\t二\n三"),
        ("\u202eabc\u2066", "abc\u2066"),
    ],
)
def test_normalise_unicode(text, expected):
    assert normalise_unicode(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<p>一</p><p>二</p>", "一\n二\n"),
        ("一<br>二<br/>三<BR />四", "一\n二\n三\n四"),
        ('<a href="x?a=1&b=2">链接</a>', "链接"),
        ("一<!-- 註\n解 -->二", "一二"),
        ("甲&nbsp;乙 &lt;丙&gt; &amp; &#20013;&#x6587;", "甲\xa0乙 <丙> & 中文"),
        ("如果a<b且c>d", "如果a<b且c>d"),
        ("3 < 5 & 7 > 6", "3 < 5 & 7 > 6"),
        ("《书》<<參>>〈一〉", "《书》<<參>>〈一〉"),
        ("AT&T 和 R&D", "AT&T 和 R&D"),
    ],
)
def test_strip_markup(text, expected):
    assert strip_markup(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("見https://zh.wikipedia.org/wiki/%E4%B8%AD?a=1#b。完", "見。完"),
        ("见 www.example.com，好", "见 ，好"),
        ("（http://a.b/c）", "（）"),
        ("事實[1]。事实[23][註 4][来源请求]", "事實。事实"),
        ("数组a[1000]与区间[甲]", "数组a[1000]与区间[甲]"),
        ("www是万维网", "www是万维网"),
    ],
)
def test_strip_references(text, expected):
    assert strip_references(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  一 \u3000 二\t\n\n \n三\xa0", "一 二\n三"),
        ("一二", "一二"),
        ("\n\n", ""),
        ("", ""),
    ],
)
def test_normalise_whitespace(text, expected):
    assert normalise_whitespace(text) == expected


@pytest.mark.parametrize("text", [HANS, HANT])
def test_good_text_is_left_alone(text):
    assert normalise(text) == text


def test_chinese_punctuation_survives():
    text = "，。！？；：、「」『』（）《》〈〉【】〔〕……——～·“”‘’％＋＝＠＃￥"
    assert normalise(text) == text


def test_rare_and_emoji_characters_survive():
    text = "𠮷野家𪚥㗎嘅😀🇹🇼𰻝"
    assert normalise(text) == text


PIECES = [
    *"中国文化歷史經濟a b1，。[]<>&;/#",
    *(
        "<p>",
        "</p>",
        "<br>",
        "<",
        ">",
        "&amp;",
        "&lt;",
        "&gt;",
        "&nbsp;",
        "&#65;",
        "lt;",
        "[1]",
        "[註]",
        "http://",
        "www.",
        "a.b/c",
    ),
    *(
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
        "\ufffd",
        "<!--",
        "-->",
    ),
]


def test_normalise_is_idempotent_for_random_text():
    generator = random.Random(0)
    for _ in range(3000):
        text = normalise("".join(generator.choices(PIECES, k=generator.randint(1, 15))))
        assert normalise(text) == text


@pytest.mark.parametrize("text", ["&amp;nbsp;", "&lt;p&gt;好&lt;/p&gt;", "[[1]1]", "<<b>i>好", "<\u200bbr>", "e\u200b\u0301"])
def test_normalise_is_idempotent_where_one_rule_uncovers_work_for_another(text):
    assert normalise(normalise(text)) == normalise(text)


# --- script ---


@pytest.mark.parametrize(
    ("text", "script"),
    [
        (HANS, "hans"),
        (HANT, "hant"),
        (HANS + HANT, "mixed"),
        (HANS * 20 + "發展", "hans"),
        (HANT * 20 + "发展", "hant"),
        ("你好，天下太平。", "mixed"),
        ("Hello 123", "mixed"),
        ("", "mixed"),
    ],
)
def test_detect_script(text, script):
    assert detect_script(text) == script


# --- filters ---

OTHER_HANS = ["天气预报说明天会下雨。", "小明喜欢在图书馆读书。", "公司决定开发新的产品。", "他们坐火车去北京开会。"]
SPAM_HANS = "本站提供博彩与六合彩，百家乐老虎机任您选择，点击购买立即加微信。"
LATIN = "The quick brown fox jumps over the lazy dog while nobody watches. "
# reason -> (texts it drops, texts that look alike and stay); Simplified, for the script rule is tried apart
EXAMPLES = {
    "too_short": (["", "你好。", "一二三四五六七八九", "！" * 100], ["一二三四五六七八九十"]),
    "garbled": ([HANS + "锟斤拷锟斤拷", HANS + "\ufffd" * 3, HANS + "\ue000\ue001"], [HANS * 5 + "\ufffd"]),
    "not_chinese": ([LATIN * 2 + "这里只有十个汉字在里面。"], [HANS + LATIN[:30]]),
    "japanese": (["私たちは東京の大学で日本語を勉強しています。電車で学校へ行きます。"], [HANS + "の"]),
    "repetitive": (["\n".join([HANS] * 3), "哈哈" * 20, HANS + "好的" * 20], ["\n".join([HANS, *OTHER_HANS, OTHER_HANS[0]])]),
    "spam": ([HANS + SPAM_HANS], [HANS * 2 + "他在博彩公司工作。"]),
}


def in_both_scripts(texts):
    convert = opencc.OpenCC("s2t").convert
    return [version for text in texts for version in dict.fromkeys((text, text if "锟" in text else convert(text)))]


@pytest.mark.parametrize(("reason", "text"), [(r, t) for r, (bad, _) in EXAMPLES.items() for t in in_both_scripts(bad)])
def test_filter_drops(reason, text):
    assert FILTERS[reason](text, SETTINGS)
    assert drop_reason(text, SETTINGS) == reason


@pytest.mark.parametrize(("reason", "text"), [(r, t) for r, (_, good) in EXAMPLES.items() for t in in_both_scripts(good)])
def test_filter_keeps(reason, text):
    assert drop_reason(text, SETTINGS) is None


@pytest.mark.parametrize(("scripts", "dropped"), [(["hans"], {HANT}), (["hant"], {HANS}), (["hans", "hant"], set())])
def test_scripts_that_are_not_wanted(scripts, dropped):
    settings = Settings(input_dir="", output_dir="", scripts=scripts)
    for text in (HANS, HANT):
        assert drop_reason(text, settings) == ("wrong_script" if text in dropped else None)


@pytest.mark.parametrize(
    ("field", "strict", "lax", "text"),
    [
        ("min_han_characters", 6, 5, "五个汉字啊"),
        ("min_han_share", 0.51, 0.49, "一二三四五六七八九十abcdefghij"),
        ("max_kana_share", 0.09, 0.11, "一二三四五六七八九の"),
        ("max_garbled_share", 0.09, 0.11, "一二三四五六七八九\ufffd"),
        ("max_repeated_share", 0.3, 0.34, "一二三四五六七八九\n一二三四五六七八九\n甲乙丙丁戊己庚辛"),
        ("max_spam_per_thousand", 3.2, 3.4, "博彩" + "".join(chr(0x4E00 + i) for i in range(300))),  # 1 in 302
    ],
)
def test_thresholds_are_what_the_settings_say(field, strict, lax, text):
    base = {"input_dir": "", "output_dir": "", "min_han_characters": 0}
    assert drop_reason(text, Settings(**base | {field: strict})) is not None
    assert drop_reason(text, Settings(**base | {field: lax})) is None


@pytest.mark.parametrize("codec", ["latin-1", "cp1252"])
def test_chinese_read_in_a_western_encoding_is_garbled(codec):
    """Three bytes a character, the later two of them 0x80 to 0xbf, some of which normalising removes."""
    garbled = "我们讨论中国文化".encode().decode(codec, "ignore")
    assert drop_reason(normalise(HANS + garbled), SETTINGS) == "garbled"


def test_european_words_are_not_garbled():
    assert drop_reason(normalise(HANS + "café «voilà» naïve São Paulo Müller"), SETTINGS) is None


# --- the stage ---

NEWS = [HANS, HANT, "短。", OTHER_HANS[0] + OTHER_HANS[1], "\n".join([HANS] * 3)]
WEB = [HANS + SPAM_HANS, "太短", f"<p>{HANS}</p>", LATIN * 2 + "这里只有十个汉字在里面。"]


def run(folder, *, workers=1, **fields) -> dict:
    return clean.main(Settings(output_dir=str(folder), workers=workers, **fields))


def test_report_adds_up_and_rejects_are_kept(tmp_path):
    corpus = write_shards(tmp_path / "in", documents_of(NEWS, "news"), documents_of(WEB, "web"))
    result = run(tmp_path / "out", input_dir=corpus, save_rejects=True)
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    kept = list(read_corpus(tmp_path / "out"))
    rejects = list(read_corpus(tmp_path / "out" / "rejects"))

    assert report["documents_in"] == len(NEWS) + len(WEB) == len(kept) + len(rejects)
    assert report["documents"] == len(kept) == 4
    assert report["documents"] + sum(report["dropped"].values()) == report["documents_in"]
    assert {reason: count for reason, count in report["dropped"].items() if count} == {
        "too_short": 2,
        "repetitive": 1,
        "spam": 1,
        "not_chinese": 1,
    }
    assert report["per_source"] == {
        "news": {"documents_in": 5, "too_short": 1, "repetitive": 1},
        "web": {"documents_in": 4, "too_short": 1, "spam": 1, "not_chinese": 1},
    }
    assert report["characters_in"] == sum(map(len, NEWS + WEB))
    assert report["characters"] == sum(len(document["text"]) for document in kept)
    assert {key: result[key] for key in ("documents_in", "documents", "dropped")} == {
        key: report[key] for key in ("documents_in", "documents", "dropped")
    }
    assert {document["id"]: document["filter_reason"] for document in rejects} == {
        "news-2": "too_short",
        "news-4": "repetitive",
        "web-0": "spam",
        "web-1": "too_short",
        "web-3": "not_chinese",
    }
    assert {document["id"]: (document["text"], document["script"], document["source"]) for document in kept} == {
        "news-0": (HANS, "hans", "news"),
        "news-1": (HANT, "hant", "news"),
        "news-3": (NEWS[3], "hans", "news"),
        "web-2": (HANS, "hans", "web"),
    }


def test_two_workers_write_the_same_as_one(tmp_path):
    generator = random.Random(0)
    shards = [
        documents_of([generator.choice(NEWS + WEB) + generator.choice(OTHER_HANS) for _ in range(20)], f"s{shard}")
        for shard in range(3)
    ]
    corpus = write_shards(tmp_path / "in", *shards)
    results = [run(tmp_path / f"out{workers}", input_dir=corpus, workers=workers) for workers in (1, 2)]
    assert 0 < results[0]["documents"] < 60
    assert [result | {"output_dir": ""} for result in results[:1]] == [result | {"output_dir": ""} for result in results[1:]]
    assert list(read_corpus(tmp_path / "out1")) == list(read_corpus(tmp_path / "out2"))
    reports = [(tmp_path / f"out{workers}" / "report.json").read_text(encoding="utf-8") for workers in (1, 2)]
    assert reports[0] == reports[1]


@pytest.mark.parametrize("source", ["a/b", "資料 集", "in/x", "too_short/s", "total"])
def test_sources_with_odd_names_are_counted_apart(tmp_path, source):
    corpus = write_shards(tmp_path / "in", documents_of([HANS, "短"], source) + documents_of([HANT], "s"))
    run(tmp_path / "out", input_dir=corpus)
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["per_source"] == {source: {"documents_in": 2, "too_short": 1}, "s": {"documents_in": 1}}
    assert (report["documents_in"], report["documents"]) == (3, 2)


def test_other_fields_of_documents_survive(tmp_path):
    """Whatever they are called: `media` means something to the engine, not to a corpus."""
    extra = {"url": "http://x", "script": "hans", "score": 1.5, "tags": ["a"], "media": ["b.png"]}
    corpus = write_shards(tmp_path / "in", [{"id": "1", "source": "s", "text": HANT, **extra}])
    run(tmp_path / "out", input_dir=corpus)
    assert list(read_corpus(tmp_path / "out")) == [{"id": "1", "source": "s", "text": HANT, **extra, "script": "hant"}]


def test_dropping_everything_is_an_error(tmp_path):
    corpus = write_shards(tmp_path / "in", documents_of(["短", "also short"]))
    with pytest.raises(InputError, match=r"too_short.*2"):
        run(tmp_path / "out", input_dir=corpus)
    assert not (tmp_path / "out").exists()


def test_empty_corpus_is_an_error(tmp_path):
    (tmp_path / "none").mkdir()
    write_shards(tmp_path / "in", documents_of([HANS]))
    (tmp_path / "in" / "00100.jsonl.zst").write_bytes(b"")
    for name in ("none", "in"):
        with pytest.raises(InputError, match="empty corpus"):
            run(tmp_path / "out", input_dir=str(tmp_path / name))


@pytest.mark.parametrize("workers", [1, 2])
def test_damaged_shard_is_named(tmp_path, workers):
    corpus = write_shards(tmp_path / "in", documents_of([HANS]), documents_of([HANS]))
    with open(f"{corpus}/00101.jsonl.zst", "wb") as file:
        file.write(b"not zstd at all")
    with pytest.raises(InputError, match=r"00101\.jsonl\.zst"):
        run(tmp_path / "out", input_dir=corpus, workers=workers)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [("scripts", ["klingon"]), ("workers", 0), ("workers", -2)],
)
def test_bad_settings(tmp_path, field, value):
    corpus = write_shards(tmp_path / "in", documents_of([HANS]))
    with pytest.raises(InputError, match=rf"\b{field}\b"):
        clean.main(Settings(input_dir=corpus, output_dir=str(tmp_path / "out"), **{field: value}))


def test_input_is_not_overwritten(tmp_path):
    """A slip of the hand on a corpus that took days to collect."""
    corpus = write_shards(tmp_path / "in", documents_of([HANS, "短"]))
    (tmp_path / "in" / "settings.json").write_text("{}")
    with pytest.raises(InputError):
        run(corpus, input_dir=corpus)
    assert len(list(read_corpus(corpus))) == 2
