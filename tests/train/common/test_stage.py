"""A stage's folder is whole or not there, made once for the same settings and input, and from where a killed run broke off."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from zh_modernbert.train.common.cli import BaseSettings, InputError, setting
from zh_modernbert.train.common.manifest import read_manifest
from zh_modernbert.train.common.stage import run_stage


@dataclass
class Settings(BaseSettings):
    output_dir: str
    input_dir: str = ""
    name: str = "名"
    workers: int = setting(1, running=True)


def writing(text: str, calls: list | None = None):
    """A `build` that writes one file, and notes that it was called."""

    def build(folder: Path) -> dict:
        if calls is not None:
            calls.append(folder)
        (folder / "deep").mkdir(exist_ok=True)
        (folder / "deep" / "data").write_text(text)
        return {"length": len(text)}

    return build


def failing(error: BaseException):
    def build(folder: Path) -> dict:
        (folder / "data").write_text("half")
        raise error

    return build


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_output_is_written_whole_with_its_settings(tmp_path):
    path = tmp_path / "deep" / "out"

    def build(folder):
        assert not path.exists()
        return writing("一二三")(folder)

    assert run_stage(Settings(str(path)), build) == {"length": 3, "output_dir": str(path)}
    assert json.loads((path / "settings.json").read_text()) == {
        "stage": "test_stage",
        "output_dir": str(path),
        "input_dir": "",
        "name": "名",
        "workers": 1,
    }
    manifest = read_manifest(path, "test_stage")
    assert manifest["result"] == {"length": 3}
    assert manifest["files"].keys() == {"deep/data"}
    assert manifest["files"]["deep/data"]["bytes"] == 9
    assert names(path) == ["deep", "manifest.json", "settings.json"]
    assert names(path.parent) == ["out"], "something else lies beside the output"


def test_the_same_again_does_nothing(tmp_path):
    calls = []
    first = run_stage(Settings(str(tmp_path / "out")), writing("一", calls))
    assert run_stage(Settings(str(tmp_path / "out"), workers=2), writing("二", calls)) == first
    assert len(calls) == 1


def test_other_settings_or_input_never_give_the_old_result(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.txt").write_text("1")
    out, calls = str(tmp_path / "out"), []
    run_stage(Settings(out, str(source)), writing("1", calls))
    run_stage(Settings(out, str(source), name="other"), writing("2", calls))
    assert (tmp_path / "out" / "deep" / "data").read_text() == "2"
    (source / "a.txt").write_text("1 and more")
    run_stage(Settings(out, str(source), name="other"), writing("3", calls))
    (source / "b.txt").write_text("")
    run_stage(Settings(out, str(source), name="other"), writing("4", calls))
    os.utime(source / "b.txt", (0, 0))
    run_stage(Settings(out, str(source), name="other"), writing("5", calls))
    assert len(calls) == 5
    assert (tmp_path / "out" / "deep" / "data").read_text() == "5"
    assert names(tmp_path) == ["in", "out"]


def test_a_stage_knows_its_input_by_content(tmp_path):
    """What an earlier stage wrote again, with the same bytes, is no other input."""
    calls = []
    for _ in range(2):
        run_stage(Settings(str(tmp_path / "first"), name=str(len(calls))), writing("same"))
        run_stage(Settings(str(tmp_path / "second"), str(tmp_path / "first")), writing("x", calls))
    assert len(calls) == 1


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt(), OSError(28, "disk full")])
@pytest.mark.parametrize("old", [False, True])
def test_a_broken_run_goes_on_where_it_was(tmp_path, error, old):
    out = tmp_path / "out"
    if old:
        run_stage(Settings(str(out), name="old"), writing("old"))
    expected = InputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected, match="disk full" if isinstance(error, OSError) else None):
        run_stage(Settings(str(out)), failing(error))
    assert out.exists() == old
    if old:
        assert (out / "deep" / "data").read_text() == "old"

    def resumed(folder):
        assert (folder / "data").read_text() == "half"
        return {}

    run_stage(Settings(str(out)), resumed)
    assert names(out) == ["data", "manifest.json", "settings.json"]
    assert names(tmp_path) == ["out"]


def test_a_broken_run_of_other_settings_is_cleared_away(tmp_path):
    with pytest.raises(RuntimeError):
        run_stage(Settings(str(tmp_path / "out")), failing(RuntimeError()))

    def build(folder):
        assert names(folder) == [".lock"]
        return {}

    run_stage(Settings(str(tmp_path / "out"), name="other"), build)
    assert names(tmp_path) == ["out"]


def test_what_belongs_to_another_output_stays(tmp_path):
    """The hidden folders of outputs whose names begin with this one's, and what is none of them."""
    with pytest.raises(RuntimeError):
        run_stage(Settings(str(tmp_path / "out.v2")), failing(RuntimeError()))
    for name in (".out.v2.tmp", ".out.tmp", ".out.notes.tmp"):
        (tmp_path / name).mkdir()
    there = names(tmp_path)
    run_stage(Settings(str(tmp_path / "out")), writing("一"))
    assert names(tmp_path) == [*there, "out"]


