"""The model's contract: documents see only themselves, however they come in; every backend gives the same numbers; pads are
zeros; half precision stays finite; losses add up over micro-batches."""

import math
from functools import cache
from itertools import product
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, modeling_flash_attention_utils
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils import logging as transformers_logging

from tiny import (
    HEADS,
    IGNORED,
    JUNK,
    LOSS_CASES,
    TINY,
    YARN,
    assert_close,
    assert_same_gradients,
    build,
    gradients,
    make_documents,
    pack,
    pad,
    plain_varlen,
)
from zh_modernbert import modeling_zh_modernbert as modeling
from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.modeling_zh_modernbert import (
    ZhModernBertForMaskedLM,
    ZhModernBertForMultipleChoice,
    ZhModernBertForQuestionAnswering,
    ZhModernBertForSequenceClassification,
    ZhModernBertForTokenClassification,
    ZhModernBertModel,
)

BACKENDS = ("eager", "sdpa")
pytestmark = pytest.mark.usefixtures("one_thread")
# On both sides of the half window of 64, of the window of 128, and of the blocks of queries.
LENGTHS = (1, 2, 63, 64, 65, 66, 127, 128, 129, 130, 200, 511, 700)


# --- helpers ----------------------------------------------------------------------------------------------------------


def per_document(tensor, batch, documents):
    """`(B, T, ...)` or packed `(1, N, ...)` -> the real tokens of each document."""
    if "cu_seqlens" in batch:
        return tensor[0].split([len(document) for document in documents])
    return [row[mask.bool()] for row, mask in zip(tensor, batch["attention_mask"], strict=True)]


def encode(model, documents, how):
    """Hidden states and logits of each document, given to the model in one of several ways."""
    batches = [pad([document]) for document in documents] if how == "alone" else [arrange(documents, how)]
    groups = [[document] for document in documents] if how == "alone" else [documents]
    states, logits = [], []
    with torch.no_grad():
        for batch, group in zip(batches, groups, strict=True):
            outputs = model(**batch, output_hidden_states=True)
            states += per_document(outputs.hidden_states[-1], batch, group)
            logits += per_document(outputs.logits, batch, group)
    return states, logits


def arrange(documents, how):
    return pack(documents) if how == "packed" else pad(documents, how)


@cache
def reference(window, lengths):
    """What the plain backend says of each document alone."""
    model = build(backend="eager", local_attention=window)
    return model, encode(model, make_documents(lengths), "alone")


# --- padded, packed and alone -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["right", "left", "holes", "packed", "alone"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_arrangement_equals_documents_alone(backend, how):
    expected_states, expected_logits = reference(128, LENGTHS)[1]
    model = build(backend=backend, local_attention=128)
    states, logits = encode(model, make_documents(LENGTHS), how)
    for length, *pair in zip(LENGTHS, states, expected_states, strict=True):
        assert_close(*pair, what=f"hidden states of {length} tokens")
    for length, *pair in zip(LENGTHS, logits, expected_logits, strict=True):
        assert_close(*pair, what=f"logits of {length} tokens")


@pytest.mark.parametrize("window", [0, 1, 2, 7, 8, 16, 33, 200])
def test_every_window_gives_the_same_on_every_backend(window):
    lengths = (1, 4, 5, 17, 63, 64, 65, 100, 130)
    expected = reference(window, lengths)[1][1]
    for backend in BACKENDS:
        model = build(backend=backend, local_attention=window)
        for how in ("right", "packed"):
            for actual, logits in zip(encode(model, make_documents(lengths), how)[1], expected, strict=True):
                assert_close(actual, logits, what=f"{backend}, {how}, {len(logits)} tokens")


@pytest.mark.parametrize(
    "lengths",
    [(5, 5, 5), (3, 9, 1), (64, 65), (65, 65), (66, 3), (130, 130, 130), (1,), (64, 64, 64, 64)],
    ids=lambda lengths: "-".join(map(str, lengths)),
)
def test_batches_of_equal_and_of_short_documents(lengths):
    # Documents within reach of the half window, and documents of one length, go other ways through SDPA.
    expected = reference(128, lengths)[1][1]
    model = build(local_attention=128)
    for how in ("right", "packed"):
        for actual, logits in zip(encode(model, make_documents(lengths), how)[1], expected, strict=True):
            assert_close(actual, logits, what=how)


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_may_hold_empty_documents(backend):
    documents = make_documents((0, 20, 0, 0, 33, 0))
    model = build(backend=backend)
    logits = model(**pack(documents)).logits
    assert_close(logits, model(**pack([documents[1], documents[4]])).logits)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", ["packed", "right"])
def test_a_changed_token_reaches_no_other_document(backend, how):
    documents = make_documents((40, 70, 40, 64, 5))
    model = build(backend=backend)
    before = encode(model, documents, how)[1]
    documents[1] = documents[1].clone()
    documents[1][[0, 35, 69]] = 8 + (documents[1][[0, 35, 69]] - 7) % 80
    after = encode(model, documents, how)[1]
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        change = (old - new).abs().max()
        assert (change > 1e-2) if index == 1 else (change <= 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("window", "length"), [(8, 40), (9, 40), (0, 20), (128, 200)])
def test_window_edges(backend, window, length):
    model = build(ZhModernBertModel, backend, num_hidden_layers=1, layer_types=["sliding_attention"], local_attention=window)
    (document,) = make_documents((length,))
    # Row j has token j changed; one document a row, and the unchanged one last.
    changed = document.repeat(length + 1, 1)
    changed.diagonal().copy_(8 + (document - 7) % 80)
    with torch.no_grad():
        states = model(changed).last_hidden_state
    change = (states[:-1] - states[-1]).abs().amax(-1)  # (j, i)
    position = torch.arange(length)
    inside = (position[:, None] - position).abs() <= window // 2
    assert change[~inside].max() <= 1e-6
    assert change[inside].min() > 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
def test_full_layers_see_the_whole_document(backend):
    model = build(ZhModernBertModel, backend, num_hidden_layers=1, layer_types=["full_attention"])
    ids = make_documents((90,))[0][None]
    other = ids.clone()
    other[0, 0] = JUNK
    assert (model(ids).last_hidden_state - model(other).last_hidden_state).abs().amax(-1).min() > 1e-5


