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
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    ModernBertForMaskedLM,
)

from stand_in_hub import TOKEN, serve
from tiny import randomise
from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.modeling_zh_modernbert import (
    ZhModernBertForMaskedLM,
    ZhModernBertForMultipleChoice,
    ZhModernBertForQuestionAnswering,
    ZhModernBertForSequenceClassification,
    ZhModernBertForTokenClassification,
)
from zh_modernbert.train import pretrain, publish
from zh_modernbert.train.common import model_folder
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.manifest import describe_files
from zh_modernbert.train.common.model_folder import hash_model, load_as_written, load_model
from zh_modernbert.train.publishing.card import reach_text
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


def save_model(folder: Path, tokenizer: Path, vocab_size: int = 512, **changes) -> Path:
    """A model folder as train/pretrain.py leaves it."""
    config = ZhModernBertConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        **changes,
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
    assert (fields["language"], fields["language_bcp47"]) == ("zh", ["zh-Hans", "zh-Hant"])
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
    (tmp_path / "notes.md").write_text(f"# A title\n\n{notes}", encoding="utf-8")
    settings.notes, settings.license = str(tmp_path / "notes.md"), "mit"
    publish.main(settings)
    card = (Path(settings.output_dir) / "README.md").read_text(encoding="utf-8")
    assert notes in card
    assert "A title" not in card
    assert "license: mit\n" in card


def test_notes_that_cannot_be_read(settings, tmp_path):
    settings.notes = str(tmp_path / "none.md")
    assert "none.md" in refused(settings)
    (tmp_path / "gbk.md").write_bytes("数据".encode("gbk"))
    settings.notes = str(tmp_path / "gbk.md")
    assert "gbk.md" in refused(settings)


def test_publishing_again_replaces_the_folder(settings):
    publish.main(settings)
    left = [Path(settings.output_dir) / name for name in ("special_tokens_map.json", "added_tokens.json")]
    for path in left:
        path.write_text("from before")
    settings.name = "me/second"
    publish.main(settings)
    assert not any(path.exists() for path in left)
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
        ("base_model", "me/x\nlicense: mit"),
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


# --- as a stock ModernBERT ---


@pytest.fixture
def layernorm(stages, tmp_path) -> publish.Settings:
    """A model that is stock ModernBERT by another name, with every weight random, and its publishing as one."""
    folder = save_model(tmp_path / "model", stages / "tokenizer", norm_type="layernorm", local_rope_theta=5000.0)
    model = randomise(ZhModernBertForMaskedLM.from_pretrained(folder))
    model.to(torch.bfloat16).save_pretrained(folder)
    return publish.Settings(str(folder), str(tmp_path / "stock"), form="modernbert", name="me/zh-tiny")


def test_the_stock_form(layernorm):
    """It has no code, loads without `trust_remote_code`, gives the same numbers, and its card says so."""
    result = publish.main(layernorm)
    assert result["max_relative_diff"] <= 1e-5
    folder = Path(layernorm.output_dir)
    assert [path.name for path in folder.iterdir() if path.suffix == ".py"] == []
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("modernbert", ["ModernBertForMaskedLM"])
    assert "auto_map" not in config
    older = {"global_attn_every_n_layers": 2, "global_rope_theta": 160000.0, "local_rope_theta": 5000.0}
    assert config.items() >= older.items(), "what transformers 4 reads"
    assert {key: value["rope_theta"] for key, value in config["rope_parameters"].items()} == {
        "full_attention": 160000.0,
        "sliding_attention": 5000.0,
    }
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert type(model).__module__.startswith("transformers.")
    assert model.dtype == torch.bfloat16
    text = "今天天气很好。今天天氣很好。"
    assert tokenizer(text)["input_ids"] == load_tokenizer(layernorm.model_dir)(text)["input_ids"]
    assert tokenizer.model_max_length == 256
    layernorm.form, layernorm.output_dir = "zh_modernbert", layernorm.output_dir + "-ours"
    publish.main(layernorm)
    stock, own = ((Path(form) / "README.md").read_text("utf-8") for form in (folder, layernorm.output_dir))
    assert "trust_remote_code=True" in own
    assert "trust_remote_code=True" not in stock
    assert ("stock form" in stock, "stock form" in own, "cu_seqlens" in stock) == (True, False, False)
    ours = AutoModelForMaskedLM.from_pretrained(layernorm.output_dir, trust_remote_code=True, dtype=torch.float32)
    batch = tokenizer([text], return_tensors="pt")
    with torch.inference_mode():
        torch.testing.assert_close(model.float()(**batch).logits, ours(**batch).logits)


