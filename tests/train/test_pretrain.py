"""The pretraining loop: it learns, is cut anywhere without a trace, and refuses what cannot be right before it writes."""

import contextlib
import dataclasses
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from forks import fork
from zh_modernbert.modeling_zh_modernbert import ZhModernBertEncoderLayer, ZhModernBertForMaskedLM
from zh_modernbert.train import pack, pretrain, train_tokenizer
from zh_modernbert.train.common import cli
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.pretraining import checkpoint, tracking
from zh_modernbert.train.pretraining.checkpoint import checkpoints, step_of
from zh_modernbert.train.pretraining.signals import StopSignals
from zh_modernbert.train.rows import dataloader
from zh_modernbert.train.rows.masking import MlmSchedule
from zh_modernbert.train.rows.row_stream import PackedStream
from zh_modernbert.train.tokenizer.loading import load_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread", "unrendered_plots")

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


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def flags_of(settings: pretrain.Settings) -> list[str]:
    flags = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value != "":
            flags += [f"--{field.name}", *map(str, value if isinstance(value, list) else [value])]
    return flags


def start(settings: pretrain.Settings, processes: int = 1) -> list[int]:
    """Runs the loop in processes of their own, each the leader of a group; theirs is the log beside the run's folder.

    A fork is much faster than a script, which has to import everything first; `launch` has the latter.
    """
    port = str(free_port())

    def run(rank: int) -> None:
        if processes > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
            AcceleratorState._reset_state(reset_partial_state=True)
        pretrain.main(settings)

    return [fork(partial(run, rank), f"{settings.output_dir}.log") for rank in range(processes)]


def wait(children: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def log_of(settings: pretrain.Settings) -> str:
    return Path(f"{settings.output_dir}.log").read_text()[-3000:]


def logged(settings: pretrain.Settings) -> int:
    """The last update in metrics.jsonl."""
    path = Path(settings.output_dir) / "metrics.jsonl"
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def wait_until(condition, child: int | None = None) -> bool:
    """Whether it came true, before `child` ended."""
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        if child and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return False
        time.sleep(0.001)
    return condition()


def slow(function, seconds: float):
    def slowed(*arguments, **keywords):
        time.sleep(seconds)
        return function(*arguments, **keywords)

    return slowed


forking = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


@forking
def test_sigkill_leaves_no_trace(make, monkeypatch):
    """24 kills: at any time after the start, while a checkpoint is being written, and between or in updates after one."""
    changes = {"max_steps": 160, "save_steps": 2, "logging_steps": 1, "per_device_batch_size": 2}
    unbroken, broken = make("unbroken", fields=DROPOUT, **changes), make("broken", fields=DROPOUT, **changes)
    broken.model_config = unbroken.model_config  # it is one of the things that make a run
    for settings in (unbroken, broken):
        settings.gradient_accumulation_steps = 2
    pretrain.main(dataclasses.replace(unbroken, save_steps=160))
    folder, generator = Path(broken.output_dir) / "checkpoints", random.Random(0)
    torn = 0
    with monkeypatch.context() as patch:  # slowly where a kill is to fall, which changes no number
        patch.setattr(checkpoint, "save_file", slow(checkpoint.save_file, 0.01))
        patch.setattr(dataloader.MicroBatches, "__getitem__", slow(dataloader.MicroBatches.__getitem__, 0.003))
        for number in range(24):
            (child,) = start(broken)
            first = logged(broken)
            if number % 3 == 0:
                time.sleep(generator.uniform(0, 0.4))
            elif number % 3 == 1:
                wait_until(lambda: list(folder.glob(".step-*.tmp")), child)
                time.sleep(generator.uniform(0, 0.03))
            else:
                wait_until(lambda first=first: logged(broken) > first, child)
                time.sleep(generator.uniform(0, 0.05))
            os.kill(child, signal.SIGKILL)
            assert wait([child]) == [-9], log_of(broken)
            torn += bool(list(folder.glob(".step-*.tmp")))
    assert torn >= 4
    assert 0 < step_of(checkpoints(folder.parent)[-1]) < 160
    assert wait(start(broken)) == [0], log_of(broken)
    assert_same_run(broken, unbroken)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "adamw", "schedule": "warmup_stable_decay", "num_decay_steps": 5, "masking": "ngram"},
        {"per_device_batch_size": 8, "gradient_accumulation_steps": 2},
        {"init_from": "stage one", "global_rope_theta": 123456.0},
    ],
    ids=["damped_cosine", "warmup_stable_decay", "several_epochs", "stage_two"],
)
def test_cut_after_any_update_leaves_no_trace(make, monkeypatch, finished, tmp_path, held_out, changes):
    """The same inside one process, at more moments: a run that ends after 1, 3, 4, 7 and 11 updates, and goes on each time."""
    changes = changes | {"validation_dir": held_out, "eval_rows": 3, "eval_steps": 2}
    if "init_from" in changes:
        folder = shutil.copytree(finished / "model", tmp_path / "stage_one")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | DROPOUT))
        changes = changes | {"init_from": str(folder)}
    unbroken, broken = (make(name, fields=DROPOUT, **changes) for name in ("unbroken", "broken"))
    broken.model_config = unbroken.model_config
    pretrain.main(unbroken)
    update, write = pretrain.update, pretrain.save_model
    for last in (1, 3, 4, 7, 11):
        done = [step_of(path) for path in checkpoints(Path(broken.output_dir))]
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
    """Intervals, workers and compilation are no part of what is computed."""
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
    monkeypatch.setattr(ZhModernBertEncoderLayer, "compile", lambda layer, **options: None)
    pretrain.main(dataclasses.replace(settings, save_steps=5, save_total_limit=1, num_workers=1, compile=True))
    assert_same_run(settings, unbroken)


