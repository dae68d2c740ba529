"""Every rule by example, in both scripts, and the kinds of text that none of them may drop."""

import random
import sys
import types
from collections import Counter

import opencc
import pytest

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.corpus.filters import FILTERS, Page, Thresholds, drop_reason, load_language_model, ngram_runs

HANS = (
    "这本书讲述了中国历史上几个重要时期的经济发展，作者认为农业与贸易同样重要，这是一个值得讨论的问题，也是许多读者关心的事情。"
)
SENTENCES = [
    "天气预报说明天会下雨，我们还是在家里看书吧。",
    "小明喜欢在图书馆读书，他的老师也常常在那里。",
    "公司决定开发新的产品，由年轻的工程师负责。",
    "他们坐火车去北京开会，路上看见了很多的风景。",
    "这个问题在去年已经有人讨论过，但是没有结论。",
    "中国的茶叶和丝绸很早就传到了其他的国家。",
]
STORY = "".join(SENTENCES)
LATIN = "The quick brown fox jumps over the lazy dog while nobody watches. "
GAMBLING = "百家乐、时时彩、老虎机应有尽有，开户送彩金，首存返水，真人娱乐城，足球投注赔率最高，"
ADULT = "人妻熟女无码成人视频在线，日韩精品一区二区，国产精品久久精品，激情小说自拍偷拍，"
ADVERTISING = "厂家直销批发价，欢迎来电咨询，加微信享受限时优惠，货到付款，全国热线为您服务，量大从优，"
MENU = (
    "新闻中心\n产品展示\n公司简介\n招聘信息\n联系方式\n技术支持\n网上留言\n合作伙伴\n售后服务\n"
    "下载专区\n行业动态\n企业文化\n荣誉资质"
)

