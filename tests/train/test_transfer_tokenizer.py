"""Another model's byte-level BPE moved to Traditional: what changes, what must not, and that nothing is lost on the way."""

import json
import random
import re
from itertools import pairwise
from pathlib import Path

import opencc
import pytest
import torch
from conftest import ROOT, last_json, run_script
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.train import encode, pack, pretrain, publish, transfer_tokenizer
from zh_modernbert.train.common.cli import InputError, parse
from zh_modernbert.train.corpus.documents import read_corpus
from zh_modernbert.train.rows.packed import PackedRows
from zh_modernbert.train.tokenizer.loading import load_tokenizer
from zh_modernbert.train.tokenizer.spelling import spell, text_of
from zh_modernbert.train.transfer_tokenizer import (
    NEW_SPECIAL_TOKENS,
    VARIANTS,
    Merges,
    Settings,
    TraditionalForms,
    transfer,
)

# Qwen2.5's own.
PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
ADDED = ("<|endoftext|>", "<|im_start|>", "<tool_call>")
# One Simplified character for several Traditional ones, in words that tell which.
SIMPLIFIED, TRADITIONAL = (
    words.split()
    for words in (
        "头发 理发 发展 发现 出发 皇后 后来 以后 公里 里面 干净 干涉 树干 饼干 面条 见面 只有 一只 松树 放松 历史 日历 复习 "
        "重复 软件 鼠标 信息 网络 我们 这个 为什么 学习 图书馆 气象台 台湾 经济 问题 群众 什么 说话 计算机 动物园 国际 "
        "会议 讨论 书",
        "發展 頭髮 後來 歷史 學習 圖書館 國際 灣 會議 群眾 說話 皇后",
    )
)
OTHER = [
    "return x + 1",
    "def main():",
    "for i in range(10):",
    "hello",
    "world",
    "don't",
    "2024",
    "3.14",
    "こんにちは",
    "国の",
    "안녕",
]
CONFUSING = {
    "Simplified": "头发，发展，皇后以后，里面三公里。",
    "Traditional": "頭髮，發展，皇后以後，裡面三公里。",
    "decomposed": "e\u0301 か\u3099 \uf914",
    "extension B": "𠮷野家𪚥",
    "emoji": "👨‍👩‍👧‍👦🇹🇼 好😀",
    "NUL and spaces": " \x00\n\t\r\n\u3000 a\xa0",
    "specials": "[MASK]<|im_start|><tool_call>[PAD][unused3]",
    "empty": "",
}


def make_text(generator: random.Random, words: list[str], length: int = 30) -> str:
    return "".join(generator.choice(words) + generator.choice(["", "", "，", "。\n", " "]) for _ in range(length))


