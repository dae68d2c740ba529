"""Several processes compute what one does, as replicas (DDP) and as shards (FSDP2), and take over each other's checkpoints."""

import dataclasses
import json
import math
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, DistributedType, PartialState
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule

from zh_modernbert import modeling_zh_modernbert as modeling
from zh_modernbert.modeling_zh_modernbert import ZhModernBertEncoderLayer
from zh_modernbert.train import pretrain
from zh_modernbert.train.pretraining.checkpoint import checkpoints

pytestmark = pytest.mark.usefixtures("one_thread", "unrendered_plots")

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "train" / "configs" / "accelerate"


def turn_fsdp_on() -> None:
    """Accelerate itself does for accelerators only (AcceleratorState.__init__ asks for MULTI_GPU and the like); all that it
    then does works on CPU."""
    init = AcceleratorState.__init__

    def on_cpu(self, *arguments, fsdp_plugin=None, **keywords):
        init(self, *arguments, fsdp_plugin=fsdp_plugin, **keywords)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = on_cpu


def process(
    rank: int, processes: int, port: int, environment: dict[str, str], mesh: tuple, settings: pretrain.Settings
) -> None:
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_PORT": port}
    os.environ.update(environment | {name: str(value) for name, value in where.items()})
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
    AcceleratorState._reset_state(reset_partial_state=True)  # of the test's own process, which this is a fork of
    if environment.get("ACCELERATE_USE_FSDP") == "true":
        turn_fsdp_on()
    prepare = pretrain.prepare

    def checked(*arguments):
        wrapped = prepare(*arguments)
        # PyTorch before 2.13 cannot compute backward in a module that is in a unit with others and called once a chunk.
        assert not isinstance(arguments[1].decoder, FSDPModule)
        assert {getattr(parameter, "device_mesh", torch.empty(())).shape for parameter in wrapped.parameters()} == {mesh}
        return wrapped

    pretrain.prepare = checked
    pretrain.main(settings)


def launch(config: str, settings: pretrain.Settings, mesh: tuple, *flags: str) -> None:
    """What `accelerate launch` does with a config of the repository, on this machine's CPU, without the time of imports.

    Args:
        mesh: of the processes that the parameters are sharded over; `()` where they are not.
    """
    processes = math.prod(mesh or (2,))
    options = ["--config_file", str(CONFIGS / f"{config}.yaml"), "--num_processes", str(processes), "--num_machines", "1"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args([*options, *flags, "pretrain.py"]))
    environment = prepare_multi_gpu_env(arguments)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(
        process, (processes, port, environment, mesh, settings), nprocs=processes, start_method="fork"
    )


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


def gradients(settings: pretrain.Settings) -> list[torch.Tensor]:
    """Of the first update, by the main process."""
    return torch.load(f"{settings.output_dir}.pt")


@pytest.fixture
def noted_gradients(monkeypatch):
    update = pretrain.update

    def noting(accelerator, model, stream, count, parameters, max_grad_norm):
        result = update(accelerator, model, stream, count, parameters, max_grad_norm)
        path = Path(f"{accelerator.noted}.pt")
        if accelerator.is_main_process and not path.exists():
            torch.save([parameter.grad.clone() for parameter in parameters], path)
        return result

    monkeypatch.setattr(pretrain, "update", noting)
    claim = pretrain.claim_run_folder

    def noting_folder(folder, *rest):
        Accelerator.noted = folder
        return claim(folder, *rest)

    monkeypatch.setattr(pretrain, "claim_run_folder", noting_folder)


@pytest.mark.parametrize(("rows", "accumulation"), [(4, 1), (2, 2)])
def test_processes_have_the_gradients_of_one(make, noted_gradients, rows, accumulation):
    """2 x 4 rows and 2 x 2 rows twice are 1 x 8 rows, though each micro-batch masks another number of tokens."""
    one = make("one", max_steps=2, max_grad_norm=1e6)
    two = dataclasses.replace(
        one, output_dir=f"{one.output_dir}_two", per_device_batch_size=rows, gradient_accumulation_steps=accumulation
    )
    pretrain.main(one)
    launch("cpu", two, ())
    for ours, theirs in zip(metrics(two), metrics(one), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    for ours, theirs in zip(gradients(two), gradients(one), strict=True):
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm()


def test_shards_compute_what_one_process_does(make, monkeypatch):
    """FSDP2 with accumulation, gradients clipped, layers recomputed, a loss in chunks; its checkpoint is one of DDP's too."""
    monkeypatch.setattr(modeling, "LOSS_CHUNK", 16)
    one, shards = (
        make("one", max_grad_norm=0.5),
        two_processes(make("shards", max_grad_norm=0.5, gradient_checkpointing="layers")),
    )
    pretrain.main(one)
    launch("fsdp2", shards, (2,))
    assert_same_run(shards, one)
    (saved,) = checkpoints(Path(shards.output_dir))
    (expected,) = checkpoints(Path(one.output_dir))
    for name in ("model.safetensors", "optimizer.safetensors"):
        tensors, whole = load_file(saved / name), load_file(expected / name)
        assert {key: value.shape for key, value in tensors.items()} == {key: value.shape for key, value in whole.items()}
    for config, mesh in (("fsdp2", (2,)), ("cpu", ())):  # killed before the end, and gone on with
        shutil.rmtree(Path(shards.output_dir) / "model")
        launch(config, shards, mesh)
        assert_same_run(shards, one)


@pytest.mark.parametrize("optimizer", ["stable_adamw", "adamw"])
def test_matrices_that_do_not_divide_are_sharded_too(make, stages, tmp_path, optimizer):
    """Heads of 6 make matrices of odd parts: a mean of shards' means would not be that of the matrix."""
    fields = json.loads((stages / "model.json").read_text())
    (tmp_path / "odd.json").write_text(
        json.dumps(fields | {"hidden_size": 42, "num_attention_heads": 7, "intermediate_size": 45})
    )
    one = make("one", model_config=str(tmp_path / "odd.json"), optimizer=optimizer, max_steps=2)
    shards = dataclasses.replace(one, output_dir=str(tmp_path / "shards"), per_device_batch_size=4)
    pretrain.main(one)
    launch("fsdp2", shards, (2,))
    assert_same_run(shards, one)


def test_shards_within_a_machine_and_replicas_between(make):
    one = make("one", max_steps=2)
    changes = {"per_device_batch_size": 2, "gradient_checkpointing": "mlp"}
    both = dataclasses.replace(one, output_dir=f"{one.output_dir}_nodes", **changes)
    pretrain.main(one)
    sizes = ["--parallelism_config_dp_replicate_size", "2", "--parallelism_config_dp_shard_size", "2"]
    launch("nodes", both, (2, 2), *sizes)
    assert_same_run(both, one)


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
