"""The presets of pretraining: each parses and passes the checks, and the stages of a system fit one another."""

import json
from pathlib import Path

import pytest
import yaml

from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.train import pretrain, train_tokenizer
from zh_modernbert.train import sources as sources_script
from zh_modernbert.train.common import cli
from zh_modernbert.train.pretraining.set_up import rows_per_update
from zh_modernbert.train.rows.dataloader import micro_batches_of_updates

ROOT = Path(__file__).resolve().parents[2]
SYSTEMS = sorted(path.parent.name for path in (ROOT / "train" / "configs").glob("*/pretrain_1k.yaml"))
# What the stages share: the recipe but for its length, its rows, and how its rate rises and falls.
SHARED = ("masking", "mask_replace_prob", "random_replace_prob", "optimizer", "adam_beta1", "adam_beta2", "adam_epsilon")
SHARED += ("weight_decay", "max_grad_norm", "schedule", "mixed_precision")


def stages(system: str) -> list[pretrain.Settings]:
    names = [f"train/configs/{system}/pretrain_{stage}.yaml" for stage in ("1k", "8k")]
    settings = [cli.parse(pretrain.Settings, [str(ROOT / name)], "pretrain") for name in names]
    for stage in settings:
        pretrain.check(stage)
    return settings


def tokens_per_update(settings: pretrain.Settings) -> int:
    rows = rows_per_update(settings, settings.seq_len, 8)
    assert micro_batches_of_updates(rows, settings.per_device_batch_size, 8).all()  # can be shared by 8 GPUs
    return int(rows[-1]) * settings.seq_len


def model_of(system: str) -> ZhModernBertConfig:
    return ZhModernBertConfig(**json.loads((ROOT / "train" / "configs" / system / "model.json").read_text()))


@pytest.mark.parametrize("system", SYSTEMS)
def test_stage_two_goes_on_from_stage_one(system):
    one, two = stages(system)
    assert two.init_from == f"{one.output_dir}/model"
    assert (Path(one.data_dir).parent, Path(one.data_dir).name) == (Path(two.data_dir).parent, "packed_1024")
    assert Path(two.data_dir).name == "packed_8192"
    assert (one.seq_len, two.seq_len) == (1024, 8192)
    assert {name: getattr(one, name) for name in SHARED} == {name: getattr(two, name) for name in SHARED}
    assert two.learning_rate < one.learning_rate
    assert two.mlm_probability == one.mlm_probability[-1:]
    assert model_of(system).max_position_embeddings == 8192
    assert two.global_rope_theta in (0, model_of(system).global_rope_theta)


@pytest.mark.parametrize("system", ["base", "system_a"])
def test_an_update_has_as_many_tokens_in_both_stages(system):
    one, two = stages(system)
    assert tokens_per_update(one) == tokens_per_update(two)


def test_system_a_is_as_published():
    one, two = stages("system_a")
    config = model_of("system_a")
    shape = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.intermediate_size)
    assert shape == (28, 1024, 16, 2624)
    assert (config.norm_type, config.global_rope_theta, config.local_rope_theta) == ("rmsnorm", 80000, 10000)
    assert (config.global_attn_every_n_layers, config.local_attention) == (3, 128)
    assert (one.optimizer, one.adam_beta1, one.adam_beta2, one.weight_decay) == ("stable_adamw", 0.9, 0.95, 0.1)
    assert (one.max_grad_norm, one.masking, one.mixed_precision) == (1.0, "whole_word", "bf16")
    assert (one.schedule, one.learning_rate, one.warmup_lr_ratio * one.learning_rate) == ("damped_cosine", 8e-4, 5e-5)
    assert (two.learning_rate, two.min_lr_ratio * two.learning_rate) == (1e-4, 5e-5)
    assert one.mlm_probability == [0.15, 0.3, 0.15]
    assert one.mixture == two.mixture
    assert sorted(one.mixture.values()) == [0.03, 0.1, 0.1, 0.2, 0.57]
    sources = cli.parse(sources_script.Settings, [str(ROOT / "train/configs/system_a/data.yaml")], "sources")
    assert set(one.mixture) == {source.name for source in sources.input}
    assert {source.script for source in sources.input} == {"hans"}
    tokenizer = cli.parse(train_tokenizer.Settings, [str(ROOT / "train/configs/system_a/tokenizer.yaml")], "train_tokenizer")
    assert (tokenizer.sample_fraction, tokenizer.hans_share) == (0.15, None)  # balanced, Simplified would not be learned from


def test_system_b_is_as_published():
    one, two = stages("system_b")
    assert (one.max_steps, tokens_per_update(one)) == (233000, 512 * 1024)
    assert (two.max_steps, tokens_per_update(two)) == (40000, 512 * 8192)
    assert (one.optimizer, one.adam_beta1, one.adam_beta2, one.adam_epsilon, one.weight_decay) == (
        "adamw",
        0.9,
        0.999,
        1e-8,
        1e-5,
    )
    assert (one.schedule, one.learning_rate, two.learning_rate) == ("warmup_stable_decay", 8e-4, 3e-4)
    assert one.masking == "ngram"
    assert (model_of("system_b").norm_type, model_of("system_b").global_rope_theta) == ("layernorm", 160000)


def test_base_is_system_a_at_another_size():
    for ours, theirs in zip(stages("base"), stages("system_a"), strict=True):
        assert cli.recipe_of(ours) | {"init_from": "", "model_config": ""} == cli.recipe_of(theirs) | {
            "init_from": "",
            "model_config": "",
        }
    config, large = model_of("base"), model_of("system_a")
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.intermediate_size) == (
        22,
        768,
        12,
        1152,
    )
    sizes = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "layer_types")
    ours, theirs = ({k: v for k, v in each.to_dict().items() if k not in sizes} for each in (config, large))
    assert ours == theirs


@pytest.mark.parametrize("system", ["system_a", "system_b"])
def test_every_stage_of_a_large_corpus_is_shared_by_workers(system):
    stages = yaml.safe_load((ROOT / "train" / "configs" / system / "data.yaml").read_text(encoding="utf-8"))
    assert {stage: settings.get("workers") for stage, settings in stages.items()} == dict.fromkeys(stages, 16)
