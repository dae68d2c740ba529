"""Grids and seeds: nothing is run twice, and nothing is chosen on what it scores."""

import pytest

from zh_modernbert.eval.finetuning.runs import Outcome, best_on_dev, figures_elsewhere, figures_on_dev, run_all, summary
from zh_modernbert.eval.finetuning.training import Hyperparameters
from zh_modernbert.train.common.cli import InputError

GRID = [Hyperparameters(learning_rate=1e-5), Hyperparameters(learning_rate=2e-5)]


def epochs(*scores: float | tuple[float, float]) -> list[dict]:
    """Epochs of a whole score, or of one for each half of dev."""
    pairs = [score if isinstance(score, tuple) else (score, score) for score in scores]
    return [
        {"epoch": number, "metrics": {"f1": sum(pair) / 2}, "halves": [{"f1": half} for half in pair]}
        for number, pair in enumerate(pairs, 1)
    ]


def outcome(*scores) -> Outcome:
    return Outcome(epochs=epochs(*scores))


def test_a_seed_is_scored_by_what_the_others_chose():
    outcomes = {1: [outcome(50, 90), outcome(60, 70)], 2: [outcome(50, 55), outcome(80, 60)]}
    figures = figures_on_dev(outcomes, "f1")
    assert (figures[1].metrics, figures[1].chosen) == ({"f1": 60}, [(1, 0)])  # seed 2 is best at its second setting, epoch 1
    assert (figures[2].metrics, figures[2].chosen) == ({"f1": 55}, [(0, 1)])
    assert [best_on_dev(outcomes[seed], "f1") for seed in (1, 2)] == [90, 80]


def test_the_other_seeds_choose_on_the_other_half():
    outcomes = {1: [outcome((10, 40), (90, 20))], 2: [outcome((90, 30), (20, 80))], 3: [outcome((80, 20), (20, 70))]}
    figure = figures_on_dev(outcomes, "f1")[1]
    # The second halves of seeds 2 and 3 prefer epoch 2, where the first half of seed 1 has 90; their first halves epoch 1.
    assert (figure.metrics, figure.chosen) == ({"f1": 65}, [(0, 1), (0, 0)])


def test_one_seed_is_scored_by_what_the_other_half_chose():
    figures = figures_on_dev({1: [outcome((90, 40), (50, 80))]}, "f1")
    # The second half prefers epoch 2, where the first has 50; the first prefers epoch 1, where the second has 40.
    assert (figures[1].metrics, figures[1].chosen) == ({"f1": 45}, [(0, 1), (0, 0)])


def test_where_both_halves_agree_all_of_dev_is_scored():
    figures = figures_on_dev({1: [outcome((60, 60), (70, 80))]}, "f1")
    assert (figures[1].metrics, figures[1].chosen) == ({"f1": 75}, [(0, 1)])


def test_dev_chooses_for_test():
    outcomes = {
        seed: [Outcome(epochs(50, 60), {"test": {"f1": 99}}), Outcome(epochs(70, 65), {"test": {"f1": seed}})]
        for seed in (1, 2)
    }
    figures = figures_elsewhere(outcomes, "test", "f1")
    assert {seed: (figure.metrics["f1"], figure.chosen) for seed, figure in figures.items()} == {
        1: (1, [(1, 0)]),
        2: (2, [(1, 0)]),
    }


def test_without_dev_there_is_the_one_setting():
    assert figures_elsewhere({1: [Outcome(metrics={"test": {"f1": 7}})]}, "test", "f1")[1].metrics == {"f1": 7}


def test_a_finished_run_is_not_repeated_and_a_killed_grid_goes_on(tmp_path):
    done = []

    def run_one(setting, seed):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append((setting.learning_rate, seed))
        return outcome(len(done))

    with pytest.raises(KeyboardInterrupt):
        run_all(tmp_path, "task-dev", {"model": "a"}, GRID, [1, 2], run_one)
    assert done == [(1e-5, 1), (1e-5, 2), (2e-5, 1)]
    again = []

    def count(setting, seed):
        again.append((setting.learning_rate, seed))
        return outcome(4)

    outcomes = run_all(tmp_path, "task-dev", {"model": "a"}, GRID, [1, 2], count)
    assert again == [(2e-5, 2)]
    assert [[run.epochs[0]["metrics"]["f1"] for run in runs] for runs in outcomes.values()] == [[1, 3], [2, 4]]
    run_all(tmp_path, "task-dev", {"model": "another"}, GRID, [1], count)
    assert len(again) == 3  # another model is another run


def test_a_file_that_is_no_runs(tmp_path):
    run_all(tmp_path, "task-dev", {}, GRID[:1], [1], lambda *_: outcome(1))
    (path,) = (tmp_path / "runs").iterdir()
    path.write_text('{"recipe": 1}')
    with pytest.raises(InputError, match=f"{path.name}: not what a run left"):
        run_all(tmp_path, "task-dev", {}, GRID[:1], [1], lambda *_: outcome(1))


def test_a_run_is_done_again_where_more_than_its_file_is_wanted(tmp_path):
    for score in (1, 2):
        outcomes = run_all(tmp_path, "task-dev", {}, GRID[:1], [1], lambda *_, score=score: outcome(score), repeat=True)
        assert outcomes[1][0].epochs[0]["metrics"]["f1"] == score


def test_nothing_runs_where_its_file_could_not_be_written(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(InputError, match="give another --results_dir"):
        run_all(tmp_path / "results", "task-dev", {}, GRID[:1], [1], lambda *_: pytest.fail("it ran"))


def test_mean_deviation_and_best():
    assert summary([1.0, 3.0]) == {"mean": 2.0, "std": 1.4142, "best": 3.0}
    assert summary([5.0])["std"] == 0