def test_names_of_transformers_for_packed_input():
    model, batch = build(), pack(make_documents((9, 30, 4)))
    expected = model(**batch).logits
    theirs = {"input_ids": batch["input_ids"], "cu_seq_lens_q": batch["cu_seqlens"], "cu_seq_lens_k": batch["cu_seqlens"]}
    assert torch.equal(model(**theirs, max_length_q=30, max_length_k=30).logits, expected)
    assert torch.equal(model(**batch, max_seqlen=30).logits, expected)
    assert torch.equal(model(**batch, attention_mask=torch.ones(1, 43)).logits, expected)
    assert not torch.allclose(model(batch["input_ids"]).logits, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_positions_are_relative(backend):
    model, batch = build(backend=backend), pad(make_documents((30, 90)), "left")
    expected = model(**batch).logits
    places = batch["attention_mask"].cumsum(1)
    assert_close(model(**batch, position_ids=places + 37).logits, expected, 1e-4)
    assert (model(**batch, position_ids=places * 2).logits - expected).abs().max() > 1e-2
    # One row of positions serves all rows; the left pads shift the first document, which must not matter.
    assert_close(model(**batch, position_ids=torch.arange(90)[None]).logits, expected, 1e-4)


def test_positions_of_all_rows_at_once():
    model, ids, positions = build(), torch.stack(make_documents((10, 10))), torch.arange(0, 20, 2)
    expected = model(ids, position_ids=positions.repeat(2, 1)).logits
    for given in (positions, positions[None]):
        assert torch.equal(model(ids, position_ids=given).logits, expected)


def test_embeddings_in_place_of_ids():
    for batch in (pad(make_documents((9, 30)), "left"), pack(make_documents((9, 30)))):
        model = build()
        expected = model(**batch).logits
        embeds = model.get_input_embeddings()(batch.pop("input_ids"))
        assert torch.equal(model(inputs_embeds=embeds, **batch).logits, expected)


# --- gradients --------------------------------------------------------------------------------------------------------

GRADIENT_LENGTHS = (1, 2, 17, 40, 63, 64, 65, 130)


def mlm_gradients(backend, how):
    """Gradients of the sum of all tokens' losses, over a common divisor."""
    documents = make_documents(GRADIENT_LENGTHS)
    labels = make_documents(GRADIENT_LENGTHS, seed=3)
    model = build(backend=backend)
    for some in [[i] for i in range(len(documents))] if how == "alone" else [range(len(documents))]:
        batch = arrange([documents[i] for i in some], "right" if how == "alone" else how)
        targets = arrange([labels[i] for i in some], "right" if how == "alone" else how)["input_ids"]
        if "attention_mask" in batch:
            targets = targets.masked_fill(batch["attention_mask"] == 0, IGNORED)
        model(**batch, labels=targets, num_items_in_batch=sum(GRADIENT_LENGTHS)).loss.backward()
    return gradients(model)


@cache
def reference_gradients():
    return mlm_gradients("eager", "alone")


@pytest.mark.parametrize("how", ["right", "left", "packed", "alone"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_the_sum_over_documents(backend, how):
    expected = reference_gradients()
    assert expected.keys() == dict(build().named_parameters()).keys()
    assert all(gradient.abs().max() > 0 for gradient in expected.values())
    assert_same_gradients(mlm_gradients(backend, how), expected)


def test_gradient_checkpointing_gives_the_same_gradients(monkeypatch):
    calls = []
    original = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
    batch = pad(make_documents((9, 30)))
    found, counts = [], []
    for checkpointing in (False, True):
        calls.clear()
        model = build().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        found.append(gradients(model))
        counts.append(len(calls))
    assert counts[1] == 2 * counts[0]  # it did compute the layers again
    assert_same_gradients(found[1], found[0], 1e-6)


class CountProducts(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.products = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.products += function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_recomputed_mlps_give_the_same_gradients_and_keep_less(dropout):
    """Without a matrix product more, and with the same tokens dropped."""
    batch, found = pad(make_documents((9, 30))), []
    for recompute in (False, True):
        model, kept = build(mlp_dropout=dropout).train(), {}
        for layer in model.model.layers:
            layer.mlp.recompute = recompute
        parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

        def keep(tensor, parameters=parameters, kept=kept):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        torch.manual_seed(0)
        with CountProducts() as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(**batch, labels=batch["input_ids"]).loss
            bytes_kept = sum(kept.values())
            loss.backward()
        found.append((gradients(model), counter.products, bytes_kept))
    (plain, products, most), (ours, same, less) = found
    assert_same_gradients(ours, plain, 1e-6)
    assert same == products
    config, tokens = model.config, int(batch["attention_mask"].sum())
    assert most - less >= 2 * 4 * config.num_hidden_layers * tokens * config.intermediate_size  # gate's product and factor


# --- pads -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("side", ["right", "left", "holes"])
def test_pads_come_out_as_zeros(backend, side):
    batch = pad(make_documents((9, 30, 1)), side)
    outputs = build(backend=backend)(**batch, output_hidden_states=True)
    pads = batch["attention_mask"] == 0
    for tensor in (*outputs.hidden_states, outputs.logits):
        assert (tensor[pads] == 0).all()
        assert (tensor[~pads] != 0).any(-1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [(0, 30, 9), (30, 0, 30), (9, 0), (0, 0)], ids=lambda lengths: "-".join(map(str, lengths)))
def test_rows_of_pads_only(lengths, backend, dtype):
    documents = make_documents(lengths)
    batch = pad([*documents, torch.arange(12)])
    batch = {name: tensor[:-1] for name, tensor in batch.items()}  # also a batch of pads only is 12 wide
    model = build(backend=backend).to(dtype)
    outputs = model(**batch, labels=batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED))
    assert outputs.logits.isfinite().all()
    assert (outputs.logits[torch.tensor(lengths) == 0] == 0).all()
    assert outputs.loss.isfinite()
    outputs.loss.backward()
    found = gradients(model)
    assert all(gradient.isfinite().all() for gradient in found.values())
    if any(lengths):
        real = [document for document in documents if len(document)]
        alone = pad(real)
        expected = build(backend=backend).to(dtype)(**alone).logits
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        for actual, wanted in zip(
            per_document(
                outputs.logits[torch.tensor(lengths) > 0],
                alone | {"attention_mask": batch["attention_mask"][torch.tensor(lengths) > 0]},
                real,
            ),
            per_document(expected, alone, real),
            strict=True,
        ):
            assert_close(actual, wanted, tolerance)


HARD_MASK = torch.zeros(6, 120, dtype=torch.long)  # with a window of 16, most windows hold pads only
for row, places in enumerate(([], [0], [119], [*range(5), *range(70, 90)], range(50, 60), range(0, 120, 40))):
    HARD_MASK[row, list(places)] = 1
NO_TOKEN = torch.zeros(2, 120, dtype=torch.long)


def run_finitely(model, mask):
    """The last hidden states and logits of a batch with this mask; pads are zeros, and all outputs and gradients finite."""
    ids = torch.full(mask.shape, JUNK).masked_scatter(mask.bool(), make_documents((int(mask.sum()),))[0])
    batch = {"input_ids": ids, "attention_mask": mask}
    if isinstance(model, ZhModernBertForQuestionAnswering):
        batch |= {"start_positions": mask.argmax(1), "end_positions": mask.argmax(1)}
    elif isinstance(model, ZhModernBertForMultipleChoice):
        batch = {name: tensor.unflatten(0, (-1, 2)) for name, tensor in batch.items()}
        batch["labels"] = torch.ones(len(mask) // 2, dtype=torch.long)
    elif isinstance(model, ZhModernBertForSequenceClassification):
        batch["labels"] = torch.ones(len(mask), dtype=torch.long)
    else:
        batch["labels"] = (ids % 2).masked_fill(mask == 0, IGNORED)
    outputs = model(**batch, output_hidden_states=True)
    outputs.loss.backward()
    states = outputs.hidden_states[-1]
    assert (states[mask == 0] == 0).all()
    assert all(tensor.isfinite().all() for name, tensor in outputs.items() if name != "hidden_states")
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())
    logits = [tensor for name, tensor in outputs.items() if "logits" in name]
    return states, *(tensor[mask.bool()] if tensor.shape[:2] == mask.shape else tensor for tensor in logits)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm_type", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize("head", HEADS)
def test_every_weight_has_a_gradient_after_a_batch_of_pads_only(head, norm_type, backend):
    """DDP waits for all of them, and stops at the next update if one did not come."""
    model = build(HEADS[head], backend, norm_type=norm_type)
    run_finitely(model, NO_TOKEN)
    assert gradients(model).keys() == dict(model.named_parameters()).keys()


HALF_TOLERANCE = {torch.float16: 0.02, torch.bfloat16: 0.1}


def assert_finite_in_half_precision(mask, dtype, *arguments, **changes):
    expected = run_finitely(build(*arguments, **changes), mask)
    for pair in zip(run_finitely(build(*arguments, **changes).to(dtype), mask), expected, strict=True):
        assert_close(*pair, HALF_TOLERANCE[dtype])


@pytest.mark.parametrize("mask", [HARD_MASK, NO_TOKEN], ids=["some", "none"])
@pytest.mark.parametrize("dtype", HALF_TOLERANCE, ids=["fp16", "bf16"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("head", HEADS)
def test_windows_of_pads_only(head, pooling, backend, dtype, mask):
    assert_finite_in_half_precision(mask, dtype, HEADS[head], backend, classifier_pooling=pooling)


@pytest.mark.parametrize("dtype", HALF_TOLERANCE, ids=["fp16", "bf16"])
@pytest.mark.parametrize("head", HEADS)
def test_8192_tokens_in_half_precision(head, dtype):
    # The full layer once; for the other heads what is their own.
    layers = ["full_attention", "sliding_attention"] if head == "MaskedLM" else ["sliding_attention"]
    changes = {"hidden_size": 16, "num_attention_heads": 1, "local_attention": 128, "max_position_embeddings": 8192}
    changes |= {"num_hidden_layers": len(layers), "layer_types": layers}
    mask = (torch.arange(8192) < torch.tensor([8192, 1, 0, 65])[:, None]).long()
    assert_finite_in_half_precision(mask, dtype, HEADS[head], classifier_pooling="mean", **changes)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_token(backend):
    outputs = build(ZhModernBertModel, backend)(torch.tensor([[9]])).last_hidden_state
    assert outputs.shape == (1, 1, 32)
    assert outputs.isfinite().all()
    # A single token attends only to itself: the attention is its value, whatever its position.
    assert_close(build(ZhModernBertModel, backend)(torch.tensor([[9]]), position_ids=torch.tensor([[500]]))[0], outputs)


# --- memory of the window ---------------------------------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements of any tensor that an operation returned."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **kwargs or {})
        sizes = [leaf.numel() for leaf in tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return outputs


@pytest.fixture
def seen(monkeypatch) -> list[int]:
    """The keys that each call of SDPA got."""
    keys, original = [], F.scaled_dot_product_attention

    def spy(query, key, value, **kwargs):
        keys.append(key.shape[-2])
        return original(query, key, value, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    return keys


@pytest.mark.parametrize("how", ["packed", "right"])
def test_window_layers_make_nothing_quadratic(seen, how):
    length = 2000
    model = build(
        ZhModernBertModel,
        num_hidden_layers=2,
        layer_types=["sliding_attention"] * 2,
        local_attention=128,
        max_position_embeddings=length,
    )
    batch = arrange(make_documents((length, 20)), how)
    with LargestTensor() as largest:
        model(**batch).last_hidden_state.sum().backward()
    assert len(seen) == 2
    assert max(seen) <= 64 + 128
    assert largest.elements < length * length // 4


@pytest.mark.parametrize(
    ("lengths", "keys"),
    [
        ((30, 70, 100, 100, 7), [30, 70, 100, 7]),  # 264 tokens, which blocks of 64 would give 192 keys each
        ((30, 230, 230), [192]),
        ((192, 192), [192]),
        ((193, 193), [192]),
        ((40, 60), [40, 60]),
    ],
)
def test_window_layers_go_by_documents_where_these_are_less_than_blocks(seen, lengths, keys):
    model = build(ZhModernBertModel, num_hidden_layers=1, layer_types=["sliding_attention"], local_attention=128)
    with torch.no_grad():
        model(**pack(make_documents(lengths)))
    assert seen == keys


def test_a_wide_window_costs_short_documents_nothing():
    # Documents far shorter than the window: what is made must grow with the documents, not with the window.
    model = build(ZhModernBertModel, num_hidden_layers=1, layer_types=["sliding_attention"], local_attention=100_000)
    with LargestTensor() as largest, torch.no_grad():
        model(**pack(make_documents((10, 20))))
    assert largest.elements < 100_000


# --- masked language modelling ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["right", "packed"])
def test_sparse_prediction_equals_dense(how):
    batch = arrange(make_documents((9, 30, 17)), how)
    labels = batch["input_ids"].masked_fill(torch.rand(batch["input_ids"].shape) < 0.8, IGNORED)
    if how == "right":
        labels = labels.masked_fill(batch["attention_mask"] == 0, IGNORED)
    model = build()
    dense = model(**batch, labels=labels)
    model.config.sparse_prediction = True
    sparse = model(**batch, labels=labels)
    asked = labels != IGNORED
    assert 3 < asked.sum() < 30
    assert sparse.logits.shape == (asked.sum(), 96)
    assert_close(sparse.logits, dense.logits[asked])
    assert_close(sparse.loss, dense.loss)
    assert_close(sparse.loss, F.cross_entropy(dense.logits[asked], labels[asked]))
    assert model(**batch).logits.shape == dense.logits.shape  # without labels, everything


@pytest.mark.parametrize(
    ("chunk", "items", "compiled"),
    [(1, None, False), (7, torch.tensor(20), False), (1024, 20, False), (20, 20, True)],
    ids=["one-by-one", "chunks", "at-once", "compiled"],
)
def test_a_loss_without_logits_is_the_loss(monkeypatch, chunk, items, compiled):
    monkeypatch.setattr(modeling, "LOSS_CHUNK", chunk)
    batch = arrange(make_documents((9, 30, 17)), "packed")
    labels = batch["input_ids"].masked_fill(torch.rand(batch["input_ids"].shape) < 0.6, IGNORED)
    whole, chunked = (build(sparse_prediction=True, decoder_bias=True, num_hidden_layers=1) for _ in range(2))
    expected = whole(**batch, labels=labels, num_items_in_batch=items)
    run = torch.compile(chunked, backend="aot_eager") if compiled else chunked
    found = run(**batch, labels=labels, num_items_in_batch=items, return_logits=False)
    assert found.logits is None
    assert torch.equal(found.predictions, expected.logits.argmax(-1))
    assert_close(found.losses, F.cross_entropy(expected.logits, labels[labels != IGNORED], reduction="none"), 1e-6)
    assert not found.losses.requires_grad
    assert_close(found.loss, expected.loss, 1e-6)
    for loss in (expected.loss, found.loss):
        loss.backward()
    assert_same_gradients(gradients(chunked), gradients(whole), 1e-6)
    torch.compiler.reset()


def test_chunks_of_a_loss_add_their_gradients_in_float32(monkeypatch):
    """Under autocast: eighty chunks are as far from float32 as one is."""
    sizes = {"vocab_size": 512, "num_hidden_layers": 1, "tie_word_embeddings": False, "decoder_bias": True}
    model, batch = build(**sizes), pack(make_documents((400, 400)))

    def gradients_with(chunk: int, enabled: bool = True) -> dict:
        monkeypatch.setattr(modeling, "LOSS_CHUNK", chunk)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled):
            model(**batch, labels=batch["input_ids"], return_logits=False).loss.backward()
        return gradients(model)

    exact, whole, chunked = gradients_with(800, enabled=False), gradients_with(800), gradients_with(10)
    for name in ("decoder.weight", "decoder.bias"):
        off, at_least = ((found[name] - exact[name]).norm() / exact[name].norm() for found in (chunked, whole))
        assert off < 1.1 * at_least, name


def test_a_loss_without_logits_never_holds_them(monkeypatch):
    monkeypatch.setattr(modeling, "LOSS_CHUNK", 50)
    model, batch = build(vocab_size=5000), pack(make_documents((300, 200)))
    with LargestTensor() as largest:
        model(**batch, labels=batch["input_ids"], return_logits=False).loss.backward()
    assert largest.elements <= max(50 * 5000, model.decoder.weight.numel())


@pytest.mark.parametrize("changes", [{}, {"return_logits": False}], ids=str)
@pytest.mark.parametrize("sparse", [False, True])
def test_no_label_at_all_gives_a_loss_of_zero(sparse, changes):
    model, batch = build(sparse_prediction=sparse), pad(make_documents((9, 30)))
    loss = model(**batch, labels=torch.full((2, 30), IGNORED), **changes).loss
    loss.backward()
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients(model).values())


@pytest.mark.parametrize("case", LOSS_CASES)
@pytest.mark.parametrize("none", [0, torch.tensor(0)], ids=["int", "tensor"])
def test_a_count_of_no_labels_gives_a_finite_loss(case, none):
    head, changes = LOSS_CASES[case]
    batch = loss_batch(case)[0]
    for name in {"labels", "start_positions", "end_positions"} & batch.keys():
        if not batch[name].is_floating_point():
            batch[name] = torch.full_like(batch[name], IGNORED)
    model = build(HEADS[head], **changes)
    for more in [{}, {"return_logits": False}] if head == "MaskedLM" else [{}]:
        loss = model(**batch, **more, num_items_in_batch=none).loss
        loss.backward()
        assert loss == 0 or batch["labels"].is_floating_point()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


# --- losses over micro-batches ----------------------------------------------------------------------------------------


def loss_batch(case):
    """Eight examples with unequal numbers of labels, and the number of labels as the Trainer counts them."""
    documents = make_documents((30, 9, 1, 22, 4, 16, 29, 3))
    batch = pad(documents)
    real = batch["attention_mask"].bool()
    head = LOSS_CASES[case][0]
    if head == "QuestionAnswering":
        last = torch.tensor([len(document) - 1 for document in documents])
        return batch | {"start_positions": last // 2, "end_positions": last}, 8
    if head == "MultipleChoice":
        batch = {name: tensor[:, None].repeat(1, 3, 1) for name, tensor in batch.items()}
        batch["input_ids"][:, 1:, 0] = torch.tensor([20, 21])
        labels = torch.tensor([0, 2, 1, 1, IGNORED, 0, IGNORED, 2])
    elif head == "SequenceClassification":
        labels = {
            "single-label": torch.tensor([0, 2, 1, 1, IGNORED, 0, IGNORED, 2]),
            "multi-label": torch.randint(0, 2, (8, 3)).float(),
            "regression": torch.randn(8),
        }[case]
    else:
        limit = 96 if head == "MaskedLM" else 5
        labels = torch.randint(0, limit, real.shape).masked_fill(~real, IGNORED)
        labels[4:] = labels[4:].masked_fill(torch.rand(4, real.shape[1]) < 0.5, IGNORED)
    return batch | {"labels": labels}, (labels != IGNORED).sum()


def pack_rows(batch):
    """A padded batch with its labels, packed."""
    real = batch["attention_mask"].bool()
    packed = {name: tensor[real][None] if tensor.shape == real.shape else tensor for name, tensor in batch.items()}
    del packed["attention_mask"]
    return packed | {"cu_seqlens": F.pad(real.sum(1).cumsum(0), (1, 0)).int()}


@pytest.mark.parametrize("case", LOSS_CASES)
@pytest.mark.parametrize("number", [int, torch.tensor], ids=["int", "tensor"])
def test_losses_of_micro_batches_add_up(case, number):
    head, changes = LOSS_CASES[case]
    batch, items = loss_batch(case)
    whole, parts = build(HEADS[head], **changes), build(HEADS[head], **changes)
    expected = whole(**batch).loss
    expected.backward()
    total = 0
    for half in (slice(0, 4), slice(4, 8)):
        micro_batch = {name: tensor[half] for name, tensor in batch.items()}
        loss = parts(**micro_batch, num_items_in_batch=number(int(items))).loss
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(gradients(parts), gradients(whole))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [case for case in LOSS_CASES if case != "MultipleChoice"])  # its choices are rows
def test_a_packed_row_gives_the_losses_and_gradients_of_its_documents_alone(case, backend):
    head, changes = LOSS_CASES[case]
    batch, items = loss_batch(case)
    packed = pack_rows(batch)
    real = batch.pop("attention_mask").bool()
    whole, alone = (build(HEADS[head], backend, **changes) for _ in range(2))
    loss = whole(**packed, num_items_in_batch=items).loss
    loss.backward()
    total = 0
    for row, is_real in enumerate(real):
        document = {
            name: tensor[row : row + 1, is_real] if tensor.shape == real.shape else tensor[row : row + 1]
            for name, tensor in batch.items()
        }
        part = alone(**document, num_items_in_batch=items).loss
        part.backward()
        total += part.item()
    assert total == pytest.approx(loss.item(), rel=1e-5)
    assert_same_gradients(gradients(whole), gradients(alone))


# --- layers on several devices ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("case", "how"), [*product(LOSS_CASES, ["padded"]), *((case, "packed") for case in LOSS_CASES if case != "MultipleChoice")]
)
def test_half_of_the_layers_may_be_on_another_device(case, how, backend):
    """As `device_map` has it. The other device has shapes and no values, and refuses what is on the first one."""
    head, changes = LOSS_CASES[case]
    batch = loss_batch(case)[0]
    batch = pack_rows(batch) if how == "packed" else batch
    model = build(HEADS[head], backend, **changes | {"classifier_pooling": "mean"})
    expected = model(**batch, output_hidden_states=True)
    second = [*model.model.layers[2:], model.model.final_norm]
    for module in second + [module for name, module in model.named_children() if name != "model"]:
        add_hook_to_module(module, AlignDevicesHook("meta", place_submodules=True))
    outputs = model(**batch, output_hidden_states=True)
    assert {name: tensor.shape for name, tensor in outputs.items() if torch.is_tensor(tensor)} == {
        name: tensor.shape for name, tensor in expected.items() if torch.is_tensor(tensor)
    }
    assert outputs.loss.device.type == "meta"
    assert [states.device.type for states in outputs.hidden_states] == ["cpu"] * 3 + ["meta"] * 2
    assert [states.shape for states in outputs.hidden_states] == [states.shape for states in expected.hidden_states]


def test_a_loss_without_logits_where_the_head_is_on_another_device():
    batch, _ = loss_batch("MaskedLM")
    model = build()
    expected = model(**batch, return_logits=False)
    for module in (model.head, model.decoder):
        add_hook_to_module(module, AlignDevicesHook("meta", place_submodules=True))
    outputs = model(**batch, return_logits=False)
    for name, tensor in expected.items():
        assert (outputs[name].device.type, outputs[name].shape) == ("meta", tensor.shape)


def test_a_layout_has_one_copy_on_each_device():
    batch = pad(make_documents((9, 30)))
    layout = build().get_layout(**batch)
    assert layout.to("cpu") is layout.to(torch.device("cpu")) is layout
    copy = layout.to("meta")
    assert copy is layout.to(torch.device("meta"))
    assert copy.grid_mask(4) is layout.to("meta").grid_mask(4)
    assert {part.device.type for part in vars(copy).values() if torch.is_tensor(part)} == {"meta"}
    assert (copy.lengths, copy.input_shape) == ((9, 30), (2, 30))


# --- heads ------------------------------------------------------------------------------------------------------------

HEAD_LENGTHS = (9, 30, 1, 22)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("how", ["right", "left", "holes", "packed"])
def test_sequence_classification_pools_real_tokens(pooling, how):
    documents = make_documents(HEAD_LENGTHS)
    model = build(ZhModernBertForSequenceClassification, classifier_pooling=pooling, num_labels=3)
    logits = model(**arrange(documents, how)).logits
    assert logits.shape == (4, 3)
    for row, document in zip(logits, documents, strict=True):
        states = model.model(document[None]).last_hidden_state[0]
        pooled = states[0] if pooling == "cls" else states.mean(0)
        assert_close(row, model.classifier(model.head(pooled)))


@pytest.mark.parametrize("how", ["right", "left", "packed"])
def test_token_classification_shape_and_loss(how):
    documents, labels = make_documents(HEAD_LENGTHS), [document % 5 for document in make_documents(HEAD_LENGTHS, seed=4)]
    model = build(ZhModernBertForTokenClassification, num_labels=5)
    batch = arrange(documents, how)
    targets = arrange(labels, how)["input_ids"]
    targets = targets.masked_fill(batch.get("attention_mask", torch.ones(())) == 0, IGNORED)
    outputs = model(**batch, labels=targets)
    assert outputs.logits.shape == (*batch["input_ids"].shape, 5)
    alone = [model(document[None]).logits[0] for document in documents]
    for actual, expected in zip(per_document(outputs.logits, batch, documents), alone, strict=True):
        assert_close(actual, expected)
    assert_close(outputs.loss, F.cross_entropy(torch.cat(alone), torch.cat(labels)))


@pytest.mark.parametrize("how", ["right", "left", "packed"])
def test_question_answering_counts_positions_from_the_document(how):
    documents = make_documents(HEAD_LENGTHS)
    starts, ends = torch.tensor([0, 13, 0, 21]), torch.tensor([8, 29, 0, 21])
    model, batch = build(ZhModernBertForQuestionAnswering), arrange(documents, how)
    shift = 30 - torch.tensor(HEAD_LENGTHS) if how == "left" else 0  # padded, positions are columns of the row
    outputs = model(**batch, start_positions=starts + shift, end_positions=ends + shift)
    assert outputs.start_logits.shape == outputs.end_logits.shape == batch["input_ids"].shape
    expected = []
    for row, document in enumerate(documents):
        alone = model(document[None], start_positions=starts[row : row + 1], end_positions=ends[row : row + 1])
        assert_close(per_document(outputs.start_logits, batch, documents)[row], alone.start_logits[0])
        assert_close(per_document(outputs.end_logits, batch, documents)[row], alone.end_logits[0])
        by_hand = [
            F.cross_entropy(alone.start_logits, starts[row : row + 1]),
            F.cross_entropy(alone.end_logits, ends[row : row + 1]),
        ]
        assert_close(alone.loss, sum(by_hand) / 2)
        expected.append(alone.loss)
    assert_close(outputs.loss, sum(expected) / 4)
    if how != "packed":  # an answer is never read off a pad
        assert outputs.start_logits[batch["attention_mask"] == 0].max() < -1e30


@pytest.mark.parametrize("how", ["right", "left", "packed"])
def test_question_answering_ignores_positions_outside_the_document(how):
    # As where the answer was truncated away. The first document has 9 tokens; its answer lies past them.
    documents = make_documents((9, 30))
    outside = 3 if how == "left" else 15
    model, batch = build(ZhModernBertForQuestionAnswering), arrange(documents, how)
    loss = model(**batch, start_positions=torch.tensor([outside, 4]), end_positions=torch.tensor([outside, 6])).loss
    expected = model(documents[1][None], start_positions=torch.tensor([4]), end_positions=torch.tensor([6])).loss
    assert_close(loss, expected)


@pytest.mark.parametrize("outside", [-1, 30, 1000])
def test_question_answering_ignores_positions_outside_the_row(outside):
    documents = make_documents((30, 30))
    model = build(ZhModernBertForQuestionAnswering)
    loss = model(**pad(documents), start_positions=torch.tensor([outside, 4]), end_positions=torch.tensor([outside, 6])).loss
    expected = model(documents[1][None], start_positions=torch.tensor([4]), end_positions=torch.tensor([6])).loss
    assert_close(loss, expected)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_multiple_choice(pooling, side):
    documents = make_documents((9, 30, 1, 22, 5, 5))
    model = build(ZhModernBertForMultipleChoice, classifier_pooling=pooling)
    batch = {name: tensor.view(2, 3, 30) for name, tensor in pad(documents, side).items()}
    outputs = model(**batch, labels=torch.tensor([1, 2]))
    assert outputs.logits.shape == (2, 3)
    alone = torch.stack([model(document[None, None]).logits[0, 0] for document in documents]).view(2, 3)
    assert_close(outputs.logits, alone)
    assert_close(outputs.loss, F.cross_entropy(alone, torch.tensor([1, 2])))
    embeds = model.get_input_embeddings()(batch["input_ids"])
    assert_close(model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits, alone)
    with pytest.raises(ValueError, match="batch, choices, tokens"):
        model(batch["input_ids"][0])


def test_kinds_of_sequence_classification_losses():
    batch = pad(make_documents(HEAD_LENGTHS))

    def check(labels, expected_loss, kind, **changes):
        model = build(ZhModernBertForSequenceClassification, **changes)
        outputs = model(**batch, labels=labels)
        assert_close(outputs.loss, expected_loss(outputs.logits), what=kind)
        assert model.config.problem_type == kind

    classes, several, numbers = torch.tensor([0, 2, 1, 1]), torch.randint(0, 2, (4, 3)).float(), torch.randn(4, 3)
    check(classes, lambda logits: F.cross_entropy(logits, classes), "single_label_classification", num_labels=3)
    check(
        several,
        lambda logits: F.binary_cross_entropy_with_logits(logits, several),
        "multi_label_classification",
        num_labels=3,
    )
    one = numbers[:, 0]
    check(one, lambda logits: F.mse_loss(logits[:, 0], one), "regression", num_labels=1)
    check(one[:, None], lambda logits: F.mse_loss(logits[:, 0], one), "regression", num_labels=1)
    check(numbers, lambda logits: F.mse_loss(logits, numbers), "regression", num_labels=3, problem_type="regression")


# --- recorded outputs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["left", "packed"])
def test_hidden_states(how):
    documents = make_documents((9, 30))
    batch = arrange(documents, how)
    model = build()
    bare = model.model(**batch, output_hidden_states=True)
    assert len(bare.hidden_states) == 5
    assert torch.equal(bare.hidden_states[-1], bare.last_hidden_state)
    assert_close(
        per_document(bare.hidden_states[0], batch, documents)[1], model.model.embeddings(documents[1]), what="embeddings"
    )
    assert all(states.shape == bare.last_hidden_state.shape for states in bare.hidden_states)
    headed = model(**batch, output_hidden_states=True)
    assert all(torch.equal(*pair) for pair in zip(headed.hidden_states, bare.hidden_states, strict=True))
    assert model(**batch).hidden_states is None
    model.config.output_hidden_states = True
    assert len(model(**batch).hidden_states) == 5


@pytest.mark.parametrize("how", ["left", "packed"])
def test_hidden_states_have_gradients(how):
    model, batch = build(), arrange(make_documents((9, 30)), how)
    for module in (model.model, model):
        outputs = module(**batch, output_hidden_states=True)
        for gradient in torch.autograd.grad(outputs[0].square().sum(), outputs.hidden_states):
            assert gradient.abs().max() > 0


@pytest.mark.parametrize("how", ["right", "left", "packed"])
def test_attention_weights(how):
    lengths = (9, 30, 17)
    documents = make_documents(lengths)
    model = build(backend="eager")
    batch = arrange(documents, how)
    attentions = model(**batch, output_attentions=True).attentions
    assert len(attentions) == 4
    mask = pad(documents, "right" if how == "packed" else how)["attention_mask"].bool()
    position = torch.arange(30)
    near = (position[:, None] - position).abs() <= 8
    for weights, layer_type in zip(attentions, model.config.layer_types, strict=True):
        assert weights.shape == (3, 2, 30, 30)
        for row, real in zip(weights, mask, strict=True):
            visible = real.expand(30, 30) & (near if layer_type == "sliding_attention" else True)
            rows = row[:, real]  # what a pad attends to means nothing
            assert_close(rows.sum(-1), torch.ones_like(rows.sum(-1)))
            assert (rows[:, ~visible[real]] == 0).all()
            assert (rows[:, visible[real]] > 0).all()


@pytest.mark.parametrize("head", HEADS)
def test_every_head_takes_and_gives_what_the_encoder_does(head):
    model, batch = build(HEADS[head], "eager"), pad(make_documents((9, 30, 17, 1)), "left")
    recorded = model.model(**batch, output_hidden_states=True, output_attentions=True)
    if head == "MultipleChoice":
        batch = {name: tensor.unflatten(0, (2, 2)) for name, tensor in batch.items()}
    plain = model(**batch)
    assert plain.hidden_states is plain.attentions is None
    outputs = model(**batch, output_hidden_states=True, output_attentions=True)
    for name in ("hidden_states", "attentions"):
        assert all(torch.equal(*pair) for pair in zip(outputs[name], recorded[name], strict=True))
    embeds = model.get_input_embeddings()(batch["input_ids"])
    from_embeds = model(inputs_embeds=embeds, attention_mask=batch["attention_mask"])
    # Some tokenizers give token types, as BERT's do; this model has none.
    with_types = model(**batch, token_type_ids=torch.ones_like(batch["input_ids"]))
    for name, tensor in plain.items():
        assert all(torch.equal(other[name], tensor) for other in (outputs, from_embeds, with_types))


def test_attention_weights_of_other_backends_are_those_of_eager(monkeypatch):
    warnings = []
    transformers_logging.warning_once.cache_clear()  # another test may have had the warning
    monkeypatch.setattr(modeling.logger, "warning", lambda message, *more: warnings.append(message))
    monkeypatch.setitem(AttentionInterface._global_mapping, "without_weights", modeling._padded_sdpa)
    batch = pad(make_documents((9, 30, 17)), "left")
    expected = build(backend="eager")(**batch, output_attentions=True)
    for backend in ("sdpa", "flash_attention_2", "without_weights"):
        model = build()
        model.config._attn_implementation = backend
        for _ in range(2):
            outputs = model(**batch, output_attentions=True)
            assert torch.equal(outputs.logits, expected.logits)
            assert all(torch.equal(*pair) for pair in zip(outputs.attentions, expected.attentions, strict=True))
        assert model.config._attn_implementation == backend
    assert model(**batch).attentions is None
    assert len(warnings) == 3
    assert all("compute with 'eager'" in warning for warning in warnings)


def test_attention_weights_of_pads_only_have_their_shape():
    weights = build()(**pad(make_documents((3, 5))) | {"attention_mask": torch.zeros(2, 5)}, output_attentions=True).attentions
    assert [tuple(layer.shape) for layer in weights] == [(2, 2, 5, 5)] * 4
    assert all(layer.isfinite().all() for layer in weights)


@pytest.mark.parametrize("how", ["right", "left", "packed"])
@pytest.mark.parametrize("model_class", [ZhModernBertModel, ZhModernBertForMaskedLM])
def test_a_hook_on_the_embeddings_sees_rows_of_tokens(how, model_class):
    model, batch = build(model_class), arrange(make_documents((9, 30, 17)), how)
    shape = (*batch["input_ids"].shape, 32)
    noise = torch.randn(shape)
    embeds = model.get_input_embeddings()(batch["input_ids"]) + noise
    expected = model(**batch | {"input_ids": None}, inputs_embeds=embeds)[0]
    seen = []
    model.get_input_embeddings().register_forward_hook(
        lambda module, arguments, output: seen.extend((arguments[0].shape, output.shape)) or output + noise
    )
    assert torch.equal(model(**batch)[0], expected)
    assert seen == [shape[:2], shape]


@pytest.mark.parametrize("head", [None, *HEADS])
def test_outputs_as_tuples(head):
    model = build(ZhModernBertModel if head is None else HEADS[head])
    ids = make_documents((9,))[0][None]
    ids = ids[None] if head == "MultipleChoice" else ids
    expected = model(ids)[0]
    assert torch.equal(model(ids, return_dict=False)[0], expected)
    model.config.return_dict = False
    outputs = model(ids)
    assert isinstance(outputs, tuple)
    assert torch.equal(outputs[0], expected)


# --- errors -----------------------------------------------------------------------------------------------------------

IDS = torch.full((1, 10), 9)
TWO_ROWS = torch.full((2, 10), 9)


def bounds(*values):
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": IDS, "cu_seqlens": bounds(1, 10)}, "rise from 0"),
        ({"input_ids": IDS, "cu_seqlens": bounds(0, 9)}, r"number of packed tokens \(10\)"),
        ({"input_ids": IDS, "cu_seqlens": bounds(0, 11)}, r"number of packed tokens \(10\)"),
        ({"input_ids": IDS, "cu_seqlens": bounds(0, 6, 4, 10)}, "rise from 0"),
        ({"input_ids": IDS, "cu_seqlens": bounds(0)}, "rise from 0"),
        ({"input_ids": IDS, "cu_seqlens": bounds()}, "rise from 0"),
        ({"input_ids": IDS, "cu_seqlens": bounds(0, 10)[None]}, "rise from 0"),
        ({"input_ids": IDS, "cu_seqlens": bounds(0, 10).repeat(2, 1)}, "rise from 0"),
        ({"input_ids": IDS, "cu_seqlens": bounds(0, 4, 10), "max_seqlen": 5}, "document of 6 tokens"),
        ({"input_ids": TWO_ROWS, "cu_seqlens": bounds(0, 20)}, "one row"),
        ({"input_ids": IDS, "cu_seqlens": bounds(0, 10), "attention_mask": torch.arange(10)[None] > 0}, "no pads"),
        ({"input_ids": torch.full((1, 33), 9)}, "longer than max_position_embeddings"),
        ({"input_ids": torch.full((1, 43), 9), "cu_seqlens": bounds(0, 33, 43)}, "document of 33 tokens"),
        ({}, "exactly one of"),
        ({"input_ids": IDS, "inputs_embeds": torch.zeros(1, 10, 32)}, "exactly one of"),
        ({"input_ids": TWO_ROWS, "attention_mask": torch.ones(2, 9)}, "attention_mask has shape"),
        ({"input_ids": TWO_ROWS, "attention_mask": torch.ones(1, 10)}, "attention_mask has shape"),
        ({"input_ids": TWO_ROWS, "attention_mask": torch.ones(2, 1, 10, 10)}, "attention_mask has shape"),
        ({"input_ids": IDS, "cu_seqlens": [0.0, 10.0]}, "cu_seqlens must be whole numbers"),
        ({"input_ids": IDS, "cu_seqlens": torch.tensor([0.0, 10.0])}, "cu_seqlens must be whole numbers"),
        ({"input_ids": IDS, "cu_seqlens": [0, 6, 4, 10]}, "rise from 0"),
        ({"input_ids": IDS + 87}, "input_ids must be from 0 to 95, got 96"),
        ({"input_ids": IDS - 10}, "input_ids must be from 0 to 95, got -1"),
        ({"input_ids": IDS + 87, "cu_seqlens": bounds(0, 10)}, "input_ids must be from 0 to 95"),
        ({"inputs_embeds": torch.zeros(1, 10, 31)}, r"hidden size of 32"),
        ({"input_ids": TWO_ROWS, "position_ids": torch.arange(9)[None]}, r"position_ids has shape \(2, 9\)"),
        ({"input_ids": TWO_ROWS, "position_ids": torch.arange(10).repeat(3, 1)}, r"position_ids has shape \(3, 10\)"),
        ({"input_ids": IDS, "cu_seqlens": bounds(0, 10), "position_ids": torch.arange(9)[None]}, "position_ids has shape"),
        ({"input_ids": IDS[0]}, r"must be \(batch, tokens\)"),
        ({"input_ids": IDS, "position_ids": (torch.arange(10) % 4)[None]}, "need cu_seqlens"),
        ({"input_ids": IDS, "position_ids": torch.tensor([[0, 0, 1, 2, 3, 4, 5, 6, 7, 8]])}, "need cu_seqlens"),
        ({"input_ids": IDS, "attention_mask": torch.arange(10)[None] * -1e9}, "additive mask"),
        ({"input_ids": IDS, "attention_mask": torch.arange(10)[None] * -0.05}, "additive mask"),
        ({"input_ids": TWO_ROWS, "attention_mask": torch.eye(10)[:2].log()}, "got -inf. .* additive mask"),
        ({"input_ids": IDS, "attention_mask": torch.tensor([[1] * 6 + [2] * 4])}, r"got 2\. .* give cu_seqlens"),
        ({"input_ids": TWO_ROWS, "attention_mask": torch.tensor([[1] * 10, [0] * 6 + [3] * 4])}, r"got 3\. .* give cu_seqlens"),
        (
            {"input_ids": IDS, "attention_mask": torch.tensor([[1, 2, 2, 3, 3, 3, -1, -1, -1, -1]])},
            r"got 2\. .* give cu_seqlens",
        ),
        ({"input_ids": IDS, "attention_mask": torch.full((1, 10), 0.5)}, "got 0.5"),
        ({"inputs_embeds": torch.zeros(10, 32)}, r"inputs_embeds \(batch, tokens, hidden\)"),
    ],
)
@pytest.mark.parametrize("model_class", [ZhModernBertModel, ZhModernBertForMaskedLM])
def test_errors(model_class, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(model_class, max_position_embeddings=32)(**arguments)


@pytest.mark.parametrize(
    ("head", "labels", "message"),
    [
        ("MaskedLM", torch.full((2, 9), 8), r"labels has shape \(2, 9\), the input has \(2, 10\)"),
        ("MaskedLM", torch.full((10, 2), 8), r"labels has shape \(10, 2\)"),
        ("MaskedLM", torch.full((2, 10), 96), "labels must be from 0 to 95, got 96"),
        ("MaskedLM", torch.full((2, 10), 8.0), "labels must be whole numbers"),
        ("TokenClassification", torch.full((2, 10), -1), "labels must be from 0 to 1, got -1; -100 is for"),
        ("TokenClassification", torch.full((20,), 1), r"labels has shape \(20,\)"),
        ("SequenceClassification", torch.tensor([0, 2]), "labels must be from 0 to 1, got 2"),
        ("SequenceClassification", torch.tensor([0, 1, 1]), r"labels has shape \(3,\), the input has \(2,\)"),
        ("SequenceClassification", torch.tensor([0.0, 1.0]), r"the input has \(2, 2\); problem_type is 'multi_label"),
        ("MultipleChoice", torch.tensor([0, 2]), "labels must be from 0 to 1, got 2"),
        ("MultipleChoice", torch.tensor([0]), r"labels has shape \(1,\), the input has \(2,\)"),
    ],
)
def test_errors_of_labels(head, labels, message):
    ids = TWO_ROWS[:, None].repeat(1, 2, 1) if head == "MultipleChoice" else TWO_ROWS
    with pytest.raises(ValueError, match=message):
        build(HEADS[head])(ids, labels=labels)


def test_errors_of_positions():
    for positions in (torch.tensor([1]), torch.tensor([1, 2, 3])):
        with pytest.raises(ValueError, match=r"the input has \(2,\)"):
            build(ZhModernBertForQuestionAnswering)(TWO_ROWS, start_positions=positions, end_positions=positions)


@pytest.mark.parametrize("case", LOSS_CASES)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16])
def test_labels_of_other_integers(case, dtype):
    head, changes = LOSS_CASES[case]
    batch, model = loss_batch(case)[0], build(HEADS[head], **changes)
    small = {name: batch[name].to(dtype) for name in {"labels", "start_positions", "end_positions"} & batch.keys()}
    small |= {"input_ids": batch["input_ids"].int()}
    wide = {name: tensor.to(batch[name].dtype) for name, tensor in small.items()}
    assert model(**batch | small).loss == model(**batch | wide).loss


def test_bounds_of_packed_documents_as_a_list():
    model, batch = build(), pack(make_documents((9, 30)))
    expected = model(**batch).logits
    for bounds_of_documents in (batch["cu_seqlens"].tolist(), batch["cu_seqlens"].long(), batch["cu_seqlens"].numpy()):
        assert torch.equal(model(**batch | {"cu_seqlens": bounds_of_documents}).logits, expected)


def test_a_changed_number_of_layers_is_refused_at_once(tmp_path):
    build(num_hidden_layers=4).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="each of the 2 layers"):
        ZhModernBertForMaskedLM.from_pretrained(tmp_path, num_hidden_layers=2)
    both = {"num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"]}
    assert len(ZhModernBertForMaskedLM.from_pretrained(tmp_path, **both).model.layers) == 2


