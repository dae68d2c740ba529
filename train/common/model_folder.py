"""Writing a model's folder: weights, config and tokenizer, with this project's code or without."""

import shutil
from pathlib import Path

from transformers import PreTrainedModel

from zh_modernbert.configuration_zh_modernbert import AUTO_MAP
from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.tokenization_zh_modernbert import ZhModernBertTokenizer
from zh_modernbert.train.common.files import replacing

PROJECT = Path(__file__).resolve().parents[2]
ROOT_FILES = [PROJECT / f"{name}_zh_modernbert.py" for name in ("configuration", "modeling", "tokenization")]


def write_model(folder: Path, model: PreTrainedModel) -> None:
    """Weights, config and code: all of a published folder but tokenizer and card."""
    model.config.auto_map = dict(AUTO_MAP)
    model.save_pretrained(folder)
    for path in ROOT_FILES:
        shutil.copyfile(path, folder / path.name)


def save_model(folder: Path, model: ZhModernBertForMaskedLM, tokenizer: ZhModernBertTokenizer) -> None:
    """The trained model and its tokenizer, written aside and renamed."""
    tokenizer.model_max_length = model.config.max_position_embeddings
    with replacing(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
