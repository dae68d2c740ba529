"""What a user does with published folders, in a process that has transformers and nothing of this project.

test_remote_code.py runs this with each Python whose transformers is tested, and compares what is written to OUT:

    python -I user.py WORK OUT              uses WORK/published and WORK/heads; the models it trains go to OUT/saved
    python -I user.py WORK OUT SAVED ...    loads what users saved
"""

import builtins
import gc
import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Trainer, TrainingArguments, pipeline

WORK, OUT, *SAVED = map(Path, sys.argv[1:])
PUBLISHED = WORK / "published"
task = json.loads((WORK / "task.json").read_text(encoding="utf-8"))
found, tensors, questions = {}, {}, []


def refuse(question=""):
    questions.append(question)
    return "n"


def importable(name):
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def origin(thing):
    kind = type(thing)
    return {"class": kind.__name__, "module": kind.__module__, "file": sys.modules[kind.__module__].__file__}


def load(auto_class, folder, **arguments):
    return getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True, **arguments)


def record(name, model, batch, **arguments):
    with torch.no_grad():
        outputs = model(**batch, **arguments)
    tensors.update({f"{name} {field}": tensor for field, tensor in outputs.items() if torch.is_tensor(tensor)})
    return outputs


def encode(tokenizer):
    encoding = tokenizer(task["texts"], return_offsets_mapping=True)
    return {name: encoding[name] for name in ("input_ids", "offset_mapping")}


def is_tied(model):
    decoder = model.get_output_embeddings()
    return decoder is not None and decoder.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def use_config_and_tokenizer():
    config = load("AutoConfig", PUBLISHED)
    found["AutoConfig"] = origin(config) | {"settings": config.to_dict()}
    for trust in (True, False, None):
        tokenizer = AutoTokenizer.from_pretrained(PUBLISHED, trust_remote_code=trust)
        settings = {"names": tokenizer.model_input_names, "longest": tokenizer.model_max_length}
        found[f"AutoTokenizer {trust}"] = origin(tokenizer) | settings | {"encoding": encode(tokenizer)}
        # Fine-tuned by someone who trusted no code for the tokenizer, or did; used by someone who trusts it.
        tokenizer.save_pretrained(OUT / f"tokenizer {trust}")
        try:
            found[f"tokenizer again {trust}"] = encode(load("AutoTokenizer", OUT / f"tokenizer {trust}"))
        except Exception as error:
            found[f"tokenizer again {trust}"] = f"{type(error).__name__}: {error}"


def use_models():
    """Every class loads; the masked LM loads in several ways, switches its attention, and grows."""
    batch = load_file(WORK / "inputs.safetensors")
    for auto_class in task["auto_classes"]:
        model = load(auto_class, PUBLISHED)
        record(f"published {auto_class}", model if auto_class == "AutoModel" else model.model, batch)
        found[auto_class] = origin(model) | {"training": model.training, "attention": model.config._attn_implementation}
        if auto_class == "AutoModelForSequenceClassification":  # a new head on the loaded encoder learns, and the encoder too
            model.train()(**batch, labels=torch.arange(len(batch["input_ids"])) % 2).loss.backward()
            found["without gradient"] = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    found["fill-mask"] = pipeline("fill-mask", model=str(PUBLISHED), trust_remote_code=True)(task["masked"], top_k=3)

    record("loaded eager", load("AutoModelForMaskedLM", PUBLISHED, attn_implementation="eager"), batch)
    for argument in ("dtype", "torch_dtype"):
        record(argument, load("AutoModelForMaskedLM", PUBLISHED, **{argument: torch.bfloat16}), batch)

    model = load("AutoModelForMaskedLM", PUBLISHED)
    tied = [is_tied(model)]
    record("masked lm", model, batch)
    model.set_attn_implementation("eager")
    found["switched to"] = [model.config._attn_implementation]
    outputs = record("switched to eager", model, batch, output_attentions=True)
    found["attentions"] = [list(weights.shape) for weights in outputs.attentions]
    model.set_attn_implementation("sdpa")
    found["switched to"].append(model.config._attn_implementation)
    record("switched to sdpa", model, batch)

    vocab_size = model.config.vocab_size
    model.resize_token_embeddings(vocab_size + 8)
    with torch.no_grad():
        model.get_input_embeddings().weight[vocab_size:] = 0.0  # tied: the decoder's too
    model.save_pretrained(OUT / "resized")
    again = load("AutoModelForMaskedLM", OUT / "resized")
    record("resized", model, batch)
    record("resized again", again, batch)
    record("resized encoder", load("AutoModel", OUT / "resized"), batch)
    found["tied"] = [*tied, is_tied(model), is_tied(again)]