def test_pads_do_not_count_towards_the_longest_document():
    model = build(max_position_embeddings=32)
    batch = pad([*make_documents((32, 5)), torch.full((50,), 9)])
    logits = model(batch["input_ids"][:2], attention_mask=batch["attention_mask"][:2]).logits
    assert logits.shape == (2, 50, 96)
    packed = pack(make_documents((32, 5, 32)))
    assert model(**packed).logits.shape == (1, 69, 96)


# --- other backends ---------------------------------------------------------------------------------------------------


def test_a_registered_attention_function_is_used():
    calls = []

    def written_by_a_user(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
        calls.append(query.shape)
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling)
        return output.transpose(1, 2), None

    AttentionInterface.register("written_by_a_user", written_by_a_user)
    try:
        for how in ("right", "left", "packed"):
            calls.clear()
            documents = make_documents((9, 70, 17))
            model = build(backend="written_by_a_user")
            assert model.config._attn_implementation == "written_by_a_user"
            actual = encode(model, documents, how)[1]
            assert calls == [(3, 2, 70, 16)] * 4
            for mine, expected in zip(actual, encode(build(backend="eager"), documents, how)[1], strict=True):
                assert_close(mine, expected)
    finally:
        AttentionInterface._global_mapping.pop("written_by_a_user", None)


