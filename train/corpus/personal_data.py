"""Personal data -> fixed placeholders, also beside Han without a space. Numbers with a check digit need the right one."""

import ipaddress
import re
from collections.abc import Callable
from datetime import date

# Digits are ASCII: the flag keeps those of other scripts out.
_START, _END = r"(?<![A-Za-z0-9_.\-/@#])", r"(?![A-Za-z0-9_/\-]|\.\d)"  # Han may stand directly before and after
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"  # without leading zeros, which no address has
_NO_AMOUNT = "(?! ?[元圆圓万萬亿億%％])"


def _luhn(number: str) -> bool:
    digits = [int(character) for character in number if character.isdigit()]
    return (sum(digits[-1::-2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])) % 10 == 0


def _mainland_id(number: str) -> bool:
    """Birthday and check digit of GB 11643."""
    try:
        date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    return "10X98765432"[sum(int(digit) * 2 ** (17 - i) for i, digit in enumerate(number[:17])) % 11] == number[17].upper()


def _taiwan_id(number: str) -> bool:
    letter = "ABCDEFGHJKLMNPQRSTUVXYWZIO".index(number[0]) + 10
    digits = [letter // 10, letter % 10, *map(int, number[1:])]
    return sum(digit * weight for digit, weight in zip(digits, (1, 9, 8, 7, 6, 5, 4, 3, 2, 1, 1), strict=True)) % 10 == 0


def _hong_kong_id(number: str) -> bool:
    ((letters, digits, check),) = re.findall(r"([A-Z]{1,2})(\d{6})\(([\dA])\)", number)
    values = [36, *(ord(c) - 55 for c in letters), *map(int, digits), int(check, 11)][-9:]
    return sum(value * weight for value, weight in zip(values, range(9, 0, -1), strict=True)) % 11 == 0


def _public_address(number: str) -> bool:
    """Whether an address is public. Four numbers up to 31 are taken for a version or a section."""
    address = ipaddress.ip_address(number)
    return address.is_global and max(address.packed) > 31


PERSONAL_DATA: tuple[tuple[str, re.Pattern, Callable[[str], bool], str], ...] = (
    (
        "e-mail",
        re.compile(r"(?<![A-Za-z0-9._%+\-])[A-Za-z0-9._%+\-]{1,64}@(?:[A-Za-z0-9\-]{1,63}\.)+[A-Za-z]{2,6}(?![A-Za-z0-9\-])"),
        bool,
        "user@example.com",
    ),
    (
        "mainland identity number",
        re.compile(rf"{_START}[1-9]\d{{5}}(?:19|20)\d{{2}}[01]\d[0-3]\d{{4}}[\dXx]{_END}", re.ASCII),
        _mainland_id,
        "000000000000000000",
    ),
    ("Taiwan identity number", re.compile(rf"{_START}[A-Z][1289]\d{{8}}{_END}", re.ASCII), _taiwan_id, "A000000000"),
    ("Hong Kong identity number", re.compile(rf"{_START}[A-Z]{{1,2}}\d{{6}}\([\dA]\)", re.ASCII), _hong_kong_id, "A000000(0)"),
    (
        "bank card",
        re.compile(
            rf"{_START}(?:62|4\d|5[1-5]|3[57])\d{{2}}(?:(?:[ -]?\d{{4}}){{3}}(?:[ -]?\d{{3}})?|\d{{12,15}}){_END}", re.ASCII
        ),
        _luhn,
        "0000000000000000",
    ),
    (
        "telephone number",
        re.compile(
            rf"(?<!第)(?:{_START}(?:(?:\+|00)?86[ -]?)?1[3-9]\d[ -]?\d{{4}}[ -]?\d{{4}}{_END}{_NO_AMOUNT}"  # mainland mobile
            rf"|{_START}(?:(?:\+|00)886[ -]?9|09)\d{{2}}[ -]?\d{{3}}[ -]?\d{{3}}{_END}"  # Taiwan mobile
            rf"|{_START}(?:\+|00)(?:852|853|886|86)[ -]?(?:\(0?\d{{1,3}}\)|0?\d{{1,3}})?[ -]?\d{{3,4}}[ -]?\d{{4}}{_END}"
            rf"|{_START}(?:[（(]0\d{{1,3}}[）)] ?|0\d{{1,3}}-)\d{{3,4}}[ -]?\d{{3,4}}{_END})"  # landline with area code
            r"|(?<=[电電][话話][:：])\s?\d{4}[ -]?\d{4}(?!\d)|(?i:(?<=tel[:：])|(?<=whatsapp[:：]))\s?\d{4}[ -]?\d{4}(?!\d)",
            re.ASCII,
        ),
        bool,
        "000-0000-0000",
    ),
    (
        "IP address",
        re.compile(rf"{_START}(?:{_OCTET}\.){{3}}{_OCTET}(?![\d.])", re.ASCII),
        _public_address,
        "0.0.0.0",
    ),
)
_MAYBE_PERSONAL = re.compile(r"\d[\d ()（）-]{6,}\d|@|\d\.\d{1,3}\.\d")


def mask_personal_data(text: str) -> str:
    """A fixed placeholder for each e-mail address, identity, card and telephone number, and public IP address."""
    if _MAYBE_PERSONAL.search(text):
        for _, pattern, is_valid, placeholder in PERSONAL_DATA:
            text = pattern.sub(lambda match: placeholder if is_valid(match[0]) else match[0], text)  # noqa: B023
    return text