@pytest.mark.parametrize("form", publish.FORMS)
def test_weights_stored_in_half(layernorm, model_dir, tmp_path, form):
    """The file is half as large, and loads as float32 with the same rounded numbers."""
    layernorm.model_dir = str(save_model(tmp_path / "full", model_dir, norm_type="layernorm"))
    layernorm.form, layernorm.dtype = form, "bfloat16"
    publish.main(layernorm)
    stored = load_file(Path(layernorm.output_dir) / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    loaded = AutoModelForMaskedLM.from_pretrained(layernorm.output_dir, trust_remote_code=True)
    assert loaded.dtype == torch.float32
    for name, tensor in load_model(layernorm.model_dir).state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.bfloat16().float())


def test_weights_stored_in_half_are_published_again_as_they_are(settings, tmp_path):
    settings.dtype = "bfloat16"
    publish.main(settings)
    first = files_in(settings.output_dir)
    loaded = AutoModelForMaskedLM.from_pretrained(settings.output_dir, trust_remote_code=True)
    assert hash_model(loaded) == hash_model(load_as_written(settings.output_dir)), "ONNX files are of either"
    settings.model_dir, settings.output_dir, settings.dtype = settings.output_dir, str(tmp_path / "again"), ""
    publish.main(settings)
    assert {name: file for name, file in files_in(settings.output_dir).items() if name != "README.md"} == {
        name: file for name, file in first.items() if name != "README.md"
    }


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("norm_type", {"norm_type": "rmsnorm"}),
        ("layer_types", {"layer_types": ["sliding_attention", "full_attention"]}),
        ("rope_scaling", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}),
    ],
)
def test_what_stock_modernbert_cannot_do(layernorm, field, changes):
    path = Path(layernorm.model_dir) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    error = refused(layernorm)
    assert f"config.json: {field} is " in error
    assert "--form zh_modernbert" in error


def test_a_stock_form_that_computes_something_else(layernorm, monkeypatch):
    tie_weights = ModernBertForMaskedLM.tie_weights

    def spoil(model, *arguments, **options):
        with torch.no_grad():
            if not model.decoder.bias.is_meta:
                model.decoder.bias.add_(1)
        return tie_weights(model, *arguments, **options)

    monkeypatch.setattr(ModernBertForMaskedLM, "tie_weights", spoil)
    assert "logits differ from those of transformers' ModernBertForMaskedLM" in refused(layernorm)


def test_shards(settings, monkeypatch):
    monkeypatch.setattr(model_folder, "LARGEST_SHARD", "50KB")
    publish.main(settings)
    folder = Path(settings.output_dir)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    before = {name: tensor.clone() for name, tensor in load_model(settings.model_dir).state_dict().items()}
    model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    monkeypatch.undo()
    publish.main(settings)  # over the shards
    assert [path.name for path in folder.glob("*.safetensors*")] == ["model.safetensors"]


def test_the_run_in_the_card(settings, model_dir, tmp_path):
    """The recipe without places, what was measured last, and the plots, where the model lies in the folder of its run."""
    run_dir = tmp_path / "run"
    shutil.copytree(model_dir, run_dir / "model")
    recipe = {"max_steps": 40, "learning_rate": 8e-4, "mlm_probability": [0.3, 0.15], "data_dir": "/home/me/data", "seed": 0}
    (run_dir / "settings.json").write_text(json.dumps(recipe))
    lines = [{"step": 20, "loss": 5.0}, {"step": 40, "loss": 4.25}, {"step": 40, "eval_loss": 4.5}]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run_dir / "metrics.png").write_bytes(b"\x89PNG")
    settings.model_dir = str(run_dir / "model")
    publish.main(settings)
    card = (Path(settings.output_dir) / "README.md").read_text(encoding="utf-8")
    for line in (
        "| max_steps | 40 |",
        "| learning_rate | 0.0008 |",
        "| loss, at the end | 4.25 |",
        "| eval_loss, at the end | 4.5 |",
    ):
        assert line in card.splitlines()
    assert "](metrics.png)" in card
    assert "/home/me" not in card
    assert (Path(settings.output_dir) / "metrics.png").read_bytes() == b"\x89PNG"
    publish.main(settings)  # over a folder with plots


