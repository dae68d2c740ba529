"""What an update computes; and that it asks its device for nothing but three numbers at the end."""

import contextlib
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tiny import assert_same_gradients, build, gradients, make_documents, pack, pad
from zh_modernbert import modeling_zh_modernbert as modeling
from zh_modernbert.modeling_zh_modernbert import ZhModernBertEncoderLayer, ZhModernBertForMaskedLM
from zh_modernbert.train.pretraining.update import seed_update, skipped_rows, update

META = torch.device("meta")
# One process on a device without values: whatever asks it for one raises.
ACCELERATOR = SimpleNamespace(
    device=META,
    num_processes=1,
    no_sync=lambda model: contextlib.nullcontext(),
    autocast=contextlib.nullcontext,
    backward=lambda loss: loss.backward(),
    clip_grad_norm_=nn.utils.clip_grad_norm_,
    reduce=lambda tensor, kind: tensor,
)


def micro_batch(lengths):
    batch = pack(make_documents(lengths))
    labels = batch["input_ids"].masked_fill(torch.rand(batch["input_ids"].shape) > 0.3, -100)
    return {**batch, "labels": labels, "max_seqlen": max(lengths)}


@pytest.fixture
def asked(monkeypatch) -> list[torch.Size]:
    """The shapes of the tensors on the device that were read."""
    shapes = []
    tolist = torch.Tensor.tolist

    def noting(tensor):
        if tensor.device != META:
            return tolist(tensor)
        shapes.append(tensor.shape)
        return [1.0] * tensor.numel()

    monkeypatch.setattr(torch.Tensor, "tolist", noting)
    return shapes


