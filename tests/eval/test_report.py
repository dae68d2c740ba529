"""Tables of results made here: what stands in which column, and what never does."""

import json
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from zh_modernbert.eval import report
from zh_modernbert.eval.reporting.published import PUBLISHED
from zh_modernbert.eval.tasks.registry import TASKS
from zh_modernbert.train.common.cli import InputError

pytestmark = pytest.mark.usefixtures("unrendered_plots")


@pytest.fixture
def write(tmp_path):
    """`write(task, metrics, ...)` leaves a result file, as the scripts do."""
    (tmp_path / "results").mkdir()
    count = iter(range(100))

    def write(
        task: str, metrics: dict, split="dev", model="mine", seed=1, num_examples=100, notes="", cells=(), **said
    ) -> None:
        result = {"task": task, "split": split, "model": model, "primary_metric": next(iter(metrics)), "metrics": metrics}
        result |= {"num_examples": num_examples, "seed": seed, "hyperparameters": said, "notes": notes, "runtime_seconds": 1.0}
        result |= {"cells": cells} if cells else {}
        (tmp_path / "results" / f"{next(count)}.json").write_text(json.dumps(result), encoding="utf-8")

    return write


def settings(tmp_path: Path, **changes) -> report.Settings:
    return report.Settings([str(tmp_path / "results")], str(tmp_path / "report"), **changes)


