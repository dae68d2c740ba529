"""Fine-tuning on a table: it learns what can be learned, and says what it did."""

import dataclasses
import json
import random
from pathlib import Path

import pytest

from zh_modernbert.eval import clue
from zh_modernbert.train.common.cli import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

FIELDS = {
    "task",
    "split",
    "model",
    "primary_metric",
    "metrics",
    "num_examples",
    "seed",
    "hyperparameters",
    "notes",
    "runtime_seconds",
}


@pytest.fixture(scope="module")
def model(publish_random) -> str:
    return str(publish_random("clue"))


def write_table(path: Path, count: int, seed: int, separator: str = "\t") -> Path:
    """Reviews that are good or bad by one character; three in five are good."""
    generator, lines = random.Random(seed), [separator.join(("label", "text"))]
    for index in range(count):
        good = index % 5 < 3
        before, after = ("".join(generator.choices("这那本部书店人们说了", k=generator.randint(1, 4))) for _ in range(2))
        lines.append(separator.join(("pos" if good else "neg", before + ("好" if good else "坏") + after)))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def settings(model, tmp_path) -> clue.Settings:
    return clue.Settings(
        model=model,
        trust_remote_code=True,
        train_file=str(write_table(tmp_path / "reviews.tsv", 240, seed=0)),
        validation_file=str(write_table(tmp_path / "dev.tsv", 60, seed=1)),
        max_length=32,
        learning_rate=3e-3,
        num_train_epochs=5,
        batch_size=16,
        results_dir=str(tmp_path / "results"),
    )


@pytest.mark.parametrize("random_init", [False, True])
def test_it_learns_what_is_plain_to_see(settings, random_init):
    settings.random_init = random_init
    result = clue.main(settings)
    assert result["metrics"]["accuracy"] > 90
    assert result["metrics"]["macro_f1"] > 90
    assert result["metrics"]["majority_class"] == 60.0
    assert ("random" in result["notes"]) == random_init


def test_the_result_file(settings, tmp_path):
    settings.num_train_epochs, settings.max_train_examples, settings.seed = 1, 20, 7
    settings.output_dir = str(tmp_path / "fine-tuned")
    result = clue.main(settings)
    assert json.loads((tmp_path / "results" / "reviews-validation-7.json").read_text(encoding="utf-8")) == result
    assert result.keys() == FIELDS
    assert (result["task"], result["split"], result["seed"], result["model"]) == ("reviews", "validation", 7, settings.model)
    assert result["num_examples"] == 60
    assert result["primary_metric"] in result["metrics"]
    assert all(0 <= value <= 100 for value in result["metrics"].values())
    expected = {"max_length": 32, "num_train_examples": 20, "learning_rate": 3e-3, "num_train_epochs": 1}
    assert expected.items() <= result["hyperparameters"].items()
    config = json.loads((tmp_path / "fine-tuned" / "config.json").read_text())
    assert config["id2label"] == {"0": "neg", "1": "pos"}


def write_chnsenticorp(folder: Path) -> None:
    """Its names: train.tsv, dev.tsv and test.tsv, with label and text_a, and labels 0 and 1."""
    folder.mkdir(exist_ok=True)
    for name, seed in (("train.tsv", 0), ("dev.tsv", 1), ("test.tsv", 2)):
        text = write_table(folder / name, 20, seed).read_text(encoding="utf-8")
        for old, new in (("label\ttext", "label\ttext_a"), ("pos\t", "1\t"), ("neg\t", "0\t")):
            text = text.replace(old, new)
        (folder / name).write_text(text, encoding="utf-8")


def test_a_task_has_its_files_columns_and_settings(settings, tmp_path):
    write_chnsenticorp(tmp_path / "chnsenticorp")
    task = clue.Settings(
        model=settings.model,
        trust_remote_code=True,
        task=["chnsenticorp"],
        data_dir=str(tmp_path),
        split="test",
        max_length=32,
        results_dir=settings.results_dir,
    )
    result = clue.main(task)
    assert (result["task"], result["split"], result["num_examples"]) == ("chnsenticorp", "test", 20)
    expected = {"learning_rate": 2e-5, "num_train_epochs": 3, "batch_size": 32, "weight_decay": 0.01}
    assert expected.items() <= result["hyperparameters"].items()
    assert (Path(settings.results_dir) / "chnsenticorp-test-42.json").is_file()


def test_the_same_seed_gives_the_same_scores(settings):
    """Of a model in the middle of learning, where any difference shows."""
    settings.num_train_epochs, settings.max_train_examples = 1, 100
    assert clue.main(settings)["metrics"] == clue.main(settings)["metrics"]


def test_a_second_text_is_read(settings, tmp_path):
    """The label is in the second text alone."""
    for path in (settings.train_file, settings.validation_file):
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        paired = ["label\tquestion\tanswer", *(line.replace("\t", "\t这本书怎么样？\t") for line in lines[1:])]
        Path(path).write_text("\n".join(paired) + "\n", encoding="utf-8")
    settings.text_column, settings.text_pair_column = "question", "answer"
    assert clue.main(settings)["metrics"]["accuracy"] > 90


def refused(settings: clue.Settings) -> str:
    with pytest.raises(InputError) as error:
        clue.main(dataclasses.replace(settings))  # a new one, so that its bounds are checked
    assert "\n" not in str(error.value)
    assert not Path(settings.results_dir).exists()
    return str(error.value)


def test_a_label_that_training_has_not(settings):
    with open(settings.validation_file, "a", encoding="utf-8") as file:
        file.write("neutral\t一般\n")
    error = refused(settings)
    assert f"{settings.validation_file}, line 62" in error
    assert "'neutral'" in error


def test_one_label_only(settings):
    path = Path(settings.train_file)
    path.write_text(path.read_text(encoding="utf-8").replace("neg\t", "pos\t"), encoding="utf-8")
    assert "only the label 'pos'" in refused(settings)


def change(settings: clue.Settings, **changes) -> clue.Settings:
    for name, value in changes.items():
        setattr(settings, name, value)
    return settings


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"task": ["chnsenticorp"]}, "either"),
        ({"train_file": "", "validation_file": ""}, "either"),
        ({"validation_file": ""}, "together"),
        ({"train_file": "", "validation_file": "", "task": ["chnsenticorb"]}, "chnsenticorb"),
        ({"train_file": "", "validation_file": "", "task": ["chnsenticorp"], "split": "train2"}, "train2"),
        ({"train_file": "", "validation_file": "", "task": ["chnsenticorp"], "data_dir": "nowhere"}, "nowhere"),
        ({"train_file": "nowhere.tsv"}, "nowhere.tsv"),
        ({"text_column": "review"}, "review"),
        ({"label_column": "stars"}, "stars"),
        ({"text_pair_column": "question"}, "question"),
        ({"max_length": 129}, "max_position_embeddings (128)"),
        ({"model": "nowhere/at-all"}, "nowhere/at-all"),
        ({"batch_size": -1}, "batch_size"),
        ({"max_length": -1}, "max_length"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be(settings, changes, named):
    assert named in refused(change(settings, **changes))


def test_remote_code_is_not_run_unasked(settings):
    settings.trust_remote_code = False
    assert settings.model in refused(settings)
