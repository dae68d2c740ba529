"""A stock ModernBERT checkpoint -> a published folder of this model, which gives the same numbers.

Reads any folder or Hub id that transformers' own ModernBERT loads: the bare model or one of its five heads, with a config as
transformers 4 or 5 writes it. The weights keep their names and their dtype, the tokenizer its files. What was written is loaded
again and compared with transformers' class on random tokens in float32. Large activations can differ by more than 1e-5 of the
largest entry through rounding alone; then both are compared again in float64. If they differ there too, nothing is written.

A source with RMSNorm, which transformers' class has not, is known by its config, whatever it calls that, or by `--norm_type`.
It is compared with transformers' class with RMSNorm in it. Code that comes with a model is not run. Code that comes with a
tokenizer is run only with `--trust_remote_code true`, to see whether tokenizer.json alone gives the same ids; the code is
left out then.

    python train/convert.py --source answerdotai/ModernBERT-base --output_dir runs/modernbert-base
"""

import inspect
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zh_modernbert.train.common.extras  # noqa: F401  # names the extra of a missing package

import torch
import transformers
from huggingface_hub import snapshot_download
from transformers import AutoTokenizer, ModernBertConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.activations import ACT2FN

from zh_modernbert.configuration_zh_modernbert import AUTO_MAP, LAYER_TYPES, ZhModernBertConfig
from zh_modernbert.train.common.cli import BaseSettings, InputError, describe, run, setting
from zh_modernbert.train.common.files import read_json, replacing, require_file, write_json
from zh_modernbert.train.common.model_folder import CLASSES, build_model, read_weights, write_model
from zh_modernbert.train.common.stage import TOKENIZER_FILES, tokenizer_files
from zh_modernbert.train.common.stock import SAMPLE, SHARED, require_same
from zh_modernbert.train.publishing.card import KINDS, header_in, header_text, licence_in

# transformers' name of each architecture -> our class
ARCHITECTURES = {name.removeprefix("Zh"): model_class for name, model_class in CLASSES.items()}

# Every field that a config may have. SHARED are taken as transformers' class resolves them. CARRIED are taken as the file has
# them. ROPE are read by `rope_fields`. IRRELEVANT do not change what the model computes.
CARRIED = {
    *("global_attn_every_n_layers", "mask_token_id", "unk_token_id"),
    *("id2label", "label2id", "problem_type", "finetuning_task", "task_specific_params", "sentence_transformers"),
    *("output_hidden_states", "output_attentions", "return_dict", "chunk_size_feed_forward", "is_encoder_decoder"),
}
ROPE = {"rope_parameters", "rope_scaling", "global_rope_theta", "local_rope_theta"}
IRRELEVANT = {
    *("model_type", "architectures", "transformers_version", "dtype", "torch_dtype", "tokenizer_class", "_name_or_path"),
    *("gradient_checkpointing", "reference_compile", "repad_logits_with_grad", "_attn_implementation_autoset"),
    *("layer_norm_eps", "position_embedding_type"),  # some files have them; ModernBERT reads norm_eps, and always has RoPE
}

NORM_TYPES = ("rmsnorm", "layernorm")
# What the tokenizer of feynmanzhao/chinese-modernbert-large-wwm calls what it does to a text first.
AS_GIVEN = "do_text_preprocessing"


# What it says of the data, its uses and limits, only the source's own card knows.
CARD = """---
{header}---

# {name}

The weights of {source} in the form of zh-modernbert, which needs `trust_remote_code=True`. They give the same numbers as
transformers' {architecture}{norm}: on random tokens, outputs differed by at most {max_relative_diff:.2g} of the largest
entry, computed in {compared_in}. Pads cost nothing here, and packed documents do not see one another. On what the model was
trained, what it is for and what it cannot do, see {card}.

{licence}

```python
from transformers import {auto_class}, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
model = {auto_class}.from_pretrained("{name}", trust_remote_code=True)
```
"""


@dataclass
class Settings(BaseSettings):
    source: str = setting(help="folder or Hub id of a stock ModernBERT")
    output_dir: str = setting(help="folder to write; must not exist")
    norm_type: str = setting("", "`rmsnorm` or `layernorm` where the config does not say; empty: as it says", ("", *NORM_TYPES))
    trust_remote_code: bool = setting(False, "run the code of the source's tokenizer, to compare its ids", running=True)


