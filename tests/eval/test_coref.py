"""Coreference on files made here: reading them, scoring predictions, and a head that learns."""

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from zh_modernbert.eval import coref
from zh_modernbert.eval.finetuning.loading import load_with_head
from zh_modernbert.eval.kinds import running
from zh_modernbert.eval.kinds.coreference import NONE, CoreferenceModel, clusters_of, encode, lost_mentions, token_of
from zh_modernbert.eval.tasks.coreference import clusters_of_column, joined, read_documents
from zh_modernbert.eval.tasks.rows import BadRows
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.tokenizer.loading import load_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
PEOPLE = ["老师", "学生", "工程师"]

CONLL = """#begin document (bc/x/00/x_0000); part 000
bc/x/00/x_0000 0 0 老师 NN * - - - - * (0)
bc/x/00/x_0000 0 1 说 VV * - - - - * -
bc/x/00/x_0000 0 2 他 PN * - - - - * (1|(0)
bc/x/00/x_0000 0 3 的 DEC * - - - - * -
bc/x/00/x_0000 0 4 书 NN * - - - - * 1)

bc/x/00/x_0000 0 0 Open NN * - - - - * (1
bc/x/00/x_0000 0 1 AI NN * - - - - * 1)
#end document
#begin document (bc/x/00/x_0000); part 001
bc/x/00/x_0000 1 0 空 NN * - - - - * -
#end document
"""


def write(path: Path, documents: list[dict]) -> str:
    path.write_text("".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents), encoding="utf-8")
    return str(path)


def make_documents(count: int, seed: int) -> list[dict]:
    """Who speaks first is who is meant by the pronoun: `老师发表。学生研究。他...`."""
    generator, documents = random.Random(seed), []
    for number in range(count):
        first, second = generator.sample(PEOPLE, 2)
        text = f"{first}发表。{second}研究。他讨论了{first}。"
        place = len(first) + len(second) + 6
        last = place + 4
        clusters = [[[0, len(first)], [place, place + 1], [last, last + len(first)]]]
        documents.append({"id": str(number), "text": text, "clusters": clusters})
    return documents


def read(path) -> list[dict]:
    return [row.values for row in read_documents(path, BadRows())]


def test_conll(tmp_path):
    (tmp_path / "a.conll").write_text(CONLL, encoding="utf-8")
    first, second = read(tmp_path / "a.conll")
    assert first["text"] == "老师说他的书Open AI"
    shown = [[first["text"][start:end] for start, end in cluster] for cluster in first["clusters"]]
    assert shown == [["老师", "他"], ["他的书", "Open AI"]]
    assert (first["id"], second["id"]) == ("bc/x/00/x_0000#000", "bc/x/00/x_0000#001")
    assert second["clusters"] == []


def test_json_lines_of_words(tmp_path):
    """`sentences` and `[first, last]` words are the same document."""
    (tmp_path / "a.conll").write_text(CONLL, encoding="utf-8")
    sentences = [["老师", "说", "他", "的", "书"], ["Open", "AI"]]
    clusters = [[[0, 0], [2, 2]], [[2, 4], [5, 6]]]
    path = write(tmp_path / "a.jsonl", [{"doc_key": "d", "sentences": sentences, "clusters": clusters}])
    (row,) = read(path)
    assert {**row, "id": ""} == {**read(tmp_path / "a.conll")[0], "id": ""}


def test_words_are_joined():
    assert joined(["用", "Python", "3", "，", "x"]) == ("用Python 3，x", [(0, 1), (1, 7), (8, 9), (9, 10), (10, 11)])


@pytest.mark.parametrize(
    ("cells", "clusters"), [(["(0", "(0", "0)", "0)"], [[(0, 3), (1, 2)]]), (["(0)|(1", "1)"], [[(0, 0)], [(0, 1)]])]
)
def test_columns(cells, clusters):
    assert clusters_of_column(cells) == clusters


