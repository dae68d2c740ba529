"""What is published: all that loading needs, nothing of where it was made."""

import json
import re
import resource
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.train import publish
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.tokenizer.loading import load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
ROOT_FILES = ["configuration_zh_modernbert.py", "modeling_zh_modernbert.py", "tokenization_zh_modernbert.py"]
AUTO_CLASSES = [
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoModelForQuestionAnswering,
    AutoModelForMultipleChoice,
]


def save_model(folder: Path, tokenizer: Path, vocab_size: int = 512) -> Path:
    """A model folder as train/pretrain.py leaves it."""
    config = ZhModernBertConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
    )
    ZhModernBertForMaskedLM(config).save_pretrained(folder)
    load_tokenizer(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model_dir(stages, tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "run" / "model", stages / "tokenizer")


@pytest.fixture(scope="module")
def published(model_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "zh-tiny"
    result = publish.main(publish.Settings(model_dir=str(model_dir), output_dir=str(folder), name="me/zh-tiny"))
    assert result["vocab_size"] == 512
    assert result["output_dir"] == str(folder)
    return folder


def test_the_folder_holds_what_loading_needs_and_no_more(published):
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    optional = {"special_tokens_map.json"}  # some versions of transformers write it
    names = {path.name for path in published.iterdir()}
    assert names - optional == {"config.json", "model.safetensors", "README.md", *tokenizer, *ROOT_FILES}


def test_no_file_says_where_it_was_made(published, model_dir, stages):
    home = str(Path.home())
    places = [str(ROOT), str(published.parent), str(model_dir.parent), str(stages), *([home] if len(home) > 1 else [])]
    for path in published.iterdir():
        content = path.read_bytes()
        assert [place for place in places if place.encode() in content] == [], path.name
        if path.suffix == ".json" and path.name != "tokenizer.json":  # whose vocabulary may well have such tokens
            assert not re.search(rb'"(/|~/|[A-Z]:\\)[^"]*"', content), path.name


def test_the_code_is_this_projects(published):
    for name in ROOT_FILES:
        assert (published / name).read_bytes() == (ROOT / name).read_bytes()


def test_auto_map_is_complete(published):
    auto_map = json.loads((published / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {"AutoConfig", *(auto.__name__ for auto in AUTO_CLASSES)}
    for reference in auto_map.values():
        module, _, name = reference.partition(".")
        assert f"class {name}(" in (published / f"{module}.py").read_text()
    tokenizer = json.loads((published / "tokenizer_config.json").read_text())
    assert "auto_map" not in tokenizer, "the tokenizer needs no code, so that whatever loads it can save it"
    assert tokenizer["model_max_length"] == 256


@pytest.mark.parametrize("auto", AUTO_CLASSES, ids=lambda auto: auto.__name__)
def test_every_auto_class_loads_it(published, model_dir, auto):
    model = auto.from_pretrained(published, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules")
    trained = ZhModernBertForMaskedLM.from_pretrained(model_dir).state_dict()
    encoder = {name: value for name, value in model.state_dict().items() if "tok_embeddings" in name or "layers." in name}
    assert len(encoder) > 10
    for name, value in encoder.items():
        assert torch.equal(value, trained[name if name.startswith("model.") else f"model.{name}"])


def test_it_computes_what_was_trained(published, model_dir):
    tokenizer = AutoTokenizer.from_pretrained(published, trust_remote_code=True)
    config = AutoConfig.from_pretrained(published, trust_remote_code=True)
    assert config.model_type == "zh_modernbert"
    batch = tokenizer(["今天天气很好。", "今天天氣。"], padding=True, return_tensors="pt")
    ours = AutoModelForMaskedLM.from_pretrained(published, trust_remote_code=True).eval()
    theirs = ZhModernBertForMaskedLM.from_pretrained(model_dir).eval()
    with torch.inference_mode():
        torch.testing.assert_close(ours(**batch).logits, theirs(**batch).logits, rtol=0, atol=0)


def test_the_card(published):
    _, front_matter, text = (published / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    fields = yaml.safe_load(front_matter)
    assert fields["language"] == ["zh"]
    assert fields["license"] == "apache-2.0"
    assert (fields["library_name"], fields["pipeline_tag"]) == ("transformers", "fill-mask")
    assert text.strip().startswith("# me/zh-tiny\n")
    assert 'from_pretrained("me/zh-tiny", trust_remote_code=True)' in text
    assert "2 layers of 32" in text
    assert "{" not in text.split("```")[0]  # every place of the template is filled


@pytest.fixture
def settings(model_dir, tmp_path) -> publish.Settings:
    return publish.Settings(model_dir=str(model_dir), output_dir=str(tmp_path / "published"))


def refused(settings: publish.Settings) -> str:
    """The error's text, after which nothing is left behind."""
    before = sorted(Path(settings.output_dir).parent.rglob("*"))
    with pytest.raises(InputError) as error:
        publish.main(settings)
    assert sorted(Path(settings.output_dir).parent.rglob("*")) == before
    assert "\n" not in str(error.value)
    return str(error.value)


def test_notes_and_licence_go_into_the_card(settings, tmp_path):
    notes = "## Data\n\n训练数据：{braces} stay, 100% of them."
    (tmp_path / "notes.md").write_text(notes, encoding="utf-8")
    settings.notes, settings.license = str(tmp_path / "notes.md"), "mit"
    publish.main(settings)
    card = (Path(settings.output_dir) / "README.md").read_text(encoding="utf-8")
    assert notes in card
    assert "license: mit\n" in card


def test_notes_that_cannot_be_read(settings, tmp_path):
    settings.notes = str(tmp_path / "none.md")
    assert "none.md" in refused(settings)
    (tmp_path / "gbk.md").write_bytes("数据".encode("gbk"))
    settings.notes = str(tmp_path / "gbk.md")
    assert "gbk.md" in refused(settings)


def test_publishing_again_replaces_the_folder(settings):
    publish.main(settings)
    left = Path(settings.output_dir) / "special_tokens_map.json"
    left.write_text("from before")
    settings.name = "me/second"
    publish.main(settings)
    assert not left.exists()
    assert "# me/second" in (Path(settings.output_dir) / "README.md").read_text(encoding="utf-8")


def test_other_folders_are_not_replaced(settings):
    Path(settings.output_dir).mkdir()
    (Path(settings.output_dir) / "thesis.txt").write_text("precious")
    assert settings.output_dir in refused(settings)


def test_the_model_folder_itself_is_not_replaced(settings, model_dir, tmp_path):
    settings.model_dir = settings.output_dir = str(shutil.copytree(model_dir, tmp_path / "model"))
    assert settings.output_dir in refused(settings)


def test_other_models_are_refused(settings, model_dir, tmp_path):
    folder = shutil.copytree(model_dir, tmp_path / "bert")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    settings.model_dir = str(folder)
    assert "zh_modernbert" in refused(settings)


def test_no_model(settings, stages, tmp_path):
    settings.model_dir = str(tmp_path / "nowhere")
    assert "nowhere" in refused(settings)
    settings.model_dir = str(stages / "tokenizer")
    assert "config.json" in refused(settings)


@pytest.mark.parametrize("file", ["tokenizer.json", "model.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_model_folder_is_named(settings, model_dir, tmp_path, file, damage):
    path = shutil.copytree(model_dir, tmp_path / "damaged") / file
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    settings.model_dir = str(path.parent)
    assert str(path.parent) in refused(settings)


def test_a_tokenizer_larger_than_the_model_is_refused(settings, stages, tmp_path):
    settings.model_dir = str(save_model(tmp_path / "small", stages / "tokenizer", vocab_size=448))
    error = refused(settings)
    assert "512" in error
    assert "448" in error


def test_a_full_disk(settings, model_dir, tmp_path):
    tokenizer, limits = load_tokenizer(model_dir), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        error = refused(settings)
        with pytest.raises(OSError, match="too large"):  # of tokenizers, which raises a plain Exception
            tokenizer.save_pretrained(tmp_path / "tokenizer")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{settings.output_dir}: cannot be written: " in error


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "a\nb"),
        ("name", "me/[x](y)"),
        ("name", 'me/"); import os; ("'),
        ("name", "<b>"),
        ("name", ""),
        ("license", "mit\nlanguage: en"),
        ("license", "mit: x"),
        ("license", "no licence"),
    ],
)
def test_names_and_licences_that_the_hub_would_not_take(settings, field, value):
    setattr(settings, field, value)
    assert f"publish: {field} is {value!r}" in refused(settings)


def test_scores_in_the_card(model_dir, tmp_path):
    """As huggingface_hub reads them back; the file's own text stays data."""
    index = tmp_path / "model_index.json"
    entry = {
        "task": {"type": "text-classification"},
        "dataset": {"name": "tnews, dev: 甲 # no comment", "type": "clue/clue", "split": "dev"},
        "metrics": [{"type": "accuracy", "value": 56.2}],
    }
    index.write_text(json.dumps({"results": [entry]}), encoding="utf-8")
    settings = publish.Settings(str(model_dir), str(tmp_path / "out"), name="me/zh-tiny", model_index=str(index))
    publish.main(settings)
    (result,) = ModelCard.load(tmp_path / "out" / "README.md").data.eval_results
    assert (result.dataset_name, result.metric_value) == (entry["dataset"]["name"], 56.2)
    for wrong in ({"results": [{"task": {}}]}, {"results": 7}, {}):
        index.write_text(json.dumps(wrong), encoding="utf-8")
        with pytest.raises(InputError, match="model_index"):
            publish.main(settings)
