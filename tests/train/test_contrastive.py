"""Embeddings are learned from pairs, by the data and losses that were asked for, and load where this is not installed."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")

from sentence_transformers import SentenceTransformer

from zh_modernbert.train import contrastive
from zh_modernbert.train.common.cli import InputError, parse
from zh_modernbert.train.embedding.pairs import PairSet, columns_of, read_held_out, rows_of

pytestmark = pytest.mark.usefixtures("one_thread")

PRESETS = sorted(Path(__file__).resolve().parents[2].glob("train/configs/contrastive/*.yaml"))
SUBJECTS = ("老师", "学生", "邻居", "公司", "图书馆", "气象台", "代表团", "工程师")
CARD = {"dimensions": 32, "data": "mine", "longest": 64}
PAIRS = [(f"{subject}研究历史", f"{subject}正在研究历史的问题") for subject in SUBJECTS]


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return str(path)


def labelled(rows) -> list[dict]:
    return [{"sentence1": first, "sentence2": second, "label": label} for first, second, label in rows]


@pytest.fixture(scope="module")
def model_dir(publish_random) -> Path:
    return publish_random("contrastive", initializer_range=0.3)


@pytest.fixture
def settings(model_dir, tmp_path) -> contrastive.Settings:
    path = write(tmp_path / "pairs.jsonl", [{"sentence1": first, "sentence2": second} for first, second in PAIRS])
    return contrastive.Settings(
        model=str(model_dir),
        data=[PairSet(name="mine", path=path)],
        output_dir=str(tmp_path / "embeddings"),
        max_length=64,
        batch_size=4,
        learning_rate=3e-3,
        max_steps=6,
    )


# --- data ---


def test_only_chosen_labels_are_positives(tmp_path):
    """SimCLUE's form: 0 is no pair; what is in the test set is dropped, either way round, and counted."""
    rows = [("甲", "乙", "1"), ("甲", "丙", "0"), ("丁", "戊", "1"), ("己", "庚", "1"), ("", "空", "1")]
    path = write(tmp_path / "pairs.json", labelled(rows))
    test = write(tmp_path / "test.json", labelled([(" 戊", "丁 ", "0"), ("别", "的", "1")]))
    source = PairSet(name="simclue", path=path, label="label", positive_labels=["1"])
    found, dropped = rows_of(source, read_held_out([PairSet(name="test", path=test)]))
    assert found == [("甲", "乙"), ("己", "庚")]
    assert dropped == {"label 0": 1, "held out": 1, "an empty text": 1}


def test_negatives_of_an_anchor(tmp_path):
    """Of NLI, a premise's contradictions are its hard negatives. Rows without one are a table of their own."""
    rows = [("前提", "蕴含一", "entailment"), ("前提", "矛盾", "contradiction"), ("前提", "蕴含二", "entailment")]
    rows += [("前提", "中立", "neutral"), ("别的", "蕴含三", "entailment")]
    path = write(tmp_path / "nli.jsonl", labelled(rows))
    source = PairSet(name="nli", path=path, label="label", positive_labels=["entailment"], negative_labels=["contradiction"])
    found, dropped = rows_of(source, set())
    assert dropped == {"label neutral": 1}
    assert columns_of(source, found) == {
        "nli": {"anchor": ["别的"], "positive": ["蕴含三"]},
        "nli_negatives": {"anchor": ["前提"] * 2, "positive": ["蕴含一", "蕴含二"], "negative": ["矛盾"] * 2},
    }


def test_graded_labels(tmp_path):
    (tmp_path / "sts.txt").write_text("甲\t乙\t4\n丙\t丁\t0\n", encoding="utf-8")
    header = ["sentence1", "sentence2", "score"]
    source = PairSet(name="sts", path=str(tmp_path / "sts.txt"), header=header, label="score", loss="cosent")
    found, _ = rows_of(source, set())
    assert found == [("甲", "乙", 4.0), ("丙", "丁", 0.0)]
    words = write(tmp_path / "nli.jsonl", labelled([("甲", "乙", "entailment"), ("甲", "丙", "-")]))
    source = PairSet(name="nli", path=words, label="label", loss="cosent", scores={"entailment": 1})
    found, dropped = rows_of(source, set())
    assert (found, dropped) == ([("甲", "乙", 1.0)], {"label -": 1})


