"""A stock ModernBERT becomes this model with the same numbers, or nothing is written and one line says why."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from zh_modernbert.configuration_zh_modernbert import AUTO_MAP, ZhModernBertConfig
from zh_modernbert.train import convert
from zh_modernbert.train.common import cli
from zh_modernbert.train.common import stock as beside_stock
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.model_folder import ROOT_FILES

TINY = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "local_attention": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 3,
    "cls_token_id": 1,
    "bos_token_id": 1,
    "sep_token_id": 2,
    "eos_token_id": 2,
}
BIASES = {name: True for name in ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias")}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
HEADS = ("MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice")
ARCHITECTURES = ("ModernBertModel", *(f"ModernBertFor{head}" for head in HEADS))
TEXTS = ["今天天氣很好。", "It is 2024年 <x>。"]
EMBEDDINGS = "model.embeddings.tok_embeddings.weight"


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """A tokenizer as stock ModernBERTs have it, saved as transformers 5 does."""
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "<x>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(TEXTS * 3, trainer)
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    roles = {f"{token[1:-1].lower()}_token": token for token in special[:-1]}
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=backend, **roles, extra_special_tokens=["<x>"]).save_pretrained(folder)
    return folder


@pytest.fixture
def save_stock(tokenizer, tmp_path):
    """Saves a random stock model in `source/` and returns it with the folder."""

    def save(architecture="ModernBertForMaskedLM", dtype=torch.float32, legacy=False, **changes):
        folder = shutil.copytree(tokenizer, tmp_path / "source")
        config = transformers.ModernBertConfig(**TINY | changes)
        model = getattr(transformers, architecture)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # norms, biases and the pad's row too
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
        model.to(dtype).save_pretrained(folder)
        if legacy:
            spell_as_transformers_4(folder, config)
        return model, folder

    return save


def spell_as_transformers_4(folder: Path, config) -> None:
    written = json.loads((folder / "config.json").read_text())
    layer_types, rope = written.pop("layer_types"), written.pop("rope_parameters")
    written |= {
        "global_attn_every_n_layers": [*layer_types[1:], "full_attention"].index("full_attention") + 1,
        "global_rope_theta": rope["full_attention"]["rope_theta"],
        "local_rope_theta": rope["sliding_attention"]["rope_theta"],
        "torch_dtype": written.pop("dtype"),
        "transformers_version": "4.48.0",
        "_name_or_path": "/home/someone/checkpoint-5000",
        "layer_norm_eps": 1e-3,
        "position_embedding_type": "sans_pos",
        "reference_compile": True,
        "repad_logits_with_grad": False,
        "gradient_checkpointing": False,
    }
    (folder / "config.json").write_text(json.dumps(written))


def change_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def convert_to(folder: Path, output_dir: Path) -> dict:
    return convert.main(convert.Settings(source=str(folder), output_dir=str(output_dir)))


def run_convert(monkeypatch, *arguments) -> None:
    """What the command line does, in this process."""
    monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, arguments)])
    cli.run(convert.main, convert.Settings)


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """The one line that a conversion of `source/` ends with; nothing is left behind."""

    def run(source=tmp_path / "source", output_dir=tmp_path / "converted"):
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run_convert(monkeypatch, "--source", source, "--output_dir", output_dir)
        assert stop.value.code == 2
        assert sorted(tmp_path.rglob("*")) == before
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
        return printed.err

    return run


# --- the same numbers -------------------------------------------------------------------------------------------------


def padded_batch(architecture: str):
    """Four rows with pads on the right, longer than the window, and where real tokens are."""
    real = torch.arange(60) < torch.tensor([60, 37, 9, 1])[:, None]
    batch = {"input_ids": torch.randint(300, real.shape), "attention_mask": real.long()}
    if architecture.endswith("MultipleChoice"):
        batch = {name: tensor.view(2, 2, -1) for name, tensor in batch.items()}
    return batch, real


def assert_same_outputs(stock, folder: Path):
    architecture = type(stock).__name__
    ours = convert.ARCHITECTURES[architecture].from_pretrained(folder, dtype=torch.float32)
    batch, real = padded_batch(architecture)
    with torch.no_grad():
        expected, actual = stock(**batch), ours(**batch)
    assert set(expected) == set(actual)
    for name in expected.keys() - {"hidden_states"}:
        theirs = expected[name]
        pair = (actual[name], theirs)
        if name in ("last_hidden_state", "start_logits", "end_logits") or theirs.shape[:2] == real.shape:
            pair = (states[real] for states in pair)
        torch.testing.assert_close(*pair, rtol=0, atol=1e-5 * theirs.abs().max().item())


VARIANTS = {
    "as it is": {},
    "legacy": {"legacy": True},
    "biases, mean": BIASES | {"classifier_pooling": "mean"},
    "legacy, biases, mean": BIASES | {"legacy": True, "classifier_pooling": "mean"},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_and_spelling(save_stock, tmp_path, capsys, architecture, variant):
    labels = {"num_labels": 3} if architecture.endswith(("SequenceClassification", "TokenClassification")) else {}
    stock, source = save_stock(architecture, **VARIANTS[variant], **labels)
    result = convert_to(source, tmp_path / "converted")
    assert result["architecture"] == architecture
    assert result["num_parameters"] == stock.num_parameters()
    assert 0 < result["max_relative_diff"] <= 1e-5
    assert 0 < result["max_abs_diff"] < 1e-4
    printed = capsys.readouterr().err
    compared = [what for what in ("hidden states", "logits") if f"{what}: largest difference" in printed]
    assert compared == (["hidden states"] if architecture == "ModernBertModel" else ["hidden states", "logits"])
    assert_same_outputs(stock, tmp_path / "converted")


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": False},
        {"decoder_bias": False, "hidden_activation": "silu", "classifier_activation": "relu", "norm_eps": 1e-3},
        {"layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]},
        {"layer_types": ["full_attention"] * 4},
        {"local_attention": 9},
        {"local_attention": 4096},
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 500.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 77.0},
            }
        },
        {"output_hidden_states": True, "sparse_prediction": True, "mlp_dropout": 0.5},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_every_shape(save_stock, tmp_path, changes):
    stock, source = save_stock(**changes)
    convert_to(source, tmp_path / "converted")
    assert_same_outputs(stock, tmp_path / "converted")


@pytest.mark.parametrize("more", [{}, {"beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.5}])
def test_yarn(save_stock, tmp_path, more):
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    full = YARN | more | {"rope_theta": 500.0}
    stock, source = save_stock(rope_parameters={"full_attention": full, "sliding_attention": plain})
    convert_to(source, tmp_path / "converted")
    assert json.loads((tmp_path / "converted" / "config.json").read_text())["rope_scaling"] == YARN | more
    assert_same_outputs(stock, tmp_path / "converted")


def test_legacy_fields_are_read(save_stock, tmp_path):
    _, source = save_stock(legacy=True)
    change_config(source, global_attn_every_n_layers=2, global_rope_theta=500.0, local_rope_theta=77.0)
    convert_to(source, tmp_path / "converted")
    written = json.loads((tmp_path / "converted" / "config.json").read_text())
    assert written["layer_types"] == ["full_attention", "sliding_attention"] * 2
    assert (written["global_rope_theta"], written["local_rope_theta"]) == (500.0, 77.0)
    assert written["norm_eps"] == 1e-5, "layer_norm_eps is not what ModernBERT reads"


def test_null_is_not_a_setting(save_stock, tmp_path):
    _, source = save_stock()
    change_config(source, global_rope_theta=None, local_rope_theta=None, rope_theta=None, problem_type=None, id2label=None)
    convert_to(source, tmp_path / "converted")
    written = json.loads((tmp_path / "converted" / "config.json").read_text())
    assert (written["global_rope_theta"], written["local_rope_theta"]) == (160000.0, 10000.0)


def test_a_bare_model_saved_under_the_names_of_a_head(save_stock, tmp_path):
    stock, source = save_stock("ModernBertModel")
    tensors = {f"model.{name}": tensor.contiguous() for name, tensor in stock.state_dict().items()}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    convert_to(source, tmp_path / "converted")
    assert_same_outputs(stock, tmp_path / "converted")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_stays(save_stock, tmp_path, dtype):
    stock, source = save_stock(dtype=dtype)
    change_config(source, dtype="float32")  # what the weights are counts, not what the config says
    result = convert_to(source, tmp_path / "converted")
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "converted"))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) and after[name].dtype == dtype for name, tensor in before.items())
    assert result["dtype"] == str(dtype).removeprefix("torch.")
    assert convert.ARCHITECTURES[result["architecture"]].from_pretrained(tmp_path / "converted").dtype == dtype
    assert result["max_relative_diff"] <= 1e-5, "compared in half precision"
    assert_same_outputs(type(stock).from_pretrained(source, dtype=torch.float32), tmp_path / "converted")


def test_shards(save_stock, tmp_path, refused):
    stock, source = save_stock()
    (source / "model.safetensors").unlink()
    stock.save_pretrained(source, max_shard_size="50KB")
    shards = sorted(source.glob("*.safetensors"))
    assert len(shards) > 2
    convert_to(source, tmp_path / "converted")
    assert_same_outputs(stock, tmp_path / "converted")
    shutil.rmtree(tmp_path / "converted")
    shards[1].unlink()
    assert shards[1].name in refused()
    (source / "model.safetensors.index.json").write_text("{}")
    assert "model.safetensors.index.json" in refused()


# --- RMSNorm ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "eps"),
    [
        ({"norm_type": "rmsnorm"}, 1e-5),
        ({"normalization": "RMS_Norm", "norm_eps": 1e-3}, 1e-3),
        (
            {
                "use_rms_norm": True,
                "model_type": "chinese_modernbert",
                "architectures": ["ChineseModernBertForMaskedLM"],
                "auto_map": {"AutoConfig": "mine.Config", "AutoModelForMaskedLM": "mine.Model"},
            },
            1e-5,
        ),
        ({"rms_norm_eps": 1e-3, "norm_eps": 1e-3, "auto_map": {"AutoModel": "mine.Model"}}, 1e-3),
        ({}, 1e-5),  # the config says nothing, the user does
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_source_with_rmsnorm(save_stock, tmp_path, changes, eps):
    stock, source = save_stock()
    change_config(source, **changes)
    chosen = "" if changes else "rmsnorm"
    settings = convert.Settings(source=str(source), output_dir=str(tmp_path / "converted"), norm_type=chosen)
    assert convert.main(settings)["norm_type"] == "rmsnorm"
    written = json.loads((tmp_path / "converted" / "config.json").read_text())
    assert (written["norm_type"], written["norm_eps"], written["model_type"]) == ("rmsnorm", eps, "zh_modernbert")
    for name, norm in list(stock.named_modules()):
        if isinstance(norm, torch.nn.LayerNorm):
            stock.set_submodule(name, RootMeanSquare(norm.weight, eps))
    assert_same_outputs(stock, tmp_path / "converted")


class RootMeanSquare(torch.nn.Module):
    """RMSNorm by its definition."""

    def __init__(self, weight, eps):
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, states):
        return states / (states.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.weight


def test_a_config_that_says_another_norm_than_the_user(save_stock, tmp_path):
    _, source = save_stock()
    change_config(source, norm_type="layernorm")
    convert_to(source, tmp_path / "converted")
    with pytest.raises(InputError, match="norm_type is 'layernorm'; which is not rmsnorm"):
        convert.main(convert.Settings(str(source), str(tmp_path / "other"), norm_type="rmsnorm"))


# --- a tokenizer with code of its own ---------------------------------------------------------------------------------

TOKENIZER_CODE = """
from transformers import PreTrainedTokenizerFast

