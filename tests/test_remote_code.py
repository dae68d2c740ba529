"""Published folders as users have them: in other processes, without this project, without the network; on this transformers,
and on those of the Pythons that ZH_MODERNBERT_PYTHONS names, as PATH names folders."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from zh_modernbert import modeling_zh_modernbert as modeling
from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.train import publish
from zh_modernbert.train.common.model_folder import load_model, save_model
from zh_modernbert.train.tokenizer.loading import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
AUTO_CLASSES = (
    "AutoModel",
    "AutoModelForMaskedLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForMultipleChoice",
)
HEADS = AUTO_CLASSES[1:]
PYTHONS = [sys.executable, *filter(None, os.environ.get("ZH_MODERNBERT_PYTHONS", "").split(os.pathsep))]
TEXTS = ["今天天气很好，大家都很高兴。", "圖書館", "她用 Python 3.12 写[MASK]件。"]
MORE_TEXTS = ["𠮷野家 👨‍👩‍👧a\x00b", "  [SEP]中 [PAD]x ", "don't n't Straße cafe\u0301", "", " \n\u3000\ufeff"]
LEARNING_RATE = 0.05


def model_class(auto_class):
    return getattr(modeling, auto_class.replace("AutoModel", "ZhModernBert") + ("Model" if auto_class == "AutoModel" else ""))


def build(auto_class, config):
    """A model all of whose weights are random, and large enough to show."""
    model = model_class(auto_class)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def make_batches(input_ids, attention_mask):
    """What each class is given, with labels for those that take them."""
    inputs, real = {"input_ids": input_ids, "attention_mask": attention_mask}, attention_mask.bool()
    labels = {
        "AutoModelForMaskedLM": {"labels": input_ids.masked_fill(~real, -100)},
        "AutoModelForSequenceClassification": {"labels": torch.tensor([0, 1, 0])},
        "AutoModelForTokenClassification": {"labels": (input_ids % 2).masked_fill(~real, -100)},
        "AutoModelForQuestionAnswering": {"start_positions": torch.tensor([1, 0, 2]), "end_positions": torch.tensor([3, 1, 5])},
        "AutoModelForMultipleChoice": {"labels": torch.tensor([0, 1, 1])},
    }
    batches = {auto_class: inputs | labels.get(auto_class, {}) for auto_class in AUTO_CLASSES}
    pairs = torch.tensor([[0, 1], [1, 2], [2, 0]])
    batches["AutoModelForMultipleChoice"] |= {name: tensor[pairs] for name, tensor in inputs.items()}
    return batches


def compute(model, batch):
    with torch.no_grad():
        return {name: tensor for name, tensor in model(**batch).items() if torch.is_tensor(tensor)}


def train(model, batch):
    """Two plain updates on the whole batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for _ in range(2):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def run_user(python, work, out, *saved):
    """Runs user.py and returns what it found and computed."""
    (out / "home").mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_HOME": str(out / "home"), "HF_MODULES_CACHE": str(out / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, "-I", str(Path(__file__).with_name("user.py")), *map(str, (work, out, *saved))],
        cwd=out / "home",
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((out / "found.json").read_text())
    return SimpleNamespace(out=out, found=found, tensors=load_file(out / "outputs.safetensors"))


@pytest.fixture(scope="module")
def published(stages, tmp_path_factory):
    """A published folder, a saved folder for each class, and what this process computes with them."""
    work = tmp_path_factory.mktemp("published")
    settings = json.loads((stages / "model.json").read_text())
    torch.manual_seed(0)
    models = {auto_class: build(auto_class, ZhModernBertConfig(**settings, vocab_size=512)) for auto_class in AUTO_CLASSES}
    model, folder = models["AutoModelForMaskedLM"], work / "published"
    save_model(work / "model", model, load_tokenizer(stages / "tokenizer"), "pretrain")
    publish.main(publish.Settings(model_dir=str(work / "model"), output_dir=str(folder), name=str(folder)))

    tokenizer = load_tokenizer(folder)
    inputs = dict(tokenizer(TEXTS, padding=True, return_tensors="pt"))
    save_file(inputs, work / "inputs.safetensors")
    task = {"auto_classes": AUTO_CLASSES, "masked": TEXTS[-1], "texts": TEXTS + MORE_TEXTS, "learning_rate": LEARNING_RATE}
    task["repository"] = str(ROOT)
    (work / "task.json").write_text(json.dumps(task), encoding="utf-8")
    publish.main(publish.Settings(model_dir=str(ROOT), output_dir=str(work / "stock"), form="modernbert"))
    (work / "batches").mkdir()
    loaded, trained = {}, {}
    batches = make_batches(**inputs)
    expected = compute(model, inputs) | compute(model.model, inputs)
    for auto_class, batch in batches.items():
        save_file(batch, work / "batches" / f"{auto_class}.safetensors")
        models[auto_class].save_pretrained(work / "heads" / auto_class)
        loaded[auto_class] = compute(models[auto_class], batch)
        if auto_class in HEADS:
            train(models[auto_class], batch)
        trained[auto_class] = compute(models[auto_class], batch)
    encoding = tokenizer(task["texts"], return_offsets_mapping=True)
    return SimpleNamespace(
        work=work,
        folder=folder,
        inputs=inputs,
        tokenizer=tokenizer,
        encoding=json.loads(json.dumps({name: encoding[name] for name in ("input_ids", "offset_mapping")})),
        config=model.config,
        expected=expected,
        loaded=loaded,
        trained=trained,
    )


