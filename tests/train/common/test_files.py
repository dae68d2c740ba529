"""JSON, and folders that have to be there."""

import pytest

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.files import read_json, require_folder, write_json


def test_json_round_trip_and_errors(tmp_path):
    write_json(tmp_path / "a.json", {"名": [1, None]})
    assert read_json(tmp_path / "a.json") == {"名": [1, None]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(InputError, match=r"b\.json"):
        read_json(tmp_path / "b.json")
    with pytest.raises(InputError, match="nothing"):
        read_json(tmp_path / "nothing.json")


def test_require_folder(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        require_folder(tmp_path / "nothing", "x")
    with pytest.raises(InputError, match=r"marker\.json"):
        require_folder(tmp_path, "marker.json")
    (tmp_path / "marker.json").touch()
    assert require_folder(tmp_path, "marker.json") == tmp_path