def test_transformers_own_attention_functions_see_both_sides(monkeypatch):
    """A layer says that it is not causal, which they ask where there is no mask."""
    monkeypatch.setitem(AttentionInterface._global_mapping, "stock_sdpa", sdpa_attention_forward)
    documents = make_documents((30, 30))
    expected = encode(build(backend="eager"), documents, "packed")[1]
    for actual, logits in zip(encode(build(backend="stock_sdpa"), documents, "packed")[1], expected, strict=True):
        assert_close(actual, logits)


@pytest.mark.parametrize("how", ["right", "left", "packed"])
def test_flash_attention_gets_documents_and_window(monkeypatch, how):
    seen = []

    def flash(query, key, value, cu_q, cu_k, max_q, max_k, dropout_p=0.0, window_size=(-1, -1), deterministic=False, **rest):
        assert not rest
        assert cu_q.dtype == cu_k.dtype == torch.int32
        assert torch.equal(cu_q, cu_k)
        assert max_q == max_k == 70
        assert window_size[0] == window_size[1]
        seen.append(window_size[0])
        assert deterministic
        return plain_varlen(query, key, value, cu_q, window_size[0])

    monkeypatch.setattr(modeling, "flash_attn_varlen_func", flash)
    documents = make_documents((9, 70, 17))
    model = build(deterministic_flash_attn=True, local_attention=9)
    model.config._attn_implementation = "flash_attention_2"  # its setter asks for the package
    actual = encode(model, documents, how)[1]
    assert seen == [-1, 4, 4, -1]
    for mine, expected in zip(actual, encode(build(backend="eager", local_attention=9), documents, how)[1], strict=True):
        assert_close(mine, expected)


