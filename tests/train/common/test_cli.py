"""The one grammar of all scripts: presets, flags, their types, and errors that name what is wrong."""

import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from zh_modernbert.train import sources
from zh_modernbert.train.common import cli
from zh_modernbert.train.common.cli import BaseSettings, InputError, parse, read_yaml, setting, usage

ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Part(BaseSettings):
    path: str = setting("", "where")
    weight: float = setting(1.0)
    mode: str = setting("whole", choices=("whole", "half"))


@dataclass
class Settings(BaseSettings):
    output_dir: str = setting(help="folder to write")
    steps: int = setting(10, "how many")
    rate: float = setting(0.5)
    shuffle: bool = setting(True)
    name: str | None = setting(None)
    limit: int | None = setting(None)
    kind: str = setting("linear", choices=("linear", "cosine"))
    words: list[str] = setting(["a", "b"])
    sizes: list[int] = setting([])
    shares: dict[str, float] = setting({})
    input: list[str | Part] = setting([])


@dataclass
class OneLine(BaseSettings):
    name: str = ""
    options: dict[str, str] = setting({})


def write_preset(folder: Path, text: str) -> str:
    (folder / "preset.yaml").write_text(text, encoding="utf-8")
    return str(folder / "preset.yaml")


def run(*arguments) -> subprocess.CompletedProcess:
    """train/sources.py as a user runs it."""
    command = [sys.executable, str(ROOT / "train/sources.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ)


# --- what is read ---


def test_defaults_and_fresh_lists():
    first, second = (parse(Settings, ["--output_dir", "o"], "x") for _ in range(2))
    assert (first.steps, first.rate, first.shuffle, first.name, first.kind) == (10, 0.5, True, None, "linear")
    first.words.append("c")
    assert second.words == ["a", "b"], "two settings share one default list"


def test_flags_beat_the_preset(tmp_path):
    preset = write_preset(tmp_path, "output_dir: from_preset\nsteps: 3\nrate: 0.25\n")
    settings = parse(Settings, [preset, "--steps", "7"], "x")
    assert (settings.output_dir, settings.steps, settings.rate, settings.shuffle) == ("from_preset", 7, 0.25, True)


@pytest.mark.parametrize(
    ("arguments", "field", "expected"),
    [
        (["--steps", "7"], "steps", 7),
        (["--steps=7"], "steps", 7),
        (["--steps", "-7"], "steps", -7),
        (["--steps", "1e3"], "steps", 1000),
        (["--steps", "7.0"], "steps", 7),
        (["--steps", str(2**60 + 1)], "steps", 2**60 + 1),
        (["--rate", "3"], "rate", 3.0),
        (["--rate", "3e-4"], "rate", 3e-4),
        (["--shuffle", "false"], "shuffle", False),
        (["--output-dir", "dashes"], "output_dir", "dashes"),
        (["--output_dir", "2024.10"], "output_dir", "2024.10"),
        (["--output_dir", "null"], "output_dir", "null"),
        (["--output_dir", "a: b"], "output_dir", "a: b"),
        (["--output_dir", "資料/😀"], "output_dir", "資料/😀"),
        (["--name", "7"], "name", "7"),
        (["--name", "null"], "name", None),
        (["--name", "{x}"], "name", "{x}"),
        (["--limit", "null"], "limit", None),
        (["--steps", "1_000"], "steps", 1000),
        (["--limit", "4"], "limit", 4),
        (["--words", "x", "y"], "words", ["x", "y"]),
        (["--words", "x"], "words", ["x"]),
        (["--sizes", "1", "2"], "sizes", [1, 2]),
        (["--sizes", "[1, 2]"], "sizes", [1, 2]),
        (["--shares", "{news: 1, web: 0.5}"], "shares", {"news": 1.0, "web": 0.5}),
        (["--input", "a.txt", "b.txt"], "input", ["a.txt", "b.txt"]),
        (["--input", "{path: a, weight: 2}"], "input", [Part(path="a", weight=2.0)]),
    ],
)
def test_values_become_their_types(arguments, field, expected):
    given = [] if arguments[0].startswith(("--output_dir", "--output-dir")) else ["--output_dir", "o"]
    value = getattr(parse(Settings, [*given, *arguments], "x"), field)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize("path", ["2024.10", "007", "a: b.txt", "[zh].jsonl", "*.jsonl", "#1.txt", "2024-01-01"])
def test_paths_stay_what_was_typed(path):
    """A list that may hold paths takes them as they are: none of these is meant as YAML."""
    assert parse(Settings, ["--output_dir", "o", "--input", path], "x").input == [path]


def test_nested_settings_in_a_preset(tmp_path):
    preset = write_preset(tmp_path, "output_dir: o\ninput:\n  - plain.txt\n  - {path: b, mode: half}\n")
    assert parse(Settings, [preset], "x").input == ["plain.txt", Part(path="b", mode="half")]


@pytest.mark.parametrize(
    ("text", "field", "expected"),
    [
        ("name: 20:00:00", "name", "20:00:00"),
        ("name: 010", "name", "010"),
        ("name: 1.10", "name", "1.10"),
        ("name: no", "name", "no"),
        ("name: 2024-01-01", "name", "2024-01-01"),
        ("name: null", "name", None),
        ("name: 'null'", "name", "null"),
        ("shares: {010: 0.5, on: 1}", "shares", {"010": 0.5, "on": 1.0}),
        ("shuffle: no", "shuffle", False),
        ("steps: 1e3", "steps", 1000),
        ("words: [1:30, 7]", "words", ["1:30", "7"]),
    ],
)
def test_scalars_of_a_preset_are_text_until_a_type_is_known(tmp_path, text, field, expected):
    preset = write_preset(tmp_path, f"output_dir: o\n{text}\n")
    value = getattr(parse(Settings, [preset], "x"), field)
    assert value == expected
    assert type(value) is type(expected)


def test_a_preset_of_one_mapping_is_no_section(tmp_path):
    preset = write_preset(tmp_path, "shares: {news: 1}\n")
    assert parse(Settings, [preset, "--output_dir", "o"], "sources").shares == {"news": 1.0}


def test_sections_of_one_preset(tmp_path):
    preset = write_preset(tmp_path, "sources: {output_dir: a}\nclean: {output_dir: b}\n")
    assert parse(Settings, [preset], "sources").output_dir == "a"
    assert parse(Settings, [preset, "--steps", "1"], "clean").output_dir == "b"


# --- what is refused ---


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "many"], ["steps", "int", "many"]),
        (["--steps", "1.5"], ["steps", "int", "1.5"]),
        (["--steps", "true"], ["steps", "int"]),
        (["--steps", "1", "2"], ["steps", "int"]),
        (["--steps", "null"], ["steps", "int"]),
        (["--rate", "fast"], ["rate", "float", "fast"]),
        (["--rate", "nan"], ["rate", "nan"]),
        (["--shares", "{news: .nan}"], ["shares.news", "nan"]),
        (["--shuffle", "maybe"], ["shuffle", "bool", "maybe"]),
        (["--shuffle", "1"], ["shuffle", "bool"]),
        (["--sizes", "1", "two"], ["sizes[1]", "int", "two"]),
        (["--sizes", "{a: 1}"], ["sizes", "int"]),
        (["--shares", "{news: much}"], ["shares.news", "float", "much"]),
        (["--shares", "news"], ["shares", "news"]),
        (["--input", "{path: a, weight: heavy}"], ["input[0]", "weight", "float"]),
        (["--input", "{path: a, wieght: 1}"], ["input[0]", "wieght", "'weight'"]),
        (["--input", "{path: a, mode: third}"], ["mode", "third", "'whole'", "'half'"]),
        (["--kind", "square"], ["kind", "square", "'linear'", "'cosine'"]),
        (["--step", "1"], ["--step", "--steps"]),
        (["--shufle", "true"], ["--shufle", "--shuffle"]),
        (["--steps"], ["--steps", "value"]),
        (["--words", "--steps", "1"], ["--words", "value"]),
        (["--shares", "{a: 1"], ["--shares", "{a: 1"]),
        (["--shares", "[2020-99-99]"], ["shares", "2020-99-99"]),
    ],
)
def test_bad_values_are_named(arguments, said):
    with pytest.raises(InputError) as caught:
        parse(Settings, ["--output_dir", "o", *arguments], "x")
    assert all(text in str(caught.value) for text in said), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arguments", [["preset.yaml", "stray"], ["--shuffle", "true", "stray"]])