@pytest.mark.parametrize("cells", [["(0"], ["0)"], ["(x)"]])
def test_columns_that_are_none(cells):
    with pytest.raises(ValueError, match=r"cluster|mark"):
        clusters_of_column(cells)


@pytest.mark.parametrize(
    "wrong",
    [
        {"clusters": [[[0, 99]]]},
        {"clusters": [[[1, 1]]]},
        {"clusters": [[[0, 1], [0, 1]]]},
        {"clusters": 7},
        {"text": " "},
        {"id": "1"},
    ],
)
def test_bad_rows(tmp_path, wrong):
    """Counted and named, and left out where asked."""
    documents = [*make_documents(2, 0), {"id": "x", "text": "甲乙", "clusters": []} | wrong]
    settings = coref.Settings(validation_file=write(tmp_path / "a.jsonl", documents))
    with pytest.raises(InputError, match=r"a\.jsonl, line 3"):
        coref.read(settings.validation_file, "dev", settings)
    settings.skip_bad_rows = True
    rows, notes = coref.read(settings.validation_file, "dev", settings)
    assert len(rows) == 2
    assert "bad rows left out: 1" in notes[0]
    assert notes[1] == "only 2 of 3 examples of dev"


@pytest.mark.parametrize("text", ["", "no columns\n", CONLL.rpartition("#end")[0]])
def test_files_of_another_form(tmp_path, text):
    (tmp_path / "a.conll").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"a\.conll"):
        read(tmp_path / "a.conll")


def test_scoring_predictions(tmp_path):
    gold = make_documents(3, 0)
    predicted = [gold[2], {**gold[0], "clusters": []}]
    settings = coref.Settings(
        validation_file=write(tmp_path / "gold.jsonl", gold),
        predictions_file=write(tmp_path / "predicted.jsonl", predicted),
        results_dir=str(tmp_path / "results"),
    )
    result = coref.main(settings)
    assert result["metrics"]["muc_f1"] == pytest.approx(50.0)  # two of six links, and no wrong one
    assert json.loads((tmp_path / "results" / "coreference-dev-42.json").read_text(encoding="utf-8")) == result
    write(tmp_path / "predicted.jsonl", [{**gold[0], "text": "别的" * 20}])
    with pytest.raises(InputError, match="'0'"):
        coref.main(settings)


def test_links_to_clusters():
    """A chain and a pair; what is linked to nothing is no mention."""
    links = [[1, 1, -1], [2, 2, 0], [3, 3, -1], [4, 4, 1], [5, 6, -1], [7, 7, 4]]
    offsets = [(place, place + 1) for place in range(9)]
    assert clusters_of("甲乙丙丁戊己庚辛壬", links, offsets) == [[(1, 2), (2, 3), (4, 5)], [(5, 7), (7, 8)]]


def test_a_mention_is_given_once_and_is_text():
    """Of the tokens 甲, space, space and Wu, 乙 twice, as a character of two tokens, and of white space alone."""
    text, offsets = "甲  Wu乙", [(0, 1), (1, 2), (2, 5), (5, 6), (5, 6)]
    links = [[0, 0, -1], [1, 1, 0], [1, 2, 0], [2, 2, 2], [3, 3, 1], [3, 4, 3], [4, 4, 0]]
    assert clusters_of(text, links, offsets) == [[(0, 1), (3, 5), (5, 6)]]


def test_a_mention_after_a_space(tmp_path):
    """Its first token begins with the space."""
    text = "他见了 Barack Obama 和 Obama 的书"
    clusters = [[(4, 16), (19, 24)]]
    path = write(tmp_path / "a.jsonl", [{"id": "1", "text": text, "clusters": clusters}])
    examples = encode(load_tokenizer(Path(__file__).parents[2]), 64, read_documents(path, BadRows()))
    assert lost_mentions(examples) == 0
    ((first, second),) = examples.features["labels"]
    links = torch.tensor([[*first[:2], -1], [*second[:2], 0]]).numpy()
    assert examples.decode([links]) == [clusters]