def test_flash_attention_without_its_package_says_what_to_do(monkeypatch):
    monkeypatch.setattr(modeling, "flash_attn_varlen_func", None)
    model = build()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ImportError, match="pip install flash-attn"):
        model(torch.tensor([[8, 9]]))


def assert_a_flash_attention_equals_eager(name, how, half_window, **changes):
    """On documents of which the last begins behind the reach of every window, and the second is longer than it."""
    changes = {"local_attention": 2 * half_window + 1} | changes
    documents = make_documents((9, 70, 17))
    model = build(**changes)
    model.config._attn_implementation = name  # its setter asks for the package, or for a kernel of the Hub
    expected = encode(build(backend="eager", **changes), documents, how)[1]
    for mine, logits in zip(encode(model, documents, how)[1], expected, strict=True):
        assert_close(mine, logits)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("how", ["right", "left", "packed"])
def test_a_registered_flash_attention_gets_documents_in_one_row(monkeypatch, how, deterministic):
    windows = []

    def flash(module, query, key, value, attention_mask, scaling, dropout, is_causal, sliding_window, **more):
        assert query.shape == key.shape == value.shape == (1, 2, 96, 16)
        assert attention_mask is None
        assert (scaling, dropout, is_causal) == (0.25, 0.0, False)
        bounds = [more.pop(f"cu_seq_lens_{side}") for side in "qk"]
        assert all(tensor.dtype == torch.int32 and tensor.tolist() == [0, 9, 79, 96] for tensor in bounds)
        assert [more.pop(f"max_length_{side}") for side in "qk"] == [70, 70]
        assert more == ({"deterministic": True} if deterministic else {})
        windows.append(sliding_window)
        states = (states.squeeze(0).transpose(0, 1) for states in (query, key, value))
        return plain_varlen(*states, bounds[0], -1 if sliding_window is None else sliding_window - 1)[None], None

    monkeypatch.setitem(AttentionInterface._global_mapping, "somebody/flash-attn9", flash)
    assert_a_flash_attention_equals_eager("somebody/flash-attn9", how, 4, deterministic_flash_attn=deterministic)
    assert windows == [None, 5, 5, None]


