"""A plan is what the run then does; it is made of what is there, and leaves no trace."""

import json
import shutil

import pytest
from safetensors.torch import load_file

from zh_modernbert.train import pack, pretrain
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.pretraining.checkpoint import checkpoints
from zh_modernbert.train.pretraining.flops import training_flops
from zh_modernbert.train.pretraining.set_up import read_model_config
from zh_modernbert.train.rows.row_stream import PackedStream
from zh_modernbert.train.tokenizer.loading import load_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def make(stages, tmp_path):
    def make(**changes) -> pretrain.Settings:
        settings = {
            "data_dir": str(stages / "packed"),
            "output_dir": str(tmp_path / "run"),
            "model_config": str(stages / "model.json"),
            "max_steps": 4,
            "per_device_batch_size": 4,
            "dry_run": True,
        }
        return pretrain.Settings(**settings | changes)

    return make


def test_a_plan_is_what_the_run_does(make, tmp_path):
    changes = {"save_steps": 3, "save_total_limit": 1, "optimizer": "adamw"}
    plan = pretrain.main(make(tokens_per_second=10.0, **changes))
    assert list(tmp_path.iterdir()) == []
    json.dumps(plan)
    result = pretrain.main(make(dry_run=False, **changes))
    assert plan["parameters"] == result["parameters"]
    assert plan["tokens"] == pytest.approx(result["tokens"], rel=0.02)
    assert plan["tokens_per_update"] == pytest.approx(plan["tokens"] / 4, abs=1)
    assert (plan["rows"], plan["updates"], plan["rows_per_update"]) == (16, 4, 4)
    assert plan["hours"] == pytest.approx(plan["tokens"] / 36_000, abs=0.01)
    assert plan["embedding_share"] == round(512 * 32 / plan["parameters"], 4)
    (saved,) = checkpoints(tmp_path / "run")
    tensors = [tensor for path in saved.glob("*.safetensors") for tensor in load_file(path).values()]
    bytes_ = sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.ndim)
    assert plan["checkpoint_bytes"] == bytes_
    assert plan["disk_bytes"] == 2 * bytes_ + 4 * plan["parameters"]


def test_growing_updates_and_kept_checkpoints_are_counted(make, stages):
    changes = {"per_device_batch_size": 8, "max_steps": 20, "num_batch_warmup_steps": 4, "warmup_batch_ratio": 0.25}
    changes |= {"save_steps": 3, "save_total_limit": 2, "keep_every_steps": 5}
    changes |= {"schedule": "warmup_stable_decay", "num_decay_steps": 7}
    plan = pretrain.main(make(**changes))
    assert (plan["rows_per_update"], plan["rows"]) == (8, 2 + 4 + 5 + 6 + 16 * 8)
    assert plan["disk_bytes"] == (5 + 1) * plan["checkpoint_bytes"] + 4 * plan["parameters"]  # 5, 10, 13, 15 and 18
    rows = len(PackedStream(stages / "packed", {}))
    assert plan["epochs"] == {str(stages / "packed"): pytest.approx(plan["rows"] / rows, abs=1e-4)}
    changes |= {"tokens_per_update": 8 * 128, "tokens_per_second": 10.0}
    before, there = (
        pretrain.main(make(data_dir=folder, seq_len=128, **changes)) for folder in ("nowhere", str(stages / "packed"))
    )
    assert (before["rows"], before["tokens"], there["rows"]) == (145, 145 * 128, 145)
    assert before["hours"] == pytest.approx(there["hours"], rel=0.02)


def test_each_folder_of_a_mixture_has_its_epochs(make, stages, tmp_path):
    shutil.copytree(stages / "packed", tmp_path / "a")
    pack.main(pack.Settings(input_dir=str(stages / "encoded"), output_dir=str(tmp_path / "b"), seq_len=128, seed=1))
    plan = pretrain.main(make(data_dir=str(tmp_path), mixture={"a": 3, "b": 1}, max_steps=100))
    rows = [len(PackedStream(tmp_path / name, {})) for name in "ab"]
    expected = {str(tmp_path / name): share * 400 / count for name, share, count in zip("ab", (0.75, 0.25), rows, strict=True)}
    assert plan["epochs"] == pytest.approx(expected, abs=1e-4)


