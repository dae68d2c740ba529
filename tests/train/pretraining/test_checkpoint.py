"""Checkpoints come back to the bit, are whole or absent, and belong to one run."""

import json
import resource
from pathlib import Path

import pytest
import torch
from optimi import StableAdamW
from safetensors import SafetensorError

from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.pretraining import checkpoint
from zh_modernbert.train.pretraining.checkpoint import Rotation, checkpoints, load_checkpoint, newest_undamaged, save_checkpoint
from zh_modernbert.train.pretraining.optimizer import build_optimizer, parameter_groups

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
    return save_checkpoint(tmp_path, POSITION, model, optimizer, "mine", Rotation(1, 2)), model, optimizer


@pytest.mark.parametrize("name", ["stable_adamw", "adamw"])
@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_is_exact(tmp_path, name, tied):
    model, optimizer = make(0, name, tie_word_embeddings=tied)
    for seed in range(5):
        step(model, optimizer, seed)
    path = save_checkpoint(tmp_path, POSITION, model, optimizer, "mine", Rotation(1, 2))
    again, its_optimizer = make(1, name, tie_word_embeddings=tied)
    assert not equal(again, model)
    assert load_checkpoint(path, again, its_optimizer) == POSITION
    assert equal(again, model)
    assert (again.decoder.weight is again.model.embeddings.tok_embeddings.weight) == tied
    assert its_optimizer.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()
    # Moments and step counts alike decide what comes next.
    for seed in range(5, 8):
        step(model, optimizer, seed)
        step(again, its_optimizer, seed)
        assert equal(again, model)


@pytest.mark.parametrize("name", ["stable_adamw", "adamw"])
def test_a_run_keeps_all_of_its_own_settings(tmp_path, name):
    """Whatever the settings of the run were that wrote the checkpoint: only moments and counts are taken from it."""
    model, optimizer = make(0, name)
    step(model, optimizer, 0)
    for group in optimizer.param_groups:
        odd = {key: 0.123 for key in group.keys() - {"params", "step", "setup"}}
        group |= odd
    path = save_checkpoint(tmp_path, POSITION, model, optimizer, "mine", Rotation(1, 2))
    again, its_optimizer = make(1, name)
    own = [dict(group) for group in its_optimizer.param_groups]
    load_checkpoint(path, again, its_optimizer)
    for group, before in zip(its_optimizer.param_groups, own, strict=True):
        assert {key: group[key] for key in before.keys() - {"params", "setup"}} == {
            key: before[key] for key in before.keys() - {"params", "setup"}
        }


@pytest.mark.parametrize("triton", [True, False])
def test_a_checkpoint_of_other_kernels(tmp_path, monkeypatch, triton):
    """From a CPU or shards to a GPU and back: Triton's kernels have tensors for each parameter that the others have not."""
    monkeypatch.setattr("optimi.optimizer.HAS_TRITON", True)

    def make_with(triton: bool):
        model, _ = make(0)
        return model, StableAdamW(parameter_groups(model, 0.1), lr=1e-2, betas=(0.9, 0.95), eps=1e-7, triton=triton)

    model, optimizer = make_with(not triton)
    for group in optimizer.param_groups:
        group |= {"setup": True, "step": torch.tensor(3, dtype=torch.int32)}
        for parameter in group["params"]:
            optimizer._init_state(group, optimizer.state[parameter], parameter)
            optimizer.state[parameter]["exp_avg"].fill_(0.5)
    path = save_checkpoint(tmp_path, POSITION, model, optimizer, "mine", Rotation(1, 2))
    again, its_optimizer = make_with(triton)
    load_checkpoint(path, again, its_optimizer)
    for group in its_optimizer.param_groups:
        assert (group["triton"], group["step"].item(), group["setup"]) == (triton, 3, True)
        for parameter in group["params"]:
            state = its_optimizer.state[parameter]
            assert torch.is_tensor(state["kahan_comp"]) == triton
            assert ("mean_square" in state) == triton
            assert (state["exp_avg"] == 0.5).all()


def test_a_checkpoint_before_the_first_update_is_exact(tmp_path):
    model, optimizer = make(0)
    path = save_checkpoint(tmp_path, POSITION, model, optimizer, "mine", Rotation(1, 2))
    again, its_optimizer = make(1)
    load_checkpoint(path, again, its_optimizer)
    step(model, optimizer, 0)
    step(again, its_optimizer, 0)
    assert equal(again, model)


