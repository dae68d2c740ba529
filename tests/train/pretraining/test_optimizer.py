"""Which parameters decay, and what one update is."""

import pytest
import torch
from torch import nn

from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.train.pretraining.optimizer import build_optimizer, parameter_groups

LEARNING_RATE, BETAS, EPS, WEIGHT_DECAY = 0.1, (0.9, 0.95), 1e-6, 0.5
ALL_BIASES = {"norm_type": "layernorm", "norm_bias": True, "attention_bias": True, "mlp_bias": True}


def make_model(**fields) -> ZhModernBertForMaskedLM:
    shape = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return ZhModernBertForMaskedLM(ZhModernBertConfig(**shape, **fields))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"norm_type": "layernorm", "norm_bias": True, "attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": False},
    ],
    ids=["system_a", "all_biases", "untied"],
)
def test_groups_hold_every_parameter_once(fields):
    model = make_model(**fields)
    decay, no_decay = parameter_groups(model, 0.1)
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.1, 0.0)
    grouped = [id(parameter) for group in (decay, no_decay) for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in model.parameters()}


def test_norms_and_biases_do_not_decay():
    model = make_model(**ALL_BIASES)
    decay, no_decay = ({id(p) for p in group["params"]} for group in parameter_groups(model, 0.1))
    plain = {name for name, parameter in model.named_parameters() if id(parameter) in no_decay}
    assert plain == {name for name, _ in model.named_parameters() if name.endswith("bias") or "norm" in name}
    assert id(model.model.embeddings.tok_embeddings.weight) in decay


def test_tied_weights_are_in_one_group_once():
    model = make_model()
    assert model.decoder.weight is model.model.embeddings.tok_embeddings.weight
    grouped = [p for group in parameter_groups(model, 0.1) for p in group["params"]]
    assert sum(parameter is model.decoder.weight for parameter in grouped) == 1


def test_frozen_parameters_are_left_out():
    model = make_model()
    model.model.embeddings.tok_embeddings.weight.requires_grad_(False)
    grouped = [p for group in parameter_groups(model, 0.1) for p in group["params"]]
    assert all(parameter is not model.decoder.weight for parameter in grouped)


def reference(name: str, parameter: torch.Tensor, gradients: list[torch.Tensor], decay: float) -> torch.Tensor:
    """AdamW (https://arxiv.org/abs/1711.05101, algorithm 2) and StableAdamW (https://arxiv.org/abs/2304.13013, algorithm 2)."""
    beta1, beta2 = BETAS
    first, second = torch.zeros_like(parameter), torch.zeros_like(parameter)
    for step, gradient in enumerate(gradients, 1):
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        mean, square = first / (1 - beta1**step), second / (1 - beta2**step)
        rate = LEARNING_RATE
        if name == "stable_adamw":  # the update is clipped by how much the gradient outgrew its history
            rate /= max(1.0, float((gradient**2 / square.clamp(min=EPS**2)).mean().sqrt()))
        parameter = parameter - rate * decay * parameter - rate * mean / (square.sqrt() + EPS)
    return parameter


@pytest.mark.parametrize("name", ["adamw", "stable_adamw"])
@pytest.mark.parametrize("growth", [0.5, 1.0, 20.0])
def test_updates_are_the_published_ones(name, growth):
    """Three updates, whose gradients shrink, stay or explode."""
    layer = nn.Linear(3, 4).double()
    optimizer = build_optimizer(name, layer, LEARNING_RATE, BETAS, EPS, WEIGHT_DECAY)
    generator = torch.Generator().manual_seed(0)
    for parameter, decay in ((layer.weight, WEIGHT_DECAY), (layer.bias, 0.0)):
        assert any(
            parameter is p and group["weight_decay"] == decay for group in optimizer.param_groups for p in group["params"]
        )
    start = {n: p.detach().clone() for n, p in layer.named_parameters()}
    gradients = {
        n: [torch.randn(p.shape, generator=generator, dtype=p.dtype) * growth**i for i in range(3)] for n, p in start.items()
    }
    for step in range(3):
        for n, parameter in layer.named_parameters():
            parameter.grad = gradients[n][step].clone()
        optimizer.step()
    for n, parameter in layer.named_parameters():
        decay = WEIGHT_DECAY if n == "weight" else 0.0
        torch.testing.assert_close(parameter.detach(), reference(name, start[n], gradients[n], decay), rtol=1e-9, atol=1e-9)


def test_the_two_optimizers_differ_where_gradients_explode():
    """Else the test above could not tell them apart."""
    start, gradients = torch.ones(3, dtype=torch.float64), [torch.ones(3), torch.full((3,), 20.0)]
    assert not torch.allclose(*(reference(name, start, gradients, 0.0) for name in ("adamw", "stable_adamw")))
