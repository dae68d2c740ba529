"""A model's folder is read whole and sound, from safetensors alone, or refused in a line that names what is wrong."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, BertConfig, BertForMaskedLM

from tiny import TINY, build
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.model_folder import check_output, load_by_auto_class, load_model, save_model
from zh_modernbert.train.tokenizer.loading import load_tokenizer


@pytest.fixture(scope="module")
def saved(stages, tmp_path_factory) -> Path:
    """A model of two layers, as training leaves it."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(folder, build(num_hidden_layers=2, vocab_size=512), load_tokenizer(stages / "tokenizer"), "pretrain")
    return folder


def change_weights(folder: Path, change) -> None:
    """Changes the tensors of a folder, and takes the hashes away."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "manifest.json").unlink()


def change_config(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1000] ^= 4
    (folder / "model.safetensors").write_bytes(content)


def pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


NORM, LAYERS = "model.layers.1.mlp_norm.weight", ["full_attention", "sliding_attention", "sliding_attention"]
# What is wrong -> how it comes about, and what the error says.
WRONG = {
    "a missing tensor": (lambda f: change_weights(f, lambda t: t.pop(NORM)), f"{NORM} is missing"),
    "more layers": (lambda f: change_config(f, num_hidden_layers=3, layer_types=LAYERS), "layers.2"),
    "fewer layers": (lambda f: change_config(f, num_hidden_layers=1, layer_types=LAYERS[:1]), "layers.1"),
    "NaN": (lambda f: change_weights(f, lambda t: t[NORM][3:4].fill_(float("nan"))), f"{NORM} holds values"),
    "infinity": (lambda f: change_weights(f, lambda t: t[NORM][3:4].fill_(float("inf"))), f"{NORM} holds values"),
    "another shape": (lambda f: change_weights(f, lambda t: t.update({NORM: torch.ones(5)})), f"{NORM} is [5]"),
    "pickle": (pickle_weights, "pytorch_model.bin"),
    "a truncated file": (lambda f: os.truncate(f / "model.safetensors", 999), "model.safetensors"),
    "text for a size": (lambda f: change_config(f, hidden_size="32"), "config.json"),
    "no such activation": (lambda f: change_config(f, hidden_activation="sine"), "sine"),
}
# Of transformers' Auto classes, these load without a word, or without this project's hashes.
WRONG_FOR_OURS = {
    "a tensor too many": (lambda f: change_weights(f, lambda t: t.update(more=torch.ones(5))), "more is [5]"),
    "a bit": (flip_a_bit, "damaged or changed"),
    "integers": (lambda f: change_weights(f, lambda t: t.update({k: v.int() for k, v in t.items()})), "int32"),
    "another model": (lambda f: change_config(f, model_type="bert"), "bert"),
    "another decoder": (lambda f: change_weights(f, lambda t: t.update({"decoder.weight": torch.ones(512, 32)})), "tie"),
}


def refused(load, folder: Path) -> str:
    with pytest.raises(InputError) as error:
        load(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("what", WRONG | WRONG_FOR_OURS)
def test_what_is_wrong_is_named(saved, tmp_path, what):
    spoil, said = (WRONG | WRONG_FOR_OURS)[what]
    spoil(folder := shutil.copytree(saved, tmp_path / "spoilt"))
    assert said in refused(load_model, folder)


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize(
    "auto", [AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoModel], ids=lambda a: a.__name__
)
def test_so_it_is_by_an_auto_class(publish_random, tmp_path, what, auto):
    folder = shutil.copytree(publish_random("auto-class", local_attention=8), tmp_path / "spoilt")
    (folder / "manifest.json").touch()
    spoil, _ = WRONG[what]
    spoil(folder)
    new_head = auto is not AutoModelForMaskedLM
    refused(lambda path: load_by_auto_class(auto, str(path), new_head, trust_remote_code=True), folder)


def test_a_sound_model_is_read_to_the_bit(saved):
    model, written = load_model(saved), load_file(saved / "model.safetensors")
    state = model.state_dict()
    assert state.keys() - written.keys() == {"decoder.weight"}
    assert state["decoder.weight"] is not None
    assert all(torch.equal(state[name], tensor) for name, tensor in written.items())
    assert model.decoder.weight is model.get_input_embeddings().weight
    assert not model.training


def test_shards(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "shards")
    (folder / "model.safetensors").unlink()
    load_model(saved).save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert all(map(torch.equal, load_model(folder).parameters(), load_model(saved).parameters()))
    next(folder.glob("model-*-*.safetensors")).unlink()
    assert "no such file" in refused(load_model, folder)


@pytest.mark.parametrize("auto", [AutoModelForSequenceClassification, AutoModel], ids=lambda a: a.__name__)
def test_a_model_of_another_kind_may_lack_what_only_pretraining_needs(tmp_path, auto):
    """BERT's masked language model is saved without a pooler, and its classifier has one."""
    sizes = {name: TINY[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")}
    BertForMaskedLM(BertConfig(**sizes, num_hidden_layers=1)).save_pretrained(tmp_path)
    model = load_by_auto_class(auto, str(tmp_path), new_head=True)
    assert getattr(model, "bert", model).pooler is not None


def test_files_have_the_permissions_of_the_umask(saved, stages, tmp_path):
    before = os.umask(0o027)
    try:
        save_model(tmp_path / "model", load_model(saved), load_tokenizer(stages / "tokenizer"), "pretrain")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {0o640}


def test_a_folder_of_something_else_is_not_replaced(saved, tmp_path):
    check_output(tmp_path / "new", "pretrain")
    check_output(saved, "pretrain")
    for stage in ("clue", ""):
        assert "choose another" in refused(lambda folder, stage=stage: check_output(folder, stage), saved)
    (folder := shutil.copytree(saved, tmp_path / "notes")).joinpath("notes.md").touch()
    assert "choose another" in refused(lambda folder: check_output(folder, "pretrain"), folder)
