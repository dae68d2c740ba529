"""What a run shows is what it did: means over updates, by name and nowhere else, the same after a resumption."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tiny import TINY
from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.pretraining import tracking
from zh_modernbert.train.pretraining.flops import training_flops
from zh_modernbert.train.pretraining.tracking import Log, check_trackers, draw_metrics, keep_metrics, read_metrics

pytestmark = pytest.mark.usefixtures("accelerate_state")

CONFIG = ZhModernBertConfig(**TINY)
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def accelerate_state():
    """What an Accelerator makes, and its trackers want."""
    PartialState(cpu=True)


def start(tmp_path, step=0, sums=(), report_to=("none",), peak_flops=0.0) -> Log:
    settings = SimpleNamespace(max_steps=10, logging_steps=1, report_to=list(report_to), peak_flops=peak_flops)
    return Log(tmp_path, settings, CONFIG, step, dict(sums))


RESULT = {"loss": 40.0, "correct": 5, "masked": 20, "tokens": 100, "grad_norm": 1.0}


def test_a_line_is_the_mean_over_masked_tokens(tmp_path, capsys):
    log = start(tmp_path)
    log.add(RESULT)
    log.add(RESULT | {"loss": 20.0, "correct": 25, "masked": 40})
    log.write(2, learning_rate=0.5, mlm_probability=0.3)
    log.add(RESULT)
    log.write(3)
    log.close()
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert (first["step"], first["loss"], first["masked_accuracy"], first["masked_share"]) == (2, 1.0, 0.5, 0.3)
    assert (second["loss"], second["masked_accuracy"]) == (2.0, 0.25)
    shown = capsys.readouterr().err
    for part in ("2/10", "loss=1", "acc=0.5", "lr=0.5", "mask=0.3", "tokens/s="):
        assert part in shown
    assert "utilisation" not in shown
    assert (tmp_path / "metrics.png").read_bytes()[:4] == PNG
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "metrics.png"}


def test_sums_of_a_checkpoint_go_on(tmp_path):
    for name in ("unbroken", "resumed"):
        (tmp_path / name).mkdir()
    unbroken = start(tmp_path / "unbroken")
    unbroken.add(RESULT)
    resumed = start(tmp_path / "resumed", step=1, sums=unbroken.sums)
    for log in (unbroken, resumed):
        log.add(RESULT | {"loss": 7.0})
        log.write(2)
    assert resumed.line | {"tokens_per_second": 0} == unbroken.line | {"tokens_per_second": 0}


def test_utilisation_is_this_device_s_work_by_its_peak(tmp_path, monkeypatch):
    clock = iter([0.0, 4.0, 4.0])
    monkeypatch.setattr(tracking.time, "perf_counter", lambda: next(clock))
    log = start(tmp_path, peak_flops=1e-6)
    log.add(RESULT | {"work": [(torch.tensor([0, 30, 32]), 4), (torch.tensor([0, 7]), 1)]})
    log.write(1)
    flops = training_flops([30, 2], 4, CONFIG) + training_flops([7], 1, CONFIG)
    assert log.line["utilisation"] == pytest.approx(flops / 4.0 / 1e6, abs=1e-5)
    assert log.line["tokens_per_second"] == 25.0


def test_validation_takes_no_time_from_training(tmp_path, monkeypatch):
    clock = iter([0.0, 10.0, 10.0])
    monkeypatch.setattr(tracking.time, "perf_counter", lambda: next(clock))
    log = start(tmp_path)
    log.add(RESULT)
    log.write_validation(1, {"eval_loss": 3.0, "eval_runtime": 8.0})
    log.write(1)
    assert log.line["tokens_per_second"] == 50.0
    assert read_metrics(tmp_path / "metrics.jsonl")[0] == {"step": 1, "eval_loss": 3.0, "eval_runtime": 8.0}


def test_what_a_resumed_run_writes_again_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    keep_metrics(path, 0)
    lines = [{"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": 3.0}, {"step": 4, "loss": 1.0}, {"step": 4, "eval_loss": 3.0}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 6, "lo')
    keep_metrics(path, 3)
    assert read_metrics(path) == lines[:2]
    assert path.read_text().endswith("}\n")


def test_tensorboard_has_what_the_file_has(tmp_path):
    log = start(tmp_path, report_to=["tensorboard"])
    log.add(RESULT)
    log.write_validation(1, {"eval_loss": 3.0, "eval_runtime": 0.0})
    log.write(1)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 2.0)]
    assert [(e.step, e.value) for e in events.Scalars("eval_loss")] == [(1, 3.0)]


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_tracker_by_name(tmp_path, monkeypatch, name):
    """Through the package's own names; offline."""
    calls = []
    run = SimpleNamespace(
        log=lambda values, step=None: calls.append(("log", values, step)), finish=lambda: calls.append(("finish",))
    )
    package = SimpleNamespace(init=lambda **options: calls.append(("init", options)) or run)
    monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    log = start(tmp_path, report_to=[name])
    log.add(RESULT)
    log.write(1)
    log.close()
    (_, options), (_, values, step), finished = calls
    assert (options["project"], options["name"]) == (tmp_path.parent.name, tmp_path.name)
    assert (name == "wandb") == (options.get("mode") == "offline")
    assert (values["loss"], step, finished) == (2.0, 1, ("finish",))


def test_a_tracker_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    check_trackers(["none"])
    with pytest.raises(InputError, match="wandb, which is not installed; pip install wandb"):
        check_trackers(["wandb"])


@pytest.mark.parametrize("lines", [[], [{"step": 1, "loss": 2.0}], [{"step": 1, "eval_loss": 2.0}]])
def test_plots_of_little(tmp_path, lines):
    draw_metrics(lines, tmp_path / "metrics.png")
    assert (tmp_path / "metrics.png").read_bytes()[:4] == PNG
    assert len(list(tmp_path.iterdir())) == 1
