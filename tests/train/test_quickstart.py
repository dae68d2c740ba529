"""The quick start's corpus and report; the whole run is what .ci/run does in a reduced setting."""

import itertools
import json
import string

import pytest

from zh_modernbert.train import quickstart
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.corpus.characters import detect_script
from zh_modernbert.train.quickstart import (
    Settings,
    Stage,
    begin,
    corpus_stages,
    evaluation_stages,
    fill_masks,
    model_stages,
    prepare,
    read_articles,
    read_reviews,
    run_stages,
    sentiment_line,
    table,
)


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def letters(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())


def test_articles_begin_at_headlines(tmp_path):
    lines = [
        "新年/t  讲话/n",
        "同志/n  们/k  ：/w",
        "我们/r  [中国/ns  人民/n]nt  很/d  高兴/a  。/w",
        "",
        "天气/n  预报/vn",
        "明天/t  晴/a  。/w",
    ]
    (tmp_path / "news.txt").write_text("\n".join(lines), encoding="utf-8")
    assert read_articles(tmp_path / "news.txt") == ["新年讲话\n同志们：\n我们中国人民很高兴。", "天气预报\n明天晴。"]


def test_reviews_are_distinct_and_of_one_label(tmp_path):
    (tmp_path / "pos.txt").write_text(
        "这家酒店的服务真的非常好！\n这家酒店的服务真的非常好。\n两边都有的一条评论内容文字\n短\n", encoding="utf-8"
    )
    (tmp_path / "neg.txt").write_text("两边都有的一条评论内容文字\n房间太小而且早餐也不好吃。\n", encoding="utf-8")
    assert read_reviews(tmp_path) == [
        ("这家酒店的服务真的非常好！", "positive"),
        ("房间太小而且早餐也不好吃。", "negative"),
    ]


def test_what_is_held_out_is_not_trained_on(tmp_path):
    settings = Settings(output_dir=str(tmp_path), max_documents=1500, held_out=20, sentiment_train=100)
    counts = prepare(settings, tmp_path)
    raw = read(tmp_path / "raw.jsonl")
    files = ("sentiment_train.jsonl", "sentiment_dev.jsonl", "held_out_hans.jsonl", "held_out_hant.jsonl")
    parts = [{letters(row["text"]) for row in (raw if name == "raw" else read(tmp_path / name))} for name in ("raw", *files)]
    for index, part in enumerate(parts):
        for other in parts[index + 1 :]:
            assert not part & other
    assert counts["documents"] == len(raw)
    assert [len(read(tmp_path / name)) for name in files] == [100, 100, 20, 20]


def test_half_of_the_documents_are_traditional(tmp_path):
    prepare(Settings(output_dir=str(tmp_path), max_documents=1500, held_out=20, sentiment_train=100), tmp_path)
    raw = read(tmp_path / "raw.jsonl")
    for script in ("hans", "hant"):
        own = [row for row in raw if row["script"] == script]
        assert abs(len(own) / len(raw) - 0.5) < 0.05
        assert sum(detect_script(row["text"]) == script for row in own) > 0.95 * len(own)
        for row in read(tmp_path / f"held_out_{script}.jsonl"):
            assert row["script"] == script


def test_too_few_documents_are_refused(tmp_path):
    with pytest.raises(InputError, match="max_documents"):
        prepare(Settings(output_dir=str(tmp_path), max_documents=100), tmp_path)


def test_a_killed_run_is_kept_and_a_finished_one_is_not(tmp_path):
    settings = Settings(output_dir=str(tmp_path / "run"))
    folder = begin(settings)
    (folder / "work").touch()
    assert (begin(settings) / "work").exists()
    begin(Settings(output_dir=str(tmp_path / "run"), seed=1))
    assert not (folder / "work").exists()
    (folder / "work").touch()
    (folder / "quickstart.json").write_text((folder / "quickstart.json").read_text().replace("false", "true"))
    begin(Settings(output_dir=str(tmp_path / "run"), seed=1))
    assert not (folder / "work").exists()


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(InputError, match="quick start"):
        begin(Settings(output_dir=str(tmp_path)))
    assert (tmp_path / "mine.txt").exists()


def test_a_mask_filled_with_a_line_break_stays_on_its_line(monkeypatch, tmp_path):
    monkeypatch.setattr(quickstart, "pipeline", lambda *_, **__: lambda _: [{"token_str": "\n", "score": 0.25}])
    assert {guess for guesses in fill_masks(tmp_path).values() for guess in guesses} == {r"'\n' 25%"}


def test_stages_know_the_results_before_them_and_have_a_row_each():
    stages = [
        Stage("read", lambda: {"documents": 2345}, "a folder", "{documents:,} documents"),
        Stage("clean", lambda: {"documents": 1234}, "{read[documents]:,} documents", "{documents:,} documents"),
    ]
    results, rows = run_stages(stages)
    assert results == {"read": {"documents": 2345}, "clean": {"documents": 1234}}
    lines = table(rows).splitlines()
    assert lines[0].split() == ["stage", "what", "went", "in", "what", "came", "out", "seconds"]
    assert "read   a folder         2,345 documents" in lines[2]
    assert "clean  2,345 documents  1,234 documents" in lines[3]
    assert lines[-1].startswith("all")


def test_stages_name_no_stage_that_is_not_before_them(tmp_path):
    """Each takes its settings from a preset that is there."""
    stages = [make(Settings(), tmp_path) for make in (corpus_stages, model_stages, evaluation_stages)]
    before = set()
    for stage in itertools.chain(*stages):
        assert {name.partition("[")[0] for _, name, _, _ in string.Formatter().parse(stage.went_in) if name} <= before
        before.add(stage.name)


@pytest.mark.parametrize(
    ("accuracy", "verdict"), [(80.0, "helps"), (70.0, "hurts"), (73.0, "makes no difference"), (76.0, "makes no difference")]
)
def test_the_verdict_is_what_was_measured(accuracy, verdict):
    """1,000 examples show 3.2 points and more."""
    random = {"metrics": {"accuracy": 75.0, "majority_class": 50.0}, "num_examples": 1000}
    pretrained = {"metrics": {"accuracy": accuracy, "majority_class": 50.0}, "num_examples": 1000}
    assert f"pretraining this short {verdict}" in sentiment_line(pretrained, random)
