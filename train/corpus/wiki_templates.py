"""Templates of Chinese Wikipedia that stand in sentences -> what a reader sees of them, as wikitext.

A dump has the names of templates and what they are given, not what they show. So those that sentences need are rendered here:
numbers with their units, currencies, dates, countries, stations, words in other languages, formulas. A template of another kind
is one of two. If it shows a number (its name says so, or its first parameter is one) or a country, it is LOST, and the sentence
goes. Else it is a GAP: nothing, unless there are words directly before and behind it, where a sentence would have a hole.
"""

import re
from collections.abc import Callable

from zh_modernbert.train.corpus.characters import convert_script
from zh_modernbert.train.corpus.wikitext import GAP, LOST, superscript

# --- parameters ---

_PARAMETER = re.compile(r"\[\[|\]\]|\|")
_NUMBER = re.compile(r"[-−+]?\.?\d[\d.,/]*+(?:e[-−+]?\d+)?", re.IGNORECASE)


def split_template(inside: str) -> tuple[str, list[str], dict[str, str]]:
    """The name of a template, its parameters without a name in order, and those with one, whose names are in lower case.

    Args:
        inside: what stands between the braces. A bar inside a link parts no parameters.
    """
    pieces, start, depth = [], 0, 0
    for match in _PARAMETER.finditer(inside):
        if match[0] != "|":
            depth = max(depth + (1 if match[0] == "[[" else -1), 0)
        elif not depth:
            pieces.append(inside[start : match.start()])
            start = match.end()
    name, *parameters = [*pieces, inside[start:]]
    positional, named = [], {}
    for parameter in parameters:
        key, equals, value = parameter.partition("=")
        if equals and not set(key) & set("<[{"):
            named[key.strip().lower()] = value.strip()
        else:
            positional.append(parameter.strip())
    numbered = {int(key) - 1: value for key, value in named.items() if key in ("1", "2", "3", "4", "5", "6")}
    for place in sorted(numbered):
        positional += [""] * (place + 1 - len(positional))
        positional[place] = positional[place] or numbered[place]
    return " ".join(name.replace("_", " ").split()), positional, named


def is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None


def with_commas(number: str) -> str:
    """1234567.5 as 1,234,567.5; anything else as it is."""
    match = re.fullmatch(r"([-−+]?)(\d{4,30})(\.\d+)?", number)
    return f"{match[1]}{int(match[2]):,}{match[3] or ''}" if match else number


# --- numbers and units ---

# What `convert` calls units.
_UNITS = {
    name: unit
    for unit, names in {
        "km²": "km2 sqkm",
        "m²": "m2 sqm",
        "cm²": "cm2",
        "km³": "km3",
        "m³": "m3",
        "cm³": "cm3 cc",
        "°C": "c °c",
        "°F": "f °f",
        "μm": "um μm µm",
        "km/h": "km/h kph",
        "kg/m³": "kg/m3",
        "N·m": "nm n.m",
        "英里": "mi mile miles",
        "英尺": "ft foot feet",
        "英寸": "in inch inches",
        "码": "yd yard yards",
        "英寻": "fathom fathoms",
        "海里": "nmi",
        "平方英里": "sqmi mi2",
        "平方英尺": "sqft ft2",
        "平方英寸": "sqin in2",
        "英亩": "acre acres",
        "公顷": "ha hectare hectares",
        "立方英尺": "cuft ft3",
        "磅": "lb lbs",
        "盎司": "oz",
        "英石": "st",
        "吨": "t tonne tonnes mt",
        "长吨": "lt long-ton long-tons",
        "短吨": "short-ton short-tons",
        "美制加仑": "usgal",
        "英制加仑": "impgal",
        "桶": "bbl",
        "马力": "hp",
        "公制马力": "ps",
        "英里/小时": "mph",
        "英尺/秒": "ft/s",
        "节": "kn knot knots",
        "光年": "ly",
        "天文单位": "au",
        "秒差距": "pc",
    }.items()
    for name in names.split()
}
_SYMBOL = re.compile(
    r"[kdcm]?m|[kmμ]?g|[mk]?l|m?L|[kMG]?W|kWh|k?V|[kMG]?Hz|[kM]?J|K|[khM]?Pa|bar|psi|rpm|[m]?s|min|h|k?N|m/s|km/s"
)
_SMALLER = {"ft": "in", "yd": "ft", "mi": "yd", "lb": "oz", "st": "lb"}  # 5 ft 10 in
_RANGES = {
    name: shown
    for shown, names in {
        "–": "- – — to ~ 至 到",
        "×": "x × by xx *",
        "±": "+/- ±",
        "和": "and & 和",
        "或": "or 或",
        "、": ",",
    }.items()
    for name in names.split()
}