# reason -> texts it drops; in Simplified, and turned to Traditional
DROPPED = {
    "too_short": ["", "你好。", "一二三四五六七八九。", "！" * 100, LATIN * 20],
    "garbled": [
        STORY + "锟斤拷" * 3,
        STORY + "\ufffd" * 5,
        STORY + STORY.encode().decode("cp1252", "ignore"),
        STORY + STORY.encode("gbk").decode("latin-1"),
        STORY.encode().decode("gbk", "ignore"),
        STORY + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo" * 20,
    ],
    "not_chinese": [LATIN * 6 + STORY[:60]],
    "japanese": ["私たちは東京の大学で日本語を勉強しています。電車で学校へ行きます。毎日図書館で本を読みます。" * 2 + STORY],
    "cantonese": [
        "佢哋話聽日唔使返工，我哋就去飲茶囉，你嚟唔嚟㗎？嗰間酒樓啲點心好好食嘅，不過人好多，要早啲去先有位，記得畀個電話我。"
    ],
    "few_letters": [STORY[:60] + "~!@#$%^&*()_+-=|;:,.<>?/" * 10],
    "few_function_words": [
        "手机报价，电脑品牌，相机维修，空调安装，冰箱促销，洗衣机型号，电视尺寸，耳机评测，音箱排行，打印机耗材，键盘批发，鼠标采购，显卡回收，"
        "沙发定制，窗帘设计，地板抛光，门锁开启，水管疏通，电梯保养，汽车租赁，轮胎更换，机油报价，保险代办。"
    ],
    "few_sentences": ["\n".join(f"第{i}讲 线性代数矩阵理论介绍" for i in "一二三四五六七八九十")],
    "list_like": [
        MENU + "\n欢迎来到本公司的网站，我们的产品在国内外有很好的声誉。\n我们的目标是成为行业的领导者。",
        "\n".join("- " + s for s in SENTENCES),
    ],
    "broken_off": ["\n".join(s[:-1] + "..." for s in SENTENCES[:4]) + "\n" + STORY],
    "repeated_lines": ["\n".join([*SENTENCES, *SENTENCES[:4]])],
    "repeated_ngrams": ["是的，" + "哈哈" * 40 + "。", STORY * 6],
    "gambling": [STORY + GAMBLING],
    "adult": [STORY + ADULT],
    "advertising": [STORY + ADVERTISING],
}
KEPT = [
    STORY,
    "\n".join(SENTENCES),
    HANS,
    STORY + "\ufffd",
    STORY + "××××××",
    STORY + "café «voilà» naïve São Paulo Müller",
    STORY
    + "他在博彩公司工作，那里有赌场和老虎机，也有六合彩。"
    + HANS
    + "".join(reversed(SENTENCES))
    + "经济的发展与历史的关系，是学者们在各个时期都要研究的课题。",
    STORY + "ドラマ「東京」",
    # a statute with its table of contents
    "中华人民共和国某某法\n第一章 总 则\n第二章 行政处罚\n第三章 附 则\n第一章 总 则\n"
    "第一条 为了规范行政处罚的设定和实施，制定本法。\n"
    "第二条 行政处罚的设定和实施，适用本法。\n第三条 没有法定依据的，行政处罚无效。\n"
    "第二章 行政处罚\n第四条 行政处罚由有权的行政机关实施。\n"
    "第三章 附 则\n第五条 本法自公布之日起施行。",
    # minutes
    "主席：现在开会。\n主席：报告表决结果：出席委员105人，赞成者40人，反对者62人，弃权者3人，赞成者少数，本案不通过。\n主席：请表决第二案。\n"
    "主席：报告表决结果：出席委员104人，赞成者60人，反对者42人，弃权者2人，赞成者多数，本案通过。\n主席：请表决第三案，并由提案人说明。\n"
    "李委员：主席、各位同事。这个案子在上个会期已经讨论过，当时的共识是先听取专家的意见，再来作成决定。\n王委员：我也赞成。",
    # code among prose
    "在 Python 中，可以用 for 循环遍历列表，如下面的例子所示。\nfor i in range(10):\nprint(i)\nx = [1, 2, 3]\nreturn x[0] + 1\n"
    "上面的代码会打印从 0 到 9 的数字。如果要在循环中得到序号，可以用 enumerate 函数，它返回的是序号和元素的二元组。",
    # verses, with and without punctuation
    "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。\n白日依山尽，黄河入海流。\n欲穷千里目，更上一层楼。\n"
    "春眠不觉晓，处处闻啼鸟。\n夜来风雨声，花落知多少。\n人闲桂花落，夜静春山空。\n月出惊山鸟，时鸣春涧中。",
    "你们要称谢他，因他本为善，他的慈爱永远长存。\n你们要称谢万神之神，因他的慈爱永远长存。\n你们要称谢万主之主，因他的慈爱永远长存。\n"
    "称谢那独行大奇事的，因他的慈爱永远长存。\n称谢那用智慧造天的，因他的慈爱永远长存。\n称谢那铺地在水以上的，因他的慈爱永远长存。",
    # modern verses, which have none
    "掌上的时间\n怎么抓也抓不住\n好像一串鞭炮\n一天一响\n鸣亮白昼\n也消失夜晚\n让我们的手心\n攥满工作\n不能懈怠\n以成功和喜悦\n献给新的节日\n庆祝我们新的辉煌",
    # half-width punctuation
    "昨天刚从南京回来,去之前经过反复比较后挑了这家酒店,房间不大但是很干净,早餐的种类也很多,下次来的时候还会住在这里,推荐给大家",
    # dialogue
    "你好。\n你好！\n你在忙什么？\n没什么，在看书。\n什么书？\n一本关于历史的书。\n好看吗？\n好看。\n是谁写的？\n是一位年轻的作者写的。\n"
    "借我看看？\n好啊，明天带给你。\n谢谢！\n不客气。\n那明天见。\n明天见。",
    # classical
    "子曰：学而时习之，不亦说乎？有朋自远方来，不亦乐乎？人不知而不愠，不亦君子乎？有子曰：其为人也孝弟，而好犯上者，鲜矣；"
    "不好犯上，而好作乱者，未之有也。君子务本，本立而道生。孝弟也者，其为仁之本与！",
    # medicine
    "阴道炎是妇科的常见疾病，患者应当及时就医，由医生检查以后决定治疗的方案。性交疼痛、阴茎勃起障碍等问题也可以在门诊咨询，"
    "医生会为病人保密。青少年的性教育和避孕知识，在学校和家庭中都应当得到重视。",
]


def in_both_scripts(texts):
    convert = opencc.OpenCC("s2tw").convert
    return [version for text in texts for version in dict.fromkeys((text, text if "锟" in text else convert(text)))]


def test_every_rule_has_examples():
    assert [reason for reason in FILTERS if reason not in DROPPED] == ["wrong_script", "wrong_language"]


@pytest.mark.parametrize(("reason", "text"), [(r, t) for r, texts in DROPPED.items() for t in in_both_scripts(texts)])
def test_rule_drops(reason, text):
    assert FILTERS[reason](Page(text), Thresholds())
    assert drop_reason(text, Thresholds()) in (reason, "too_short")


@pytest.mark.parametrize("text", in_both_scripts(KEPT))
def test_no_rule_drops(text):
    assert drop_reason(text, Thresholds(min_han_characters=30)) is None


@pytest.mark.parametrize("scripts", [["hans"], ["hant"], ["hans", "hant"]])
def test_scripts_that_are_not_wanted(scripts):
    for script, text in (("hans", STORY), ("hant", opencc.OpenCC("s2t").convert(STORY))):
        assert drop_reason(text, Thresholds(scripts=scripts)) == (None if script in scripts else "wrong_script")


