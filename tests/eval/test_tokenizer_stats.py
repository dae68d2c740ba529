"""Statistics against what can be counted by hand, for tokenizers of this project and of others."""

import json

import pytest
import zstandard
from conftest import make_documents
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from zh_modernbert.eval import tokenizer_stats
from zh_modernbert.eval.tokenizer_stats import (
    embedding_share,
    load_backend,
    measure_text,
    on_token_edges,
    read_answers,
    split_characters,
)
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.corpus.held_out import is_held_out
from zh_modernbert.train.corpus.lines import read_jsonl


def squad(*passages) -> dict:
    """SQuAD's form of (passage, answers of its one question); an answer is (start, text)."""
    return {
        "data": [
            {
                "paragraphs": [
                    {"context": context, "qas": [{"answers": [{"answer_start": s, "text": t} for s, t in answers]}]}
                    for context, answers in passages
                ]
            }
        ]
    }


@pytest.fixture
def words_tokenizer(tmp_path):
    """Six words and [UNK], white space lost, lower case: everything that can go wrong does."""
    vocab = {"[UNK]": 0, "天气": 1, "今": 2, "天": 3, "a": 4, "气": 5}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", continuing_subword_prefix=""))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(tmp_path / "words")
    return str(tmp_path / "words")


def test_text_is_counted_by_script(words_tokenizer):
    documents = [
        {"text": "今天气", "script": "hans"},  # 今 天气
        {"text": "鸡 天", "script": "hans"},  # [UNK] 天
        {"text": "天", "script": "hant"},
        {"text": "A"},
    ]
    found = measure_text(*load_backend(words_tokenizer), documents)
    assert (found["documents"], found["characters"], found["tokens"]) == (4, 8, 6)
    assert found["chars_per_token"] == pytest.approx(8 / 6, abs=1e-4)
    assert found["unknown_rate"] == pytest.approx(100 / 6, abs=1e-4)
    assert found["round_trip"] == 25  # "今 天气", "[UNK] 天" and "a" are not the text
    assert found["split_characters"] == 0
    assert list(found["by_script"]) == ["hans", "hant"]
    assert found["by_script"]["hans"]["chars_per_token"] == 1.5
    assert found["by_script"]["hant"] == {
        "chars_per_token": 1.0,
        "round_trip": 100.0,
        "unknown_rate": 0.0,
        "split_characters": 0.0,
        "documents": 1,
        "characters": 1,
        "tokens": 1,
    }


def test_our_tokenizer_loses_nothing_and_its_split_characters_are_counted(stages):
    backend, unknown_id = load_backend(str(stages / "tokenizer"))
    rare = "龘😀"  # three bytes and four, in no text of the fixture
    found = measure_text(backend, unknown_id, [{"text": f"ab [MASK]{rare}{rare}", "script": "hans"}])
    assert (found["round_trip"], found["unknown_rate"]) == (100, 0)
    assert found["split_characters"] == pytest.approx(100 * 4 / found["characters"], abs=1e-4)
    plain = measure_text(backend, unknown_id, [{"text": "ab [MASK]"}])
    assert plain["tokens"] > 4  # what spells a special token is text


@pytest.mark.parametrize(
    ("offsets", "expected"),
    [
        ([], 0),
        ([(0, 2), (2, 3)], 0),
        ([(0, 1), (0, 1), (0, 1), (1, 2)], 1),
        ([(0, 2), (1, 2), (2, 3), (2, 4)], 2),
        ([(0, 1), (5, 6)], 0),
    ],
)
def test_split_characters(offsets, expected):
    assert split_characters(offsets) == expected


def test_on_token_edges():
    offsets = [(0, 2), (2, 3), (3, 6)]
    assert on_token_edges("今天天气很好", offsets, [(0, 2), (0, 3), (2, 6)]) == 3
    assert on_token_edges("今天天气很好", offsets, [(1, 2), (2, 4), (1, 5), (4, 6)]) == 0
    assert on_token_edges("今天天气很好", offsets, []) == 0
    # A token begins with the space before its word; an answer may, too.
    assert on_token_edges("见了 Wu\n吗", [(0, 2), (2, 5), (5, 6), (6, 7)], [(3, 5), (2, 5), (2, 6), (0, 5), (3, 7)]) == 5
    assert on_token_edges("见了 Wu\n吗", [(0, 2), (2, 5), (5, 6), (6, 7)], [(4, 5), (5, 6)]) == 0


