"""A model's card: what it says in its header for the Hub, and below that for people.

`settings` are those of train/publish.py.
"""

import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.modeling_zh_modernbert import ZhModernBertPreTrainedModel
from zh_modernbert.train.common.cli import InputError, describe
from zh_modernbert.train.common.files import read_json, require_file
from zh_modernbert.train.pretraining.tracking import read_metrics
from zh_modernbert.train.publishing.hub import check_no_token
from zh_modernbert.train.publishing.source import is_checkpoint, modules_in

# What the card says of the run that left the model: settings of the script that made it, and fields of pretraining's metrics.
RECIPES = {
    "pretrain": (
        *("max_steps", "tokens_per_update", "seq_len", "masking", "mlm_probability", "optimizer", "learning_rate", "schedule"),
        *("weight_decay", "global_rope_theta", "mixed_precision"),
    ),
    "contrastive": (
        *("max_length", "batch_size", "learning_rate", "warmup_ratio", "weight_decay", "temperature", "num_train_epochs"),
        *("max_steps", "matryoshka_dims", "mined_negatives", "dtype"),
    ),
}
LICENCE = "apache-2.0"
TAGS = ("modernbert", "chinese", "simplified-chinese", "traditional-chinese")
MEASURED = ("step", "loss", "masked_accuracy", "eval_loss", "eval_masked_accuracy")

# Each card has it: what lies beside is of this project's making, and may be replaced.
MARK = "Made with zh-modernbert."
CARD = """---
{header}---

# {name}

A Chinese text encoder for Simplified and Traditional text: {layers} layers of {hidden}, {heads} heads, {parameters:,}
parameters, {vocab:,} tokens, documents up to {longest:,} tokens. {reach} {mark}

```python
{example}
```

{points}
- Byte-level BPE: no unknown characters, exact round trip, exact offsets. The vocabulary is spelled in bytes. So the ids of a
  word are `tokenizer("天气", add_special_tokens=False)`, and not `convert_tokens_to_ids("天气")`.
- Entities: `pipeline("token-classification", ..., aggregation_strategy="simple")`. `first`, `average` and `max` take what
  has no space inside for one word, which is a Chinese sentence. Answers, with transformers 4: `align_to_words=False`.

## Intended use and limits

{use}

It writes no text. It repeats what its corpus says, right or wrong, and its judgements should not stand alone where they
decide about people.
{training}{notes}"""

# What holds in one of the forms of train/publish.py.
POINTS = {
    "zh_modernbert": """- Pads cost nothing: they are dropped at the model's edge and put back behind it as zeros.
- Packed input: `model(input_ids=ids, cu_seqlens=bounds)` with `ids` `(1, N)`; no document sees another.
- `attn_implementation`: `sdpa` (default), `flash_attention_2`, or `eager`, all with the same numbers.
- Late interaction: let the query's [MASK]s be attended to (`"attend": True` in sentence-transformers' `query_expansion`,
  `attend_to_expansion_tokens=True` in PyLate), or they come out as zeros.""",
    "modernbert": """- This is the stock form: transformers' own ModernBERT, which needs no `trust_remote_code`.
- Pads do not come out as zeros.""",
}


@dataclass(frozen=True)
class Kind:
    """What a kind of model is for: the Hub's name of the task, lines of code, and whom it serves, all for the card."""

    task: str
    example: str
    use: str
    tags: tuple[str, ...] = ()


