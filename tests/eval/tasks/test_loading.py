"""What a task is trained, chosen and scored on."""

import dataclasses
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from zh_modernbert.eval.tasks.loading import drop_spaces, load_data, sample
from zh_modernbert.eval.tasks.registry import Hub, Release, Task
from zh_modernbert.train.common.cli import InputError

COLUMNS = {"text": "text", "label": "label"}
OFFICIAL = Release({"train": ("train.tsv",), "dev": ("dev.tsv",), "test": ("test.tsv",)}, columns=COLUMNS)
STAND_IN = Release({"train": ("dev.tsv",), "test": ("test.tsv",)}, columns=COLUMNS, substitute="training on dev")
TASK = Task(
    "classification", (OFFICIAL, STAND_IN), folder="task", labels={"0": "no", "1": "yes"}, predictions={"test": "x.json"}
)


def write(folder: Path, name: str, *texts: str, labels: bool = True) -> None:
    """Texts that begin with their label."""
    folder.mkdir(exist_ok=True)
    lines = [f"{text}\t{text[0]}" if labels else text for text in texts]
    (folder / name).write_text("\n".join(["text\tlabel" if labels else "text", *lines]) + "\n", encoding="utf-8")


def texts(data, split: str) -> list[str]:
    return [row.values["text"] for row in data.splits[split]]


def test_the_official_release(tmp_path):
    for name in ("train", "dev", "test"):
        write(tmp_path / "task", f"{name}.tsv", f"0{name}", f"1{name}")
    data = load_data("task", TASK, str(tmp_path))
    assert (data.name, data.split, data.chosen_on, data.notes) == ("task", "dev", "dev", [])
    assert {*data.splits} == {"train", "dev"}
    data = load_data("task", TASK, str(tmp_path / "task"), split="test", predicted=True)  # the task's folder itself
    assert (data.split, data.chosen_on, {*data.splits}) == ("test", "dev", {"train", "dev", "test"})
    assert data.labels == ["no", "yes"]


def test_a_stand_in_is_called_so_and_shares_nothing_with_what_is_scored(tmp_path):
    write(tmp_path / "task", "dev.tsv", "0both", *(f"{i % 2}dev{i}" for i in range(40)))
    write(tmp_path / "task", "test.tsv", "0test", "0both")
    data = load_data("task", TASK, str(tmp_path))
    assert (data.name, data.split, data.chosen_on) == ("task_substitute", "test", "held_out")
    assert data.notes[:2] == [
        "not the benchmark's score: training on dev",
        "1 training examples left out, for what is scored has 13 characters in a row of them",
    ]
    assert len(data.splits["held_out"]) == 4
    assert len({*texts(data, "train"), *texts(data, "held_out")}) == 40
    assert not {*texts(data, "train")} & {*texts(data, "held_out"), "0both"}


def test_a_stand_in_shares_nothing_in_another_form(tmp_path):
    """Cut elsewhere, with other widths, script, spaces and punctuation; what only shares a phrase stays."""
    scored = "0圖書館在２０２６年開放了新的閱覽室，讀者可以預約座位。"
    copies = [
        "1图书馆在2026年开放了新的阅览室",
        "0新的閱覽室 讀者可以預約座位",
        "1昨天报道：0图书馆在2026年开放了新的阅览室读者可以",
    ]
    others = [f"{i % 2}第{i}天，读者可以预约座位" for i in range(20)]
    write(tmp_path / "task", "dev.tsv", *copies, "0短句 ok", *others)
    write(tmp_path / "task", "test.tsv", scored, "0短句，OK！")
    data = load_data("task", TASK, str(tmp_path))
    assert sorted([*texts(data, "train"), *texts(data, "held_out")]) == sorted(others)
    assert "4 training examples left out" in data.notes[1]


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("dev3", "task has no split 'dev3'; it has dev, test"),
        ("dev", "task needs train.tsv, plain or compressed"),
        ("test", "task: test has no labels (label); score dev, and --predictions true writes"),
    ],
)
def test_what_cannot_be_scored(tmp_path, split, said):
    write(tmp_path / "task", "dev.tsv", "0a", "1b")
    write(tmp_path / "task", "test.tsv", "0a", labels=False)
    with pytest.raises(InputError) as error:
        load_data("task", TASK, str(tmp_path), split=split)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_labels_that_training_has_not(tmp_path):
    free = dataclasses.replace(TASK, labels={})
    write(tmp_path / "task", "train.tsv", "0a", "1b")
    write(tmp_path / "task", "dev.tsv", "0a", "2b", "1c")
    with pytest.raises(InputError, match=r"dev.tsv, line 3: label '2' does not occur in training"):
        load_data("task", free, str(tmp_path))
    data = load_data("task", free, str(tmp_path), skip_bad_rows=True)
    assert texts(data, "dev") == ["0a", "1c"]
    assert "bad rows left out: 1" in data.notes[0]


