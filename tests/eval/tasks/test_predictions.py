"""Files of predictions as CLUE's site takes them."""

import json
import zipfile

from zh_modernbert.eval.tasks.predictions import write_predictions, zip_predictions


def test_lines_one_object_and_one_zip(tmp_path):
    folder = tmp_path / "predictions-1"
    lines = write_predictions(folder / "afqmc_predict.json", [{"id": 0, "label": "0"}, {"id": 1, "label": "1"}])
    write_predictions(folder / "chid11_predict.json", {"#idiom623377#": 3})
    assert [json.loads(line) for line in lines.read_text().splitlines()] == [{"id": 0, "label": "0"}, {"id": 1, "label": "1"}]
    with zipfile.ZipFile(zip_predictions(folder)) as archive:
        assert archive.namelist() == ["afqmc_predict.json", "chid11_predict.json"]
        assert json.loads(archive.read("chid11_predict.json")) == {"#idiom623377#": 3}
