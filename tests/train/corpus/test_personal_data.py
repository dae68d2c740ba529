"""Personal data is masked where Han touches it, numbers that only look alike stay."""

import random

import pytest

from zh_modernbert.train.corpus.personal_data import PERSONAL_DATA, mask_personal_data


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("邮箱zhang.san@mail.example.com.cn联系", "邮箱user@example.com联系"),
        ("手机13812345678，电话是138-1234-5678或+86 13812345678。", "手机000-0000-0000，电话是000-0000-0000或000-0000-0000。"),
        ("電話0912-345-678與0912345678", "電話000-0000-0000與000-0000-0000"),
        ("办公室010-62345678转、(02)2345-6789、（02）23456789", "办公室000-0000-0000转、000-0000-0000、000-0000-0000"),
        ("致電+852 2345 6789查詢，電話：23456789", "致電000-0000-0000查詢，電話：000-0000-0000"),
        ("身份证11010519491231002X号", "身份证000000000000000000号"),
        ("身分證A123456789號", "身分證A000000000號"),
        ("香港身份證A123456(3)。", "香港身份證A000000(0)。"),
        ("卡号6222021234567890128存入", "卡号0000000000000000存入"),
        ("卡号4111 1111 1111 1111和", "卡号0000000000000000和"),
        ("服务器地址58.63.114.20端口", "服务器地址0.0.0.0端口"),
    ],
)
def test_personal_data_that_touches_han_is_masked(text, expected):
    assert mask_personal_data(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "身份证110105194912310021号",  # wrong check digit
        "身份证11010519491331002X号",  # month 13
        "身分證A123456788號",
        "香港身份證A123456(4)。",
        "卡号6222021234567890123存入",  # not Luhn
        "收入13812345678元，支出15218046000 元",
        "人口1,381,234,567.8 与 0.13812345678",
        "编号 2013812345678901 与 a13812345678b",
        "2004-2008 年，1949-10-01，第 10-12345 号",
        "内网192.168.0.1与127.0.0.1，版本 10.0.19041.1，第 3.2.1.4 节",
        "版本号1.13812345678",
        "院臺規字第0930088902號",
        "systemctl start foo@bar.service",
        "@Override 与 a@b 和 git@",
        "sha 3f13812345678aa",
    ],
)
def test_other_numbers_stay(text):
    assert mask_personal_data(text) == text


def test_placeholders_are_not_masked_again():
    text = "和".join(placeholder for *_, placeholder in PERSONAL_DATA)
    assert mask_personal_data(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "日期10.01.02.03。",
        "第 58.063.114.20 号",
        "096.1.2.3",
        "٥٨.٦٣.١١٤.٢٠",
        "手机１３８１２３４５６７８",
        "卡४१११११११११११११११",
    ],
)
def test_numbers_in_no_form_of_personal_data_stay(text):
    assert mask_personal_data(text) == text


def test_no_number_is_an_error():
    """Numbers with signs and brackets in them, and digits of other scripts."""
    generator = random.Random(0)
    for _ in range(4000):
        digits = generator.choices(["0123456789", "0", "٠١٢٣٤٥٦٧٨٩", "²³¹"], weights=[20, 5, 1, 1], k=4)
        parts = ["".join(generator.choices(some, k=generator.randint(1, 5))) for some in digits]
        mask_personal_data(generator.choice(["A", "62", "1980", ""]) + generator.choice(".- (").join(parts) + "(3)")