# --- stopped, on other processes, with damage --------------------------------------------------------------------------


@forking
@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 1), (signal.SIGINT, 0)])
def test_a_signal_saves_and_stops(make, monkeypatch, number, workers):
    """Sent to the workers too, as a terminal or Slurm does, while the update waits for them."""
    changes = {"save_steps": 1000, "logging_steps": 1, "per_device_batch_size": 1, "gradient_accumulation_steps": 4}
    unbroken, settings = (make(name, fields=DROPOUT, **changes) for name in ("unbroken", "run"))
    settings.model_config = unbroken.model_config
    pretrain.main(unbroken)
    with monkeypatch.context() as patch:
        patch.setattr(dataloader.MicroBatches, "__getitem__", slow(dataloader.MicroBatches.__getitem__, 0.05))
        (child,) = start(dataclasses.replace(settings, num_workers=workers))
        assert wait_until(lambda: logged(settings) >= 3, child), log_of(settings)
        os.killpg(child, number)
        os.killpg(child, number)  # a launcher passes it on
        assert wait([child]) == [128 + number], log_of(settings)
    (saved,) = checkpoints(Path(settings.output_dir))
    assert 3 <= step_of(saved) < STEPS
    assert f"stopped by {number.name} after update {step_of(saved)}, saved" in log_of(settings)
    pretrain.main(settings)
    assert_same_run(settings, unbroken)


@forking
def test_a_launcher_that_ends_stops_what_it_started(make, monkeypatch):
    """`accelerate launch` of one process passes no signal on."""
    settings = make(save_steps=1000, logging_steps=1)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr(dataloader.MicroBatches, "__getitem__", slow(dataloader.MicroBatches.__getitem__, 0.1))
    launcher = os.fork()
    if launcher == 0:
        start(settings)
        time.sleep(60)
        os._exit(0)
    assert wait_until(lambda: logged(settings) >= 2)
    os.kill(launcher, signal.SIGTERM)
    assert wait([launcher]) == [-signal.SIGTERM]
    assert wait_until(lambda: "stopped by SIGTERM" in log_of(settings)), log_of(settings)
    (saved,) = checkpoints(Path(settings.output_dir))
    assert step_of(saved) < STEPS


