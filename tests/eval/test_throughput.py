"""The benchmark compares like with like: equal weights, equal texts, counted operations, and a check that can fail."""

import json
from itertools import product

import pytest
import torch

from zh_modernbert.eval import throughput
from zh_modernbert.eval.speed import peers
from zh_modernbert.eval.speed.peers import PEERS
from zh_modernbert.eval.throughput import Settings
from zh_modernbert.train.common.cli import InputError

TINY = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.fixture
def tiny(monkeypatch):
    """Peers of sizes that a test can afford."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    sizes |= {"num_key_value_heads": 2, "vocab_size": 1000, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    monkeypatch.setattr(throughput, "SHAPES", {"12x768": TINY, "28x1024": TINY})
    for name, (kind, _) in throughput.OTHER_PEERS.items():
        monkeypatch.setitem(throughput.OTHER_PEERS, name, (kind, sizes))
    monkeypatch.setattr(throughput, "matmul_flops_per_second", lambda device, dtype: 1e11)
    monkeypatch.setattr(throughput, "check_backends", lambda device: {})


def test_a_run(tiny, tmp_path, capsys):
    names = [peer for peer in PEERS if "flash" not in peer and "flex" not in peer]
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


def test_what_does_not_run_says_so(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "EAGER_LONGEST", 64)
    shared = {"device": "cpu", "dtypes": ["float32"], "results_dir": str(tmp_path)}
    names = ["modernbert-eager", "modernbert-flash_attention_2", "modernbert-sdpa"]
    settings = Settings(**shared, modes=["inference"], workload=["128x1"], peers=names, repeats=1)
    eager, flash, sdpa = throughput.main(settings)["rows"]
    assert "at most 64 tokens" in eager["skipped"]
    assert "Flash" in flash["skipped"] or "ratio" in flash
    assert "ratio" in sdpa


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