@pytest.fixture(scope="module")
def users(published):
    """Per Python, what its user found and computed; and what each found in the folders that all of them saved."""
    users = {python: run_user(python, published.work, published.work / f"user {i}") for i, python in enumerate(PYTHONS)}
    saved = [user.out / "saved" for user in users.values()]
    for python, user in users.items():
        user.loaded = run_user(python, published.work, user.out / "loads", *saved)
    return users


def major(user):
    return int(user.found["transformers"].split(".")[0])


def name_environment(python):
    return Path(python).parents[1].name


@pytest.fixture(scope="module", params=PYTHONS, ids=name_environment)
def user(users, request):
    return users[request.param]


def assert_close(actual, expected, tolerance=1e-6, what=""):
    assert actual.shape == expected.shape, what
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max(), what


def assert_outputs(tensors, name, expected, tolerance=1e-5):
    """Each of the outputs that were recorded under `name` is as expected."""
    assert expected
    for field, tensor in expected.items():
        assert_close(tensors[f"{name} {field}"], tensor, tolerance, f"{name} {field}")


def test_the_users_process_has_no_project(user):
    assert user.found["importable"] == []
    assert user.found["project modules"] == ["zh_modernbert"]  # the bar itself


def test_every_python_has_another_transformers(users):
    assert len({user.found["transformers"] for user in users.values()}) == len(PYTHONS)


def test_folder_holds_all_that_is_needed(published):
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    code = {f"{name}_zh_modernbert.py" for name in ("configuration", "modeling", "tokenization")}
    assert wanted | code <= {path.name for path in published.folder.iterdir()}


@pytest.mark.parametrize("auto_class", AUTO_CLASSES)
def test_models_come_from_the_folders_code(published, user, auto_class):
    found = user.found[auto_class]
    assert found["class"] == model_class(auto_class).__name__
    assert found["module"].startswith("transformers_modules.")
    assert found["file"].startswith(str(user.out / "modules"))
    assert not found["training"]
    assert found["attention"] == "sdpa"
    states = {"last_hidden_state": published.expected["last_hidden_state"]}
    assert_outputs(user.tensors, f"published {auto_class}", states, 1e-6)


def test_config(published, user):
    found = user.found["AutoConfig"]
    assert found["class"] == "ZhModernBertConfig"
    assert found["file"].startswith(str(user.out / "modules"))
    expected = json.loads(json.dumps(published.config.to_dict()))
    for name in json.loads((published.folder / "config.json").read_text()):
        if name not in ("architectures", "dtype", "transformers_version"):
            assert found["settings"][name] == expected[name], name


def test_masked_lm_logits_are_the_parents(published, user):
    assert_close(user.tensors["masked lm logits"], published.expected["logits"])
    pads = published.inputs["attention_mask"] == 0
    assert pads.any()
    assert (user.tensors["masked lm logits"][pads] == 0).all()


@pytest.mark.parametrize("trust", [True, False, None])
def test_tokenizers(published, user, trust):
    found = user.found[f"AutoTokenizer {trust}"]
    assert found["class"] in ("PreTrainedTokenizerFast", "TokenizersBackend"), "the tokenizer needs no code"
    assert found["encoding"] == published.encoding
    assert found["names"] == ["input_ids", "attention_mask"]
    assert found["longest"] == published.config.max_position_embeddings


@pytest.mark.parametrize("trust", [True, False, None])
def test_saved_tokenizers_load_with_the_models_code(published, user, trust):
    assert user.found[f"tokenizer again {trust}"] == published.encoding


