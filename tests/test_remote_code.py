"""A published folder as a user has it: another process, without this project, without the network."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from zh_modernbert import modeling_zh_modernbert as modeling
from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.train import publish
from zh_modernbert.train.pretrain import save_model
from zh_modernbert.train.train_tokenizer import load_tokenizer

AUTO_CLASSES = (
    "AutoModel",
    "AutoModelForMaskedLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForMultipleChoice",
)
TEXTS = ["今天天气很好，大家都很高兴。", "圖書館", "她用 Python 3.12 写[MASK]件。"]

# What the user runs, all of it in one process since starting one takes seconds. It writes what it found as JSON and tensors.
USER = """
import builtins
import json
import sys

sys.modules["zh_modernbert"] = None  # as where it is not installed
folder, work = sys.argv[1:]
asked = []


def refuse(question=""):
    asked.append(question)
    return "n"


builtins.input = refuse
found = {"importable": []}
for name in ("zh_modernbert", "configuration_zh_modernbert", "modeling_zh_modernbert", "tokenization_zh_modernbert"):
    try:
        __import__(name)
        found["importable"].append(name)
    except ImportError:
        pass

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, pipeline


def origin(thing):
    kind = type(thing)
    return {"class": kind.__name__, "module": kind.__module__, "file": sys.modules[kind.__module__].__file__}


torch.set_num_threads(1)
inputs, tensors = load_file(work + "/inputs.safetensors"), {}
texts = json.load(open(work + "/texts.json", encoding="utf-8"))
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
found["AutoConfig"] = origin(config) | {"settings": config.to_dict()}
for trust in (True, False, None):
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    found[f"AutoTokenizer {trust}"] = origin(tokenizer) | {
        "ids": tokenizer(texts)["input_ids"], "names": tokenizer.model_input_names, "longest": tokenizer.model_max_length
    }
    # Fine-tuned by someone who trusted no code for the tokenizer, or did; used by someone who trusts it.
    tokenizer.save_pretrained(work + f"/tokenizer {trust}")
    try:
        again = AutoTokenizer.from_pretrained(work + f"/tokenizer {trust}", trust_remote_code=True)
        found[f"tokenizer again {trust}"] = again(texts)["input_ids"]
    except Exception as error:
        found[f"tokenizer again {trust}"] = f"{type(error).__name__}: {error}"
models = {}
with torch.no_grad():
    for name in json.load(open(work + "/auto_classes.json")):
        model = models[name] = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True)
        base = getattr(model, model.base_model_prefix) if name != "AutoModel" else model
        tensors[name] = base(**inputs).last_hidden_state
        found[name] = origin(model) | {"training": model.training, "attention": model.config._attn_implementation}
    model = models["AutoModelForMaskedLM"]
    tensors["logits"] = model(**inputs).logits
    fill = pipeline("fill-mask", model=folder, trust_remote_code=True)
    found["fill-mask"] = fill(texts[-1], top_k=3)

    model.save_pretrained(work + "/again")
    AutoTokenizer.from_pretrained(folder, trust_remote_code=True).save_pretrained(work + "/again")
    again = transformers.AutoModelForMaskedLM.from_pretrained(work + "/again", trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(work + "/again", trust_remote_code=True)
    found["again"] = origin(again) | {"ids": tokenizer(texts)["input_ids"]}
    tensors["again"] = again(**inputs).logits

    model.set_attn_implementation("eager")
    outputs = model(**inputs, output_attentions=True)
    tensors["eager"] = outputs.logits
    found["attentions"] = len(outputs.attentions)
    late = transformers.AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True, attn_implementation="eager")
    tensors["loaded eager"] = late(**inputs).logits
    half = transformers.AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16)
    tensors["bf16"] = half(**inputs).logits

# The model card's own example, as it stands there.
asked.clear()
card = {}
exec(open(folder + "/README.md", encoding="utf-8").read().split("```python")[1].split("```")[0], card)
found["card"] = {"shape": list(card["embeddings"].shape), "questions": asked}

# A user's training step: a new head on the loaded encoder learns.
head = models["AutoModelForSequenceClassification"].train()
head(**inputs, labels=torch.tensor([0, 1, 0])).loss.backward()
found["without gradient"] = [name for name, parameter in head.named_parameters() if parameter.grad is None]
found["project modules"] = [name for name in sys.modules if name.startswith("zh_modernbert")]
save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, work + "/outputs.safetensors")
with open(work + "/found.json", "w") as file:
    json.dump(found, file)
