"""The configuration: what is saved is what is loaded, the layer pattern, and a clear error for what cannot be built."""

import json

import pytest
import transformers

from zh_modernbert import modeling_zh_modernbert as modeling
from zh_modernbert.configuration_zh_modernbert import AUTO_MAP, ZhModernBertConfig

FULL, SLIDING = "full_attention", "sliding_attention"
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
# Every field that shapes the model, at a value that is not its default.
CHANGED = {
    "vocab_size": 512,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "hidden_activation": "silu",
    "max_position_embeddings": 123,
    "initializer_range": 0.03,
    "initializer_cutoff_factor": 3.0,
    "norm_type": "layernorm",
    "norm_eps": 1e-6,
    "norm_bias": True,
    "global_attn_every_n_layers": 2,
    "local_attention": 64,
    "global_rope_theta": 50000.0,
    "local_rope_theta": 500.0,
    "rope_scaling": YARN | {"beta_fast": 16, "beta_slow": 2, "attention_factor": 1.25},
    "attention_bias": True,
    "attention_dropout": 0.1,
    "deterministic_flash_attn": True,
    "embedding_dropout": 0.2,
    "mlp_bias": True,
    "mlp_dropout": 0.3,
    "decoder_bias": False,
    "classifier_pooling": "mean",
    "classifier_dropout": 0.4,
    "classifier_bias": True,
    "classifier_activation": "relu",
    "sparse_prediction": True,
    "sparse_pred_ignore_index": -7,
    "pad_token_id": 10,
    "unk_token_id": 11,
    "cls_token_id": 12,
    "sep_token_id": 13,
    "mask_token_id": 14,
    "bos_token_id": 15,
    "eos_token_id": 16,
    "tie_word_embeddings": False,
}


def assert_holds(config, settings):
    for name, value in settings.items():
        assert getattr(config, name) == value, name


@pytest.mark.parametrize("settings", [{}, CHANGED], ids=["defaults", "changed"])
def test_dict_round_trip(settings):
    config = ZhModernBertConfig(**settings)
    again = ZhModernBertConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert_holds(config, settings)
    assert_holds(again, settings)
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize("settings", [{}, CHANGED], ids=["defaults", "changed"])
def test_save_and_load(tmp_path, settings):
    config = ZhModernBertConfig(**settings, num_labels=3)
    config.save_pretrained(tmp_path)
    loaded = ZhModernBertConfig.from_pretrained(tmp_path)
    assert_holds(loaded, settings)
    assert loaded.num_labels == 3
    assert loaded.to_dict() == config.to_dict()
    overridden = ZhModernBertConfig.from_pretrained(tmp_path, classifier_pooling="cls", local_attention=32)
    assert_holds(overridden, settings | {"classifier_pooling": "cls", "local_attention": 32})


def test_what_is_saved_holds_for_every_reader(tmp_path):
    # Users may run another release of this code: what their defaults are must not matter.
    ZhModernBertConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "zh_modernbert"
    assert saved["auto_map"] == AUTO_MAP
    assert set(CHANGED) - {"rope_scaling"} <= set(saved)
    # transformers 5 warns of rope_scaling wherever it reads it.
    assert not {"rope_scaling", "rope_parameters", "rope_theta"} & set(saved)


def test_defaults_fit_the_tokenizer_and_each_other():
    config = ZhModernBertConfig()
    ids = [getattr(config, f"{name}_token_id") for name in ("pad", "unk", "cls", "sep", "mask", "bos", "eos")]
    assert ids == [0, 1, 2, 3, 4, 2, 3]
    assert config.vocab_size % 64 == 0
    assert config.rope_scaling is None
    assert config.norm_type == "rmsnorm"
    assert config.num_labels == 2


def test_defaults_are_stock_s_where_the_documentation_names_no_other():
    ours, stock = ZhModernBertConfig(), transformers.ModernBertConfig()
    shared = set(CHANGED) & set(stock.to_dict()) - {name for name in CHANGED if name.endswith("_token_id")}
    different = {name for name in shared if getattr(ours, name) != getattr(stock, name)}
    assert len(shared) > 20
    assert different == {"vocab_size"}
    assert ours.layer_types == stock.layer_types
    for name, layer_type in (("global_rope_theta", FULL), ("local_rope_theta", SLIDING)):
        assert getattr(ours, name) == stock.rope_parameters[layer_type]["rope_theta"]
    assert (ours.embedding_initializer_range, ours.tie_word_embeddings) == (None, True)


