"""Validation asks the same questions whoever asks, counts every row once, and agrees with the definitions."""

import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from tiny import TINY
from zh_modernbert import modeling_zh_modernbert as modeling
from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.tokenization_zh_modernbert import SPECIAL_TOKENS
from zh_modernbert.train import encode, pack, train_tokenizer
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.pretraining.validation import LENGTHS, MLM_PROBABILITY, Validation, ask_single, summarise
from zh_modernbert.train.rows.masking import IGNORE_INDEX, Masking
from zh_modernbert.train.rows.row_stream import PackedStream
from zh_modernbert.train.tokenizer.loading import load_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def config():
    shape = TINY | {"vocab_size": 512, "num_hidden_layers": 2, "max_position_embeddings": 256}
    return ZhModernBertConfig(**shape, sparse_prediction=True)


@pytest.fixture
def make(stages, held_out, config):
    def make(folder=held_out, training=stages / "packed", **changes):
        settings = {"eval_steps": 2, "max_steps": 5, "eval_rows": 9, "per_device_batch_size": 4, "seed": 0}
        settings["compile"] = False
        rows = PackedStream(training, {})
        settings = SimpleNamespace(validation_dir=str(folder), **settings | changes)
        return Validation(settings, rows, load_tokenizer(rows.tokenizer_dir), config)

    return make


@pytest.fixture
def model(config):
    return ZhModernBertForMaskedLM(config).train()


def test_when(make):
    assert [step for step in range(1, 6) if make().due(step)] == [2, 4, 5]
    assert [step for step in range(1, 6) if make(eval_steps=0).due(step)] == [5]


def test_layers_are_not_compiled_for_it(make, model):
    torch.compiler.reset()
    compiled, accelerator = [], Accelerator(cpu=True)
    plain = make()(model, accelerator)
    model.model.layers[0].compile(backend=lambda graph, inputs: compiled.append(graph) or graph)
    assert make(compile=True)(model, accelerator) | {"eval_runtime": 0} == plain | {"eval_runtime": 0}
    assert compiled == []
    model(input_ids=torch.ones(1, 8, dtype=torch.long))
    assert compiled, "after it they are compiled as ever"
    torch.compiler.reset()


def test_it_computes_in_the_precision_of_training(make, model, monkeypatch):
    """Under FSDP2 the model itself knows nothing of it."""
    seen, forward = set(), type(model).forward
    monkeypatch.setattr(
        type(model), "forward", lambda *given, **named: seen.add(torch.is_autocast_enabled("cpu")) or forward(*given, **named)
    )
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(accelerator, "autocast", lambda: torch.autocast("cpu", torch.bfloat16))
    make()(model, accelerator)
    assert seen == {True}