def test_work_lies_between_that_of_even_documents_and_of_whole_rows(make, stages):
    settings, rows = make(max_steps=50), PackedStream(stages / "packed", {})
    plan = pretrain.main(settings)
    config = read_model_config(settings.model_config, rows.vocab_size, load_tokenizer(rows.tokenizer_dir))
    lengths = [rows.row(i % len(rows))[2] for i in range(plan["rows"])]
    lengths = [int(length) for bounds in lengths for length in bounds[1:] - bounds[:-1]]
    exact = training_flops(lengths, 0.3 * sum(lengths), config)
    assert 0.95 * plan["flops"] < exact < 1.05 * plan["flops_at_most"]
    assert plan["flops"] < plan["flops_at_most"]


def test_before_the_data_is_there(make, stages, tmp_path, capsys):
    nowhere = str(tmp_path / "nowhere")
    unknown = pretrain.main(make(data_dir=nowhere))
    assert (unknown["rows"], unknown["tokens"], unknown["flops"]) == (None, None, None)
    assert unknown["assumed"] == {"vocab_size": 32768}
    assert f"{nowhere}: not there yet" in capsys.readouterr().err
    fields = json.loads((stages / "model.json").read_text()) | {"vocab_size": 512}
    (tmp_path / "whole.json").write_text(json.dumps(fields))
    known = pretrain.main(make(data_dir=nowhere, seq_len=128, model_config=str(tmp_path / "whole.json")))
    there = pretrain.main(make())
    assert known["assumed"] == {"tokens_per_row": 128, "documents_per_row": 1.0}
    assert there["assumed"] == {}
    assert (known["parameters"], known["rows"]) == (there["parameters"], there["rows"])
    assert known["tokens"] == pytest.approx(there["tokens"], rel=0.02)
    assert known["flops"] == known["flops_at_most"] == pytest.approx(there["flops_at_most"], rel=0.04)
    stage_two = pretrain.main(make(model_config="", init_from=str(tmp_path / "model")))
    assert (stage_two["parameters"], stage_two["tokens"] > 0) == (None, True)
    assert {path.name for path in tmp_path.iterdir()} == {"whole.json"}


def test_for_many_processes(make, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert pretrain.main(make())["rows_per_update"] == 32
    monkeypatch.setenv("RANK", "1")
    assert pretrain.main(make()) is None
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(InputError, match="is too small, or uneven"):
        pretrain.main(make(tokens_per_update=5 * 128))
    monkeypatch.setenv("WORLD_SIZE", "100000")
    with pytest.raises(InputError, match="rows for 100000 processes"):
        pretrain.main(make())


def test_stage_two_is_planned_in_its_own_folder(make, stages, tmp_path):
    pretrain.main(make(dry_run=False, max_steps=1, output_dir=str(tmp_path / "one")))
    two = {"model_config": "", "init_from": str(tmp_path / "one" / "model"), "save_steps": 1, "max_steps": 2}
    pretrain.main(make(dry_run=False, **two))
    assert pretrain.main(make(**two))["updates"] == 2
    (saved,) = checkpoints(tmp_path / "run")
    goes_on = make(**two | {"max_steps": 5}, resume_from=str(saved), output_dir=str(tmp_path / "longer"))
    assert pretrain.main(goes_on)["updates"] == 4


def test_what_the_run_refuses(make, tmp_path, stages):
    pretrain.main(make(dry_run=False, max_steps=1))
    with pytest.raises(InputError, match="holds another run"):
        pretrain.main(make(max_steps=1, seed=1))
    assert pretrain.main(make(max_steps=1))["updates"] == 1  # its own
    with pytest.raises(InputError, match="packed with seq_len 128, but this run is to have 1024"):
        pretrain.main(make(seq_len=1024))
    with pytest.raises(InputError, match="validation_dir"):
        pretrain.main(make(output_dir="elsewhere", validation_dir=str(stages / "packed")))

    (tmp_path / "short.json").write_text(json.dumps({"max_position_embeddings": 64}))
    with pytest.raises(InputError, match="max_position_embeddings"):
        pretrain.main(make(model_config=str(tmp_path / "short.json")))
    with pytest.raises(InputError, match="tokens_per_second"):
        pretrain.main(make(dry_run=False, tokens_per_second=1.0))
    (tmp_path / "wrong.json").write_text(json.dumps({"hiden_size": 64}))
    with pytest.raises(InputError, match="hiden_size"):
        pretrain.main(make(model_config=str(tmp_path / "wrong.json"), data_dir="nowhere"))
