"""Lines that belong to a web page and not to its text: navigation, imprint, counters, calls to click and to share.

Patterns are written in Simplified and match Traditional too.
"""

import re

from zh_modernbert.train.corpus.characters import converter, in_both_scripts

# Texts of links. A line of several is navigation; one alone may be a heading.
_NAVIGATION_WORDS = (
    "首页 网站首页 返回首页 回首页 主页 上一页 下一页 上页 下页 末页 尾页 关于我们 联系我们 网站地图 "
    "网站导航 加入收藏 设为首页 收藏本站 登录 登入 注册 会员登录 会员中心 免费注册 忘记密码 搜索 搜寻 "
    "新闻 新闻中心 资讯 产品 产品中心 产品展示 公司简介 公司新闻 招聘 人才招聘 在线留言 留言板 论坛 博客 "
    "社区 视频 图片 下载 更多 分享 收藏 点赞 评论 转发 举报 打印 打印本页 关闭 关闭窗口 返回顶部 "
    "返回列表 国内 国际 娱乐 体育 财经 科技 军事 汽车 房产 旅游 教育 健康 时尚 游戏 购物 微信 微博 qq "
    "qq空间 新浪微博 腾讯微博 人人网 豆瓣 脸书 推特 隐私政策 隐私权政策 服务条款 使用条款 免责声明 "
    "法律声明 版权声明 友情链接 广告服务 客服中心 帮助中心 大 中 小 home about contact login register "
    "search news products blog facebook twitter line rss share tweet top menu english faq"
)
_NAVIGATION = frozenset(w for config in ("t2s", "s2t", "s2tw") for w in converter(config).convert(_NAVIGATION_WORDS).split())
# Lines that belong to the page, without their decorations.
_PAGE_LINE = in_both_scripts(
    "|".join(
        (
            r"(?:当前位置|(?:您|你)?(?:现在的?|的|所在)位置|(?:您|你)(?:现在)?在这里)\s*[:：].{0,80}",
            r"(?:上|下|前|后)一?(?:篇|页|章|节|则|条)(?:文章|新闻|资讯|信息)?\s*(?:[:：>»›→|].{0,80})?",
            r"(?:返回|回到?)(?:顶部|页首|页顶|列表|首页|目录|上一?页|上级)",
            r"(?:责任编辑|责编|本文编辑|文字编辑|网络编辑|实习编辑|编辑|校对|审核|审稿|排版|供稿)\s*[:：][^。！？，]{1,30}",
            r"(?:(?:未经|如需|如欲|欢迎|本文)[^。]{0,30})?(?:(?:不得|禁止|谢绝|请勿)[^。]{0,6}转载|转载[，,]?(?:请|须|需|务必|自)).{0,60}",
            r"(?:免责|版权|特别)声明\s*[:：].{0,40}(?:本站|本网|转载|侵权).{0,100}",
            r"(?:原文|本文)(?:链接|网址|地址|出处)\s*[:：]?",
            r"(?:点击|点此|点选|戳)(?:这里|此处)?(?:查看|阅读|观看|进入|浏览)(?:更多|全文|详情|原文|大图|原图|完整)[^。]{0,20}",
            r"(?:查看|阅读|浏览|展开|了解)(?:更多|全文|余下全文|原文|详情|大图|全部(?=$|评论|内容|文章|回复))[^。，]{0,12}",
            r"分享(?:到|至|给好友|本文|此文)[^。，]{0,40}",
            r"(?:相关|推荐|热门|精彩|最新|延伸|更多)(?:阅读|文章|新闻|推荐|链接|帖子|评论|内容|资讯|专题)\s*[:：>»]*",
            r"(?:猜你喜欢|你可能(?:还|也)?喜欢|大家都在看|看了又看|热点推荐|编辑推荐|今日推荐|热门标签|友情链接)\s*[:：]?",
            r"(?:我要|发表|网友|最新|全部|暂无|查看)评论\s*(?:[(（]\d*)?|(?:登录|注册)后?(?:才能|即可|可以)?(?:发表)?(?:评论|回复)",
            r"(?:浏览|阅读|点击|访问|点阅)(?:次数|量|数|人次|人气)?\s*[:：(（]\s*\d[\d,]*\s*次?",
            r"(?:字号|字体|字体大小)\s*[:：【\[(（]\s*大[\s中小默认特|/]*",
            r"(?:请|欢迎)?(?:扫一扫|扫描|扫码|长按)[^。，]{0,16}(?:关注|加入|进群|下载)[^。，]{0,30}",
            r"(?:加入收藏|设为首页|收藏本站|打印本页|友善列印|转寄友人|添加收藏|举报投诉|会员登录|免费注册)",
            r"(?i:(?:read|view|see|show|load|learn) (?:more|full (?:story|article)|all)|share (?:this|on|to) .{0,30}|"
            r"(?:skip|jump) to (?:main )?content|subscribe(?: now)?|follow us.{0,30}|powered by .{0,40}|back to top|"
            r"leave a (?:comment|reply))",
        )
    )
)
# Phrases of an imprint. A line with one is dropped, unless it is a sentence.
_IMPRINT = in_both_scripts(
    r"ICP(?:备|证)\s?\d{5,}|公网安备\s?\d{8,}|版权所有(?![者人权])|版权归\S{1,20}所有|[Rr]ights [Rr]eserved|RIGHTS RESERVED|"
    r"[Cc]opyright ?(?:©|\([Cc]\)|[12]\d{3})|© ?[12]\d{3}|(?:增值电信业务|互联网新闻信息|网络文化)\S{0,6}许可证(?=[^》]{0,6}\d)"
)
_SENTENCE = re.compile(r"[；？！?「」“”…]|，.*，|。.|[一-龥]：$")
_DECORATION = " 【】[]()（）<>«»‹›←→↑^…|｜·•▲▼◆■★☆*#-—_+"
_SEPARATORS = re.compile(r"[|｜>›»·•/\s]+")
_LONGEST_PAGE_LINE = 150


def is_boilerplate(line: str) -> bool:
    """Whether a line belongs to the page and not to the text: navigation, imprint, counters, calls to click and to share."""
    if len(line) > _LONGEST_PAGE_LINE:
        return False
    core = line.strip(_DECORATION)
    return (
        (_SEPARATORS.search(core) is not None and _NAVIGATION.issuperset(_SEPARATORS.split(core.lower())))
        or _PAGE_LINE.fullmatch(core) is not None
        or (_IMPRINT.search(line) is not None and _SENTENCE.search(line) is None)
    )


def strip_boilerplate(text: str) -> str:
    """The text without the lines that are boilerplate. Lines are dropped or kept as a whole."""
    lines = text.split("\n")
    kept = [line for line in lines if not is_boilerplate(line)]
    return "\n".join(kept) if len(kept) < len(lines) else text
