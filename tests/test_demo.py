"""The page to try a model: what its functions compute, what it says to bad input, and the page itself in a browser."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import ModernBertForMaskedLM

from browser import browse
from computing import (
    LONGEST_ANSWER,
    BadInputError,
    Model,
    attention_spans,
    fill_masks,
    find_answers,
    load,
    model_for,
    similarities,
    spell,
)
from examples import EXAMPLES
from showing import guarded, show_answers, show_masks, show_similarities, show_spans
from zh_modernbert.modeling_zh_modernbert import ZhModernBertForQuestionAnswering
from zh_modernbert.train import publish
from zh_modernbert.train.common.model_folder import load_model, write_model

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LONG = "老师正在研究历史的问题。" * 60


@pytest.fixture(scope="module")
def masked(publish_random) -> Path:
    return publish_random("masked", initializer_range=0.3, max_position_embeddings=256, norm_type="layernorm")


@pytest.fixture(scope="module")
def reader(masked, tmp_path_factory) -> Path:
    """A published model with a head for reading comprehension."""
    folder = tmp_path_factory.mktemp("reader") / "zh-reader"
    shutil.copytree(masked, folder)
    write_model(folder, ZhModernBertForQuestionAnswering(load_model(masked).config))
    return folder


@pytest.fixture(scope="module")
def models(masked, reader) -> list[Model]:
    return [load(str(folder), trust_remote_code=True) for folder in (masked, reader)]


# --- what is computed ---


def test_every_mask_is_filled_with_what_the_model_finds_likeliest(models):
    found = fill_masks(models[0], "今天[MASK]气很[MASK]。")
    ids = models[0].tokenizer("今天[MASK]气很[MASK]。", return_tensors="pt")
    logits = models[0].model(**ids).logits[0].detach()
    probabilities = logits[ids["input_ids"][0] == models[0].tokenizer.mask_token_id].softmax(-1)
    for candidates, expected in zip(found, probabilities, strict=True):
        shares = [share for _, share in candidates]
        assert shares == sorted(shares, reverse=True)
        assert shares[0] == pytest.approx(float(expected.max()), rel=1e-4)
        assert candidates[0][0] in (models[0].tokenizer.decode([int(expected.argmax())]), "part of a character")


@pytest.mark.parametrize(
    ("token", "seen"),
    [("天", "天"), ("\n", r"'\n'"), (" ", "' '"), (" a", " a"), ("\u3000", r"'\u3000'"), ("\ufffd", "part of a character")],
)
def test_every_token_can_be_seen(token, seen):
    assert spell(token) == seen


def test_similarities(models):
    sentences = ["今天有雨", "老师研究历史", "今天有雨"]
    cosines = similarities(models[0], sentences)
    torch.testing.assert_close(cosines.diagonal(), torch.ones(3))
    assert cosines[0, 2] == pytest.approx(1, abs=1e-6)
    batch = models[0].tokenizer(sentences, padding=True, return_tensors="pt")
    hidden = models[0].model.base_model(**batch).last_hidden_state.detach()
    vectors = hidden.sum(1) / batch["attention_mask"].sum(1, keepdim=True)
    assert cosines[0, 1] == pytest.approx(float(torch.cosine_similarity(vectors[0], vectors[1], dim=0)), abs=1e-5)


class Planted(Model):
    """A reader that finds one piece of text, wherever it stands."""

    def run(self, ids, encoder=False, **options):
        wanted = self.tokenizer("图书馆", add_special_tokens=False)["input_ids"]
        starts, ends = torch.zeros(2, 1, len(ids))
        for place in range(len(ids)):
            if ids[place : place + len(wanted)] == wanted:
                starts[0, place], ends[0, place + len(wanted) - 1] = 9.0, 9.0
        return SimpleNamespace(start_logits=starts, end_logits=ends)


@pytest.mark.parametrize("before", [0, 1, 17, 40])
def test_an_answer_far_into_a_text(models, before):
    """It is found once, in its place, although windows overlap and the question has it too."""
    planted = Planted(*(getattr(models[1], name) for name in ("name", "tokenizer", "model", "head")))
    text = f"{LONG[: 12 * before]}图书馆，{LONG[: 12 * (40 - before)]}"
    (begin, end, share), *others = find_answers(planted, "哪个图书馆？", text)
    assert (begin, text[begin:end]) == (12 * before, "图书馆")
    assert share > 0.9
    assert all(other_end <= begin or end <= other_begin for other_begin, other_end, _ in others)


def test_answers_of_a_model(models):
    found = find_answers(models[1], "谁？", LONG)
    assert 1 <= len(found) <= 3
    for begin, end, _ in found:
        assert 0 <= begin < end <= len(LONG)
        assert len(models[1].tokenizer(LONG[begin:end])["input_ids"]) <= LONGEST_ANSWER + 2


def test_how_far_layers_look(models):
    full, window = attention_spans(models[0], LONG[:200])
    half_window = models[0].model.config.local_attention // 2
    assert (full.full, window.full) == (True, False)
    assert window.reach[0] <= window.reach[1] <= half_window < full.reach[1]
    assert max(window.heads) <= half_window
    assert 0 < full.special < 1


def test_a_model_that_looks_everywhere_alike(models, monkeypatch):
    def alike(self, ids, encoder=False, **options):
        distance = (torch.arange(len(ids))[:, None] - torch.arange(len(ids))).abs()
        masks = [torch.ones_like(distance), distance <= self.model.config.local_attention // 2]
        return SimpleNamespace(attentions=[(mask / mask.sum(1, keepdim=True)).expand(1, 2, -1, -1) for mask in masks])

    monkeypatch.setattr(Model, "run", alike)
    full, window = attention_spans(models[0], LONG[:200])
    assert full.reach == full.alike
    assert full.heads == [full.alike[0]] * 2
    assert full.special == pytest.approx(2 / len(models[0].tokenizer(LONG[:200])["input_ids"]), rel=1e-4)
    assert abs(window.reach[1] - window.alike[1]) <= 1  # at the text's edges there is less to see


def test_the_stock_form(masked, models, tmp_path):
    """It needs no trust, and shows the same."""
    stock = publish.Settings(str(masked), str(tmp_path / "stock"), form="modernbert")
    publish.main(stock)
    model = load(stock.output_dir, trust_remote_code=False)
    assert isinstance(model.model, ModernBertForMaskedLM)
    for found, expected in zip(attention_spans(model, LONG[:200]), attention_spans(models[0], LONG[:200]), strict=True):
        assert (found.full, found.reach, found.heads) == (expected.full, expected.reach, expected.heads)


def test_models_that_cannot_be_loaded(masked, tmp_path):
    with pytest.raises(BadInputError, match="--trust_remote_code true runs it"):
        load(str(masked), trust_remote_code=False)
    with pytest.raises(BadInputError, match="runs/here: no such folder"):
        load("./runs/here", False)
    with pytest.raises(BadInputError, match="no-such-model: cannot be loaded"):  # old names on the Hub have no owner
        load("no-such-model", False)
    with pytest.raises(BadInputError, match="nowhere: no such folder"):
        load(str(tmp_path / "nowhere"), trust_remote_code=True)


# --- what is shown ---


@pytest.mark.parametrize(
    ("show", "texts", "said"),
    [
        (show_masks, [""], "There is no text"),
        (show_masks, [None], "There is no text"),
        (show_masks, ["今天天气"], "There is no mask"),
        (show_masks, ["[MASK]" * 21], "There are 21 masks"),
        (show_masks, [LONG + "[MASK]"], "256 are the most"),
        (show_similarities, ["一句"], "There are 1"),
        (show_similarities, ["\n \n"], "There are 0"),
        (show_similarities, ["一句\n" * 41], "There are 41"),
        (show_similarities, [f"一句\n{LONG}"], "The sentence 2 is too long"),
        (show_answers, ["", LONG], "There is no question"),
        (show_answers, ["谁？", " "], "There is no text"),
        (show_answers, [LONG, LONG], "The question is too long"),
        (show_spans, ["\n"], "There is no text"),
        (show_spans, ["[SEP]"], "nothing in the text but special tokens"),
        (show_spans, [LONG], "256 are the most"),
    ],
)
def test_bad_input_is_answered_on_the_page(models, show, texts, said):
    shown = guarded(show, models)(*texts)
    assert 'class="message"' in shown
    assert said in shown


def test_what_a_model_has_no_head_for(models):
    assert "fine-tuned for reading comprehension" in guarded(show_answers, models[:1])("谁？", LONG)
    assert "zh-reader cannot do this. It takes a model as pretraining leaves it" in guarded(show_masks, models[1:])("[MASK]")
    assert model_for(models, "ForQuestionAnswering") is models[1]


@pytest.mark.parametrize("show", [show_masks, show_similarities, show_answers, show_spans], ids=lambda show: show.__name__)
def test_examples_in_both_scripts_and_what_is_typed_is_text(models, show):
    for texts in EXAMPLES[show.__name__]:
        shown = guarded(show, models)(*(text[:80] for text in texts))
        assert 'class="message"' not in shown
        assert shown.startswith('<div class="zh">')
    evil = "<img src=x onerror=alert(1)>[MASK]\n<b>第二句</b>"
    shown = guarded(show, models)(*[evil] * len(EXAMPLES[show.__name__][0]))
    assert "<img" not in shown
    assert "<b>第" not in shown


def test_the_page_counts_nobody(models):
    """And each tab can be asked by its name."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    import app

    blocks = app.build(models)
    assert not blocks.analytics_enabled
    tabs = {function.api_name: function for function in blocks.fns.values() if str(function.api_name).startswith("show_")}
    assert tabs.keys() == EXAMPLES.keys()
    assert 'class="message"' in tabs["show_masks"].fn("")