def unit_name(unit: str) -> str | None:
    return unit if _SYMBOL.fullmatch(unit) else _UNITS.get(unit.lower().replace(" ", "-"))


def convert(values: list[str], named: dict[str, str]) -> str:
    """`convert|5|-|10|km|mi` is 5–10km. What the number is in the other unit is left out."""
    if not values or set(named.get("disp", "").split()) & {"out", "unit", "unit2", "number", "output"}:
        return LOST
    shown, place = "", 0
    while True:
        if place + 1 >= len(values) or not is_number(values[place]):
            return LOST
        shown += with_commas(values[place])
        between = _RANGES.get(values[place + 1].lower())
        if between and place + 3 < len(values):
            shown, place = shown + between, place + 2
            continue
        unit = unit_name(values[place + 1])
        if unit is None:
            return LOST
        shown += unit
        if place + 3 >= len(values) or _SMALLER.get(values[place + 1]) != values[place + 3]:
            return shown
        place += 2


def formatnum(values: list[str], named: dict[str, str]) -> str:
    number = values[0] if values else ""
    if not is_number(number):
        return LOST
    return number.replace(",", "") if values[1:] == ["R"] else with_commas(number)


def measured(values: list[str], named: dict[str, str]) -> str:
    """`val|1.5|0.2|e=6|u=kg` is 1.5±0.2×10⁶ kg."""
    units = [named[key] for key in ("u", "ul", "up", "upl") if key in named]
    if not values or not all(map(is_number, values[:2])) or len(values) > 2 or {"p", "s"} & named.keys():
        return LOST
    power = f"×10{superscript(named['e'])}" if "e" in named else ""
    per = "/" if "up" in named or "upl" in named else " "
    return "±".join(map(with_commas, values)) + power + "".join((" " if i == 0 else per) + u for i, u in enumerate(units))


def fraction(values: list[str], named: dict[str, str]) -> str:
    """`frac|3` is 1/3, `frac|1|3` too, `frac|2|1|3` is 2 1/3."""
    parts = ["1", *values] if len(values) == 1 else values
    if not 2 <= len(parts) <= 3 or not all(parts):
        return LOST
    return f"{parts[0]} {parts[1]}/{parts[2]}" if len(parts) == 3 else "/".join(parts)


def power_of_ten(values: list[str], named: dict[str, str]) -> str:
    exponent = superscript(values[0]) if values else ""
    return LOST if exponent.isascii() else f"×10{exponent}"


# --- money and dates ---

_CURRENCIES = {
    name: sign
    for sign, names in {
        "NT$": "nt$ ntd twd 新台幣 新臺幣",
        "US$": "us$ usd 美元",
        "HK$": "hk$ hkd 港元 港幣",
        "¥": "rmb cny cny¥ rmb¥ ¥ 人民币 人民幣",
        "MOP$": "mop mop$",
        "JP¥": "jpy jp¥ 日圓 日元",
        "€": "eur € 欧元 歐元",
        "£": "gbp £ 英镑 英鎊",
        "A$": "a$ aud au$",
        "C$": "c$ cad ca$",
        "NZ$": "nz$ nzd",
        "S$": "s$ sgd",
        "₩": "krw ₩ 韓圓 韩元",
        "₹": "inr ₹ indian rupee",
        "₽": "rub",
        "฿": "thb ฿",
        "₱": "php ₱",
        "RM": "myr rm",
        "Rp": "idr",
        "₫": "vnd",
    }.items()
    for name in names.split()
}


def money(sign: str) -> Callable:
    def amount(values: list[str], named: dict[str, str]) -> str:
        return sign + with_commas(values[0]) if values and values[0][:1].isdigit() else LOST

    return amount


def day(values: list[str]) -> str:
    """`2010|5|3` as 2010年5月3日, and less where less is given."""
    parts = list(zip(values[:3], "年月日", strict=False))
    if not parts or not all(value.isdecimal() and len(value) < 5 for value, _ in parts):
        return LOST
    return "".join(f"{int(value)}{unit}" for value, unit in parts)


def date(values: list[str], named: dict[str, str]) -> str:
    return day([value for value in values[:3] if value])


def since(values: list[str], named: dict[str, str]) -> str:
    return f"截至{day(values)}" if day(values) != LOST else LOST


def lifetime(values: list[str], named: dict[str, str]) -> str:
    """`bd|1900年|1月2日|1980年|3月4日` is 1900年1月2日－1980年3月4日."""
    birth, death = "".join(values[:2]), "".join(values[2:4])
    return f"{birth}－{death}" if birth or death else GAP