@pytest.mark.parametrize("half_window", [0, 4, 69, 95, 200])
@pytest.mark.parametrize("how", ["left", "packed"])
def test_transformers_own_flash_attention(monkeypatch, how, half_window):
    """Its adapter, which cuts the states and counts the window for a kernel, around a stand-in for the kernel."""
    windows = []

    def kernel(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal, window_size=(-1, -1)):
        assert torch.equal(cu_seqlens_q, cu_seqlens_k)
        assert (max_seqlen_q, max_seqlen_k, softmax_scale, causal) == (70, 70, 0.25, False)
        windows.append(window_size)
        return plain_varlen(q, k, v, cu_seqlens_q, window_size[0])

    process = modeling_flash_attention_utils._lazy_define_process_function(kernel)
    functions = (None, kernel, None, None, None), (process, None)
    monkeypatch.setattr(modeling_flash_attention_utils, "lazy_import_flash_attention", lambda *names: functions)
    assert_a_flash_attention_equals_eager("flash_attention_3", how, half_window)
    # A window that reaches every token of the batch is none.
    window = (half_window, half_window) if half_window < 95 else (-1, -1)
    assert windows == [(-1, -1), window, window, (-1, -1)]


@pytest.mark.parametrize(
    ("change", "runs"),
    [
        ({}, True),
        ({"dtype": torch.float16}, True),
        *(({"shape": (9, 2, size)}, size in (8, 256)) for size in (4, 8, 20, 256, 264)),
        ({"dtype": torch.float32}, False),
        ({"is_cuda": False}, False),
        ({"dropout": 0.1}, False),
        ({"capability": (7, 5)}, False),
        ({"capability": (9, 0)}, True),
        ({"kernel": None}, False),
    ],
    ids=str,
)
def test_where_the_varlen_kernel_runs(monkeypatch, change, runs):
    given = {"dtype": torch.bfloat16, "shape": (9, 2, 64), "is_cuda": True, "dropout": 0.0, "capability": (8, 0)} | change
    monkeypatch.setattr(modeling, "varlen_attn", given.get("kernel", object()))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: given["capability"])
    query = SimpleNamespace(dtype=given["dtype"], shape=given["shape"], is_cuda=given["is_cuda"], device=None)
    assert modeling._varlen_attention_runs(query, given["dropout"]) == runs


