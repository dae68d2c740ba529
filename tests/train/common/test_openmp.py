"""Threads that wait for one another soon sleep, in every script that computes on a CPU; the user's own setting wins."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from zh_modernbert.train.common import openmp

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = [f"train/{name}.py" for name in ("initialise", "pretrain", "quickstart", "ablate")]
SCRIPTS += ["eval/clue.py", "eval/pseudo_perplexity.py"]
linux = pytest.mark.skipif(sys.platform != "linux", reason="PyTorch has another OpenMP there")


def spin_counts(module: str, **own: str) -> set[str]:
    """What OpenMP says on stderr, when it is loaded, of the turns that a waiting thread spins: each copy of it one line."""
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    command = [sys.executable, "-c", f"import {module}, torch"]
    environment |= own | {"OMP_DISPLAY_ENV": "VERBOSE"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return set(re.findall(r"GOMP_SPINCOUNT = '(\w+)'", done.stderr))


@linux
def test_it_is_in_force_where_a_model_is_trained():
    assert spin_counts("zh_modernbert.train.pretrain") == {str(openmp.SPIN_COUNT)}


@linux
@pytest.mark.parametrize(("own", "expected"), [({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")])
def test_the_user_s_own_setting_wins(own, expected):
    assert spin_counts("zh_modernbert.train.common.openmp", **own) == {expected}


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_import_it_before_what_may_load_torch(script):
    imports = [node for node in ast.parse((ROOT / script).read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = [
        name
        for node in imports
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    ]
    others = [name for name in modules if name.partition(".")[0] not in sys.stdlib_module_names]
    assert others[:2] == ["zh_modernbert.train.common.extras", "zh_modernbert.train.common.openmp"]