def make_source() -> Tokenizer:
    """A tokenizer of Qwen2.5's form, of much Simplified, some Traditional, code and Japanese."""
    generator = random.Random(0)
    texts = [make_text(generator, SIMPLIFIED) for _ in range(300)]
    texts += [make_text(generator, TRADITIONAL) for _ in range(60)]
    texts += [make_text(generator, OTHER) for _ in range(60)]
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"), byte_level])
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, min_frequency=2, show_progress=False)
    )
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in ADDED[:2]])
    backend.add_tokens([AddedToken(ADDED[2], normalized=False)])
    return backend


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    make_source().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def moved(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("moved") / "tokenizer"
    transfer_tokenizer.main(Settings(tokenizer=str(source), output_dir=str(folder)))
    return folder


@pytest.fixture(scope="module")
def old(source) -> Tokenizer:
    return Tokenizer.from_file(str(source / "tokenizer.json"))


@pytest.fixture(scope="module")
def new(moved) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(moved)


@pytest.fixture(scope="module")
def report(moved) -> dict[str, dict[str, str]]:
    return json.loads((moved / "transfer.json").read_text(encoding="utf-8"))


def ids(tokenizer, text: str) -> list[int]:
    """Of plain text, also where it spells a special token."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    backend.encode_special_tokens = True
    found = backend.encode(text, add_special_tokens=False).ids
    backend.encode_special_tokens = False
    return found


def entries(tokenizer: Tokenizer) -> dict[str, int]:
    """The entries that are whole characters, by their text."""
    vocab = {token: i for token, i in tokenizer.get_vocab(with_added_tokens=False).items() if token not in ADDED}
    return {text_of(token): i for token, i in vocab.items() if not re.search("[\udc80-\udcff]", text_of(token))}


# --- what changes ---


def test_simplified_entries_become_traditional(old, new):
    """Each form is there; each id has a form of the text that it had, unless the form had an id."""
    converters = [opencc.OpenCC(name) for name in VARIANTS]
    forms, after = TraditionalForms("s2tw"), entries(new.backend_tokenizer)
    simplified = {text: i for text, i in entries(old).items() if forms(text)[0] != text}
    assert len(simplified) > 100
    by_id = {i: text for text, i in after.items()}
    kept = 0
    for text, i in simplified.items():
        assert converters[0].convert(text) in after
        if by_id.get(i) in [converter.convert(text) for converter in converters]:
            kept += 1
    assert kept > 0.8 * len(simplified)


def test_all_other_entries_keep_their_ids(old, new):
    forms, changed = TraditionalForms("s2tw"), 0
    for token, i in old.get_vocab().items():
        if token in ADDED or forms(text_of(token))[0] == text_of(token):
            assert new.convert_tokens_to_ids(token) == i
        else:
            changed += 1
    assert changed > 100


@pytest.mark.parametrize("word", ["發展", "學習", "國際"])
def test_a_form_that_is_there_keeps_its_id(old, new, report, word):
    before = entries(old)
    simplified = opencc.OpenCC("t2s").convert(word)
    assert ids(new, word) == [before[word]]
    freed = str(before[simplified])
    assert freed in report["changed"] or freed in report["new"] or freed in report["unused"]
    assert new.decode([before[simplified]]) not in (word, simplified)


@pytest.mark.parametrize("text", ["發", "髮", "後", "后", "裡", "里", "乾", "幹", "麵", "面"])
def test_every_reading_of_an_ambiguous_character_has_an_entry(new, text):
    assert len(ids(new, text)) == 1


@pytest.mark.parametrize(
    "text", ["頭髮", "理髮", "發展", "皇后", "以後", "公里", "裡面", "樹幹", "乾淨", "麵條", "見面", "一隻", "日曆", "歷史"]
)
def test_phrases_tell_the_reading(new, text):
    assert len(ids(new, text)) == 1


def test_japanese_stays(old, new):
    assert ids(old, "国の") == ids(new, "国の")
    assert len(ids(new, "国の")) == 1


@pytest.mark.parametrize(("variant", "expected"), [("s2tw", "為"), ("s2t", "爲"), ("s2twp", "軟體"), ("s2hk", "軟件")])
def test_variants(source, variant, expected):
    backend, moved = transfer_tokenizer.transfer_tokenizer(
        transfer_tokenizer.read_tokenizer(source / "tokenizer.json"), variant
    )
    assert any(expected in text_of(form) for form in moved.changed)
    assert transfer_tokenizer.unreachable(backend) == moved.unused


def test_fewer_tokens_for_traditional(old, new):
    generator, convert = random.Random(1), opencc.OpenCC("s2tw").convert
    texts = [convert(make_text(generator, SIMPLIFIED)) for _ in range(50)]
    before, after = (sum(len(ids(tokenizer, text)) for text in texts) for tokenizer in (old, new))
    assert after < 0.7 * before


# --- what must not change ---


def test_latin_digits_and_code_get_the_same_ids(old, new):
    generator = random.Random(2)
    alphabet = [chr(code) for code in range(32, 127)] + list("\n\tàéñßüžпривет")
    texts = [make_text(generator, [*OTHER[:8], ADDED[0]]) for _ in range(100)]
    texts += ["".join(generator.choices(alphabet, k=60)) for _ in range(200)]
    for text in texts:
        assert ids(old, text) == ids(new, text)


@pytest.mark.parametrize("text", CONFUSING.values(), ids=CONFUSING)
def test_round_trip(new, text):
    assert new.decode(ids(new, text)) == text


def test_round_trip_of_random_text(new):
    generator = random.Random(3)
    alphabet = "".join(SIMPLIFIED + TRADITIONAL + OTHER) + "𠮷\U0001f600é\u0301\x00\u3000 \n"
    for _ in range(300):
        text = "".join(generator.choices(alphabet, k=40))
        assert new.decode(ids(new, text)) == text


def test_every_entry_is_reached_or_listed(new, report):
    listed = {int(i) for kind in ("unused", "unreachable") for i in report[kind]}
    specials = set(new.added_tokens_decoder)
    plain = Tokenizer(new.backend_tokenizer.model)
    reached = 0
    for i in set(range(len(new))) - listed - specials:
        text = new.decode([i])
        if "\ufffd" in text:  # part of a character: from its bytes, as they are spelled
            assert plain.encode(new.convert_ids_to_tokens(i)).ids == [i]
        else:
            assert ids(new, text) == [i]
        reached += 1
    assert reached > 0.95 * len(new)
    assert all(ids(new, new.decode([i])) != [i] for i in listed)


def test_every_id_is_an_entry(new):
    assert sorted(new.get_vocab().values()) == list(range(len(new)))


def test_merges_as_strings_give_the_same(source, moved, tmp_path):
    written = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    assert isinstance(written["model"]["merges"][0], list)
    written["model"]["merges"] = [" ".join(merge) for merge in written["model"]["merges"]]
    (tmp_path / "strings").mkdir()
    (tmp_path / "strings" / "tokenizer.json").write_text(json.dumps(written), encoding="utf-8")
    transfer_tokenizer.main(Settings(tokenizer=str(tmp_path / "strings"), output_dir=str(tmp_path / "out")))
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (moved / "tokenizer.json").read_bytes()


def test_a_source_that_has_the_special_tokens(moved, new, tmp_path):
    """They are not added again; and what is Traditional stays."""
    result = transfer_tokenizer.main(Settings(tokenizer=str(moved), output_dir=str(tmp_path / "out")))
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again.added_tokens_decoder == new.added_tokens_decoder
    assert result["unreachable"] == 0
    for text in TRADITIONAL:
        assert ids(again, text) == ids(new, text)


# --- as a tokenizer of this model ---


def test_special_tokens(old, new, moved):
    first = old.get_vocab_size()
    assert [new.convert_tokens_to_ids(token) for token in NEW_SPECIAL_TOKENS] == list(range(first, first + 5))
    assert (new.pad_token, new.unk_token, new.cls_token, new.sep_token, new.mask_token) == (
        *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    )
    plain = PreTrainedTokenizerFast.from_pretrained(moved)
    for tokenizer in (new, plain, load_tokenizer(moved)):
        a, b = (ids(new, text) for text in ("學習", "歷史"))
        encoded = tokenizer("學習", "歷史")
        assert set(encoded) == {"input_ids", "attention_mask"}
        assert encoded["input_ids"] == [new.cls_token_id, *a, new.sep_token_id, *b, new.sep_token_id]
        padded = tokenizer(["學習", "學習歷史"], padding=True)["input_ids"]
        assert padded[0][-1] == new.pad_token_id
        assert tokenizer("學[MASK]")["input_ids"][-2] == new.mask_token_id


def test_added_tokens_of_the_source_stay_and_are_special(old, new):
    """So that text which spells them can be kept text, as that which spells [MASK]."""
    for token in ADDED:
        i = old.token_to_id(token)
        assert new(token, add_special_tokens=False)["input_ids"] == [i]
        assert i not in ids(new, token)
        assert new.decode(ids(new, token)) == token


def test_all_stages_take_the_special_tokens_from_it(stages, moved, new, tmp_path, monkeypatch):
    encode.main(
        encode.Settings(input_dir=str(stages / "corpus"), tokenizer_dir=str(moved), output_dir=str(tmp_path / "encoded"))
    )
    pack.main(pack.Settings(input_dir=str(tmp_path / "encoded"), output_dir=str(tmp_path / "packed"), seq_len=256))
    rows, documents = PackedRows(tmp_path / "packed"), []
    for index in range(len(rows)):
        tokens, _, bounds = rows.row(index)
        for start, end in pairwise(bounds):
            assert (tokens[start], tokens[end - 1]) == (new.cls_token_id, new.sep_token_id)
            documents.append(new.decode(tokens[start + 1 : end - 1]))
    assert sorted(documents) == sorted(document["text"] for document in read_corpus(stages / "corpus"))

    update, given = pretrain.update, []

    def noting(accelerator, model, stream, *rest):
        given.append(next(stream))
        return update(accelerator, model, iter(given), *rest)

    monkeypatch.setattr(pretrain, "update", noting)
    pretrain.main(
        pretrain.Settings(
            data_dir=str(tmp_path / "packed"),
            output_dir=str(tmp_path / "run"),
            model_config=str(stages / "model.json"),
            max_steps=1,
            per_device_batch_size=2,
        )
    )
    (batch,) = given
    masked = batch["labels"] != -100
    assert (batch["input_ids"][masked] == new.mask_token_id).float().mean() > 0.5
    assert not torch.isin(batch["labels"], torch.tensor([new.cls_token_id, new.sep_token_id])).any()
    publish.main(publish.Settings(model_dir=str(tmp_path / "run/model"), output_dir=str(tmp_path / "published")))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "published")
    config = ZhModernBertConfig.from_pretrained(tmp_path / "published")
    for role in ("pad", "unk", "cls", "sep", "mask"):
        assert getattr(config, f"{role}_token_id") == getattr(tokenizer, f"{role}_token_id") > 1000
    assert config.vocab_size % 64 == 0
    assert config.vocab_size >= len(tokenizer)


# --- the forms ---


@pytest.mark.parametrize(
    ("text", "first", "others"),
    [
        ("发", "發", {"髮"}),
        ("头发", "頭髮", set()),
        ("面", "面", {"麵"}),
        ("软件", "軟件", {"軟體"}),
        ("皇后", "皇后", set()),
        ("台灣", "台灣", set()),  # has a Traditional character: not Simplified, though OpenCC would write 臺
        ("国の", "国の", set()),
        ("\udc8f发", "\udc8f發", set()),
        ("hello", "hello", set()),
    ],
)
def test_forms(text, first, others):
    found = TraditionalForms("s2tw")(text)
    assert found[0] == first
    assert others <= set(found[1:])
    assert others or len(found) == 1


# --- on vocabularies made by hand ---


def by_hand(*words: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary of the 256 bytes and of what makes these words one token, in their order, and its merges."""
    merges = Merges()
    for word in words:
        merges.join(spell(word))
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in merges.ranks)]
    return {token: i for i, token in enumerate(tokens)}, list(merges.ranks)


