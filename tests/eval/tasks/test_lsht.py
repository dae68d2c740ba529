"""LSHT's prompts become examples to train on and articles to score."""

import json

import pytest

from zh_modernbert.eval.tasks.lsht import articles, load_lsht
from zh_modernbert.train.common.cli import InputError


def entry(asked: str, label: str, *shown: tuple[str, str]) -> dict:
    context = "\n".join(f"新闻内容：\n{text}\n类别：{name}" for text, name in shown)
    return {"input": f"新闻内容：\n{asked}\n类别：", "context": context, "answers": [label], "all_classes": ["体育", "财经"]}


def write(folder, *entries) -> None:
    (folder / "lsht.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in entries), encoding="utf-8")


def test_articles():
    text = "例子。新闻内容：\n甲类别：乙\n类别：体育\n新闻内容：丙\n类别："
    assert [*articles(text)] == [("甲类别：乙", "体育"), ("丙", "")]


def test_examples_and_articles(tmp_path):
    shown = [(f"第{number}场比赛", "体育") for number in range(10)] + [(f"第{number}次涨价", "财经") for number in range(10)]
    write(tmp_path, entry("又一场比赛", "体育", *shown, ("又涨价了", "财经")), entry("又涨价了", "财经", *shown))
    data = load_lsht(str(tmp_path), False, False, 0, 0)
    assert [row.values for row in data.splits["test"]] == [
        {"text": "又一场比赛", "label": "体育"},
        {"text": "又涨价了", "label": "财经"},
    ]
    trained = [row.values["text"] for split in ("train", "held_out") for row in data.splits[split]]
    assert sorted(trained) == sorted(text for text, _ in shown)  # each once, and none that is scored
    assert len(data.splits["held_out"]) == 2
    assert data.labels == ["体育", "财经"]


def test_what_is_no_lsht(tmp_path):
    shown = (("比赛", "体育"), ("涨价", "财经"))
    write(tmp_path, {"input": "又一场"}, entry("又一场", "体育", *shown), entry("又一天", "军事", *shown))
    with pytest.raises(InputError, match="line 1: not an entry of LSHT") as error:
        load_lsht(str(tmp_path), False, False, 0, 0)
    assert "'军事' does not occur" in str(error.value)
    assert len(load_lsht(str(tmp_path), False, True, 0, 0).splits["test"]) == 1
