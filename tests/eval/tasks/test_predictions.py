"""Files of predictions as CLUE's site takes them."""

import json
import zipfile
from pathlib import Path

import pytest

from zh_modernbert.eval.tasks.predictions import check_owner, claim, write_predictions, zip_predictions
from zh_modernbert.train.common.cli import InputError


def test_lines_one_object_and_one_zip(tmp_path):
    folder = tmp_path / "predictions-1"
    lines = write_predictions(folder / "afqmc_predict.json", [{"id": 0, "label": "0"}, {"id": 1, "label": "1"}])
    write_predictions(folder / "chid11_predict.json", {"#idiom623377#": 3})
    assert [json.loads(line) for line in lines.read_text().splitlines()] == [{"id": 0, "label": "0"}, {"id": 1, "label": "1"}]
    write_predictions(folder / "cmrc2018_dev_answers.json", {"DEV_0": "no official file"})
    zip_predictions(folder)
    with zipfile.ZipFile(tmp_path / "predictions-1.zip") as archive:
        assert archive.namelist() == ["afqmc_predict.json", "chid11_predict.json"]
        assert json.loads(archive.read("chid11_predict.json")) == {"#idiom623377#": 3}


def test_a_zip_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    folder = tmp_path / "predictions-1"
    write_predictions(folder / "afqmc_predict.json", [{"id": 0, "label": "0"}])
    zip_predictions(folder)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(zipfile.ZipFile, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        zip_predictions(folder)
    with zipfile.ZipFile(tmp_path / "predictions-1.zip") as archive:
        assert archive.namelist() == ["afqmc_predict.json"]


def test_processes_of_one_folder(tmp_path, monkeypatch):
    """Others write in the middle of each step of one, and nothing is lost."""
    folder, others, busy = tmp_path / "predictions-1", iter(["a", "b", "c", "d"]), []

    def work(name: str) -> None:
        claim(folder, "model")
        write_predictions(folder / f"{name}_predict.json", [{"id": 0, "label": name}])
        zip_predictions(folder)

    def with_others(step):
        def do(*arguments, **options):
            step(*arguments, **options)
            if not busy and (name := next(others, None)):
                busy.append(name)
                work(name)
                busy.clear()

        return do

    monkeypatch.setattr(Path, "write_text", with_others(Path.write_text))
    monkeypatch.setattr(zipfile.ZipFile, "write", with_others(zipfile.ZipFile.write))
    work("mine")
    assert (folder / "model.txt").read_text() == "model"
    with zipfile.ZipFile(tmp_path / "predictions-1.zip") as archive:
        found = {name: json.loads(archive.read(name))["label"] for name in archive.namelist()}
    assert found == {f"{name}_predict.json": name for name in ("a", "b", "c", "d", "mine")}
    assert {path.name for path in folder.iterdir()} == {"model.txt", *found}


def test_without_official_files_there_is_no_zip(tmp_path):
    write_predictions(tmp_path / "predictions-1" / "drcd_dev_answers.json", {"1": "臺灣"})
    zip_predictions(tmp_path / "predictions-1")
    assert not (tmp_path / "predictions-1.zip").exists()


def test_a_folder_is_one_models(tmp_path):
    folder = tmp_path / "predictions-1"
    check_owner(folder, "a")
    claim(folder, "a")
    claim(folder, "a")
    with pytest.raises(InputError, match="predictions-1: predictions of a, not of b"):
        claim(folder, "b")
    write_predictions(tmp_path / "predictions-2" / "afqmc_predict.json", [])
    with pytest.raises(InputError, match="predictions of a model that no file names"):
        check_owner(tmp_path / "predictions-2", "a")
