"""A pretrained model folder -> the folder to put on the Hub: weights, config, tokenizer, code and model card.

What is written loads with `AutoModel.from_pretrained(folder, trust_remote_code=True)` where this project is not installed. With
`--form modernbert` it is a stock ModernBERT, which has no code and loads without `trust_remote_code`, in older tools too. That
needs a model with `norm_type: layernorm`. It is loaded again and compared. With `--dtype bfloat16` the weights are rounded, and
their file is half as large; transformers turns them back into what the model was in.

Nothing is sent unless `--push_to_hub` asks for it. The folder is written then as ever, and sent in one commit. Where the output
folder is a clone of this project, weights, config and tokenizer are laid beside its root files, and its README stays; of the
clone nothing but the files of a published folder is sent.

What makes a folder one of sentence-transformers goes along. So do the ONNX files that train/export.py made of this model, be
they in `model_dir` or in `output_dir`; those of another model are left out. A checkpoint of a run is a model folder too. Of a
run's `checkpoints/`, each becomes a folder of its own, which is sent to a branch of its own.

    python train/publish.py --model_dir runs/tiny/pretrain_8k/model --output_dir runs/tiny/published --name me/zh-tiny
    python train/publish.py --model_dir runs/tiny/pretrain_8k/model --output_dir runs/tiny/published --push_to_hub me/zh-tiny
    python train/publish.py --model_dir runs/tiny/pretrain_1k/checkpoints --output_dir runs/tiny/steps --push_to_hub me/zh-tiny
"""

import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import zh_modernbert.train.common.extras  # noqa: F401  # names the extra of a missing package

import torch

from zh_modernbert.train.common.cli import TRUTH, BaseSettings, InputError, run, setting
from zh_modernbert.train.common.files import read_json, replacing, write_json
from zh_modernbert.train.common.model_folder import hash_model, write_model
from zh_modernbert.train.common.stock import write_stock
from zh_modernbert.train.pretraining.checkpoint import checkpoints, step_of, verify_checkpoint
from zh_modernbert.train.publishing.card import model_card, plots_of
from zh_modernbert.train.publishing.folder import PLOTS, check_output, is_clone, lay_into, names_in, of_a_model, onnx_of
from zh_modernbert.train.publishing.hub import check_card, check_repository, push
from zh_modernbert.train.publishing.source import load_source, modules_in
from zh_modernbert.train.tokenizer.loading import load_tokenizer

LICENCE_NAME = re.compile(r"[a-z][a-z0-9.+-]*")
FORMS = ("zh_modernbert", "modernbert")


@dataclass
class Settings(BaseSettings):
    model_dir: str = setting(help="folder to read: a run's model/, a checkpoint or checkpoints/; or what other scripts left")
    output_dir: str = setting(help="folder to write")
    form: str = setting("zh_modernbert", "`modernbert` writes a stock ModernBERT, which loads without this code", FORMS)
    dtype: str = setting("", "what the weights are stored in; empty: what they are in", ("", "float32", "bfloat16"))
    name: str = setting("", "the model's name on the Hub, in its card; empty: push_to_hub, or zh-modernbert")
    license: str = setting("", "the Hub's name of the licence; empty: as the card in model_dir says, or of your own apache-2.0")
    base_model: str = setting("", "the Hub's name of the model that this one was trained from, in the card")
    datasets: list[str] = setting([], "the Hub's names of the data sets that it was trained on, in the card")
    notes: str = setting("", "a Markdown file that goes into the card: data, results, limits")
    model_index: str = setting("", "the model_index.json that eval/report.py left: scores that the Hub shows beside the card")
    push_to_hub: str = setting("", "the repository to send the folder to, such as me/zh-modernbert; it is made if missing")
    revision: str = setting("main", "the branch to send it to, such as step-5000; it is made if missing")
    private: bool = setting(False, "a repository that is made is private")
    dry_run: bool = setting(False, "write the folder, say what push_to_hub would send, and send nothing")


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
    if (settings.license and not LICENCE_NAME.fullmatch(settings.license)) or settings.license in ("null", *TRUTH):
        raise InputError(f"publish: license is {settings.license!r}; it must be the Hub's name of one, such as apache-2.0")