# --- to the Hub ---


@pytest.fixture
def hub(monkeypatch):
    with serve(monkeypatch) as hub:
        yield hub


def files_in(folder: str | Path) -> dict[str, bytes]:
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_folder_on_the_hub(hub, settings, capfd):
    """The repository ends with the files of the folder, also where an earlier model was in shards. The card has its name."""
    hub.add("me/zh-tiny", **{"model-00001-of-00002.safetensors": b"", "model.safetensors.index.json": b"{}"})
    settings.push_to_hub = "me/zh-tiny"
    hub.fail = lambda method, path: 0 if "/commit/" in path else None
    with pytest.raises(InputError, match="me/zh-tiny: not sent"):
        publish.main(settings)
    before = files_in(settings.output_dir)
    hub.fail = lambda method, path: None
    result = publish.main(settings)
    found = hub.branches["me/zh-tiny"]["main"]
    assert found.pop(".gitattributes")
    assert found == files_in(settings.output_dir) == before
    assert b"\n# me/zh-tiny\n" in found["README.md"]
    assert result["commit"] == f"{hub.url}/me/zh-tiny/commit/1"
    assert TOKEN not in "".join(capfd.readouterr()) + str(result)
    assert not [name for name, content in found.items() if TOKEN.encode() in content]


def test_a_dry_run_says_what_would_be_sent(hub, settings):
    settings.push_to_hub, settings.dry_run, settings.revision = "me/zh-tiny", True, "step-5"
    result = publish.main(settings)
    assert result["files"] == {name: len(content) for name, content in files_in(settings.output_dir).items()}
    assert (result["repository"], result["revision"]) == ("me/zh-tiny", "step-5")
    assert hub.asked == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"push_to_hub": "me/z h"}, "push_to_hub is 'me/z h'"),
        ({"push_to_hub": "me/zh", "revision": "a..b"}, "revision is 'a..b'"),
        ({"private": True}, "give --push_to_hub"),
        ({"dry_run": True}, "give --push_to_hub"),
        ({"revision": "x"}, "give --push_to_hub"),
    ],
)
def test_what_is_refused_before_anything_is_written(hub, settings, changes, said):
    for field, value in changes.items():
        setattr(settings, field, value)
    assert said in refused(settings)
    assert hub.asked == []


def test_a_token_in_the_notes(settings, tmp_path):
    (tmp_path / "notes.md").write_text(f"# Data\n\nHF_TOKEN={TOKEN} hf upload")
    settings.notes = str(tmp_path / "notes.md")
    error = refused(settings)
    assert "notes.md: line 3 holds an access token" in error
    assert TOKEN not in error


def test_what_the_model_was_made_of(settings):
    settings.base_model, settings.datasets = "answerdotai/ModernBERT-base", ["clue/clue", "wikimedia/wikipedia"]
    settings.license = "apache-2.0"
    publish.main(settings)
    data = ModelCard.load(Path(settings.output_dir) / "README.md").data
    assert (data.base_model, data.datasets) == (settings.base_model, settings.datasets)


# --- what stands beside the weights ---


def export(folder: str | Path, content: bytes = b"graph") -> None:
    """ONNX files as train/export.py leaves them, but for their content."""
    (Path(folder) / "onnx").mkdir()
    for name in ("model.onnx", "model.onnx.data", "model_int8.onnx"):
        (Path(folder) / "onnx" / name).write_bytes(content)
    made_of = {"model": hash_model(load_as_written(folder)), "output": "last_hidden_state"}
    made_of["files"] = describe_files(Path(folder) / "onnx")
    (Path(folder) / "onnx" / "export.json").write_text(json.dumps(made_of))


