"""Official files of predictions, as CLUE's site takes them: an object a line, or one object; all of them in one zip file."""

import json
import zipfile
from pathlib import Path


def write_predictions(path: Path, entries: list[dict] | dict) -> Path:
    """`{"id", "label"}` a line for a list; one object for a dict."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = entries if isinstance(entries, list) else [entries]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def zip_predictions(folder: Path) -> None:
    """All official files of predictions in `folder`, if there are any, in `folder`.zip, without folders."""
    if files := sorted(folder.glob("*_predict.json")):
        with zipfile.ZipFile(folder.with_name(f"{folder.name}.zip"), "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, file.name)
