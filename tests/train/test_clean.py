"""The stage: what is kept and dropped, the report of it, and the same bytes with any number of workers."""

import json
import random

import opencc
import pytest
import zstandard

from zh_modernbert.train import clean
from zh_modernbert.train.clean import (
    EXAMPLE_CHARACTERS,
    EXAMPLES,
    SHOWN,
    Settings,
    make_report,
    markdown_report,
    merge,
    plot_report,
    shown,
)
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.corpus.documents import read_corpus, write_corpus

HANS = (
    "这本书讲述了中国历史上几个重要时期的经济发展，作者认为农业与贸易同样重要，这是一个值得讨论的问题，也是许多读者关心的事情。"
)
HANT = opencc.OpenCC("s2tw").convert(HANS)
OTHER = "天气预报说明天会下雨，我们还是在家里看书吧。小明喜欢在图书馆读书，他的老师也常常在那里，公司决定开发新的产品。"
SPAM = "百家乐、时时彩、老虎机应有尽有，开户送彩金，首存返水，真人娱乐城，足球投注赔率最高。"
LATIN = "The quick brown fox jumps over the lazy dog while nobody watches. "
MIXED = LATIN * 3 + OTHER


def write_shards(folder, *shards: list[dict]):
    """A corpus of the given shards, each under its own number."""
    folder.mkdir()
    for number, documents in enumerate(shards):
        write_corpus(folder, documents)
        (folder / "00000.jsonl.zst").rename(folder / f"{number + 100:05d}.jsonl.zst")
    return str(folder)


def documents_of(texts, source="s") -> list[dict]:
    return [{"id": f"{source}-{i}", "source": source, "text": text} for i, text in enumerate(texts)]


NEWS = [HANS, HANT, "短。", OTHER, "\n".join([HANS] * 3)]
WEB = [HANS + SPAM, "太短", f"<p>{HANS}</p>", MIXED]


def run(folder, *, workers=1, **fields) -> dict:
    return clean.main(Settings(output_dir=str(folder), workers=workers, **fields))


def report_of(folder) -> dict:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_report_adds_up_and_rejects_are_kept(tmp_path):
    corpus = write_shards(tmp_path / "in", documents_of(NEWS, "news"), documents_of(WEB, "web"))
    result = run(tmp_path / "out", input_dir=corpus, save_rejects=True)
    report = report_of(tmp_path / "out")
    kept = {document["id"]: document for document in read_corpus(tmp_path / "out")}
    rejects = {document["id"]: document["filter_reason"] for document in read_corpus(tmp_path / "out" / "rejects")}

    assert rejects == {
        "news-2": "too_short",
        "news-4": "repeated_lines",
        "web-0": "gambling",
        "web-1": "too_short",
        "web-3": "not_chinese",
    }
    assert {name: (document["text"], document["script"], document["source"]) for name, document in kept.items()} == {
        "news-0": (HANS, "hans", "news"),
        "news-1": (HANT, "hant", "news"),
        "news-3": (OTHER, "hans", "news"),
        "web-2": (HANS, "hans", "web"),
    }
    total = {key: report[key] for key in ("documents_in", "documents", "characters_in", "characters")}
    assert total == {
        "documents_in": len(NEWS) + len(WEB),
        "documents": len(kept),
        "characters_in": sum(map(len, NEWS + WEB)),
        "characters": sum(len(document["text"]) for document in kept.values()),
    }
    assert report["dropped"] == {
        "too_short": {"documents": 2, "characters": 4},
        "not_chinese": {"documents": 1, "characters": len(MIXED)},
        "repeated_lines": {"documents": 1, "characters": len(NEWS[4])},
        "gambling": {"documents": 1, "characters": len(WEB[0])},
    }
    assert report["changed"] == {"strip_html": 1, "normalise_whitespace": 1}
    assert report["per_source"]["web"] == {
        "documents_in": 4,
        "documents": 1,
        "characters_in": sum(map(len, WEB)),
        "characters": len(HANS),
        "dropped": {
            "too_short": {"documents": 1, "characters": 2},
            "not_chinese": {"documents": 1, "characters": len(MIXED)},
            "gambling": {"documents": 1, "characters": len(WEB[0])},
        },
    }
    assert [example["id"] for example in report["examples"]["too_short"]] == ["news-2", "web-1"]
    dropped = {"too_short": 2, "not_chinese": 1, "repeated_lines": 1, "gambling": 1}
    assert result == total | {"dropped": dropped, "quarantined": 0, "raised": {}, "output_dir": str(tmp_path / "out")}


