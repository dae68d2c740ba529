"""Checkpoints come back to the bit, are whole or absent, and belong to one run."""

import json
import shutil

import pytest
import torch

from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.train.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from zh_modernbert.train.cli import InputError
from zh_modernbert.train.optimizer import build_optimizer

POSITION = {"step": 7, "tokens": 12345, "sums": {"loss": 0.1 + 0.2, "masked": 3}}


def make(seed: int, name: str = "stable_adamw", **fields):
    torch.manual_seed(seed)
    shape = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = ZhModernBertForMaskedLM(ZhModernBertConfig(**shape, **fields))
    return model, build_optimizer(name, model, 1e-2, (0.9, 0.95), 1e-8, 0.1)


def step(model, optimizer, seed: int) -> None:
    """An update with made-up gradients."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def equal(first, second) -> bool:
    return all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


@pytest.fixture
def saved(tmp_path):
    """The folder of a checkpoint after an update, and what is in it."""
    model, optimizer = make(0)
    step(model, optimizer, 0)
    return save_checkpoint(tmp_path, POSITION, model, optimizer, "mine", 2), model, optimizer


@pytest.mark.parametrize("name", ["stable_adamw", "adamw"])
@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_is_exact(tmp_path, name, tied):
    model, optimizer = make(0, name, tie_word_embeddings=tied)
    for seed in range(5):
        step(model, optimizer, seed)
    path = save_checkpoint(tmp_path, POSITION, model, optimizer, "mine", 2)
    again, its_optimizer = make(1, name, tie_word_embeddings=tied)
    assert not equal(again, model)
    assert load_checkpoint(path, again, its_optimizer, "mine") == POSITION
    assert equal(again, model)
    assert (again.decoder.weight is again.model.embeddings.tok_embeddings.weight) == tied
    assert its_optimizer.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()
    # Moments and step counts alike decide what comes next.
    for seed in range(5, 8):
        step(model, optimizer, seed)
        step(again, its_optimizer, seed)
        assert equal(again, model)


def test_a_checkpoint_before_the_first_update_is_exact(tmp_path):
    model, optimizer = make(0)
    path = save_checkpoint(tmp_path, POSITION, model, optimizer, "mine", 2)
    again, its_optimizer = make(1)
    load_checkpoint(path, again, its_optimizer, "mine")
    step(model, optimizer, 0)
    step(again, its_optimizer, 0)
    assert equal(again, model)


def test_nothing_is_pickled(saved):
    assert sorted(file.name for file in saved[0].iterdir()) == ["model.safetensors", "optimizer.safetensors", "state.json"]


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_the_newest_are_kept(tmp_path, limit):
    model, optimizer = make(0)
    for number in (2, 9, 10, 100):
        save_checkpoint(tmp_path, POSITION | {"step": number}, model, optimizer, "mine", limit)
    expected = ["step-00000002", "step-00000009", "step-00000010", "step-00000100"][-limit:]
    assert [path.name for path in checkpoints(tmp_path)] == expected
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == expected


def test_what_was_being_written_is_ignored(tmp_path, saved):
    path, model, optimizer = saved
    left = path.with_name(".step-00000008.tmp")
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    (left / "rubbish").write_bytes(b"")
    assert checkpoints(tmp_path) == [path]
    newer = save_checkpoint(tmp_path, POSITION | {"step": 8}, model, optimizer, "mine", 2)
    assert checkpoints(tmp_path) == [path, newer]
    assert not left.exists()
    assert not (newer / "rubbish").exists()
    load_checkpoint(newer, *make(1), "mine")


def test_no_checkpoints_in_a_new_folder(tmp_path):
    assert checkpoints(tmp_path) == []


def test_a_checkpoint_of_another_run_is_refused(saved):
    model, optimizer = make(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match="another run") as error:
        load_checkpoint(saved[0], model, optimizer, "other")
    assert str(saved[0]) in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "missing"])
def test_a_damaged_checkpoint_is_named(saved, file, damage):
    path = saved[0] / file
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    with pytest.raises(InputError) as error:
        load_checkpoint(saved[0], *make(1), "mine")
    assert str(saved[0]) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_state_without_its_entries_is_an_error(saved):
    (saved[0] / "state.json").write_text(json.dumps({}))
    with pytest.raises(InputError, match=r"state\.json"):
        load_checkpoint(saved[0], *make(1), "mine")


def test_weights_of_another_model_are_refused(saved, tmp_path):
    other = save_checkpoint(tmp_path / "other", POSITION, *make(0, attention_bias=True), "mine", 2)
    shutil.copyfile(other / "model.safetensors", saved[0] / "model.safetensors")
    with pytest.raises(InputError, match="another model"):
        load_checkpoint(saved[0], *make(1), "mine")