RARE = "龘靐齉" * 4
ORDINARY = "".join(chr(0x4E00 + i) for i in range(300))


@pytest.mark.parametrize(
    ("reason", "field", "strict", "lax", "text"),
    [
        ("too_short", "min_han_characters", 6, 5, "五个汉字啊"),
        ("not_chinese", "min_han_share", 0.51, 0.49, "一二三四五六七八九十abcdefghij"),
        ("japanese", "max_kana_share", 0.09, 0.11, "一二三四五六七八九の"),
        ("cantonese", "max_cantonese_share", 0.09, 0.11, "一二三四五六七八九嘅"),
        ("garbled", "max_garbled_share", 0.09, 0.11, "一二三四五六七八九\ufffd"),
        ("garbled", "max_rare_share", 0.24, 0.26, RARE + "一" * 36),
        ("few_letters", "min_letter_share", 0.51, 0.49, "一二三四 五，，，，，"),
        ("few_function_words", "min_function_word_share", 0.21, 0.19, "二三四五六七八九十的" * 20),
        ("few_sentences", "min_sentence_line_share", 0.26, 0.24, "甲甲甲\n乙乙乙\n丙丙丙\n丁。"),
        ("list_like", "max_bare_lines", 0.29, 0.31, "甲甲\n乙乙\n丙丙\n丁"[:9] + "，"),
        ("list_like", "max_bullet_line_share", 0.49, 0.51, "- 甲，\n乙，\n" * 3 + "- 甲，\n乙，"),
        ("list_like", "max_list_function_word_share", 0.3, 0.25, "我的甲\n乙乙\n丙丙\n丁，"),
        ("broken_off", "max_ellipsis_line_share", 0.49, 0.51, "甲...\n乙…\n丙。\n丁……"),
        ("repeated_lines", "max_repeated_line_share", 0.3, 0.34, "一二三四五六七八九\n一二三四五六七八九\n甲乙丙丁戊己庚辛"),
        ("repeated_ngrams", "max_top_ngram_share", 0.02, 0.03, ORDINARY + "丁万丂七" * 2),
        ("repeated_ngrams", "max_repeated_ngram_share", 0.08, 0.2, ORDINARY + ORDINARY[100:150]),
        ("gambling", "max_spam_per_thousand", 13.0, 13.5, "百家乐时时彩老虎机六合彩" + ORDINARY[12:]),
        ("gambling", "min_spam_terms", 3, 4, "百家乐时时彩老虎机" + ORDINARY[9:]),
    ],
)
def test_thresholds_are_what_the_settings_say(reason, field, strict, lax, text):
    assert FILTERS[reason](Page(text), Thresholds(**{field: strict}))
    assert not FILTERS[reason](Page(text), Thresholds(**{field: lax}))


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_ngram_runs_are_exact(n):
    text = "".join(random.Random(n).choices("甲乙丙丁", k=300)) * 2
    expected = Counter(text[i : i + n] for i in range(len(text) - n + 1))
    assert sorted(ngram_runs(Page(text).codes, n).tolist()) == sorted(expected.values())


class FakeModel:
    """What fastText gives for a page: the likeliest labels and their probabilities."""

    def __init__(self, path):
        assert path == "lid.bin"

    def predict(self, text, k):
        assert "\n" not in text  # fastText refuses more than one line
        return ("__label__cmn_Hani", "__label__yue_Hani", "__label__lzh_Hani")[:k], [0.6, 0.2, 0.1]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, None),
        ({"languages": ["cmn_Hani"]}, "wrong_language"),
        ({"languages": ["cmn_Hani"], "min_language_score": 0.5}, None),
        ({"languages": ["yue_Hani"]}, "wrong_language"),
        ({"min_language_score": 0.8}, "wrong_language"),
    ],
)
def test_a_language_model_decides_too(monkeypatch, fields, reason):
    monkeypatch.setitem(sys.modules, "fasttext", types.ModuleType("fasttext"))
    monkeypatch.setitem(sys.modules, "fasttext.FastText", types.SimpleNamespace(_FastText=FakeModel))
    load_language_model.cache_clear()
    assert drop_reason("\n".join(SENTENCES), Thresholds(language_model="lid.bin", **fields)) == reason
    load_language_model.cache_clear()


def test_a_file_that_is_no_language_model_is_named(tmp_path):
    pytest.importorskip("fasttext", reason="fastText is not installed")
    (tmp_path / "bad.bin").write_bytes(b"not a model")
    with pytest.raises(InputError, match=r"bad\.bin"):
        drop_reason(STORY, Thresholds(language_model=str(tmp_path / "bad.bin")))


def test_a_missing_fasttext_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fasttext.FastText", None)
    with pytest.raises(InputError, match="pip install"):
        drop_reason(STORY, Thresholds(language_model="other.bin"))
