"""The one fine-tuning function: it learns, and ends with the weights of the epoch that was best on dev."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from tiny import build
from zh_modernbert.eval.finetuning.training import Examples, Hyperparameters, fine_tune, predict, score_halves
from zh_modernbert.modeling_zh_modernbert import ZhModernBertForSequenceClassification
from zh_modernbert.train.common.cli import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


def make_examples(count: int, seed: int) -> Examples:
    """Eight tokens; the first is 20 or 21, which is the label."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(30, 90, (count, 8))
    labels = generator.integers(0, 2, count)
    ids[:, 0] = 20 + labels
    features = Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return Examples(features, labels.tolist(), lambda logits: logits.argmax(-1).tolist())


def collate(rows: list[dict]) -> dict:
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def accuracy(answers: list, references: list) -> dict[str, float]:
    return {"accuracy": 100 * float(np.mean(np.array(answers) == np.array(references)))}


def tune(score=accuracy, dev=True, **options):
    model = build(ZhModernBertForSequenceClassification, num_labels=2, num_hidden_layers=2)
    settings = {"learning_rate": 3e-3, "batch_size": 16, "num_train_epochs": 3} | options.pop("settings", {})
    examples = {"train": make_examples(160, 0), "dev": make_examples(40, 1) if dev else None}
    return fine_tune(model, collate, **examples, hyperparameters=Hyperparameters(**settings), seed=1, score=score,
                     primary_metric="accuracy", **options)  # fmt: skip


def test_it_learns_and_says_so_after_each_epoch():
    trainer, epochs = tune()
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3]
    assert max(epoch["metrics"]["accuracy"] for epoch in epochs) > 90
    last = epochs[-1]
    assert last["metrics"]["accuracy"] == pytest.approx(np.mean([half["accuracy"] for half in last["halves"]]))
    test = make_examples(30, 2)
    assert accuracy(predict(trainer, test), test.references)["accuracy"] > 85
    assert len(epochs) == 3  # predicting is no epoch


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_computed_in(dtype):
    seen = set()
    seeing = torch.nn.modules.module.register_module_forward_hook(
        lambda module, _, output: seen.add(output.dtype) if isinstance(module, torch.nn.Linear) else None
    )
    with seeing:
        trainer, epochs = tune(settings={"dtype": dtype})
    assert seen == {getattr(torch, dtype)}
    assert max(epoch["metrics"]["accuracy"] for epoch in epochs) > 90
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


def test_the_best_epoch_is_kept():
    """The score falls from epoch to epoch, so the first one's answers are what stays."""
    answered = []

    def falling(answers, references):
        if len(answers) == 40:
            answered.append(answers)
        return {"accuracy": 100.0 - len(answered)}

    trainer, epochs = tune(score=falling, settings={"learning_rate": 1e-3})
    assert len(epochs) == 3
    assert predict(trainer, make_examples(40, 1)) == answered[0] != answered[-1]


def test_parts_of_a_batch_learn_what_the_whole_does():
    whole, parts = (tune(settings={"num_train_epochs": 1}, device_batch_size=size)[0].model for size in (0, 4))
    for name, parameter in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], parameter, atol=2e-4, rtol=0)


def test_without_dev_the_last_epoch_stays():
    trainer, epochs = tune(dev=False)
    test = make_examples(30, 2)
    assert epochs == []
    assert accuracy(predict(trainer, test), test.references)["accuracy"] > 85


def test_a_batch_has_equal_parts():
    with pytest.raises(InputError, match="device_batch_size is 5"):
        tune(device_batch_size=5)


@pytest.mark.parametrize("dev", [True, False])
def test_a_training_that_diverges_is_said(dev):
    with pytest.raises(InputError, match="diverged at learning_rate 1e\\+30"):
        predict(tune(settings={"learning_rate": 1e30}, dev=dev)[0], make_examples(4, 0))


def test_one_device_of_one_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES"):
        tune()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="several processes"):
        tune()


@pytest.mark.parametrize(
    ("groups", "halves"),
    [
        (None, ["ace", "bd"]),
        (["x", "y", "x", "z", "z"], ["acde", "b"]),
        (["x", "x", "x", "x", "y"], ["abcd", "e"]),
        (["x"] * 5, ["ace", "bd"]),  # else one half would be empty
    ],
)
def test_no_group_is_in_both_halves(groups, halves):
    examples = Examples(Dataset.from_dict({}), list("ABCDE"), list, groups)

    def seen(answers, references):
        assert [answer.upper() for answer in answers] == references
        return {"".join(answers): 0.0}

    assert score_halves(seen, list("abcde"), examples) == [{half: 0.0} for half in halves]
