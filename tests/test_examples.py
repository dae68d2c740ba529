"""docs/examples.md runs as it stands: each block alone, in the page's order. So do the commands for texts of one's own."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import make_texts
from safetensors import safe_open
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

import shown

pytestmark = pytest.mark.usefixtures("one_thread", "unrendered_plots", "reader")
ROOT = Path(__file__).resolve().parents[1]
REVIEWS = [("房间很干净，下次还来。", "positive"), ("等了一个小时，菜是凉的。", "negative")] * 8
# Settings that make a command shorter, by its script.
SMALLER = {
    "train_tokenizer": {"vocab_size": 320},
    "pretrain": {"max_steps": 1, "num_warmup_steps": 0, "report_to": ["none"]},
}


@pytest.fixture(scope="module")
def folder(publish_random, tmp_path_factory) -> Path:
    """Where a reader stands: the scripts, and what the quick start left."""
    folder = tmp_path_factory.mktemp("reader")
    quickstart = folder / "runs" / "quickstart"
    shutil.copytree(publish_random("examples", num_hidden_layers=1, initializer_range=0.3), quickstart / "model")
    lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in REVIEWS]
    (quickstart / "sentiment_train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "train").symlink_to(ROOT / "train")
    return folder


@pytest.fixture
def reader(folder, monkeypatch):
    monkeypatch.chdir(folder)


def read_page(page: str) -> str:
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


def section(page: str, heading: str) -> str:
    return read_page(page).split(f"\n## {heading}\n")[1].split("\n## ")[0]


def run_example(heading: str, page: str = "examples.md") -> dict:
    """Runs the blocks under a heading; the names that the last one of Python made, which had no others."""
    names: dict = {}
    for language, text in shown.blocks(section(page, heading)):
        if language == "bash":
            for script, settings in map(shown.parse, shown.commands(text)):
                script.main(dataclasses.replace(settings, **SMALLER.get(script.__name__.rpartition(".")[2], {})))
        else:
            names = {}
            exec(text, names)
    return names


@torch.inference_mode()
def logits(model) -> torch.Tensor:
    """`(2, 2)`: what a classifier says of two reviews."""
    tokenizer = AutoTokenizer.from_pretrained("runs/quickstart/model", trust_remote_code=True)
    texts = [text for text, _ in REVIEWS[:2]]
    return model.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits


def load_classifier(folder: str):
    return AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)


def test_every_example_has_a_test():
    headings = re.findall(r"^## (.+)$", read_page("examples.md"), re.MULTILINE)
    tests = Path(__file__).read_text(encoding="utf-8")
    assert [heading for heading in headings if f'"{heading}"' not in tests] == []


def test_a_classifier_and_its_onnx():
    trainer = run_example("A classifier, with the Trainer")["trainer"]
    assert trainer.state.global_step == 4
    trained = logits(trainer.model)
    torch.testing.assert_close(logits(load_classifier("runs/sentiment")), trained)
    names = run_example("ONNX")
    torch.testing.assert_close(torch.tensor(names["logits"]), trained, rtol=1e-4, atol=1e-5)
    assert set(names["names"].values()) == {"negative", "positive"}


def test_a_csv():
    rows = "".join(f"{text},{5 if label == 'positive' else 1}\n" for text, label in REVIEWS)
    for name in ("train.csv", "dev.csv"):
        Path(name).write_text("review,stars\n" + rows, encoding="utf-8")
    names = run_example("From a CSV, with a score")
    assert names["names"] == ["1", "5"]
    assert names["trainer"].evaluate()["eval_accuracy"] == 1
    assert load_classifier("runs/reviews").config.id2label == {0: "1", 1: "5"}


def test_lora():
    names = run_example("LoRA")
    with safe_open("runs/lora/adapter_model.safetensors", "pt") as file:
        assert all(re.search(r"lora_|head\.|classifier\.", name) for name in file.keys())  # noqa: SIM118  # no mapping
    trained = logits(names["trainer"].model)
    torch.testing.assert_close(logits(load_classifier("runs/merged")), trained, rtol=1e-4, atol=1e-5)


def test_embeddings():
    scores = run_example("Embeddings")["scores"]
    assert scores.shape == (1, 3)
    assert scores.abs().max() <= 1 + 1e-5


def test_long_documents():
    """Each token of a paragraph is in its vector, and no other."""
    names = run_example("Long documents")
    tokens = [names["tokenizer"](text, add_special_tokens=False)["input_ids"] for text in names["paragraphs"]]
    hidden, first = names["hidden"], 1  # behind [CLS]
    assert len(hidden) == sum(map(len, tokens)) + len(tokens) + 1, "and a line break between two"
    for ids, vector in zip(tokens, names["vectors"], strict=True):
        torch.testing.assert_close(vector, hidden[first : first + len(ids)].mean(0))
        first += len(ids) + 1


def test_pretraining_on_ones_own_corpus():
    assert "(pretraining.md#your-own-texts)" in section("examples.md", "Pretraining on your own corpus")
    Path("my_texts").mkdir()
    for number, text in enumerate(make_texts(900, longest=8)):
        Path("my_texts", f"{number}.txt").write_text(text, encoding="utf-8")
    run_example("Your own texts", "pretraining.md")
    model = AutoModelForMaskedLM.from_pretrained("runs/tiny/published", trust_remote_code=True)
    assert model.config.max_position_embeddings == 8192
    assert model.get_input_embeddings().weight.isfinite().all()