def test_killed_between_the_last_file_and_the_renaming(tmp_path, monkeypatch):
    """All is there but the name: nothing is built twice."""
    replace = Path.replace

    def killed(path, target):
        if path.is_dir():
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run_stage(Settings(str(tmp_path / "out")), writing("一"))
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    assert run_stage(Settings(str(tmp_path / "out")), failing(RuntimeError("built twice")))["length"] == 1


def test_damaged_output_is_built_again(tmp_path):
    calls = []
    for _ in range(2):
        run_stage(Settings(str(tmp_path / "out")), writing("一二三", calls))
        (tmp_path / "out" / "deep" / "data").write_text("一")
    assert len(calls) == 2


def test_nothing_written_nothing_left(tmp_path):
    def build(folder):
        raise InputError("bad")

    with pytest.raises(InputError, match="bad"):
        run_stage(Settings(str(tmp_path / "out")), build)
    assert names(tmp_path) == []


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_two_runs_at_once(tmp_path):
    settings = Settings(str(tmp_path / "out"))

    def build(folder):
        child = os.fork()
        if child == 0:
            try:
                run_stage(settings, writing("second"))
            except InputError as error:
                os._exit(3 if "another run is writing it" in str(error) else 4)
            finally:
                os._exit(5)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        return writing("first")(folder)

    run_stage(settings, build)
    assert (tmp_path / "out" / "deep" / "data").read_text() == "first"


def test_empty_folder_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    run_stage(Settings(str(tmp_path / "out")), writing("一"))
    assert (tmp_path / "out" / "settings.json").is_file()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_foreign_output_is_refused(tmp_path, kind):
    path = tmp_path / "out"
    mine = path if kind == "file" else path / "thesis.txt"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("years of work")
    with pytest.raises(InputError, match="was not written by this stage"):
        run_stage(Settings(str(path)), writing("x"))
    assert mine.read_text() == "years of work"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("path", ["", "."])
def test_the_current_folder_as_output_is_an_input_error(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="output_dir"):
        run_stage(Settings(path), writing("x"))


@pytest.mark.parametrize("name", ["a" * 300, "file/out"], ids=["too long", "below a file"])
def test_impossible_output_is_an_input_error(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file|aaa"):
        run_stage(Settings(str(tmp_path / name)), writing("x"))


def test_missing_input_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such"):
        run_stage(Settings(str(tmp_path / "out"), str(tmp_path / "nowhere")), writing("x"))


@pytest.mark.parametrize("damage", ["gone", "shorter"])
def test_damage_is_named(tmp_path, damage):
    run_stage(Settings(str(tmp_path / "out")), writing("一二三"))
    path = tmp_path / "out" / "deep" / "data"
    path.unlink() if damage == "gone" else path.write_text("一")
    with pytest.raises(InputError, match="deep/data: missing or cut short"):
        read_manifest(tmp_path / "out", "test_stage")
    with pytest.raises(InputError, match=r"not what train/pack\.py writes"):
        read_manifest(tmp_path / "out", "pack")


def test_output_and_what_is_read_do_not_lie_in_one_another(tmp_path):
    """Else a stage would read what it writes, or replace what it reads. Links do not hide it."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for out in ("in/out", "link/out", "in/deep/out"):
        with pytest.raises(InputError, match=f"output_dir lies in input {tmp_path}/in"):
            run_stage(Settings(str(tmp_path / out)), writing("x"), [tmp_path / "in"])
    run_stage(Settings(str(tmp_path / "out")), writing("x"))
    with pytest.raises(InputError, match="output_dir holds input"):
        run_stage(Settings(str(tmp_path / "out")), writing("y"), [tmp_path / "out" / "deep" / "data"])
    assert (tmp_path / "out" / "deep" / "data").read_text() == "x"


def test_what_lies_behind_a_link_is_input(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    calls = []
    for text in ("1", "1 and more"):
        (tmp_path / "elsewhere" / "a.txt").write_text(text)
        run_stage(Settings(str(tmp_path / "out"), str(tmp_path / "in")), writing(text, calls))
    assert len(calls) == 2
