"""Several processes compute what one does, as replicas (DDP) and as shards (FSDP2), and take over each other's checkpoints."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from zh_modernbert.modeling_zh_modernbert import ZhModernBertEncoderLayer
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


def launch(config: str, settings: pretrain.Settings, *before: Path) -> None:
    """`accelerate launch` with a config of the repository, on two processes of this machine's CPU."""
    flags = [
        f"--{field.name}={value}" for field in dataclasses.fields(settings) if (value := getattr(settings, field.name)) != ""
    ]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{config}.yaml")]
    command += [
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
        *map(str, before),
        str(ROOT / "train" / "pretrain.py"),
        *flags,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-5000:]


@pytest.fixture
def fsdp_on_cpu(tmp_path) -> Path:
    script = tmp_path / "fsdp_on_cpu.py"
    script.write_text(FSDP_ON_CPU)
    return script


def metrics(settings: pretrain.Settings) -> list[dict]:
    lines = [json.loads(line) for line in (Path(settings.output_dir) / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in lines]


def assert_same_run(settings: pretrain.Settings, expected: pretrain.Settings) -> None:
    for ours, theirs in zip(metrics(settings), metrics(expected), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    files = [Path(run.output_dir) / "model" / "model.safetensors" for run in (settings, expected)]
    ours, theirs = map(load_file, files)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-5)


def test_shards_compute_what_one_process_does(make, fsdp_on_cpu):
    """FSDP2 with accumulation, gradients clipped and layers recomputed; its checkpoint is one of DDP's too."""
    one, shards = make("one", max_grad_norm=0.5), two_processes(make("shards", max_grad_norm=0.5, gradient_checkpointing=True))
    pretrain.main(one)
    launch("fsdp2", shards, fsdp_on_cpu)
    assert_same_run(shards, one)
    (saved,) = checkpoints(Path(shards.output_dir))
    (expected,) = checkpoints(Path(one.output_dir))
    for name in ("model.safetensors", "optimizer.safetensors"):
        tensors, whole = load_file(saved / name), load_file(expected / name)
        assert {key: value.shape for key, value in tensors.items()} == {key: value.shape for key, value in whole.items()}
    for config, script in (("fsdp2", [fsdp_on_cpu]), ("cpu", [])):  # killed before the end, and gone on with
        shutil.rmtree(Path(shards.output_dir) / "model")
        launch(config, shards, *script)
        assert_same_run(shards, one)


@pytest.mark.parametrize("optimizer", ["stable_adamw", "adamw"])
def test_matrices_that_do_not_divide_are_sharded_too(make, stages, tmp_path, fsdp_on_cpu, optimizer):
    """Heads of 6 make matrices of odd parts: a mean of shards' means would not be that of the matrix."""
    fields = json.loads((stages / "model.json").read_text())
    (tmp_path / "odd.json").write_text(
        json.dumps(fields | {"hidden_size": 42, "num_attention_heads": 7, "intermediate_size": 45})
    )
    one = make("one", model_config=str(tmp_path / "odd.json"), optimizer=optimizer, max_steps=2)
    shards = dataclasses.replace(one, output_dir=str(tmp_path / "shards"), per_device_batch_size=4)
    pretrain.main(one)
    launch("fsdp2", shards, fsdp_on_cpu)
    assert_same_run(shards, one)


def test_compiled_layers_compute_the_same(make, monkeypatch):
    """With dynamo's graphs run as they are; a C compiler takes a minute."""
    compiled, compile_ = [], ZhModernBertEncoderLayer.compile
    monkeypatch.setattr(
        ZhModernBertEncoderLayer,
        "compile",
        lambda layer, **options: (compiled.append(options), compile_(layer, backend="eager", **options)),
    )
    plain, faster = make("plain", max_steps=2), make("faster", max_steps=2, compile=True)
    pretrain.main(plain)
    pretrain.main(faster)
    assert compiled == [{"dynamic": True}] * 4
    assert_same_run(faster, plain)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_of_accelerate(path):
    """Accelerate reads each whole; those that shard do so by layers of this model."""
    config = load_config_from_file(str(path))
    assert config.num_processes % config.num_machines == 0
    if sharding := yaml.safe_load(path.read_text()).get("fsdp_config"):
        assert sharding["fsdp_version"] == 2
        assert sharding["fsdp_transformer_layer_cls_to_wrap"] == ZhModernBertEncoderLayer.__name__
        assert not sharding["fsdp_cpu_ram_efficient_loading"]
    sizes = getattr(config, "parallelism_config", None) or {}
    assert math.prod(sizes.values()) in (1, config.num_processes)