def test_t2rankings_files(tmp_path):
    for name, text in {
        "queries.tsv": "qid\ttext\n1\t问题\n2\t别的\n",
        "collection.tsv": "pid\ttext\n7\t答案\n8\t无关\n",
        "qrels.tsv": "qid\t-\tpid\trel\n1\t0\t7\t3\n1\t0\t8\t0\n2\t0\t8\t1\n",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    files = {"queries": "queries.tsv", "corpus": "collection.tsv", "qrels": "qrels.tsv"}
    source = PairSet(name="t2", **{name: str(tmp_path / file) for name, file in files.items()}, min_relevance=2)
    assert rows_of(source, set())[0] == [("问题", "答案")]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "give path"),
        ({"path": "a.jsonl", "dataset": "b/c"}, "give path"),
        ({"path": "a.jsonl", "label": "label"}, "positive_labels"),
        ({"path": "a.jsonl", "loss": "cosent"}, "cosent needs"),
        ({"queries": "a"}, "give path"),
    ],
)
def test_data_sets_that_are_none(changes, said):
    with pytest.raises(InputError, match=said):
        PairSet(name="mine", **changes)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets(preset):
    settings = parse(contrastive.Settings, [str(preset), "--model", "any"], "contrastive")
    for source in settings.data:
        assert source.loss == "cosent" or not source.label or source.positive_labels in (["1"], ["entailment"])
    if any(source.name.startswith("simclue") for source in settings.data):
        assert settings.held_out


# --- training ---


def spread(model) -> float:
    """How much likelier a pair is than the first texts among themselves."""
    first, second = (model.encode([pair[side] for pair in PAIRS], convert_to_tensor=True) for side in (0, 1))
    pairs, others = model.similarity(first, second), model.similarity(first, first)
    return float(pairs.diagonal().mean() - (others.sum() - len(PAIRS)) / (len(PAIRS) * (len(PAIRS) - 1)))


