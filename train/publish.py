"""A pretrained model folder -> the folder to put on the Hub: weights, config, tokenizer, code and model card.

What is written loads with `AutoModel.from_pretrained(folder, trust_remote_code=True)` where this project is not installed. With
`--form modernbert` it is a stock ModernBERT, which has no code and loads without `trust_remote_code`, in older tools too. That
needs a model with `norm_type: layernorm`. It is loaded again and compared.

Nothing is sent unless `--push_to_hub` asks for it. The folder is written then as ever, and sent in one commit. Where the output
folder is a clone of this project, weights, config and tokenizer are laid beside its root files, and its README stays; of the
clone nothing but the files of a published folder is sent.

    python train/publish.py --model_dir runs/tiny/pretrain_8k/model --output_dir runs/tiny/published --name me/zh-tiny
    python train/publish.py --model_dir runs/tiny/pretrain_8k/model --output_dir runs/tiny/published --push_to_hub me/zh-tiny
"""

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub.repocard_data import model_index_to_eval_results

from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.train.common.cli import TRUTH, BaseSettings, InputError, describe, run, setting
from zh_modernbert.train.common.files import read_json, replacing, require_file, require_folder
from zh_modernbert.train.common.hub import check_card, check_no_token, check_repository, push
from zh_modernbert.train.common.model_folder import ROOT_FILES, load_model, write_model
from zh_modernbert.train.common.stock import write_stock
from zh_modernbert.train.pretraining.tracking import read_metrics
from zh_modernbert.train.tokenizer.loading import load_tokenizer

# All that a published folder may hold; a folder with anything else in it is never replaced.
PUBLISHED = {"config.json", "model.safetensors", "model.safetensors.index.json", "README.md", "metrics.png"} | {
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *(path.name for path in ROOT_FILES),
}
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
# What the card says of the run that left the model: settings of train/pretrain.py, and fields of its metrics.
RECIPE = (
    *("max_steps", "tokens_per_update", "seq_len", "masking", "mlm_probability", "optimizer", "learning_rate", "schedule"),
    *("weight_decay", "global_rope_theta", "mixed_precision"),
)
MEASURED = ("step", "loss", "masked_accuracy", "eval_loss", "eval_masked_accuracy")
FORMS = ("zh_modernbert", "modernbert")


@dataclass
class Settings(BaseSettings):
    model_dir: str = setting(help="model folder to read: what train/pretrain.py left in model/")
    output_dir: str = setting(help="folder to write")
    form: str = setting("zh_modernbert", "`modernbert` writes a stock ModernBERT, which loads without this code", FORMS)
    name: str = setting("", "the model's name on the Hub, in its card; empty: push_to_hub, or zh-modernbert")
    license: str = setting("apache-2.0", "the Hub's name of the weights' licence, in the card")
    base_model: str = setting("", "the Hub's name of the model that this one was trained from, in the card")
    datasets: list[str] = setting([], "the Hub's names of the data sets that it was trained on, in the card")
    notes: str = setting("", "a Markdown file that goes into the card: data, results, limits")
    model_index: str = setting("", "the model_index.json that eval/report.py left: scores that the Hub shows beside the card")
    push_to_hub: str = setting("", "the repository to send the folder to, such as me/zh-modernbert; it is made if missing")
    revision: str = setting("main", "the branch to send it to, such as step-5000; it is made if missing")
    private: bool = setting(False, "a repository that is made is private")
    dry_run: bool = setting(False, "write the folder, say what push_to_hub would send, and send nothing")


