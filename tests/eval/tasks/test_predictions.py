"""Files of predictions as CLUE's site takes them."""

import json
import zipfile

from zh_modernbert.eval.tasks.predictions import write_predictions, zip_predictions


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


def test_without_official_files_there_is_no_zip(tmp_path):
    write_predictions(tmp_path / "predictions-1" / "drcd_dev_answers.json", {"1": "臺灣"})
    zip_predictions(tmp_path / "predictions-1")
    assert not (tmp_path / "predictions-1.zip").exists()
