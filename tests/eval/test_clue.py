"""Fine-tuning on a table: it learns what can be learned, and says what it did."""

import dataclasses
import json
import random
import shutil
import zipfile
from pathlib import Path

import pytest
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, ModernBertConfig, ModernBertModel

from zh_modernbert.eval import clue
from zh_modernbert.eval.kinds import running
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.tokenizer.loading import load_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

FIELDS = {
    "task",
    "split",
    "model",
    "primary_metric",
    "metrics",
    "num_examples",
    "seed",
    "hyperparameters",
    "notes",
    "runtime_seconds",
}


@pytest.fixture(scope="module")
def model(publish_random) -> str:
    return str(publish_random("clue"))


def write_table(path: Path, count: int, seed: int, separator: str = "\t") -> Path:
    """Reviews that are good or bad by one character; three in five are good."""
    generator, lines = random.Random(seed), [separator.join(("label", "text"))]
    for index in range(count):
        good = index % 5 < 3
        before, after = ("".join(generator.choices("这那本部书店人们说了", k=generator.randint(1, 4))) for _ in range(2))
        lines.append(separator.join(("pos" if good else "neg", before + ("好" if good else "坏") + after)))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def settings(model, tmp_path) -> clue.Settings:
    return clue.Settings(
        model=model,
        trust_remote_code=True,
        train_file=str(write_table(tmp_path / "reviews.tsv", 240, seed=0)),
        validation_file=str(write_table(tmp_path / "dev.tsv", 60, seed=1)),
        max_length=32,
        learning_rate=3e-3,
        num_train_epochs=5,
        batch_size=16,
        results_dir=str(tmp_path / "results"),
    )


@pytest.mark.parametrize("random_init", [False, True])
def test_it_learns_what_is_plain_to_see(settings, random_init):
    settings.random_init = random_init
    result = clue.main(settings)
    assert result["metrics"]["accuracy"] > 90
    assert result["metrics"]["macro_f1"] > 90
    assert result["metrics"]["majority_class"] == 60.0
    assert ("random" in result["notes"]) == random_init


def test_a_finished_run_of_another_kind_is_another_run(settings, tmp_path):
    table = tmp_path / "numbers.tsv"
    table.write_text("label\ttext\n" + "".join(f"{i % 2}\t{'好' * (i + 1)}\n" for i in range(4)), encoding="utf-8")
    settings.train_file = settings.validation_file = str(table)
    settings.num_train_epochs = 1
    assert clue.main(settings)["primary_metric"] == "accuracy"
    settings.kind = "regression"
    assert "spearman" in clue.main(settings)["metrics"]


def test_a_model_is_saved_though_its_run_was_done_before(settings, tmp_path):
    settings.num_train_epochs, settings.max_train_examples, settings.max_eval_examples = 1, 4, 4
    settings.output_dir = str(tmp_path / "fine-tuned")
    clue.main(settings)
    shutil.rmtree(settings.output_dir)
    clue.main(settings)
    assert (tmp_path / "fine-tuned" / "model.safetensors").is_file()


def test_the_result_file(settings, tmp_path):
    settings.num_train_epochs, settings.max_train_examples, settings.seed = 1, 20, 7
    settings.output_dir = str(tmp_path / "fine-tuned")
    settings.dtype, settings.name = "bfloat16", "books"
    result = clue.main(settings)
    assert json.loads((tmp_path / "results" / "books-validation-7.json").read_text(encoding="utf-8")) == result
    assert result.keys() == FIELDS
    assert (result["task"], result["split"], result["seed"], result["model"]) == ("books", "validation", 7, settings.model)
    assert result["num_examples"] == 60
    assert result["primary_metric"] in result["metrics"]
    assert all(0 <= value <= 100 for value in result["metrics"].values())
    expected = {"max_length": 32, "num_train_examples": 20, "learning_rate": 3e-3, "num_train_epochs": 1, "dtype": "bfloat16"}
    assert expected.items() <= result["hyperparameters"].items()
    config = json.loads((tmp_path / "fine-tuned" / "config.json").read_text())
    assert config["id2label"] == {"0": "neg", "1": "pos"}


