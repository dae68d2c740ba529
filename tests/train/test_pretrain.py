"""The pretraining loop: it learns, is cut anywhere without a trace, and refuses what cannot be right before it writes."""

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.train import cli, pack, pretrain, train_tokenizer
from zh_modernbert.train.cli import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[2]
MODEL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "global_attn_every_n_layers": 2,
    "local_attention": 32,
    "max_position_embeddings": 256,
}
# With dropout, a resumed run is the same only where that is replayed too.
DROPOUT = {"attention_dropout": 0.1, "mlp_dropout": 0.1, "embedding_dropout": 0.1}
STEPS = 12


class Killed(BaseException):
    """What nothing catches: the process ends here."""


@pytest.fixture
def make(stages, tmp_path):
    """Settings of a small run in `tmp_path / name`; `fields` go into its model JSON."""

    def make(name: str = "run", fields: dict | None = None, **changes) -> pretrain.Settings:
        if "init_from" not in changes:
            model_config = tmp_path / f"{name}.json"
            model_config.write_text(json.dumps(MODEL | (fields or {})))
            changes = {"model_config": str(model_config), **changes}
        settings = {
            "data_dir": str(stages / "packed"),
            "output_dir": str(tmp_path / name),
            "max_steps": STEPS,
            "per_device_batch_size": 4,
            "learning_rate": 5e-3,
            "num_warmup_steps": 1,
            "min_lr_ratio": 0.1,
            "logging_steps": 2,
            "save_steps": 3,
        }
        return pretrain.Settings(**settings | changes)

    return make


@pytest.fixture(scope="module")
def finished(stages, tmp_path_factory) -> Path:
    """The folder of a finished run of 3 updates, for tests that only read it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "model.json").write_text(json.dumps(MODEL))
    pretrain.main(
        pretrain.Settings(
            data_dir=str(stages / "packed"),
            output_dir=str(folder / "run"),
            model_config=str(folder / "model.json"),
            max_steps=3,
            per_device_batch_size=4,
            learning_rate=5e-3,
            logging_steps=1,
        )
    )
    return folder / "run"


def metrics(settings: pretrain.Settings) -> list[dict]:
    """The lines of metrics.jsonl, without what depends on the clock."""
    lines = [json.loads(line) for line in (Path(settings.output_dir) / "metrics.jsonl").read_text().splitlines()]
    assert all(line.pop("eval_runtime" if "eval_loss" in line else "tokens_per_second") > 0 for line in lines)
    return lines


def weights(settings: pretrain.Settings) -> dict[str, torch.Tensor]:
    return load_file(Path(settings.output_dir) / "model" / "model.safetensors")


def assert_same_run(settings: pretrain.Settings, expected: pretrain.Settings) -> None:
    assert metrics(settings) == metrics(expected)
    ours, theirs = weights(settings), weights(expected)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


# --- killed and started again ------------------------------------------------------------------------------------------

# Runs train/pretrain.py as it is, but slowly where a kill is to fall, which changes no number.
SLOWLY = """
import runpy, sys, time
from zh_modernbert.train import checkpoint, dataloader

def slow(function, seconds):
    def slowed(*arguments):
        time.sleep(seconds)
        return function(*arguments)
    return slowed

checkpoint.save_file = slow(checkpoint.save_file, 0.1)
dataloader.MicroBatches.__getitem__ = slow(dataloader.MicroBatches.__getitem__, 0.02)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def flags_of(settings: pretrain.Settings) -> list[str]:
    flags = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value != "":
            flags += [f"--{field.name}", *map(str, value if isinstance(value, list) else [value])]
    return flags


