"""Reading and classification of long texts, scored by length and by what the model reads at once."""

import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from zh_modernbert.eval import long_documents
from zh_modernbert.eval.finetuning.loading import load_tokenizer
from zh_modernbert.eval.finetuning.training import score_halves
from zh_modernbert.train.common.cli import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(publish_random) -> str:
    return str(publish_random("long", max_position_embeddings=256))


def write_drcd(folder: Path, count: int) -> None:
    generator = random.Random(0)
    folder.mkdir(parents=True)
    for name in ("DRCD_training", "DRCD_dev"):
        articles = []
        for index in range(count):
            context = "".join(generator.choices("這那本部書店人們說了", k=20)) + "在臺灣。"
            answers = [{"text": "臺灣", "answer_start": context.index("臺灣")}]
            question = {"id": f"{name}-{index}", "question": "在哪裡？", "answers": answers}
            articles.append({"title": str(index), "paragraphs": [{"context": context, "qas": [question]}]})
        (folder / f"{name}.json").write_text(json.dumps({"data": articles}), encoding="utf-8")


@pytest.fixture
def settings(model, tmp_path) -> long_documents.Settings:
    write_drcd(tmp_path / "drcd", 24)
    return long_documents.Settings(
        model=model,
        trust_remote_code=True,
        data_dir=str(tmp_path),
        lengths=[128, 64],
        windows=[48, 128],
        stride=8,
        max_train_examples=8,
        max_eval_examples=4,
        num_train_epochs=1,
        results_dir=str(tmp_path / "results"),
    )


def results(settings: long_documents.Settings) -> dict[str, dict]:
    files = sorted(Path(settings.results_dir).glob("*.json"))
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in files}


def test_reading_by_length_and_window(settings):
    found = long_documents.main(settings)["results"]
    assert [*found] == ["drcd_long_48", "drcd_long_128"]
    for window in (48, 128):
        result = results(settings)[f"drcd_long_{window}-dev-42.json"]
        metrics = result["metrics"]
        assert result["hyperparameters"]["max_length"] == window
        assert "only 8 of 24 examples of train" in result["notes"]
        assert "only 4 of 24 examples of dev" in result["notes"]
        assert (result["num_examples"], metrics["examples_64"], metrics["examples_128"]) == (8, 4, 4)
        for name in ("em", "f1", "in_passage"):
            assert metrics[name] == pytest.approx((metrics[f"{name}_64"] + metrics[f"{name}_128"]) / 2, abs=0.02)
            assert 0 <= metrics[name] <= 100
        assert metrics["characters_64"] < metrics["characters_128"]
        assert metrics["documents_per_second_64"] > 0
        assert metrics["overlap_f1_128"] > 0


def test_classification_by_length(settings, tmp_path):
    shown = [(f"{'比赛' * (1 + number % 5 * 9)}", "体育") for number in range(10)]
    shown += [(f"{'涨价' * (1 + number % 5 * 9)}了", "财经") for number in range(10)]
    context = "\n".join(f"新闻内容：\n{text}\n类别：{name}" for text, name in shown)
    entries = [
        {"input": f"新闻内容：\n{text}\n类别：", "context": context, "answers": [label]}
        for text, label in (("大赛", "体育"), ("大涨" * 60, "财经"))
    ]
    (tmp_path / "lsht.jsonl").write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
    settings.task, settings.windows = "lsht", [48]
    result = long_documents.main(settings)
    assert (result["task"], result["split"], result["num_examples"]) == ("lsht_long_48", "test", 2)
    assert (result["metrics"]["examples_64"], result["metrics"]["examples_128"]) == (1, 1)
    assert {"accuracy", "accuracy_64", "accuracy_128", "majority_class_128"} <= result["metrics"].keys()


def test_a_window_that_the_model_cannot_read(settings):
    settings.windows = [48, 512]
    with pytest.raises(InputError, match=r"max_position_embeddings \(256\)"):
        long_documents.main(settings)
    assert not Path(settings.results_dir).exists()  # nor was the other window's model trained


def test_all_seeds_are_of_one_text(settings):
    """A second start with another seed scores and trains on the documents of the first."""
    task, tokenizer = long_documents.LONG["drcd"], load_tokenizer(settings.model, True)
    first, other = (long_documents.load_long(replace(settings, seed=seed), task, tokenizer).splits for seed in (42, 43))
    assert first == other


def test_a_question_is_in_one_half_at_all_lengths(settings):
    """As is all that is asked of its passage, of an odd number of questions."""
    write_drcd(Path(settings.data_dir) / "more" / "drcd", 3)
    path = Path(settings.data_dir) / "more" / "drcd" / "DRCD_dev.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    asked = data["data"][1]["paragraphs"][0]["qas"]
    asked += [{**asked[0], "id": f"{asked[0]['id']}-{number}"} for number in range(2)]
    path.write_text(json.dumps(data), encoding="utf-8")
    settings.data_dir = str(path.parents[1])
    tokenizer = load_tokenizer(settings.model, True)
    rows = long_documents.load_long(settings, long_documents.LONG["drcd"], tokenizer).splits["dev"]
    kind = long_documents.in_right_passage(long_documents.reading(tokenizer, 48, 8, 20, 100, "drcd"))
    passages = [row.values["id"].split("-")[1] for row in rows]
    halves = score_halves(lambda answers, references: dict.fromkeys(answers, 1.0), passages, kind.encode(rows))
    assert [set(half) for half in halves] == [{"0", "2"}, {"1"}]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_document_is_timed_as_it_is_computed(monkeypatch, dtype):
    """A GPU works on after a call returns, so the clock waits for it, also before it starts."""
    seen = []

    class Model(torch.nn.Linear):
        def forward(self, inputs):
            seen.append(f"forward in {'bfloat16' if torch.is_autocast_enabled('cpu') else 'float32'}")

    class Batch(dict):
        def to(self, device):
            return self

    features = Dataset.from_dict({"inputs": [[1.0]]})
    kind = SimpleNamespace(encode=lambda rows: SimpleNamespace(features=features), collator=lambda rows: Batch(inputs=rows))
    monkeypatch.setattr(long_documents, "synchronize", lambda device: seen.append("finish"))
    monkeypatch.setattr(long_documents.time, "process_time", lambda: seen.append("clock") or 0.0)
    long_documents.seconds(Model(1, 1), kind, None, dtype)
    forward = f"forward in {dtype}"
    assert seen == [forward, "finish", "clock", forward, "finish", "clock"]