@forking
def test_one_process_at_a_time_writes_a_folder(make, monkeypatch):
    settings = make(logging_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr(dataloader.MicroBatches, "__getitem__", slow(dataloader.MicroBatches.__getitem__, 0.2))
        (child,) = start(settings)
        assert wait_until(lambda: logged(settings) >= 1, child), log_of(settings)
        with pytest.raises(InputError, match="another process is writing it"):
            pretrain.main(settings)
        os.kill(child, signal.SIGKILL)
        wait([child])
    assert pretrain.main(settings)["steps"] == STEPS  # the lock went with the process


def test_what_a_kill_left_is_cleared_and_what_others_left_is_not(make):
    settings = make()
    with ended_after(5):
        pretrain.main(settings)
    folder = Path(settings.output_dir) / "checkpoints"
    for name in (".step-00000004.tmp", ".step-00000003.old", "step-00000003.bak", "step-mine"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_text("half")
    pretrain.main(settings)
    assert {path.name for path in folder.iterdir()} == {"step-00000006", "step-00000009", "step-00000003.bak", "step-mine"}
    assert not (Path(settings.output_dir) / ".lock").exists()


@forking
def test_a_second_signal_kills_at_once(make, monkeypatch):
    settings = make()
    monkeypatch.setattr(StopSignals, "SAME", 0.05)
    monkeypatch.setattr(pretrain, "update", slow(pretrain.update, 60))
    (child,) = start(settings)
    assert wait_until(lambda: (Path(settings.output_dir) / "settings.json").exists(), child), log_of(settings)
    for _ in range(2):
        os.kill(child, signal.SIGTERM)
        time.sleep(0.2)
    assert wait([child]) == [-signal.SIGTERM]
    assert checkpoints(Path(settings.output_dir)) == []


def test_signals_are_as_they_were_after_a_run(make):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    pretrain.main(make(max_steps=1))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@forking
def test_two_processes_stop_together_and_go_on(make, monkeypatch):
    """Only one is told to stop. On two processes again the run ends to the bit as it would have, on one nearly so."""
    changes = {"fields": DROPOUT, "per_device_batch_size": 2, "save_steps": 1000, "logging_steps": 1}
    unbroken, broken, other = (make(name, **changes) for name in ("unbroken", "broken", "other"))
    broken.model_config = other.model_config = unbroken.model_config
    assert wait(start(unbroken, 2)) == [0, 0], log_of(unbroken)
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "update", slow(pretrain.update, 0.05))
        children = start(broken, 2)
        assert wait_until(lambda: logged(broken) >= 3, children[0]), log_of(broken)
        os.kill(children[1], signal.SIGTERM)
        assert wait(children) == [143, 143], log_of(broken)
    assert len(checkpoints(Path(broken.output_dir))) == 1
    shutil.copytree(broken.output_dir, other.output_dir)
    assert wait(start(broken, 2)) == [0, 0], log_of(broken)
    assert "not to the bit" not in log_of(broken)
    assert_same_run(broken, unbroken)
    assert wait(start(dataclasses.replace(other, per_device_batch_size=4))) == [0], log_of(other)
    assert "1 processes x 4 rows, 4 an update; before: 2 processes x 2 rows, 4 an update" in log_of(other)
    assert "rows per update" not in log_of(other)
    ours, theirs = metrics(other), metrics(unbroken)
    assert [line["masked_share"] for line in ours] == [line["masked_share"] for line in theirs]  # the same rows and masks
    assert ours != theirs  # as dropout is another
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=0.05)


@contextlib.contextmanager
def ended_after(updates: int) -> Iterator[None]:
    """A run in here is killed after so many updates."""
    update, left = pretrain.update, iter(range(updates))

    def cut(*arguments):
        if next(left, None) is None:
            raise Killed
        return update(*arguments)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(pretrain, "update", cut)
        yield


@pytest.fixture
def seen(monkeypatch) -> list[tuple[int, list]]:
    """The update and the (epoch, row) of each micro-batch that is read."""
    found, item = [], dataloader.MicroBatches.__getitem__

    def noting(self, index):
        found.append((self.update_of(index), self.positions(index)))
        return item(self, index)

    monkeypatch.setattr(dataloader.MicroBatches, "__getitem__", noting)
    return found