def report_of(tmp_path: Path) -> str:
    report.main(settings(tmp_path))
    return (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


def tables(tmp_path: Path) -> dict[str, dict[str, dict[str, str]]]:
    """Benchmark -> column -> row -> what stands there."""
    found = {}
    for section in report_of(tmp_path).split("\n## ")[1:]:
        lines = [line for line in section.splitlines() if line.startswith("|")]
        (_, *columns), _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
        names = [section.splitlines()[0]] if "Tokens up to" not in columns else []
        for name in names:
            found[name] = {
                column: {row[0]: row[i + 1] for row in rows if row[i + 1] != "–"} for i, column in enumerate(columns)
            }
    return found


def test_mean_and_deviation_of_seeds_beside_baselines_and_published_scores(write, tmp_path):
    for seed, accuracy in enumerate([74.0, 75.0, 76.0]):
        write("afqmc", {"accuracy": accuracy, "majority_class": 69.0, "overlap_accuracy": 70.1}, seed=seed, max_length=128)
    write("afqmc", {"accuracy": 69.5}, model="other", max_length=128)
    (column,) = [
        found for title, found in tables(tmp_path)["CLUE"].items() if title == "afqmc, dev, accuracy, 128 tokens, 100 examples"
    ]
    assert column["mine"] == "75.00 ± 1.00 (3)"
    assert column["other"] == "69.50"
    assert (column["majority class"], column["character overlap"]) == ("69.00", "70.10")
    assert column["BERT-base (CLUE)"] == "74.16"
    assert column["Chinese ModernBERT (377M)"] == "73.87\\*"  # the length is not stated
    assert column["BERT-base (PaddleNLP)"] == "74.63"
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "- BERT-base (PaddleNLP): PaddleNLP examples/benchmark/clue; best on dev of a grid, one seed" in text
    assert (tmp_path / "report" / "report-clue.png").exists()


def test_a_part_of_a_split_is_beside_nothing_published(write, tmp_path):
    write("afqmc", {"accuracy": 74.0}, max_length=128, notes="only 100 of 4316 examples of dev")
    write("afqmc", {"accuracy": 75.0}, model="other", max_length=128, notes="only 100 of 3861 examples of test")
    found = tables(tmp_path)["CLUE"]
    assert found["afqmc, dev, accuracy, 128 tokens, 100 examples, of more"].keys() == {"mine"}
    assert found["afqmc, dev, accuracy, 128 tokens, 100 examples"].keys() > {"other", "BERT-base (CLUE)"}


def test_trained_on_a_part(write, tmp_path):
    """Each number of examples is a column beside nothing published, and none is the model's score."""
    part = "only {} of 34334 examples of train"
    write("afqmc", {"accuracy": 74.0}, max_length=128)
    for seed, (accuracy, count) in enumerate([(60.0, 100), (62.0, 100), (65.0, 500)], 2):
        write("afqmc", {"accuracy": accuracy}, seed=seed, max_length=128, notes=part.format(count), num_train_examples=count)
    write("afqmc", {"accuracy": 70.0}, model="other", max_length=128, notes=part.format(500))
    found, title = tables(tmp_path)["CLUE"], "afqmc, dev, accuracy, 128 tokens, 100 examples"
    assert found[title]["mine"] == "74.00"
    assert found[f"{title}, trained on 100 of more"] == {"mine": "61.00 ± 1.41 (2)"}
    assert found[f"{title}, trained on 500 of more"] == {"mine": "65.00", "other": "70.00"}
    assert "- other, afqmc, dev: only 500 of" in report_of(tmp_path)
    report.main(settings(tmp_path, model="mine"))
    (entry,) = json.loads((tmp_path / "report" / "model_index.json").read_text(encoding="utf-8"))["results"]
    assert entry["metrics"] == [{"type": "accuracy", "name": "accuracy", "value": 74.0}]


@pytest.mark.parametrize(
    ("one", "two", "said"),
    [
        ({"learning_rate": 2e-5}, {"learning_rate": 5e-5}, "learning_rate is 2e-05 and 5e-05"),
        ({"num_train_epochs": 3}, {"num_train_epochs": 8}, "num_train_epochs is 3 and 8"),
        ({"grid": "clue", "learning_rate": 2e-5}, {"learning_rate": 5e-5}, "grid is clue and not stated"),
    ],
)
def test_seeds_of_other_settings(one, two, said, write, tmp_path):
    for seed, settings_of in enumerate([one, two]):
        write("afqmc", {"accuracy": 74.0}, seed=seed, **settings_of)
    with pytest.raises(InputError, match=rf"0\.json and .*1\.json: .*{said}"):
        report.main(settings(tmp_path))


def test_two_models_that_are_called_the_same(write, tmp_path):
    """As one training after another leaves them. Random weights of the same folder have a row and a hash of their own."""
    write("afqmc", {"accuracy": 74.0}, model_hash="1a")
    write("afqmc", {"accuracy": 60.0}, model_hash="2b", notes="fine-tuned from random weights")
    write("tnews", {"accuracy": 50.0})
    report.main(settings(tmp_path))
    write("csl", {"accuracy": 75.0}, model_hash="3c")
    with pytest.raises(InputError, match=r"0\.json and .*3\.json: .*called mine: their model_hash is 1a and 3c"):
        report.main(settings(tmp_path))


def test_seeds_for_which_a_grid_and_dev_chose(write, tmp_path):
    for seed, rate in enumerate([1e-5, 5e-5]):
        write(
            "afqmc", {"accuracy": 74.0 + seed}, seed=seed, grid="clue", learning_rate=rate, batch_size=16 + seed, epochs=[seed]
        )
        write("csl", {"accuracy": 74.0 + seed}, seed=seed, learning_rate=1e-5, epochs=[seed])
    found = {rows["mine"] for rows in tables(tmp_path)["CLUE"].values() if "mine" in rows}
    assert found == {"74.50 ± 0.71 (2)"}


def test_what_never_stands_in_one_column(write, tmp_path):
    """Split, substitute, script, scorer, length, metric and the number of examples each make a column."""
    write("thucnews", {"accuracy": 1.0}, max_length=64)
    for changes in (
        {"task": "thucnews_titles"},
        {"task": "thucnews_substitute"},
        {"split": "test"},
        {"task": "thucnews_hant"},
        {"task": "thucnews_hant_substitute"},
        {"scorer": "another"},
        {"max_length": 128},
        {"num_examples": 99},
        {"metrics": {"macro_f1": 2.0}},
    ):
        write(**{"task": "thucnews", "metrics": {"accuracy": 2.0}, "max_length": 64} | changes)
    columns = [rows["mine"] for table in tables(tmp_path).values() for rows in table.values() if "mine" in rows]
    assert sorted(columns) == ["1.00"] + ["2.00"] * 9


def test_scorers_of_reading(write, tmp_path):
    """CMRC2018 by its authors' script, by PaddleNLP's and by one that is not stated; DRCD in both scripts."""
    write("cmrc2018", {"f1": 88.0, "em": 66.0}, scorer="cmrc2018", max_length=512)
    write("drcd", {"f1": 90.0, "em": 85.0}, scorer="drcd", max_length=512)
    write("drcd_hans_by_cmrc2018", {"f1": 91.0, "em": 86.0}, scorer="cmrc2018", max_length=512)
    found = tables(tmp_path)["Reading comprehension"]
    ours = found["cmrc2018, dev, cmrc2018, em/f1, 512 tokens, 100 examples"]
    assert ours["mine"] == "66.00 / 88.00"
    assert ours["BERT-base (CLUE)"] == "64.77 / 85.48"
    assert ours.keys() == {
        "mine",
        *(f"{name} (CLUE)" for name in ("BERT-base", "RoBERTa-wwm-ext", "RoBERTa-wwm-ext-large")),
    } | {f"{name} (hfl)" for name in ("BERT-base", "MacBERT-base", "MacBERT-large")}
    assert found["drcd, dev, drcd, em/f1, 512 tokens, 100 examples"].keys() == {"mine"}
    by_another = found["drcd, dev, hans, cmrc2018, em/f1, 512 tokens, 100 examples"]
    assert (by_another["mine"], by_another["BERT-base (CLUE)"]) == ("86.00 / 91.00", "86.60 / 92.30")
    assert found["drcd, dev, hfl, em/f1, 512 tokens"].keys() == {
        f"{name} (hfl)" for name in ("BERT-base", "MacBERT-base", "MacBERT-large")
    }


def test_benchmarks(write, tmp_path):
    for task in ("chnsenticorp", "bq", "cluener", "drcd_long_512_hant", "lsht", "lcqmc_retrieval_substitute", "mine"):
        write(task, {"accuracy": 1.0})
    found = {
        title: {name.partition(",")[0] for name, rows in table.items() if "mine" in rows}
        for title, table in tables(tmp_path).items()
    }
    assert found == {
        "Texts": {"chnsenticorp"},
        "Pairs": {"bq"},
        "Entities and words": {"cluener"},
        "Long documents": {"drcd_long_512", "lsht"},
        "Similarity and retrieval": {"lcqmc_retrieval_substitute"},
        "Other tasks": {"mine"},
    }


def test_best_on_dev_is_a_row_of_its_own(write, tmp_path):
    write("tnews", {"accuracy": 56.0, "best_on_dev": 57.0}, notes="seen | twice")
    write("tnews", {"accuracy": 50.0}, notes="fine-tuned from random weights")
    (column,) = [rows for title, rows in tables(tmp_path)["CLUE"].items() if "mine" in rows]
    assert (column["mine"], column["mine, best on dev"], column["mine (random weights)"]) == ("56.00", "57.00", "50.00")


def test_the_best_on_dev_is_of_one_metric(write, tmp_path, monkeypatch):
    """The one that chose: the second of reading's. Another metric's bar is not drawn."""
    write("cmrc2018", {"f1": 85.0, "em": 65.0, "best_on_dev": 86.1}, scorer="cmrc2018", max_length=512)
    write("sts_b", {"spearman": 0.5, "pearson": 0.6, "best_on_dev": 0.7})
    write("tnews", {"accuracy": 56.0, "best_on_dev": 57.0})
    bars = {}
    monkeypatch.setattr(Axes, "bar", lambda axes, places, heights, *_, label, **__: bars.setdefault(label, []).extend(heights))
    monkeypatch.setattr(Axes, "legend", lambda *_, **__: None)
    found = {title: rows for table in tables(tmp_path).values() for title, rows in table.items() if "mine" in rows}
    assert {title.partition(",")[0]: rows["mine, best on dev"] for title, rows in found.items()} == {
        "cmrc2018": "– / 86.10",
        "sts_b": "– / 0.7000",
        "tnews": "57.00",
    }
    assert bars == {"mine": [56.0, 65.0, 60.0], "mine, best on dev": [57.0]}


def test_correlations_have_four_digits(write, tmp_path):
    write("simclue_similarity", {"spearman": 0.51234, "pearson": 0.5}, split="test", scorer="cosine")
    column = tables(tmp_path)["Similarity and retrieval"]["simclue_similarity, test, cosine, pearson/spearman, 100 examples"]
    assert (column["mine"], column["gte-large-zh"]) == ("0.5000 / 0.5123", "0.5543 / 0.5829\\*")


def test_a_result_given_twice(write, tmp_path):
    write("afqmc", {"accuracy": 74.0})
    write("afqmc", {"accuracy": 75.0})
    with pytest.raises(InputError, match=r"0\.json and .*1\.json"):
        report.main(settings(tmp_path))


@pytest.fixture
def write_perplexity(write):
    """`write_perplexity(rows, ...)` leaves a result with rows of (script, most tokens, text)."""

    def write_perplexity(rows: list[tuple[str, int, str]], text="abc", unigram_input=(), dropped=0, **said) -> None:
        cell = {"pseudo_perplexity": 12.345, "standard_error": 0.5, "unigram_perplexity": 900.4, "bits_per_character": 3.1}
        cell |= {"standard_error_over_documents": 1.7} if text != "one" else {}
        cell |= {"characters": 800, "characters_in_no_token": dropped}
        cells = [{"script": script, "max_tokens": length, "text": part, **cell} for script, length, part in rows]
        said = {"split": "all", "max_length": 8192, "unit": "token", "unigram_input": unigram_input, "text": text} | said
        write("held_out", cell, cells=cells, **said)

    return write_perplexity


def test_pseudo_perplexity_by_script_and_length(write_perplexity, tmp_path):
    rows = [("hans", 128, "a"), ("hant", 128, "b"), ("hant", 8192, "c")]
    for model, notes, has in (
        ("mine", "", rows),
        ("mine", "random weights", rows),
        ("other", "", [*rows[:2], ("hant", 8192, "d")]),
    ):
        write_perplexity(has, model=model, notes=notes, unigram_input=["x"] if model == "mine" else [])
    lines = report_of(tmp_path).splitlines()
    mine, nothing = "12.35 ± 0.50 | 1.70 | 900 | 3.100", "– | – | – | –"
    assert f"| hant | 128 | {mine} | {mine} | {mine} |" in lines
    assert f"| hant | 8,192 | {mine} | {mine} | {nothing} |" in lines
    assert f"| hant | 8,192 | {nothing} | {nothing} | {mine} |" in lines  # by other tokens, of other documents
    assert f"| all |  | {mine} | {mine} | {mine} |" in lines
    (header,) = [line for line in lines if "Tokens up to" in line]
    assert "| mine: unigrams |" in header
    assert "| other: unigrams of the scored text itself |" in header


def test_pseudo_perplexities_of_two_texts(write_perplexity, tmp_path):
    """Of one name and length; each has a table."""
    write_perplexity([("hans", 128, "abc")], model="mine")
    write_perplexity([("hans", 128, "one")], text="one", model="other")
    found = report_of(tmp_path)
    assert found.count("| all |") == found.count(".png)") == 2
    assert "held_out, masked by token, cut to 8,192 tokens, text one" in found
    assert "| all |  | 12.35 ± 0.50 | – | 900 | 3.100 |" in found  # of one document


def test_characters_that_a_tokenizer_drops(write_perplexity, tmp_path):
    write_perplexity([("hans", 128, "abc")], model="mine")
    write_perplexity([("hans", 128, "abc")], model="other", dropped=20)
    mine = "12.35 ± 0.50 | 1.70 | 900 | 3.100"
    assert f"| all |  | {mine} | {mine}, 2.5% dropped |" in report_of(tmp_path)


def test_one_text_cut_in_two_ways(write_perplexity, tmp_path):
    """No row is of the same documents, so nothing is drawn."""
    write_perplexity([("hans", 128, "abc")], model="mine")
    write_perplexity([("hans", 512, "abc")], model="other")
    assert ".png" not in report_of(tmp_path)


def test_a_pseudo_perplexity_of_an_unknown_text(write, tmp_path):
    write("held_out", {"pseudo_perplexity": 12.3}, max_length=128, unit="token")
    with pytest.raises(InputError, match=r"0\.json: .*text, unigram_input"):
        report.main(settings(tmp_path))


def test_the_model_index(write, tmp_path):
    """Of one model, without substitutes, the mean of seeds; in the form that huggingface_hub takes."""
    for seed in (1, 2):
        write("afqmc", {"accuracy": 70.0 + seed}, seed=seed, max_length=128)
    write("afqmc_substitute", {"accuracy": 99.0})
    write("afqmc", {"accuracy": 98.0}, notes="only 100 of 4316 examples of dev")
    write("afqmc", {"accuracy": 1.0}, model="other")
    report.main(settings(tmp_path, model="mine"))
    (entry,) = json.loads((tmp_path / "report" / "model_index.json").read_text(encoding="utf-8"))["results"]
    assert entry["metrics"] == [{"type": "accuracy", "name": "accuracy, mean of 2 seeds", "value": 71.5}]
    assert entry["task"] == {"type": "text-classification"}
    assert (entry["dataset"]["type"], entry["dataset"]["config"], entry["dataset"]["split"]) == ("clue/clue", "afqmc", "dev")
    with pytest.raises(InputError, match=r"'none'.*mine, other"):
        report.main(settings(tmp_path, model="none"))


def test_a_result_without_its_score_is_none(write, tmp_path):
    write("afqmc", {"accuracy": 70.0})
    (tmp_path / "results" / "cut.json").write_text(
        (tmp_path / "results" / "0.json").read_text(encoding="utf-8").replace('"accuracy": 70.0', ""), encoding="utf-8"
    )
    (tmp_path / "results" / "list.json").write_text("[1]")
    found = report.main(settings(tmp_path))
    assert (found["results"], found["other_files"]) == (
        1,
        [str(tmp_path / "results" / name) for name in ("cut.json", "list.json")],
    )


def test_no_results(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        report.main(settings(tmp_path))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "throughput-cpu.json").write_text("{}")
    with pytest.raises(InputError, match="no result file"):
        report.main(settings(tmp_path))


def test_published_tasks_are_known():
    """But those whose files or rules are not stated."""
    unspecified = {"thucnews_unspecified", "ccf_sentiment", "simclue_similarity", "coreference", "cmrc2018", "drcd"}
    assert {task for published in PUBLISHED for task in published.scores} - unspecified <= TASKS.keys()
