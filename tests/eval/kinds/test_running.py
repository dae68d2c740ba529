"""What a kept run is known by."""

from zh_modernbert.eval.kinds import running


def test_code_that_decides_an_outcome(tmp_path, monkeypatch):
    """Any of it, wherever it lies, and no other; of reading, also what cuts words."""
    monkeypatch.setattr(running, "EVAL", tmp_path)
    monkeypatch.setattr(running, "has_punkt", lambda: True)
    found = []
    for name, content in (
        ("kinds/a.py", "1"),
        ("kinds/a.py", "2"),
        ("metrics/a.py", "2"),
        ("finetuning/a.py", "2"),
        ("tasks/a.py", "2"),
        ("long_documents.py", "2"),
        ("throughput.py", "2"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
        running.made_by.cache_clear()
        found.append(running.made_by("choice"))
    assert len({made["code"] for made in found}) == 6
    assert found[-1] == found[-2]
    assert found[-1].keys() == {"torch", "transformers", "code"}
    assert running.made_by("reading") == {**found[-1], "punkt": True}
    running.made_by.cache_clear()
