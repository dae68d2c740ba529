"""Copies and near-copies go, one of each group stays, and what differs is left alone."""

import random

import opencc
import pytest
import zstandard

from zh_modernbert.train import dedup
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.corpus.documents import read_corpus, write_corpus
from zh_modernbert.train.corpus.sketches import NGRAM
from zh_modernbert.train.dedup import Settings

CHARACTERS = [chr(code) for code in range(0x4E00, 0x4E00 + 3000)]


def random_text(generator: random.Random, length: int) -> str:
    return "".join(generator.choices(CHARACTERS, k=length))


def jaccard(one: str, other: str) -> float:
    """The exact overlap of two texts' sets of 5-grams, counted here by hand."""
    first, second = ({text[i : i + NGRAM] for i in range(len(text) - NGRAM + 1)} for text in (one, other))
    return len(first & second) / len(first | second)


def replace_characters(generator: random.Random, text: str, count: int) -> str:
    characters = list(text)
    for position in generator.sample(range(len(text)), count):
        characters[position] = generator.choice(CHARACTERS)
    return "".join(characters)


def run(folder, *shards: list[str], **settings) -> list[list[str]]:
    """What is left of each shard of texts; texts' ids are their shard and place."""
    corpus = folder / "in"
    corpus.mkdir(parents=True)
    for number, texts in enumerate(shards):
        write_corpus(corpus, [{"id": f"{number}-{i}", "source": f"s{number}", "text": text} for i, text in enumerate(texts)])
        (corpus / "00000.jsonl.zst").rename(corpus / f"{number + 100:05d}.jsonl.zst")
    result = dedup.main(Settings(input_dir=str(corpus), output_dir=str(folder / "out"), **settings))
    kept = list(read_corpus(folder / "out"))
    total = sum(map(len, shards))
    assert result["documents_in"] == total
    assert result["documents"] == len(kept) == total - result["duplicates"]
    for document in kept:  # what stays is unchanged
        number, place = map(int, document["id"].split("-"))
        assert (document["source"], document["text"]) == (f"s{number}", shards[number][place])
    return [[document["text"] for document in kept if document["source"] == f"s{number}"] for number in range(len(shards))]


@pytest.fixture(scope="module")
def everyday(tmp_path_factory):
    """Three shards of texts by kind, and what deduplication leaves of them."""
    generator = random.Random(0)
    long = [random_text(generator, 300) for _ in range(12)]
    short = ["好", "你好", "再見了", "一二三四", "。。。", "😀", "ab"]
    shards = [
        [*long[:8], *short],
        [
            *long[:3],  # copies of another shard
            f"，{'，'.join(long[3])}。",  # only punctuation differs
            replace_characters(generator, long[4], 1),
            replace_characters(generator, long[5], 2),
            long[6] + "尾",
            long[7][1:],
            *short,
            long[8],
            "你壞",
        ],
        [long[8], long[9], long[9], long[9], long[10], long[11], "你好嗎"],
    ]
    return long, short, shards, run(tmp_path_factory.mktemp("everyday"), *shards)


def test_copies_go_across_shards_and_inside(everyday):
    long, _, _, left = everyday
    texts = [text for shard in left for text in shard]
    for text in long:
        assert texts.count(text) == 1


def test_near_copies_go(everyday):
    long, _, shards, left = everyday
    for original, copy in zip(long[3:8], shards[1][3:8], strict=True):
        assert (original in left[0]) + (copy in left[1]) == 1


def test_short_copies_go(everyday):
    _, short, _, left = everyday
    texts = [text for shard in left for text in shard]
    assert all(texts.count(text) == 1 for text in short)


def test_first_of_a_group_stays(everyday):
    _, _, shards, left = everyday
    assert left == [shards[0], [shards[1][-2], "你壞"], [shards[2][1], *shards[2][4:]]]


def test_two_runs_and_two_workers_agree(tmp_path):
    generator = random.Random(1)
    texts = [random_text(generator, 60) for _ in range(10)]
    shards = [[replace_characters(generator, text, generator.randint(0, 3)) for text in texts] for _ in range(2)]
    results = [run(tmp_path / name, *shards, workers=workers) for name, workers in (("a", 1), ("b", 1), ("c", 2))]
    assert results[0] == results[1] == results[2]
    assert 10 <= sum(map(len, results[0])) < 20