def test_stray_arguments(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    write_preset(tmp_path, "output_dir: o\n")
    with pytest.raises(InputError, match="stray"):
        parse(Settings, arguments, "x")


def test_a_stray_argument_is_told_the_form(tmp_path):
    preset = write_preset(tmp_path, "output_dir: o\n")
    with pytest.raises(InputError, match=r"'stray'; the form is \[PRESET.yaml\] \[--field value ...\]"):
        parse(Settings, [preset, "stray"], "x")


def test_missing_required_field():
    with pytest.raises(InputError, match="output_dir is missing"):
        parse(Settings, [], "x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("output_dir: o\nstpes: 3\n", ["stpes", "'steps'"]),
        ("output_dir: o\nsteps: many\n", ["steps", "many"]),
        ("output_dir: null\n", ["output_dir", "None"]),
        ("output_dir: o\nsteps: 1:30\n", ["steps", "int", "1:30"]),
        ("output_dir: o\nsteps: 010\n", ["steps", "int", "010"]),
        ("output_dir: o\nrate: 00.5\n", ["rate", "float", "00.5"]),
        ("output_dir: o\nsizes: [１２]\n", ["sizes[0]", "int", "１２"]),
        ("output_dir: o\nsteps: 0x10\n", ["steps", "int", "0x10"]),
        ("output_dir: o\nshuffle: 2024-01-01\n", ["shuffle", "bool", "2024-01-01"]),
        ("shaers: {news: 1}\n", ["shaers", "'shares'"]),
        ("1: 2\n", ["1"]),
        ("sorces: {output_dir: a}\n", ["sorces", "'sources'"]),
        ("1: {output_dir: a}\n", ["1"]),
        ("clean: {output_dir: a}\n", ["no section for sources", "clean"]),
        ("output_dir: [1,\n", ["not valid YAML"]),
        ("a:\n\t- 1\n", ["not valid YAML"]),
        ("- 1\n", ["mapping", "list"]),
        ("", ["mapping"]),
    ],
)
def test_bad_presets_are_named(tmp_path, text, said):
    preset = write_preset(tmp_path, text)
    with pytest.raises(InputError) as caught:
        parse(Settings, [preset], "sources")
    assert all(part in str(caught.value) for part in [*said, "preset.yaml"]), caught.value
    assert "\n" not in str(caught.value)