open(%r, "a").write("run")


class Mine(PreTrainedTokenizerFast):
    def __call__(self, text, do_text_preprocessing=True, **options):
        return super().__call__(text.replace("２", "2") if do_text_preprocessing else text + %r, **options)
"""


@pytest.fixture
def with_code(save_stock, tmp_path, monkeypatch):
    """A source whose tokenizer has code, which leaves a mark when it is run; `added` is what it adds to each text."""

    def save(added=""):
        _, source = save_stock()
        (source / "mine.py").write_text(TOKENIZER_CODE % (str(tmp_path / "mark"), added))
        path = source / "tokenizer_config.json"
        config = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": [None, "mine.Mine"]}, "tokenizer_class": "Mine"}
        path.write_text(json.dumps(config | {"do_text_preprocessing": True}))
        return source

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    return save


def test_code_of_a_tokenizer_is_run_only_when_asked_and_left_out(with_code, refused, tmp_path, capsys):
    source = with_code()
    assert "--trust_remote_code true" in refused()
    assert not (tmp_path / "mark").exists()
    convert.main(convert.Settings(str(source), str(tmp_path / "converted"), trust_remote_code=True))
    assert (tmp_path / "mark").read_text().startswith("run")
    assert "code is left out" in capsys.readouterr().err
    assert not (tmp_path / "converted" / "mine.py").exists()
    config = json.loads((tmp_path / "converted" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"auto_map", "do_text_preprocessing"} & set(config)
    text = "２０２４年，今天"
    plain = AutoTokenizer.from_pretrained(tmp_path / "converted")(text, return_offsets_mapping=True)
    assert plain["offset_mapping"][-2][1] == len(text)
    assert plain["input_ids"] == PreTrainedTokenizerFast.from_pretrained(source)(text)["input_ids"]


def test_code_of_a_tokenizer_that_gives_other_ids(with_code, tmp_path):
    source = with_code("more")
    with pytest.raises(InputError, match=r"other ids than the tokenizer's code does.*train/transfer_tokenizer\.py"):
        convert.main(convert.Settings(str(source), str(tmp_path / "converted"), trust_remote_code=True))
    assert not (tmp_path / "converted").exists()


# --- what is written --------------------------------------------------------------------------------------------------


def test_the_published_folder(save_stock, tmp_path):
    _, source = save_stock("ModernBertForTokenClassification", num_labels=3, legacy=True)
    carried = {
        "id2label": {"0": "O", "1": "B", "2": "I"},
        "label2id": {"O": 0, "B": 1, "I": 2},
        "mask_token_id": 4,
        "problem_type": "single_label_classification",
        "sentence_transformers": {"version": "5.0"},
    }
    change_config(source, **carried)
    convert_to(source, tmp_path / "converted")
    names = {path.name for path in (tmp_path / "converted").iterdir()}
    tokenizer_files = {"tokenizer.json", "tokenizer_config.json"}
    assert names == {"config.json", "model.safetensors", "README.md", *tokenizer_files, *(path.name for path in ROOT_FILES)}
    assert all((tmp_path / "converted" / path.name).read_bytes() == path.read_bytes() for path in ROOT_FILES)
    card = ModelCard.load(tmp_path / "converted" / "README.md")
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "token-classification",
        "tags": ["token-classification", "modernbert"],
    }
    assert "The source names no licence." in card.text
    assert "AutoModelForTokenClassification.from_pretrained(" in card.text
    assert str(tmp_path) not in card.text
    text = (tmp_path / "converted" / "config.json").read_text()
    assert "/home/someone" not in text
    assert str(tmp_path) not in text
    written = json.loads(text)
    assert written["auto_map"] == AUTO_MAP
    assert written["architectures"] == ["ZhModernBertForTokenClassification"]
    assert {name: written[name] for name in carried} == carried
    for name in TINY:
        assert written[name] == TINY[name], name
    assert written["unk_token_id"] is None, "our own default is not the id of this tokenizer"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tokenizer_class": "PreTrainedTokenizerFast"},
        {"tokenizer_class": "BertTokenizer"},  # its own pipeline is not that of this tokenizer.json
        {"tokenizer_class": "LlamaTokenizerFast"},
        {"tokenizer_class": None},
    ],
    ids=str,
)
def test_tokenizers(save_stock, tmp_path, changes):
    _, source = save_stock()
    path = source / "tokenizer_config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    convert_to(source, tmp_path / "converted")
    stock, ours = (AutoTokenizer.from_pretrained(folder) for folder in (source, tmp_path / "converted"))
    assert ours(TEXTS).data == stock(TEXTS).data
    assert ours.mask_token_id == stock.mask_token_id == 4
    assert ours.all_special_tokens == stock.all_special_tokens
    assert (tmp_path / "converted" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    written = json.loads((tmp_path / "converted" / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 4 knows no TokenizersBackend,
    assert written["additional_special_tokens"] == ["<x>"]  # and fails on a list of extra_special_tokens


def test_a_tokenizer_that_loads_everywhere_is_left_as_it_is(save_stock, tmp_path):
    _, source = save_stock()
    config = '{"tokenizer_class":"PreTrainedTokenizerFast",   "model_input_names":["input_ids","attention_mask"]}'
    (source / "tokenizer_config.json").write_text(config)
    (source / "special_tokens_map.json").write_text('{"mask_token": "[MASK]"}')
    convert_to(source, tmp_path / "converted")
    assert (tmp_path / "converted" / "tokenizer_config.json").read_text() == config
    assert (tmp_path / "converted" / "special_tokens_map.json").read_text() == '{"mask_token": "[MASK]"}'


def test_a_hub_id_on_the_command_line(save_stock, tmp_path, monkeypatch, capsys):
    _, source = save_stock()
    (source / "README.md").write_text("---\nlicense: mit\nlanguage: [en]\ntags: [theirs]\n---\n# Theirs\n")
    repository = tmp_path / "hub" / "models--me--stock"
    shutil.copytree(source, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    run_convert(monkeypatch, "--source", "me/stock", "--output_dir", tmp_path / "converted")
    printed = capsys.readouterr()
    result = json.loads(printed.out.splitlines()[-1])
    assert result["max_abs_diff"] > 0
    card = ModelCard.load(tmp_path / "converted" / "README.md")
    assert (card.data.license, card.data.language, card.data.base_model) == ("mit", ["en"], "me/stock")
    assert "The weights of [me/stock](https://huggingface.co/me/stock) in the form" in card.text
    assert "It has the source's licence, mit." in card.text
    assert result["output_dir"] == str(tmp_path / "converted")
    for what in ("hidden states", "logits"):
        assert f"{what}: largest difference" in printed.err


# What a user runs where this project is not installed.
USER = """
import sys

