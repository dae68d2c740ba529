"""transformers' own ModernBERT, with its weights in our model: the same hidden states, logits, losses and gradients.

Single precision holds 1e-5 of each tensor's largest entry. Against double precision both models are up to 1e-5 off in the
gradients of 2,050 tokens, and by the same rounding; in double precision they agree to 1e-14: they are one function. Stock has
garbage at pads where ours has zeros: only real tokens are compared, and no loss counts a pad.
"""

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tiny import HEADS, IGNORED, TINY, YARN, assert_close, make_documents, pad, randomise
from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.modeling_zh_modernbert import ZhModernBertModel, rotary_frequencies

LONG = {"local_attention": 128, "max_position_embeddings": 4096}
HALF_BASE = LONG | {"hidden_size": 384, "intermediate_size": 576, "num_attention_heads": 6}  # heads of 64, as the base has
SHAPES = {
    "tiny": {},
    "long": LONG,
    "half base": HALF_BASE | {"num_hidden_layers": 2},  # one layer of each kind
    "biases": {name: True for name in ("attention_bias", "mlp_bias", "norm_bias", "classifier_bias")},
    "others": {"decoder_bias": False, "classifier_activation": "relu", "hidden_activation": "silu", "norm_eps": 1e-3},
    "odd window": {"local_attention": 9},
    "yarn": {"rope_scaling": YARN},
}
EDGES = (1, 63, 64, 65, 66, 127, 128, 129, 130)  # of the half window, the window and the blocks of queries
HEAD_CASES = {
    "bare": (None, {}),
    "first token": ("SequenceClassification", {"num_labels": 3}),
    "mean": ("SequenceClassification", {"num_labels": 3, "classifier_pooling": "mean"}),
    "several labels": (
        "SequenceClassification",
        {"num_labels": 3, "classifier_pooling": "mean", "problem_type": "multi_label_classification"},
    ),
    "regression": ("SequenceClassification", {"num_labels": 1, "classifier_pooling": "mean"}),
    "tokens": ("TokenClassification", {"num_labels": 3}),
    "spans": ("QuestionAnswering", {}),
    "choice": ("MultipleChoice", {}),
    "choice by mean": ("MultipleChoice", {"classifier_pooling": "mean"}),
}