def test_any_number_of_workers_writes_the_same_bytes(tmp_path):
    generator = random.Random(0)
    shards = [
        documents_of([generator.choice(NEWS + WEB) + generator.choice(["", OTHER]) for _ in range(20)], f"s{shard}")
        for shard in range(2)
    ]
    corpus = write_shards(tmp_path / "in", *shards)
    results = [run(tmp_path / f"out{workers}", input_dir=corpus, workers=workers, save_rejects=True) for workers in (1, 2)]
    assert 0 < results[0]["documents"] < 40
    files = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "out1", tmp_path / "out2")
    ]
    for contents in files:
        assert len([path for path in contents if path.name.endswith(".zst")]) == 4
        del contents[next(path for path in contents if path.name == "settings.json")]
    assert files[0] == files[1]


def test_examples_are_the_first_in_order_and_short(tmp_path):
    long = "今天天气很好，" * 100
    corpus = write_shards(
        tmp_path / "in", documents_of([HANS, "短一", long], "a"), documents_of(["短二", "短三", "短四", HANS], "b")
    )
    run(tmp_path / "out", input_dir=corpus)
    examples = report_of(tmp_path / "out")["examples"]
    assert [example["text"] for example in examples["too_short"]] == ["短一", "短二", "短三"]
    assert len(examples["too_short"]) == EXAMPLES
    assert examples["few_function_words"] == [{"id": "a-2", "source": "a", "text": long[:EXAMPLE_CHARACTERS]}]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({}, {"a": 1}, {"a": 1}),
        ({"a": 1, "b": [1, 2]}, {"a": 2, "b": [10, 20], "c": {"d": 5}}, {"a": 3, "b": [11, 22], "c": {"d": 5}}),
        ({"e": [{"id": "1"}, {"id": "2"}]}, {"e": [{"id": "3"}, {"id": "4"}]}, {"e": [{"id": "1"}, {"id": "2"}, {"id": "3"}]}),
    ],
)
def test_merge(first, second, expected):
    assert merge(first, second) == expected


def test_markdown_report_shows_every_figure_and_example():
    counts = {"in": [1234, 56789], "out": [1000, 40000], "dropped": {"gambling": [234, 12345]}}
    example = {"id": "x-7", "source": "a|b", "text": "博彩\n```\n网站"}
    tally = {"sources": {"a|b": counts}, "changed": {"strip_html": 12}, "examples": {"gambling": [example]}}
    lines = markdown_report(make_report([tally])).splitlines()
    assert "| a\\|b | 1,234 | 1,000 | 56,789 | 40,000 | 70.4% |" in lines
    assert "| **all** | 1,234 | 1,000 | 56,789 | 40,000 | 70.4% |" in lines
    assert "| gambling | 234 | 12,345 |" in lines
    assert "| strip_html | 12 |" in lines
    start = lines.index("From a\\|b, x-7:")
    assert lines[start + 2 : start + 7] == ["```text", "博彩", "'''", "网站", "```"]


def test_names_are_no_markdown():
    """They come from the rows: lines, headings, links, images, code and tables."""
    name = "a\n# b | [c](d) ![e](f) `g` *h* <i> \\"
    counts = {"in": [1, 2], "dropped": {"gambling": [1, 2]}}
    example = {"id": name, "source": name, "text": "x"}
    text = markdown_report(make_report([{"sources": {name: counts}, "changed": {}, "examples": {"gambling": [example]}}]))
    shown = "a # b \\| \\[c\\](d) !\\[e\\](f) \\`g\\` \\*h\\* \\<i\\> \\\\"
    assert f"| {shown} | 1 | 0 | 2 | 0 | 0.0% |" in text.splitlines()
    assert f"From {shown}, {shown}:" in text.splitlines()


def test_report_is_written_for_people_too(tmp_path):
    run(tmp_path / "out", input_dir=write_shards(tmp_path / "in", documents_of(NEWS)))
    assert (tmp_path / "out" / "report.md").read_text(encoding="utf-8") == markdown_report(report_of(tmp_path / "out"))
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("to", "text"), [("hans", opencc.OpenCC("t2s").convert(HANT)), ("hant", HANT)])
def test_conversion_to_one_script(tmp_path, to, text):
    corpus = write_shards(tmp_path / "in", documents_of([HANS, HANT]))
    run(tmp_path / "out", input_dir=corpus, convert_to=to)
    assert [(document["text"], document["script"]) for document in read_corpus(tmp_path / "out")] == [(text, to)] * 2


@pytest.mark.filterwarnings("ignore:Glyph")  # of the plot's font
@pytest.mark.parametrize("source", ["a/b", "資料 集", "in", "too_short/s", "total"])
def test_sources_with_odd_names_are_counted_apart(tmp_path, source):
    corpus = write_shards(tmp_path / "in", documents_of([HANS, "短"], source) + documents_of([HANT], "s"))
    run(tmp_path / "out", input_dir=corpus)
    sources = report_of(tmp_path / "out")["per_source"]
    assert {name: (figures["documents_in"], figures["documents"]) for name, figures in sources.items()} == {
        source: (2, 1),
        "s": (1, 1),
    }


