"""The rows of the table fit one another and the forms."""

import pytest

from zh_modernbert.eval.tasks.checks import CHECKS
from zh_modernbert.eval.tasks.forms import READERS, SHAPES
from zh_modernbert.eval.tasks.registry import TASKS, Grid

MINE = {name: task for name, task in TASKS.items() if task.kind in CHECKS}


@pytest.mark.parametrize("name", MINE)
def test_a_row(name):
    task = MINE[name]
    official = {split for release in task.releases if not release.substitute for split in release.splits}
    assert task.predictions.keys() <= official | {split for release in task.releases for split in release.splits}
    for release in task.releases:
        assert release.form in READERS
        assert release.form in SHAPES
        assert "train" in release.splits
        assert len(release.splits) > 1
        assert release.form != "table" or {"text", "label"} <= release.columns.keys()
        assert set(release.columns.values()) <= set(release.header or release.columns.values()) | {"id"}
    assert [bool(release.substitute) for release in task.releases] == sorted(
        bool(release.substitute) for release in task.releases
    )


def test_tnews_has_the_codes_of_the_benchmark():
    assert [*TASKS["tnews"].labels] == [str(code) for code in range(100, 117) if code not in (105, 111)]


def test_grids():
    assert TASKS["cluewsc2020"].grid == Grid((1e-5, 2e-5, 3e-5, 5e-5), (8, 16, 32, 64), 50)
    assert {name: task.grid.num_train_epochs for name, task in TASKS.items() if name in ("ocnli", "csl", "cmnli", "afqmc")} == {
        "ocnli": 5,
        "csl": 5,
        "cmnli": 2,
        "afqmc": 3,
    }
    assert max(Grid().modern().learning_rates) == 1e-4
    assert Grid().modern().num_train_epochs == 6
