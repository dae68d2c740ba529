"""A model folder and pairs of texts -> a sentence-transformers folder whose embeddings tell what is alike.

The embedding is the mean over a text's tokens. InfoNCE takes pairs that belong together, with the batch and hard negatives for
what does not; CoSENT takes pairs with graded or binary labels. Several data sets are mixed by their size, each batch of one.
Trainer and losses are sentence-transformers' own. The result loads with `SentenceTransformer(folder, trust_remote_code=True)`
where this project is not installed. A run that was killed goes on from its last checkpoint with the same command. Needs
`pip install '.[embeddings]'`.

    python train/contrastive.py train/configs/contrastive/simclue.yaml --model runs/base/pretrain_8k/model
    python train/contrastive.py --model runs/published --trust_remote_code true --output_dir runs/embeddings \\
        --data '{name: mine, path: mine.jsonl, anchor: query, positive: answer}'
"""

import contextlib
import math
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import zh_modernbert.train.common.extras  # names the extra of a missing package
import zh_modernbert.train.common.openmp  # noqa: F401  # before torch is loaded

import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.util import mine_hard_negatives
from transformers import TrainerCallback

from zh_modernbert.configuration_zh_modernbert import ZhModernBertConfig
from zh_modernbert.train.common.cli import BaseSettings, InputError, describe, run, setting
from zh_modernbert.train.common.devices import check_dtype, check_environment, check_one_device, default_dtype
from zh_modernbert.train.common.files import read_json, require_folder
from zh_modernbert.train.common.manifest import SCRATCH
from zh_modernbert.train.common.model_folder import check_max_length, load_model, weight_files, write_model
from zh_modernbert.train.common.stage import run_stage
from zh_modernbert.train.embedding.pairs import PairSet, columns_of, files_of, read_held_out, rows_of
from zh_modernbert.train.publishing.card import header_in, header_text, licence_in
from zh_modernbert.train.tokenizer.loading import load_tokenizer


@dataclass
class Settings(BaseSettings):
    model: str = setting(help="folder of this project's model, of another encoder or of sentence-transformers, or a Hub id")
    data: list[PairSet] = setting(help="the data sets: name, path or dataset, columns, loss; see train/embedding/pairs.py")
    output_dir: str = setting(help="folder to write")
    held_out: list[PairSet] = setting([], "test sets, whose pairs are dropped from the data and counted")
    trust_remote_code: bool = setting(False, "run the code that the model's folder brings; this project's own needs no trust")
    attn_implementation: str = setting("sdpa", "flash_attention_2 takes rows without pads, if installed", running=True)
    max_length: int = setting(512, "most tokens of a text", least=3)
    temperature: float = setting(0.05, "of InfoNCE and CoSENT", least=1e-4)
    matryoshka_dims: list[int] = setting([], "also train the first so many dimensions alone, such as 256 128 64", least=1)
    mined_negatives: int = setting(0, "hard negatives of each pair that has none, as the model finds them; 0: none", least=0)
    mined_range_min: int = setting(10, "they are none of the so many texts that are nearest", least=0)
    mined_margin: float = setting(0.05, "and their likeness is lower than the positive's by this share", least=0, most=1)
    batch_size: int = setting(64, "pairs of an update, which see one another as negatives", least=2)
    mini_batch_num_tokens: int = setting(
        0, "InfoNCE: so many tokens are computed at once, whatever the batch (gradient caching); 0: the whole batch", least=0
    )
    dtype: str = setting("", "of the computation; on a GPU bfloat16 where empty", ("", "float32", "bfloat16"))
    learning_rate: float = setting(2e-5, "at its highest", least=0)
    warmup_ratio: float = setting(0.1, "share of the updates in which the learning rate rises; then it falls", least=0, most=1)
    weight_decay: float = setting(0.01, "of matrices", least=0)
    num_train_epochs: float = setting(1.0, "times over the data", least=0)
    max_steps: int = setting(0, "updates; 0: as many as num_train_epochs has", least=0)
    random_init: bool = setting(False, "start from random weights of the same architecture: what pretraining is compared with")
    seed: int = setting(0, "of the order of pairs, and of random weights", least=0)
    save_steps: int = setting(1000, "updates between checkpoints", least=1, running=True)
    logging_steps: int = setting(50, "updates between lines of the log", least=1, running=True)


# --- model ---


