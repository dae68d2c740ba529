"""Several processes compute what one does, as replicas (DDP) and as shards (FSDP2), and take over each other's checkpoints."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from zh_modernbert.train import pretrain
from zh_modernbert.train.checkpoint import checkpoints

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "train" / "configs" / "accelerate"
# Runs the script in argv[1] as it is. Accelerate itself turns FSDP on for accelerators only (AcceleratorState.__init__ asks for
# MULTI_GPU and the like); all that it does then works on CPU.
FSDP_ON_CPU = """
import runpy, sys
from accelerate.state import AcceleratorState, DistributedType, PartialState

def on_cpu(self, *arguments, fsdp_plugin=None, **keywords):
    init(self, *arguments, fsdp_plugin=fsdp_plugin, **keywords)
    if fsdp_plugin is not None:
        self.fsdp_plugin = fsdp_plugin
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

init, AcceleratorState.__init__ = AcceleratorState.__init__, on_cpu
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def make(stages, tmp_path):
    """Settings of a run of 4 updates of 8 rows in `tmp_path / name`, saved after the third."""

    def make(name: str, **changes) -> pretrain.Settings:
        settings = {
            "data_dir": str(stages / "packed"),
            "output_dir": str(tmp_path / name),
            "model_config": str(stages / "model.json"),
            "max_steps": 4,
            "per_device_batch_size": 8,
            "learning_rate": 5e-3,
            "logging_steps": 1,
            "save_steps": 3,
        }
        return pretrain.Settings(**settings | changes)

    return make


def two_processes(settings: pretrain.Settings) -> pretrain.Settings:
    """The same updates on two processes of 2 rows, twice."""
    return dataclasses.replace(settings, per_device_batch_size=2, gradient_accumulation_steps=2)


def launch(config: str, settings: pretrain.Settings, script: Path) -> None:
    """`accelerate launch` with a config of the repository, on two processes of this machine's CPU."""
    flags = [f"--{field.name}={value}" for field in dataclasses.fields(settings) if (value := getattr(settings, field.name)) != ""]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{config}.yaml")]
    command += ["--num_processes", "2", "--main_process_port", "0", str(script), str(ROOT / "train" / "pretrain.py"), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-5000:]


def test_x(make, tmp_path):
    script = tmp_path / "fsdp_on_cpu.py"
    script.write_text(FSDP_ON_CPU)
    one = make("one")
    pretrain.main(one)
    two = two_processes(make("two"))
    launch("fsdp2", two, script)
    print(open(two.output_dir + "/metrics.jsonl").read(), open(one.output_dir + "/metrics.jsonl").read())