def test_answers_count_once_and_only_where_they_stand(tmp_path):
    content = squad(("今天天气", [(2, "天气"), (2, "天气"), (0, "今天")]), ("好", [(-1, "好"), (0, "坏"), (0, "")]))
    path = tmp_path / "answers.json.zst"
    path.write_bytes(zstandard.compress(json.dumps(content).encode()))
    assert read_answers(str(path)) == ([("今天天气", [(0, 2), (2, 4)]), ("好", [])], 3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "JSON"),
        ("", "JSON"),
        ("[]", "SQuAD"),
        ('{"data": [{}]}', "SQuAD"),
        (json.dumps(squad(("好", [(-1, "好")]))), "no answer"),
    ],
)
def test_file_without_answers(tmp_path, content, said):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=rf"a\.json: .*{said}"):
        read_answers(str(tmp_path / "a.json"))


def test_embedding_share(tmp_path):
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 7}
    (tmp_path / "model.json").write_text(json.dumps(shape))
    layer = 4 * 32 * 32 + 3 * 32 * 48 + 2 * 32
    norms = 2 * 32 - 32  # after the embeddings and at the end; the first layer has none of its own before attention
    assert embedding_share(str(tmp_path / "model.json"), 1000) == round(100 * 32000 / (32000 + 2 * layer + norms), 2)


def test_no_tokenizer(tmp_path):
    with pytest.raises(InputError, match="cannot be loaded"):
        load_backend(str(tmp_path / "nothing"))


def test_held_out_text_is_measured_and_drawn(stages, words_tokenizer, tmp_path):
    documents = make_documents(60)
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    text = documents[0]["text"]
    (tmp_path / "answers.json").write_text(json.dumps(squad((text, [(0, text), (text.index("："), "：")]))))
    settings = {
        "text": [str(tmp_path / "text.jsonl")],
        "held_out": 0.3,
        "answers": [str(tmp_path / "answers.json")],
        "results_dir": str(tmp_path / "results"),
    }
    ours = str(stages / "tokenizer")
    one = tokenizer_stats.main(tokenizer_stats.Settings(tokenizer=[ours], **settings))
    held_out = [document for _, document in read_jsonl(tmp_path / "text.jsonl") if is_held_out(document["id"], 0.3)]
    assert one["documents"] == len(held_out) < 60
    assert one["characters"] == sum(len(document["text"]) for document in held_out)
    assert one["answers_on_token_edges"] == {"answers": 100.0}
    passage_tokens = len(load_backend(ours)[0].encode(text, add_special_tokens=False).ids)
    assert one["passages_chars_per_token"] == {"answers": round(len(text) / passage_tokens, 4)}
    assert json.loads((tmp_path / "results" / "tokenizer_stats.json").read_text()) == one
    assert not (tmp_path / "results" / "tokenizer_stats.png").exists()
    two = tokenizer_stats.main(tokenizer_stats.Settings(tokenizer=[ours, words_tokenizer], **settings))
    assert two["rows"][0] == one
    assert two["rows"][1]["answers_on_token_edges"] == {"answers": 50.0}
    assert (tmp_path / "results" / "tokenizer_stats.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_measure(stages, tmp_path):
    (tmp_path / "text.txt").write_text("好")
    settings = {"tokenizer": [str(stages / "tokenizer")], "results_dir": str(tmp_path / "results")}
    with pytest.raises(InputError, match=r"text\.txt: no text in it that is held out"):
        tokenizer_stats.main(tokenizer_stats.Settings(text=[str(tmp_path / "text.txt")], held_out=1e-9, **settings))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "dev.json").write_text(json.dumps(squad(("好", [(0, "好")]))))
    answers = [str(tmp_path / folder / "dev.json") for folder in ("a", "b")]
    with pytest.raises(InputError, match="two files of one name"):
        tokenizer_stats.main(tokenizer_stats.Settings(text=[str(tmp_path / "text.txt")], answers=answers, **settings))