def test_other_numbers_of_rows_per_update_repeat_and_skip_nothing(make, seen, capsys):
    """Each row of the stream is part of one update, in order."""
    settings, expected = make(save_steps=1, logging_steps=1), []
    for rows, accumulation, last in ((30, 1, 3), (3, 2, 8), (20, 1, STEPS)):
        changes = {"per_device_batch_size": rows, "gradient_accumulation_steps": accumulation}
        first = len(expected)
        with ended_after(last - first):
            pretrain.main(dataclasses.replace(settings, **changes))
        expected += [rows * accumulation] * (last - first)
        seen[:] = [entry for entry in seen if entry[0] < last]  # not what was read for an update that was not made
    packed = PackedStream(settings.data_dir, {})
    stream = dataloader.MicroBatches(
        packed, None, MlmSchedule([0.3], 0, 1), sum(expected), np.array([sum(expected)]), settings.seed
    ).positions(0)
    assert sum(expected) > len(packed)
    assert [place for _, places in seen for place in places] == stream
    assert "1 processes x 20 rows, 20 an update; before: 1 processes x 3 rows, 6 an update" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_no_obstacle(make, capsys):
    unbroken, broken = make("unbroken", fields=DROPOUT), make("broken", fields=DROPOUT)
    broken.model_config = unbroken.model_config
    pretrain.main(unbroken)
    with ended_after(8):
        pretrain.main(broken)
    newest = checkpoints(Path(broken.output_dir))[-1]
    assert step_of(newest) == 6
    (newest / "model.safetensors").write_bytes((newest / "model.safetensors").read_bytes()[:-1])
    capsys.readouterr()
    pretrain.main(broken)
    assert f"damaged checkpoint: {newest / 'model.safetensors'}" in capsys.readouterr().err
    assert_same_run(broken, unbroken)


def test_milestones_and_the_start_of_the_decay_are_kept(make):
    settings = make(schedule="warmup_stable_decay", num_decay_steps=4, save_steps=3, save_total_limit=1, keep_every_steps=5)
    pretrain.main(settings)
    assert [step_of(path) for path in checkpoints(Path(settings.output_dir))] == [5, 8, 10]


DECAYING = {"schedule": "warmup_stable_decay", "num_decay_steps": 4, "save_steps": 100, "report_to": ["none"]}


def test_a_decay_is_started_again_from_its_checkpoint(make):
    """With the same settings it is the same decay to the bit; with more updates another one, from the same weights."""
    unbroken = make("unbroken", fields=DROPOUT, **DECAYING)
    pretrain.main(unbroken)
    (saved,) = checkpoints(Path(unbroken.output_dir))
    assert step_of(saved) == STEPS - 4
    again = dataclasses.replace(unbroken, output_dir=f"{unbroken.output_dir}_again", resume_from=str(saved))
    pretrain.main(again)
    assert metrics(again) == [line for line in metrics(unbroken) if line["step"] > step_of(saved)]
    assert all(torch.equal(value, weights(unbroken)[name]) for name, value in weights(again).items())

    longer = dataclasses.replace(again, output_dir=f"{again.output_dir}_longer", max_steps=STEPS + 4, num_decay_steps=8)
    with ended_after(6):  # killed, it goes on from its own checkpoint
        pretrain.main(dataclasses.replace(longer, save_steps=5))
    assert [step_of(path) for path in checkpoints(Path(longer.output_dir))] == [10]
    assert pretrain.main(longer)["steps"] == STEPS + 4
    assert [line["step"] for line in metrics(longer)] == [10, 12, 14, 16]
    assert metrics(longer)[0]["learning_rate"] > metrics(unbroken)[4]["learning_rate"]