def test_nothing_is_pickled(saved):
    assert sorted(file.name for file in saved[0].iterdir()) == ["model.safetensors", "optimizer.safetensors", "state.json"]


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_the_newest_are_kept(tmp_path, limit):
    model, optimizer = make(0)
    for number in (2, 9, 10, 100):
        save_checkpoint(tmp_path, POSITION | {"step": number}, model, optimizer, "mine", Rotation(1, limit))
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
    newer = save_checkpoint(tmp_path, POSITION | {"step": 8}, model, optimizer, "mine", Rotation(1, 2))
    assert checkpoints(tmp_path) == [path, newer]
    assert not left.exists()
    assert not (newer / "rubbish").exists()
    load_checkpoint(newer, *make(1))


def test_other_names_are_no_checkpoints(tmp_path, saved):
    for name in ("step-1", "step-00000009.old", "step-final", "other-00000009"):
        (saved[0].parent / name).mkdir()
    (saved[0].parent / "step-00000010").write_text("a file")
    assert checkpoints(tmp_path) == [saved[0]]


def test_when_checkpoints_are_due():
    assert [step for step in range(1, 21) if Rotation(4, 2, 10, 7).due(step)] == [4, 7, 8, 10, 12, 16, 20]
    assert [step for step in range(1, 21) if Rotation(6, 2).due(step)] == [6, 12, 18]


def test_no_checkpoints_in_a_new_folder(tmp_path):
    assert checkpoints(tmp_path) == []


def test_a_checkpoint_of_another_run_is_refused(saved, tmp_path):
    with pytest.raises(InputError, match="another run") as error:
        newest_undamaged(tmp_path, "other")
    assert str(saved[0]) in str(error.value)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.unlink()
    if how == "a bit":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif how != "missing":
        path.write_bytes(content[: len(content) // 2] if how == "truncated" else b"")


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("how", ["truncated", "empty", "missing", "a bit"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, saved, capsys, file, how):
    path, model, optimizer = saved
    newer = save_checkpoint(tmp_path, POSITION | {"step": 8}, model, optimizer, "mine", Rotation(1, 2))
    assert newest_undamaged(tmp_path, "mine") == newer
    assert capsys.readouterr().err == ""
    damage(newer / file, how)
    assert newest_undamaged(tmp_path, "mine") == path
    said = capsys.readouterr().err
    assert str(newer / file) in said
    assert said.count("\n") == 1
    damage(path / file, how)
    with pytest.raises(InputError, match="no checkpoint is whole") as error:
        newest_undamaged(tmp_path, "mine")
    assert str(path.parent) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("state", [{}, {"identity": "mine"}, {"sha256": 3}])
def test_a_state_without_its_entries_is_damage(saved, tmp_path, state):
    (saved[0] / "state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="no checkpoint is whole"):
        newest_undamaged(tmp_path, "mine")


def test_what_was_fallen_behind_is_dropped_first(tmp_path, saved):
    """Else one damaged checkpoint would take the place of a whole one in the rotation."""
    _, model, optimizer = saved
    for number in (8, 9):
        save_checkpoint(tmp_path, POSITION | {"step": number}, model, optimizer, "mine", Rotation(1, 2))
    damage(tmp_path / "checkpoints" / "step-00000009" / "state.json", "truncated")
    assert newest_undamaged(tmp_path, "mine").name == "step-00000008"
    newer = save_checkpoint(tmp_path, POSITION | {"step": 8}, model, optimizer, "mine", Rotation(1, 1))
    assert checkpoints(tmp_path) == [newer]


def test_milestones_are_kept(tmp_path):
    model, optimizer = make(0)
    for number in range(1, 14):
        save_checkpoint(tmp_path, POSITION | {"step": number}, model, optimizer, "mine", Rotation(1, 2, 5, 9))
        steps = [int(path.name[-8:]) for path in checkpoints(tmp_path)]
        assert steps == sorted({number - 1, number, *range(5, number + 1, 5), min(number, 9)} - {0})


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left (os error 28)")]
)
@pytest.mark.parametrize("writer", ["save_file", "write_json", "sync"])
def test_a_full_disk_leaves_the_old_checkpoint_whole(tmp_path, saved, monkeypatch, writer, error):
    path, model, optimizer = saved

    def full(*arguments):
        raise error

    monkeypatch.setattr(checkpoint, writer, full)
    with pytest.raises(InputError, match="No space left") as raised:
        save_checkpoint(tmp_path, POSITION | {"step": 8}, model, optimizer, "mine", Rotation(1, 1))
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert newest_undamaged(tmp_path, "mine") == path


def test_a_file_that_cannot_grow_is_a_full_disk(tmp_path, saved):
    """The real writer, with no room for its file."""
    path, model, optimizer = saved
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(InputError, match="cannot be written"):
            save_checkpoint(tmp_path, POSITION | {"step": 8}, model, optimizer, "mine", Rotation(1, 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert newest_undamaged(tmp_path, "mine") == path