def test_unreadable_presets(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    for path, said in (("missing.yaml", "No such file"), (".", "directory"), ("latin.yaml", "not valid YAML")):
        with pytest.raises(InputError, match=said) as caught:
            read_yaml(tmp_path / path)
        assert str(tmp_path / path) in str(caught.value)


# --- as a user runs it ---


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "output_dir"),
        (["nowhere.yaml"], "nowhere.yaml"),
        (["--output_dir", "{tmp}/o", "--imput", "x"], "--input"),
        (["--output_dir", "{tmp}/o", "--input"], "--input"),
        (["--output_dir", "{tmp}/o", "--input", "{tmp}/nothing.jsonl"], "nothing.jsonl"),
        (["--output_dir", "{tmp}/o", "--input", "{tmp}/empty.jsonl"], "empty.jsonl"),
        (["--output_dir", "{tmp}/o", "--input", "{tmp}/broken.jsonl"], "broken.jsonl, line 2"),
        (["--output_dir", "{tmp}/theirs", "--input", "{tmp}/good.jsonl"], "theirs"),
        (["--output_dir", "{tmp}/good.jsonl/o", "--input", "{tmp}/good.jsonl"], "good.jsonl/o"),
        (["--output_dir", "{tmp}/" + "o" * 300, "--input", "{tmp}/good.jsonl"], "ooo"),
        (["--output_dir", "", "--input", "{tmp}/good.jsonl"], "output_dir"),
        (["--output_dir", "{tmp}/o", "--input", ""], "input"),
    ],
)
def test_bad_runs_end_with_one_line(tmp_path, monkeypatch, capfd, arguments, named):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "good.jsonl").write_text('{"text": "好"}\n')
    (tmp_path / "broken.jsonl").write_text('{"text": "好"}\n{"text": \n')
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("years of work")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "argv", ["sources.py", *(argument.replace("{tmp}", str(tmp_path)) for argument in arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.run(sources.main, sources.Settings)
    written = capfd.readouterr()
    # The progress bar redraws its line with a carriage return; it may stand before the error, never after it.
    lines = [line for line in written.err.replace("\r", "\n").split("\n") if line and " shards" not in line]
    assert ended.value.code == 2
    assert len(lines) == 1, written.err
    assert lines[0].startswith("error:"), written.err
    assert named in lines[0]
    assert written.out == ""
    assert not (tmp_path / "o").exists()


def test_a_bad_run_of_the_script(tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"text": "好"}\n{"text": \n')
    done = run("--output_dir", tmp_path / "o", "--input", tmp_path / "broken.jsonl")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error:")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_the_first_process_of_a_machine_speaks_before_the_others(monkeypatch, capsys):
    def ended(local_rank: str) -> list[float]:
        waited = []
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        monkeypatch.setattr(sys, "argv", ["x.py", "--nothing", "1"])
        monkeypatch.setattr(cli.time, "sleep", waited.append)
        with pytest.raises(SystemExit) as exit_:
            cli.run(lambda settings: None, Settings)
        assert exit_.value.code == 2
        assert capsys.readouterr().err.startswith("error: ")
        return waited

    assert ended("0") == []
    assert ended("3") == [cli.SECONDS_BEFORE_REPEATING]


def test_last_line_of_a_good_run_is_json(tmp_path):
    (tmp_path / "字.txt").write_text("第一段。\n\n第二段。\n", encoding="utf-8")
    done = run("--input", tmp_path / "字.txt", "--output_dir", tmp_path / "o")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["documents"] == 2
    assert result["per_source"] == {"字": 2}


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(monkeypatch, capsys, flag):
    monkeypatch.setattr(sys, "argv", ["sources.py", flag])
    cli.run(sources.main, sources.Settings)
    written = capsys.readouterr()
    assert sources.__doc__.splitlines()[0] in written.out
    assert "--output_dir" in written.out
    assert "--input" in written.out
    assert written.err == ""


def test_usage_tells_the_form():
    assert "usage: x.py [PRESET.yaml] [--field value ...]\n" in usage(Settings, "x", "What it does.")


def test_usage_tells_every_field_with_its_default():
    text = usage(Settings, "x", "What it does.")
    for name in Settings.__dataclass_fields__:
        assert f"--{name} (" in text
    assert "required" in text.split("--steps")[0]
    assert "default 10" in text
    assert "linear, cosine" in text
    words = text.split("--words (")[1].split("\n")[0]
    assert "'a'" in words, f"the default ['a', 'b'] is not told: {words}"


def test_text_of_several_lines_is_refused():
    """It would be another header of a job, another entry of a model card."""
    for field, value in (("name", "a\nb: c"), ("name", "a\u2028b"), ("options", {"a": "b\n#c"}), ("options", {"a\n#": "b"})):
        with pytest.raises(InputError, match=f"{field} is .* one line"):
            OneLine(**{field: value})
    assert OneLine(name="", options={"a": "b c"})


def test_stdout_that_nobody_reads(monkeypatch, capsys):
    """`| head` ends before the work does: one line, and nothing more at the end of Python."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        with pytest.raises(SystemExit) as ended:
            cli.write_stdout("{}")
        monkeypatch.undo()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: stdout: Broken pipe; the work itself is done\n"


def test_results_in_other_encodings(monkeypatch):
    """The result is JSON in any of them, with names of files that are not UTF-8 too."""
    for encoding, name in (("ascii", "名😀"), ("utf-8", "caf\udce9")):
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
        monkeypatch.setattr(sys, "argv", ["x.py", "--name", name])
        cli.run(lambda settings: {"name": settings.name}, OneLine)
        assert json.loads(written.getvalue()) == {"name": name}
        monkeypatch.undo()


SCRIPT = """
import os
import sys
from dataclasses import dataclass

from zh_modernbert.train.common.cli import BaseSettings, run, setting


@dataclass
class Settings(BaseSettings):
    path: str = setting()


def main(settings):
    with open(settings.path, "w") as file:
        os.system("echo stray")
        file.write("whole")
    return {"answer": 42}


run(main, Settings)
"""


@pytest.mark.parametrize("redirection", ["| true", ">/dev/full", ">&-"])
def test_a_stdout_that_nobody_reads(tmp_path, redirection):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = f"set -o pipefail; {sys.executable} script.py --path out.txt {redirection}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert (tmp_path / "out.txt").read_text() == "whole"  # and nothing that was meant for stdout
    errors = [
        line for line in done.stderr.splitlines() if "rror" in line and not line.startswith("sh:")
    ]  # of Python, not of echo
    if redirection == ">&-":
        assert (done.returncode, errors) == (0, [])
    else:
        assert done.returncode == 2
        assert [line.split(":")[:2] for line in errors] == [["error", " stdout"]], done.stderr