def test_onnx_files_go_along_with_their_model_alone(hub, settings, model_dir, tmp_path):
    """They stay where the same model is published again, are taken from the model's folder, and go where it is another."""
    settings.push_to_hub = "me/zh-tiny"
    publish.main(settings)
    export(settings.output_dir)
    publish.main(settings)
    sent = hub.branches["me/zh-tiny"]["main"]
    of_onnx = {f"onnx/{name}" for name in ("export.json", "model.onnx", "model.onnx.data", "model_int8.onnx")}
    assert of_onnx <= sent.keys()
    assert {name: sent[name] for name in sent if name != ".gitattributes"} == files_in(settings.output_dir)

    other = shutil.copytree(model_dir, tmp_path / "other")
    randomise(ZhModernBertForMaskedLM.from_pretrained(other)).save_pretrained(other)
    settings.model_dir = str(other)
    publish.main(settings)
    assert not any("onnx" in name for name in [*sent, *files_in(settings.output_dir)])

    export(other)
    publish.main(settings)
    assert of_onnx <= files_in(settings.output_dir).keys()

    before = files_in(settings.output_dir)
    (other / "onnx" / "model.onnx").write_bytes(b"half")
    (Path(settings.output_dir) / "onnx" / "model_int8.onnx").unlink()
    assert "model_int8.onnx: missing or damaged: not what train/export.py wrote" in refused(settings)
    shutil.rmtree(Path(settings.output_dir) / "onnx")
    assert "model.onnx: missing or damaged" in refused(settings)
    assert files_in(settings.output_dir) == {name: file for name, file in before.items() if not name.startswith("onnx/")}


def test_the_model_of_another_is_never_replaced(settings, model_dir):
    """Though all its files have names that a published folder may have."""
    theirs = Path(shutil.copytree(model_dir, settings.output_dir))
    for path in theirs.iterdir():
        if path.name not in ("config.json", "model.safetensors", "tokenizer.json"):
            path.unlink()
    (theirs / "README.md").write_text("# Theirs", encoding="utf-8")
    before = files_in(theirs)
    assert "is no published folder" in refused(settings)
    assert files_in(theirs) == before


def test_a_folder_in_a_folder_that_is_not_published(settings):
    publish.main(settings)
    (Path(settings.output_dir) / "onnx" / "mine").mkdir(parents=True)
    (Path(settings.output_dir) / "onnx" / "mine" / "model.onnx").write_text("precious")
    assert "is no published folder" in refused(settings)


