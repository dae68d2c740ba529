"""The tokenizer: exact round trips and offsets for any text, the templates, and one behaviour however it is loaded."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast, tokenization_utils_base

from zh_modernbert.tokenization_zh_modernbert import SPECIAL_TOKENS, ZhModernBertTokenizer, build_backend
from zh_modernbert.train.tokenizer.loading import load_tokenizer

PAD, UNK, CLS, SEP, MASK = range(5)
TEXTS = {
    "plain": "中国代表团正在准备北京的会议，但是没有人知道。",
    "traditional": "圖書館終於完成了一本關於歷史的書！",
    "mixed": "她说：「Hello, world」，3.14159 元（約１２３４５円）。",
    "latin": "don't Don’t I'm  a , b . c ! n't naïve Straße",
    "digits": "0 12 123 1234 12345 ٣٤٥ ４５６ ½ Ⅷ ㊿",
    "emoji": "👨‍👩‍👧‍👦🇹🇼🤷🏽‍♀️ 好😀😀",
    "extension B": "𠮷野家𪚥𠀀，㐀",
    "thai": "ภาษาไทยน้ำ",
    "NUL": "a\x00b\x00\x00中\x1f\x7f",
    "combining": "e\u0301 a\u0323\u0302 か\u3099 \u0301",
    "leading spaces": "  前有空格",
    "trailing spaces": "后有空格  ",
    "white space": " \n\t\r\n\u3000\u3000全角\xa0\u200b ",
    "byte order mark": "\ufeffBOM\ufffd\uffff",
    "one space": " ",
    "empty": "",
    "specials": "[MASK][CLS] [SEP]x[UNK]中[PAD]",
}


@pytest.fixture(scope="module")
def tokenizer(stages):
    return load_tokenizer(stages / "tokenizer")


def encode(tokenizer, text, **arguments):
    """As plain text, also where it holds what looks like a special token."""
    return tokenizer(text, split_special_tokens=True, **arguments)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_round_trip(tokenizer, text):
    ids = encode(tokenizer, text)["input_ids"]
    assert (ids[0], ids[-1]) == (CLS, SEP)
    assert not set(ids[1:-1]) & set(range(5))
    assert tokenizer.decode(ids[1:-1]) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_offsets_are_the_characters_of_the_text(tokenizer, text):
    encoding = encode(tokenizer, text, return_offsets_mapping=True, add_special_tokens=False)
    reached = 0
    for token, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
        assert end > start
        # A token starts where the one before ended, or inside that one's last character where bytes split it.
        assert start in (reached, reached - 1)
        decoded = tokenizer.decode([token])
        if "\ufffd" not in decoded:
            assert text[start:end] == decoded
            assert start == reached
        reached = end
    assert reached == len(text)


def test_some_tokens_hold_several_characters(tokenizer):
    # The two tests above would pass for bytes alone.
    ids = encode(tokenizer, TEXTS["plain"], add_special_tokens=False)["input_ids"]
    assert len(ids) < len(TEXTS["plain"])


def test_special_tokens_in_text_are_special_unless_split(tokenizer):
    text = "今天[MASK]气 [SEP]"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids.count(MASK) == 1
    assert ids[-1] == SEP
    assert tokenizer.decode(ids) == text  # no space around them is swallowed or made
    plain = encode(tokenizer, text, add_special_tokens=False)["input_ids"]
    assert not set(plain) & {MASK, SEP}
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids  # the call before left nothing behind


def test_roles_of_the_special_tokens(tokenizer):
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == [PAD, UNK, CLS, SEP, MASK]
    roles = ("pad", "unk", "cls", "sep", "mask")
    assert [getattr(tokenizer, f"{role}_token_id") for role in roles] == [PAD, UNK, CLS, SEP, MASK]
    assert [getattr(tokenizer, f"{role}_token") for role in roles] == list(SPECIAL_TOKENS)
    assert len(tokenizer) == 512


def test_templates(tokenizer):
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("图书馆", "气象台"))
    single, pair = tokenizer("图书馆"), tokenizer("图书馆", "气象台", return_offsets_mapping=True)
    assert single["input_ids"] == [CLS, *first, SEP]
    assert pair["input_ids"] == [CLS, *first, SEP, *second, SEP]
    assert pair.sequence_ids() == [None, *[0] * len(first), None, *[1] * len(second), None]
    spans = [span for span, sequence in zip(pair["offset_mapping"], pair.sequence_ids(), strict=True) if sequence == 1]
    assert (spans[0][0], spans[-1][1]) == (0, 3)  # counted from the second text's own start


def test_padding_and_truncation(tokenizer):
    batch = tokenizer(["图书馆", TEXTS["plain"]], padding=True, truncation=True, max_length=12)
    short, long = batch["input_ids"]
    assert len(short) == len(long) == 12
    assert long[-1] == SEP
    real = short.index(SEP) + 1
    assert short[real:] == [PAD] * (12 - real)
    assert batch["attention_mask"][0] == [1] * real + [0] * (12 - real)
    assert batch["attention_mask"][1] == [1] * 12


def test_what_models_are_given(tokenizer):
    assert tokenizer.model_input_names == ["input_ids", "attention_mask"]
    assert set(tokenizer("图书馆", "气象台")) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        # A space goes with a Latin word only behind other ASCII.
        ("我用Python 3.12写代码 and tests，好。", "我用|Python| |3|.|12|写代码| |and| tests|，|好|。"),
        ("12345678９", "1234|5678|９"),
        ("書《紅樓夢》  第1回", "書|《|紅樓夢|》|  |第|1|回"),
        ("𠮷田ノート", "𠮷田|ノート"),
        ("a  b\n中", "a|  |b|\n|中"),
        ("cafe\u0301 น้ำ", "cafe\u0301| |น้ำ"),  # marks stay with their letters
        # The unit of a date is no part of the word after it; 二〇〇八年 is one word.
        ("1990年代末，2008年初3月底5日起，二〇〇八年", "1990|年|代末|，|2008|年|初|3|月|底|5|日|起|，|二〇〇八年"),
        ("年月日3個月", "年月日|3|個月"),
        # Marks one by one, so that what they enclose can end on a token's edge; repeated ones and those of code in runs.
        ("見《紅樓夢》，（「」）。……！！——", "見|《|紅樓夢|》|，|（|「|」|）|。|……|！！|——"),
        ("if (a[0]!=b){}》）", "if| |(|a|[|0|]!=|b|){}|》|）"),
    ],
)
def test_where_text_is_split_before_merges(text, pieces):
    found = build_backend().pre_tokenizer.pre_tokenize_str(text)
    assert "|".join(text[start:end] for _, (start, end) in found) == pieces


@pytest.mark.parametrize("trust", [True, False, None])
def test_auto_tokenizer_does_the_same_with_and_without_code(stages, tokenizer, trust, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked the user whether to trust the code"))
    loaded = AutoTokenizer.from_pretrained(stages / "tokenizer", trust_remote_code=trust)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    assert not type(loaded).__module__.startswith("transformers_modules.")
    assert_same(loaded, tokenizer)


def assert_same(loaded, tokenizer):
    assert loaded.model_input_names == tokenizer.model_input_names
    assert len(loaded) == len(tokenizer)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert loaded.model_max_length == tokenizer.model_max_length
    for text in TEXTS.values():
        for call in (encode, lambda tokenizer, *texts, **arguments: tokenizer(*texts, **arguments)):
            expected = call(tokenizer, text, return_offsets_mapping=True)
            assert dict(call(loaded, text, return_offsets_mapping=True)) == dict(expected)
            ids = expected["input_ids"]
            assert loaded.decode(ids) == tokenizer.decode(ids)
            assert loaded.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids, skip_special_tokens=True)
    assert dict(loaded("图书馆", "气象台")) == dict(tokenizer("图书馆", "气象台"))


@pytest.mark.parametrize("tokenizer_class", [ZhModernBertTokenizer, PreTrainedTokenizerFast])
def test_save_and_load(stages, tmp_path, tokenizer_class):
    tokenizer = load_tokenizer(stages / "tokenizer")
    tokenizer.model_max_length = 256
    tokenizer.save_pretrained(tmp_path / "first")
    once = tokenizer_class.from_pretrained(tmp_path / "first")
    assert_same(once, tokenizer)
    once.save_pretrained(tmp_path / "second")
    assert_same(tokenizer_class.from_pretrained(tmp_path / "second"), tokenizer)


@pytest.mark.parametrize(("raised", "expected"), [(Exception, OSError), (ValueError, ValueError)])
def test_a_full_disk_is_an_error_of_the_disk(tokenizer, tmp_path, monkeypatch, raised, expected):
    """tokenizers raises a bare Exception there."""

    def full(self, save_directory):
        raise raised("No space left on device")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", full)
    with pytest.raises(expected, match="No space left") as error:
        ZhModernBertTokenizer.from_backend(tokenizer.backend_tokenizer).save_pretrained(tmp_path)
    assert error.type is expected


def test_a_truncating_tokenizer_saves_its_whole_self(tokenizer, tmp_path):
    # Truncation and padding are settings of the call, and must not be baked into what is saved.
    copy = ZhModernBertTokenizer.from_backend(tokenizer.backend_tokenizer)
    copy(["图书馆", TEXTS["plain"]], padding=True, truncation=True, max_length=5)
    copy.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded(TEXTS["plain"])["input_ids"] == tokenizer(TEXTS["plain"])["input_ids"]
    assert loaded.backend_tokenizer.truncation is None
    assert loaded.backend_tokenizer.padding is None


def test_saved_settings_hold_for_older_transformers(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    # transformers 5 would write its own class name here, which 4.57 cannot load.
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "auto_map" not in saved, "a tokenizer that needs no code can be saved by whatever class loaded it"
    assert saved["model_input_names"] == ["input_ids", "attention_mask"]
    assert saved["clean_up_tokenization_spaces"] is False


def test_a_prefix_of_the_files_names(tokenizer, tmp_path):
    files = tokenizer.save_pretrained(tmp_path, filename_prefix="old")
    names = {"old-tokenizer_config.json", "old-tokenizer.json"}
    assert {Path(file).name for file in files} == {path.name for path in tmp_path.iterdir()} == names
    for name in names:
        (tmp_path / name).rename(tmp_path / name.removeprefix("old-"))
    assert_same(PreTrainedTokenizerFast.from_pretrained(tmp_path), tokenizer)


def test_what_is_uploaded_is_what_is_saved(tokenizer, tmp_path, monkeypatch):
    uploaded = {}

    def upload(self, folder, repo_id, *arguments, **more):
        uploaded.update({path.name: path.read_bytes() for path in Path(folder).iterdir()})
        assert repo_id == "somebody/tokenizer"

    hub = SimpleNamespace(create_repo=lambda repo_id, exist_ok: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(tokenization_utils_base, "hf_api", lambda: hub)
    monkeypatch.setattr(ZhModernBertTokenizer, "_upload_modified_files", upload)
    tokenizer = ZhModernBertTokenizer.from_backend(tokenizer.backend_tokenizer)
    tokenizer.save_pretrained(tmp_path, push_to_hub=True, repo_id="somebody/tokenizer")
    assert uploaded == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert b'"PreTrainedTokenizerFast"' in uploaded["tokenizer_config.json"]
