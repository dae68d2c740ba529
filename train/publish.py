"""A pretrained model folder -> the folder to put on the Hub: weights, config, tokenizer, code and model card.

What is written loads with `AutoModel.from_pretrained(folder, trust_remote_code=True)` where this project is not installed.
Nothing is uploaded; `hf upload NAME FOLDER` does that.

    python train/publish.py --model_dir runs/tiny/pretrain_8k/model --output_dir runs/tiny/published --name me/zh-tiny
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.repocard_data import model_index_to_eval_results

from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.train.common.cli import TRUTH, BaseSettings, InputError, describe, run, setting
from zh_modernbert.train.common.files import read_json, replacing, require_file, require_folder
from zh_modernbert.train.common.model_folder import ROOT_FILES, load_model, write_model
from zh_modernbert.train.tokenizer.loading import load_tokenizer

# All that a published folder may hold; a folder with anything else in it is never replaced.
PUBLISHED = {"config.json", "model.safetensors", "README.md", *(path.name for path in ROOT_FILES)} | {
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
}


@dataclass
class Settings(BaseSettings):
    model_dir: str = setting(help="model folder to read: what train/pretrain.py left in model/")
    output_dir: str = setting(help="folder to write")
    name: str = setting("zh-modernbert", "the model's name on the Hub, such as me/zh-modernbert, in its card")
    license: str = setting("apache-2.0", "the Hub's name of the weights' licence, in the card")
    notes: str = setting("", "a Markdown file that goes into the card: data, results, limits")
    model_index: str = setting("", "the model_index.json that eval/report.py left: scores that the Hub shows beside the card")


CARD = """---
language: [zh]
license: {license}
library_name: transformers
pipeline_tag: fill-mask
tags: [fill-mask, modernbert, chinese, simplified-chinese, traditional-chinese]
{model_index}---

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

- Pads cost nothing: they are dropped at the model's edge and put back behind it.
- Packed input: `model(input_ids=ids, cu_seqlens=bounds)` with `ids` `(1, N)`; no document sees another.
- `attn_implementation`: `sdpa` (default), `flash_attention_2`, or `eager`, all with the same numbers.
- Byte-level BPE: no unknown characters, exact round trip, exact offsets.
- Entities: `pipeline("token-classification", ..., aggregation_strategy="simple")`. `first`, `average` and `max` take what
  has no space inside for one word, which is a Chinese sentence. Answers, with transformers 4: `align_to_words=False`.
- Late interaction: let the query's [MASK]s be attended to (`"attend": True` in sentence-transformers' `query_expansion`,
  `attend_to_expansion_tokens=True` in PyLate), or they come out as zeros.
{notes}"""


def check_card(settings: Settings) -> None:
    """Checks that name and licence mean in the card's YAML, Markdown and code what they should.

    Raises:
        InputError: one has other characters than such names have.
    """
    if not re.fullmatch(r"[A-Za-z0-9._/-]+", settings.name):
        raise InputError(
            f"publish: name is {settings.name!r}; it must be one on the Hub, such as me/zh-modernbert, or a folder"
        )
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


def model_card(settings: Settings, model: ZhModernBertForMaskedLM) -> str:
    notes = ""
    if settings.notes:
        try:
            notes = "\n" + Path(settings.notes).read_text(encoding="utf-8")
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
        model_index=model_index(settings),
        notes=notes,
    )


def main(settings: Settings) -> dict:
    check_card(settings)
    source = require_folder(settings.model_dir, "config.json")
    output_dir = Path(settings.output_dir).absolute()
    present = {path.name for path in output_dir.iterdir()} if output_dir.is_dir() else set()
    if output_dir.is_file() or (present and ("README.md" not in present or present - PUBLISHED)):
        raise InputError(f"{output_dir}: exists and is no published folder; choose another output_dir")
    tokenizer = load_tokenizer(source)
    model = load_model(source)
    if len(tokenizer) > model.config.vocab_size:
        raise InputError(f"{source}: the tokenizer has {len(tokenizer)} entries, the model {model.config.vocab_size}")
    tokenizer.model_max_length = model.config.max_position_embeddings
    card = model_card(settings, model)
    with replacing(output_dir) as folder:
        write_model(folder, model)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return {"parameters": model.num_parameters(), "vocab_size": model.config.vocab_size, "output_dir": settings.output_dir}


if __name__ == "__main__":
    run(main, Settings)
