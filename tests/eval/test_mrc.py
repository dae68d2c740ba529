"""Reading comprehension from files to scores: it learns what can be learned, from windows too, and says what it did."""

import dataclasses
import json
import random
from pathlib import Path

import pytest

from zh_modernbert.eval import mrc
from zh_modernbert.train.common.cli import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

FILLER = "这那本部书店人们说了"


@pytest.fixture(scope="module")
def model(publish_random) -> str:
    return str(publish_random("mrc"))


def write_questions(path: Path, count: int, seed: int, longest: int = 12, answers: bool = True) -> Path:
    """Passages that name one place, which is asked for."""
    generator, paragraphs = random.Random(seed), []
    for index in range(count):
        before, after = ("".join(generator.choices(FILLER, k=generator.randint(2, longest))) for _ in range(2))
        place = generator.choice(["北京", "台湾"])
        question = {"id": f"{path.stem}-{index}", "question": "在哪里？", "answers": []}
        if answers:
            question["answers"] = [{"text": place, "answer_start": len(before)}] * 2
        paragraphs.append({"context": before + place + after, "qas": [question]})
    path.write_text(json.dumps({"data": [{"title": "", "paragraphs": paragraphs}]}, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture
def settings(model, tmp_path) -> mrc.Settings:
    return mrc.Settings(
        model=model,
        trust_remote_code=True,
        train_file=str(write_questions(tmp_path / "places.json", 160, seed=0)),
        validation_file=str(write_questions(tmp_path / "dev.json", 40, seed=1)),
        max_length=64,
        stride=8,
        learning_rate=3e-3,
        num_train_epochs=4,
        batch_size=16,
        max_answer_characters=6,
        results_dir=str(tmp_path / "results"),
    )


def change(settings: mrc.Settings, **changes) -> mrc.Settings:
    return dataclasses.replace(settings, **changes)


def test_it_learns_what_is_plain_to_see(settings):
    result = mrc.main(settings)
    assert (result["task"], result["split"], result["num_examples"]) == ("places", "validation", 40)
    assert result["metrics"]["em"] > 80
    assert result["metrics"]["f1"] >= result["metrics"]["em"]
    assert result["metrics"]["overlap_f1"] < 60
    assert result["hyperparameters"]["scorer"] == "cmrc2018"


def test_it_learns_from_windows(settings, tmp_path):
    write_questions(tmp_path / "places.json", 80, seed=0, longest=24)
    write_questions(tmp_path / "dev.json", 20, seed=1, longest=24)
    result = mrc.main(change(settings, max_length=24, scorer="drcd", name="squares"))
    assert result["metrics"]["em"] > 80
    assert result["task"] == "squares_by_drcd"
    assert result["metrics"]["answers_in_no_window"] == 0


def write_cmrc2018(folder: Path) -> None:
    for split, count in (("train", 20), ("dev", 8), ("test", 4)):
        write_questions(folder / f"cmrc2018_{split}.json", count, seed=count, answers=split != "test")


def test_a_task_in_the_other_script_and_its_predictions(settings, tmp_path):
    (tmp_path / "cmrc2018").mkdir()
    write_cmrc2018(tmp_path / "cmrc2018")
    task = change(
        settings,
        train_file="",
        validation_file="",
        task=["cmrc2018"],
        data_dir=str(tmp_path),
        script="hant",
        predictions=True,
        num_train_epochs=1,
    )
    result = mrc.main(task)
    assert (result["task"], result["split"]) == ("cmrc2018_hant", "dev")
    assert "hant" in result["notes"]
    folder = Path(settings.results_dir) / "predictions-42" / "cmrc2018_hant"
    official = json.loads((folder / "cmrc2018_predict.json").read_text(encoding="utf-8"))
    assert official.keys() == {f"cmrc2018_test-{index}" for index in range(4)}
    assert all(isinstance(text, str) and text for text in official.values())
    assert not (Path(settings.results_dir) / "predictions-42.zip").exists()  # CLUE's site scores its own script
    # What is scored from its file is what was scored.
    answers = str(folder / "cmrc2018_dev_answers.json")
    scored = mrc.main(change(task, model="", script="", predictions=False, predictions_file=answers, scorer="drcd"))
    assert (scored["task"], scored["model"]) == ("cmrc2018_by_drcd", answers)
    best = json.loads((folder / "cmrc2018_dev_answers.json").read_text(encoding="utf-8"))
    assert all("台" not in text or "湾" not in text for text in best.values())  # it is 台灣 or 臺灣 now


def test_answers_that_are_there_already(settings, tmp_path):
    questions = json.loads(Path(settings.validation_file).read_text(encoding="utf-8"))["data"][0]["paragraphs"]
    answers = {row["qas"][0]["id"]: row["qas"][0]["answers"][0]["text"] for row in questions}
    answers["dev-0"] = "黄河"
    del answers["dev-1"]
    file = tmp_path / "answers.json"
    file.write_text(json.dumps(answers), encoding="utf-8")
    result = mrc.main(change(settings, model="", train_file="", predictions_file=str(file)))
    assert result["metrics"]["em"] == 95
    assert "without an answer, which counts as wrong: 1 (dev-1)" in result["notes"]


def test_training_leaves_out_what_has_no_answer_in_the_passage(settings):
    path = Path(settings.train_file)
    value = json.loads(path.read_text(encoding="utf-8"))
    value["data"][0]["paragraphs"][3]["qas"][0]["answers"] = [{"text": "黄河", "answer_start": 3}]
    value["data"][0]["paragraphs"][4]["qas"][0]["answers"][0]["answer_start"] += 1
    path.write_text(json.dumps(value), encoding="utf-8")
    assert "nowhere in the passage (places-3)" in refused(settings)
    result = mrc.main(change(settings, skip_bad_rows=True, num_train_epochs=1))
    assert result["hyperparameters"]["num_train_examples"] == 159
    assert "no answer is in the passage: 1 (places-3)" in result["notes"]
    assert "not at its answer_start (places-4)" in result["notes"]


def refused(settings: mrc.Settings) -> str:
    with pytest.raises(InputError) as error:
        mrc.main(settings)
    assert "\n" not in str(error.value)
    assert not Path(settings.results_dir).exists()
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"task": ["drcd"]}, "either"),
        ({"train_file": "", "validation_file": ""}, "either"),
        ({"train_file": ""}, "together"),
        ({"train_file": "", "validation_file": "", "task": ["drcd"], "name": "mine"}, "leave out --name"),
        ({"model": ""}, "either model"),
        ({"predictions_file": "a.json"}, "either model"),
        ({"model": "", "predictions_file": "a.json", "script": "hans"}, "script means nothing"),
        ({"train_file": "nowhere.json"}, "nowhere.json"),
        ({"stride": 40}, "stride"),
        ({"max_length": 129}, "max_position_embeddings (128)"),
        ({"train_file": "", "validation_file": "", "task": ["drcd"], "data_dir": "nowhere"}, "DRCD_training.json"),
    ],
    ids=str,
)
def test_settings_that_cannot_be(settings, changes, named):
    assert named in refused(change(settings, **changes))
