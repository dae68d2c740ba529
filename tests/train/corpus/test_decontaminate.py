"""Documents with an evaluation passage in them go, in any form of file and in either script; what only shares phrases stays."""

import csv
import gzip
import json
import random

import numpy as np
import opencc
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from zh_modernbert.train import dedup
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.corpus.decontaminate import (
    DecontaminationFilter,
    Index,
    evaluation_files,
    needed,
    ngrams_of,
    read_passages,
)
from zh_modernbert.train.corpus.documents import read_corpus, write_corpus

CHARACTERS = [chr(code) for code in range(0x4E00, 0x4E00 + 3000)]


def random_text(generator: random.Random, length: int) -> str:
    return "".join(generator.choices(CHARACTERS, k=length))


def finder(folder, passages: list[str]):
    """A function that says whether a text contains one of the passages."""
    (folder / "passages.json").write_text(json.dumps(passages))
    files = evaluation_files([str(folder / "passages.json")])
    Index(files, folder / "index").run()
    step = DecontaminationFilter(files, folder / "index", folder)
    return lambda text: bool(len(step.contained_in(text)))


def test_ngrams_of_passages_do_not_reach_into_the_next():
    generator = random.Random(0)
    one, two, short = random_text(generator, 20), random_text(generator, 30), random_text(generator, 16)
    hashes, owners = ngrams_of([short, one, two + two, short])
    assert np.bincount(owners).tolist() == [8, 30]  # of `two` twice each but for those in the middle once
    assert set(ngrams_of([one])[0]) == set(hashes[owners == 0])
    assert [part.tolist() for part in ngrams_of([short, ""])] == [[], []]
    assert ngrams_of([])[0].tolist() == []


def test_needed():
    assert needed(np.array([5, 8, 9, 16, 17, 40, 200, 1000])).tolist() == [5, 8, 8, 8, 9, 20, 100, 100]


def test_passages_are_found_wherever_they_stand(tmp_path):
    generator = random.Random(1)
    passages = [random_text(generator, length) for length in (17, 25, 60, 500)]
    contains = finder(tmp_path, passages)
    around = random_text(generator, 300)
    for passage in passages:
        assert contains(passage)
        assert contains(around + passage + around)
        assert contains("，".join(passage))  # punctuation is nothing
    assert not contains(around)
    assert not contains("")


def test_how_much_of_a_passage_is_enough(tmp_path):
    generator = random.Random(2)
    short, middle, long = (random_text(generator, length) for length in (17, 60, 2000))
    contains = finder(tmp_path, [short, middle, long])
    around = random_text(generator, 50)
    assert not contains(short[1:] + around)  # of a short one all
    assert contains(around + middle[:36])  # 24 of 48
    assert not contains(around + middle[:35])
    assert contains(middle[:29] + around + middle[30:])  # one other character
    assert contains(around + long[:112] + around)
    assert not contains(around + long[:111] + around)


def test_a_shared_name_is_no_passage(tmp_path):
    generator = random.Random(3)
    name = "全国人民代表大会常务委员会"  # a 13-gram
    contains = finder(tmp_path, [name, f"根据{name}的决定，" + random_text(generator, 20), "Hello world " * 3])
    assert not contains(f"{name}今天在北京开会。" * 3)
    assert not contains("Hello world, hello world")


def test_either_script_finds_the_other(tmp_path):
    hans = "我们在图书馆里讨论经济发展的问题，大家都很高兴，后来头发干了。"
    hant = opencc.OpenCC("s2tw").convert(hans)
    for passage, text in ((hans, hant), (hant, hans)):
        assert finder(tmp_path, [passage])(f"開頭{text}结尾")


# A text of 20 characters, as benchmarks write it in lines.
LINES = {
    "label first": lambda text: f"1\t{text}\n0\t别的\n",
    "label last": lambda text: f"{text}\tneutral\n别的\tneutral\n",
    "labels of words": lambda text: f"{text} 好\n别的 坏\n",
    "double bars": lambda text: f"2012test-1||{text}||{text[::-1]}||5\n",
    "toutiao": lambda text: f"6554_!_101_!_news_culture_!_{text}_!_词\n",
    "conll": lambda text: "".join(f"{character} O\n" for character in text) + "\n下 O\n",
    "conll, four columns": lambda text: "".join(f"{character}\tNN\t_\tB-LOC\n" for character in text),
    "weibo": lambda text: "".join(f"{character}{i % 2}\tO\n" for i, character in enumerate(text)),
    "conllu": lambda text: (
        "# sent_id = 1\n"
        + "".join(f"{i + 1}\t{text[2 * i : 2 * i + 2]}\t_\tNOUN\tNN\t_\t9\tnsubj\t_\t{'Gloss=long' * 4}\n" for i in range(10))
    ),
    "words with tags": lambda text: f"[{text[:2]}/v  {text[2:6]}/ns]nt  " + "  ".join(f"{c}/Ng" for c in text[6:]) + "\n",
    "segmented": lambda text: "\u3000".join(text) + "\n",
}