def find_source(source: str, trust_remote_code: bool) -> Path:
    """The folder of that name, or the folder of the Hub's model, downloaded unless it is in the cache; with code if trusted."""
    if Path(source).is_dir():
        return Path(source)
    try:
        files = ["config.json", "model*.safetensors*", "README.md", *TOKENIZER_FILES]
        return Path(snapshot_download(source, allow_patterns=[*files, *(["*.py"] if trust_remote_code else [])]))
    except (OSError, ValueError) as error:
        raise InputError(f"{source}: no such folder, nor to be had from the Hub: {describe(error)}") from error


def require(condition: bool, path: Path, name: str, value, what: str) -> None:
    """Raises InputError, which names a field of the config at `path` and its value, unless `condition` holds."""
    if not condition:
        raise InputError(f"{path}: {name} is {value!r}; {what}")


def norm_by_name(name: str, value) -> str | None:
    """The kind of norm that one field of a config says, whatever it calls it; None if it says none.

    Known are the kind's name (`norm_type: rms_norm`), a switch (`use_rms_norm: true`), and an epsilon (`rms_norm_eps: 1e-6`).
    """
    if "norm" not in name or value is None:
        return None
    if isinstance(value, str):
        plain = re.sub(r"[^a-z]", "", value.lower())
        return {"rms": "rmsnorm", "rmsnorm": "rmsnorm", "layer": "layernorm", "layernorm": "layernorm"}.get(plain)
    if "rms" not in name:
        return None
    return "layernorm" if value is False else "rmsnorm"


def read_norm(path: Path, chosen: str = "") -> tuple[dict, str]:
    """A config as the file has it but in stock ModernBERT's words, and the kind of norm.

    Of a source with RMSNorm, `model_type`, `architectures` and `auto_map` are those of somebody's own class, which has
    ModernBERT's fields and weights.

    Args:
        chosen: the kind of norm, where the config does not say.

    Raises:
        InputError: the config says two things, or another than `chosen`, naming the field.
    """
    written = read_json(path)
    said = {name: kind for name, value in written.items() if (kind := norm_by_name(name, value))}
    norm_type = chosen or next(iter(said.values()), "layernorm")
    for name, kind in said.items():
        require(kind == norm_type, path, name, written[name], f"which is not {norm_type}, that is said elsewhere")
    if norm_type == "layernorm":
        return {name: value for name, value in written.items() if name not in said}, norm_type
    fields = {name: value for name, value in written.items() if name not in {*said, "auto_map"}}
    for name in said:
        if name.endswith("eps"):
            require(written.get("norm_eps") in (None, written[name]), path, name, written[name], "but norm_eps is another")
            fields["norm_eps"] = written[name]
    require(not written.get("norm_bias"), path, "norm_bias", written.get("norm_bias"), "RMSNorm has no bias")
    kind, names = written.get("model_type"), written.get("architectures")
    if isinstance(kind, str) and kind != ZhModernBertConfig.model_type and "modernbert" in kind.lower():
        fields["model_type"] = "modernbert"
    if isinstance(names, list):
        fields["architectures"] = [re.sub(r"^\w*(?=ModernBert)", "", name) if isinstance(name, str) else name for name in names]
    return fields, norm_type