def use_card():
    """The model card's own example, as it stands there."""
    questions.clear()
    names = {}
    exec((PUBLISHED / "README.md").read_text(encoding="utf-8").split("```python")[1].split("```")[0], names)
    found["card"] = {"shape": list(names["embeddings"].shape), "questions": list(questions)}


def train(model, batch, gradient_checkpointing):
    """Two updates, each of as many micro-batches as the batch has rows."""
    rows = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
    arguments = TrainingArguments(
        output_dir=str(OUT / "trainer"),
        max_steps=2,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=len(rows),
        gradient_checkpointing=gradient_checkpointing,
        optim="sgd",
        learning_rate=task["learning_rate"],
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    model.eval()


def use_heads():
    """Each head loads, computes, learns, and is saved with its tokenizer."""
    tokenizer = load("AutoTokenizer", PUBLISHED)
    for auto_class in task["auto_classes"]:
        batch = load_file(WORK / "batches" / f"{auto_class}.safetensors")
        for gradient_checkpointing in (True, False):
            model = load(auto_class, WORK / "heads" / auto_class)
            record(f"loaded {auto_class}", model, batch)
            if auto_class != "AutoModel":
                train(model, batch, gradient_checkpointing)
            record(f"trained {auto_class} {gradient_checkpointing}", model, batch)
        model.save_pretrained(OUT / "saved" / auto_class)
        tokenizer.save_pretrained(OUT / "saved" / auto_class)


def use_what_the_repository_ships():
    """The model at its root, and the stock form of that, which has no code."""
    for name, folder, trust in (("shipped", task["repository"], True), ("shipped stock", WORK / "stock", False)):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
        model = transformers.AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=trust)
        record(name, model, tokenizer(task["texts"], padding=True, return_tensors="pt"))
        found[name] = origin(model) | {"dtype": str(model.dtype)}


def load_saved(folder):
    for auto_class in task["auto_classes"]:
        model, name = load(auto_class, folder / auto_class), f"{folder} {auto_class}"
        record(name, model, load_file(WORK / "batches" / f"{auto_class}.safetensors"))
        found[name] = origin(model) | {"tied": is_tied(model)}
        try:
            tokenizer = load("AutoTokenizer", folder / auto_class)
        except ValueError as error:  # the class that is named in the folder
            found[name]["refused"] = str(error)
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / auto_class)
        found[name]["encoding"] = encode(tokenizer)


sys.modules["zh_modernbert"] = None  # as where it is not installed
project = ("zh_modernbert", "configuration_zh_modernbert", "modeling_zh_modernbert", "tokenization_zh_modernbert")
found["importable"] = [name for name in project if importable(name)]
builtins.input = refuse
torch.set_num_threads(1)
gc.freeze()  # the Trainer collects garbage whenever it is done, and what was imported takes long to look through
for folder in SAVED:
    load_saved(folder)
if not SAVED:
    use_config_and_tokenizer()
    use_models()
    use_card()
    use_heads()
    use_what_the_repository_ships()
found["transformers"] = transformers.__version__
found["project modules"] = [name for name in sys.modules if name.startswith("zh_modernbert")]
save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, OUT / "outputs.safetensors")
(OUT / "found.json").write_text(json.dumps(found))
