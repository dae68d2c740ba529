"""Lines of a page go, lines of its text that look alike stay, in both scripts."""

import opencc
import pytest

from zh_modernbert.train.corpus.boilerplate import is_boilerplate, strip_boilerplate

TEXT = "这本书讲述了中国历史上几个重要时期的经济发展。"


def both_scripts(texts):
    return [version for text in texts for version in dict.fromkeys((text, opencc.OpenCC("s2tw").convert(text)))]


PAGE_LINES = [
    "上一篇：市政府召开会议部署防汛工作",
    "下一篇：没有了",
    "上一节：闭包",
    "【上一页】",
    "责任编辑：王小明",
    "（编辑：李四）",
    "版权所有 某某网络科技有限公司",
    "Copyright © 2010-2020 example All Rights Reserved.",
    "京ICP备12345678号-1",
    "沪公网安备 31010102001234号",
    "未经授权，不得转载，转载请注明出处。",
    "转载请注明来源：某某网",
    "点击查看更多精彩内容",
    ">> 查看更多",
    "阅读全文",
    "分享到：新浪微博 微信 QQ空间",
    "首页 > 新闻中心 > 国内",
    "首页 | 关于我们 | 联系我们 | 网站地图",
    "当前位置：首页 > 新闻 > 正文",
    "相关阅读",
    "扫一扫关注我们的微信公众号",
    "浏览次数：1,234",
    "字体：大 中 小",
    "返回顶部",
    "我要评论（12）",
    "Read more »",
    "Powered by WordPress",
    "Home | About | Contact",
]
PROSE_LINES = [
    "上一篇文章中，我们介绍了如何安装软件。",
    "下一章将讨论这个问题。",
    "本书版权所有者应当享有署名权。",
    "著作权人的版权归属由合同约定。",
    "编辑部的同事们正在讨论选题。",
    "点击“确定”按钮，然后查看结果。",
    "他在首页上看到了这条新闻。",
    "阅读是一种习惯。",
    "分享使人快乐。",
    "第一章 总则",
    "搜索",
    "新闻",
    "浏览器",
    "打印",
    "字体大小",
    "免责声明：我没有参加过法律培训，以下内容无意作为正式的法律建议。",
    "违反本条例的，由文化行政部门吊销《网络文化经营许可证》：",
    "你可以扫描下方的二维码，或直接下载文件。",
    "未经许可并办理相关手续的，不得印刷报纸、期刊、图书，不得复制音像制品。",
    "「版权所有，翻印必究」的部分可以释放吗？",
    "作者：鲁迅",
    "日月星辰|山川草木",
    "更多的人开始学习汉语。",
]


@pytest.mark.parametrize("line", [*both_scripts(PAGE_LINES), "友善列印", "回首頁 | 隱私權政策"])
def test_lines_of_the_page_go(line):
    assert is_boilerplate(line)
    assert strip_boilerplate(f"{TEXT}\n{line}\n{TEXT}") == f"{TEXT}\n{TEXT}"


@pytest.mark.parametrize("line", both_scripts(PROSE_LINES))
def test_lines_of_the_text_stay(line):
    assert strip_boilerplate(line) == line