@pytest.fixture
def sentences(stages, tmp_path) -> Path:
    """A folder of sentence-transformers as train/contrastive.py leaves it; the mean of tokens, then a layer of its own."""
    folder = save_model(tmp_path / "sentences", stages / "tokenizer", norm_type="layernorm")
    ZhModernBertForMaskedLM.from_pretrained(folder).model.save_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)
    kinds = {"": "transformer.Transformer", "1_Pooling": "pooling.Pooling", "2_Dense": "dense.Dense"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules))
    result = {"data": {"simclue": {"rows": 3000}}, "updates": 120, "mean_loss": 0.25}
    for name, content in {
        "config_sentence_transformers.json": {"similarity_fn_name": "cosine"},
        "sentence_bert_config.json": {"do_lower_case": False},
        "1_Pooling/config.json": {"pooling_mode": "mean"},
        "2_Dense/config.json": {"bias": False},
        "settings.json": {"stage": "contrastive", "temperature": 0.05, "data": [{"path": "/home/me/data"}]},
        "manifest.json": {"stage": "contrastive", "result": result, "files": {}},
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    (folder / "2_Dense" / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.mark.parametrize("form", publish.FORMS)
def test_sentence_embeddings(hub, settings, sentences, form):
    """What makes the folder one of sentence-transformers goes along, and the card says so; in the stock form too."""
    settings.model_dir, settings.form, settings.push_to_hub = str(sentences), form, "me/zh-sts"
    publish.main(settings)
    found = hub.branches["me/zh-sts"]["main"]
    assert found.pop(".gitattributes")
    assert found == files_in(settings.output_dir)
    for name in ("modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"):
        assert found[name] == (sentences / name).read_bytes()
    assert "settings.json" not in found
    card = ModelCard.load(Path(settings.output_dir) / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    assert "SentenceTransformer(" in card.text
    assert "| temperature | 0.05 |\n| simclue, pairs | 3,000 |\n| updates | 120 |" in card.text
    assert "/home/me" not in card.text
    model = AutoModel.from_pretrained(settings.output_dir, trust_remote_code=form == "zh_modernbert")
    expected = load_as_written(sentences).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert json.loads(found["tokenizer_config.json"])["model_max_length"] == 64
    publish.main(settings)  # over it


@pytest.mark.parametrize(
    ("kind", "task", "example"),
    [
        ("SparseEncoder", "feature-extraction", 'model = SparseEncoder("zh-modernbert"'),
        ("MultiVectorEncoder", "feature-extraction", 'model = MultiVectorEncoder("zh-modernbert"'),
        ("CrossEncoder", "text-ranking", "model.predict(["),
    ],
)
def test_other_kinds_of_sentence_transformers(settings, sentences, kind, task, example):
    settings.model_dir = str(sentences)
    (sentences / "config_sentence_transformers.json").write_text(json.dumps({"model_type": kind}))
    publish.main(settings)
    card = ModelCard.load(Path(settings.output_dir) / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("sentence-transformers", task)
    assert example in card.text
    assert "SentenceTransformer" not in card.text.split("## Intended use")[0].split("```python")[1].split("```")[0]
    (sentences / "config_sentence_transformers.json").write_text('{"model_type": "ColBERT"}')
    assert "config_sentence_transformers.json: model_type is 'ColBERT'" in refused(settings)


@pytest.mark.parametrize(
    ("full", "said"),
    [
        ((0, 3), "One layer in 3 sees the whole document. The others see a window of 128 tokens."),
        ((1, 3), "2 of the layers see the whole document. The others see a window of 128 tokens."),
        (range(4), "Each layer sees the whole document."),
    ],
)
def test_the_card_says_how_far_layers_see(full, said):
    layer_types = ["full_attention" if layer in full else "sliding_attention" for layer in range(4)]
    assert reach_text(ZhModernBertConfig(num_hidden_layers=4, layer_types=layer_types)) == said


def test_modules_that_are_not_published(settings, sentences):
    settings.model_dir = str(sentences)
    (sentences / "1_Pooling" / "cnn_config.json").write_text("{}")
    assert "1_Pooling/cnn_config.json: only config.json and model.safetensors of a module" in refused(settings)
    (sentences / "1_Pooling" / "cnn_config.json").unlink()
    (sentences / "2_Dense" / "pytorch_model.bin").write_bytes(b"")
    assert "2_Dense: pickled weights" in refused(settings)
    modules = json.loads((sentences / "modules.json").read_text())
    for field, value in (("type", "my_module.Mine"), ("path", "../elsewhere")):
        changed = [modules[0], modules[1] | {field: value}]
        (sentences / "modules.json").write_text(json.dumps(changed))
        assert "modules.json: " in refused(settings)
    (sentences / "modules.json").write_text("[1]")
    assert "not one of sentence-transformers" in refused(settings)


@pytest.mark.parametrize(
    "head",
    [
        ZhModernBertForMaskedLM,
        ZhModernBertForTokenClassification,
        ZhModernBertForQuestionAnswering,
        ZhModernBertForMultipleChoice,
    ],
)
def test_the_code_in_the_card_runs(settings, model_dir, tmp_path, head):
    """As it stands there, with the folder in the name's place."""
    folder = shutil.copytree(model_dir, tmp_path / "model")
    head(load_model(model_dir).config).save_pretrained(folder)
    settings.model_dir = str(folder)
    publish.main(settings)
    card = (Path(settings.output_dir) / "README.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(code.replace('"zh-modernbert"', repr(settings.output_dir)), names := {})
    loaded = names["model"] if "model" in names else names["run"].model
    assert type(loaded).__name__ == {"ZhModernBertForMaskedLM": "ZhModernBertModel"}.get(head.__name__, head.__name__)


def test_a_model_with_a_head(settings, model_dir, tmp_path):
    folder = shutil.copytree(model_dir, tmp_path / "classifier")
    config = load_model(model_dir).config
    config.num_labels = 3
    ZhModernBertForSequenceClassification(config).save_pretrained(folder)
    settings.model_dir = str(folder)
    publish.main(settings)
    card = ModelCard.load(Path(settings.output_dir) / "README.md")
    assert card.data.pipeline_tag == "text-classification"
    assert 'pipeline("text-classification", model="zh-modernbert", trust_remote_code=True)' in card.text
    model = AutoModelForSequenceClassification.from_pretrained(settings.output_dir, trust_remote_code=True)
    assert model.config.num_labels == 3


def test_the_licence_of_the_model_that_it_was_made_of(settings, model_dir, tmp_path):
    folder = shutil.copytree(model_dir, tmp_path / "model")
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: theirs\nbase_model: some/base\n---\n# Theirs\n")
    settings.model_dir = str(folder)
    publish.main(settings)
    data = ModelCard.load(Path(settings.output_dir) / "README.md").data
    assert (data.license, data.license_name, data.base_model) == ("other", "theirs", "some/base")
    settings.license = "mit"
    publish.main(settings)
    data = ModelCard.load(Path(settings.output_dir) / "README.md").data
    assert (data.license, data.get("license_name")) == ("mit", None)


@pytest.mark.parametrize(("in_card", "given"), [("base_model: some/base\n", ""), ("", "some/base")])
def test_a_model_of_unknown_licence(settings, model_dir, tmp_path, in_card, given):
    """That of another's weights is not this project's to give."""
    folder = shutil.copytree(model_dir, tmp_path / "model")
    (folder / "README.md").write_text(f"---\n{in_card}library_name: transformers\n---\n# Theirs\n")
    settings.model_dir, settings.base_model = str(folder), given
    assert "made of some/base" in (said := refused(settings))
    assert "--license" in said
    settings.license = "cc-by-nc-4.0"
    publish.main(settings)
    data = ModelCard.load(Path(settings.output_dir) / "README.md").data
    assert (data.license, data.base_model) == ("cc-by-nc-4.0", "some/base")


# --- the checkpoints of a run ---


@pytest.fixture
def run_dir(stages, tmp_path) -> Path:
    """A run of 4 updates, with checkpoints of two of them."""
    pretrain.main(
        pretrain.Settings(
            data_dir=str(stages / "packed"),
            model_config=str(stages / "model.json"),
            output_dir=str(tmp_path / "run"),
            max_steps=4,
            per_device_batch_size=1,
            logging_steps=2,
            save_steps=3,
            save_total_limit=1,
            keep_every_steps=2,
            report_to=["none"],
        )
    )
    return tmp_path / "run"


def test_checkpoints_on_the_hub(hub, run_dir, tmp_path):
    settings = publish.Settings(str(run_dir / "checkpoints"), str(tmp_path / "steps"), push_to_hub="me/zh-tiny")
    result = publish.main(settings)
    steps = {f"step-{int(path.name[5:])}": path for path in (run_dir / "checkpoints").iterdir()}
    assert {"step-2"} < {*steps} == {*result["checkpoints"]}
    branches = hub.branches["me/zh-tiny"]
    for step, path in steps.items():
        found = branches[step]
        assert found.pop(".gitattributes")
        assert found == files_in(tmp_path / "steps" / step)
        weights = load_file(path / "model.safetensors")
        state = load_model(tmp_path / "steps" / step).state_dict()
        assert all(torch.equal(state[name], weight) for name, weight in weights.items())
    assert [*branches["main"]] == [".gitattributes"]
    card = branches["step-2"]["README.md"].decode()
    assert "| loss, at update 2 |" in card
    assert "metrics.png" not in card
    AutoModelForMaskedLM.from_pretrained(tmp_path / "steps" / "step-2", trust_remote_code=True)
    commits = len(hub.commits)
    publish.main(settings)
    assert len(hub.commits) == commits, "nothing is new"

    settings.revision = "mine"
    assert "leave revision out" in refused(settings)
    settings.revision, settings.push_to_hub = "main", "me/zh-other"
    last = max(steps.values()) / "model.safetensors"
    whole = last.read_bytes()
    last.write_bytes(whole[:-1])
    assert "model.safetensors: not what was written" in refused(settings)
    assert "me/zh-other" not in hub.branches, "nothing is sent before all are known to be whole"
    last.write_bytes(whole)
    settings.revision, settings.push_to_hub = "mine", "me/zh-tiny"
    shutil.rmtree(run_dir / "model")
    settings.model_dir, settings.output_dir = str(steps["step-2"]), str(tmp_path / "one")
    publish.main(settings)
    assert branches["mine"].keys() - {".gitattributes"} == files_in(settings.output_dir).keys()


# --- a clone as a model repository ---


@pytest.fixture
def clone(tmp_path) -> Path:
    folder = tmp_path / "clone"
    for name in (*ROOT_FILES, "README.md", "pyproject.toml", "train/publish.py", "tests/tiny.py", ".git/config"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes() if name != ".git/config" else b"secret")
    return folder


def test_a_clone_is_a_model_repository(hub, clone, settings, monkeypatch):
    """It loads as any folder, and nothing of it is sent but what a published folder has."""
    before = {path.relative_to(clone): path.read_bytes() for path in clone.rglob("*") if path.is_file()}
    settings.output_dir, settings.push_to_hub = str(clone), "me/zh-tiny"
    monkeypatch.setattr(model_folder, "LARGEST_SHARD", "50KB")
    publish.main(settings)
    monkeypatch.setattr(model_folder, "LARGEST_SHARD", "5GB")
    publish.main(settings)
    after = {path.relative_to(clone): path.read_bytes() for path in clone.rglob("*") if path.is_file()}
    added = {path.name for path in after.keys() - before.keys()}
    assert {path: after[path] for path in before} == before
    assert added - {"special_tokens_map.json"} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert not (clone / ".published").exists()
    model = AutoModel.from_pretrained(clone, trust_remote_code=True)
    trained = load_model(settings.model_dir).state_dict()
    assert all(torch.equal(tensor, trained[f"model.{name}"]) for name, tensor in model.state_dict().items())
    found = hub.branches["me/zh-tiny"]["main"]
    assert set(found) == added | {"README.md", ".gitattributes", *ROOT_FILES}
    assert b"\n# me/zh-tiny\n" in found["README.md"]


THEIRS = ("2024_x/config.json", "2024_x/model.safetensors", "1_seed/model.safetensors", "metrics.png", "onnx/model.onnx")


def test_what_others_put_there_stays(hub, clone, settings):
    """Though it has names that a published folder may have."""
    for name in THEIRS:
        (clone / name).parent.mkdir(exist_ok=True)
        (clone / name).write_text("precious")
    hub.add("me/zh-tiny", **dict.fromkeys(THEIRS, b"precious"))
    settings.output_dir, settings.push_to_hub = str(clone), "me/zh-tiny"
    plots = Path(settings.model_dir).parent / "metrics.png"
    plots.write_bytes(b"of the run")
    (plots.parent / "settings.json").write_text("{}")
    publish.main(settings)
    found = hub.branches["me/zh-tiny"]["main"]
    assert {(clone / name).read_text() for name in THEIRS} == {"precious"}
    assert {name for name in THEIRS if found.get(name) != b"precious"} == {"metrics.png"}
    assert found["metrics.png"] == b"of the run", "which the card shows"


def test_a_published_folder_with_a_folder_of_the_users(settings):
    publish.main(settings)
    (Path(settings.output_dir) / "1_seed").mkdir()
    (Path(settings.output_dir) / "1_seed" / "model.safetensors").write_text("precious")
    assert "is no published folder" in refused(settings)


def test_a_clone_with_other_code(clone, settings):
    settings.output_dir = str(clone)
    settings.form = "modernbert"
    assert "a clone of this project" in refused(settings)
    settings.form = "zh_modernbert"
    (clone / ROOT_FILES[1]).write_text("other")
    assert f"{ROOT_FILES[1]}: not the code" in refused(settings)