def test_a_split_is_whole_without_known_defects_alone(tmp_path):
    known = dataclasses.replace(TASK, releases=(dataclasses.replace(OFFICIAL, known_defects={"unknown label": 2}),))
    write(tmp_path / "task", "train.tsv", "0a", "1b", "7c")
    write(tmp_path / "task", "dev.tsv", "0a", "1b", "7c")
    write(tmp_path / "task", "test.tsv", "0a", "1b")
    data = load_data("task", known, str(tmp_path), predicted=True, skip_bad_rows=True, max_eval_examples=2)
    assert data.official
    assert [note.partition(" (")[0] for note in data.notes] == ["bad rows left out: 2"]
    data = load_data("task", TASK, str(tmp_path), predicted=True, skip_bad_rows=True)
    assert not data.official
    assert data.notes[1:] == ["only 2 of 3 examples of dev", "only 2 of 3 examples of train"]
    for name, lost in (("train", "train"), ("dev", "dev"), ("test", "test")):
        for part in ("train", "dev", "test"):
            write(tmp_path / "task", f"{part}.tsv", "0a", "1b", *(["7c"] if part == name else []))
        data = load_data("task", TASK, str(tmp_path), predicted=True, skip_bad_rows=True)
        assert (data.official, data.notes[1:]) == (False, [f"only 2 of 3 examples of {lost}"])


def test_a_split_of_which_too_little_is_left(tmp_path):
    write(tmp_path / "task", "train.tsv", "0a", "1b")
    write(tmp_path / "task", "dev.tsv", "0a", "7b")
    with pytest.raises(InputError, match="1 examples of dev are left, and 2 or more are needed; bad rows left out: 1"):
        load_data("task", TASK, str(tmp_path), skip_bad_rows=True)  # one half of dev chooses what the other scores
    write(tmp_path / "task", "dev.tsv", "7a", "7b")
    with pytest.raises(InputError, match="0 examples of dev are left"):
        load_data("task", TASK, str(tmp_path), skip_bad_rows=True)
    write(tmp_path / "task", "train.tsv", "7a", "7b")
    with pytest.raises(InputError, match=r"train\.tsv, line 2: unknown label '7'"):
        load_data("task", TASK, str(tmp_path))


def test_parts_are_drawn_the_same_way_and_keep_their_order():
    rows = list(range(100))
    part = sample(rows, 10)
    assert part == sample(rows, 10) == sorted(part) != rows[:10]
    assert sample(rows, 0) == sample(rows, 200) == rows


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("我 爱 北京 。", "我爱北京。"),
        ("用 Python 3 写 very well 的", "用Python 3写very well的"),
        (" hello  world ", "hello world"),
        ("", ""),
    ],
)
def test_spaces_between_chinese_words(text, expected):
    assert drop_spaces(text) == expected


# --- the Hub ---


def test_nothing_is_downloaded_unasked(tmp_path, monkeypatch):
    monkeypatch.setattr("zh_modernbert.eval.tasks.hub.load_dataset", lambda *_, **__: pytest.fail("the Hub was asked"))
    with pytest.raises(InputError, match="give the folder as --data_dir"):
        load_data("task", dataclasses.replace(TASK, hub=Hub("some/where")), str(tmp_path))
    with pytest.raises(InputError, match="no home on the Hub is known"):
        load_data("task", TASK, "", from_hub=True)


def test_classes_of_the_hub_have_their_names(monkeypatch):
    """Whatever their numbers are there; what is unlabelled has -1."""
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["1", "0"]), "idx": Value("int32")})
    asked = []

    def load_dataset(repository, config, split):
        asked.append((repository, config, split))
        labels = [-1, -1] if split == "test" else [0, 1]
        return Dataset.from_dict({"sentence": ["甲", "乙"], "label": labels, "idx": [0, 1]}, features=features)

    monkeypatch.setattr("zh_modernbert.eval.tasks.hub.load_dataset", load_dataset)
    task = dataclasses.replace(TASK, hub=Hub("clue/clue", "tnews", columns={"text": "sentence", "label": "label"}))
    data = load_data("task", task, "", from_hub=True, predicted=True)
    assert sorted(asked) == [("clue/clue", "tnews", split) for split in ("test", "train", "validation")]
    assert [row.values for row in data.splits["dev"]] == [{"text": "甲", "label": "1"}, {"text": "乙", "label": "0"}]
    assert [row.values for row in data.splits["test"]] == [{"text": "甲"}, {"text": "乙"}]
    with pytest.raises(InputError, match=r"clue/clue \(tnews\): no split 'test10'"):
        load_data("task", task, "", split="test10", from_hub=True)
