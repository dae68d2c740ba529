"""The model at the root: whole, of the shape that its preset says, and one that has learned both scripts."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from zh_modernbert.train.common.model_folder import fields_that_count, load_model
from zh_modernbert.train.tokenizer.loading import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
# Plain sentences, the same in both scripts.
TEXTS = {
    "hans": ["根据法律的规定，当事人应当承担责任。", "这个函数返回一个字符串。", "他站起来，走到门口，看了一眼外面的天气。"],
    "hant": ["根據法律的規定，當事人應當承擔責任。", "這個函式會回傳一個字串。", "他站起來，走到門口，看了一眼外面的天氣。"],
}


@pytest.fixture(scope="module")
def model():
    return load_model(ROOT).float()


def score(model, ids: torch.Tensor) -> float:
    """The mean log P of each token given the others, from copies with one token masked each."""
    places = torch.arange(1, len(ids) - 1)
    copies = ids.repeat(len(places), 1)
    copies[torch.arange(len(places)), places] = model.config.mask_token_id
    with torch.inference_mode():
        logits = model(input_ids=copies).logits[torch.arange(len(places)), places]
    return logits.log_softmax(-1)[torch.arange(len(places)), ids[places]].mean().item()


def test_the_files():
    weights = load_file(ROOT / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert (ROOT / "model.safetensors").stat().st_size < 55e6, "what a repository carries without complaint"
    assert json.loads((ROOT / "config.json").read_text())["dtype"] == "float32", "what transformers 5 computes in"
    assert json.loads((ROOT / "tokenizer_config.json").read_text())["model_max_length"] == 8192


def test_it_has_the_shape_of_its_preset(model):
    shape = json.loads((ROOT / "train/configs/nano/model.json").read_text())
    tokenizer = load_tokenizer(ROOT)
    assert fields_that_count(model.config).items() >= shape.items()
    assert len(tokenizer) == model.config.vocab_size


@pytest.mark.parametrize("script", TEXTS)
def test_it_has_learned_both_scripts(model, script):
    """A sentence is likelier than its tokens in another order, and than by frequencies alone, each by a factor e a token."""
    tokenizer, generator = load_tokenizer(ROOT), torch.Generator().manual_seed(0)
    for text in TEXTS[script]:
        ids = tokenizer(text, return_tensors="pt")["input_ids"][0]
        inner = ids[1:-1]
        shuffled = torch.cat([ids[:1], inner[torch.randperm(len(inner), generator=generator)], ids[-1:]])
        found = score(model, ids)
        assert found > score(model, shuffled) + 1, text
        assert found > model.decoder.bias.log_softmax(-1)[inner].mean().item() + 1, text
