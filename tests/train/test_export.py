"""ONNX files beside the weights: names, numbers, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

import onnxruntime

from zh_modernbert.modeling_zh_modernbert import ZhModernBertForSequenceClassification
from zh_modernbert.train import export
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.model_folder import load_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(publish_random, tmp_path) -> Path:
    published = publish_random("exported", num_hidden_layers=1, initializer_range=0.2)
    return Path(shutil.copytree(published, tmp_path / "published"))


def test_files_beside_the_weights(folder):
    result = export.main(export.Settings(model_dir=str(folder)))
    names = ["export.json", "model.onnx", "model_int8.onnx"]
    assert sorted(path.name for path in (folder / "onnx").iterdir()) == names == ["export.json", *result["bytes"]]
    assert result["int8_cosine"] > 0.98
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    assert [given.name for given in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert [given.name for given in session.get_outputs()] == ["last_hidden_state"]
    model, batch = load_model(folder).model, {"input_ids": torch.arange(4, 22).view(2, 9)}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    found = session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(found), model(**batch).last_hidden_state, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_weights_past_the_limit_of_a_file(folder, monkeypatch):
    """An ONNX file ends at 2 GB. The weights are beside it then, in fp32 and in 8 bits."""
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 1000)
    result = export.main(export.Settings(model_dir=str(folder)))
    names = ["export.json", "model.onnx", "model.onnx.data", "model_int8.onnx", "model_int8.onnx.data"]
    assert sorted(path.name for path in (folder / "onnx").iterdir()) == names == ["export.json", *result["bytes"]]
    assert result["bytes"]["model.onnx.data"] > 3 * result["bytes"]["model_int8.onnx.data"] > 0
    assert result["difference"] < 1e-5
    assert result["int8_cosine"] > 0.98


def test_a_classifier(folder, monkeypatch):
    """Its graph is written in the tests of exported programs."""
    monkeypatch.setattr(export, "write_onnx", lambda model, output, path: path.write_bytes(output.encode()))
    monkeypatch.setattr(export, "compare", lambda model, path: (0.0, 1.0))
    config = load_model(folder).config
    config.num_labels = 3
    ZhModernBertForSequenceClassification(config).save_pretrained(folder)
    result = export.main(export.Settings(model_dir=str(folder), int8=False))
    assert (result["output"], result["bytes"]) == ("logits", {"model.onnx": len("logits")})


def test_files_of_others_are_never_deleted(folder, monkeypatch):
    monkeypatch.setattr(export, "write_onnx", lambda model, output, path: path.write_bytes(output.encode()))
    monkeypatch.setattr(export, "compare", lambda model, path: (0.0, 1.0))
    settings = export.Settings(model_dir=str(folder), int8=False)
    for name in ("model_q4.onnx", "model.onnx"):
        path = folder / "onnx" / name
        path.parent.mkdir()
        path.write_text("precious")
        with pytest.raises(InputError, match=rf"{name}: this script did not write it, and would delete it"):
            export.main(settings)
        assert path.read_text() == "precious"
        shutil.rmtree(path.parent)
    export.main(settings)
    export.main(settings)  # its own, again


def test_what_is_wrong_is_named(folder, monkeypatch):
    def refused(said: str, **changes):
        with pytest.raises(InputError, match=said) as error:
            export.main(export.Settings(model_dir=str(folder), **changes))
        assert "\n" not in str(error.value)
        assert not (folder / "onnx").exists()

    monkeypatch.setattr(export, "compare", lambda model, path: (1.0, 0.5))
    monkeypatch.setattr(export, "write_onnx", lambda model, output, path: path.write_bytes(b""))
    refused("differs from it by 1")
    for length in (63, 129):
        refused("from 64 to 128", max_length=length)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["ZhModernBertModel"]}), encoding="utf-8")
    refused("must be one of", output="logits")
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Other"]}), encoding="utf-8")
    refused("Other")
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}), encoding="utf-8")
    refused("'bert'")