def readings(table: dict[str, list[str]]):
    return lambda text: table.get(text, [text])


def test_an_id_that_nothing_takes_is_named_unused():
    vocab, merges = by_hand("发", "發")
    moved = transfer(vocab, merges, {}, readings({"发": ["發"]}))
    freed = vocab[spell("发")]
    assert moved.vocab == {token: i for token, i in vocab.items() if i != freed} | {f"[unused{freed}]": freed}
    assert moved.unused == [f"[unused{freed}]"]
    assert moved.new == moved.changed == []


def test_a_freed_id_takes_the_second_form():
    vocab, merges = by_hand("发", "發", "髪")  # the last brings the bytes that 髮 begins with
    moved = transfer(vocab, merges, {}, readings({"发": ["發", "髮"]}))
    assert moved.vocab[spell("髮")] == vocab[spell("发")]
    assert moved.vocab[spell("發")] == vocab[spell("發")]
    assert (moved.changed, moved.new, moved.unused) == ([spell("髮")], [], [])


def test_a_freed_id_takes_what_others_lack():
    """A phrase needs a character that has no id of its own; the bytes that begin it have none either."""
    vocab, merges = by_hand("国", "國", "发", "头", "头发")
    table = {"国": ["國"], "发": ["發"], "头": ["頭"], "头发": ["頭髮"]}
    moved = transfer(vocab, merges, {"<s>": len(vocab)}, readings(table))
    pieces = [token for token in moved.new if token not in (spell("發")[:2], spell("頭")[:2])]
    assert pieces == [spell("髮")[:2], spell("髮")] or pieces == [spell("髮")]
    assert vocab[spell("国")] in [moved.vocab[token] for token in moved.new]
    assert sorted(moved.vocab.values()) == list(range(len(moved.vocab)))
    assert moved.vocab["<s>"] == len(vocab)  # what has no freed id comes behind all others