"""


@pytest.fixture(scope="module")
def user(stages, tmp_path_factory):
    """The published folder, what this process computes with it, and what the user's process found."""
    work = tmp_path_factory.mktemp("user")
    torch.manual_seed(0)
    model = ZhModernBertForMaskedLM(ZhModernBertConfig(**json.loads((stages / "model.json").read_text()), vocab_size=512))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    save_model(work / "model", model, SimpleNamespace(tokenizer_dir=stages / "tokenizer"))
    folder = work / "published"
    publish.main(publish.Settings(model_dir=str(work / "model"), output_dir=str(folder), name=str(folder)))

    inputs = dict(load_tokenizer(folder)(TEXTS, padding=True, return_tensors="pt"))
    save_file(inputs, work / "inputs.safetensors")
    (work / "texts.json").write_text(json.dumps(TEXTS), encoding="utf-8")
    (work / "auto_classes.json").write_text(json.dumps(AUTO_CLASSES))
    (work / "home").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_", "TRANSFORMERS_"))}
    environment |= {"HF_HOME": str(work / "home"), "HF_MODULES_CACHE": str(work / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", USER, str(folder), str(work)],
        cwd=work / "home",
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    model.eval()
    with torch.no_grad():
        expected = {"states": model.model(**inputs).last_hidden_state, "logits": model(**inputs).logits}
    return SimpleNamespace(
        folder=folder,
        work=work,
        inputs=inputs,
        model=model,
        expected=expected,
        found=json.loads((work / "found.json").read_text()),
        tensors=load_file(work / "outputs.safetensors"),
    )


def assert_close(actual, expected, tolerance=1e-6):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def test_the_users_process_has_no_project(user):
    assert user.found["importable"] == []
    assert user.found["project modules"] == ["zh_modernbert"]  # the bar itself


def test_folder_holds_all_that_is_needed(user):
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    code = {f"{name}_zh_modernbert.py" for name in ("configuration", "modeling", "tokenization")}
    assert wanted | code <= {path.name for path in user.folder.iterdir()}


@pytest.mark.parametrize("auto_class", AUTO_CLASSES)
def test_models_come_from_the_folders_code(user, auto_class):
    found = user.found[auto_class]
    assert found["class"] == auto_class.replace("AutoModel", "ZhModernBert") + ("Model" if auto_class == "AutoModel" else "")
    assert found["module"].startswith("transformers_modules.")
    assert found["file"].startswith(str(user.work / "modules"))
    assert hasattr(modeling, found["class"])
    assert not found["training"]
    assert found["attention"] == "sdpa"
    assert_close(user.tensors[auto_class], user.expected["states"])


def test_config(user):
    found = user.found["AutoConfig"]
    assert found["class"] == "ZhModernBertConfig"
    assert found["file"].startswith(str(user.work / "modules"))
    expected = json.loads(json.dumps(user.model.config.to_dict()))
    for name in json.loads((user.folder / "config.json").read_text()):
        if name not in ("architectures", "dtype", "transformers_version"):
            assert found["settings"][name] == expected[name], name


def test_masked_lm_logits_are_the_parents(user):
    assert_close(user.tensors["logits"], user.expected["logits"])
    pads = user.inputs["attention_mask"] == 0
    assert pads.any()
    assert (user.tensors["logits"][pads] == 0).all()


@pytest.mark.parametrize("trust", [True, False, None])
def test_tokenizers(user, trust):
    found = user.found[f"AutoTokenizer {trust}"]
    assert found["class"] in ("PreTrainedTokenizerFast", "TokenizersBackend"), "the tokenizer needs no code"
    assert found["ids"] == load_tokenizer(user.folder)(TEXTS)["input_ids"]
    assert found["names"] == ["input_ids", "attention_mask"]
    assert found["longest"] == user.model.config.max_position_embeddings


@pytest.mark.parametrize("trust", [True, False, None])
def test_saved_tokenizers_load_with_the_models_code(user, trust):
    assert user.found[f"tokenizer again {trust}"] == load_tokenizer(user.folder)(TEXTS)["input_ids"]


def test_fill_mask(user):
    place = (user.inputs["input_ids"][-1] == 4).nonzero().item()
    best = user.expected["logits"][-1, place].softmax(-1).topk(3)
    assert [answer["token"] for answer in user.found["fill-mask"]] == best.indices.tolist()
    assert [answer["score"] for answer in user.found["fill-mask"]] == pytest.approx(best.values.tolist(), rel=1e-4)
    tokenizer = load_tokenizer(user.folder)
    assert user.found["fill-mask"][0]["token_str"] == tokenizer.decode([best.indices[0]])


def test_the_model_cards_example_runs_and_asks_nothing(user):
    rows, _, hidden = user.found["card"]["shape"]
    assert (rows, hidden) == (2, user.model.config.hidden_size)
    assert user.found["card"]["questions"] == []


def test_saving_from_there_and_loading_again(user):
    assert user.found["again"]["class"] == "ZhModernBertForMaskedLM"
    assert user.found["again"]["ids"] == load_tokenizer(user.folder)(TEXTS)["input_ids"]
    assert_close(user.tensors["again"], user.expected["logits"])
    # The saved folder is whole: it names no code but its own.
    auto_map = json.loads((user.work / "again" / "config.json").read_text())["auto_map"]
    for target in auto_map.values():
        assert "--" not in target
        assert (user.work / "again" / f"{target.split('.')[0]}.py").is_file()


def test_other_ways_to_load(user):
    for name in ("eager", "loaded eager"):
        assert_close(user.tensors[name], user.expected["logits"], 1e-5)
    assert user.found["attentions"] == user.model.config.num_hidden_layers
    assert user.tensors["bf16"].dtype == torch.bfloat16
    assert_close(user.tensors["bf16"].float(), user.expected["logits"], 0.1)


def test_a_new_head_can_be_trained(user):
    assert user.found["without gradient"] == []
