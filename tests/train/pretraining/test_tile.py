"""Tiling: what is in a larger model made of a smaller one, and what it computes."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from tiny import TINY, assert_close, build, make_documents, pack, randomise
from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.train import convert, pretrain
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.pretraining.tile import layer_map, tile, tile_model
from zh_modernbert.train.tokenizer.loading import load_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

WIDER = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 3}


def tiled_from(small: ZhModernBertForMaskedLM, **changes) -> ZhModernBertForMaskedLM:
    fields = ("norm_type", "norm_eps", "norm_bias", "mlp_bias", "attention_bias", "tie_word_embeddings")
    kept = {field: getattr(small.config, field) for field in fields}
    large = ZhModernBertForMaskedLM(ZhModernBertConfig(**TINY | kept | changes)).eval()
    tile_model(small, large)
    return large


def test_the_middle_is_the_small_one_and_wraps_around():
    small = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert tile(small, (4, 6)).tolist() == [[6, 4, 5, 6, 4, 5], [3, 1, 2, 3, 1, 2], [6, 4, 5, 6, 4, 5], [3, 1, 2, 3, 1, 2]]
    assert tile(small, (2, 3)).equal(small)
    assert tile(torch.arange(4), (10,)).tolist() == [1, 2, 3, 0, 1, 2, 3, 0, 1, 2]


def test_layers_are_spread_over_the_depth_by_kind():
    base, large = (["full_attention" if i % 3 == 0 else "sliding_attention" for i in range(n)] for n in (22, 28))
    layers = layer_map(base, large)
    assert [base[i] for i in layers] == large
    assert (layers[0], layers[-1]) == (0, 21)
    assert layers.count(0) == 1  # the only one without a norm
    assert all(abs(i - index * 21 / 27) <= 3 for index, i in enumerate(layers))
    assert set(layers) == set(range(22))
    assert layer_map(base, base) == list(range(22))


@pytest.mark.parametrize(
    "changes", [{}, {"norm_type": "layernorm", "norm_bias": True, "mlp_bias": True, "attention_bias": True}]
)
def test_to_its_own_shape_nothing_changes(changes):
    small = build(**changes)
    large = tiled_from(small)
    state = large.state_dict()
    assert all(value.equal(state[name]) for name, value in small.state_dict().items())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False},
        {"norm_type": "layernorm", "norm_bias": True, "mlp_bias": True, "attention_bias": True},
    ],
)
@pytest.mark.parametrize("spread", [0.0, 0.2])
def test_twice_as_wide_computes_the_same(changes, spread):
    """Of a random model as it begins, whose small embeddings the norm's epsilon weighs on, and of any other."""
    torch.manual_seed(0)
    small = randomise(ZhModernBertForMaskedLM(ZhModernBertConfig(**TINY | changes)).eval(), spread)
    large = tiled_from(small, hidden_size=64, intermediate_size=96, num_attention_heads=4)
    batch = pack(make_documents([30, 50, 7]))
    with torch.no_grad():
        assert_close(large(**batch).logits, small(**batch).logits)


def test_each_part_holds_the_small_one_in_its_middle():
    """One and a half times as wide: 2 heads of 16 in 3, GeGLU's halves of 48 in 80."""
    small = build()
    large = tiled_from(small, num_hidden_layers=6, **WIDER)
    ours, theirs = large.state_dict(), small.state_dict()
    middle, scale = slice(8, 40), 32 / 48
    ours_of, theirs_of = ours["model.embeddings.tok_embeddings.weight"], theirs["model.embeddings.tok_embeddings.weight"]
    assert ours_of[:, middle].equal(theirs_of)
    torch.testing.assert_close(ours["head.norm.weight"][middle], theirs["head.norm.weight"] * scale)
    assert ours["model.final_norm.weight"][middle].equal(theirs["model.final_norm.weight"])
    for index, source in enumerate(layer_map(small.config.layer_types, large.config.layer_types)):
        new, old = f"model.layers.{index}", f"model.layers.{source}"
        heads = ours[f"{new}.attn.Wqkv.weight"].view(3, 3, 16, 48)[:, :2, :, middle]
        torch.testing.assert_close(heads, theirs[f"{old}.attn.Wqkv.weight"].view(3, 2, 16, 32) * scale)
        halves = ours[f"{new}.mlp.Wi.weight"].view(2, 80, 48)[:, 16:64, middle]
        torch.testing.assert_close(halves, theirs[f"{old}.mlp.Wi.weight"].view(2, 48, 32) * scale)
        torch.testing.assert_close(ours[f"{new}.mlp.Wo.weight"][middle, 16:64], theirs[f"{old}.mlp.Wo.weight"] * 48 / 80)
        torch.testing.assert_close(ours[f"{new}.attn.Wo.weight"][middle, :32], theirs[f"{old}.attn.Wo.weight"] * scale)