def test_tokens_of_characters():
    """Of several tokens of one character, the first."""
    assert token_of([(0, 0), (0, 2), (2, 3), (2, 3), (0, 0)]) == {0: 1, 1: 1, 2: 2}


def test_what_is_encoded_is_decoded(stages, tmp_path):
    """Labels as links give the documents' clusters again, in windows too, but for mentions within tokens."""
    tokenizer = load_tokenizer(stages / "tokenizer")
    rows = read_documents(write(tmp_path / "a.jsonl", make_documents(20, 1)), BadRows())
    for max_length, windows in ((128, 20), (8, None)):
        examples = encode(tokenizer, max_length, rows)
        assert windows in (None, len(examples.features))
        links = []
        for labels in examples.features["labels"]:
            found = [list(label) for label in labels if label[0] != NONE]
            seen = {}
            for number, label in enumerate(found):
                cluster = label[2]
                label[2] = seen.get(cluster, -1)
                seen[cluster] = number
            links.append(torch.tensor(found or [[NONE] * 3]).numpy())
        decoded = examples.decode(links)
        given = {(i, m) for i, document in enumerate(decoded) for cluster in document for m in cluster}
        expected = {(i, m) for i, clusters in enumerate(examples.references) for cluster in clusters for m in cluster}
        assert given <= expected
        assert windows is None or len(given) == len(expected) - lost_mentions(examples)


@pytest.fixture(scope="module")
def model_dir(publish_random) -> Path:
    return publish_random("coreference", local_attention=32)


def test_a_pad_changes_nothing(model_dir):
    model = CoreferenceModel(load_with_head(AutoModel, str(model_dir), True)).eval()
    ids, in_text = torch.randint(8, 90, (1, 20)), torch.ones(1, 20, dtype=torch.long)
    labels = torch.tensor([[[2, 3, 0], [7, 7, 0]]])
    alone = model(input_ids=ids, attention_mask=in_text, in_text=in_text, labels=labels)
    pad = torch.nn.functional.pad
    padded = model(
        input_ids=pad(ids, (0, 7)),
        attention_mask=pad(in_text, (0, 7)),
        in_text=pad(in_text, (0, 7)),
        labels=pad(labels, (0, 0, 0, 1), value=NONE),
    )
    assert torch.equal(alone["links"], padded["links"])
    assert alone["loss"].item() == pytest.approx(padded["loss"].item(), rel=1e-5)


def test_it_learns(model_dir, tmp_path):
    """From random weights, who is meant by a pronoun; twice, the second time from the file of the run."""
    settings = coref.Settings(
        model=str(model_dir),
        trust_remote_code=True,
        train_file=write(tmp_path / "train.jsonl", make_documents(48, 1)),
        validation_file=write(tmp_path / "dev.jsonl", make_documents(6, 2)),
        max_length=128,
        learning_rate=3e-3,
        batch_size=8,
        num_train_epochs=8,
        results_dir=str(tmp_path / "results"),
        name="pronouns",
        predictions=True,
    )
    result = coref.main(settings)
    assert result["metrics"]["conll_f1"] > 80
    assert result["metrics"]["best_on_dev"] >= result["metrics"]["conll_f1"]
    predicted = tmp_path / "results" / "predictions-42" / "pronouns_dev.jsonl"
    assert [row["text"] for row in read(predicted)] == [row["text"] for row in read(tmp_path / "dev.jsonl")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "fine_tune", None)
        assert coref.main(settings)["metrics"] == result["metrics"]


@pytest.mark.parametrize("given", [{}, {"model": "m"}, {"model": "m", "train_file": "t", "predictions_file": "p"}])
def test_what_has_to_be_given(given):
    with pytest.raises(InputError, match="coref: give either"):
        coref.main(coref.Settings(validation_file="v", **given))
    with pytest.raises(InputError, match="coref: script"):
        coref.main(coref.Settings(validation_file="v", predictions_file="p", script="hant"))
    with pytest.raises(InputError, match="--validation_file"):
        coref.main(coref.Settings(**given))
