"""JSON, and folders that have to be there."""

import pytest

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.files import files_below, read_json, require_folder, write_json


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


def test_halves_of_characters_in_json(tmp_path):
    """Python has them in names of files that are not UTF-8."""
    write_json(tmp_path / "a.json", {"path": "caf\udce9"})
    assert read_json(tmp_path / "a.json") == {"path": "caf\udce9"}


def test_files_below_links(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1").touch()
    (tmp_path / "a" / "b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "a").symlink_to(tmp_path / "a")
    assert files_below(tmp_path / "a") == [tmp_path / "a" / "b" / "1"]
    assert len(files_below(tmp_path)) == 1
    (tmp_path / "a" / "2").symlink_to("nowhere")
    with pytest.raises(InputError, match="a/2: a link to what is not there: nowhere"):
        files_below(tmp_path)