sys.modules["zh_modernbert"] = None
from transformers import AutoModelForMaskedLM, AutoTokenizer

model = AutoModelForMaskedLM.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
print(type(model).__module__.split(".")[0])
print(model(**tokenizer(sys.argv[2], return_tensors="pt")).logits.flatten().tolist())
"""


def test_it_loads_without_this_project(save_stock, tmp_path):
    stock, source = save_stock()
    convert_to(source, tmp_path / "converted")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", USER, str(tmp_path / "converted"), TEXTS[0]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    module, logits = done.stdout.strip().splitlines()
    assert module == "transformers_modules"
    with torch.no_grad():
        expected = stock(**AutoTokenizer.from_pretrained(source)(TEXTS[0], return_tensors="pt")).logits.flatten()
    torch.testing.assert_close(torch.tensor(json.loads(logits)), expected, rtol=1e-4, atol=1e-4)


# --- what the comparison notices --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "longest"), [(16, 256), (128, 8192), (0, 8192), (128, 20), (128, 1)])
def test_batches(window, longest):
    config = ZhModernBertConfig(vocab_size=50, local_attention=window, max_position_embeddings=longest)
    batches = list(beside_stock.random_batches(config))
    assert [side for side, _, _ in batches] == ["right", "left"]
    (_, ids, right), (_, _, left) = batches
    lengths = right.sum(1).tolist()
    assert max(lengths) == min(window + 33, longest) == ids.shape[1]
    assert len(set(lengths)) == min(len(lengths), longest)
    assert min(lengths) == 1
    assert right[:, 0].all()
    assert left[:, -1].all()
    assert left.sum(1).tolist() == lengths
    assert 0 <= ids.min() <= ids.max() < 50


@pytest.fixture
def differs(tmp_path):
    """The error of a conversion that goes wrong, after which nothing is left."""

    def run(source):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(InputError, match="differ from those of transformers'") as error:
            convert_to(source, tmp_path / "converted")
        assert sorted(tmp_path.rglob("*")) == before
        return str(error.value)

    return run


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("model.layers.2.attn.Wqkv.weight", 1e-2, "hidden states"),
        ("model.layers.3.mlp.Wo.weight", 1e-2, "hidden states"),
        ("decoder.bias", 1e-2, "logits"),
        ("head.norm.weight", 1e-2, "logits"),
        ("model.final_norm.weight", float("nan"), "hidden states"),
        ("decoder.bias", float("nan"), "logits"),
    ],
)
def test_a_changed_weight_is_noticed(save_stock, monkeypatch, differs, name, value, what):
    _, source = save_stock()
    original = convert.build_model

    def build_model(*arguments):
        model = original(*arguments)
        with torch.no_grad():
            model.get_parameter(name).view(-1)[5] += value
        return model

    monkeypatch.setattr(convert, "build_model", build_model)
    assert what in differs(source)


def test_what_differs_by_rounding_alone_is_compared_in_float64(save_stock, monkeypatch, tmp_path):
    _, source = save_stock()
    in_float32, compare = [], beside_stock.compare

    def rounded(stock, ours):
        found = compare(stock, ours)
        if ours.dtype == torch.float32:
            in_float32.append(found)
            found = {what: (difference, 2e-5) for what, (difference, _) in found.items()}
        return found

    monkeypatch.setattr(beside_stock, "compare", rounded)
    result = convert_to(source, tmp_path / "converted")
    assert result["compared_in"] == "float64"
    # Nearer than float32 was, so it was float64 indeed, but for positions, which turn in float32.
    assert result["max_relative_diff"] < max(share for _, share in in_float32[0].values())


@pytest.mark.parametrize(
    ("architecture", "field", "value"),
    [
        *(("ModernBertModel", *change) for change in (
            ("local_attention", 14),
            ("local_attention", 18),
            ("global_rope_theta", 150000.0),
            ("local_rope_theta", 9000.0),
            ("norm_eps", 1e-3),
            ("hidden_activation", "gelu_new"),
            ("layer_types", ["full_attention"] * 4),
        )),
        ("ModernBertForMaskedLM", "classifier_activation", "gelu_new"),
        ("ModernBertForSequenceClassification", "classifier_pooling", "mean"),
        ("ModernBertForMultipleChoice", "classifier_pooling", "mean"),
    ],
)  # fmt: skip
def test_a_changed_field_is_noticed(save_stock, monkeypatch, differs, architecture, field, value):
    _, source = save_stock(architecture)
    original = convert.read_config

    def read_config(path, norm_type):
        name, config = original(path, norm_type)
        setattr(config, field, value)
        return name, config

    monkeypatch.setattr(convert, "read_config", read_config)
    differs(source)


# --- what is refused --------------------------------------------------------------------------------------------------

PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "bert"}, ["model_type is 'bert'"]),
        ({"model_type": "zh_modernbert"}, ["model_type is 'zh_modernbert'"]),
        ({"architectures": None}, ["architectures is None", "ModernBertForMaskedLM"]),
        ({"architectures": ["ModernBertForCausalLM"]}, ["architectures is ['ModernBertForCausalLM']"]),
        ({"architectures": [{}]}, ["architectures is [{}]"]),
        ({"max_position_embeddings": 0}, ["max_position_embeddings is 0"]),
        ({"pad_token_id": 9999}, ["no model can be built of it"]),
        ({"mlp_dropout": 3.0}, ["no model can be built of it"]),
        ({"return_dict": False}, ["return_dict is False"]),
        ({"output_attentions": True}, ["output_attentions is True"]),
        ({"use_qk_norm": True}, ["use_qk_norm is True"]),
        ({"head_dim": 16}, ["head_dim is 16"]),
        ({"norm_type": "batchnorm"}, ["norm_type is 'batchnorm'"]),
        ({"norm_type": "rmsnorm", "norm_bias": True}, ["norm_bias is True"]),
        ({"norm_type": "rmsnorm", "use_rms_norm": False}, ["use_rms_norm is False", "rmsnorm"]),
        ({"rms_norm_eps": 1e-6, "norm_eps": 1e-5}, ["rms_norm_eps is 1e-06", "norm_eps"]),
        ({"norm_type": "rmsnorm", "model_type": "llama"}, ["model_type is 'llama'"]),
        ({"norm_type": "rmsnorm", "model_type": "zh_modernbert"}, ["model_type is 'zh_modernbert'"]),
        ({"auto_map": {"AutoModel": "mine.Model"}}, ["auto_map is {'AutoModel': 'mine.Model'}"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config is {'bits': 4}"]),
        ({"layer_types": ["full_attention", "chunked_attention"] * 2}, ["layer_types is", "chunked_attention"]),
        ({"layer_types": ["full_attention"] * 3}, ["layer_types", "4"]),
        ({"layer_types": "full_attention"}, ["layer_types is 'full_attention'"]),
        ({"hidden_activation": "swoosh"}, ["hidden_activation is 'swoosh'"]),
        ({"classifier_activation": "swoosh"}, ["classifier_activation is 'swoosh'"]),
        ({"classifier_pooling": "max"}, ["classifier_pooling", "max"]),
        ({"hidden_size": "wide"}, ["hidden_size", "wide"]),
        ({"num_attention_heads": 3}, ["num_attention_heads (3)"]),
        ({"rope_parameters": {"full_attention": LINEAR, "sliding_attention": PLAIN}}, ["rope_scaling", "linear"]),
        ({"rope_parameters": {"full_attention": PLAIN, "sliding_attention": LINEAR}}, ["sliding_attention", "linear"]),
        (
            {"rope_parameters": {"full_attention": YARN | {"truncate": False}, "sliding_attention": PLAIN}},
            ["rope_scaling", "'truncate': False"],
        ),
        (
            {"rope_parameters": {"full_attention": PLAIN | {"partial_rotary_factor": 0.5}, "sliding_attention": PLAIN}},
            ["rope_scaling", "'partial_rotary_factor': 0.5"],
        ),
        ({"rope_parameters": PLAIN}, ["rope_parameters"]),
        ({"rope_scaling": YARN}, ["rope_parameters.sliding_attention is", "yarn"]),
        ({"global_rope_theta": 7.0}, ["global_rope_theta is 7.0", "160000.0"]),
        ({"local_rope_theta": 7.0}, ["local_rope_theta is 7.0", "10000.0"]),
        ({"local_rope_theta": None, "rope_parameters": None}, ["local_rope_theta is None"]),
    ],
    ids=lambda value: str(value)[:60],
)
def test_configs_that_cannot_be_expressed(save_stock, refused, changes, said):
    _, source = save_stock()
    change_config(source, **changes)
    error = refused()
    assert str(source / "config.json") in error
    assert all(text in error for text in said), error


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("head.dense.weight"), ["head.dense.weight", "missing"]),
        (lambda tensors: tensors.pop(EMBEDDINGS), [EMBEDDINGS, "missing"]),
        (lambda tensors: tensors.update({"classifier.bias": torch.zeros(2)}), ["classifier.bias"]),
        (lambda tensors: tensors.update({"decoder.bias": torch.zeros(7)}), ["decoder.bias", "[7]", "[300]"]),
        (lambda tensors: tensors.update({"decoder.weight": tensors[EMBEDDINGS] * 2}), ["tie_word_embeddings"]),
        (lambda tensors: tensors.update({"decoder.bias": torch.zeros(300).half()}), ["float16", "float32"]),
        (lambda tensors: tensors.update({name: tensor.double() for name, tensor in tensors.items()}), ["float64"]),
        (lambda tensors: tensors.clear(), ["missing"]),
    ],
    ids=["missing", "no embeddings", "extra", "shape", "untied", "mixed", "double", "empty"],
)
def test_weights_that_do_not_fit(save_stock, refused, change, said):
    _, source = save_stock()
    change_weights(source, change)
    error = refused()
    assert all(text in error for text in [str(source), *said]), error


def test_untied_needs_its_decoder(save_stock, refused):
    _, source = save_stock(tie_word_embeddings=False)
    change_weights(source, lambda tensors: tensors.pop("decoder.weight"))
    assert "decoder.weight is missing" in refused()


def test_a_tied_decoder_may_be_spelt_out(save_stock, tmp_path):
    stock, source = save_stock()
    change_weights(source, lambda tensors: tensors.update({"decoder.weight": tensors[EMBEDDINGS].clone()}))
    convert_to(source, tmp_path / "converted")
    assert_same_outputs(stock, tmp_path / "converted")


def test_folders_that_miss_something(save_stock, refused):
    _, source = save_stock()
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    error = refused()
    assert "pytorch_model.bin" in error
    assert "save_pretrained" in error
    for name in ("tokenizer.json", "config.json"):
        (source / name).unlink()
        assert str(source / name) in refused()


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_damaged_files(save_stock, tmp_path, file):
    _, source = save_stock()
    content = (source / file).read_bytes()
    (source / file).write_bytes(content[: len(content) // 2])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as error:
        convert_to(source, tmp_path / "converted")
    assert str(source) in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_tokenizer_with_code_is_refused(save_stock, tmp_path):
    _, source = save_stock()
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(config | {"auto_map": {"AutoTokenizer": ["mine.Mine", None]}}))
    with pytest.raises(InputError, match="auto_map is"):
        convert_to(source, tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_a_tokenizer_that_would_give_other_ids_is_refused(save_stock, tmp_path, monkeypatch):
    _, source = save_stock()
    other = AutoTokenizer.from_pretrained(source)
    other.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda folder, **options: other)
    with pytest.raises(InputError, match="other ids"):
        convert_to(source, tmp_path / "converted")


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file"])
def test_an_existing_output_is_not_touched(save_stock, tmp_path, refused, kind):
    _, source = save_stock()
    if kind == "file":
        (tmp_path / "converted").write_text("precious")
    else:
        (tmp_path / "converted").mkdir()
    if kind == "folder":
        (tmp_path / "converted" / "thesis.txt").write_text("precious")
    assert f"{tmp_path / 'converted'}: exists" in refused()
    assert "exists" in refused(output_dir=source)


@pytest.mark.parametrize("source", ["nowhere/nothing", "./nowhere", "/nowhere/at all"])
def test_no_such_source(refused, source):
    assert f"{source}: no such folder" in refused(source)
