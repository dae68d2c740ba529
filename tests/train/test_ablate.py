"""Ablations: every run once, scored on the same characters, and a table that adds up."""

import json
import statistics
from pathlib import Path

import pytest
from conftest import make_texts

from zh_modernbert.eval import pseudo_perplexity
from zh_modernbert.train import ablate, pretrain
from zh_modernbert.train.common import cli
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.corpus.held_out import read_held_out

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def settings(stages, tmp_path) -> ablate.Settings:
    """Two variants, two seeds, three updates; the second variant goes on from the first."""
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in make_texts(40, seed=7)]
    (tmp_path / "held_out.jsonl").write_text("\n".join(lines), encoding="utf-8")
    common = f"--data_dir {stages / 'packed'} --per_device_batch_size 4 --max_steps 3 --logging_steps 3"
    return ablate.Settings(
        output_dir=str(tmp_path / "ablation"),
        variants={
            "first": f"{common} --model_config {stages / 'model.json'}",
            "second": f"{common} --init_from {tmp_path / 'ablation'}/first-{{seed}}/model --learning_rate 1e-2",
        },
        text=[str(tmp_path / "held_out.jsonl")],
        seeds=[0, 1],
        characters=[12, 30],
        max_documents=3,
    )


def test_every_run_once_and_a_table_that_adds_up(settings, monkeypatch):
    result = ablate.main(settings)
    folder = Path(settings.output_dir)
    written = json.loads((folder / "ablation.json").read_text())
    assert (result["runs"], len(result["rows"])) == (4, 4)
    for row in result["rows"]:
        scores = written["scores"][row["variant"]][str(row["characters"])]
        assert len(set(scores)) == 2  # a seed is another run
        assert (row["mean"], row["std"]) == pytest.approx((statistics.mean(scores), statistics.stdev(scores)))
        assert (
            f"| {row['variant']} | {row['characters']} | {row['mean']:.3f} ± {row['std']:.3f} |"
            in (folder / "ablation.md").read_text()
        )
    for length in settings.characters:
        files = list(folder.glob(f"scores-{length}-*/first-*-all-0.json"))
        assert len(files) == 2
        assert all(json.loads(file.read_text())["metrics"]["characters"] == 3 * length for file in files)
    assert (folder / "ablation.png").stat().st_size > 5000
    assert json.loads((folder / "first-1" / "settings.json").read_text())["seed"] == 1
    # Once more, nothing is computed.
    monkeypatch.setattr(pretrain, "update", None)
    monkeypatch.setattr(pseudo_perplexity, "main", None)
    assert ablate.main(settings) == result
    (folder / "first-1" / "model" / "config.json").touch()
    with pytest.raises(TypeError):  # a model newer than its score is scored again
        ablate.main(settings)


def test_what_is_scored_is_cut_alike(settings):
    documents = read_held_out(settings.text, 0)
    cut = ablate.cut_documents(documents, 30, 5)
    assert [len(document["text"]) for document in cut] == [30] * 5
    places = [[document["id"] for document in documents].index(document["id"]) for document in cut]
    assert places == sorted(set(places))
    assert places[-1] > len(documents) * 0.7  # from all over the text
    with pytest.raises(InputError, match="1999"):
        ablate.cut_documents(documents, 1999, 5)


def test_a_table_of_known_numbers():
    rows = ablate.summarise({"a": {8: [1.0, 2.0, 3.0]}, "b": {8: [1.5, 1.5, 1.5]}, "c": {8: [2.5, 3.5, 4.5]}})
    assert [(row["mean"], row["std"]) for row in rows] == [(2, 1), (1.5, 0), (3.5, 1)]
    assert [(row["difference_mean"], row["difference_std"]) for row in rows] == [(0, 0), (-0.5, 1), (1.5, 0)]
    assert ablate.table(rows).splitlines()[2:] == [
        "| a | 8 | 2.000 ± 1.000 | +0.000 ± 0.000 | 3 |",
        "| b | 8 | 1.500 ± 0.000 | -0.500 ± 1.000 | 3 |",
        "| c | 8 | 3.500 ± 1.000 | +1.500 ± 0.000 | 3 |",
    ]
    assert ablate.table(ablate.summarise({"a": {8: [4.0]}})).splitlines()[2:] == ["| a | 8 | 4.000 | +0.000 | 1 |"]


def test_a_bad_variant_is_named_before_any_run(settings):
    settings.variants["third"] = settings.variants["first"] + " --maskin token"
    with pytest.raises(InputError, match=r"variant third: .*maskin"):
        ablate.main(settings)
    assert not Path(settings.output_dir).exists()


def test_the_preset_varies_one_thing_at_a_time(monkeypatch):
    monkeypatch.chdir(ROOT)
    preset = cli.parse(ablate.Settings, ["train/configs/tiny/ablate.yaml"], "ablate")
    runs = {name: cli.recipe_of(ablate.run_settings(preset, name, 1)) for name in preset.variants}
    first = runs["system_a"]
    changed = {name: {field for field in first if recipe[field] != first[field]} for name, recipe in runs.items()}
    assert changed["system_a"] == set()
    assert changed["vocabulary_21k"] == {"data_dir"}
    assert changed["token_masking"] == {"masking"}
    assert changed["fixed_15"] == changed["fixed_30"] == {"mlm_probability"}
    assert changed["rope_160k"] == {"global_rope_theta"}
    assert changed["all_global"] == {"model_config"}
    assert changed["wsd"] == {"schedule", "warmup_lr_ratio", "num_decay_steps"}
    two, more = runs["stage_two"], runs["more_of_stage_one"]
    assert {field for field in two if two[field] != more[field]} == {"data_dir", "seq_len"}  # and the rows that make an update
    assert two["init_from"] == f"{preset.output_dir}/system_a-1/model"
    models = [json.loads(Path(name).read_text()) for name in (first["model_config"], runs["all_global"]["model_config"])]
    assert models[0] | {"global_attn_every_n_layers": 1} == models[1]
