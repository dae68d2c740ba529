"""What is loaded for fine-tuning is what the folder holds."""

import pytest
from transformers import BertConfig, BertModel

from zh_modernbert.eval.finetuning.loading import load_tokenizer, model_hash_of
from zh_modernbert.train.common.cli import InputError


def test_a_model_without_its_tokenizer(tmp_path):
    """transformers makes a tokenizer of five special tokens, by which all text is [UNK]."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=20, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="knows no tokens but special ones"):
        load_tokenizer(str(tmp_path), False)


@pytest.mark.parametrize("name", ["config.json", "vocab.txt", "spiece.model", "modeling_own.py", "model.safetensors"])
def test_the_hash_is_of_all_that_makes_a_model(tmp_path, name):
    for part in ("config.json", "vocab.txt", "spiece.model", "modeling_own.py", "model.safetensors"):
        (tmp_path / part).write_text("{}")
    before = {random_init: model_hash_of(str(tmp_path), random_init) for random_init in (False, True)}
    (tmp_path / "README.md").write_text("about it")
    (tmp_path / "training_args.bin").write_text("not read")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "config.json").write_text("{}")
    assert model_hash_of(str(tmp_path)) == before[False]
    (tmp_path / name).write_text("[]")
    assert model_hash_of(str(tmp_path)) != before[False]
    assert (model_hash_of(str(tmp_path), random_init=True) == before[True]) == (name == "model.safetensors")


def test_of_a_model_on_the_hub_there_is_the_name():
    assert model_hash_of("owner/model") == "owner/model"