ENCODER = """from transformers import AutoModel, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
model = AutoModel.from_pretrained("{name}", trust_remote_code=True)
outputs = model(**tokenizer(["今天天气很好。", "今天天氣很好。"], padding=True, return_tensors="pt"))
embeddings = outputs.last_hidden_state  # (2, tokens, {hidden})"""
PIPELINE = """from transformers import pipeline
run = pipeline("{task}", model="{name}", trust_remote_code=True)"""
ANSWER = """from transformers import AutoModelForQuestionAnswering, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
model = AutoModelForQuestionAnswering.from_pretrained("{name}", trust_remote_code=True)
inputs = tokenizer("谁写了《呐喊》？", "《呐喊》是鲁迅的小说集。", return_tensors="pt")
outputs = model(**inputs)
start, end = outputs.start_logits.argmax(), outputs.end_logits.argmax()
print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))"""
CHOICE = """from transformers import AutoModelForMultipleChoice, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
model = AutoModelForMultipleChoice.from_pretrained("{name}", trust_remote_code=True)
texts, choices = ["今天下了一天雨。今天天气怎么样？"] * 2, ["下雨", "晴天"]
inputs = tokenizer(texts, choices, padding=True, return_tensors="pt")
outputs = model(**{{field: values[None] for field, values in inputs.items()}})
print(choices[outputs.logits.argmax()])"""
SENTENCES = """from sentence_transformers import {kind}
model = {kind}("{name}", trust_remote_code=True)
embeddings = model.encode(["今天天气很好。", "今天天氣很好。"])
print(model.similarity(embeddings, embeddings))"""
RERANKER = """from sentence_transformers import CrossEncoder
model = CrossEncoder("{name}", trust_remote_code=True)
print(model.predict([("今天天气怎么样？", "今天天气很好。"), ("今天天气怎么样？", "他在看书。")]))"""
TO_FINE_TUNE = """It is to be fine-tuned: for classification, tagging, extractive question answering, choice, and embeddings."""
OF_ITS_TASK = "It is for its task alone; its labels stand in `config.json`."
SENTENCE_LIBRARY = "sentence-transformers"
# Models by the names of their classes, and below them those of sentence-transformers.
KINDS = {
    "ZhModernBertForMaskedLM": Kind("fill-mask", ENCODER, f"{TO_FINE_TUNE} As it is, it fills masks."),
    "ZhModernBertModel": Kind("feature-extraction", ENCODER, TO_FINE_TUNE),
    "ZhModernBertForSequenceClassification": Kind("text-classification", PIPELINE, OF_ITS_TASK),
    "ZhModernBertForTokenClassification": Kind("token-classification", PIPELINE, OF_ITS_TASK),
    "ZhModernBertForQuestionAnswering": Kind("question-answering", ANSWER, OF_ITS_TASK),
    "ZhModernBertForMultipleChoice": Kind("multiple-choice", CHOICE, OF_ITS_TASK),
}
SENTENCE_KINDS = {
    "SentenceTransformer": Kind(
        "sentence-similarity",
        SENTENCES,
        "It is for search, clusters and deduplication: the cosine of two vectors says how alike texts are.",
    ),
    "SparseEncoder": Kind(
        "feature-extraction",
        SENTENCES,
        "It is for search: a text's vector has a weight for each token of the vocabulary, most of them 0.",
        ("sparse-encoder", "sparse"),
    ),
    "MultiVectorEncoder": Kind(
        "feature-extraction",
        SENTENCES,
        "It is for search by late interaction: a text has a vector for each token.",
        ("multi-vector", "late-interaction"),
    ),
    "CrossEncoder": Kind(
        "text-ranking",
        RERANKER,
        "It reads two texts together and scores the pair. It is to sort what a search has found.",
        ("cross-encoder",),
    ),
}


def kind_of(source: Path, model: ZhModernBertPreTrainedModel) -> tuple[str, Kind]:
    """The name and the kind of the model in a folder.

    Raises:
        InputError: it is a model of sentence-transformers of another kind than those above.
    """
    if not modules_in(source):
        return type(model).__name__, KINDS[type(model).__name__]
    path = source / "config_sentence_transformers.json"
    name = read_json(path).get("model_type", "SentenceTransformer") if path.is_file() else "SentenceTransformer"
    if name not in SENTENCE_KINDS:
        raise InputError(f"{path}: model_type is {name!r}; published are {', '.join(SENTENCE_KINDS)}")
    return name, SENTENCE_KINDS[name]


