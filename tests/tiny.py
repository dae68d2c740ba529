"""Tiny models and batches of them, for the tests that need one."""

import math

import torch

from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.modeling_zh_modernbert import (
    ZhModernBertForMaskedLM,
    ZhModernBertForMultipleChoice,
    ZhModernBertForQuestionAnswering,
    ZhModernBertForSequenceClassification,
    ZhModernBertForTokenClassification,
)

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "local_attention": 16,
    "max_position_embeddings": 1024,
}
HEADS = {
    "MaskedLM": ZhModernBertForMaskedLM,
    "SequenceClassification": ZhModernBertForSequenceClassification,
    "TokenClassification": ZhModernBertForTokenClassification,
    "QuestionAnswering": ZhModernBertForQuestionAnswering,
    "MultipleChoice": ZhModernBertForMultipleChoice,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
# What each loss is called -> its head, and the config that makes it.
LOSS_CASES = {
    "MaskedLM": ("MaskedLM", {}),
    "MaskedLM-sparse": ("MaskedLM", {"sparse_prediction": True}),
    "single-label": ("SequenceClassification", {"num_labels": 3}),
    "multi-label": ("SequenceClassification", {"num_labels": 3, "problem_type": "multi_label_classification"}),
    "regression": ("SequenceClassification", {"num_labels": 1}),
    "TokenClassification": ("TokenClassification", {"num_labels": 5}),
    "QuestionAnswering": ("QuestionAnswering", {}),
    "MultipleChoice": ("MultipleChoice", {}),
}
IGNORED = -100
JUNK = 7  # what stands at pads, so that a pad that is read shows


def randomise(model, spread=0.2):
    """Makes every weight random, biases, norms and the pad's row too, and large enough for all of them to show."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=spread)
    return model


def build(model_class=ZhModernBertForMaskedLM, backend="sdpa", **changes):
    """A tiny model, the same one every time."""
    torch.manual_seed(0)
    model = randomise(model_class(ZhModernBertConfig(**TINY | changes)).eval())
    model.set_attn_implementation(backend)
    return model


def make_documents(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(8, TINY["vocab_size"], (length,), generator=generator) for length in lengths]


def pad(documents, side="right"):
    """Documents, a row each, and the mask of real tokens; pads `right`, `left`, or anywhere (`holes`)."""
    longest = max(map(len, documents))
    width = longest + 9 if side == "holes" else longest
    ids, mask = torch.full((len(documents), width), JUNK), torch.zeros(len(documents), width, dtype=torch.long)
    generator = torch.Generator().manual_seed(2)
    for row, document in enumerate(documents):
        places = {
            "right": torch.arange(len(document)),
            "left": torch.arange(width - len(document), width),
            "holes": torch.randperm(width, generator=generator)[: len(document)].sort().values,
        }[side]
        ids[row, places], mask[row, places] = document, 1
    return {"input_ids": ids, "attention_mask": mask}


def pack(documents):
    bounds = [0]
    for document in documents:
        bounds.append(bounds[-1] + len(document))
    return {"input_ids": torch.cat(documents)[None], "cu_seqlens": torch.tensor(bounds, dtype=torch.int32)}


def assert_close(actual, expected, tolerance=1e-5, what=""):
    """The largest difference is at most `tolerance` of the largest entry."""
    assert actual.shape == expected.shape, what
    difference = (actual.double() - expected.double()).abs().max().item() if actual.numel() else 0.0
    largest = expected.double().abs().max().item() if expected.numel() else 0.0
    assert difference <= tolerance * largest, f"{what}: differs by {difference:.3g}, largest entry {largest:.3g}"


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_gradients(actual, expected, tolerance=1e-5):
    """Each parameter's gradients agree; where they are zero but for rounding, as a bias before a softmax, to that rounding."""
    assert actual.keys() == expected.keys()
    rounding = 1e-2 * max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        difference, largest = (actual[name] - gradient).abs().max().item(), gradient.abs().max().item()
        assert difference <= tolerance * max(largest, rounding), f"{name}: differs by {difference:.3g}, largest {largest:.3g}"


def plain_varlen(query, key, value, cu_seqlens, half_window):
    """What flash-attn documents of its varlen function, in plain PyTorch: (N, A, C) -> (N, A, C)."""
    document = torch.bucketize(torch.arange(len(query)), cu_seqlens[1:], right=True)
    distance = torch.arange(len(query))[:, None] - torch.arange(len(query))
    visible = document[:, None] == document
    if half_window >= 0:
        visible &= distance.abs() <= half_window
    scores = torch.einsum("iac,jac->aij", query, key) / math.sqrt(query.shape[-1])
    return torch.einsum("aij,jac->iac", scores.masked_fill(~visible, -math.inf).softmax(-1), value)