@pytest.mark.parametrize("parts", [1, 3])
def test_parts_of_bands_make_no_difference(tmp_path, monkeypatch, everyday, parts):
    monkeypatch.setattr(dedup, "SHARDS_PER_PART", parts)
    assert run(tmp_path, *everyday[2]) == everyday[3]


def test_documents_of_the_source_named_first_stay(tmp_path):
    generator = random.Random(5)
    same, near = random_text(generator, 200), random_text(generator, 200)
    shards = [[same, near], ["別的文字", near + "尾", same], [same + "！", near]]
    assert run(tmp_path / "order", *shards) == [[same, near], ["別的文字"], []]
    assert run(tmp_path / "one", *shards, priority=["s2"]) == [[], ["別的文字"], [same + "！", near]]
    assert run(tmp_path / "two", *shards, priority=["s1", "s2"]) == [[], ["別的文字", near + "尾", same], []]


def test_unknown_source_in_priority(tmp_path):
    with pytest.raises(InputError, match=r"priority names 'wiki'.* only s0, s1"):
        run(tmp_path, ["一二三四五六"], ["一二"], priority=["s1", "wiki"])


def test_what_is_like_nothing_that_stays_is_kept(tmp_path):
    """Of a chain in which each text is like the next, every second stays: those are not like one another."""
    generator = random.Random(6)
    source = random_text(generator, 700)
    chain = [source[start : start + 400] for start in range(0, 241, 40)]  # 0.81 to the next, 0.66 to the one after it
    assert jaccard(chain[0], chain[1]) > 0.8
    assert jaccard(chain[0], chain[2]) < 0.67
    assert run(tmp_path, chain) == [chain[::2]]


def test_both_scripts_of_a_text_are_one_when_asked(tmp_path):
    hans = ["我们在图书馆里讨论经济发展的问题，大家都很高兴。" * 3, "头发干了以后，后面的乾隆皇帝才发现。"]
    hant = [opencc.OpenCC("s2tw").convert(text) for text in hans]
    assert run(tmp_path / "apart", hans, hant) == [hans, hant]
    assert run(tmp_path / "one", hans, hant, fold_scripts=True) == [hans, []]
    assert run(tmp_path / "hant", hans, hant, fold_scripts=True, priority=["s1"]) == [[], hant]


def test_texts_with_the_same_letters_are_counted(tmp_path):
    generator = random.Random(7)
    text = random_text(generator, 300)
    (tmp_path / "in").mkdir()
    write_corpus(
        tmp_path / "in",
        [{"id": str(i), "source": "s", "text": t} for i, t in enumerate([text, text + "。", text + "尾", "好", "好"])],
    )
    result = dedup.main(Settings(input_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "out")))
    assert (result["documents"], result["duplicates"], result["exact_duplicates"]) == (2, 3, 2)


def test_buckets_matter(tmp_path):
    """With one band of many rows hardly anything but copies is found, with many bands of one row almost everything."""
    generator = random.Random(3)
    shards = [[random_text(generator, 200) for _ in range(20)]]
    shards.append([text[:140] + random_text(generator, 60) for text in shards[0]])
    assert all(0.5 < jaccard(*pair) < 0.6 for pair in zip(*shards, strict=True))
    strict = run(tmp_path / "strict", *shards, num_buckets=1, hashes_per_bucket=30, min_jaccard=0)
    lax = run(tmp_path / "lax", *shards, num_buckets=30, hashes_per_bucket=1, min_jaccard=0)
    assert len(strict[1]) == 20
    assert len(lax[1]) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_buckets", 0),
        ("num_buckets", -1),
        ("hashes_per_bucket", 0),
        ("seed", -1),
        ("seed", 2**64),
        ("workers", 0),
        ("workers", -2),
        ("min_jaccard", 1.5),
        ("min_jaccard", -0.1),
    ],
)
def test_bad_settings(tmp_path, field, value):
    with pytest.raises(InputError, match=rf"\b{field}\b"):
        run(tmp_path, ["一二三四五六"], **{field: value})


def test_empty_corpus_is_an_error(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="empty corpus"):
        dedup.main(Settings(input_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "out")))
    (tmp_path / "in" / "00000.jsonl.zst").write_bytes(zstandard.compress(b""))
    with pytest.raises(InputError, match="empty corpus"):
        dedup.main(Settings(input_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
