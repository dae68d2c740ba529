"""Similarity and retrieval against the definition: the mean over tokens, and its cosine."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from zh_modernbert.eval import sts
from zh_modernbert.modeling_zh_modernbert import ZhModernBertModel
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.corpus.retrieval import read_retrieval
from zh_modernbert.train.tokenizer.loading import load_tokenizer

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")

PAIRS = [
    ("老师研究经济", "学生研究历史", 3),
    ("老师研究经济", "老师研究经济发展", 5),
    ("北京的会议", "明天的天气预报", 0),
    ("图书馆", "圖書館", 4),
    ("鸡蛋和面条", "北京的会议", 1),
]


@pytest.fixture(scope="module")
def model_dir(publish_random) -> Path:
    return publish_random("similarity", local_attention=16, initializer_range=0.3)


@pytest.fixture
def pairs(tmp_path) -> str:
    lines = [json.dumps({"a": first, "b": second, "score": score}, ensure_ascii=False) for first, second, score in PAIRS]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return str(tmp_path / "mine.jsonl")


@pytest.fixture
def settings(model_dir, pairs, tmp_path) -> sts.Settings:
    return sts.Settings(
        model=str(model_dir),
        trust_remote_code=True,
        pairs_file=pairs,
        text_column="a",
        text_pair_column="b",
        label_column="score",
        max_length=128,
        results_dir=str(tmp_path / "results"),
    )


@torch.inference_mode()
def cosines(model_dir: Path, max_length: int = 128) -> list[float]:
    tokenizer, model = load_tokenizer(model_dir), ZhModernBertModel.from_pretrained(model_dir).eval()

    def embed(text: str) -> torch.Tensor:
        inputs = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
        return model(**inputs).last_hidden_state[0].mean(0)

    return [float(torch.cosine_similarity(embed(first), embed(second), dim=0)) for first, second, _ in PAIRS]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_computed_in(settings, dtype, monkeypatch):
    settings.dtype, load, seen = dtype, sts.load, []

    def look(given):
        model = load(given)
        seen.append({parameter.dtype for parameter in model.parameters()})
        return model

    monkeypatch.setattr(sts, "load", look)
    assert sts.main(settings)["hyperparameters"]["dtype"] == dtype
    assert seen == [{getattr(torch, dtype)}]


@pytest.mark.parametrize("max_length", [128, 5])
def test_similarity(settings, model_dir, max_length, tmp_path):
    settings.max_length = max_length
    result = sts.main(settings)
    expected, labels = cosines(model_dir, max_length), [score for _, _, score in PAIRS]
    metrics = result["metrics"]
    assert metrics["pearson"] == pytest.approx(pearsonr(expected, labels).statistic, abs=1e-4)
    assert metrics["spearman"] == pytest.approx(spearmanr(expected, labels).statistic, abs=1e-4)
    shared = [4 / 12, 12 / 14, 2 / 12, 0, 0]  # Dice, of characters
    assert metrics["overlap_spearman"] == pytest.approx(spearmanr(shared, labels).statistic, abs=1e-4)
    assert (result["task"], result["split"], result["hyperparameters"]["scorer"]) == ("mine_similarity", "test", "cosine")
    assert json.loads((tmp_path / "results" / "mine_similarity-test-0.json").read_text(encoding="utf-8")) == result


def test_a_folder_of_sentence_transformers(settings, model_dir, tmp_path):
    """Whose pooling is its own: here, the first token."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    bare = SentenceTransformer(str(model_dir), trust_remote_code=True)
    modules = [bare[0], Pooling(32, pooling_mode="cls")]
    SentenceTransformer(modules=modules).save_pretrained(str(tmp_path / "pooled"))
    settings.model = str(tmp_path / "pooled")
    pooled = sts.main(settings)["metrics"]
    settings = replace(settings, model=str(model_dir), results_dir=str(tmp_path / "bare"))
    assert pooled["pearson"] != sts.main(settings)["metrics"]["pearson"]


def test_through_mteb(settings):
    """The same figures, by a task class that loads local pairs; nothing is downloaded, and nothing is kept in a cache."""
    pytest.importorskip("mteb", reason="mteb is not installed: pip install '.[mteb]'")
    expected = sts.main(settings)["metrics"]
    settings.through = "mteb"
    assert sts.main(settings)["metrics"] == pytest.approx(expected, abs=1e-4)


def test_retrieval_of_pairs(settings):
    """Three first texts have a second text that is relevant, of five."""
    settings.retrieval, settings.min_relevance = True, 3
    result = sts.main(settings)
    assert (result["task"], result["num_examples"], result["notes"]) == ("mine_retrieval", 2, "5 documents")
    assert result["metrics"]["recall_10"] == 100
    assert 0 < result["metrics"]["mrr_10"] <= 100


