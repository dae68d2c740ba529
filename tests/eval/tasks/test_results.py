"""Result files."""

import json

import pytest

from zh_modernbert.eval.tasks.results import check_name, results_folder, write_result
from zh_modernbert.train.common.cli import InputError


def test_results_are_named_by_task_split_and_seed(tmp_path):
    result = {"task": "chnsenticorp", "split": "dev", "seed": 42, "metrics": {"accuracy": 90.5}, "notes": "简体"}
    path = write_result(tmp_path / "new" / "results", result)
    assert path == tmp_path / "new" / "results" / "chnsenticorp-dev-42.json"
    assert json.loads(path.read_text(encoding="utf-8")) == result
    assert "简体" in path.read_text(encoding="utf-8")


def test_a_folder_that_takes_no_results(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file: no folder for results can be made there: .*; give another --results_dir"):
        results_folder(tmp_path / "file")


@pytest.mark.parametrize("name", ["a/b", "a\\b"])
def test_a_name_is_part_of_a_files_name(name):
    with pytest.raises(InputError, match="must be a part of a file's name"):
        check_name(name)