# --- words ---

_CODES = (
    "CHN中国 PRC中华人民共和国 ROC中华民国 TWN台湾 TPE中华台北 HKG香港 MAC澳门 JPN日本 KOR韩国 PRK朝鲜 "
    "MGL蒙古国 VIE越南 VNM越南 THA泰国 SIN新加坡 SGP新加坡 MAS马来西亚 MYS马来西亚 INA印度尼西亚 IDN印度尼西亚 "
    "PHI菲律宾 PHL菲律宾 IND印度 PAK巴基斯坦 BAN孟加拉国 SRI斯里兰卡 NEP尼泊尔 MMR缅甸 CAM柬埔寨 LAO老挝 "
    "KAZ哈萨克斯坦 UZB乌兹别克斯坦 IRN伊朗 IRI伊朗 IRQ伊拉克 ISR以色列 KSA沙特阿拉伯 QAT卡塔尔 UAE阿联酋 "
    "TUR土耳其 RUS俄罗斯 URS苏联 USSR苏联 UKR乌克兰 BLR白俄罗斯 POL波兰 GER德国 DEU德国 FRG西德 GDR东德 "
    "FRA法国 GBR英国 UK英国 ENG英格兰 SCO苏格兰 WAL威尔士 IRL爱尔兰 ITA意大利 ESP西班牙 POR葡萄牙 PRT葡萄牙 "
    "NED荷兰 NLD荷兰 BEL比利时 SUI瑞士 CHE瑞士 AUT奥地利 SWE瑞典 NOR挪威 DEN丹麦 DNK丹麦 FIN芬兰 ISL冰岛 "
    "GRE希腊 GRC希腊 HUN匈牙利 CZE捷克 SVK斯洛伐克 ROU罗马尼亚 BUL保加利亚 SRB塞尔维亚 CRO克罗地亚 HRV克罗地亚 "
    "YUG南斯拉夫 USA美国 US美国 CAN加拿大 MEX墨西哥 CUB古巴 BRA巴西 ARG阿根廷 CHI智利 CHL智利 PER秘鲁 "
    "COL哥伦比亚 URU乌拉圭 AUS澳大利亚 NZL新西兰 EGY埃及 RSA南非 ZAF南非 NGA尼日利亚 KEN肯尼亚 ETH埃塞俄比亚 "
)
_COUNTRY = re.compile("[A-Z]{3}")  # shows its flag and name; those that are not listed are LOST
_COUNTRIES = dict(re.findall(r"([A-Z]+)(\S+)", _CODES))
# Templates that show some of their parameters: "12" shows 1 and 2 together, "3 1" shows 3, or 1 if 3 is empty.
_SHOWN = {
    name: parameters
    for parameters, names in {
        "1": "nowrap nobr nobreak small smaller big larger large nobold bold b i em strong u underline ins abbr tooltip ruby "
        "ruby-ja 僻字 缺字 quote cquote quotation blockquote illm ill2 liw 多語言連結 跨語言連結 nihongo nihongo2 nihongo3 "
        "unicode code mono tt kbd key samp var mvar math chem2 ce angbr dl 消歧义链接 消歧義連結 vanchor lj",
        "2": "lang langx color colour fontcolor transl transliteration ill wikt-lang",
        "2 1": "font wikt",
        "3 1": "le ilh",
        "4 3": "tsl translink",
        "123456": "linktext gaps chem",
    }.items()
    for name in names.split()
} | {"font color": "2", "interlanguage link": "1", "interlanguage link multi": "1", "visible anchor": "1"}
_SHOWN_FAMILIES = {"lang-": "1", "link-": "3 1", "internal link helper": "3 1"}
_CHARACTERS = {
    name: shown
    for shown, names in {
        "·": "· • . dot middot",
        " ": "nbsp space spaces",
        " – ": "snd spaced-ndash",
        "–": "ndash –",
        "—": "mdash —",
        "π": "pi",
        "∞": "infin",
        "×": "times",
        "±": "+- ± plusminus",
        "−": "minus",
        "|": "!",
        "&#61;": "=",  # would part a name from its value
        "'": "'",
    }.items()
    for name in names.split()
}
# Templates that show nothing in the text: notes and references behind a word, warnings, names of languages, pictures.
_NOTHING = re.compile(
    r"(?:cn|fact|citation needed|来源请求|來源請求|cite .*|citation|r|ref.*|fn.?|rp|sfn.*|harv.*|efn.*|note.*|dead link"
    r"|失[效效][連链][結结接]|wayback|webarchive|cbignore|who|when|where|which|why|how|by whom|whom|[谁誰]|何[时時地]|clarify"
    r"|vague|or|pov|specify|dubious|weasel.*|peacock.*|原[創创]研究.*|需要.*"
    r"|better source.*|primary source.*|page needed|anchors?"
    r"|flagicon.*|flagdeco|flag icon|audio|ipa.*|pronunciation|pinyin|zhuyin|bopomofo|in lang|[a-z]{2}(?: icon)?|clear|-|clr"
    r"|defaultsort:.*|displaytitle:.*|#tag:ref.*|col-.*|gap|zwj|color ?box|legend.*|rail color box|rcb)"
)
_NUMBER_NAMES = re.compile(
    r"(?:age|#expr|#time|current|local(?:year|month|day|time)|numberof|percent|inflation|to usd|pagename|fullpagename).*"
)