def test_questions_are_a_function_of_the_seed(make):
    places = range(9)
    first, again, other = (make(seed=seed).batch(places)[0]["labels"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_is_asked_is_hidden(make, stages):
    batch = make().batch(range(9))[0]
    asked = batch["labels"] != IGNORE_INDEX
    mask = load_tokenizer(stages / "tokenizer").mask_token_id
    assert torch.equal(batch["input_ids"] == mask, asked)
    assert (batch["labels"][asked] >= len(SPECIAL_TOKENS)).all()


def test_a_model_is_asked_the_same_however_the_rows_are_shared(make, model):
    """By processes of which one has a row less, and in batches of any size."""
    alone = make(per_device_batch_size=9).sums(model)
    assert model.training
    for processes in (2, 4):
        shares = [make(per_device_batch_size=2).sums(model, index, processes) for index in range(processes)]
        np.testing.assert_allclose(sum(shares), alone, rtol=1e-5)
    assert all(share.sum() > 0 for share in shares)


def test_every_row_once(make, model):
    """All rows asked for: as many predictions as a mask of 15%, and every token of the documents stands for one."""
    validation = make(eval_rows=10_000)
    assert validation.chosen == list(range(len(validation.rows)))
    words, single = validation.sums(model)
    special = len(SPECIAL_TOKENS)
    tokens, by_length = 0, np.zeros(len(LENGTHS))
    for number in range(len(validation.rows)):
        ids, _, bounds = validation.rows.row(number)
        for start, end in pairwise(bounds):
            count = int((ids[start:end] >= special).sum())
            tokens += count
            by_length[next(i for i, longest in enumerate(LENGTHS) if end - start <= longest)] += count
    assert (by_length[:2] > 0).all()
    assert single[:, 2].tolist() == by_length.tolist()
    assert words[:, 2].sum() == pytest.approx(MLM_PROBABILITY * tokens, rel=0.05)


@pytest.mark.parametrize(("rows", "times", "at_once"), [(64, 1, 32), (64, 1 / 8, 4), (4, 1 / 8, 1), (4, 8, 16)])
def test_it_takes_as_many_tokens_at_once_as_the_training(make, monkeypatch, rows, times, at_once):
    """Also where the rows of the training are shorter or longer: `times` as long."""
    length = make().rows.seq_len
    monkeypatch.setattr(
        PackedStream, "seq_len", property(lambda stream: int(length * times), lambda stream, value: None), raising=False
    )
    assert make(per_device_batch_size=rows).rows_at_once == at_once


def test_logits_are_computed_for_some_labels_at_a_time(make, model, monkeypatch):
    expected, sizes = make().sums(model), []
    monkeypatch.setattr(modeling, "LOSS_CHUNK", 5)
    model.decoder.register_forward_hook(lambda module, inputs, logits: sizes.append(logits.numel() // logits.shape[-1]))
    np.testing.assert_allclose(make().sums(model), expected, rtol=1e-5)
    assert max(sizes) == 5


def test_losses_are_the_model_s(make, model):
    """A whole-word mask's loss, from the model's own."""
    validation = make(eval_rows=1)
    batch, cells, weights = validation.batch(range(1))
    length = int(batch["cu_seqlens"][-1]) // 2
    ids, labels = batch["input_ids"][:, :length], batch["labels"][:, :length]
    bounds = batch["cu_seqlens"][batch["cu_seqlens"] <= length]
    expected = model.eval()(input_ids=ids, labels=labels, cu_seqlens=bounds).loss.item()
    assert summarise(validation.sums(model))["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert len(cells) == len(weights) == int((batch["labels"] != IGNORE_INDEX).sum())


def test_one_token_of_each_document():
    ids = np.array([2, 20, 21, 22, 3, 2, 3, 2, 30, 3])
    masking = Masking(64)
    seen = set()
    for seed in range(30):
        masked, labels, weights = ask_single(ids, None, np.array([0, 5, 7, 10]), masking, np.random.default_rng(seed))
        asked = np.flatnonzero(labels != IGNORE_INDEX).tolist()
        assert asked[0] in (1, 2, 3)
        assert asked[1:] == [8]  # the second document has nothing to ask
        assert weights[asked].tolist() == [3, 1]
        assert (masked[asked] == masking.mask_token_id).all()
        assert (np.delete(masked, asked) == np.delete(ids, asked)).all()
        seen.add(asked[0])
    assert seen == {1, 2, 3}


def test_sums_become_means_by_length():
    sums = np.zeros((2, len(LENGTHS), 3))
    sums[0, 0], sums[0, 2], sums[1, 0] = (30, 1, 10), (10, 4, 10), (2, 0, 4)
    found = summarise(sums)
    assert found == {
        "eval_masked_accuracy": 0.25,
        "eval_loss": 2.0,
        "eval_loss_128": 3.0,
        "eval_loss_1024": 1.0,
        "eval_pseudo_perplexity": math.exp(0.5),
        "eval_pseudo_perplexity_128": math.exp(0.5),
    }


def test_nothing_asked_has_no_loss():
    assert summarise(np.zeros((2, len(LENGTHS), 3))) == {"eval_masked_accuracy": 0.0}


def test_each_length_has_its_name():
    sums = np.zeros((2, len(LENGTHS), 3))
    sums[0, :, 0], sums[0, :, 2] = range(1, len(LENGTHS) + 1), 1
    found = summarise(sums)
    expected = {128: 1, 512: 2, 1024: 3, 8192: 4, 1048576: 5}
    assert {name: found[name] for name in found if name.startswith("eval_loss_")} == {
        f"eval_loss_{length}": loss for length, loss in expected.items()
    }


def test_rows_that_do_not_fit(make, stages, config, tmp_path):
    with pytest.raises(InputError, match="very rows of data_dir"):
        make(folder=stages / "packed")
    config.max_position_embeddings = 128
    with pytest.raises(InputError, match=r"rows of 256 tokens.*max_position_embeddings \(128\)"):
        make()
    with pytest.raises(InputError, match="nowhere"):
        make(folder=tmp_path / "nowhere")
    tokenizer = train_tokenizer.Settings(str(stages / "corpus"), str(tmp_path / "tokenizer"), vocab_size=320)
    train_tokenizer.main(tokenizer)
    encode.main(encode.Settings(str(stages / "corpus"), str(tmp_path / "tokenizer"), str(tmp_path / "encoded")))
    pack.main(pack.Settings(str(tmp_path / "encoded"), str(tmp_path / "packed"), seq_len=128))
    with pytest.raises(InputError, match="another tokenizer"):
        make(folder=tmp_path / "packed")
