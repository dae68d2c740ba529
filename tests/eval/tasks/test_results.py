"""Result files."""

import json

from zh_modernbert.eval.tasks.results import write_result


def test_results_are_named_by_task_split_and_seed(tmp_path):
    result = {"task": "chnsenticorp", "split": "dev", "seed": 42, "metrics": {"accuracy": 90.5}, "notes": "简体"}
    path = write_result(tmp_path / "new" / "results", result)
    assert path == tmp_path / "new" / "results" / "chnsenticorp-dev-42.json"
    assert json.loads(path.read_text(encoding="utf-8")) == result
    assert "简体" in path.read_text(encoding="utf-8")