def name_dtype(path: Path, dtype: torch.dtype | str) -> None:
    """Has a config name the dtype to load weights as. transformers 5 goes by it, whatever they are stored in."""
    write_json(path, read_json(path) | {"dtype": str(dtype).removeprefix("torch.")})


def send(settings: Settings, files: dict[str, Path | bytes]) -> dict:
    """Sends the files of a folder, or says which it would send, by their sizes; for the script's result."""
    if not settings.push_to_hub:
        return {}
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in sorted(files.items())}
    told = {"repository": settings.push_to_hub, "revision": settings.revision, "files": sizes}
    if settings.dry_run:
        return told
    return told | {"commit": push(settings.push_to_hub, files, of_a_model, settings.revision, settings.private)}


def publish_checkpoints(settings: Settings, found: list[Path]) -> dict:
    """Each checkpoint in a folder of its own, and sent to a branch of its own."""
    if settings.revision != "main":
        raise InputError(f"{settings.model_dir}: each checkpoint goes to a branch of its own; leave revision out")
    for path in found:
        verify_checkpoint(path, identity=None)  # a damaged one is found before another is sent
    branches = {f"step-{step_of(path)}": path for path in found}
    return {
        "checkpoints": {
            branch: main(
                replace(
                    settings,
                    model_dir=str(path),
                    output_dir=str(Path(settings.output_dir) / branch),
                    revision=branch if settings.push_to_hub else "main",
                )
            )
            for branch, path in branches.items()
        },
        "output_dir": settings.output_dir,
    }


def main(settings: Settings) -> dict:
    settings = replace(settings, name=settings.name or settings.push_to_hub or "zh-modernbert")
    check_settings(settings)
    source, output_dir = Path(settings.model_dir), Path(settings.output_dir).absolute()
    if source.name == "checkpoints" and (found := checkpoints(source.absolute().parent)):
        return publish_checkpoints(settings, found)
    check_output(output_dir, settings.form)
    model, tokenizer_dir = load_source(source)
    tokenizer, modules, config = load_tokenizer(tokenizer_dir), modules_in(source), model.config
    loaded_as = config.dtype or model.dtype
    if settings.dtype:
        model.to(getattr(torch, settings.dtype))
    if len(tokenizer) > config.vocab_size:
        raise InputError(f"{source}: the tokenizer has {len(tokenizer)} entries, the model {config.vocab_size}")
    tokenizer.model_max_length = config.max_position_embeddings
    if modules:  # sentence-transformers cuts texts there, where training did
        tokenizer.model_max_length = read_json(source / "tokenizer_config.json").get("model_max_length")
    card, plots, onnx = model_card(settings, model, source), plots_of(source), onnx_of(hash_model(model), output_dir, source)
    check_card(card, "the card")
    result = {"parameters": model.num_parameters(), "vocab_size": config.vocab_size, "output_dir": settings.output_dir}
    written = output_dir / ".published" if is_clone(output_dir) else output_dir
    with replacing(written) as folder:
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
        for name, path in modules.items():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / name)
        if plots:
            shutil.copyfile(plots, folder / PLOTS)
        if onnx:
            shutil.copytree(onnx, folder / "onnx")
        if settings.form == "modernbert":
            result |= write_stock(folder, model, source)
        else:
            write_model(folder, model)
        name_dtype(folder / "config.json", loaded_as)
    files: dict[str, Path | bytes] = {name: output_dir / name for name in names_in(written)}
    files |= {"README.md": card.encode(), **({PLOTS: plots} if plots else {})}  # a clone keeps its own
    if written != output_dir:
        lay_into(output_dir, written)
    return result | send(settings, files)


if __name__ == "__main__":
    run(main, Settings)
