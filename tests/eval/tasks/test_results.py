"""Result files."""

import json

import pytest

from zh_modernbert.eval.tasks.results import check_name, results_folder, write_result
from zh_modernbert.train.common.cli import InputError


def result_of(model: str, notes: str = "", **hyperparameters) -> dict:
    result = {"task": "chnsenticorp", "split": "dev", "seed": 42, "model": model, "metrics": {"accuracy": 90.5}}
    return {**result, "hyperparameters": hyperparameters, "notes": notes}


def test_results_are_named_by_task_split_and_seed(tmp_path):
    result = result_of("mine", notes="简体")
    path = write_result(tmp_path / "new" / "results", result)
    assert path == tmp_path / "new" / "results" / "chnsenticorp-dev-42.json"
    assert json.loads(path.read_text(encoding="utf-8")) == result
    assert "简体" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "other", [result_of("other"), result_of("mine", random_init=True), result_of("mine", "from random weights")]
)
def test_the_result_of_another_model_is_never_replaced(tmp_path, other):
    path = write_result(tmp_path, result_of("mine"))
    assert write_result(tmp_path, result_of("mine", learning_rate=1.0)) == path
    kept = path.read_bytes()
    with pytest.raises(
        InputError, match=r"chnsenticorp-dev-42.json: the result of mine, not of .*; give another --results_dir"
    ):
        write_result(tmp_path, other)
    assert path.read_bytes() == kept


def test_a_result_of_other_data_or_another_length_stays(tmp_path):
    path = write_result(tmp_path, result_of("mine", data="1a", max_length=512))
    write_result(tmp_path, result_of("mine", data="1a", max_length=512, learning_rate=1.0))
    kept = path.read_bytes()
    for said, name in (
        ({"data": "2b", "max_length": 512}, "data is 1a, not 2b"),
        ({"max_length": 64}, "max_length is 512, not 64"),
    ):
        with pytest.raises(
            InputError, match=rf"dev-42\.json: a result whose {name}; give another --results_dir, or for files of"
        ):
            write_result(tmp_path, result_of("mine", **said))
    assert path.read_bytes() == kept


def test_a_folder_that_takes_no_results(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file: no folder for results can be made there: .*; give another --results_dir"):
        results_folder(tmp_path / "file")


@pytest.mark.parametrize("name", ["a/b", "a\\b"])
def test_a_name_is_part_of_a_files_name(name):
    with pytest.raises(InputError, match="must be a part of a file's name"):
        check_name(name)
