"""A script whose packages are not installed says in one line what to install."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

from zh_modernbert.train.common.extras import EXTRAS, extra_of

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = sorted(path for folder in ("train", "eval") for path in (ROOT / folder).glob("*.py"))


def run(script: str, missing: str) -> subprocess.CompletedProcess:
    code = f"import runpy, sys; sys.modules[{missing!r}], sys.argv = None, [{script!r}]; "
    code += f"runpy.run_path({script!r}, run_name='__main__')"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("script", "missing", "extra"),
    [("train/sources.py", "datatrove.pipeline", "corpus"), ("eval/report.py", "matplotlib", "eval")],
)
def test_a_missing_package_is_a_line(script, missing, extra):
    done = run(script, missing)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {Path(script).stem}: ")
    assert missing in done.stderr
    assert done.stderr.endswith(f"; pip install -c constraints.txt -e '.[{extra}]'\n")
    assert done.stderr.count("\n") == 1


def test_other_errors_keep_their_traceback():
    code = "import sys; sys.argv = ['eval/report.py']; import zh_modernbert.train.common.extras; 1 / 0"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.startswith("Traceback")
    assert "ZeroDivisionError" in done.stderr


def test_other_programs_are_left_alone(tmp_path):
    assert sys.excepthook.__module__ != "zh_modernbert.train.common.extras"
    assert extra_of(tmp_path / "train" / "clean.py") is None


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_each_script_asks_first(script):
    nodes = [node for node in ast.parse(script.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in nodes]
    others = [name for name in names if name.partition(".")[0] not in sys.stdlib_module_names]
    assert others[0] == "zh_modernbert.train.common.extras"


def test_extras_are_there():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    extras = {extra for script in SCRIPTS for extra in extra_of(script).split(",")}
    assert extras <= known.keys()
    assert EXTRAS.keys() <= {script.stem for script in SCRIPTS}