CARD = """---
language: zh
language_bcp47: [zh-Hans, zh-Hant]
license: {license}
library_name: transformers
pipeline_tag: fill-mask
tags: [fill-mask, modernbert, chinese, simplified-chinese, traditional-chinese]
{base_model}{datasets}{model_index}---

# {name}

A Chinese text encoder for Simplified and Traditional text: {layers} layers of {hidden}, {heads} heads, {parameters:,}
parameters, {vocab:,} tokens, documents up to {longest:,} tokens. Every {every} layers one sees the whole document, the
others a window of {window} tokens. Made with zh-modernbert.

```python
from transformers import AutoModel, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
model = AutoModel.from_pretrained("{name}", trust_remote_code=True)
outputs = model(**tokenizer(["今天天气很好。", "今天天氣很好。"], padding=True, return_tensors="pt"))
embeddings = outputs.last_hidden_state  # (2, tokens, {hidden}), zeros at pads
```

Where `config.json` says `model_type: modernbert`, this is the stock form: the same weights without code. It needs no
`trust_remote_code`. The first three points below are then not so, and the zeros at pads.

- Pads cost nothing: they are dropped at the model's edge and put back behind it.
- Packed input: `model(input_ids=ids, cu_seqlens=bounds)` with `ids` `(1, N)`; no document sees another.
- `attn_implementation`: `sdpa` (default), `flash_attention_2`, or `eager`, all with the same numbers.
- Byte-level BPE: no unknown characters, exact round trip, exact offsets.
- Entities: `pipeline("token-classification", ..., aggregation_strategy="simple")`. `first`, `average` and `max` take what
  has no space inside for one word, which is a Chinese sentence. Answers, with transformers 4: `align_to_words=False`.
- Late interaction: let the query's [MASK]s be attended to (`"attend": True` in sentence-transformers' `query_expansion`,
  `attend_to_expansion_tokens=True` in PyLate), or they come out as zeros.

## Intended use and limits

It is to be fine-tuned: for classification, tagging, extractive question answering, choice, and embeddings. As it is, it fills
masks. It writes no text. It repeats what its corpus says, right or wrong, and its judgements should not stand alone where they
decide about people.
{training}{notes}"""


def check_settings(settings: Settings) -> None:
    """Checks that names and licence mean in the card's YAML, Markdown and code what they should, and where to send it.

    Raises:
        InputError: one has other characters than such names have, or a setting needs another.
    """
    if settings.push_to_hub:
        check_repository(settings.push_to_hub, settings.revision)
    elif settings.dry_run or settings.private or settings.revision != "main":
        raise InputError("publish: dry_run, private and revision are about sending; give --push_to_hub too")
    names = [("name", settings.name), *(("datasets", name) for name in settings.datasets)]
    names += [("base_model", settings.base_model)] if settings.base_model else []
    for field, name in names:
        if not re.fullmatch(r"[A-Za-z0-9._/-]+", name):
            raise InputError(f"publish: {field} is {name!r}; it must be one on the Hub, such as me/zh-modernbert, or a folder")
    if not re.fullmatch(r"[a-z][a-z0-9.+-]*", settings.license) or settings.license in ("null", *TRUTH):
        raise InputError(f"publish: license is {settings.license!r}; it must be the Hub's name of one, such as apache-2.0")


def model_index(settings: Settings) -> str:
    """The lines of the card's header that hold scores, or nothing. JSON is YAML, too.

    Raises:
        InputError: the file holds no scores of the form that the Hub takes.
    """
    if not settings.model_index:
        return ""
    path = require_file(settings.model_index)
    index = [{"name": settings.name.rpartition("/")[2], "results": read_json(path).get("results")}]
    try:
        model_index_to_eval_results(index)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not what eval/report.py leaves: {describe(error)}") from error
    return f"model-index: {json.dumps(index, ensure_ascii=False)}\n"


def run_of(model_dir: Path) -> Path | None:
    """The folder of the run that left a model in its `model/`, or None."""
    run_dir = model_dir.absolute().parent
    return run_dir if (run_dir / "settings.json").is_file() and (run_dir / "metrics.jsonl").is_file() else None


def training(run_dir: Path | None) -> str:
    """The card's lines on the run that made the model: its recipe, what it measured last, and its plots."""
    if run_dir is None:
        return ""
    settings, measured = read_json(run_dir / "settings.json"), {}
    for line in read_metrics(run_dir / "metrics.jsonl"):
        measured |= line
    table = [f"| {name} | {settings[name]} |" for name in RECIPE if settings.get(name) not in (None, 0, "")]
    table += [f"| {name}, at the end | {measured[name]:.6g} |" for name in MEASURED if measured.get(name) is not None]
    plots = "\n![Loss, rates and speed over the updates](metrics.png)\n" if (run_dir / "metrics.png").is_file() else ""
    return "\n## How it was made\n\nThe last stage of pretraining:\n\n| | |\n|---|---|\n" + "\n".join(table) + "\n" + plots