def station(values: list[str], named: dict[str, str]) -> str:
    name = values[0] if values else ""
    return name if name.endswith("站") else f"{name}站" if name else LOST


def flag(values: list[str], named: dict[str, str]) -> str:
    return named.get("name") or _COUNTRIES.get(values[0], values[0]) if values else GAP


def root(values: list[str], named: dict[str, str]) -> str:
    return f"√{values[0]}" if len(values) == 1 else LOST


def raised(values: list[str], named: dict[str, str]) -> str:
    return superscript(values[0]) if values else ""


def choice(values: list[str], named: dict[str, str]) -> str:
    """`#if:condition|then|else`."""
    return (*values, "", "")[1 if values and values[0] else 2]


def first(values: list[str], named: dict[str, str]) -> str:
    return "".join(values[:1])


def about(values: list[str], named: dict[str, str]) -> str:
    return f"约{first(values, named)}"


def japanese(values: list[str], named: dict[str, str]) -> str:
    return named.get("j") or named.get("kanji") or GAP


def coordinates(values: list[str], named: dict[str, str]) -> str:
    return "" if named.get("display") in ("title", "t") else LOST


_RENDERERS = {
    convert: "convert cvt",
    formatnum: "formatnum num nts",
    measured: "val",
    fraction: "frac sfrac fraction tfrac 分數 分数",
    power_of_ten: "e",
    raised: "sup",
    first: "sub lc uc lcfirst ucfirst",
    root: "sqrt radic 根號",
    about: "circa c. 約 约",
    date: "birth-date birth-date-and-age death-date death-date-and-age start-date start-date-and-age end-date date dts bda dda "
    "出生日期 出生日期和年齡 死亡日期",
    since: "as-of 截至",
    lifetime: "bd 生卒年",
    station: "stn sta rws station stnlnk 站",
    flag: "flag flagu flagcountry flag-country fb nft country",
    coordinates: "coord",
    japanese: "jpn",
    choice: "#if",
}
_RENDERED = {name: renderer for renderer, names in _RENDERERS.items() for name in names.split()} | {
    name: money(sign) for name, sign in _CURRENCIES.items()
}
_IN_SIMPLIFIED = (convert, flag, about)  # have words of their own


def shown_parameters(name: str) -> str:
    return _SHOWN.get(name) or next((shown for prefix, shown in _SHOWN_FAMILIES.items() if name.startswith(prefix)), "")


def template_text(inside: str, script: str) -> str:
    """What a reader of `script` sees of a template, in wikitext; LOST or GAP where that is not known.

    Args:
        inside: what stands between the braces, with the templates in it rendered.
    """
    written, values, named = split_template(inside)
    if not values and written in _COUNTRIES:
        return convert_script(_COUNTRIES[written], script)
    name = written.lower()
    if (function := re.match(r"#?[a-z]+(?=:)", name)) and not _NOTHING.fullmatch(name):  # formatnum:1234 is given 1234
        name, values = function[0], [written[function.end() + 1 :].strip(), *values]
    dashed = name.replace(" ", "-")
    if dashed in _CHARACTERS:
        return _CHARACTERS[dashed]
    if renderer := _RENDERED.get(dashed):
        text = renderer(values, named)
        return convert_script(text, script) if renderer in _IN_SIMPLIFIED else text
    if shown := shown_parameters(name):
        texts = (
            "".join(values[int(number) - 1] for number in together if int(number) <= len(values)) for together in shown.split()
        )
        return next(filter(None, texts), named.get("text", GAP if named else ""))
    if _NOTHING.fullmatch(name):
        return ""
    shows_number = _NUMBER_NAMES.fullmatch(name) or (values and values[0][:1].isdigit() and len(values[0]) < 20)
    is_country = not values and _COUNTRY.fullmatch(written)
    return LOST if shows_number or is_country else GAP