@pytest.fixture
def on_a_gpu(monkeypatch):
    """As where the varlen kernel runs, which needs no values on the host either. A device without values has no autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *given, **options: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *device: False)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
    monkeypatch.setattr(modeling, "_varlen_attention_runs", lambda query, dropout: True)
    monkeypatch.setattr(modeling, "varlen_attn", lambda query, key, value, *given, window_size: query * key * value)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW], ids=lambda kind: kind.__name__)
def test_an_update_waits_for_its_device_once(asked, on_a_gpu, monkeypatch, optimizer):
    monkeypatch.setattr(modeling, "LOSS_CHUNK", 8)
    model = build().train().to(META)
    stream = iter([micro_batch(lengths) for lengths in ([30, 5, 9], [64], [20, 20], [7])])
    result = update(ACCELERATOR, model, stream, 3, list(model.parameters()), 1.0)
    assert asked == [(3,)], "loss, right predictions and the norm of the gradients"
    assert result["tokens"] == 44 + 64 + 40
    assert len(result["losses"]) == len(result["work"]) == 3
    assert next(stream)["max_seqlen"] == 7, "the next update's batch is still there"
    optimizer(model.parameters()).step()
    assert len(asked) == 1


ON_CPU = SimpleNamespace(**vars(ACCELERATOR) | {"device": torch.device("cpu"), "gather": lambda tensor: tensor})


def test_an_update_is_the_mean_over_its_masked_tokens():
    """Of micro-batches with more and fewer of them, one with none, as of one batch."""
    batches = [micro_batch(lengths) for lengths in ([30, 5, 9], [64], [20])]
    batches[2]["labels"].fill_(-100)
    model, together = build().train(), build().train()
    result = update(ON_CPU, model, iter(batches), 3, list(model.parameters()), 0.0)
    asked = [int((batch["labels"] != -100).sum()) for batch in batches]
    outputs = [together(**batch) for batch in batches]
    loss = sum(output.loss * count for output, count in zip(outputs, asked, strict=True))
    (loss / sum(asked)).backward()
    assert_same_gradients(gradients(model), gradients(together))
    norm = torch.stack([gradient.norm() for gradient in gradients(together).values()]).norm()
    right = [(output.logits.argmax(-1) == batch["labels"]).sum() for output, batch in zip(outputs, batches, strict=True)]
    assert (result["masked"], result["correct"], result["tokens"]) == (sum(asked), sum(right), 128)
    assert (result["loss"], result["grad_norm"]) == (pytest.approx(loss.item()), pytest.approx(norm.item(), rel=1e-4))
    assert [masked for _, masked in result["work"]] == asked


def test_gradients_are_clipped_to_a_norm():
    model = build().train()
    before = update(ON_CPU, model, iter([micro_batch([30])]), 1, list(model.parameters()), 0.01)["grad_norm"]
    after = torch.stack([gradient.norm() for gradient in gradients(model).values()]).norm()
    assert before > 0.1
    assert after == pytest.approx(0.01, rel=1e-3)


def test_an_update_without_masked_tokens_is_one_of_zeros():
    batch, model = micro_batch([9]), build().train()
    batch["labels"].fill_(-100)
    result = update(ON_CPU, model, iter([batch]), 1, list(model.parameters()), 1.0)
    assert (result["loss"], result["masked"], result["grad_norm"]) == (0.0, 0, 0.0)
    assert all((gradient == 0).all() for gradient in gradients(model).values())


@pytest.mark.parametrize(
    ("losses", "numbers"), [([1.0, math.inf, 2.0, math.nan], [1, 3]), ([1.0, 2.0, 3.0], [0, 1, 2])], ids=["some", "all"]
)
def test_rows_of_a_spoiled_update(losses, numbers):
    dataset = SimpleNamespace(rows_of=lambda step, number: [(step, number)])
    assert skipped_rows(ON_CPU, dataset, 7, torch.tensor(losses)) == [(7, number) for number in numbers]


def test_the_seed_of_an_update_never_changes():
    """A run that goes on with a newer release has to draw the dropout that it would have drawn."""
    seeds = []
    for given in ((0, 0, 0), (0, 1, 0), (0, 0, 1), (5, 1, 3)):
        seed_update(*given)
        seeds.append(torch.initial_seed())
    assert seeds == [2968811710, 3964924996, 3831201730, 1035894919]


def test_processes_add_their_gradients_up_once():
    """With the last micro-batch of an update, and not before."""
    events = []

    @contextlib.contextmanager
    def no_sync(model):
        events.append("alone")
        yield
        events.append("end")

    def backward(loss):
        events.append("backward")
        loss.backward()

    model = build().train()
    accelerator = SimpleNamespace(**vars(ON_CPU) | {"no_sync": no_sync, "backward": backward})
    update(accelerator, model, iter([micro_batch([9])] * 3), 3, list(model.parameters()), 1.0)
    assert events == ["alone", "backward", "end"] * 2 + ["backward"]


def test_what_is_not_asked_shows(on_a_gpu):
    """The test above can fail: bounds on the device have to be read, and raise there."""
    model = build().to(META)
    batch = {name: value.to(META) if torch.is_tensor(value) else value for name, value in micro_batch([30, 5]).items()}
    with pytest.raises((NotImplementedError, RuntimeError)):
        model(**batch, return_logits=False)


@pytest.mark.parametrize("head", ["Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"])
def test_a_forward_of_a_mask_on_cpu_waits_for_nothing(asked, on_a_gpu, head):
    model = build(getattr(modeling, f"ZhModernBert{head}")).eval().to(META)
    batch = pad(make_documents([30, 5, 9]))
    with torch.no_grad():
        output = model(batch["input_ids"].to(META), attention_mask=batch["attention_mask"])
    assert asked == []
    assert output[0].device == META


def test_a_mask_on_the_device_is_counted_once(asked):
    """The lengths are read, on the device or, as here, on CPU. Where the tokens are, the device sorts out."""
    real = pad(make_documents([30, 5, 9]), "holes")["attention_mask"].bool().flatten()
    on_device = SimpleNamespace(device=SimpleNamespace(type="cuda"), byte=real.byte)
    assert torch.equal(modeling.places_of(on_device, 44), modeling.places_of(real, 44))
    assert modeling.places_of(real.to(META), 44).shape == (44,)
    assert asked == []


def test_labels_on_the_device_are_counted_before_the_encoder(monkeypatch):
    order = []
    nonzero, forward = torch.Tensor.nonzero, ZhModernBertEncoderLayer.forward
    monkeypatch.setattr(torch.Tensor, "nonzero", lambda tensor: (order.append("count"), nonzero(tensor))[1])
    monkeypatch.setattr(ZhModernBertEncoderLayer, "forward", lambda *given: (order.append("layer"), forward(*given))[1])
    model: ZhModernBertForMaskedLM = build()
    model(**micro_batch([30, 5]), return_logits=False)
    assert order == ["count"] + ["layer"] * len(model.model.layers)