# --- the folder as a Space ---


def test_a_space_has_what_the_page_needs():
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["demo"]]
    assert sorted((ROOT / "demo" / "requirements.txt").read_text().split()) == sorted(wanted)
    header = yaml.safe_load((ROOT / "demo" / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert f"gradio=={header['sdk_version']}" in (ROOT / "constraints.txt").read_text().split()
    assert (ROOT / "demo" / header["app_file"]).is_file()


def test_without_gradio_the_page_says_what_to_install():
    code = "import runpy, sys; sys.modules['gradio'] = None; runpy.run_path('app.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "demo", capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("app: gradio is missing: pip install '.[demo]'")
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def address(masked, reader, tmp_path_factory):
    """The page as a Space serves it: its folder alone, without this project."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    folder = tmp_path_factory.mktemp("space")
    shutil.copytree(ROOT / "demo", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"MODEL": f"{masked} {reader}", "TRUST_REMOTE_CODE": "true", "GRADIO_SERVER_PORT": str(port)}
    code = "import runpy, sys; sys.modules['zh_modernbert'] = None; runpy.run_path('app.py', run_name='__main__')"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        for line in process.stdout:
            if b"Running on local URL" in line:
                break
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
def test_the_page_in_a_browser(address, tmp_path):
    """A user goes through the tabs, types, takes an example, gets results and messages; nothing is asked of other machines."""
    with browse(CHROMIUM, address, tmp_path / "profile") as page:

        def open_tab(number: int, name: str) -> None:
            page.wait_for(f"document.querySelectorAll('button[role=tab]').length > {number}")
            page.run(f"document.querySelectorAll('button[role=tab]')[{number}].click()")
            page.wait_for(f"document.querySelector('#{name}-run')?.offsetParent != null")

        def result(name: str, wanted: str) -> str:
            """What is shown after a click on the button, when it has what is wanted."""
            page.run(f"document.querySelector('#{name}-run').click()")
            page.wait_for(f"document.querySelector('#{name}-result .zh {wanted}') !== null")
            return page.run(f"document.querySelector('#{name}-result').innerText")

        open_tab(0, "show_masks")
        assert "There is no text" in result("show_masks", ".message")
        page.type(".show_masks textarea", "今天[MASK]氣很[MASK]。<b>x</b>")
        assert "[MASK] 2" in result("show_masks", ".card")
        assert page.run("document.querySelectorAll('#show_masks-result mark').length") == 2
        assert page.run("document.querySelector('#show_masks-result .text').innerText").endswith("。<b>x</b>")

        open_tab(1, "show_similarities")
        page.run(
            "document.querySelector('#show_similarities-run').closest('[role=tabpanel]').querySelector('.gallery-item').click()"
        )
        page.wait_for("document.querySelector('.show_similarities textarea').value.includes('今天下午会下雨')")
        assert "6. 他昨天买了一辆新车" in result("show_similarities", "table")
        assert page.run("document.querySelectorAll('#show_similarities-result td').length") == 36

        open_tab(2, "show_answers")
        page.type(".show_answers textarea, .show_answers input", "谁？")
        assert "There is no text" in result("show_answers", ".message")
        boxes = json.dumps(".show_answers textarea, .show_answers input")
        page.run(f"[...document.querySelectorAll({boxes})].at(-1).id = 'long-text'")
        page.type("#long-text", LONG)
        result("show_answers", "#answer-1")
        assert page.run("document.querySelector('#answer-1').innerText") == page.run(
            "document.querySelector('#show_answers-result a').innerText"
        )
        page.run("document.querySelector('#show_answers-result a').click()")
        place = "document.querySelector('#answer-1').getBoundingClientRect().top"
        page.wait_for(f"location.hash === '#answer-1' && {place} >= 0 && {place} < innerHeight")

        open_tab(3, "show_spans")
        page.type(".show_spans textarea", LONG[:200])
        assert "distance in tokens" in result("show_spans", "svg")
        page.screenshot(tmp_path / "page.png")

        elsewhere = [url for url in page.requests if not url.startswith((address, "data:", "blob:"))]
        assert elsewhere == []
        assert page.errors == []