# --- rotary positions -------------------------------------------------------------------------------------------------


def frequencies(layer_type="full_attention", **changes):
    config = ZhModernBertConfig(**TINY | changes)
    return modeling.rotary_frequencies(config, layer_type, "cpu")


@pytest.mark.parametrize(("layer_type", "theta"), [("full_attention", 160000.0), ("sliding_attention", 10000.0)])
def test_plain_rope(layer_type, theta):
    actual, factor = frequencies(layer_type)
    assert actual.tolist() == pytest.approx([theta ** (-2 * i / 16) for i in range(8)], rel=1e-6)
    assert factor == 1.0


def test_yarn_of_factor_one_is_plain_rope():
    plain, _ = frequencies()
    actual, factor = frequencies(rope_scaling=YARN | {"factor": 1.0})
    assert torch.equal(actual, plain)
    assert factor == 1.0


def test_yarn_stretches_slow_dimensions_of_full_layers_only():
    scaling = YARN | {"original_max_position_embeddings": 8192}
    plain, (actual, factor) = frequencies()[0], frequencies(rope_scaling=scaling)
    assert actual[0] == plain[0]  # many turns over the original length: left alone
    assert actual[-1] == plain[-1] / 4  # not one turn: interpolated
    ratio = plain / actual
    assert (ratio.diff() >= 0).all()
    assert factor == pytest.approx(0.1 * math.log(4) + 1)
    assert frequencies(rope_scaling=scaling | {"attention_factor": 1.5})[1] == 1.5
    # Dimensions that turn fewer than beta_slow times are the stretched ones: with a lower bound, fewer are.
    assert (frequencies(rope_scaling=scaling | {"beta_slow": 0.01, "beta_fast": 0.02})[0] >= actual).all()
    sliding, sliding_factor = frequencies("sliding_attention", rope_scaling=scaling)
    assert torch.equal(sliding, frequencies("sliding_attention")[0])
    assert sliding_factor == 1.0


