"""Masking and whole updates beside transformers': the same rows, counted operations, and checks that can fail."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DataCollatorForLanguageModeling, ModernBertForMaskedLM

from zh_modernbert.eval import throughput
from zh_modernbert.eval.speed import training as training_speed
from zh_modernbert.eval.speed.measuring import LENGTHS
from zh_modernbert.eval.speed.peers import stock_config
from zh_modernbert.eval.speed.training import MadeRows, Updates, compare_collators, compare_updates, leave
from zh_modernbert.eval.throughput import Settings
from zh_modernbert.modeling_zh_modernbert import ZhModernBertEncoderLayer, ZhModernBertForMaskedLM
from zh_modernbert.train import pretrain
from zh_modernbert.train.common.cli import InputError, read_yaml

SHAPE = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
TASK = Updates(seq_len=256, rows=4, shape=SHAPE, device="cpu", dtype="float32")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(MadeRows, "vocab_size", 512)
    monkeypatch.setattr(training_speed, "UPDATES", {"cpu": (1, 1)})


def test_documents_have_real_lengths():
    made = MadeRows(64, 8192)
    assert sum(made.lengths()) == 64 * 8192
    assert all(bounds[0] == 0 and bounds[-1] == len(ids) == 8192 for ids, _, bounds in made.rows)
    # Laid end to end, cut at the end of a row: as many as of the mean length, and at most one more a row.
    expected = 64 * 8192 / np.mean(LENGTHS["documents"])
    assert 0.8 * expected < len(made.lengths()) < 1.2 * expected + 64
    assert MadeRows(64, 256).lengths().count(256) > 32, "most short rows are part of one document"


def test_collators_mask_words_whole_in_the_same_rows():
    """Where transformers sees words, and how many tokens both mask."""
    made = MadeRows(4, 512)
    collator = DataCollatorForLanguageModeling
    for (input_ids, word_starts, bounds), features in zip(made.rows, made.features(), strict=True):
        assert features["input_ids"] == input_ids.tolist()
        assert bounds[0] == 0
        assert np.diff(bounds).min() >= 3, "a document has a token between [CLS] and [SEP]"
        offsets, special = np.array([features["offset_mapping"]]), np.array([features["special_tokens_mask"]])
        word_ids, inside = collator._calc_word_ids_and_prob_mask(offsets, special)
        assert ((special[0] == 1) == (word_ids[0] == -1)).all()
        assert ((special[0] == 0) & (word_starts == 1) == ~inside[0]).all()
    result = compare_collators(4, 512, Settings(repeats=1))
    assert result["ratio"] == pytest.approx(result["our_tokens_per_second"] / result["peer_tokens_per_second"], rel=0.01)
    for side in ("our", "peer"):
        assert result[f"{side}_masked_share"] == pytest.approx(0.3, abs=0.05)


def test_a_comparison(monkeypatch, tmp_path):
    monkeypatch.setattr(throughput, "SHAPES", {"12x768": SHAPE})
    monkeypatch.setattr(throughput, "matmul_flops_per_second", lambda device, dtype: 1e11)
    monkeypatch.setattr(throughput, "check_backends", lambda device: {})
    shared = {"device": "cpu", "dtypes": ["bfloat16"], "repeats": 1, "results_dir": str(tmp_path)}
    settings = Settings(**shared, modes=["pretraining"], workload=["256x4"], peers=["modernbert-sdpa", "qwen3-embedding-0.6b"])
    result = throughput.main(settings)
    assert json.loads((tmp_path / "throughput-cpu.json").read_text()) == result
    (row,) = result["rows"]
    assert result["ratio"] == {"256x4 pretraining bfloat16 modernbert-sdpa": row["ratio"]}
    assert row["ratio"] == pytest.approx(row["peer_seconds"] / row["our_seconds"], abs=1e-3)
    assert row["tokens_per_second"] == pytest.approx(1024 / row["our_seconds"], rel=0.01)
    assert row["peer_tokens_per_second"] == pytest.approx(1024 / row["peer_seconds"], rel=0.01)
    assert row["flop_utilisation"] == pytest.approx(row["flops"] / 1e11 / row["our_seconds"], abs=1e-3)
    assert row["peer_flop_utilisation"] == pytest.approx(row["peer_flops"] / 1e11 / row["peer_seconds"], abs=1e-3)
    for side in ("our", "peer"):
        assert row[f"{side}_masked_share"] == pytest.approx(0.3, abs=0.06)
        assert row[f"{side}_rows_at_once"] == 4
    weights = 4 * 4 * sum(parameter.numel() for parameter in TASK.our_model().parameters())  # their gradients, two moments
    assert row["our_memory"] > weights
    assert row["peer_memory"] > row["our_memory"], "it has logits for every token"


def test_operations_are_those_of_a_hand_count():
    settings = throughput.resolve(Settings(device="cpu", repeats=1))
    row = compare_updates("sdpa", 512, 4, "float32", SHAPE, False, settings)
    tokens, masked, layers = 4 * 512, row["our_masked_share"] * 4 * 512, 2
    linear = 2 * tokens * layers * (32 * 96 + 32 * 32 + 32 * 2 * 48 + 48 * 32)
    head = 2 * (32 * 32 + 32 * 512)

    def attention(lengths):  # scores and sums, in one layer of each kind
        full = sum(length**2 for length in lengths)
        near = sum(abs(i - j) <= 64 for length in lengths for i in range(length) for j in range(length))
        return 2 * 2 * 32 * (full + near)

    lengths = MadeRows(4, 512).lengths()
    assert row["documents"] == len(lengths)
    assert len(lengths) > 4
    assert row["flops"] == pytest.approx(3 * (linear + attention(lengths) + masked * head), rel=1e-3)
    assert row["peer_flops"] == 3 * (linear + attention([512] * 4) + tokens * head)


def test_both_sides_have_the_same_weights_to_train():
    ours, peer = TASK.our_model(), ModernBertForMaskedLM(stock_config(SHAPE, 512, 256, "sdpa"))
    assert ours.num_parameters() == peer.num_parameters()


def test_an_update_that_is_wrong_is_noticed(monkeypatch):
    assert max(TASK.check().values()) < 1e-5
    original = ZhModernBertForMaskedLM.chunked_loss

    def spoil(change):
        def chunked_loss(*given):
            loss, *of_each_label = original(*given)
            return change(loss), *of_each_label

        monkeypatch.setattr(ZhModernBertForMaskedLM, "chunked_loss", chunked_loss)

    spoil(lambda loss: 1.001 * loss)
    with pytest.raises(InputError, match="an update's loss is"):
        TASK.check()
    spoil(lambda loss: 0.999 * loss + 0.001 * loss.detach())
    with pytest.raises(InputError, match="an update's gradient is"):
        TASK.check()
    spoil(lambda loss: loss * float("nan"))
    with pytest.raises(InputError, match="an update's loss is nan"):
        TASK.check()
    with pytest.raises(InputError, match="update 1 has loss nan"):
        TASK.ours(4, 1)


def test_as_the_presets_have_it(monkeypatch):
    made = []
    monkeypatch.setattr(ZhModernBertEncoderLayer, "compile", lambda layer, **options: made.append(layer.mlp.recompute))
    row = compare_updates("sdpa", 256, 2, "float32", SHAPE, True, throughput.resolve(Settings(device="cpu", repeats=1)))
    assert row["ratio"] > 0
    assert set(made) == {True}
    presets = [read_yaml(path) for path in sorted(Path(pretrain.__file__).parent.glob("configs/system_a/pretrain*.yaml"))]
    assert [(preset["compile"], preset["gradient_checkpointing"]) for preset in presets] == [("true", "mlp")] * 2


def test_updates_that_compile_are_left_out(monkeypatch):
    compile_ = ZhModernBertEncoderLayer.compile
    monkeypatch.setattr(
        ZhModernBertEncoderLayer, "compile", lambda layer, **options: compile_(layer, backend="eager", **options)
    )
    task = replace(TASK, rows=2, shape=SHAPE | {"num_hidden_layers": 1}, compile=True, recompute=True)
    leave("cpu")
    assert len(task.ours(2, 3)) in (1, 2), "the first compiles, and the second where a size was taken for fixed"
    leave("cpu")
    with pytest.raises(InputError, match="each of 2 updates compiled something"):
        task.turn(lambda rows_at_once, count: [], 2)


def test_the_trainer_leaves_precision_as_it_was(monkeypatch):
    seen = []
    original = ModernBertForMaskedLM.forward

    def forward(self, **batch):
        torch.backends.fp32_precision = "tf32"  # as TrainingArguments(torch_compile=True) does on a GPU
        seen.append(batch["input_ids"].dtype)
        return original(self, **batch)

    before = torch.backends.fp32_precision
    monkeypatch.setattr(ModernBertForMaskedLM, "forward", forward)
    TASK.peer("sdpa", 4, 1)
    assert seen
    assert torch.backends.fp32_precision == before
    assert torch.backends.cuda.matmul.allow_tf32 is False


def test_rows_are_taken_in_parts_where_they_do_not_fit():
    taken = []

    def side(rows_at_once, count):
        taken.append(rows_at_once)
        if rows_at_once > 2:
            raise torch.OutOfMemoryError
        return TASK.ours(rows_at_once, count)

    rows_at_once, memory = replace(TASK, rows=6).most_rows(side)
    assert (rows_at_once, taken) == (2, [6, 3, 2])
    assert memory > 0
    with pytest.raises(torch.OutOfMemoryError):
        TASK.most_rows(lambda rows_at_once, count: side(9, count))

    def broken(rows_at_once, count):
        raise RuntimeError("no kernel")

    with pytest.raises(RuntimeError, match="no kernel"):
        TASK.most_rows(broken)


@pytest.mark.parametrize("rows_at_once", [4, 1])
def test_the_trainer_makes_updates_of_all_rows(monkeypatch, rows_at_once):
    seen = []
    original = ModernBertForMaskedLM.forward

    def forward(self, **batch):
        seen.append(batch["input_ids"].shape)
        assert set(batch) <= {"input_ids", "labels", "num_items_in_batch"}, "no pads, no mask"
        return original(self, **batch)

    monkeypatch.setattr(ModernBertForMaskedLM, "forward", forward)
    assert len(TASK.peer("sdpa", rows_at_once, 3)) == 2
    assert seen == [(rows_at_once, 256)] * (3 * 4 // rows_at_once)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workload": ["512x4-articles"]}, "has full rows: the workload is TxB, not 512x4-articles"),
        ({"dtypes": ["float16"]}, "is in float32 or bfloat16, not in float16"),
        ({"peers": ["modernbert-eager"]}, "has no peers but modernbert-sdpa and"),
    ],
)
def test_what_cannot_be_compared(settings, message):
    with pytest.raises(InputError, match=message):
        throughput.main(Settings(device="cpu", modes=["pretraining"], **settings))