def test_pairs_grow_alike_and_the_folder_loads_anywhere(settings, tmp_path):
    settings.random_init = True
    before = contrastive.load(settings, tmp_path / "work")
    result = contrastive.main(settings)
    assert (result["updates"], result["data"], result["dimensions"]) == (6, {"mine": {"rows": 8}}, 32)
    trained = SentenceTransformer(result["output_dir"], trust_remote_code=True)
    assert type(trained[0].model).__module__.startswith("transformers_modules.")  # by the code in the folder
    assert trained.max_seq_length == 64
    assert spread(trained) > spread(before) + 0.1
    written = json.loads((Path(result["output_dir"]) / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 4 knows no TokenizersBackend


def test_what_is_computed_in(settings, monkeypatch):
    """It is told, and part of the recipe: what was made in float32 is not taken for what a GPU makes in bfloat16."""
    monkeypatch.setattr(contrastive, "default_dtype", lambda: "bfloat16")
    for given, dtype in (("float32", "float32"), ("", "bfloat16")):
        seen = set()
        seeing = torch.nn.modules.module.register_module_forward_hook(
            lambda module, _, output, seen=seen: seen.add(output.dtype) if isinstance(module, torch.nn.Linear) else None
        )
        settings.dtype, settings.max_steps = given, 1
        with seeing:
            result = contrastive.main(settings)
        assert seen == {getattr(torch, dtype)}
        written = json.loads((Path(settings.output_dir) / "settings.json").read_text(encoding="utf-8"))
        assert written["dtype"] == result["dtype"] == dtype


def test_the_licence_of_the_model_goes_along(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\nbase_model: some/base\ntags: [theirs]\n---\n# Theirs\n")
    header = yaml.safe_load(contrastive.CARD.format(made_of=contrastive.made_of(str(tmp_path)), **CARD).split("---\n")[1])
    assert (header["license"], header["base_model"], "theirs" in header["tags"]) == ("mit", "some/base", False)
    header = yaml.safe_load(contrastive.CARD.format(made_of=contrastive.made_of("some/model"), **CARD).split("---\n")[1])
    assert (header.get("license"), header["base_model"]) == (None, "some/model")


def test_several_data_sets_negatives_and_dimensions(settings, tmp_path):
    """Cached InfoNCE with mined negatives, CoSENT, Matryoshka, from a folder of sentence-transformers; then as it was left."""
    rows = [(first, second, "5") for first, second in PAIRS] + [(PAIRS[i][0], PAIRS[i - 1][1], "1") for i in range(8)]
    path = write(tmp_path / "sts.jsonl", labelled(rows))
    settings.data.append(PairSet(name="sts", path=path, label="label", loss="cosent"))
    settings.matryoshka_dims, settings.mini_batch_num_tokens = [32, 8], 40
    settings.mined_negatives, settings.mined_range_min, settings.mined_margin = 2, 0, 0.0
    result = contrastive.main(settings)
    assert result["data"] == {"mine": {"rows": 8, "rows with mined negatives": 8}, "sts": {"rows": 16}}
    again = contrastive.Settings(**asdict(settings) | {"data": settings.data, "model": settings.output_dir, "max_steps": 1})
    again.output_dir, again.mined_negatives = str(tmp_path / "again"), 0
    with pytest.raises(InputError, match="cannot be loaded"):
        contrastive.main(again)
    again.trust_remote_code = True
    assert contrastive.main(again)["updates"] == 1


def test_gradient_caching_changes_nothing(settings, tmp_path):
    def gradients(tokens: int) -> list[torch.Tensor]:
        settings.mini_batch_num_tokens = tokens
        model = contrastive.load(settings, tmp_path)
        texts = [model.preprocess([pair[side] for pair in PAIRS]) for side in (0, 1)]
        contrastive.loss_of("infonce", model, settings)(texts, None).backward()
        return [parameter.grad for parameter in model.parameters()]

    for cached, whole in zip(gradients(30), gradients(0), strict=True):
        torch.testing.assert_close(cached, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("ratio", "highest"), [(0, 0), (0.5, 2), (1, 3)])
def test_the_learning_rate_rises_for_the_share_of_updates_that_was_asked_for(settings, monkeypatch, ratio, highest):
    settings.warmup_ratio, settings.max_steps, settings.logging_steps = ratio, 4, 1
    logs, mean_loss = [], contrastive.mean_loss
    monkeypatch.setattr(contrastive, "mean_loss", lambda log: logs.append(log) or mean_loss(log))
    contrastive.main(settings)
    rates = [entry["learning_rate"] for entry in logs[0] if "loss" in entry]
    assert len(rates) == 4
    assert rates.index(max(rates)) == highest


def test_a_killed_run_goes_on(settings, monkeypatch):
    settings.save_steps = 2
    whole = contrastive.main(settings)
    settings.output_dir += "_2"
    finished, save = [], contrastive.SentenceTransformerTrainer._save_checkpoint

    def killed(self, *arguments, **options):
        save(self, *arguments, **options)
        finished.append(self.state.global_step)
        if finished == [2, 4]:
            raise KeyboardInterrupt

    monkeypatch.setattr(contrastive.SentenceTransformerTrainer, "_save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        contrastive.main(settings)
    result = contrastive.main(settings)
    assert finished == [2, 4, 6]
    assert result["mean_loss"] == whole["mean_loss"]  # over all updates, not those since the kill
    first, second = (SentenceTransformer(folder["output_dir"], trust_remote_code=True) for folder in (whole, result))
    for mine, theirs in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_run_that_was_killed_behind_its_last_update(settings, monkeypatch):
    """No update is left, and the result is that of the whole."""
    settings.save_steps, settings.logging_steps = 2, 4
    whole = contrastive.main(settings)
    settings.output_dir += "_2"
    with monkeypatch.context() as patch:
        patch.setattr(contrastive, "made_of", None)
        with pytest.raises(TypeError):
            contrastive.main(settings)
    assert contrastive.main(settings)["mean_loss"] == whole["mean_loss"] > 0


def test_a_checkpoint_that_a_kill_left_unfinished_is_not_gone_on_from(tmp_path):
    assert contrastive.last_checkpoint(tmp_path / "none") is None
    for step, state in ((9, '{"global_step": 9}'), (10, '{"global_step": 10}'), (11, '{"global_st'), (12, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").touch()
        if state:
            (folder / "trainer_state.json").write_text(state)
    assert contrastive.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]


def test_what_is_wrong_is_named(settings, tmp_path):
    (empty := tmp_path / "empty").mkdir()
    for changes, said in (
        ({"max_length": 500}, "max_position_embeddings"),
        ({"matryoshka_dims": [64]}, "32 dimensions"),
        ({"batch_size": 9}, "less than a batch"),
        ({"model": str(empty)}, "no model.safetensors"),
        ({"data": [PairSet(name="mine", path=str(tmp_path / "none.jsonl"))]}, "no such file"),
    ):
        kept = {name: getattr(settings, name) for name in ("data", "held_out")}
        with pytest.raises(InputError, match=said) as error:
            contrastive.main(contrastive.Settings(**asdict(settings) | kept | changes))
        assert "\n" not in str(error.value)
        assert not Path(settings.output_dir).exists()
