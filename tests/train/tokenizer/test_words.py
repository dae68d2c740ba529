"""Lists of words: what is read, in which script, and how often each word is drawn."""

from collections import Counter
from itertools import pairwise

import pytest

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.tokenizer.words import draw_words, find_word_list, read_word_list, words_in_script


def test_words_are_drawn_as_their_counts_have_it():
    counts = Counter({"我们": 600, "研究": 300, "经济": 99, "的": 2} | {f"罕{chr(0x4E00 + i)}": 1 for i in range(1000)})
    drawn = draw_words(counts, 400)
    assert drawn["我们"] == pytest.approx(60, abs=1)
    assert drawn["研究"] == pytest.approx(30, abs=1)
    assert sum(len(word) * times for word, times in drawn.items()) == pytest.approx(400, abs=4)
    # A tenth of the words that stand once, spread over the list.
    rare = [i for i in range(1000) if drawn[f"罕{chr(0x4E00 + i)}"]]
    assert len(rare) == pytest.approx(100, abs=1)
    assert max(b - a for a, b in pairwise(rare)) <= 11
    assert draw_words(counts, 0) == draw_words(counts, 1) == Counter()
    assert draw_words(Counter({"地": 1, "天": 10**18}), 10) == {"天": 10}


def test_counts_of_words_that_are_one_in_the_other_script():
    counts = Counter({"干杯": 1, "乾杯": 2, "发展": 4, "AT&T": 8})
    assert words_in_script(counts, "hans") == {"干杯": 3, "发展": 4, "AT&T": 8}
    assert words_in_script(counts, "hant") == {"乾杯": 3, "發展": 4, "AT&T": 8}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("骑马", "expected `word count`.*'骑马'"),
        ("骑 马 3 n", "expected `word count`.*'骑 马 3 n'"),
        *((f"骑马 {count}", f"count '{count}' is no whole number") for count in ("n", "-1", "0", "1.5", "٣", "9" * 5000)),
        (b"\xc6\xef\xc2\xed 3", "not UTF-8"),
    ],
)
def test_bad_line_of_a_list_is_named(tmp_path, line, said):
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeff我们 3 r\n\n".encode() + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    with pytest.raises(InputError, match=rf"list\.txt, line 3: .*{said[:60]}") as caught:
        read_word_list(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_empty_list(tmp_path, content):
    (tmp_path / "list.txt").write_text(content)
    with pytest.raises(InputError, match=r"list\.txt: a word list without a word"):
        read_word_list(tmp_path / "list.txt")


def test_list_of_an_installed_package(tmp_path, monkeypatch):
    """The package is not imported."""
    (tmp_path / "zh_words_of_a_test").mkdir()
    (tmp_path / "zh_words_of_a_test/__init__.py").write_text("raise SystemExit")
    (tmp_path / "zh_words_of_a_test/dict.txt").write_text("天 1\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert read_word_list(find_word_list("zh_words_of_a_test:dict.txt")) == {"天": 1}
    with pytest.raises(InputError, match=r"zh_words_of_a_test/big\.txt: no such file"):
        find_word_list("zh_words_of_a_test:big.txt")


@pytest.mark.parametrize("name", ["no_such_package:dict.txt", "json.decoder:x", ":x", "../x:y", "this:x"])
def test_no_such_package(name):
    with pytest.raises(InputError, match=r"word_list is .*: there is no file of that name, and no package .* installed"):
        find_word_list(name)


def test_file_with_a_colon_in_its_name(tmp_path):
    (tmp_path / "a:b").write_text("天 1\n", encoding="utf-8")
    assert find_word_list(str(tmp_path / "a:b")) == tmp_path / "a:b"