@pytest.mark.parametrize(("layer_type", "factor"), [("full_attention", 1.5), ("sliding_attention", 1.0)])
def test_positions_turn_and_lengthen_by_yarn_s_factor(layer_type, factor):
    """The factor is on cosines and on sines: at every position queries and keys are as many times as long."""
    model = build(rope_scaling=YARN | {"attention_factor": 1.5})
    rotary = model.model._rotary(torch.arange(300))[layer_type]
    states = torch.randn(300, 2, 3, 16)  # (N, 2, A, C)
    assert_close(modeling.apply_rotary(states, *rotary).norm(dim=-1), factor * states.norm(dim=-1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_yarn_runs_past_the_original_length(backend):
    model = build(backend=backend, rope_scaling=YARN, max_position_embeddings=256)
    documents = make_documents((256, 100, 64))
    alone = encode(model, documents, "alone")[1]
    for actual, expected in zip(encode(model, documents, "packed")[1], alone, strict=True):
        assert_close(actual, expected)
    plain = encode(build(backend=backend, max_position_embeddings=256), documents, "alone")[1]
    assert (alone[0] - plain[0]).abs().max() > 1e-2


def test_yarn_runs_at_32768_tokens():
    length = 32768
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
    shape = {"hidden_size": 16, "num_attention_heads": 1, "num_hidden_layers": 2, "local_attention": 128}
    layers = ["full_attention", "sliding_attention"]
    model = build(**shape, layer_types=layers, rope_scaling=scaling, max_position_embeddings=length, sparse_prediction=True)
    batch = pack(make_documents((length, 100)))
    labels = batch["input_ids"].where(torch.arange(length + 100) % 64 == 0, IGNORED)
    with LargestTensor() as largest:
        loss = model(**batch, labels=labels).loss
        loss.backward()
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())
    assert largest.elements < 256 * length


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("biases", [{}, {"norm_type": "layernorm", "norm_bias": True, "mlp_bias": True}], ids=["few", "more"])
def test_initial_weights(biases):
    config = ZhModernBertConfig(**TINY | {"vocab_size": 512, "num_hidden_layers": 2, "num_labels": 40} | biases)
    residual = 0.02 / math.sqrt(2 * 2)
    # A normal of spread s cut at 2 s has spread 0.88 s.
    spreads = {"tok_embeddings.weight": 0.02, "Wqkv.weight": 0.02, "Wi.weight": 0.02, "Wo.weight": residual}
    for model_class in (ZhModernBertForMaskedLM, ZhModernBertForSequenceClassification):
        model = model_class(config)
        for name, parameter in model.named_parameters():
            spread = {"head.dense.weight": residual, "classifier.weight": 32**-0.5}.get(name)
            spread = spread or next((value for ending, value in spreads.items() if name.endswith(ending)), None)
            if spread is None:
                assert (parameter == (1 if name.endswith("norm.weight") else 0)).all(), name
            else:
                assert parameter.abs().max() <= 2 * spread * (1 + 1e-6), name
                assert parameter.std().item() == pytest.approx(0.88 * spread, rel=0.1), name
                assert abs(parameter.mean()) < spread / 8, name
        embeddings = model.get_input_embeddings().weight
        assert (embeddings[config.pad_token_id] == 0).all()
        assert (embeddings[config.pad_token_id + 1 :] != 0).any(-1).all()


@pytest.mark.parametrize("head", [head for head in HEADS if head != "MaskedLM"])
def test_a_classifier_s_first_logits_are_about_one(head):
    config = ZhModernBertConfig(**TINY | {"num_hidden_layers": 1})
    weights = torch.cat([HEADS[head](config).classifier.weight.detach().flatten() for _ in range(8)])
    assert weights.abs().max() <= 2 * 32**-0.5
    assert weights.std().item() == pytest.approx(0.88 * 32**-0.5, rel=0.2)


def test_decoder_is_tied():
    model = build()
    assert model.decoder.weight is model.get_input_embeddings().weight
    assert "decoder.weight" not in dict(model.named_parameters())
    untied = build(tie_word_embeddings=False)
    assert untied.decoder.weight is not untied.get_input_embeddings().weight


@pytest.mark.parametrize("norm_type", ["rmsnorm", "layernorm"])
def test_norms(norm_type):
    wanted = {"rmsnorm": torch.nn.RMSNorm, "layernorm": torch.nn.LayerNorm}[norm_type]
    model = build(norm_type=norm_type)
    norms = [module for name, module in model.named_modules() if name.endswith("norm")]
    assert sum(isinstance(norm, wanted) for norm in norms) == 3 + 2 * 4 - 1
    assert isinstance(model.model.layers[0].attn_norm, torch.nn.Identity)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load(tmp_path, backend, tied):
    model, batch = build(backend=backend, rope_scaling=YARN, tie_word_embeddings=tied), pad(make_documents((9, 90)), "left")
    model.save_pretrained(tmp_path)
    loaded = ZhModernBertForMaskedLM.from_pretrained(tmp_path, attn_implementation=backend)
    assert not loaded.training
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    assert (loaded.decoder.weight is loaded.get_input_embeddings().weight) == tied
    bare = ZhModernBertModel.from_pretrained(tmp_path, attn_implementation=backend)
    assert torch.equal(bare(**batch).last_hidden_state, model.model(**batch).last_hidden_state)
    assert ZhModernBertModel.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_new_head_on_loaded_weights_is_initialised(tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    loaded = ZhModernBertForSequenceClassification.from_pretrained(tmp_path, num_labels=40)
    for name, parameter in loaded.named_parameters():
        if name.startswith("classifier"):
            continue
        assert torch.equal(parameter, dict(model.named_parameters())[name]), name
    assert loaded.classifier.weight.std().item() == pytest.approx(0.88 * 32**-0.5, rel=0.1)
    assert (loaded.classifier.bias == 0).all()


def test_resized_vocabulary():
    model, ids = build(), torch.tensor([[8, 9, 10]])
    before = model(ids).logits
    model.resize_token_embeddings(128)
    assert_close(model(ids).logits[..., :96], before)
    assert model(torch.tensor([[8, 127]])).logits.shape == (1, 2, 128)
    assert model.decoder.weight is model.get_input_embeddings().weight
    assert model.config.vocab_size == 128


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("field", ["embedding_dropout", "attention_dropout", "mlp_dropout", "classifier_dropout"])
def test_dropout_is_for_training_only(field, backend):
    model = build(ZhModernBertForSequenceClassification, backend, **{field: 0.5})
    batch = pad(make_documents((9, 30)))
    assert torch.equal(model(**batch).logits, build(ZhModernBertForSequenceClassification, backend)(**batch).logits)
    model.train()
    assert not torch.equal(model(**batch).logits, model(**batch).logits)