def test_wider_heads_hold_the_small_ones_half_by_half():
    """2 heads of 16 in 2 of 32. RoPE turns dimension i together with the one half a head on."""
    small = build()
    large = tiled_from(small, hidden_size=64)
    new, old = (model.state_dict()["model.layers.1.attn.Wqkv.weight"] for model in (large, small))
    halves = new.view(3, 2, 2, 16, 64)[:, :, :, 4:12, 16:48]
    torch.testing.assert_close(halves, old.view(3, 2, 2, 8, 32) * 32 / 64)


def test_the_first_layer_may_be_the_only_one_of_its_kind():
    pattern = ["full_attention", *["sliding_attention"] * 3]
    small = build(layer_types=pattern)
    large = tiled_from(small, num_hidden_layers=6, layer_types=[*pattern, *pattern[2:]])
    ours, theirs = large.state_dict(), small.state_dict()
    for index, source in enumerate((0, 1, 1, 2, 2, 3)):
        name = "model.layers.{}.mlp.Wo.weight".format
        assert ours[name(index)].equal(theirs[name(source)])
    with pytest.raises(InputError, match="layer_types"):
        tiled_from(small, layer_types=[*pattern[:3], "full_attention"])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": 16}, "hidden_size"),
        ({"num_hidden_layers": 3}, "num_hidden_layers"),
        ({"num_attention_heads": 4}, "num_attention_heads"),
        ({"vocab_size": 128}, "vocab_size"),
        ({"norm_type": "layernorm"}, "norm_type"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_tiled(changes, named):
    with pytest.raises(InputError, match=named):
        tile_model(build(), ZhModernBertForMaskedLM(ZhModernBertConfig(**TINY | changes)))


# --- as a start of pretraining -----------------------------------------------------------------------------------------


@pytest.fixture
def run(stages, tmp_path):
    """Pretrains `updates` in `tmp_path / name`, and gives the losses."""

    def run(name: str, updates: int, **changes) -> list[float]:
        settings = {"data_dir": str(stages / "packed"), "output_dir": str(tmp_path / name), "max_steps": updates}
        settings |= {"per_device_batch_size": 8, "learning_rate": 1e-2, "logging_steps": 1}
        pretrain.main(pretrain.Settings(**settings | changes))
        return [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]

    return run


def test_a_tiled_model_starts_where_the_small_one_ended(run, stages, tmp_path):
    small = run("small", 30, model_config=str(stages / "model.json"))
    larger = json.loads((stages / "model.json").read_text()) | WIDER | {"num_hidden_layers": 6}
    (tmp_path / "larger.json").write_text(json.dumps(larger))
    random = run("random", 1, model_config=str(tmp_path / "larger.json"))
    tiled = run("tiled", 1, model_config=str(tmp_path / "larger.json"), init_from=str(tmp_path / "small" / "model"))
    assert small[-1] < random[0] - 0.5  # there is something to keep
    assert tiled[0] < small[-1] + 0.3 * (random[0] - small[-1])


def test_from_a_converted_stock_model(run, stages, tmp_path):
    """Of LayerNorm and in bfloat16; it starts where it was, and trains in float32."""
    tokenizer = load_tokenizer(stages / "tokenizer")
    roles = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("pad", "cls", "sep", "mask")}
    shape = json.loads((stages / "model.json").read_text()) | {"vocab_size": 512, **roles}
    config = transformers.ModernBertConfig(**shape, bos_token_id=roles["cls_token_id"], eos_token_id=roles["sep_token_id"])
    transformers.ModernBertForMaskedLM(config).bfloat16().save_pretrained(tmp_path / "stock")
    tokenizer.save_pretrained(tmp_path / "stock")
    written = json.loads((tmp_path / "stock" / "tokenizer_config.json").read_text())
    written.pop("auto_map", None)
    (tmp_path / "stock" / "tokenizer_config.json").write_text(
        json.dumps(written | {"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    convert.main(convert.Settings(source=str(tmp_path / "stock"), output_dir=str(tmp_path / "converted")))
    losses = run("run", 8, init_from=str(tmp_path / "converted"))
    assert losses[-1] < losses[0]
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("converted", "run/model"))
    assert before.keys() == after.keys()
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    assert json.loads((tmp_path / "run/model/config.json").read_text())["norm_type"] == "layernorm"