def config_pair(rope_scaling=None, **changes):
    """The same shape in transformers' words and in ours."""
    shared = TINY | {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3} | changes
    rope_parameters = None
    if rope_scaling is not None:
        rope_parameters = {
            "full_attention": rope_scaling | {"rope_theta": 160000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        }
    stock = transformers.ModernBertConfig(**shared, rope_parameters=rope_parameters)
    return stock, ZhModernBertConfig(**shared, norm_type="layernorm", rope_scaling=rope_scaling)


def stock_pair(head, **changes):
    """transformers' own model and ours with its weights."""
    stock_config, our_config = config_pair(**changes)
    name = "ModernBertModel" if head is None else f"ModernBertFor{head}"
    # Biases and norms start at zero and one; a spread makes them count. Much more of it would make attention so sharp that
    # the rounding of rotary angles, which grows with the position, shows: with left padding stock counts from the row's start.
    stock = randomise(getattr(transformers, name)(stock_config).eval(), 0.5 / our_config.hidden_size**0.5)
    ours = (ZhModernBertModel if head is None else HEADS[head])(our_config).eval()
    ours.load_state_dict(stock.state_dict(), strict=True)
    return stock, ours


def results(model, batch, targets):
    """Outputs at real tokens; and every parameter's gradient, of the loss, or without one of the outputs' weighted mean."""
    outputs = dict(model(**batch, **targets, output_hidden_states=True))
    real = batch["attention_mask"].flatten(0, -2).bool()
    found = {f"hidden state {layer}": states for layer, states in enumerate(outputs.pop("hidden_states"))} | outputs
    found = {name: tensor[real] if tensor.shape[:2] == real.shape else tensor for name, tensor in found.items()}
    objective = outputs.get("loss")
    if objective is None:
        tensors = [tensor for name, tensor in found.items() if name in outputs]
        objective = sum((tensor * torch.linspace(-1, 1, tensor.numel()).view_as(tensor)).mean() for tensor in tensors)
    objective.backward()
    return found, {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_equal(stock, ours, batch, targets, tolerance=1e-5):
    (expected, expected_gradients), (actual, actual_gradients) = (results(model, batch, targets) for model in (stock, ours))
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_close(actual[name], tensor, tolerance, name)
    assert actual_gradients.keys() == expected_gradients.keys()
    largest = max(gradient.abs().max() for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        # Adding one number to all that a softmax runs over changes nothing: such a bias has no gradient but rounding.
        if name == "classifier.bias" and max(gradient.abs().max(), actual_gradients[name].abs().max()) < 1e-6 * largest:
            continue
        assert gradient.abs().max() > 0, name
        assert_close(actual_gradients[name], gradient, tolerance, f"gradient of {name}")


def masked_lm_batch(lengths, side):
    batch = pad(make_documents(lengths), side)
    asked = torch.rand(batch["input_ids"].shape) < 0.3
    asked[:, -1] = asked[:, 0] = True  # something in every document
    return batch, {"labels": batch["input_ids"].masked_fill((batch["attention_mask"] == 0) | ~asked, IGNORED)}


def head_batch(case, lengths, side):
    """Four documents and the head's targets for them."""
    batch = pad(make_documents(lengths), side)
    real = batch["attention_mask"].bool()
    if case.startswith("choice"):
        batch = {name: tensor.view(2, 2, -1) for name, tensor in batch.items()}
    if case == "spans":  # stock's loss runs its softmax over pads too
        spans = {"start_positions": torch.tensor([0, 3, 9, 49]), "end_positions": torch.tensor([1, 3, 12, 60])}
        return batch, spans if real.all() else {}
    labels = {
        "first token": torch.tensor([0, 2, 1, 1]),
        "mean": torch.tensor([0, 2, 1, 1]),
        "several labels": torch.randint(0, 2, (4, 3)).float(),
        "regression": torch.randn(4),
        "tokens": torch.randint(0, 3, real.shape).masked_fill(~real, IGNORED),
        "choice": torch.tensor([1, 0]),
        "choice by mean": torch.tensor([1, 0]),
    }
    return batch, {"labels": labels[case]} if case in labels else {}


@pytest.mark.parametrize(
    ("shape", "lengths", "side"),
    [
        *(("long", (length, length), "right") for length in (*EDGES, 511, 1025, 2050)),
        *(("long", lengths, side) for lengths in (EDGES, (511, 2050, 1025)) for side in ("right", "left")),
        ("half base", EDGES, "left"),
        ("half base", (1025, 1), "right"),
        ("half base", (2050,), "right"),
        *(
            (shape, lengths, "right")
            for shape in ("biases", "others", "odd window", "yarn")
            for lengths in ((150, 150), (150, 3, 77))
        ),
    ],
    ids=str,
)
def test_masked_lm(shape, lengths, side):
    assert_equal(*stock_pair("MaskedLM", **SHAPES[shape]), *masked_lm_batch(lengths, side))


@pytest.mark.parametrize("side", ["right", "left"])
def test_one_function_in_double_precision(side, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # of rotary angles and losses
    stock, ours = (model.double() for model in stock_pair("MaskedLM", **LONG))
    assert_equal(stock, ours, *masked_lm_batch((*EDGES, 511), side), tolerance=1e-12)


@pytest.mark.parametrize(
    ("case", "shape", "lengths", "side"),
    [
        *(
            (case, "tiny", lengths, side)
            for lengths, side in (((50, 50, 50, 50), "right"), ((66, 1, 26, 65), "right"), ((66, 1, 26, 65), "left"))
            for case in HEAD_CASES
            if (case, side) != ("first token", "left")  # stock takes the row's first token, here a pad
        ),
        # Each head and pooling once: a loss does not know the width of the states.
        *((case, "half base", (66, 1, 26, 65), "right") for case in ("first token", "mean", "tokens", "spans", "choice")),
    ],
    ids=str,
)
def test_other_heads(case, shape, lengths, side):
    head, changes = HEAD_CASES[case]
    assert_equal(*stock_pair(head, **SHAPES[shape] | changes), *head_batch(case, lengths, side))


@pytest.mark.parametrize("side", ["right", "left"])
def test_attention_weights(side):
    stock, ours = stock_pair(None)
    batch = pad(make_documents((66, 1, 26)), side)
    real = batch["attention_mask"].bool()
    for model in (stock, ours):
        model.set_attn_implementation("eager")
    with torch.no_grad():
        expected, actual = (model(**batch, output_attentions=True).attentions for model in (stock, ours))
    for mine, theirs in zip(actual, expected, strict=True):  # (B, A, T, T)
        assert_close(mine.transpose(1, 2)[real], theirs.transpose(1, 2)[real])


@pytest.mark.parametrize("more", [{}, {"beta_fast": 10, "beta_slow": 3}, {"attention_factor": 0.9}], ids=str)
@pytest.mark.parametrize("original", [64, 1000, 8192])
def test_yarn_frequencies(original, more):
    stock, ours = config_pair(
        {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": original} | more,
        hidden_size=128,
        max_position_embeddings=8 * original,
    )
    expected, expected_factor = ROPE_INIT_FUNCTIONS["yarn"](stock, "cpu", layer_type="full_attention")
    actual, factor = rotary_frequencies(ours, "full_attention", "cpu")
    assert (actual / expected - 1).abs().max() < 1e-6
    assert factor == pytest.approx(expected_factor)