def read_config(path: Path, norm_type: str = "") -> tuple[str, ZhModernBertConfig]:
    """The name of transformers' class for the model, and its config as ours.

    Raises:
        InputError: this is no ModernBERT, or a field has a value that this model cannot have or is unknown, naming the field.
    """
    written, norm_type = read_norm(path, norm_type)
    architecture = check_written(written, path)
    stock = read_stock_config(written, path)
    rope = rope_fields(written, stock, path)
    carried = {name: written[name] for name in CARRIED if written.get(name) is not None}
    try:
        return architecture, ZhModernBertConfig(
            **{name: getattr(stock, name) for name in SHARED},
            **{"mask_token_id": None, "unk_token_id": None} | carried,
            **rope,
            norm_type=norm_type,
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: {describe(error)}") from error


def check_written(written: dict, path: Path) -> str:
    """Checks the fields as the file has them, before transformers fills in the rest; returns the name of the model's class."""
    kind = written.get("model_type")
    require(kind == "modernbert", path, "model_type", kind, "only stock ModernBERT ('modernbert') can be converted")
    names: Any = written.get("architectures")
    one_known = isinstance(names, list) and len(names) == 1 and isinstance(names[0], str) and names[0] in ARCHITECTURES
    require(one_known, path, "architectures", names, f"it must name one of {', '.join(ARCHITECTURES)}")
    for name, value in written.items():
        known = value is None or name in SHARED | CARRIED | ROPE | IRRELEVANT
        require(known, path, name, value, "no field of stock ModernBERT; take it out if the model does not depend on it")
    layer_types = written.get("layer_types") or []
    known = isinstance(layer_types, list) and all(layer_type in LAYER_TYPES for layer_type in layer_types)
    require(known, path, "layer_types", layer_types, f"each must be one of {', '.join(LAYER_TYPES)}")
    for name, value in (("return_dict", True), ("output_attentions", False)):
        require(written.get(name) in (None, value), path, name, written.get(name), f"only {value} can be the default here")
    return names[0]


def read_stock_config(written: dict, path: Path) -> ModernBertConfig:
    """The config as transformers reads it, with every field that the file leaves out."""
    try:
        stock = ModernBertConfig.from_dict(written)
    except Exception as error:  # transformers raises many kinds
        raise InputError(f"{path}: not a config that transformers reads: {describe(error)}") from error
    for name in ("hidden_activation", "classifier_activation"):
        value = getattr(stock, name)
        require(value in ACT2FN, path, name, value, "transformers has no such activation")
    longest = stock.max_position_embeddings
    require(longest > 0, path, "max_position_embeddings", longest, "it must be above 0")
    return stock


def rope_fields(written: dict, stock: ModernBertConfig, path: Path) -> dict:
    """Our fields of RoPE, from transformers' `rope_parameters`. The older fields for the bases may stand beside it if equal."""
    rope: dict = stock.rope_parameters or {}
    full, sliding = ({key: value for key, value in rope[layer_type].items() if value is not None} for layer_type in LAYER_TYPES)
    thetas = {"global_rope_theta": full.pop("rope_theta", None), "local_rope_theta": sliding.pop("rope_theta", None)}
    for name, theta in thetas.items():
        require(isinstance(theta, (int, float)), path, name, theta, "it must be a number")
        require(written.get(name) in (None, theta), path, name, written.get(name), f"but rope_parameters has {theta}")
    plain = {"rope_type": "default"}
    require(sliding == plain, path, "rope_parameters.sliding_attention", sliding, "layers with a window have plain RoPE here")
    return {**thetas, "rope_scaling": None if full == plain else full}


def load_stock(source: Path, architecture: str, norm_type: str) -> PreTrainedModel:
    """The source by transformers' class, in float32, with RMSNorm in the place of its norms if the source has that.

    Raises:
        InputError: transformers cannot load it.
    """
    written, norm_type = read_norm(source / "config.json", norm_type)
    config = read_stock_config(written, source / "config.json")
    try:
        stock = getattr(transformers, architecture).from_pretrained(
            source, config=config, dtype=torch.float32, use_safetensors=True
        )
    except Exception as error:  # transformers raises many kinds
        raise InputError(f"{source}: transformers cannot load it: {describe(error)}") from error
    norms = {name: norm for name, norm in stock.named_modules() if isinstance(norm, torch.nn.LayerNorm)}
    for name, norm in norms.items() if norm_type == "rmsnorm" else ():
        rmsnorm = torch.nn.RMSNorm(list(norm.normalized_shape), eps=norm.eps)
        rmsnorm.weight = norm.weight
        stock.set_submodule(name, rmsnorm)
    return stock


def check_code(source: Path, trust_remote_code: bool) -> None:
    """Raises InputError if the tokenizer has code of its own, which may not be run."""
    path = source / "tokenizer_config.json"
    code = read_json(path).get("auto_map") if path.is_file() else None
    if code and not trust_remote_code:
        raise InputError(
            f"{path}: auto_map is {code!r}: the tokenizer has code of its own; read it, and if you trust it, "
            "--trust_remote_code true runs it to see whether tokenizer.json alone gives the same ids"
        )


def ids_by_code(source: Path, model_config: PretrainedConfig) -> list[int]:
    """What the tokenizer's own code makes of the sample, without what it does to the text before, if it can be told so."""
    tokenizer = AutoTokenizer.from_pretrained(source, config=model_config, trust_remote_code=True)
    methods = [method for _, method in inspect.getmembers(type(tokenizer), inspect.isfunction)]
    told = any(AS_GIVEN in inspect.signature(method).parameters for method in methods)
    return tokenizer(SAMPLE, **({AS_GIVEN: False} if told else {}))["input_ids"]


def copy_tokenizer(source: Path, folder: Path, model_config: PretrainedConfig) -> None:
    """Copies the tokenizer's files, and changes only what some version of transformers cannot read. Its code is left out.

    Args:
        model_config: of the source, as transformers knows it.

    Raises:
        InputError: the tokenizer cannot be loaded, or would give other ids.
    """
    for path in tokenizer_files(source):
        shutil.copyfile(path, folder / path.name)
    path = source / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    has_code = bool(config.get("auto_map"))
    try:
        if has_code:
            config = {name: value for name, value in config.items() if name not in ("auto_map", AS_GIVEN)}
            expected, names = ids_by_code(source, model_config), ["input_ids", "attention_mask"]
        else:
            stock = AutoTokenizer.from_pretrained(source, config=model_config)
            expected, names = stock(SAMPLE)["input_ids"], stock.model_input_names
        # Of a stock ModernBERT transformers reads tokenizer.json and ignores `tokenizer_class`; of other models it does not.
        changed = {"model_input_names": names} | config | {"tokenizer_class": "PreTrainedTokenizerFast"}
        if isinstance(config.get("extra_special_tokens"), list):  # transformers 5's name for them, on which 4 fails
            changed["additional_special_tokens"] = changed.pop("extra_special_tokens")
        if changed != config or has_code:
            write_json(folder / path.name, changed)
        same = expected == PreTrainedTokenizerFast.from_pretrained(folder)(SAMPLE)["input_ids"]
    except Exception as error:  # transformers and tokenizers raise many kinds
        raise InputError(f"{source}: the tokenizer cannot be loaded: {describe(error)}") from error
    if not same and has_code:
        raise InputError(
            f"{source}: tokenizer.json alone gives other ids than the tokenizer's code does; give the model another tokenizer "
            "with train/transfer_tokenizer.py, from a copy without auto_map in its tokenizer_config.json"
        )
    if not same:
        raise InputError(f"{source}: tokenizer.json alone gives other ids than transformers' AutoTokenizer does")
    if has_code:
        print(f"{path}: the tokenizer's code is left out: it takes every text as it is given, offsets fit", file=sys.stderr)


def model_card(settings: Settings, source: Path, architecture: str, norm_type: str, differences: dict) -> str:
    """The card of what was converted. Licence and languages are those of the source's card, if it has one that names them.

    A folder on this machine is not named: nobody else has it.
    """
    header, on_hub = header_in(source), source != Path(settings.source)
    licence, task = licence_in(header), KINDS[f"Zh{architecture}"].task
    fields = {
        "language": header.get("language"),
        **licence,
        "library_name": "transformers",
        "pipeline_tag": task,
        "tags": [task, "modernbert"],
        "base_model": settings.source if on_hub else header.get("base_model"),
    }
    licence_of_it = (
        "It has the source's licence, {license}."
        if licence
        else ("The source names no licence. Ask its authors before you pass these weights on.")
    )
    classes = {reference.partition(".Zh")[2]: auto_class for auto_class, reference in AUTO_MAP.items()}
    return CARD.format(
        header=header_text(fields),
        name=Path(settings.output_dir).name,
        source=f"[{settings.source}](https://huggingface.co/{settings.source})" if on_hub else "a stock ModernBERT",
        card="its card" if on_hub else "what came with it",
        architecture=architecture,
        norm=" with RMSNorm in it" if norm_type == "rmsnorm" else "",
        licence=licence_of_it.format(**licence),
        auto_class=classes[architecture],
        **differences,
    )


def main(settings: Settings) -> dict:
    output_dir = Path(settings.output_dir).absolute()
    if output_dir.exists():
        raise InputError(f"{output_dir}: exists; choose another output_dir")
    source = find_source(settings.source, settings.trust_remote_code)
    architecture, config = read_config(source / "config.json", settings.norm_type)
    require_file(source / "tokenizer.json")
    check_code(source, settings.trust_remote_code)
    tensors = read_weights(source)
    if architecture == "ModernBertModel":  # saved by itself, or from within a model with a head
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    model = build_model(ARCHITECTURES[architecture], config, tensors, source)
    stock = load_stock(source, architecture, settings.norm_type)
    with replacing(output_dir) as folder:
        copy_tokenizer(source, folder, stock.config)
        write_model(folder, model)
        ours = type(model).from_pretrained(folder, dtype=torch.float32)
        differences = require_same(stock, ours, source)
        card = model_card(settings, source, architecture, config.norm_type, differences)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return {
        "architecture": architecture,
        "norm_type": config.norm_type,
        "num_parameters": model.num_parameters(),
        "dtype": str(model.dtype).removeprefix("torch."),
        **differences,
        "output_dir": settings.output_dir,
    }


if __name__ == "__main__":
    run(main, Settings)