def write_t2ranking(folder: Path, qrels: str) -> list[str]:
    """Files with T2Ranking's headers: a document that is the query itself is its answer."""
    texts = [first for first, _, _ in PAIRS[1:]]
    files = {
        "queries.tsv": "qid\ttext\n" + "".join(f"{i}\t{text}\n" for i, text in enumerate(texts)),
        "collection.tsv": "pid\ttext\n" + "".join(f"{10 + i}\t{text}\n" for i, text in enumerate(texts)),
        "qrels.tsv": qrels,
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [str(folder / name) for name in files]


@pytest.mark.parametrize(
    "qrels", ["qid\tpid\n0\t10\n1\t11\n2\t12\n", "qid\t-\tpid\trel\n0\t0\t10\t3\n1\t0\t11\t2\n2\t0\t12\t2\n3\t0\t10\t1\n"]
)
def test_retrieval_in_t2rankings_form(settings, tmp_path, qrels):
    settings.pairs_file, settings.name, settings.min_relevance = "", "t2ranking", 2
    settings.queries_file, settings.corpus_file, settings.qrels_file = write_t2ranking(tmp_path, qrels)
    result = sts.main(settings)
    assert result["metrics"]["ndcg_10"] == pytest.approx(100)
    assert (result["task"], result["split"], result["num_examples"]) == ("t2ranking", "dev", 3)


@pytest.mark.parametrize(
    ("qrels", "said"),
    [("0\t99\n", "line 1.*'99'"), ("0\t-\t10\tx\n", "line 1.*'x'"), ("0\n", "line 1"), ("0\t-\t10\t1\n", "min_relevance")],
)
def test_qrels_that_are_none(tmp_path, qrels, said):
    with pytest.raises(InputError, match=said):
        read_retrieval(*write_t2ranking(tmp_path, qrels), 2)


def test_tasks(settings, tmp_path):
    """By their official files; a split that is not asked for is the first with labels."""
    settings.pairs_file, settings.task, settings.data_dir = "", ["simclue", "sts_b", "bustm"], str(tmp_path)
    for folder, name, line in (
        ("simclue", "test_public.json", '{"sentence1": "%s", "sentence2": "%s", "label": "%s"}'),
        ("sts_b_zh", "sts-b-dev.txt", "%s\t%s\t%s"),
        ("oppo_xiaobu_bustm", "fewclue/test_public.json", '{"sentence1": "%s", "sentence2": "%s", "label": "%s"}'),
    ):
        (path := tmp_path / folder / name).parent.mkdir(parents=True)
        rows = [(first, second, int(score > 2)) for first, second, score in PAIRS]
        path.write_text("\n".join(line % row for row in rows) + "\n", encoding="utf-8")
    found = [(result["task"], result["split"]) for result in sts.main(settings)["results"]]
    assert found == [("simclue_similarity", "test"), ("sts_b_similarity", "dev"), ("bustm_similarity_substitute", "dev")]


def refused(settings: sts.Settings, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        sts.main(settings)
    assert "\n" not in str(error.value)


def test_what_is_wrong_is_named(settings, model_dir, tmp_path):
    settings.max_length = 129
    refused(settings, "max_position_embeddings")
    settings.max_length, settings.label_column = 128, "b"
    refused(settings, r"mine\.jsonl, line 1: .*no number")
    settings.label_column = "score"
    rows = Path(settings.pairs_file).read_text(encoding="utf-8").splitlines()
    (tmp_path / "one.jsonl").write_text(rows[0] + "\n", encoding="utf-8")
    refused(replace(settings, pairs_file=str(tmp_path / "one.jsonl")), "a correlation needs two different")
    refused(replace(settings, name="a/b"), "part of a file's name")
    settings.model = str(tmp_path)
    refused(settings, "no model.safetensors")
    settings.task = ["none"]
    refused(settings, "give either")
    settings.pairs_file = ""
    refused(settings, "unknown task 'none'")
    settings.task, settings.data_dir = ["simclue"], str(tmp_path / "none")
    refused(settings, "simclue")


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")


def test_retrieval_of_long_documents(settings, tmp_path):
    """MLDR's files and NanoMLDR's, with the same texts: a document is to be found by what it begins with."""
    documents = {str(number): f"第{number}篇：" + text * 9 for number, (text, _, _) in enumerate(PAIRS)}
    queries = {f"q-{number}": text for number, text in documents.items()}
    write_lines(tmp_path / "mldr-v1.0-zh" / "corpus.jsonl", [{"docid": name, "text": text} for name, text in documents.items()])
    write_lines(
        tmp_path / "mldr-v1.0-zh" / "test.jsonl",
        [
            {"query_id": name, "query": text, "positive_passages": [{"docid": name[2:], "text": text}]}
            for name, text in queries.items()
        ],
    )
    for part, texts in (("corpus", documents), ("queries", queries)):
        write_lines(tmp_path / "nanomldr-zh" / f"{part}.jsonl", [{"_id": name, "text": text} for name, text in texts.items()])
    write_lines(tmp_path / "nanomldr-zh" / "qrels.jsonl", [{"query-id": name, "corpus-id": name[2:]} for name in queries])
    changed = replace(settings, pairs_file="", task=["mldr_zh", "nanomldr_zh"], data_dir=str(tmp_path))
    first, second = sts.main(changed)["results"]
    assert (first["task"], first["split"], first["num_examples"]) == ("mldr_zh_long_128", "test", 5)
    assert second["task"] == "nanomldr_zh_long_128"
    assert first["metrics"] == second["metrics"]
    assert first["metrics"]["ndcg_10"] == 100
    sts.main(replace(changed, max_length=64))
    assert len([*Path(settings.results_dir).glob("mldr_zh_long_*.json")]) == 2
    write_lines(tmp_path / "nanomldr-zh" / "qrels.jsonl", [{"query-id": "q-0", "corpus-id": "99"}])
    with pytest.raises(InputError, match="'99'"):
        sts.main(replace(changed, task=["nanomldr_zh"]))