def start(settings: pretrain.Settings, slowly: bool = False) -> subprocess.Popen:
    script = str(ROOT / "train" / "pretrain.py")
    command = [sys.executable, *(["-c", SLOWLY] if slowly else []), script, *flags_of(settings)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with open(f"{settings.output_dir}.log", "a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=environment)


def log_of(settings: pretrain.Settings) -> str:
    return Path(f"{settings.output_dir}.log").read_text()[-3000:]


def logged(settings: pretrain.Settings, step: int) -> bool:
    path = Path(settings.output_dir) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return bool(lines) and lines[-1].endswith("}") and json.loads(lines[-1])["step"] >= step


def kill_when(process: subprocess.Popen, condition, delay: float = 0.0) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    process.wait()


def test_sigkill_leaves_no_trace(make):
    """Killed before the first checkpoint, while one is being written, and some updates after one."""
    unbroken, broken = make("unbroken", fields=DROPOUT), make("broken", fields=DROPOUT)
    # A model config is one of the things that make a run, so both read the same.
    broken.model_config = unbroken.model_config
    reference = start(unbroken)  # beside the others, on the second core
    folder = Path(broken.output_dir) / "checkpoints"
    moments = [
        (lambda: logged(broken, 2), 0.0),
        (lambda: (folder / ".step-00000006.tmp").exists(), random.uniform(0, 0.15)),
        (lambda: logged(broken, 10), random.uniform(0, 0.05)),
    ]
    for condition, delay in moments:
        process = start(broken, slowly=True)
        kill_when(process, condition, delay)
        assert process.returncode == -9, log_of(broken)
        assert condition(), log_of(broken)
    assert start(broken).wait(timeout=120) == 0, log_of(broken)
    assert reference.wait(timeout=120) == 0, log_of(unbroken)
    assert [line["step"] for line in metrics(unbroken)] == [2, 4, 6, 8, 10, 12]
    assert_same_run(broken, unbroken)


@pytest.mark.parametrize("optimizer", ["stable_adamw", "adamw"])
def test_cut_after_any_update_leaves_no_trace(make, monkeypatch, optimizer, held_out):
    """The same inside one process, at more moments: a run that ends after 1, 3, 4, 7 and 11 updates, and goes on each time."""
    same = {"optimizer": optimizer, "validation_dir": held_out, "eval_rows": 3, "eval_steps": 2}
    unbroken = make("unbroken", fields=DROPOUT, **same)
    pretrain.main(unbroken)
    broken = make("broken", model_config=unbroken.model_config, **same)
    update, write = pretrain.update, pretrain.save_model
    for last in (1, 3, 4, 7, 11):
        done = [int(path.name.removeprefix("step-")) for path in pretrain.checkpoints(Path(broken.output_dir))]
        left = iter(range(last - max(done, default=0)))

        def cut(*arguments, left=left):
            if next(left, None) is None:
                raise Killed
            return update(*arguments)

        monkeypatch.setattr(pretrain, "update", cut)
        with pytest.raises(Killed):
            pretrain.main(broken)
    monkeypatch.setattr(pretrain, "update", update)

    def half_written(folder, *arguments):
        left = folder.with_name(f".{folder.name}.tmp")
        left.mkdir()
        (left / "rubbish").write_bytes(b"")
        raise Killed

    monkeypatch.setattr(pretrain, "save_model", half_written)
    with pytest.raises(Killed):
        pretrain.main(broken)
    monkeypatch.setattr(pretrain, "save_model", write)
    pretrain.main(broken)
    assert_same_run(broken, unbroken)
    assert [line["step"] for line in metrics(broken) if "eval_loss" in line] == [2, 4, 6, 8, 10, 12]
    assert not (Path(broken.output_dir) / "model" / "rubbish").exists()


def test_a_half_written_line_of_metrics_is_dropped(make, monkeypatch):
    """A kill in the middle of a write leaves half a line, which the resumed run writes again."""
    settings, update = make(), pretrain.update
    calls = iter(range(4))

    def cut(*arguments):
        if next(calls, None) is None:
            raise Killed
        return update(*arguments)

    monkeypatch.setattr(pretrain, "update", cut)
    with pytest.raises(Killed):
        pretrain.main(settings)
    path = Path(settings.output_dir) / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    monkeypatch.setattr(pretrain, "update", update)
    pretrain.main(settings)
    assert [line["step"] for line in metrics(settings)] == [2, 4, 6, 8, 10, 12]


def test_a_finished_run_is_left_alone(make, monkeypatch):
    settings = make(max_steps=4)
    result = pretrain.main(settings)
    folder = Path(settings.output_dir)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(pretrain, "update", None)  # training would fail now
    assert pretrain.main(settings) == result
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()} == before


def test_how_a_run_is_run_may_change_on_resumption(make, monkeypatch):
    """Intervals and workers are no part of what is computed."""
    unbroken, settings, update = make("unbroken"), make(), pretrain.update
    settings.model_config = unbroken.model_config
    pretrain.main(unbroken)
    calls = iter(range(5))

    def cut(*arguments):
        if next(calls, None) is None:
            raise Killed
        return update(*arguments)

    monkeypatch.setattr(pretrain, "update", cut)
    with pytest.raises(Killed):
        pretrain.main(settings)
    monkeypatch.setattr(pretrain, "update", update)
    pretrain.main(dataclasses.replace(settings, save_steps=5, save_total_limit=1, num_workers=1))
    assert_same_run(settings, unbroken)


# --- what is computed --------------------------------------------------------------------------------------------------


def test_the_loss_goes_down(make):
    settings = make(
        max_steps=30, per_device_batch_size=8, learning_rate=1e-2, logging_steps=5, mlm_probability=[0.15, 0.3, 0.15]
    )
    result = pretrain.main(settings)
    lines = metrics(settings)
    assert [line["step"] for line in lines] == [5, 10, 15, 20, 25, 30]
    assert lines[0]["loss"] > 5.5  # an even guess over 512 entries costs log 512 = 6.2
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    assert lines[-1]["masked_accuracy"] > lines[0]["masked_accuracy"]
    assert lines[-1]["masked_share"] == pytest.approx(0.15, abs=0.03)
    assert (result["steps"], result["loss"]) == (30, lines[-1]["loss"])


def test_what_a_run_leaves(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {"run.json", "settings.json", "metrics.jsonl", "metrics.png", "tensorboard", "result.json", "model"}
    line = json.loads((finished / "metrics.jsonl").read_text().splitlines()[0])
    # learning_rate decays from its peak of 5e-3, which the first update has.
    assert (line["step"], line["learning_rate"], line["mlm_probability"]) == (1, 5e-3, 0.3)
    assert {"loss", "masked_accuracy", "masked_share", "grad_norm", "tokens_per_second"} <= line.keys()
    assert list((finished / "tensorboard").iterdir())
    model = ZhModernBertForMaskedLM.from_pretrained(finished / "model")
    assert not model.config.sparse_prediction
    assert len(train_tokenizer.load_tokenizer(finished / "model")) <= model.config.vocab_size


@pytest.mark.parametrize("masking", ["whole_word", "token"])
def test_accumulation_changes_nothing(make, masking):
    """The loss is the mean over all masked tokens of an update, whichever batch they are in."""
    whole, parts = make("whole", masking=masking), make("parts", masking=masking)
    parts.per_device_batch_size, parts.gradient_accumulation_steps = 2, 2
    for settings in (whole, parts):
        settings.max_steps = 6
        pretrain.main(settings)
    for ours, theirs in zip(metrics(parts), metrics(whole), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_tokens_of_an_update_say_how_often_to_accumulate(make):
    """Whatever the rows taken at once; also where these do not divide it."""
    whole = make("whole", max_steps=6, per_device_batch_size=10)
    parts = make("parts", max_steps=6, per_device_batch_size=4, tokens_per_update=10 * 128)
    for settings in (whole, parts):
        pretrain.main(settings)
    for ours, theirs in zip(metrics(parts), metrics(whole), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_batch_warm_up_is_cut_without_a_trace(make, monkeypatch):
    warmup = {"tokens_per_update": 10 * 128, "num_batch_warmup_steps": 8, "warmup_batch_ratio": 0.2}
    unbroken = make("unbroken", **warmup)
    broken, update = make("broken", **warmup, model_config=unbroken.model_config), pretrain.update
    pretrain.main(unbroken)
    calls, batches = iter(range(5)), []

    def cut(*arguments):
        if next(calls, None) is None:
            raise Killed
        batches.append(len(arguments[2]))
        return update(*arguments)

    monkeypatch.setattr(pretrain, "update", cut)
    with pytest.raises(Killed):
        pretrain.main(broken)
    assert batches == [1, 1, 1, 2, 2], "updates of 2, 3, 4, 5 and 6 rows, 4 at once"
    monkeypatch.setattr(pretrain, "update", update)
    pretrain.main(broken)
    assert_same_run(broken, unbroken)


def test_two_processes_compute_what_one_does(make, held_out):
    """gloo: two processes of 2 rows, with accumulation, against one of 8 rows; an odd number of rows is validated on."""
    held_out = {"validation_dir": held_out, "eval_rows": 5, "eval_steps": 3}
    one, two = (make(name, max_steps=6, per_device_batch_size=rows, **held_out) for name, rows in (("one", 8), ("two", 2)))
    two.gradient_accumulation_steps = 2
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, str(ROOT / "train" / "pretrain.py"), *flags_of(two)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["tokens"] == pretrain.main(one)["tokens"]
    for ours, theirs in zip(metrics(two), metrics(one), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    ours, theirs = weights(two), weights(one)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)


def test_showing_changes_nothing(make, held_out):
    plain = make("plain", fields=DROPOUT, max_steps=4, report_to=["none"])
    shown = make("shown", max_steps=4, model_config=plain.model_config, validation_dir=held_out, eval_steps=1, peak_flops=0.1)
    for settings in (plain, shown):
        pretrain.main(settings)
    lines = [line for line in metrics(shown) if "eval_loss" not in line]
    assert all(0 < line.pop("utilisation") < 1 for line in lines)
    assert lines == metrics(plain)
    assert all(torch.equal(value, weights(plain)[name]) for name, value in weights(shown).items())


def test_gradient_checkpointing_changes_nothing(make):
    plain, checkpointed = make("plain", max_steps=4), make("checkpointed", max_steps=4, gradient_checkpointing=True)
    for settings in (plain, checkpointed):
        pretrain.main(settings)
    for ours, theirs in zip(metrics(checkpointed), metrics(plain), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_stage_two_goes_on_from_stage_one(make, finished):
    settings = make(
        init_from=str(finished / "model"),
        global_rope_theta=123456.0,
        max_steps=1,
        num_warmup_steps=0,
        learning_rate=1e-3,
        logging_steps=1,
    )
    pretrain.main(settings)
    config = json.loads((Path(settings.output_dir) / "model" / "config.json").read_text())
    assert config["global_rope_theta"] == 123456.0
    assert json.loads((finished / "model" / "config.json").read_text())["global_rope_theta"] != 123456.0
    before, after = load_file(finished / "model" / "model.safetensors"), weights(settings)
    assert before.keys() == after.keys()
    # One update at this rate moves no weight far from where stage one left it.
    assert all((after[name] - value).abs().max() < 5e-3 for name, value in before.items())
    assert any(not torch.equal(after[name], value) for name, value in before.items())


def test_global_rope_theta_of_the_model_is_kept_by_default(make):
    settings = make(fields={"global_rope_theta": 77777.0}, max_steps=1)
    pretrain.main(settings)
    assert json.loads((Path(settings.output_dir) / "model" / "config.json").read_text())["global_rope_theta"] == 77777.0


# --- errors ------------------------------------------------------------------------------------------------------------


def refused(settings: pretrain.Settings) -> str:
    """The error's text; it is one line, and the run's folder is as it was before."""
    folder = Path(settings.output_dir)
    before = {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
    existed = folder.exists()
    with pytest.raises(InputError) as error:
        pretrain.main(dataclasses.replace(settings))  # a new one, so that its bounds are checked
    assert folder.exists() == existed
    assert {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")} == before
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_config": ""}, "model_config"),
        ({"max_steps": 0}, "max_steps"),
        ({"per_device_batch_size": 0}, "per_device_batch_size"),
        ({"gradient_accumulation_steps": -1}, "gradient_accumulation_steps"),
        ({"tokens_per_update": 1000}, "multiple of the rows' 128 tokens"),
        ({"tokens_per_update": 1024, "gradient_accumulation_steps": 2}, "gradient_accumulation_steps"),
        ({"warmup_batch_ratio": 1.5}, "warmup_batch_ratio"),
        ({"save_total_limit": 0}, "save_total_limit"),
        ({"mlm_probability": []}, "mlm_probability"),
        ({"mlm_probability": [0.1, 0.2]}, "mlm_probability"),
        ({"mlm_probability": [0.0]}, "mlm_probability"),
        ({"mlm_probability": [0.1, 1.5, 0.1]}, "mlm_probability"),
        ({"mask_replace_prob": 0.8, "random_replace_prob": 0.3}, "mask_replace_prob"),
        ({"random_replace_prob": -0.1}, "random_replace_prob"),
        ({"num_warmup_steps": 8, "num_decay_steps": 8}, "num_warmup_steps"),
        ({"num_decay_steps": 2}, "num_decay_steps"),
        ({"schedule": "warmup_stable_decay", "warmup_lr_ratio": 0.5}, "warmup_lr_ratio"),
        ({"num_warmup_steps": -1}, "num_warmup_steps"),
        ({"eval_steps": 2}, "validation_dir"),
        ({"validation_dir": "nowhere"}, "nowhere"),
        ({"report_to": ["none", "tensorboard"]}, "report_to"),
        ({"report_to": ["tensorbord"]}, "report_to"),
        ({"tokens_per_second": 1.0}, "dry_run"),
        ({"seed": -1}, "seed"),
        ({"learning_rate": -1e-3}, "learning_rate"),
        ({"adam_beta2": 1.5}, "adam_beta2"),
        ({"num_workers": -1}, "num_workers"),
        ({"attn_implementation": "spda"}, "attn_implementation"),
        ({"data_dir": "nowhere"}, "nowhere"),
        ({"model_config": "nowhere.json"}, "nowhere.json"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_contradictory_settings(make, changes, named):
    settings = make()
    for field, value in changes.items():
        setattr(settings, field, value)
    assert named in refused(settings)


def test_init_from_and_a_model_config_of_smaller_sizes(make, finished):
    settings = make(init_from=str(finished / "model"))
    settings.model_config = make(fields={"hidden_size": 16}).model_config
    assert "hidden_size" in refused(settings)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"hiden_size": 32}, "hiden_size"),
        ({"hidden_size": 33}, "hidden_size"),
        ({"hidden_size": "thirty-two"}, "hidden_size"),
        ({"hidden_activation": "gelou"}, "hidden_activation"),
        ({"norm_type": "batchnorm"}, "norm_type"),
        ({"vocab_size": 256}, "vocab_size"),
        ({"max_position_embeddings": 64}, "max_position_embeddings"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_a_model_config_that_does_not_fit(make, fields, named):
    settings = make(fields=fields)
    error = refused(settings)
    assert named in error
    assert settings.model_config in error


@pytest.mark.parametrize("text", ["{", "[]", "[1]", "3"])
def test_a_model_config_that_is_no_object(make, text):
    settings = make()
    Path(settings.model_config).write_text(text)
    assert settings.model_config in refused(settings)


def test_validation_on_the_training_rows(make, stages):
    assert "validation_dir" in refused(make(validation_dir=str(stages / "packed")))


def test_more_processes_than_rows(make, monkeypatch, stages):
    rows = len(pack.PackedRows(stages / "packed"))
    processes = SimpleNamespace(num_processes=rows + 1, is_main_process=True)
    monkeypatch.setattr(pretrain, "Accelerator", lambda **_: processes)
    assert f"{rows} rows for {rows + 1} processes" in refused(make())


def test_data_of_another_stage(make, stages):
    assert "train/pack.py" in refused(make(data_dir=str(stages / "encoded")))
    assert "manifest.json" in refused(make(data_dir=str(stages / "corpus")))


def test_another_run_in_the_folder(make, finished):
    settings = make(max_steps=3, learning_rate=1e-3, output_dir=str(finished))
    assert "another run" in refused(settings)


def test_another_model_under_the_same_file_name(make):
    """Here with the same shapes, so that its checkpoints would load."""
    settings = make(max_steps=2)
    pretrain.main(settings)
    Path(settings.model_config).write_text(json.dumps(MODEL | {"local_attention": 64}))
    assert "another run" in refused(settings)


def test_other_data_under_the_same_folder_name(make, stages, tmp_path):
    """The same documents, packed with another seed, are other rows."""
    settings = make(max_steps=2, data_dir=str(tmp_path / "packed"))
    packing = pack.Settings(input_dir=str(stages / "encoded"), output_dir=settings.data_dir, seq_len=128)
    pack.main(packing)
    pretrain.main(settings)
    pack.main(dataclasses.replace(packing, seed=1))
    assert "another run" in refused(settings)


def test_a_foreign_folder(make):
    settings = make()
    Path(settings.output_dir).mkdir()
    (Path(settings.output_dir) / "thesis.txt").write_text("precious")
    assert settings.output_dir in refused(settings)


def test_a_foreign_file(make):
    settings = make()
    Path(settings.output_dir).write_text("precious")
    assert settings.output_dir in refused(settings)


def test_an_empty_folder_is_no_obstacle(make):
    settings = make(max_steps=1)
    Path(settings.output_dir).mkdir()
    assert pretrain.main(settings)["steps"] == 1


def test_init_from_with_another_tokenizer(make, finished, stages, tmp_path):
    shutil.copytree(finished / "model", tmp_path / "other")
    train_tokenizer.main(
        train_tokenizer.Settings(input_dir=str(stages / "corpus"), output_dir=str(tmp_path / "tokenizer"), vocab_size=320)
    )
    shutil.copyfile(tmp_path / "tokenizer" / "tokenizer.json", tmp_path / "other" / "tokenizer.json")
    assert "tokenizer" in refused(make(init_from=str(tmp_path / "other")))


def test_init_from_nothing(make, finished, stages, tmp_path):
    assert "nowhere" in refused(make(init_from=str(tmp_path / "nowhere")))
    assert "config.json" in refused(make(init_from=str(stages / "tokenizer")))


@pytest.mark.parametrize("damage", ["truncated", "of_another_shape"])
def test_init_from_damaged_weights(make, finished, tmp_path, damage):
    folder = shutil.copytree(finished / "model", tmp_path / "damaged")
    path = folder / "model.safetensors"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        tensors = {name: value[..., :3].contiguous() for name, value in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    assert str(folder) in refused(make(init_from=str(folder)))


@pytest.mark.parametrize("missing", ["weights", "some_weights"])
def test_init_from_without_weights(make, finished, tmp_path, missing):
    """Random weights in place of missing ones would only show as a bad loss."""
    folder = shutil.copytree(finished / "model", tmp_path / "missing")
    path = folder / "model.safetensors"
    tensors = {name: value for name, value in load_file(path).items() if "layers.1" not in name}
    path.unlink()
    if missing == "some_weights":
        save_file(tensors, path, metadata={"format": "pt"})
    assert str(folder) in refused(make(init_from=str(folder)))


def test_a_loss_that_explodes_stops_the_run(make):
    """After an update whose loss is not finite there is nothing to go on with; what was saved before stays."""
    with pytest.raises(InputError, match="learning_rate"):
        pretrain.main(make(learning_rate=1e30, num_warmup_steps=0, optimizer="adamw"))


def test_an_error_is_one_line_and_exit_status_2(make, monkeypatch, capsys):
    settings = make(fields={"hiden_size": 32})
    flags = ["--data_dir", settings.data_dir, "--output_dir", settings.output_dir, "--model_config", settings.model_config]
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *flags])
    with pytest.raises(SystemExit) as exit_:
        cli.run(pretrain.main, pretrain.Settings)
    captured = capsys.readouterr()
    assert exit_.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