def test_fill_mask(published, user):
    place = (published.inputs["input_ids"][-1] == 4).nonzero().item()
    best = published.expected["logits"][-1, place].softmax(-1).topk(3)
    assert [answer["token"] for answer in user.found["fill-mask"]] == best.indices.tolist()
    assert [answer["score"] for answer in user.found["fill-mask"]] == pytest.approx(best.values.tolist(), rel=1e-4)
    assert user.found["fill-mask"][0]["token_str"] == published.tokenizer.decode([best.indices[0]])


def test_the_model_cards_example_runs_and_asks_nothing(published, user):
    rows, _, hidden = user.found["card"]["shape"]
    assert (rows, hidden) == (2, published.config.hidden_size)
    assert user.found["card"]["questions"] == []


def test_other_ways_to_load(published, user):
    for name in ("loaded eager", "switched to eager", "switched to sdpa"):
        assert_outputs(user.tensors, name, {"logits": published.expected["logits"]})
    assert user.found["switched to"] == ["eager", "sdpa"]
    rows, width = published.inputs["input_ids"].shape
    heads = published.config.num_attention_heads
    assert user.found["attentions"] == [[rows, heads, width, width]] * published.config.num_hidden_layers
    for name in ("dtype", "torch_dtype"):
        logits = user.tensors[f"{name} logits"]
        assert logits.dtype == torch.bfloat16
        assert_close(logits.float(), published.expected["logits"], 0.1)


def test_a_grown_vocabulary(published, user):
    real = published.inputs["attention_mask"].bool()
    for name in ("resized", "resized again"):
        old, new = user.tensors[f"{name} logits"].split((512, 8), dim=-1)
        assert_close(old, published.expected["logits"])
        # The new tokens' embeddings are zeros, and so are the decoder's weights: all that is left is the bias.
        assert (new[real] == new[real][0]).all()
    assert torch.equal(user.tensors["resized logits"], user.tensors["resized again logits"])
    assert_outputs(user.tensors, "resized encoder", {"last_hidden_state": published.expected["last_hidden_state"]}, 1e-6)


def test_weights_are_tied_when_loaded_grown_and_loaded_again(user):
    assert user.found["tied"] == [True, True, True]


def test_a_new_head_can_be_trained(user):
    assert user.found["without gradient"] == []


@pytest.mark.parametrize("auto_class", AUTO_CLASSES)
def test_loaded_heads_give_the_parents_outputs(published, user, auto_class):
    assert_outputs(user.tensors, f"loaded {auto_class}", published.loaded[auto_class])


@pytest.mark.parametrize("gradient_checkpointing", [True, False])
@pytest.mark.parametrize("auto_class", HEADS)
def test_trainer_makes_the_updates_of_the_whole_batch(published, user, auto_class, gradient_checkpointing):
    before, after = published.loaded[auto_class], published.trained[auto_class]
    assert after["loss"] < before["loss"] - 0.01
    assert_outputs(user.tensors, f"trained {auto_class} {gradient_checkpointing}", after)


def test_the_repositorys_model_and_its_stock_form(user):
    """They load in float32, whatever the weights are stored in, and compute what they do here."""
    inputs = load_tokenizer(ROOT)(TEXTS + MORE_TEXTS, padding=True, return_tensors="pt")
    expected = compute(load_model(ROOT).float(), dict(inputs))["logits"]
    real = inputs["attention_mask"].bool()
    for name in ("shipped", "shipped stock"):
        assert user.found[name]["dtype"] == "torch.float32"
        assert_close(user.tensors[f"{name} logits"][real], expected[real], 1e-5)
    assert user.found["shipped"]["file"].startswith(str(user.out / "modules"))
    assert user.found["shipped stock"]["module"].startswith("transformers.")


@pytest.mark.parametrize("saver", PYTHONS, ids=name_environment)
@pytest.mark.parametrize("auto_class", AUTO_CLASSES)
def test_what_one_version_saves_another_loads(published, users, user, saver, auto_class):
    folder = users[saver].out / "saved"
    name = f"{folder} {auto_class}"
    found = user.loaded.found[name]
    assert found["class"] == model_class(auto_class).__name__
    assert found["encoding"] == published.encoding
    # transformers 5 saves a class name that AutoTokenizer of transformers 4 does not know; there, the class itself loads it.
    assert ("refused" in found) == (major(user) < 5 <= major(users[saver]))
    assert found["tied"] == (auto_class == "AutoModelForMaskedLM")
    assert_outputs(user.loaded.tensors, name, published.trained[auto_class])
    # The saved folder is whole: it names no code but its own.
    assert found["file"].startswith(str(user.loaded.out / "modules"))
    for target in json.loads((folder / auto_class / "config.json").read_text())["auto_map"].values():
        assert "--" not in target
        assert (folder / auto_class / f"{target.split('.')[0]}.py").is_file()
