"""A timed run: its stages take their time, what fails leaves the model before it, and the decay ends at a rate near zero."""

import json
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from forks import fork
from zh_modernbert.train import pretrain, timed
from zh_modernbert.train.common.cli import InputError, parse

pytestmark = [
    pytest.mark.usefixtures("one_thread", "unrendered_plots"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),
]
PRESET = """
data_dir: {stages}/packed
model_config: {stages}/model.json
output_dir: unused
max_steps: 100000
per_device_batch_size: 2
learning_rate: 5.0e-3
schedule: warmup_stable_decay
logging_steps: 1
"""


class Forked:
    """Stands for `subprocess.Popen`: runs train/pretrain.py in a fork, which has imported everything."""

    def __init__(self, command: list[str], stdout):
        self.status, self.pid = None, fork(partial(self.run, command))

    def run(self, command: list[str]) -> None:
        AcceleratorState._reset_state()
        pretrain.main(parse(pretrain.Settings, command[3:], "pretrain"))

    def poll(self, flags: int = os.WNOHANG) -> int | None:
        if self.status is None:
            pid, status = os.waitpid(self.pid, flags)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status

    def wait(self, timeout: float | None = None) -> int:
        return self.poll(0)

    def terminate(self):
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    kill = terminate


@pytest.fixture
def make(stages, tmp_path, monkeypatch):
    monkeypatch.setattr(timed.subprocess, "Popen", Forked)
    monkeypatch.setattr(timed, "CLOSING", 0.1)
    stage = tmp_path / "stage.yaml"
    stage.write_text(PRESET.format(stages=stages))

    def make(**changes) -> timed.Settings:
        settings = {
            "stage_one": str(stage),
            "stage_two": f"{stage} --seed 1",
            "output_dir": str(tmp_path / "run"),
            "minutes": 0.12,
        }
        return timed.Settings(**settings | {"stage_two_share": 0.3, "decay_share": 0.3} | changes)

    return make


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_two_stages_and_a_decay_in_time(make, tmp_path):
    settings, started = make(), time.monotonic()
    result = timed.main(settings)
    assert time.monotonic() - started < 2 * 60 * settings.minutes
    run = tmp_path / "run"
    one, two, decay = (metrics(run / name) for name in ("stage_one", "stage_two", "decay"))
    assert one[-1]["step"] + 1 == two[0]["step"]
    assert two[-1]["step"] + 1 == decay[0]["step"]
    assert decay[-1]["step"] == result["steps"]
    assert {line["learning_rate"] for line in two} == {5e-3}
    rates = [line["learning_rate"] for line in decay]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < rates[0] <= 5e-3
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (run, run / "decay"))
    assert all(torch.equal(ours[name], tensor.bfloat16()) for name, tensor in theirs.items())


def test_a_stage_that_fails_leaves_the_model_before_it(make, tmp_path):
    settings = make(minutes=0.1)
    with pytest.raises(InputError, match="stage_two failed with exit status"):
        timed.main(make(minutes=0.1, stage_two=settings.stage_two + " --attn_implementation none"))
    assert (
        load_file(tmp_path / "run" / "model" / "model.safetensors")["model.embeddings.tok_embeddings.weight"].dtype
        == torch.bfloat16
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stage_two_share": 0.5, "decay_share": 0.5}, "leave no time for stage one"),
        ({"stage_two": "--data_dir a --schedule damped_cosine"}, "stage_two: needs schedule warmup_stable_decay"),
        ({"stage_one": "--learning_rat 1"}, "stage_one: .*learning_rate"),
        ({"stage_one": "{} --data_dir not/there"}, "stage_one: not/there"),
        ({"stage_two": "{} --data_dir not/there"}, "stage_two: not/there"),
        ({"stage_two": "{} --validation_dir not/there"}, "stage_two: not/there"),
        ({"stage_two": "{} --seq_len 1000"}, "stage_two: .* this run is to have 1000"),
        *(
            ({"stage_two": f"{{}} --{flag} 1"}, f"stage_two: .*--{flag} is given twice")
            for flag in ("max_steps", "init_from", "resume_from", "output_dir")
        ),
    ],
)
def test_what_cannot_be_is_said_before_any_time_is_spent(make, tmp_path, changes, said):
    changes = {name: value.format(make().stage_one) if isinstance(value, str) else value for name, value in changes.items()}
    with pytest.raises(InputError, match=said):
        timed.main(make(**changes))
    assert not (tmp_path / "run").exists()