@pytest.mark.parametrize("form", LINES)
def test_short_texts_in_lines_are_found(tmp_path, form):
    text = random_text(random.Random(5), 20)
    (tmp_path / "task.txt").write_text(LINES[form](text), "utf-8")
    passages, _ = ngrams_of(list(read_passages(tmp_path / "task.txt")))
    assert set(ngrams_of([text])[0]) <= set(passages)


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A folder with evaluation files of all forms, and what is in each."""
    folder = tmp_path_factory.mktemp("tasks")
    generator = random.Random(4)
    names = [
        "a.jsonl",
        "b.json",
        "c.csv",
        "d.tsv",
        "e.txt",
        "f.jsonl.gz",
        "sub/g.json.zst",
        "h.bmes",
        "i.parquet",
        "j.data",
        "k.json",
    ]
    texts = {name: random_text(generator, 40) for name in names}
    (folder / "sub").mkdir()
    (folder / "a.jsonl").write_text(json.dumps({"id": 1, "options": {"A": [{"text": texts["a.jsonl"]}]}}) + "\n\n", "utf-8")
    (folder / "b.json").write_text(json.dumps({"data": [{"context": texts["b.json"], "x": None}]}, indent=1), "utf-8")
    with open(folder / "c.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["label", "text"], [1, texts["c.csv"][:20] + '，"\n' + texts["c.csv"][20:]]])
    (folder / "d.tsv").write_text(f"label\ttext\n1\t{texts['d.tsv']}\n", "utf-8")
    (folder / "e.txt").write_text(f"\ufeff{texts['e.txt']}\n", "utf-8")
    with gzip.open(folder / "f.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps({"sentence": texts["f.jsonl.gz"]}))
    (folder / "sub/g.json.zst").write_bytes(zstandard.compress(json.dumps([texts["sub/g.json.zst"]]).encode()))
    (folder / "h.bmes").write_text("".join(f"{character} B-NAME\n" for character in texts["h.bmes"]) + "\n下 O\n", "utf-8")
    pyarrow.parquet.write_table(pyarrow.table({"text": [texts["i.parquet"]], "label": [1]}), folder / "i.parquet")
    (folder / "j.data").write_text(f"怎么还款\t{texts['j.data']}\t0\n", "utf-8")
    (folder / "k.json").write_text(json.dumps({"tokens": list(texts["k.json"]), "tags": ["O"] * 40}), "utf-8")
    for note in ("README.md", "LICENSE.txt", ".hidden", "notes.md"):
        (folder / note).write_text(random_text(generator, 40), "utf-8")
    return folder, texts


def test_all_forms_of_files_are_read(everything):
    folder, texts = everything
    files = evaluation_files([str(folder)])
    assert [str(file.relative_to(folder)) for file in files] == sorted(texts)
    for file in files:
        text = texts[str(file.relative_to(folder))]
        assert text in ["".join(filter(str.isalnum, passage)) for passage in read_passages(file)], file


@pytest.mark.parametrize("workers", [1, 2])
def test_documents_go_and_are_counted(tmp_path, everything, workers):
    folder, texts = everything
    generator = random.Random(5)
    good = [random_text(generator, 100) for _ in range(5)]
    bad = [random_text(generator, 50) + text + random_text(generator, 50) for text in texts.values()]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    documents = [{"id": text[:5], "source": "web" if text in good else "wiki", "text": text} for text in [*good, *bad, good[0]]]
    write_corpus(corpus, documents)
    settings = {"decontaminate": [str(folder)], "save_rejects": True, "workers": workers}
    result = dedup.main(dedup.Settings(input_dir=str(corpus), output_dir=str(tmp_path / "out"), **settings))
    assert [document["text"] for document in read_corpus(tmp_path / "out")] == good
    assert (result["documents"], result["duplicates"], result["contaminated"]) == (5, 1, len(bad))
    assert result["evaluation_passages"] == len(texts)
    assert result["contaminated_characters"] == sum(map(len, bad))
    assert result["contaminated_by_source"] == {"wiki": len(bad)}
    assert result["contaminated_by_file"] == {str(folder / name): 1 for name in texts}
    rejects = list(read_corpus(tmp_path / "out/rejects/contaminated"))
    assert [(d["text"], d["filter_reason"]) for d in rejects] == [
        (text, str(folder / name)) for text, name in zip(bad, texts, strict=True)
    ]
    assert [document["text"] for document in read_corpus(tmp_path / "out/rejects/duplicates")] == [good[0]]


def test_what_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(InputError, match="missing: no such file or folder"):
        evaluation_files([str(tmp_path / "missing")])
    (tmp_path / "README.md").write_text("nothing else")
    with pytest.raises(InputError, match="no evaluation files"):
        evaluation_files([str(tmp_path)])
    (tmp_path / "bad.json").write_text('{"text": ')
    with pytest.raises(InputError, match=r"bad\.json: not valid JSON"):
        list(read_passages(tmp_path / "bad.json"))
    (tmp_path / "bad.txt").write_bytes("文字".encode("gbk"))
    with pytest.raises(InputError, match=r"bad\.txt, line 1: not UTF-8"):
        list(read_passages(tmp_path / "bad.txt"))


def test_nothing_to_look_for_is_an_error(tmp_path, capsys):
    """A file of the wrong form would otherwise look like a corpus without contamination."""
    (tmp_path / "corpus").mkdir()
    write_corpus(tmp_path / "corpus", [{"id": "0", "source": "s", "text": random_text(random.Random(0), 100)}])
    (tmp_path / "numbers.json").write_text("[1, 2]")
    settings = {"input_dir": str(tmp_path / "corpus"), "output_dir": str(tmp_path / "out")}
    with pytest.raises(InputError, match=r"no passage long enough to look for in .*numbers\.json"):
        dedup.main(dedup.Settings(**settings, decontaminate=[str(tmp_path / "numbers.json")]))
    (tmp_path / "good.json").write_text(json.dumps([random_text(random.Random(1), 100)]))
    files = [str(tmp_path / name) for name in ("numbers.json", "good.json")]
    assert dedup.main(dedup.Settings(**settings, decontaminate=files))["evaluation_passages"] == 1
    assert "numbers.json: no passage" in capsys.readouterr().err
