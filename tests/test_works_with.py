"""Libraries that stand on transformers take a published folder, and compute with it what the model computes alone.

Each has one test, skipped where the library is not installed. docs/works_with.md has the versions that were tried, and names
the files with the tests of Trainer, PEFT, sentence-transformers, mteb, ONNX Runtime, `torch.compile` and `torch.export`.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import rjieba
import torch
from transformers import AutoModel, AutoTokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = ["老师研究历史", "北京的会议，但是没有人知道。" * 4, "鸡", "圖書館計劃參加北京的會議。"]


def needs(*modules: str):
    missing = [module for module in modules if find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="module")
def folder(publish_random) -> Path:
    return publish_random("works", initializer_range=0.3)


@pytest.fixture(scope="module")
def stock(publish_random) -> Path:
    return publish_random("stock", "modernbert", initializer_range=0.3, norm_type="layernorm")


def means(folder: Path, normalise: bool = False) -> np.ndarray:
    """`(4, H)`: the mean over the tokens of each text, computed alone."""
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    with torch.inference_mode():
        vectors = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in TEXTS]
    stacked = torch.stack(vectors)
    return (torch.nn.functional.normalize(stacked) if normalise else stacked).numpy()


def assert_same(vectors, expected):
    np.testing.assert_allclose(np.asarray(vectors), expected, rtol=1e-4, atol=1e-5)


def encoder(folder: Path):
    """The model for libraries that take one of sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")


# --- our form, with trust_remote_code ---


@needs("setfit")
def test_setfit(folder, tmp_path):
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    rows = Dataset.from_dict({"text": TEXTS * 2, "label": [0, 1, 0, 1] * 2})
    model = SetFitModel.from_pretrained(str(folder), trust_remote_code=True, device="cpu")
    assert_same(model.encode(TEXTS), means(folder))
    arguments = TrainingArguments(str(tmp_path / "run"), max_steps=2, batch_size=4, report_to="none", show_progress_bar=False)
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    predicted = model.predict(TEXTS)
    assert set(predicted.tolist()) <= {0, 1}
    model.save_pretrained(str(tmp_path / "saved"))
    again = SetFitModel.from_pretrained(str(tmp_path / "saved"), trust_remote_code=True, device="cpu")
    assert_same(again.encode(TEXTS), model.encode(TEXTS))
    assert torch.equal(again.predict(TEXTS), predicted)


@needs("keybert")
def test_keybert(folder):
    from keybert import KeyBERT
    from sklearn.feature_extraction.text import CountVectorizer

    words = CountVectorizer(tokenizer=rjieba.cut, token_pattern=None)
    found = KeyBERT(encoder(folder)).extract_keywords(TEXTS[1], vectorizer=words, top_n=3)
    assert {word for word, _ in found} <= set(rjieba.cut(TEXTS[1]))
    assert len(found) == 3


@needs("bertopic")
def test_bertopic(folder):
    from bertopic import BERTopic
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.feature_extraction.text import CountVectorizer

    model = BERTopic(
        embedding_model=encoder(folder),
        vectorizer_model=CountVectorizer(tokenizer=rjieba.cut, token_pattern=None),
        umap_model=PCA(2),
        hdbscan_model=KMeans(2, random_state=0),
    )
    topics, _ = model.fit_transform(TEXTS * 3)
    assert len(topics) == 12
    assert topics[:4] == topics[4:8] == topics[8:]
    assert_same(model.embedding_model.embed(TEXTS), means(folder))


@needs("txtai")
def test_txtai(folder):
    from txtai import Embeddings

    arguments = {"trust_remote_code": True}
    embeddings = Embeddings(path=str(folder), method="meanpooling", vectors=arguments, gpu=False)
    assert_same(embeddings.batchtransform(TEXTS), means(folder, normalise=True))
    embeddings.index(TEXTS)
    assert [embeddings.search(text, 1)[0][0] for text in TEXTS] == [0, 1, 2, 3]


@needs("haystack_integrations")
def test_haystack(folder):
    from haystack import Document
    from haystack.utils import ComponentDevice
    from haystack_integrations.components.embedders.sentence_transformers import (
        SentenceTransformersDocumentEmbedder,
        SentenceTransformersTextEmbedder,
    )

    settings = {
        "model": str(folder),
        "trust_remote_code": True,
        "device": ComponentDevice.from_str("cpu"),
        "progress_bar": False,
    }
    documents, query = SentenceTransformersDocumentEmbedder(**settings), SentenceTransformersTextEmbedder(**settings)
    for component in (documents, query):
        component.warm_up()
    found = documents.run([Document(content=text) for text in TEXTS])["documents"]
    assert_same([document.embedding for document in found], means(folder))
    assert_same(query.run(TEXTS[0])["embedding"], means(folder)[0])


@needs("FlagEmbedding")
def test_flagembedding(folder):
    from FlagEmbedding import FlagModel

    settings = {"pooling_method": "mean", "trust_remote_code": True, "use_fp16": False, "devices": ["cpu"]}
    model = FlagModel(str(folder), **settings)
    assert_same(model.encode(TEXTS), means(folder, normalise=True))


@needs("llama_index")
def test_llamaindex(folder):
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    model = HuggingFaceEmbedding(model_name=str(folder), trust_remote_code=True, device="cpu")
    assert_same(model.get_text_embedding_batch(TEXTS), means(folder, normalise=True))
    assert_same(model.get_query_embedding(TEXTS[0]), means(folder, normalise=True)[0])


# --- the stock form, for what runs no code of a model ---


@needs("text2vec")
def test_text2vec(stock):
    from text2vec import SentenceModel

    model = SentenceModel(str(stock), device="cpu")
    assert_same(model.encode(TEXTS), means(stock))


@needs("gliner", "jieba3")
def test_gliner(stock, tmp_path):
    """It is trained, saved, loaded, and finds the same."""
    from gliner import GLiNER

    settings = {"name": "tiny", "model_name": str(stock), "hidden_size": 32, "max_len": 64, "max_width": 8}
    settings |= {"span_mode": "markerV0", "words_splitter_type": "jieba"}
    model = GLiNER.from_config(settings, backbone_from_pretrained=True)
    rows = [{"tokenized_text": ["老师", "研究", "历史"], "ner": [[0, 0, "人物"]]}] * 4
    arguments = {"max_steps": 1, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": "none", "save_strategy": "no"}
    model.train_model(rows, rows, output_dir=str(tmp_path / "run"), **arguments)
    model.save_pretrained(str(tmp_path / "saved"))
    again = GLiNER.from_pretrained(str(tmp_path / "saved"), local_files_only=True)
    found, same = (tagger.eval().predict_entities(TEXTS[0], ["人物", "地点"], threshold=0.0) for tagger in (model, again))
    assert {entity["text"] for entity in found} & {"老师", "研究", "历史"}
    assert [entity["score"] for entity in same] == pytest.approx([entity["score"] for entity in found], abs=1e-5)
