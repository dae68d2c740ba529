"""A tokenizer is known by what it does, and what is none is refused."""

import json
import shutil

import pytest

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.tokenizer.loading import fingerprint, load_tokenizer


def test_save_load_and_fingerprint(stages, tmp_path):
    tokenizer = load_tokenizer(stages / "tokenizer")
    tokenizer.save_pretrained(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    assert again.get_vocab() == tokenizer.get_vocab()
    text = "我們研究 BERT。[MASK]"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert fingerprint(tmp_path / "again") == fingerprint(stages / "tokenizer")


def test_fingerprint_ignores_layout_and_knows_other_tokenizers(stages, tmp_path):
    original = json.loads((stages / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))

    def fingerprint_of(name, model) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(original | {"model": model}, indent=1))
        return fingerprint(tmp_path / name)

    model = original["model"]
    expected = fingerprint(stages / "tokenizer")
    swapped = {**model["vocab"]}
    (first, a), (second, b) = list(swapped.items())[-2:]
    swapped |= {first: b, second: a}
    joined = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    assert fingerprint_of("reordered", model | {"vocab": dict(reversed(model["vocab"].items()))}) == expected
    assert fingerprint_of("old_merges", model | {"merges": joined}) == expected
    assert fingerprint_of("swapped", model | {"vocab": swapped}) != expected
    assert fingerprint_of("merges", model | {"merges": model["merges"][::-1]}) != expected
    assert fingerprint_of("fewer", model | {"merges": model["merges"][:-1]}) != expected


@pytest.mark.parametrize("content", ["", "{}", "[]", "not json", '{"model": 5}', b"\xff\xfe"])
def test_file_that_is_no_tokenizer(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_tokenizer_with_other_special_tokens(stages, tmp_path):
    shutil.copytree(stages / "tokenizer", tmp_path / "t")
    path = tmp_path / "t" / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace("[MASK]", "<mask>"), encoding="utf-8")
    with pytest.raises(InputError, match=r"\[MASK\] is no special token"):
        load_tokenizer(tmp_path / "t")


@pytest.mark.parametrize(("name", "said"), [("nothing", "no such folder"), (".", r"no tokenizer\.json")])
def test_no_tokenizer(tmp_path, name, said):
    for load in (load_tokenizer, fingerprint):
        with pytest.raises(InputError, match=said):
            load(tmp_path / name)
