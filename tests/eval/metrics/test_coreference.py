"""CoNLL F1 on a worked example, and against another implementation."""

import random
from pathlib import Path

import evaluate
import pytest

from zh_modernbert.eval.metrics import coreference

ROOT = Path(__file__).resolve().parents[3]
EXPECTED, PREDICTED = ["abc", "defg"], ["ab", "cd", "fghi"]  # Pradhan et al. (2014), section 4


def random_clusters(generator: random.Random, mentions: str) -> list[set[str]]:
    drawn = [mention for mention in mentions if generator.random() < 0.8]
    clusters: dict[int, set[str]] = {}
    for mention in drawn:
        clusters.setdefault(generator.randrange(4), set()).add(mention)
    return list(clusters.values())


def test_the_worked_example():
    scores = coreference.score([EXPECTED], [PREDICTED])
    assert scores["muc_f1"] == pytest.approx(40.0)
    assert scores["b_cubed_f1"] == pytest.approx(45.45, abs=0.01)
    assert scores["ceaf_e_f1"] == pytest.approx(52.0, abs=0.05)
    assert scores["conll_f1"] == pytest.approx((scores["muc_f1"] + scores["b_cubed_f1"] + scores["ceaf_e_f1"]) / 3)


def test_equal_and_empty():
    assert set(coreference.score([EXPECTED], [EXPECTED]).values()) == {100.0}
    assert set(coreference.score([EXPECTED], [[]]).values()) == {0.0}
    assert set(coreference.score([[]], [EXPECTED]).values()) == {0.0}
    assert set(coreference.score([], []).values()) == {0.0}


def test_mentions_in_any_cluster_count():
    """Of 7 expected and 8 predicted mentions 6 are shared, in whatever cluster: all expected ones but e."""
    scores = coreference.score([EXPECTED], [PREDICTED])
    assert scores["mention_f1"] == pytest.approx(100 * 2 * 6 / (7 + 8))


def test_documents_are_summed_before_they_are_divided():
    """A document of two mentions and one of three: of their three links, two are right."""
    both = coreference.score([["ab"], ["cde"]], [[], ["cde"]])
    assert both["muc_f1"] == pytest.approx(100 * 2 * (2 / 3) / (2 / 3 + 1))


def test_against_scorch():
    scorch = pytest.importorskip("scorch.scores", reason="scorch is not installed")
    generator = random.Random(0)
    for _ in range(100):
        expected, predicted = (random_clusters(generator, "abcdefghijkl") for _ in range(2))
        found = coreference.score([expected], [predicted])
        for name in coreference.PARTS:
            assert found[f"{name}_f1"] == pytest.approx(100 * getattr(scorch, name)(expected, predicted)[2]), (
                name,
                expected,
                predicted,
            )
        assert found["conll_f1"] == pytest.approx(100 * scorch.conll2012(expected, predicted))


def test_as_a_module_of_evaluate():
    metric = evaluate.load(str(ROOT / "eval" / "metrics" / "coreference.py"))
    clusters = [[[0, 1], [3, 5]], [[6, 7], [8, 9], [10, 12]]]
    scores = metric.compute(predictions=[clusters, clusters[:1]], references=[clusters, clusters])
    assert scores["muc_f1"] == pytest.approx(100 * 2 * (4 / 6) / (4 / 6 + 1))
