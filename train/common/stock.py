"""This model beside stock ModernBERT: its stock form, and whether two models, one of each, compute the same.

A model with `norm_type="layernorm"` is a stock ModernBERT, weight for weight.
"""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from transformers import ModernBertConfig, PreTrainedModel

from zh_modernbert.configuration_zh_modernbert import LAYER_TYPES, ZhModernBertConfig
from zh_modernbert.modeling_zh_modernbert import ZhModernBertPreTrainedModel
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.model_folder import save_weights

TOLERANCE = 1e-5

# The fields that both configs have, with one meaning.
SHARED = {"bos_token_id", "eos_token_id", *inspect.signature(ZhModernBertConfig).parameters} - {
    *("kwargs", "norm_type", "embedding_initializer_range", "global_attn_every_n_layers", "mask_token_id", "unk_token_id"),
    *("global_rope_theta", "local_rope_theta", "rope_scaling"),
}

# A text on which two tokenizers that differ in anything are likely to differ.
SAMPLE = "今天天氣很好。The 2 Quick-brown foxes…  ２０２４年，\n\t臺灣／台湾 😀 naïve [MASK] <mask> 鿿𠮷"


def random_batches(config: ZhModernBertConfig) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Side of the pads, ids `(4, T)` and mask `(4, T)`: rows longer than the window and shorter. Pads hold random tokens."""
    generator = torch.Generator().manual_seed(0)
    longest = min(config.local_attention + 33, config.max_position_embeddings)
    lengths = torch.tensor([longest, (longest + 1) // 2, min(longest, 2), 1])
    input_ids = torch.randint(config.vocab_size, (len(lengths), longest), generator=generator)
    mask = (torch.arange(longest) < lengths[:, None]).long()
    yield "right", input_ids, mask
    yield "left", input_ids, mask.flip(1)


@torch.inference_mode()
def compare(stock: PreTrainedModel, ours: ZhModernBertPreTrainedModel) -> dict[str, tuple[float, float]]:
    """The largest difference of hidden states and of logits: absolute, and relative to the largest entry of the tensor."""
    architecture, pooling = type(stock).__name__, ours.config.classifier_pooling
    found = {}

    def record(what, actual, expected):
        difference, largest = (actual - expected).abs().max().item(), expected.abs().max().item()
        found.setdefault(what, []).append((difference, difference / largest if largest else difference))

    for side, input_ids, mask in random_batches(ours.config):
        inputs = {"input_ids": input_ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
        if architecture.endswith("MultipleChoice"):
            inputs = {name: tensor.unflatten(0, (2, -1)) for name, tensor in inputs.items()}
        expected = stock(**inputs, output_hidden_states=True, return_dict=True)
        # Ours counts positions so by itself. Stock ModernBERT counts left pads too, so it was given them.
        del inputs["position_ids"]
        actual = ours(**inputs, output_hidden_states=True, return_dict=True)
        real = mask.bool()
        for pair in zip(actual.hidden_states, expected.hidden_states, strict=True):
            record("hidden states", *(states[real] for states in pair))
        if architecture.endswith("SequenceClassification") and pooling == "cls" and side == "left":
            continue  # stock ModernBERT pools a pad there
        per_token = architecture.endswith(("MaskedLM", "TokenClassification", "QuestionAnswering"))
        for name in expected.keys() & {"logits", "start_logits", "end_logits"}:
            record("logits", *(outputs[name][real] if per_token else outputs[name] for outputs in (actual, expected)))
    return {what: tuple(torch.tensor(pairs).amax(0).tolist()) for what, pairs in found.items()}  # amax keeps NaN


def require_same(stock: PreTrainedModel, ours: ZhModernBertPreTrainedModel, where: Path) -> dict:
    """How far apart two models in float32 are, for a script's result. Rounding alone can exceed the tolerance there.

    Models that differ by more are compared again in float64.

    Raises:
        InputError: they differ there too, naming `where`.
    """
    for dtype in (torch.float32, torch.float64):
        found = compare(stock.to(dtype), ours.to(dtype))  # pyright: ignore[reportArgumentType]  # `to` hides its `self`
        if all(relative <= TOLERANCE for _, relative in found.values()):
            break
    for what, (difference, relative) in found.items():
        if not relative <= TOLERANCE:
            raise InputError(
                f"{where}: {what} differ from those of transformers' {type(stock).__name__} by {difference:.3g}, "
                f"{relative:.3g} of the largest entry; {TOLERANCE} is allowed"
            )
        print(f"{what}: largest difference {difference:.3g}, {relative:.3g} of the largest entry", file=sys.stderr)
    return {
        "max_abs_diff": max(difference for difference, _ in found.values()),
        "max_relative_diff": max(relative for _, relative in found.values()),
        "compared_in": str(dtype).removeprefix("torch."),
    }


def stock_config(config: ZhModernBertConfig, path: Path) -> ModernBertConfig:
    """The config of transformers' own ModernBERT for a model of this project, as transformers 4 spells it and as 5 does.

    Raises:
        InputError: stock ModernBERT cannot compute the same, or only newer readers can, naming the field and `path`.
    """

    def require(condition: bool, field: str, what: str) -> None:
        if not condition:
            raise InputError(
                f"{path}: {field} is {getattr(config, field)!r}; stock ModernBERT has {what}; publish it with "
                "--form zh_modernbert, or train one with what stock ModernBERT has"
            )

    require(config.norm_type == "layernorm", "norm_type", "'layernorm' alone")
    require(config.rope_scaling is None, "rope_scaling", "none that its older readers know, who would leave it out unseen")
    layers = range(len(config.layer_types))
    patterns = {every + 1: [LAYER_TYPES[layer % (every + 1) > 0] for layer in layers] for every in layers}
    fitting = [every for every, pattern in patterns.items() if pattern == config.layer_types]
    require(bool(fitting), "layer_types", "'full_attention' at every n-th layer from the first, for its older readers")
    thetas = config.global_rope_theta, config.local_rope_theta
    stock = ModernBertConfig(
        **{name: getattr(config, name) for name in SHARED},
        rope_parameters={
            layer_type: {"rope_type": "default", "rope_theta": theta}
            for layer_type, theta in zip(LAYER_TYPES, thetas, strict=True)
        },
    )
    # What transformers 4 and other older readers take instead of `layer_types` and `rope_parameters`.
    stock.global_attn_every_n_layers = fitting[0]
    stock.global_rope_theta, stock.local_rope_theta = config.global_rope_theta, config.local_rope_theta
    return stock


def write_stock(folder: Path, model: ZhModernBertPreTrainedModel, source: Path) -> dict:
    """Weights and config as a stock ModernBERT, without code; loaded again and compared in float32, to which `model` is turned.

    Returns:
        What `require_same` does.

    Raises:
        InputError: it is none, or does not compute the same, naming `source`.
    """
    stock_class = getattr(transformers, type(model).__name__.removeprefix("Zh"))
    with torch.device("meta"):
        stock = stock_class(stock_config(model.config, source / "config.json"))
    stock.load_state_dict(model.state_dict(), assign=True)
    stock.tie_weights()
    save_weights(folder, stock)
    again = stock_class.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    return require_same(again, model, source)