def test_two_entries_that_become_one():
    vocab, merges = by_hand("脏", "賍")
    moved = transfer(vocab, merges, {}, readings({"脏": ["髒"], "賍": ["髒"]}))
    assert moved.vocab[spell("髒")] == vocab[spell("脏")]
    assert moved.changed == [spell("髒")]


def test_a_second_form_yields_to_a_first():
    vocab, merges = by_hand("发", "發", "髪")
    moved = transfer(vocab, merges, {}, readings({"发": ["發", "髮"], "髪": ["髮"]}))
    assert moved.vocab[spell("髮")] == vocab[spell("髪")]
    assert moved.unused == [f"[unused{vocab[spell('发')]}]"]


def test_further_forms_take_only_ids_that_are_free():
    vocab, merges = by_hand("发", "發", "复", "復", "里", "裡", "麵")
    table = {"发": ["發"], "里": ["里", "裏", "裝"], "复": ["复", "複", "覆"]}
    moved = transfer(vocab, merges, {}, readings(table))
    assert len(moved.vocab) == len(vocab)
    assert len(moved.new) + len(moved.unused) == 1
    assert moved.vocab[spell("裏")] == vocab[spell("发")]  # 裡 has the bytes that begin it; 裝 finds no id left


def test_holes_between_the_ids_are_filled():
    vocab, merges = by_hand("中")
    moved = transfer(vocab, merges, {"<s>": len(vocab) + 2}, readings({}))
    assert moved.unused == [f"[unused{len(vocab)}]", f"[unused{len(vocab) + 1}]"]
    assert sorted(moved.vocab.values()) == list(range(len(vocab) + 3))


