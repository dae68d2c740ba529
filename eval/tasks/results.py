"""The file that an evaluation leaves."""

from pathlib import Path

from zh_modernbert.train.common.files import write_json


def write_result(results_dir: str | Path, result: dict) -> Path:
    """Writes `<task>-<split>-<seed>.json`."""
    folder = Path(results_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['task']}-{result['split']}-{result['seed']}.json"
    write_json(path, result)
    return path