def write_chnsenticorp(folder: Path) -> None:
    """Its names: train.tsv, dev.tsv and test.tsv, with label and text_a, and labels 0 and 1."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed in (("train.tsv", 0), ("dev.tsv", 1), ("test.tsv", 2)):
        text = write_table(folder / name, 20, seed).read_text(encoding="utf-8")
        for old, new in (("label\ttext", "label\ttext_a"), ("pos\t", "1\t"), ("neg\t", "0\t")):
            text = text.replace(old, new)
        (folder / name).write_text(text, encoding="utf-8")


def test_a_task_has_its_files_columns_and_settings(settings, tmp_path):
    write_chnsenticorp(tmp_path / "chnsenticorp")
    task = clue.Settings(
        model=settings.model,
        trust_remote_code=True,
        task=["chnsenticorp"],
        data_dir=str(tmp_path),
        split="test",
        max_length=32,
        results_dir=settings.results_dir,
    )
    result = clue.main(task)
    assert (result["task"], result["split"], result["num_examples"]) == ("chnsenticorp", "test", 20)
    expected = {"learning_rate": 2e-5, "num_train_epochs": 3, "batch_size": 32, "weight_decay": 0.01}
    assert expected.items() <= result["hyperparameters"].items()
    assert (Path(settings.results_dir) / "chnsenticorp-test-42.json").is_file()


def test_the_same_seed_gives_the_same_scores(settings):
    """Of a model in the middle of learning, where any difference shows."""
    settings.num_train_epochs, settings.max_train_examples = 1, 100
    assert clue.main(settings)["metrics"] == clue.main(settings)["metrics"]


def test_a_second_text_is_read(settings, tmp_path):
    """The label is in the second text alone."""
    for path in (settings.train_file, settings.validation_file):
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        paired = ["label\tquestion\tanswer", *(line.replace("\t", "\t这本书怎么样？\t") for line in lines[1:])]
        Path(path).write_text("\n".join(paired) + "\n", encoding="utf-8")
    settings.text_column, settings.text_pair_column = "question", "answer"
    assert clue.main(settings)["metrics"]["accuracy"] > 90


def refused(settings: clue.Settings) -> str:
    with pytest.raises(InputError) as error:
        clue.main(dataclasses.replace(settings))  # a new one, so that its bounds are checked
    assert "\n" not in str(error.value)
    assert not Path(settings.results_dir).exists()
    return str(error.value)


def test_a_label_that_training_has_not(settings):
    with open(settings.validation_file, "a", encoding="utf-8") as file:
        file.write("neutral\t一般\n")
    error = refused(settings)
    assert f"{settings.validation_file}, line 62" in error
    assert "'neutral'" in error


def test_one_label_only(settings):
    path = Path(settings.train_file)
    path.write_text(path.read_text(encoding="utf-8").replace("neg\t", "pos\t"), encoding="utf-8")
    assert "only the label 'pos'" in refused(settings)


def change(settings: clue.Settings, **changes) -> clue.Settings:
    for name, value in changes.items():
        setattr(settings, name, value)
    return settings


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"task": ["chnsenticorp"]}, "either"),
        ({"train_file": "", "validation_file": ""}, "either"),
        ({"validation_file": ""}, "together"),
        ({"train_file": "", "validation_file": "", "task": ["chnsenticorb"]}, "chnsenticorb"),
        ({"train_file": "", "validation_file": "", "task": ["chnsenticorp"], "split": "train2"}, "train2"),
        ({"train_file": "", "validation_file": "", "task": ["chnsenticorp"], "data_dir": "nowhere"}, "nowhere"),
        ({"train_file": "nowhere.tsv"}, "nowhere.tsv"),
        ({"train_file": "", "validation_file": "", "task": ["chnsenticorp"], "name": "mine"}, "leave out --name"),
        ({"name": "a/b"}, "part of a file's name"),
        ({"text_column": "review"}, "review"),
        ({"label_column": "stars"}, "stars"),
        ({"text_pair_column": "question"}, "question"),
        ({"max_length": 129}, "max_position_embeddings (128)"),
        ({"max_length": 2}, "max_length is 2; it must be 3 or more"),
        ({"model": "nowhere/at-all"}, "nowhere/at-all"),
        ({"batch_size": -1}, "batch_size"),
        ({"max_length": -1}, "max_length"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be(settings, changes, named):
    assert named in refused(change(settings, **changes))


def test_remote_code_is_not_run_unasked(settings):
    settings.trust_remote_code = False
    assert settings.model in refused(settings)


# --- tables of other kinds ---

WORDS = {"人": ["张三", "李四", "王五"], "地": ["北京", "上海", "南京"]}


def write_lines(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def spans_row(generator: random.Random) -> dict:
    person, place = (generator.choice(WORDS[kind]) for kind in WORDS)
    text = f"{person}在{place}研究天气"
    return {"text": text, "entities": [[0, 2, "人"], [3, 5, "地"]]}


def choice_row(generator: random.Random) -> dict:
    names = generator.sample(WORDS["人"], 2)
    return {"text": f"{names[0]}和{names[1]}", "question": "谁好？", "choices": ["好人", "坏人"], "label": "好人"}


def cloze_row(generator: random.Random) -> dict:
    return {"content": f"{generator.choice(WORDS['人'])}#idiom#了", "candidates": ["来", "去", "好"], "answer": 1}


def words_row(generator: random.Random) -> str:
    return " ".join(generator.choices(WORDS["人"] + WORDS["地"], k=4))


def tag_row(generator: random.Random) -> str:
    return "张 B-人\n三 I-人\n在 O\n北 B-地\n京 I-地\n"


@pytest.mark.parametrize(
    ("kind", "make", "suffix", "least"),
    [
        ("tagging", spans_row, ".jsonl", 60),
        ("tagging", tag_row, ".txt", 90),
        ("segmentation", words_row, ".txt", 60),
        ("choice", choice_row, ".jsonl", 90),
        ("cloze", cloze_row, ".jsonl", 90),
    ],
    ids=["spans", "tags", "words", "choice", "cloze"],
)
def test_a_table_of_every_kind_is_learned(settings, tmp_path, kind, make, suffix, least):
    for name, seed, count in (("train", 0, 96), ("dev", 1, 16)):
        generator = random.Random(seed)
        rows = [make(generator) for _ in range(count)]
        if suffix == ".jsonl":
            write_lines(tmp_path / f"{name}{suffix}", rows)
        else:
            (tmp_path / f"{name}{suffix}").write_text("\n".join(rows) + "\n", encoding="utf-8")
    settings.kind, settings.num_train_epochs = kind, 3
    settings.train_file, settings.validation_file = (str(tmp_path / f"{name}{suffix}") for name in ("train", "dev"))
    result = clue.main(settings)
    assert result["primary_metric"] == ("accuracy" if kind in ("choice", "cloze") else "f1")
    assert result["metrics"][result["primary_metric"]] > least


# --- stock models ---


def save_stock(stages: Path, folder: Path, model_class, config_class, **shape) -> str:
    tokenizer = load_tokenizer(stages / "tokenizer")
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "cls_token_id", "sep_token_id", "bos_token_id")}
    model_class(config_class(vocab_size=len(tokenizer), **shape, **special)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize("kind", ["classification", "tagging", "choice"])
@pytest.mark.parametrize("stock", [(BertModel, BertConfig), (ModernBertModel, ModernBertConfig)], ids=["bert", "modernbert"])
def test_stock_models_go_the_same_way(settings, stages, tmp_path, kind, stock):
    settings.model, settings.trust_remote_code = save_stock(stages, tmp_path / "stock", *stock, **SHAPE), False
    settings.kind, settings.num_train_epochs, settings.max_train_examples = kind, 1, 32
    make = {"tagging": spans_row, "choice": choice_row}.get(kind)
    if make:
        rows = [make(random.Random(seed)) for seed in range(40)]
        settings.train_file = settings.validation_file = str(write_lines(tmp_path / "rows.jsonl", rows))
    assert clue.main(settings)["num_examples"] > 30


def test_a_model_without_the_head(settings, stages, tmp_path):
    shape = {"n_embd": 32, "n_layer": 1, "n_head": 2}
    settings.model = save_stock(stages, tmp_path / "gpt2", GPT2Model, GPT2Config, **shape)
    settings.kind = "choice"
    rows = [choice_row(random.Random(0))] * 2
    settings.train_file = settings.validation_file = str(write_lines(tmp_path / "c.jsonl", rows))
    with pytest.raises(InputError, match="a model of type 'gpt2' has no head that AutoModelForMultipleChoice loads"):
        clue.main(settings)


# --- tasks by name ---


def write_benchmark(folder: Path) -> None:
    """A little of some tasks, in the forms of their releases, with tests that have no labels."""
    write_chnsenticorp(folder / "chnsenticorp")
    generator = random.Random(0)
    for split in ("train", "dev", "test", "test1.1"):
        unlabelled = split.startswith("test")

        def known(**labels):
            return {} if unlabelled else labels  # noqa: B023  # used within the turn

        tnews = [{"id": i, "sentence": "天气", **known(label=("104", "116")[i % 2])} for i in range(6)]
        write_lines(folder / "tnews" / f"{split}.json", tnews)
        c3 = [
            [["张三来了"], [{"question": "谁？", "choice": ["张三", "李四"], "id": i, **known(answer="张三")}], str(i)]
            for i in range(6)
        ]
        for part in ("", "d-", "m-"):
            path = folder / "c3" / f"{part}{split}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(c3, ensure_ascii=False), encoding="utf-8")
        chid = [{"content": [f"他#idiom{2 * i}#我#idiom{2 * i + 1}#"], "candidates": ["来", "去", "好"]} for i in range(6)]
        write_lines(folder / "chid" / f"{split}.json", chid)
        (folder / "chid" / f"{split}_answer.json").write_text(json.dumps({f"#idiom{i}#": i % 2 for i in range(12)}))
        rows = [spans_row(generator) for _ in range(6)]
        cluener = [
            {"id": i, "text": row["text"], **known(label={"name": {row["text"][:2]: [[0, 1]]}})} for i, row in enumerate(rows)
        ]
        write_lines(folder / "ner_cluener2020" / f"{split}.json", cluener)
    (folder / "chid" / "test1.1_answer.json").unlink()


@pytest.fixture
def benchmark(settings, tmp_path) -> clue.Settings:
    write_benchmark(tmp_path / "data")
    return clue.Settings(
        model=settings.model,
        trust_remote_code=True,
        task=["available"],
        data_dir=str(tmp_path / "data"),
        max_length=48,
        num_train_epochs=1,
        predictions=True,
        results_dir=settings.results_dir,
    )


def test_all_that_is_there_is_scored_and_predicted(benchmark, monkeypatch):
    found = clue.main(benchmark)["results"]
    assert {*found} == {"chnsenticorp", "tnews", "c3", "chid", "cluener"}
    results = Path(benchmark.results_dir)
    assert {path.name for path in results.glob("*.json")} == {f"{name}-dev-42.json" for name in found}
    predicted = {path.name: path.read_text(encoding="utf-8") for path in (results / "predictions-42").glob("*.json")}
    assert {*predicted} == {"tnews11_predict.json", "c311_predict.json", "chid11_predict.json", "cluener_predict.json"}
    tnews, c3, chid, cluener = (
        [json.loads(line) for line in predicted[f"{name}_predict.json"].splitlines()]
        for name in ("tnews11", "c311", "chid11", "cluener")
    )
    assert [line["id"] for line in tnews] == [*range(6)]
    assert all(line["label"] in clue.TASKS["tnews"].labels for line in tnews)
    assert all(line["label"] in (0, 1) for line in c3)
    assert chid[0].keys() == {f"#idiom{i}#" for i in range(12)}
    assert all(chid[0][f"#idiom{i}#"] != chid[0][f"#idiom{i + 1}#"] for i in range(0, 12, 2))  # of one passage
    assert all(line.keys() == {"id", "text", "label"} for line in cluener)
    with zipfile.ZipFile(results / "predictions-42.zip") as archive:
        assert {*archive.namelist()} == {*predicted}
    # Of a part of training, the same files are no official ones; and another model's are refused before it is trained.
    benchmark.task, benchmark.max_train_examples = ["tnews"], 4
    with pytest.raises(InputError, match=r"tnews-dev-42\.json: a result whose data is"):
        clue.main(benchmark)
    (results / "tnews-dev-42.json").unlink()
    clue.main(benchmark)
    official, partial = (results / "predictions-42" / name for name in ("tnews11_predict.json", "tnews/tnews11_predict.json"))
    assert official.read_text(encoding="utf-8") == predicted[official.name]
    assert partial.is_file()
    with monkeypatch.context() as patch:
        patch.setattr(running, "model_hash_of", lambda *_: "7")  # of another training
        with pytest.raises(InputError, match=r"predictions of (.*) with model_hash .*, not of \1 with model_hash 7; give"):
            clue.main(benchmark)
    benchmark.random_init, benchmark.split = True, "dev"
    for path in results.glob("*.json"):
        path.unlink()
    with pytest.raises(InputError, match=r"predictions-42: predictions of .*, not of .* \(random weights\)"):
        clue.main(benchmark)


def test_what_is_done_is_not_repeated_and_what_fails_stops_no_other(benchmark, monkeypatch):
    benchmark.task, benchmark.seeds, benchmark.predictions = ["tnews", "iflytek", "c3"], 2, False
    write_lines(Path(benchmark.data_dir) / "tnews" / "dev.json", [{"sentence": "好", "label": "105"}])
    with pytest.raises(InputError) as error:
        clue.main(benchmark)
    assert "2 of 3 tasks failed" in str(error.value)
    assert "dev.json, line 1: unknown label '105'" in str(error.value)
    assert "iflytek needs train.json, dev.json" in str(error.value)
    written = {path.name for path in Path(benchmark.results_dir).glob("*.json")}
    assert written == {"c3-dev-42.json", "c3-dev-43.json"}
    benchmark.task = ["c3"]
    monkeypatch.setattr(running, "fine_tune", lambda *_, **__: pytest.fail("it was trained again"))
    again = clue.main(benchmark)["results"]["c3"]
    assert again["seeds"] == [42, 43]
    assert again["best"] <= again["best_on_dev"]

    def train(*_, **__):
        raise InputError("trained again")

    # But by other code, or other versions of libraries, they are other runs.
    monkeypatch.setattr(running, "fine_tune", train)
    known = running.made_by("choice")
    for change in ({"torch": "9.0"}, {"transformers": "9.0"}, {"code": "other"}):
        monkeypatch.setattr(running, "made_by", lambda _, made=known | change: made)
        with pytest.raises(InputError, match="trained again"):
            clue.main(benchmark)


def test_bad_rows_may_be_skipped(benchmark):
    path = Path(benchmark.data_dir) / "tnews" / "dev.json"
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"sentence": "", "label": "104"}\n')
    benchmark.task, benchmark.skip_bad_rows = ["tnews"], True
    result = clue.main(benchmark)
    assert result["num_examples"] == 6
    assert f"bad rows left out: 1 ({path}, line 7: text is empty); only 6 of 7 examples of dev" in result["notes"]
    assert (Path(benchmark.results_dir) / "predictions-42" / "tnews" / "tnews11_predict.json").is_file()  # not official


def test_a_grid(benchmark):
    benchmark.task, benchmark.grid, benchmark.learning_rate, benchmark.predictions = ["chnsenticorp"], "clue", 1e-3, False
    result = clue.main(benchmark)
    assert result["hyperparameters"]["settings_tried"] == 3  # batches of 16, 32 and 64 at the given rate
    assert len([*(Path(benchmark.results_dir) / "runs").iterdir()]) == 3