def load(settings: Settings, work: Path) -> SentenceTransformer:
    """The model to train, in fp32. A bare encoder gets the mean over its tokens for an embedding.

    Raises:
        InputError: it cannot be loaded, or texts may be longer than it takes.
    """
    name, trusted, local = settings.model, settings.trust_remote_code, Path(settings.model).is_dir()
    if local and not (Path(name) / "modules.json").is_file():
        weight_files(Path(name))
        if read_json(require_folder(name, "config.json") / "config.json").get("model_type") == ZhModernBertConfig.model_type:
            name, trusted = bare_encoder(Path(name), work), True
    options = {"use_safetensors": True, "attn_implementation": settings.attn_implementation, "dtype": torch.float32}
    try:
        model = SentenceTransformer(name, trust_remote_code=trusted, local_files_only=local, model_kwargs=options)
    except Exception as error:  # it raises many kinds
        raise InputError(f"{settings.model}: cannot be loaded: {describe(error)}") from error
    body = model[0]
    check_max_length(body.config, settings.max_length)
    if max(settings.matryoshka_dims, default=0) > (dimensions := model.get_embedding_dimension() or 0):
        raise InputError(f"matryoshka_dims: the model has {dimensions} dimensions, and no more")
    if settings.random_init:
        torch.manual_seed(settings.seed)
        body.model = type(body.model)(body.config).to(model.device)
    model.max_seq_length = settings.max_length
    model.model_card_data.generate_widget_examples = False  # the card is written below
    return model


def bare_encoder(source: Path, work: Path) -> str:
    """A folder of the encoder alone, with this project's code, of that of a masked language model."""
    folder = work / SCRATCH / "encoder"
    write_model(folder, load_model(source).model)
    load_tokenizer(source).save_pretrained(folder)
    return str(folder)


# --- data ---


def read_data(settings: Settings, model: SentenceTransformer) -> tuple[DatasetDict, dict[str, str], dict[str, dict[str, int]]]:
    """The tables to train on, the loss of each, and what each data set gave and why rows of it were dropped."""
    held_out, tables, kinds, counts = read_held_out(settings.held_out), DatasetDict(), {}, {}
    for source in settings.data:
        rows, dropped = rows_of(source, held_out)
        counts[source.name] = {"rows": len(rows), **{f"dropped: {reason}": count for reason, count in dropped.items()}}
        print(f"{source.name}: {counts[source.name]}", file=sys.stderr)
        for name, columns in columns_of(source, rows).items():
            table = Dataset.from_dict(columns)
            if settings.mined_negatives and table.column_names == ["anchor", "positive"]:
                table = mine(table, model, settings)
                counts[source.name]["rows with mined negatives"] = len(table)
            if name in tables:
                raise InputError(f"contrastive: two data sets are called {name}; give them different names")
            tables[name], kinds[name] = table, source.loss
    return tables, kinds, counts


def mine(table: Dataset, model: SentenceTransformer, settings: Settings) -> Dataset:
    """Pairs with hard negatives; those that have not enough are left out."""
    found = mine_hard_negatives(
        *(table, model, "anchor", "positive"),
        num_negatives=settings.mined_negatives,
        range_min=settings.mined_range_min,
        range_max=settings.mined_range_min + 10 * settings.mined_negatives,
        relative_margin=settings.mined_margin,
        output_format="n-tuple",
        batch_size=settings.batch_size,
        verbose=False,
    )
    if not len(found):
        raise InputError("contrastive: no hard negatives were found; lower mined_range_min or mined_margin, or mine none")
    return found


# --- training ---


def loss_of(kind: str, model: SentenceTransformer, settings: Settings) -> torch.nn.Module:
    scale = 1 / settings.temperature
    if kind == "cosent":
        loss = losses.CoSENTLoss(model, scale=scale)
    elif settings.mini_batch_num_tokens:
        loss = losses.CachedMultipleNegativesRankingLoss(
            model, scale=scale, mini_batch_num_tokens=settings.mini_batch_num_tokens
        )
    else:
        loss = losses.MultipleNegativesRankingLoss(model, scale=scale)
    return losses.MatryoshkaLoss(model, loss, settings.matryoshka_dims) if settings.matryoshka_dims else loss


def last_checkpoint(folder: Path) -> str | None:
    """The last checkpoint in `folder`, if any. The Trainer writes in place, so what a kill left unfinished is removed."""
    finished = {}
    for path in folder.glob("checkpoint-*"):
        try:
            finished[read_json(path / "trainer_state.json")["global_step"]] = str(path)  # the Trainer writes it last
        except InputError:
            shutil.rmtree(path)
    return finished[max(finished)] if finished else None