def test_nothing_simplified_nothing_changed():
    vocab, merges = by_hand("中", "中文", "hello", "こんにちは", "國際")
    moved = transfer(vocab, merges, {}, readings({}))
    assert (moved.vocab, moved.merges) == (vocab, merges)


def test_split_is_what_tokenizers_does(old):
    written = json.loads(old.to_str())["model"]
    merges = Merges()
    for left, right in written["merges"]:
        merges.add(left, right)
    plain, generator = Tokenizer(old.model), random.Random(4)
    for _ in range(300):
        token = spell("".join(generator.choices("".join(SIMPLIFIED + TRADITIONAL + OTHER), k=8)))
        assert merges.split(token) == plain.encode(token).tokens


# --- what is refused ---


def wordpiece() -> Tokenizer:
    return Tokenizer(models.WordPiece({"[UNK]": 0, "中": 1}, unk_token="[UNK]"))


def characters() -> Tokenizer:
    """BPE over characters, as SentencePiece has it."""
    backend = Tokenizer(models.BPE({"中": 0, "文": 1, "中文": 2}, [("中", "文")]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return backend


def changed_source(change) -> Tokenizer:
    backend = make_source()
    change(backend)
    return backend


def with_prefix_space(backend: Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def without_decoder(backend: Tokenizer) -> None:
    backend.decoder = decoders.Fuse()


def without_bytes(backend: Tokenizer) -> None:
    backend.model = models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])


def with_an_odd_entry(backend: Tokenizer) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.model = models.BPE({token: i for i, token in enumerate([*alphabet, "中"])}, [])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (wordpiece, "its model is WordPiece"),
        (characters, "its pre_tokenizer is not ByteLevel"),
        (lambda: changed_source(with_prefix_space), "adds a space"),
        (lambda: changed_source(without_decoder), "its decoder is not ByteLevel"),
        (lambda: changed_source(without_bytes), "256 bytes"),
        (lambda: changed_source(with_an_odd_entry), "the entry '中'"),
    ],
)
def test_what_is_no_byte_level_bpe(tmp_path, make, said):
    make().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match=said) as caught:
        transfer_tokenizer.main(Settings(tokenizer=str(tmp_path), output_dir=str(tmp_path / "out")))
    assert "\n" not in str(caught.value)
    assert "only a byte-level BPE" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", "{}", '{"model": 5}'])
def test_file_that_is_no_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"tokenizer\.json: not") as caught:
        transfer_tokenizer.main(Settings(tokenizer=str(tmp_path), output_dir=str(tmp_path / "out")))
    assert "\n" not in str(caught.value)


def test_no_tokenizer_there(tmp_path):
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        transfer_tokenizer.main(Settings(tokenizer=str(tmp_path), output_dir=str(tmp_path / "out")))
    with pytest.raises(InputError, match="nobody/nothing: no such folder, nor to be had from the Hub"):
        transfer_tokenizer.main(Settings(tokenizer="nobody/nothing", output_dir=str(tmp_path / "out")))


# --- as a script ---


def test_script(source, report, tmp_path):
    done = run_script("train/transfer_tokenizer.py", "--tokenizer", source, "--output_dir", tmp_path / "out")
    result = last_json(done)
    assert {name: result[name] for name in report} == {name: len(listed) for name, listed in report.items()}
    assert result["vocab_size"] == len(AutoTokenizer.from_pretrained(tmp_path / "out"))


def test_preset():
    settings = parse(Settings, [str(ROOT / "train/configs/system_b/tokenizer.yaml")], "transfer_tokenizer")
    assert settings.tokenizer.startswith("Qwen/Qwen2.5")
