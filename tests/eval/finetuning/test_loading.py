"""What is loaded for fine-tuning is what the folder holds."""

import pytest
from transformers import BertConfig, BertModel

from zh_modernbert.eval.finetuning.loading import load_tokenizer
from zh_modernbert.train.common.cli import InputError


def test_a_model_without_its_tokenizer(tmp_path):
    """transformers makes a tokenizer of five special tokens, by which all text is [UNK]."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=20, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="knows no tokens but special ones"):
        load_tokenizer(str(tmp_path), False)
