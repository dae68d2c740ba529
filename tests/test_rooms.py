"""Scripts stand on rooms, rooms on one another in one direction, and training needs nothing that only text needs."""

import ast
import json
import os
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Each room, and the rooms that its modules may import.
ROOMS = {
    "train.common": set(),
    "train.corpus": {"train.common"},
    "train.tokenizer": {"train.common", "train.corpus"},
    "train.embedding": {"train.common", "train.corpus"},
    "train.rows": {"train.common"},
    "train.pretraining": {"train.common", "train.tokenizer", "train.rows"},
    "train.publishing": {"train.common", "train.pretraining", "train.tokenizer"},
    "eval.metrics": set(),
    "eval.tasks": {"train.common", "train.corpus"},
    "eval.finetuning": {"train.common", "eval.tasks"},
    "eval.reporting": {"train.common", "eval.tasks"},
    "eval.kinds": {"train.common", "eval.metrics", "eval.tasks", "eval.finetuning"},
    "eval.speed": {"train.common", "train.rows", "train.pretraining"},
}
# Scripts that run other scripts, and which.
RUNNERS = {
    "train.quickstart": {
        *("train.sources", "train.clean", "train.dedup", "train.train_tokenizer", "train.encode", "train.pack"),
        *("train.initialise", "train.pretrain", "train.publish", "eval.pseudo_perplexity", "eval.clue"),
    },
    "train.ablate": {"train.pretrain", "eval.pseudo_perplexity"},
    "train.timed": {"train.pretrain"},
    "eval.dedup_recall": {"train.dedup"},
    "eval.corpus_throughput": {"train.clean", "train.dedup", "train.encode", "train.pack"},
}
CORPUS_PACKAGES = ("datatrove", "opencc", "rjieba", "datasets", "pandas", "pyarrow")


def imports_of(path: Path, modules: set[str]) -> set[str]:
    """The modules of this project that a file imports, anywhere in it, by their names below `zh_modernbert`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = f"zh_modernbert.{node.module}" if node.level else node.module
            names = [name for alias in node.names for name in (f"{module}.{alias.name}", module)]
        else:
            continue
        found |= {name.removeprefix("zh_modernbert.") for name in names if name.startswith("zh_modernbert.")}
    return found & modules


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Module -> the modules that it imports."""
    paths = [*ROOT.glob("*.py"), *ROOT.glob("train/**/*.py"), *ROOT.glob("eval/**/*.py")]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    return {name: imports_of(path, set(modules)) for name, path in modules.items()}


def room_of(module: str) -> str | None:
    """The room of a module; None for a script, and for the model's own files."""
    return module.rpartition(".")[0] if module.count(".") == 2 else None


def is_script(module: str) -> bool:
    return module.count(".") == 1


def test_scripts_import_no_scripts_but_those_they_run(imports):
    found = {name: {other for other in others if is_script(other)} for name, others in imports.items()}
    assert {name: others for name, others in found.items() if others} == RUNNERS


def test_train_needs_nothing_of_eval(imports):
    of_eval = {name for name in imports if name.startswith("eval.")}
    assert {name for name in imports.keys() - of_eval if imports[name] & of_eval} == {"train.quickstart", "train.ablate"}


def test_rooms_stand_on_those_that_are_listed(imports):
    found = {room: set() for room in ROOMS}
    for name, others in imports.items():
        if room := room_of(name):
            found[room] |= {room_of(other) for other in others} - {room, None}
    assert found == ROOMS


def test_the_model_stands_alone(imports):
    root = {name for name in imports if "." not in name}
    assert all(imports[name] <= root for name in root)


def test_no_module_needs_itself(imports):
    list(TopologicalSorter(imports).static_order())  # raises CycleError, which names the circle


def test_every_room_is_a_package():
    with open(ROOT / "pyproject.toml", "rb") as file:
        packages = tomllib.load(file)["tool"]["setuptools"]["packages"]
    assert packages == sorted(["zh_modernbert", *(f"zh_modernbert.{name}" for name in ("train", "eval", *ROOMS))])


# --- in a process of its own ---


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_training_loads_no_corpus_package():
    scripts = ("train.pretrain", "train.publish", "train.convert", "eval.throughput")
    code = f"import sys, {', '.join(f'zh_modernbert.{name}' for name in scripts)}; print(*sys.modules)"
    assert not {*CORPUS_PACKAGES} & set(run_python(code).split())


def test_training_runs_where_no_corpus_package_is_installed():
    planning = ["train/pretrain.py", "train/configs/system_a/pretrain_1k.yaml", "--dry_run", "true"]
    commands = [planning, ["eval/throughput.py", "--help"]]
    code = f"import runpy, sys\nsys.modules |= dict.fromkeys({CORPUS_PACKAGES})\n"
    code += f"for sys.argv in {commands}:\n    runpy.run_path(sys.argv[0], run_name='__main__')"
    planned, _, usage = run_python(code).partition("\n")
    assert json.loads(planned)["parameters"] > 300e6
    assert "--workload" in usage


SCRIPT = """
import importlib.util
import multiprocessing
from dataclasses import dataclass

from zh_modernbert.train.common.cli import BaseSettings, run


@dataclass
class Settings(BaseSettings):
    pass


def neighbours(_):
    return [name for name in ("script", "common", "tokenizer") if importlib.util.find_spec(name)]


def main(settings):
    found = {"here": neighbours(0)}
    for method in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            found[method] = pool.map(neighbours, [0])[0]
    return found


if __name__ == "__main__":
    run(main, Settings)
"""


@pytest.mark.parametrize(
    "launcher", [[], ["-m", "torch.distributed.run", "--standalone"], ["-m", "accelerate.commands.launch", "--cpu"]]
)
def test_what_lies_beside_a_script_is_no_module(tmp_path, launcher):
    """A script that is run by its path, however, and its workers, cannot import its neighbours by their bare names."""
    (tmp_path / "script.py").write_text(SCRIPT)
    for room in ("common", "tokenizer"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "module.py").touch()
    command = [sys.executable, *launcher, str(tmp_path / "script.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found == {"here": [], "fork": [], "spawn": [], "forkserver": []}