def reach_text(config: ZhModernBertConfig) -> str:
    """How far the layers see, in a sentence."""
    layers, full = len(config.layer_types), [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"]
    if len(full) == layers:
        return "Each layer sees the whole document."
    every = next((step for step in range(2, layers + 1) if full == list(range(0, layers, step))), None)
    which = f"One layer in {every} sees" if every else f"{len(full)} of the layers see"
    return f"{which} the whole document. The others see a window of {config.local_attention} tokens."


def header_in(folder: Path) -> dict:
    """The fields in the header of the card in a folder; none without one. That one is broken is said on stderr."""
    path = folder / "README.md"
    if not path.is_file():
        return {}
    try:
        return ModelCard.load(path).data.to_dict()
    except Exception as error:  # YAML and the Hub's library raise many kinds
        print(f"{path}: its header cannot be read, so a licence in it is not taken over: {describe(error)}", file=sys.stderr)
        return {}


def licence_in(header: dict) -> dict[str, str]:
    """The fields of a card's header that name its licence, if it names one."""
    fields = {name: header.get(name) for name in ("license", "license_name", "license_link")}
    return {name: value for name, value in fields.items() if isinstance(value, str)} if fields["license"] else {}


def licence_of(settings, header: dict, source: Path) -> dict[str, str]:
    """The licence of the weights in `source`: what the settings name, else what the header there names, else this project's.

    Raises:
        InputError: neither names one, and the weights were made of another's.
    """
    if settings.license:
        return {"license": settings.license}
    if licence := licence_in(header):
        return licence
    if base := settings.base_model or header.get("base_model"):
        raise InputError(f"{source}: made of {base}, and no card there names a licence; give that of the weights by --license")
    return {"license": LICENCE}


def header_text(fields: dict) -> str:
    """The header of a card, of those fields that have a value."""
    given = {name: value for name, value in fields.items() if value}
    return yaml.safe_dump(given, allow_unicode=True, sort_keys=False) if given else ""


def model_index(settings) -> list[dict]:
    """The scores for the card's header, as the Hub takes them.

    Raises:
        InputError: the file holds no scores of that form.
    """
    if not settings.model_index:
        return []
    path = require_file(settings.model_index)
    index = [{"name": settings.name.rpartition("/")[2], "results": read_json(path).get("results")}]
    try:
        model_index_to_eval_results(index)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not what eval/report.py leaves: {describe(error)}") from error
    return index


def plots_of(source: Path) -> Path | None:
    """The plots of the run that left a model in its `model/`, if there are any."""
    path = source.absolute().parent / "metrics.png"
    return path if path.is_file() and not is_checkpoint(source) and (path.parent / "settings.json").is_file() else None


def recipe(settings: dict, stage: str) -> list[str]:
    """Rows of the card's table, from the settings of the script that made the model."""
    return [f"| {name} | {settings[name]} |" for name in RECIPES[stage] if settings.get(name) not in (None, 0, "", [])]


def training(source: Path) -> str:
    """The card's lines on the run that made the model: its recipe, what it measured last, and its plots."""
    run_dir, until, when = source.absolute().parent, math.inf, "at the end"
    if is_checkpoint(source):
        run_dir, until = run_dir.parent, read_json(source / "state.json")["position"]["step"]
        when = f"at update {until}"
    if (source / "manifest.json").is_file() and (manifest := read_json(source / "manifest.json"))["stage"] == "contrastive":
        made, rows = "Trained on pairs of texts", recipe(read_json(source / "settings.json"), "contrastive")
        rows += [f"| {name}, pairs | {counts['rows']:,} |" for name, counts in manifest["result"]["data"].items()]
        rows += [f"| {name} | {manifest['result'][name]} |" for name in ("updates", "mean_loss")]
    elif all((run_dir / name).is_file() for name in ("settings.json", "metrics.jsonl")):
        made, rows, measured = "The last stage of pretraining", recipe(read_json(run_dir / "settings.json"), "pretrain"), {}
        for line in read_metrics(run_dir / "metrics.jsonl"):
            measured |= line if line["step"] <= until else {}
        rows += [f"| {name}, {when} | {measured[name]:.6g} |" for name in MEASURED if measured.get(name) is not None]
    else:
        return ""
    plots = "\n![Loss, rates and speed over the updates](metrics.png)\n" if plots_of(source) else ""
    return f"\n## How it was made\n\n{made}:\n\n| | |\n|---|---|\n" + "\n".join(rows) + "\n" + plots


def read_notes(path: str) -> str:
    """The user's own part of the card. A title in its first line is left out, as the card has one.

    Raises:
        InputError: it cannot be read, or holds an access token.
    """
    if not path:
        return ""
    try:
        notes = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    check_no_token(notes, path)
    return "\n" + re.sub(r"\A# .*\n+", "", notes)


def model_card(settings, model: ZhModernBertPreTrainedModel, source: Path) -> str:
    """The card of a model that was read from `source`, whose own card names the licence where the settings do not."""
    config, header, (name, kind) = model.config, header_in(source), kind_of(source, model)
    of_sentences = name in SENTENCE_KINDS
    fields = {
        "language": "zh",
        "language_bcp47": ["zh-Hans", "zh-Hant"],
        **licence_of(settings, header, source),
        "library_name": SENTENCE_LIBRARY if of_sentences else "transformers",
        "pipeline_tag": kind.task,
        "tags": [kind.task, *([SENTENCE_LIBRARY] if of_sentences else []), *kind.tags, *TAGS],
        "base_model": settings.base_model or header.get("base_model"),
        "datasets": settings.datasets,
        "model-index": model_index(settings),
    }
    example = kind.example.format(name=settings.name, kind=name, task=kind.task, hidden=config.hidden_size)
    if settings.form == "modernbert":
        example = example.replace(", trust_remote_code=True", "")
    return CARD.format(
        header=header_text(fields),
        name=settings.name,
        mark=MARK,
        example=example,
        points=POINTS[settings.form],
        use=kind.use,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        parameters=model.num_parameters(),
        vocab=config.vocab_size,
        longest=config.max_position_embeddings,
        reach=reach_text(config),
        training=training(source),
        notes=read_notes(settings.notes),
    )
