"""Copies and near-copies go, one of each group stays, and what differs is left alone."""

import random

import pytest

from zh_modernbert.train import dedup
from zh_modernbert.train.cli import InputError
from zh_modernbert.train.dedup import NGRAM, Settings, shingles
from zh_modernbert.train.files import read_corpus, write_corpus

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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("一二三四五六", ["一二三四五", "二三四五六"]),
        ("一二三四五", ["一二三四五"]),
        ("一二", ["一二"]),
        ("一，二 三\n四。ABc", ["一二三四a", "二三四ab", "三四abc"]),
        ("。。", ["。。"]),
        ("", [""]),
    ],
)
def test_shingles(text, expected):
    assert shingles(text) == expected


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


def pairs(generator: random.Random, count: int, low: float, high: float) -> list[tuple[str, str]]:
    """Texts of 200 characters and changed copies, with `low` <= Jaccard < `high`, evenly spread."""
    found = []
    while len(found) < count:
        text = random_text(generator, 200)
        aim = generator.uniform(low, high)
        # Another end of the text: n - k of n 5-grams stay, which is a Jaccard of (n - k) / (n + k).
        changed = round(200 * (1 - aim) / (1 + aim))
        copy = text[: 200 - changed] + random_text(generator, changed)
        if low <= jaccard(text, copy) < high:
            found.append((text, copy))
    return found


def test_recall_and_false_removals(tmp_path):
    """The S-curve 1 - (1 - j^8)^14: 0.9998 at 0.9, at most 0.0009 below 0.3, and 0.012 on average from 0.3 to 0.5."""
    generator = random.Random(2)
    groups = {(0.9, 1.0): 300, (0.3, 0.5): 300, (0.0, 0.3): 300}
    sets = {bounds: pairs(generator, count, *bounds) for bounds, count in groups.items()}
    everything = [pair for bounds in groups for pair in sets[bounds]]
    first, second = run(tmp_path, [one for one, _ in everything], [other for _, other in everything])
    assert len(first) == len(everything), "the first of a pair was removed"
    left = set(second)
    removed = {bounds: sum(other not in left for _, other in sets[bounds]) for bounds in groups}
    assert removed[0.9, 1.0] >= 298
    assert removed[0.3, 0.5] <= 15
    assert removed[0.0, 0.3] == 0


def test_seed_and_buckets_matter(tmp_path):
    """With one band of many rows hardly anything but copies is found, with many bands of one row almost everything."""
    generator = random.Random(3)
    some = pairs(generator, 20, 0.4, 0.6)
    shards = [[one for one, _ in some], [other for _, other in some]]
    strict = run(tmp_path / "strict", *shards, num_buckets=1, hashes_per_bucket=30)
    lax = run(tmp_path / "lax", *shards, num_buckets=30, hashes_per_bucket=1)
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
    ],
)
def test_bad_settings(tmp_path, field, value):
    with pytest.raises(InputError, match=rf"\b{field}\b"):
        run(tmp_path, ["一二三四五六"], **{field: value})


def test_empty_corpus_is_an_error(tmp_path):
    with pytest.raises(InputError, match="empty corpus"):
        dedup.main(Settings(input_dir=str(tmp_path), output_dir=str(tmp_path / "out")))
    (tmp_path / "00000.jsonl.zst").write_bytes(b"")
    with pytest.raises(InputError, match="empty corpus"):
        dedup.main(Settings(input_dir=str(tmp_path), output_dir=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
