"""The tests that transformers runs on each of its own models, run on ours.

Only its source distribution has them:

    pip download --no-deps --no-binary transformers -c constraints.txt transformers && tar xf transformers-*.tar.gz
    TRANSFORMERS_SOURCE=$(echo transformers-*/) pytest tests/test_transformers_common.py
"""

import importlib
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType
from unittest import TestCase, mock

import pytest
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from zh_modernbert import modeling_zh_modernbert as modeling
from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig

SOURCE = os.environ.get("TRANSFORMERS_SOURCE")
if not SOURCE:
    pytest.skip("set TRANSFORMERS_SOURCE to transformers' unpacked source distribution", allow_module_level=True)


def import_common_tests(folder: Path):
    """`test_modeling_common` and `test_configuration_common`, with stand-ins for what they import and did not come along."""
    name = "transformers_tests"  # theirs, `tests`, is what ours may be called
    stand_ins = {
        "": {"__path__": [str(folder)]},
        ".exporters.test_export": {"ExportTesterMixin": object},
        ".generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
        ".utils.test_configuration_utils": {"config_common_kwargs": {"return_dict": False, "dtype": "float16"}},
    }
    for suffix, attributes in stand_ins.items():
        sys.modules[name + suffix] = ModuleType(name + suffix)
        vars(sys.modules[name + suffix]).update(attributes)
    with warnings.catch_warnings(action="ignore"), mock.patch("transformers.utils.direct_transformers_import"):
        return [importlib.import_module(f"{name}.{module}") for module in ("test_modeling_common", "test_configuration_common")]


common, configuration_common = import_common_tests(Path(SOURCE) / "tests")

CLASSES = {
    AutoModel: modeling.ZhModernBertModel,
    AutoModelForMaskedLM: modeling.ZhModernBertForMaskedLM,
    AutoModelForSequenceClassification: modeling.ZhModernBertForSequenceClassification,
    AutoModelForTokenClassification: modeling.ZhModernBertForTokenClassification,
    AutoModelForQuestionAnswering: modeling.ZhModernBertForQuestionAnswering,
    AutoModelForMultipleChoice: modeling.ZhModernBertForMultipleChoice,
}


class ModelTester:
    """Two layers, a full one and a sliding one, whose window the texts do not fit in."""

    batch_size, seq_length, num_choices = 13, 7, 4
    is_training = True
    shape = {
        "vocab_size": 99,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 37,
        "local_attention": 4,
        "max_position_embeddings": 512,
    }

    def __init__(self):
        vars(self).update(self.shape)  # the tests read them here

    def get_config(self):
        return ZhModernBertConfig(**self.shape)

    def prepare_config_and_inputs_for_common(self):
        size = [self.batch_size, self.seq_length]
        inputs = {"input_ids": common.ids_tensor(size, self.vocab_size), "attention_mask": common.random_attention_mask(size)}
        return self.get_config(), inputs


class CommonTests(common.ModelTesterMixin, TestCase):
    """Of what stock ModernBERT passes, these tests skip two things for us by themselves, both tested in `test_modeling`:

    - RoPE scaling: they set `rope_parameters`, of which the config has none (YaRN is `rope_scaling`, and a text longer than
      `max_position_embeddings` is refused);
    - what transformers' `capture_outputs` records: 4.57 lacks it, and the model records by itself.
    """

    all_model_classes = tuple(CLASSES.values())
    test_can_init_all_missing_weights_before_2023 = True  # no copyright line here from which to tell the year

    def setUp(self):
        self.model_tester = ModelTester()
        # Known to the auto classes as any custom model is, and in the tables of names by which the tests tell the heads.
        self.enterContext(mock.patch.dict(CONFIG_MAPPING._extra_content, {ZhModernBertConfig.model_type: ZhModernBertConfig}))
        for auto_class, model_class in CLASSES.items():
            table = auto_class._model_mapping
            self.enterContext(mock.patch.dict(table._extra_content, {ZhModernBertConfig: model_class}))
            self.enterContext(mock.patch.dict(table._model_mapping, {ZhModernBertConfig.model_type: model_class.__name__}))

    def test_config(self):
        configuration_common.ConfigTester(self, config_class=ZhModernBertConfig, hidden_size=48).run_common_tests()
