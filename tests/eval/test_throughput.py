"""The benchmark compares like with like: equal weights, equal texts, counted operations, and a check that can fail."""

import json
import signal
import sys
import time
from dataclasses import replace
from itertools import product

import pytest
import torch

from zh_modernbert.eval import throughput
from zh_modernbert.eval.speed import peers, steps
from zh_modernbert.eval.speed.limits import is_out_of_memory
from zh_modernbert.eval.speed.peers import PEERS, Peer
from zh_modernbert.eval.throughput import Settings
from zh_modernbert.train.common.cli import InputError

TINY = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.fixture
def tiny(monkeypatch):
    """Peers of sizes that a test can afford."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    sizes |= {"num_key_value_heads": 2, "vocab_size": 1000, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    monkeypatch.setattr(throughput, "SHAPES", {"12x768": TINY, "28x1024": TINY})
    for name, peer in PEERS.items():
        if peer.kind:
            monkeypatch.setitem(PEERS, name, replace(peer, sizes=sizes))
    monkeypatch.setattr(throughput, "matmul_flops_per_second", lambda device, dtype: 1e11)
    monkeypatch.setattr(throughput, "check_backends", lambda device: {})


def test_a_run(tiny, tmp_path, capsys):
    other = ("flash_attention_2", "flex_attention")
    names = [name for name, peer in PEERS.items() if peer.runtime == "pytorch" and peer.backend not in other and not peer.fused]
    shared = {"device": "cpu", "dtypes": ["float32"], "peers": names, "repeats": 1, "results_dir": str(tmp_path)}
    result = throughput.main(Settings(**shared, workload=["128x4-questions"], curve_lengths=[16, 64]))
    assert json.loads((tmp_path / "throughput-cpu.json").read_text()) == result
    assert (tmp_path / "throughput-cpu.png").read_bytes()[:4] == b"\x89PNG"
    runs = product(["128x4-questions"], ("inference", "training"), ["float32"], names)
    assert set(result["ratio"]) == set(map(" ".join, runs))
    for row in result["rows"]:
        assert row["ratio"] == pytest.approx(row["peer_seconds"] / row["our_seconds"], abs=1e-3)
    assert [row["length"] for row in result["curve"]] == [16, 64]
    assert "modernbert-packed" in capsys.readouterr().err


def test_stock_has_the_same_outputs(tiny, tmp_path):
    """With pads, without, and in texts longer than the window."""
    stock = ["modernbert-sdpa", "modernbert-eager", "modernbert-packed"]
    shared = {"device": "cpu", "dtypes": ["float32"], "peers": stock, "repeats": 1, "results_dir": str(tmp_path)}
    rows = throughput.main(Settings(**shared, modes=["inference"], workload=["300x1", "200x4-questions"]))["rows"]
    assert len(rows) == 2 * 3
    assert max(row["relative_difference"] for row in rows) < 1e-5


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_served_models_have_the_same_outputs(tiny, tmp_path, monkeypatch):
    """In each dtype that a runtime has; what it has not, and what is not for it, is a line."""
    monkeypatch.setattr(throughput, "SHAPES", {"12x768": TINY | {"num_hidden_layers": 2}})
    pytest.importorskip("onnxscript")
    pytest.importorskip("openvino")
    shared = {"device": "cpu", "repeats": 1, "results_dir": str(tmp_path), "workload": ["64x3-questions"]}
    names = ["modernbert-onnxruntime", "modernbert-openvino", "modernbert-packed", "modernbert-sdpa"]
    dtypes = ["float32", "bfloat16", "int8"]
    found = {}
    for runtime in ("pytorch", "onnxruntime", "openvino"):
        settings = Settings(**shared, dtypes=dtypes, modes=["inference"], peers=names, runtime=runtime)
        found |= {(runtime, row["dtype"], row["peer"]): row for row in throughput.main(settings)["rows"]}
    exact = [row for row in found.values() if row["dtype"] == "float32" and "ratio" in row]
    assert len(exact) == 4 + 3 + 3
    assert max(row["relative_difference"] for row in exact) < 1e-5
    assert "ratio" in found["openvino", "bfloat16", "modernbert-openvino"]
    assert "ratio" in found["onnxruntime", "int8", "modernbert-onnxruntime"]
    assert found["pytorch", "int8", "modernbert-onnxruntime"]["skipped"] == "pytorch has no int8 here"
    assert found["openvino", "float32", "modernbert-packed"]["skipped"] == "packed rows are for PyTorch"
    rows = throughput.main(Settings(**shared, dtypes=["float32"], modes=["training"], peers=names[:1]))["rows"]
    assert "inference on CPU" in rows[0]["skipped"]


def test_a_runtime_that_is_not_installed_is_a_line(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    shared = {"device": "cpu", "dtypes": ["float32"], "results_dir": str(tmp_path), "modes": ["inference"]}
    rows = throughput.main(Settings(**shared, workload=["16x1"], peers=["modernbert-openvino"]))["rows"]
    assert "openvino" in rows[0]["skipped"]


def test_what_does_not_run_says_so(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "EAGER_LONGEST", 64)
    shared = {"device": "cpu", "dtypes": ["float32"], "results_dir": str(tmp_path)}
    names = ["modernbert-eager", "modernbert-flash_attention_2", "modernbert-sdpa"]
    settings = Settings(**shared, modes=["inference"], workload=["128x1"], peers=names, repeats=1)
    eager, flash, sdpa = throughput.main(settings)["rows"]
    assert "at most 64 tokens" in eager["skipped"]
    assert "Flash" in flash["skipped"] or "ratio" in flash
    assert "ratio" in sdpa


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory: you tried to"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("no kernel"), False),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_out_of_memory(error, expected):
    """Also where a compiler has wrapped the error."""
    wrapped = RuntimeError("backend='inductor' raised")
    wrapped.__cause__ = error
    assert is_out_of_memory(error) == is_out_of_memory(wrapped) == expected


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), ValueError("no kernel")], ids=str)
def test_a_failed_comparison_is_a_line(tiny, tmp_path, monkeypatch, capsys, error):
    def build_ours(shape, longest, state_dict=None):
        if longest == 64:
            raise error
        return peers.build_ours(shape, longest, state_dict)

    monkeypatch.setattr(steps, "build_ours", build_ours)
    shared = {"device": "cpu", "dtypes": ["float32"], "peers": ["modernbert-sdpa"], "repeats": 1, "results_dir": str(tmp_path)}
    result = throughput.main(
        Settings(**shared, workload=["64x1", "32x1"], modes=["inference", "curve"], curve_lengths=[64, 16])
    )
    failed, measured = result["rows"]
    assert failed["failed"].startswith("ValueError: no kernel" if isinstance(error, ValueError) else "out of memory: Out")
    assert ", test_throughput.py:" in failed["failed"]
    assert "Traceback" in failed["traceback"]
    assert measured["ratio"] > 0
    assert result["failed"] == ["64x1 inference float32 modernbert-sdpa"]
    assert [("failed" in row, "our_seconds" in row) for row in result["curve"]] == [(True, False), (False, True)]
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("64x1") and " failed: " in line for line in lines)
    assert lines[-1].startswith("failed: 64x1 inference float32 modernbert-sdpa; see ")


def test_a_run_stops_in_time_with_what_it_has(tiny, tmp_path, monkeypatch, capsys):
    path = tmp_path / "throughput-cpu.json"

    def stuck():
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                continue

    def compare(peer, workload, dtype, mode, settings):
        if workload.name == "8x1":
            assert [row["workload"] for row in json.loads(path.read_text())["rows"]] == ["4x1"], "each row is written at once"
            stuck()
        return {"workload": workload.name, "mode": mode, "dtype": dtype, "peer": peer, "skipped": "made up"}

    monkeypatch.setattr(throughput, "compare", compare)
    before = signal.getsignal(signal.SIGALRM)
    shared = {"device": "cpu", "dtypes": ["float32"], "peers": ["modernbert-sdpa"], "results_dir": str(tmp_path)}
    result = throughput.main(Settings(**shared, minutes=0.005, modes=["inference"], workload=["4x1", "8x1", "16x1"]))
    assert result["stopped"] == "the 0.005 minutes are over"
    assert result["not_made"] == [f"{name} inference float32 modernbert-sdpa" for name in ("8x1", "16x1")]
    assert json.loads(path.read_text()) == result
    assert capsys.readouterr().err.splitlines()[-1].startswith("stopped: the 0.005 minutes are over; 2 comparisons have no")
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_lost_device_ends_the_run(tiny, tmp_path, monkeypatch):
    answers = iter(["", "", "CUDA error: an illegal memory access was encountered"])

    def synchronize(device):
        if answer := next(answers):
            raise RuntimeError(answer)

    row = {"workload": "4x1", "mode": "inference", "dtype": "float32", "peer": "modernbert-sdpa", "failed": "made up"}
    monkeypatch.setattr(throughput, "compare", lambda *given: dict(row))
    monkeypatch.setattr(throughput, "synchronize", synchronize)
    shared = {"device": "cpu", "dtypes": ["float32"], "results_dir": str(tmp_path), "modes": ["inference"]}
    result = throughput.main(
        Settings(**shared, workload=["4x1"], peers=["modernbert-sdpa", "modernbert-eager", "eurobert-210m"])
    )
    assert "does not answer any more: RuntimeError: CUDA error: an illegal" in result["stopped"]
    assert len(result["rows"]) == 2
    assert result["not_made"] == ["4x1 inference float32 eurobert-210m"]


def test_what_says_most_of_a_gpu_comes_first(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    settings = throughput.resolve(Settings(device="cuda", minutes=5))
    planned = [(mode, workload.name, peer) for workload, mode, _, peer in throughput.plan_comparisons(settings)]
    assert tuple(planned[: len(throughput.FIRST)]) == throughput.FIRST
    assert len(set(planned)) == len(planned) > 40


def test_a_peer_that_this_version_of_transformers_lacks(monkeypatch):
    """It is left out, as one whose package is not installed."""
    with pytest.raises(ImportError, match="has no newest_of_kinds"):
        peers.build_peer(Peer(kind="newest_of_kinds"), TINY, 64)


def test_peers_are_built_on_the_device(tiny):
    for name, peer in PEERS.items():
        with torch.device("meta"):
            model, _ = peers.build_peer(peer, TINY, 64) if "flash" not in name else (peers.build_ours(TINY, 64), 0)
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}, name


def test_steps_that_compile_are_not_timed(tiny, monkeypatch):
    step = steps.Contestant.__call__
    monkeypatch.setattr(torch, "compile", lambda model: (Count.compile(), model)[1])

    class Count:
        graphs, left = 0, 0

        @classmethod
        def compile(cls):
            cls.left = 3

    def called(self):
        Count.graphs += Count.left > 0
        Count.left -= 1
        return step(self)

    monkeypatch.setattr(steps.Contestant, "__call__", called)
    monkeypatch.setattr(steps, "compiled_graphs", lambda: Count.graphs)
    settings = throughput.resolve(Settings(device="cpu", repeats=2, compile=True))
    row = throughput.compare("modernbert-sdpa", throughput.Workload.parse("16x1"), "float32", "inference", settings)
    assert "ratio" in row, "the warm-up goes on until nothing is compiled"
    monkeypatch.setattr(steps, "take_turns", lambda ours, *given: (Count.compile(), ours(), (1, 1, 1))[2])
    row = throughput.compare("modernbert-sdpa", throughput.Workload.parse("16x1"), "float32", "inference", settings)
    assert row["failed"] == "throughput: 1 graphs were compiled inside the timed turns"


def test_the_curve_leaves_out_what_takes_too_long(tiny, tmp_path):
    shared = {"device": "cpu", "dtypes": ["float32"], "results_dir": str(tmp_path)}
    settings = Settings(**shared, modes=["curve"], curve_lengths=[16, 64], repeats=1, seconds=0)
    first, second = throughput.main(settings)["curve"]
    assert "peer_seconds" in first
    assert "peer_seconds" not in second
    assert second["our_seconds"] > 0


def test_the_collator_is_measured_alone():
    with pytest.raises(InputError, match="collator has no model"):
        throughput.main(Settings(workload=["collator", "64x1"]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="only where there is no GPU")
def test_no_gpu():
    with pytest.raises(InputError, match="finds no GPU"):
        throughput.main(Settings(device="cuda"))