def test_other_fields_of_documents_survive(tmp_path):
    """Whatever they are called: `media` means something to the engine, not to a corpus."""
    extra = {"url": "http://x", "script": "hans", "score": 1.5, "tags": ["a"], "media": ["b.png"]}
    corpus = write_shards(tmp_path / "in", [{"id": "1", "source": "s", "text": HANT, **extra}])
    run(tmp_path / "out", input_dir=corpus)
    assert list(read_corpus(tmp_path / "out")) == [{"id": "1", "source": "s", "text": HANT, **extra, "script": "hant"}]


def test_dropping_everything_is_an_error(tmp_path):
    corpus = write_shards(tmp_path / "in", documents_of(["短", "also short"]))
    with pytest.raises(InputError, match=r"too_short.*2"):
        run(tmp_path / "out", input_dir=corpus)
    assert not (tmp_path / "out").exists()


def test_empty_corpus_is_an_error(tmp_path):
    (tmp_path / "none").mkdir()
    write_shards(tmp_path / "in", documents_of([HANS]))
    (tmp_path / "in" / "00100.jsonl.zst").write_bytes(zstandard.compress(b""))
    for name in ("none", "in"):
        with pytest.raises(InputError, match="empty corpus"):
            run(tmp_path / "out", input_dir=str(tmp_path / name))


@pytest.mark.parametrize("workers", [1, 2])
def test_damaged_shard_is_named(tmp_path, workers):
    corpus = write_shards(tmp_path / "in", documents_of([HANS]), documents_of([HANS]))
    with open(f"{corpus}/00101.jsonl.zst", "wb") as file:
        file.write(b"not zstd at all")
    with pytest.raises(InputError, match=r"00101\.jsonl\.zst"):
        run(tmp_path / "out", input_dir=corpus, workers=workers)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scripts", ["klingon"]),
        ("workers", 0),
        ("workers", -2),
        ("convert_to", "latin"),
        ("language_model", "no/such.bin"),
        ("min_han_share", 1.5),
        ("max_kana_share", -0.1),
    ],
)
def test_bad_settings(tmp_path, field, value):
    corpus = write_shards(tmp_path / "in", documents_of([HANS]))
    with pytest.raises(InputError, match=rf"\b{field}\b" if field != "language_model" else r"no/such\.bin"):
        clean.main(Settings(input_dir=corpus, output_dir=str(tmp_path / "out"), **{field: value}))


def test_input_is_not_overwritten(tmp_path):
    """A slip of the hand on a corpus that took days to collect."""
    corpus = write_shards(tmp_path / "in", documents_of([HANS, "短"]))
    (tmp_path / "in" / "settings.json").write_text("{}")
    with pytest.raises(InputError):
        run(corpus, input_dir=corpus)
    assert len(list(read_corpus(corpus))) == 2


def test_of_many_sources_the_report_shows_the_largest_and_the_others_together(tmp_path):
    """A source is a file where none is named. The plot of 100,000 would take 10 GB."""
    sources = {f"file {number}": {"in": [1, 1000 + number], "out": [1, 900]} for number in range(5000)}
    sources["file 0"] = {"in": [2, 7], "dropped": {"too_short": [2, 7]}}
    report = make_report([{"sources": sources, "changed": {}, "examples": {}}])
    assert len(report["per_source"]) == 5000
    found = shown(report["per_source"])
    assert list(found) == [*sorted(f"file {number}" for number in range(5000 - SHOWN, 5000)), f"{5000 - SHOWN} other sources"]
    others = found.popitem()[1]
    assert others["documents_in"] == 5000 - SHOWN + 1
    assert others["dropped"] == {"too_short": {"documents": 2, "characters": 7}}
    assert sum(figures["characters"] for figures in [*found.values(), others]) == report["characters"]
    assert report["per_source"]["file 0"]["documents_in"] == 2, "the report itself stays"
    assert "other sources" in markdown_report(report)
    plot_report(report, tmp_path / "report.png")


def test_a_tally_grows_in_place():
    """The work of a document does not grow with the sources before it, and what is added stays as it was."""
    first, second = {"a": {"x": [1, 2]}}, {"b": {"x": [3, 4]}}
    whole = merge(merge(first, second), {"b": {"x": [1, 1]}})
    assert whole is first
    assert (whole["b"], second) == ({"x": [4, 5]}, {"b": {"x": [3, 4]}})