def test_a_decay_on_other_data_reads_it_from_its_first_row(make, stages, tmp_path, capsys, seen):
    first = make("first", **DECAYING)
    pretrain.main(first)
    (saved,) = checkpoints(Path(first.output_dir))
    pack.main(pack.Settings(input_dir=str(stages / "encoded"), output_dir=str(tmp_path / "other"), seq_len=128, seed=1))
    other = dataclasses.replace(
        first, output_dir=f"{first.output_dir}_other", resume_from=str(saved), data_dir=str(tmp_path / "other")
    )
    seen.clear()
    pretrain.main(other)
    read = [place for _, places in seen for place in places]
    assert read == PackedStream(other.data_dir, {}).at(np.arange(4 * 4), other.seed)
    assert "with the first row of other data or another order" in capsys.readouterr().err
    seen.clear()
    pretrain.main(dataclasses.replace(other, output_dir=f"{other.output_dir}_seed", data_dir=first.data_dir, seed=5))
    assert [place for _, places in seen for place in places] == PackedStream(first.data_dir, {}).at(np.arange(4 * 4), 5)


@pytest.mark.parametrize("optimizer", ["stable_adamw", "adamw"])
def test_a_decay_has_the_settings_it_is_given(make, optimizer):
    """Not those of the run that wrote the checkpoint: without weight decay, weights end elsewhere; moments are taken over."""
    first = make("first", optimizer=optimizer, **DECAYING)
    pretrain.main(first)
    (saved,) = checkpoints(Path(first.output_dir))
    ends = []
    for name, changes in (
        ("same", {}),
        ("decay", {"weight_decay": 0.9}),
        ("epsilon", {"adam_epsilon": 1.0}),
        ("beta", {"adam_beta1": 0.0}),
    ):
        other = dataclasses.replace(first, output_dir=f"{first.output_dir}_{name}", resume_from=str(saved), **changes)
        pretrain.main(other)
        ends.append(weights(other)["model.layers.0.mlp.Wo.weight"])
    assert torch.equal(ends[0], weights(first)["model.layers.0.mlp.Wo.weight"])
    assert all(not torch.equal(end, ends[0]) for end in ends[1:])
    assert ends[1].norm() < ends[0].norm()
    start = load_file(saved / "model.safetensors")["model.layers.0.mlp.Wo.weight"]
    assert (ends[2] - start).norm() < 0.1 * (ends[0] - start).norm()  # so large an epsilon stops them


def test_a_checkpoint_of_something_else_is_not_gone_on_from(make, tmp_path):
    first = make("first", **DECAYING)
    pretrain.main(first)
    (saved,) = checkpoints(Path(first.output_dir))
    (tmp_path / "wider.json").write_text(json.dumps(MODEL | {"hidden_size": 64}))
    for changes, said in (
        ({"resume_from": str(tmp_path)}, "state.json"),
        ({"optimizer": "adamw"}, "optimizer stable_adamw, this run has adamw"),
        ({"model_config": str(tmp_path / "wider.json")}, "hidden_size 32 in its model config, this run 64"),
        ({"max_steps": 8}, "after update 8, but max_steps is 8"),
    ):
        settings = dataclasses.replace(first, output_dir=f"{first.output_dir}_else", **{"resume_from": str(saved)} | changes)
        assert said in refused(settings)
    (saved / "model.safetensors").write_bytes(b"")
    again = dataclasses.replace(first, output_dir=f"{first.output_dir}_again", resume_from=str(saved))
    assert f"{saved / 'model.safetensors'}: not what was written" in refused(again)


def test_every_update_has_the_shares_of_the_mixture(make, stages, tmp_path, seen):
    """A killed run of a mixture ends as one that was not; it read each folder in its share."""
    shutil.copytree(stages / "packed", tmp_path / "data" / "a")
    pack.main(pack.Settings(input_dir=str(stages / "encoded"), output_dir=str(tmp_path / "data" / "b"), seq_len=128, seed=1))
    mixed = {"data_dir": str(tmp_path / "data"), "mixture": {"a": 0.75, "b": 0.25}, "per_device_batch_size": 8}
    unbroken, broken = make("unbroken", **mixed), make("broken", **mixed)
    broken.model_config = unbroken.model_config
    pretrain.main(unbroken)
    rows_of_a = len(PackedStream(tmp_path / "data" / "a", {}))
    assert [sum(row < rows_of_a for _, row in places) for _, places in seen] == [6] * STEPS
    with ended_after(7):
        pretrain.main(broken)
    pretrain.main(broken)
    assert_same_run(broken, unbroken)
    assert "b: no such folder" in refused(make("other", data_dir=str(tmp_path / "data"), mixture={"a": 1, "bb": 1}))