class LogWhereItStops(TrainerCallback):
    """Has the loss logged before each checkpoint and at the end, so that none of it is lost when another process goes on."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log |= control.should_save or control.should_training_stop


def mean_loss(log: list[dict]) -> float:
    """The mean over all updates of a Trainer's log, each entry of which has the mean since the one before."""
    total, last = 0.0, 0
    for entry in log:
        if "loss" in entry:
            total, last = total + entry["loss"] * (entry["step"] - last), entry["step"]
    return total / max(last, 1)


def train(model: SentenceTransformer, tables: DatasetDict, kinds: dict[str, str], settings: Settings, work: Path) -> dict:
    """Trains the model in place, from the last checkpoint in `work` where there is one.

    Raises:
        InputError: a data set has less than a batch, or the training diverged.
    """
    small = [name for name, table in tables.items() if len(table) < settings.batch_size]
    if small:
        raise InputError(f"{small[0]}: {len(tables[small[0]])} rows, less than a batch of {settings.batch_size}")
    checkpoints = work / SCRATCH / "checkpoints"
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(checkpoints),
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=min(settings.warmup_ratio, math.nextafter(1, 0)),  # from 1 on it would be a number of updates
        weight_decay=settings.weight_decay,
        num_train_epochs=settings.num_train_epochs,
        max_steps=settings.max_steps or -1,
        bf16=settings.dtype == "bfloat16",
        use_cpu=not torch.accelerator.is_available(),  # without this, the Trainer takes bf16 for a GPU's alone
        batch_sampler="no_duplicates",  # a text that is there twice would be its own negative
        multi_dataset_batch_sampler="proportional",
        dataloader_drop_last=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        save_steps=settings.save_steps,
        save_total_limit=1,
        logging_steps=settings.logging_steps,
        report_to="none",
        seed=settings.seed,
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=tables,
        loss={name: loss_of(kind, model, settings) for name, kind in kinds.items()},
        callbacks=[LogWhereItStops()],
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    if any(not parameter.isfinite().all() for parameter in model.parameters()):
        raise InputError("the training diverged: weights are not finite; lower learning_rate")
    return {"updates": trainer.state.global_step, "mean_loss": round(mean_loss(trainer.state.log_history), 4)}


CARD = """---
{made_of}library_name: sentence-transformers
pipeline_tag: sentence-similarity
language: [zh]
tags: [sentence-transformers, sentence-similarity, feature-extraction, chinese]
---

# Sentence embeddings

Texts become vectors of {dimensions} numbers, whose cosine tells how alike the texts are. Trained on {data}, at up to {longest}
tokens a text.

```python
from sentence_transformers import SentenceTransformer
model = SentenceTransformer("PATH_OR_NAME", trust_remote_code=True)
print(model.similarity(*[model.encode(["今天天气很好。", "今天天氣很好。"])] * 2))
```
"""


def made_of(model: str) -> str:
    """Lines of the card's header: the Hub's name of the model that the embeddings were trained from, and its licence."""
    if not Path(model).is_dir():
        return header_text({"base_model": model})
    header = header_in(Path(model))
    return header_text({**licence_in(header), "base_model": header.get("base_model")})


def main(settings: Settings) -> dict:
    check_environment(mixed_precision="no")
    check_one_device()
    settings = replace(settings, dtype=settings.dtype or default_dtype())  # before the recipe is made, which has it
    check_dtype(settings.dtype)
    local = [settings.model] if Path(settings.model).exists() else []

    def build(work: Path) -> dict:
        with contextlib.redirect_stdout(sys.stderr):  # the Trainer prints its log
            model = load(settings, work)
            tables, kinds, counts = read_data(settings, model)
            result = train(model, tables, kinds, settings, work)
        model.save_pretrained(str(work), create_model_card=False)
        if getattr(model[0].config, "model_type", None) == ZhModernBertConfig.model_type:
            tokenizer = load_tokenizer(work)  # sentence-transformers writes a class that transformers 4 does not know
            tokenizer.model_max_length = settings.max_length
            tokenizer.save_pretrained(work)
        dimensions = model.get_embedding_dimension()
        told = {"dimensions": dimensions, "data": ", ".join(counts), "longest": settings.max_length}
        card = CARD.format(made_of=made_of(settings.model), **told)
        (work / "README.md").write_text(card, encoding="utf-8")
        return {**result, "data": counts, "dimensions": dimensions, "dtype": settings.dtype}

    return run_stage(settings, build, [*local, *files_of([*settings.data, *settings.held_out])])


if __name__ == "__main__":
    run(main, Settings)
