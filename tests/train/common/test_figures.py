"""A name in a figure is shown as it is."""

import pytest
from matplotlib.figure import Figure

from zh_modernbert.eval import tokenizer_stats
from zh_modernbert.train import ablate, clean
from zh_modernbert.train.common.figures import as_label

NAMES = ["$x_{$", "$\\frac$", "a$b", "\\$", "\udcff", "%s {0}"]


def draw_ablation(name, path):
    row = {"characters": 64, "mean": 1.0, "std": None}
    ablate.plot([row | {"variant": name}, row | {"variant": "other"}]).savefig(path, dpi=20)


def draw_tokenizers(name, path):
    row = {"chars_per_token": 1.4, "answers_on_token_edges": {name: 98.0}}
    tokenizer_stats.draw([row | {"tokenizer": f"folder/{name}"}], path)


def draw_cleaning(name, path):
    counts = {"characters_in": 10, "dropped": {"short": {"characters": 4}}}
    clean.plot_report(counts | {"per_source": {name: counts}}, path)


@pytest.mark.parametrize("draw", [draw_ablation, draw_tokenizers, draw_cleaning])
def test_a_name_with_dollars_can_be_drawn(tmp_path, draw):
    draw("$x_{$", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_a_name_is_shown_as_it_is():
    for name in NAMES:
        text = Figure().text(0, 0, as_label(name))
        assert text._preprocess_math(text.get_text()) == (name.replace("\udcff", "?"), False)