def model_card(settings: Settings, model: ZhModernBertForMaskedLM, model_dir: Path) -> str:
    notes = ""
    if settings.notes:
        try:
            notes = "\n" + Path(settings.notes).read_text(encoding="utf-8")
            check_no_token(notes[1:], settings.notes)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{settings.notes}: cannot be read: {error}") from error
    config = model.config
    return CARD.format(
        name=settings.name,
        license=settings.license,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        parameters=model.num_parameters(),
        vocab=config.vocab_size,
        longest=config.max_position_embeddings,
        every=config.global_attn_every_n_layers,
        window=config.local_attention,
        base_model=f"base_model: {json.dumps(settings.base_model)}\n" if settings.base_model else "",
        datasets=f"datasets: {json.dumps(settings.datasets)}\n" if settings.datasets else "",
        model_index=model_index(settings),
        training=training(run_of(model_dir)),
        notes=notes,
    )


def is_published(name: str) -> bool:
    """Whether a file's name is one that this script writes."""
    return name in PUBLISHED or SHARD.fullmatch(name) is not None


def is_clone(folder: Path) -> bool:
    """Whether a folder is a clone of this project, which is a model repository too."""
    return all(
        (folder / name).is_file() for name in ("pyproject.toml", "train/publish.py", *(path.name for path in ROOT_FILES))
    )


def check_output(output_dir: Path, form: str) -> None:
    """Checks that the output may be written there: what is there is nothing, of this script's making, or a clone with its code.

    Raises:
        InputError: it may not.
    """
    if is_clone(output_dir):
        if form != "zh_modernbert":
            raise InputError(
                f"{output_dir}: a clone of this project holds its code, which form {form!r} must not; choose another"
            )
        for path in ROOT_FILES:
            if (output_dir / path.name).read_bytes() != path.read_bytes():
                raise InputError(
                    f"{output_dir / path.name}: not the code that this script publishes; run that clone's own script"
                )
        return
    present = [path.name for path in output_dir.iterdir()] if output_dir.is_dir() else []
    if output_dir.is_file() or (present and not ("README.md" in present and all(map(is_published, present)))):
        raise InputError(f"{output_dir}: exists and is no published folder; choose another output_dir")


def lay_into(clone: Path, folder: Path) -> None:
    """Moves what was written in `folder` beside the root files of a clone, in the place of an earlier model."""
    of_the_clone = {"README.md", *(path.name for path in ROOT_FILES)}
    for path in clone.iterdir():
        is_weights = is_published(path.name) and ".safetensors" in path.name
        if is_weights and not (folder / path.name).exists():
            path.unlink()
    for path in folder.iterdir():
        if path.name not in of_the_clone:
            path.replace(clone / path.name)
    shutil.rmtree(folder)


def main(settings: Settings) -> dict:
    settings = replace(settings, name=settings.name or settings.push_to_hub or "zh-modernbert")
    check_settings(settings)
    source = require_folder(settings.model_dir, "config.json")
    output_dir = Path(settings.output_dir).absolute()
    check_output(output_dir, settings.form)
    tokenizer = load_tokenizer(source)
    model = load_model(source)
    if len(tokenizer) > model.config.vocab_size:
        raise InputError(f"{source}: the tokenizer has {len(tokenizer)} entries, the model {model.config.vocab_size}")
    tokenizer.model_max_length = model.config.max_position_embeddings
    card, run_dir = model_card(settings, model, source), run_of(source)
    check_card(card, "the card")
    result = {"parameters": model.num_parameters(), "vocab_size": model.config.vocab_size, "output_dir": settings.output_dir}
    written = output_dir / ".published" if is_clone(output_dir) else output_dir
    with replacing(written) as folder:
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
        if run_dir and (run_dir / "metrics.png").is_file():
            shutil.copyfile(run_dir / "metrics.png", folder / "metrics.png")
        if settings.form == "modernbert":
            result |= write_stock(folder, model, source)
        else:
            write_model(folder, model)
    files: dict[str, Path | bytes] = {path.name: output_dir / path.name for path in written.iterdir()}
    files["README.md"] = card.encode()
    if written != output_dir:
        lay_into(output_dir, written)
    return result | send(settings, files)


def send(settings: Settings, files: dict[str, Path | bytes]) -> dict:
    """Sends the files of a folder, or says which it would send, by their sizes; for the script's result."""
    if not settings.push_to_hub:
        return {}
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in sorted(files.items())}
    told = {"repository": settings.push_to_hub, "revision": settings.revision, "files": sizes}
    if settings.dry_run:
        return told
    return told | {"commit": push(settings.push_to_hub, files, is_published, settings.revision, settings.private)}


if __name__ == "__main__":
    run(main, Settings)