@pytest.mark.parametrize(
    ("layers", "every", "expected"),
    [
        (7, 3, [FULL, SLIDING, SLIDING, FULL, SLIDING, SLIDING, FULL]),
        (4, 2, [FULL, SLIDING, FULL, SLIDING]),
        (3, 1, [FULL, FULL, FULL]),
        (3, 8, [FULL, SLIDING, SLIDING]),
    ],
)
def test_layer_types_from_the_interval(layers, every, expected):
    config = ZhModernBertConfig(num_hidden_layers=layers, global_attn_every_n_layers=every)
    assert config.layer_types == expected


def test_given_layer_types_win(tmp_path):
    pattern = [SLIDING, SLIDING, FULL]
    config = ZhModernBertConfig(num_hidden_layers=3, layer_types=pattern, global_attn_every_n_layers=1)
    assert config.layer_types == pattern
    config.save_pretrained(tmp_path)
    assert ZhModernBertConfig.from_pretrained(tmp_path).layer_types == pattern


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_attention_heads": 5}, r"hidden_size \(768\) must be num_attention_heads \(5\) times an even head size"),
        ({"hidden_size": 36, "num_attention_heads": 12}, r"hidden_size \(36\) must be num_attention_heads \(12\)"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"norm_type": "batchnorm"}, "norm_type is 'batchnorm'; it must be 'rmsnorm' or 'layernorm'"),
        ({"norm_bias": True}, "norm_bias=True needs norm_type='layernorm'"),
        ({"classifier_pooling": "max"}, "classifier_pooling is 'max'; it must be 'cls' or 'mean'"),
        ({"num_hidden_layers": 3, "layer_types": [FULL]}, "layer_types must name one of .* for each of the 3 layers"),
        ({"num_hidden_layers": 1, "layer_types": ["chunked_attention"]}, "layer_types must name one of"),
        ({"rope_scaling": 4}, "rope_scaling is 4; it must be a mapping"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 0, "original_max_position_embeddings": 64}}, "a number above 0"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": "64"}}, "a number above 0"),
        ({"num_hidden_layers": 1, "layer_types": ["global"]}, "layer_types must name one of"),
        ({"global_attn_every_n_layers": 0}, "global_attn_every_n_layers"),
        ({"local_attention": -1}, "local_attention"),
        ({"rope_scaling": YARN | {"rope_type": "linear"}}, "needs rope_type 'yarn'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "original_max_position_embeddings"),
        ({"rope_scaling": YARN | {"mscale": 1.0}}, "may have .*attention_factor"),
        ({"rope_scaling": {}}, "needs rope_type 'yarn'"),
    ],
    ids=str,
)
def test_errors_name_the_field(settings, message):
    with pytest.raises(ValueError, match=message):
        ZhModernBertConfig(**settings)


def test_auto_map_names_what_exists():
    for auto_class, target in AUTO_MAP.items():
        module, name = target.split(".")
        if auto_class == "AutoConfig":
            assert (module, name) == ("configuration_zh_modernbert", ZhModernBertConfig.__name__)
            continue
        assert module == "modeling_zh_modernbert"
        model_class = getattr(modeling, name)
        assert issubclass(model_class, modeling.ZhModernBertPreTrainedModel)
        assert model_class._auto_class == auto_class
        # transformers finds the loss and the task by how a class is named.
        assert name.endswith(auto_class.removeprefix("AutoModel") or "Model")
    heads = [name for name in vars(modeling) if name.startswith("ZhModernBertFor")]
    assert len(heads) == len(AUTO_MAP) - 2


def test_each_config_has_its_own_auto_map():
    config = ZhModernBertConfig()
    config.auto_map["AutoModel"] = "elsewhere.Model"
    assert ZhModernBertConfig().auto_map == AUTO_MAP