@pytest.mark.parametrize("file", ["settings.json", "metrics.jsonl", "result.json"])
def test_a_disk_that_is_full_at_any_time_is_named(make, monkeypatch, file):
    settings, write_text, open_ = make(), Path.write_text, Path.open

    def full(function):
        def fails(path, *arguments, **keywords):
            if path.name.removesuffix(".tmp") == file:
                raise OSError(28, "No space left on device")
            return function(path, *arguments, **keywords)

        return fails

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full(write_text))
        patch.setattr(Path, "open", full(open_))
        with pytest.raises(InputError, match=f"{settings.output_dir}: cannot be written: No space left on device"):
            pretrain.main(settings)
    assert pretrain.main(settings)["steps"] == STEPS


def test_a_plot_that_cannot_be_drawn_is_no_obstacle(make, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tracking, "draw_metrics", full)
    assert pretrain.main(make())["steps"] == STEPS
    assert "metrics.png: not drawn" in capsys.readouterr().err


def test_a_full_disk_stops_a_run_that_can_go_on(make, monkeypatch):
    unbroken, broken, calls = make("unbroken"), make("broken"), iter(range(2))
    broken.model_config = unbroken.model_config
    pretrain.main(unbroken)
    save_file = checkpoint.save_file

    def full(*arguments):
        if next(calls, None) is None:
            raise OSError(28, "No space left on device")
        save_file(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(InputError, match="No space left on device") as error:
            pretrain.main(broken)
    assert broken.output_dir in str(error.value)
    assert [step_of(path) for path in checkpoints(Path(broken.output_dir))] == [3]
    pretrain.main(broken)
    assert_same_run(broken, unbroken)


# --- losses and gradients that are not finite --------------------------------------------------------------------------


@pytest.fixture
def poison(monkeypatch):
    """`poison(places, gradient_only)`: micro-batches with one of these rows in that epoch have no finite loss, or gradient."""
    item, forward = dataloader.MicroBatches.__getitem__, ZhModernBertForMaskedLM.forward

    def poison(places: set[tuple[int, int]], gradient_only: bool = False):
        poisoned = []

        def noting(self, index):
            batch = item(self, index)
            if places & set(self.positions(index)):
                poisoned.append(batch["input_ids"])
            return batch

        def poisoning(self, input_ids, **keywords):
            outputs = forward(self, input_ids, **keywords)
            if any(torch.equal(input_ids, ids) for ids in poisoned):
                if gradient_only:
                    outputs.loss.register_hook(lambda gradient: gradient * math.nan)
                else:
                    outputs.loss = outputs.loss * math.nan
            return outputs

        monkeypatch.setattr(dataloader.MicroBatches, "__getitem__", noting)
        monkeypatch.setattr(ZhModernBertForMaskedLM, "forward", poisoning)

    return poison


def rows_of(settings: pretrain.Settings, update: int, number: int, rows: int) -> list[tuple[int, int]]:
    """(epoch, row) of a micro-batch of `rows` rows, of which an update has two."""
    packed = PackedStream(settings.data_dir, {})
    schedule = MlmSchedule([0.3], 0, 100)
    return dataloader.MicroBatches(packed, None, schedule, rows, np.full(100, 2 * rows), settings.seed).rows_of(update, number)


def skipped(settings: pretrain.Settings) -> list[dict]:
    return [json.loads(line) for line in (Path(settings.output_dir) / "skipped.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("gradient_only", [False, True])
def test_an_update_that_is_not_finite_is_skipped(make, poison, gradient_only):
    """The sixth, at whose end a checkpoint is due. Cut before the next and after it, the run ends the same."""
    changes = {"fields": DROPOUT, "per_device_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 1}
    unbroken, broken = make("unbroken", **changes), make("broken", **changes)
    broken.model_config = unbroken.model_config
    bad = rows_of(unbroken, 5, 1, 2)
    poison({bad[1]}, gradient_only)
    assert pretrain.main(unbroken)["skipped_updates"] == 1
    rows = rows_of(unbroken, 5, 0, 2) + bad if gradient_only else bad
    assert skipped(unbroken) == [{"step": 6, "finite_loss": gradient_only, "epoch_and_row": [list(row) for row in rows]}]
    assert [(line["step"], line["skipped"]) for line in metrics(unbroken)] == [
        (step, int(step > 6)) for step in range(1, STEPS + 1) if step != 6
    ]
    assert all(value.isfinite().all() for value in weights(unbroken).values())
    for updates in (8, 8):  # up to 8, from 3 to 11
        with ended_after(updates):
            pretrain.main(broken)
    assert [step_of(path) for path in checkpoints(Path(broken.output_dir))] == [3, 9]
    pretrain.main(broken)
    assert skipped(broken) == skipped(unbroken)
    assert_same_run(broken, unbroken)


def test_too_many_in_a_row_stop_the_run(make, poison):
    settings = make(per_device_batch_size=2, gradient_accumulation_steps=2, max_skipped_updates=3)
    bad = [rows_of(settings, update, 1, 2) for update in (4, 6, 7, 8)]
    poison({rows[0] for rows in bad})
    with pytest.raises(InputError, match="updates 7 to 9") as error:
        pretrain.main(settings)
    assert str(bad[-1])[1:-1] in str(error.value)
    assert str(Path(settings.output_dir) / "skipped.jsonl") in str(error.value)
    assert [(line["step"], line["epoch_and_row"]) for line in skipped(settings)] == [
        (step, [list(row) for row in rows]) for step, rows in zip((5, 7, 8, 9), bad, strict=True)
    ]
    assert [step_of(path) for path in checkpoints(Path(settings.output_dir))] == [3, 6]  # none while skipping


@forking
def test_two_processes_skip_together(make, poison):
    """Only the second has the row."""
    settings = make(per_device_batch_size=2, max_steps=5)
    bad = rows_of(settings, 2, 1, 2)
    poison({bad[0]})
    assert wait(start(settings, 2)) == [0, 0], log_of(settings)
    assert skipped(settings) == [{"step": 3, "finite_loss": False, "epoch_and_row": [list(row) for row in bad]}]
    assert json.loads((Path(settings.output_dir) / "result.json").read_text())["skipped_updates"] == 1
    assert all(value.isfinite().all() for value in weights(settings).values())


# --- golden losses -----------------------------------------------------------------------------------------------------

GOLDEN = Path(__file__).parent / "golden_losses.json"


@pytest.mark.parametrize("system", ["a", "b"])
def test_golden_losses(make, system):
    """What both systems' recipes gave when they were last changed on purpose. Written anew by

    rm tests/train/golden_losses.json; pytest tests/train/test_pretrain.py -k golden
    """
    changes = {
        "a": {"mlm_probability": [0.15, 0.3, 0.15], "num_warmup_steps": 3},
        "b": {"optimizer": "adamw", "schedule": "warmup_stable_decay", "num_decay_steps": 4, "masking": "ngram"},
    }[system]
    settings = make(logging_steps=1, max_steps=20, **changes)
    pretrain.main(settings)
    losses = [line["loss"] for line in metrics(settings)]
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if system not in golden:
        GOLDEN.write_text(json.dumps(golden | {system: losses}, indent=1) + "\n")
        pytest.fail(f"{GOLDEN.name} was written; look at it and commit it")
    assert losses == pytest.approx(golden[system], rel=1e-4)


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
    assert len(load_tokenizer(finished / "model")) <= model.config.vocab_size


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
        batches.append(arguments[3])
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
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # no GPU, without saying so
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


@pytest.mark.parametrize("what", ["mlp", "layers"])
def test_gradient_checkpointing_changes_nothing(make, what):
    plain, checkpointed = make("plain", max_steps=2), make("checkpointed", max_steps=2, gradient_checkpointing=what)
    for settings in (plain, checkpointed):
        pretrain.main(settings)
    for ours, theirs in zip(metrics(checkpointed), metrics(plain), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_gradients_that_are_not_clipped(make):
    """0 clips nothing; what clips nothing gives the same."""
    plain, loose, tight = (make(f"run{norm}", max_steps=2, max_grad_norm=norm) for norm in (0.0, 1e6, 0.01))
    for settings in (plain, loose, tight):
        settings.model_config = plain.model_config
        pretrain.main(settings)
    assert all(torch.equal(value, weights(loose)[name]) for name, value in weights(plain).items())
    assert not torch.equal(weights(tight)["decoder.bias"], weights(plain)["decoder.bias"])


def test_weights_to_start_from_are_looked_at(make, finished, tmp_path):
    shutil.copytree(finished / "model", tmp_path / "start")
    settings, path = make(init_from=str(tmp_path / "start"), max_steps=2), tmp_path / "start" / "model.safetensors"
    pretrain.main(settings)
    tensors = load_file(path)
    save_file(tensors | {"decoder.bias": tensors["decoder.bias"] + 1}, path, metadata={"format": "pt"})
    assert "damaged or changed" in refused(settings)
    (tmp_path / "start" / "manifest.json").unlink()
    save_file(tensors | {"decoder.bias": tensors["decoder.bias"] + 1}, path, metadata={"format": "pt"})
    assert "weights to start from" in refused(settings)  # the result there is not that of these
    save_file(tensors | {"decoder.bias": tensors["decoder.bias"] * math.nan}, path, metadata={"format": "pt"})
    assert "decoder.bias holds values that are not finite" in refused(dataclasses.replace(settings, output_dir="other"))
    config = json.loads((tmp_path / "start" / "config.json").read_text())
    (tmp_path / "start" / "config.json").write_text(json.dumps(config | {"model_type": "modernbert"}))
    assert "train/convert.py" in refused(dataclasses.replace(settings, output_dir="other"))


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
        ({"seq_len": 256}, "packed with seq_len 128, but this run is to have 256"),
        ({"tokens_per_update": 1000}, "multiple of the rows' 128 tokens"),
        ({"tokens_per_update": 1024, "gradient_accumulation_steps": 2}, "gradient_accumulation_steps"),
        ({"warmup_batch_ratio": 1.5}, "warmup_batch_ratio"),
        ({"warmup_batch_ratio": 0.5}, "warmup_batch_ratio needs num_batch_warmup_steps"),
        ({"num_batch_warmup_steps": 13}, "num_batch_warmup_steps is more than max_steps"),
        ({"schedule": "warmup_stable_decay", "damping": 0.7}, "damping is for schedule damped_cosine"),
        ({"decay_type": "linear"}, "decay_type is for schedule warmup_stable_decay"),
        ({"min_lr_ratio": -1.0}, "min_lr_ratio"),
        ({"damping": -2.0}, "damping"),
        ({"seed": 2**70}, "seed"),
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


def test_compile_asks_for_a_compiler_first(make, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="compile needs a C compiler, and there is none"):
        pretrain.main(make(compile=True))


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
    rows = len(PackedStream(stages / "packed", {}))
    processes = SimpleNamespace(num_processes=rows + 1, is_main_process=True)
    monkeypatch.setattr(pretrain, "Accelerator", lambda **_: processes)
    assert f"1 processes were started, but Accelerate sees {rows + 1}" in refused(make())
    monkeypatch.setenv("WORLD_SIZE", str(rows + 1))
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


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_steps": 10**12}, "max_steps is 1000000000000"),
        ({"per_device_batch_size": 10**20}, "too many"),
        ({"gradient_accumulation_steps": 10**30}, "too many"),
        ({"tokens_per_update": 128 * 10**20}, "too many"),
    ],
)
def test_absurd_sizes(stages, tmp_path, settings, said):
    common = {"data_dir": str(stages / "packed"), "model_config": str(stages / "model.json"), "output_dir": str(tmp_path / "o")}
    with pytest.raises(InputError, match=said):
        pretrain.main(pretrain.Settings(**common | settings))


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
