"""Pseudo-perplexity against the definition: each token masked alone, its probability read from all logits."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import BertWordPieceTokenizer
from transformers import PreTrainedModel

from zh_modernbert.eval import pseudo_perplexity
from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.tokenizer.loading import load_tokenizer
from zh_modernbert.train.tokenizer.segment import split_words

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["今天天气很好。", "老师研究经济发展的问题，但是没有人知道。", "圖書館 Python 3.12 的文檔 🙂", "鸡"]


@pytest.fixture(scope="module")
def model_dir(publish_random) -> Path:
    """With weights so large that its probabilities are far from even."""
    return publish_random("perplexity", local_attention=8, initializer_range=0.3)


@pytest.fixture(scope="module")
def model(model_dir) -> ZhModernBertForMaskedLM:
    return ZhModernBertForMaskedLM.from_pretrained(model_dir).eval()


@pytest.fixture
def settings(model_dir, tmp_path) -> pseudo_perplexity.Settings:
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    return pseudo_perplexity.Settings(
        model=str(model_dir),
        trust_remote_code=True,
        input=[str(tmp_path / "texts.txt")],
        results_dir=str(tmp_path / "results"),
    )


@torch.inference_mode()
def by_definition(
    model: PreTrainedModel, ids: list[int], masked: list[list[int]] | None = None, mask_id: int = 4
) -> list[float]:
    """log P of each token between [CLS] and [SEP], from one forward pass and all logits each; with those of `masked` masked."""
    results = []
    for position in range(1, len(ids) - 1):
        inputs = torch.tensor([ids])
        inputs[0, masked[position - 1] if masked else position] = mask_id
        logits = model(input_ids=inputs).logits[0, position].double()
        results.append(float(logits[ids[position]] - logits.logsumexp(0)))
    return results


def scored(settings: pseudo_perplexity.Settings) -> tuple[list[pseudo_perplexity.Text], list[np.ndarray], PreTrainedModel]:
    tokenizer, model = pseudo_perplexity.load(settings)
    documents = [{"text": text} for text in TEXTS]
    texts = [pseudo_perplexity.encode(tokenizer, document, settings.max_length, settings.unit) for document in documents]
    answers = pseudo_perplexity.Scorer(model, tokenizer, settings).score(texts)
    model.config.sparse_prediction = model.sparse_prediction = False
    return texts, answers, model


@pytest.mark.parametrize("batch_tokens", [1, 50, 100_000])
def test_log_probabilities(settings, batch_tokens):
    settings.batch_tokens = batch_tokens
    texts, answers, model = scored(settings)
    for text, found in zip(texts, answers, strict=True):
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, by_definition(model, text.ids.tolist()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["BertForMaskedLM", "ModernBertForMaskedLM"])
def test_models_of_other_kinds(kind, settings, model_dir, tmp_path):
    """Whose pads go through the model, and whose head gives logits everywhere."""
    shape = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = getattr(transformers, kind).config_class(
        **shape, max_position_embeddings=128, pad_token_id=0, initializer_range=0.3
    )
    getattr(transformers, kind)(config).save_pretrained(tmp_path / "model")
    load_tokenizer(model_dir).save_pretrained(tmp_path / "model")
    settings.model, settings.trust_remote_code = str(tmp_path / "model"), False
    texts, answers, model = scored(settings)
    for text, found in zip(texts, answers, strict=True):
        np.testing.assert_allclose(found, by_definition(model, text.ids.tolist()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("unit", ["word", "word_l2r"])
def test_words(settings, model_dir, unit):
    """What is masked beside a token: its word, or what follows of its word."""
    settings.unit = unit
    texts, answers, model = scored(settings)
    tokenizer, several = load_tokenizer(model_dir), 0
    for text, content, found in zip(texts, TEXTS, answers, strict=True):
        encoding = tokenizer(content)
        tokens = range(1, len(text.ids) - 1)
        spans = [encoding.token_to_chars(i) for i in tokens]
        edges = np.cumsum([len(word) for word in split_words(content)])
        words = [int(np.searchsorted(edges, span.start, side="right")) for span in spans]
        masked = [[j for j in tokens if words[j - 1] == words[i - 1] and (unit == "word" or j >= i)] for i in tokens]
        several += sum(len(places) > 1 for places in masked)
        np.testing.assert_allclose(found, by_definition(model, text.ids.tolist(), masked), rtol=1e-5, atol=1e-5)
    assert several > 5


def test_units():
    """Two words, of one token and of two."""
    words = np.array([1, 2, 2])
    assert pseudo_perplexity.units_of(words, "token").tolist() == [[0, 1, 1], [1, 2, 2], [2, 3, 3]]
    assert pseudo_perplexity.units_of(words, "word").tolist() == [[0, 1, 1], [1, 3, 3]]
    assert pseudo_perplexity.units_of(words, "word_l2r").tolist() == [[0, 1, 1], [1, 2, 3], [2, 3, 3]]


@pytest.mark.parametrize(("share", "passes"), [(0.3, 4), (0.5, 2), (0.01, 20)])
def test_a_share_a_pass(share, passes):
    """Every token is asked for once, and each pass masks about as many."""
    text = pseudo_perplexity.Text(np.arange(22), np.arange(1, 21), np.arange(20), "字" * 20, "")
    copies = list(pseudo_perplexity.copies_of(text, "token", share, np.random.default_rng(0)))
    asked = [copy.places()[1].tolist() for copy in copies]
    assert sorted(place for places in asked for place in places) == list(range(1, 21))
    assert {len(places) for places in asked} == {20 // passes}


def test_a_corrected_estimate(settings):
    """With all tokens masked alone too it is exact; with some it is within its error, and nearer than without."""
    exact = pseudo_perplexity.main(settings)["metrics"]["pseudo_perplexity"]
    settings.mask_share, settings.exact_units = 0.25, 10_000
    corrected = pseudo_perplexity.main(settings)["metrics"]
    assert corrected["pseudo_perplexity"] == pytest.approx(exact, rel=1e-4)
    assert corrected["standard_error"] == 0
    assert corrected["uncorrected"] != pytest.approx(exact, rel=0.01)


def test_the_error_of_an_estimate():
    """The corrections of many draws spread as the standard error says, around what would be right."""
    lengths, generator = [50, 80, 30], np.random.default_rng(1)
    texts = [pseudo_perplexity.Text(np.arange(n), np.arange(n), np.arange(n) // 3, "字" * n, "") for n in lengths]
    truth, estimates = ([generator.normal(size=n) for n in lengths] for _ in range(2))

    class Oracle(pseudo_perplexity.Scorer):
        unit = "word"

        def __init__(self):
            pass

        def ask(self, copies):
            for copy in copies:
                number = next(i for i, text in enumerate(texts) if text is copy.text)
                yield copy, truth[number][copy.places()[1]]

    right = np.mean(np.concatenate(truth) - np.concatenate(estimates))
    shifts, errors = zip(*(Oracle().correction(texts, estimates, 25, seed) for seed in range(200)), strict=True)
    assert np.mean(shifts) == pytest.approx(right, abs=0.02)
    assert np.mean(errors) == pytest.approx(np.std(shifts), rel=0.15)
    assert Oracle().correction(texts, estimates, 1000) == (pytest.approx(right), 0)


def test_the_error_over_documents():
    """Perplexities of many draws of documents of uneven length spread as it says."""
    generator, found = np.random.default_rng(1), []
    for _ in range(400):
        sizes = generator.integers(5, 100, size=40)
        log_probabilities = -sizes * generator.normal(3, 0.5, size=40)
        perplexity = math.exp(-log_probabilities.sum() / sizes.sum())
        found.append((perplexity, pseudo_perplexity.error_over_documents(log_probabilities, sizes)))
    perplexities, errors = zip(*found, strict=True)
    assert np.mean(errors) == pytest.approx(np.std(perplexities), rel=0.1)


def test_errors_in_the_result(settings, tmp_path):
    """That over documents also where the figure is exact; none of one document."""
    name = "standard_error_over_documents"
    metrics = pseudo_perplexity.main(settings)["metrics"]
    assert metrics.keys() & {name, "standard_error"} == {name}
    left_out = []
    for number, text in enumerate(TEXTS):
        (tmp_path / "others.txt").write_text("\n\n".join(other for other in TEXTS if other != text), encoding="utf-8")
        others = dataclasses.replace(settings, input=[str(tmp_path / "others.txt")], name=f"without-{number}")
        result = pseudo_perplexity.main(others)
        left_out.append(result["metrics"]["pseudo_perplexity"])
    assert metrics[name] == pytest.approx(math.sqrt(3 * np.var(left_out)), rel=1e-3)
    assert name not in pseudo_perplexity.main(dataclasses.replace(settings, max_documents=1, name="one"))["metrics"]


def test_cells(settings, tmp_path):
    """A row for each script and length class; together they are the whole."""
    documents = [{"text": TEXTS[i % 2] * (1 + 9 * (i > 1)), "script": ("hans", "hant")[i % 2]} for i in range(4)]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps(document) for document in documents), encoding="utf-8")
    settings.input = [str(path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pseudo_perplexity, "LENGTHS", (40, 128))
        result = pseudo_perplexity.main(settings)
    rows = {(row["script"], row["max_tokens"]): row for row in result["cells"]}
    assert rows.keys() == {("hans", 40), ("hans", 128), ("hant", 40), ("hant", 128)}
    assert sum(row["tokens"] for row in rows.values()) == result["metrics"]["tokens"]
    mean = sum(math.log(row["pseudo_perplexity"]) * row["tokens"] for row in rows.values()) / result["metrics"]["tokens"]
    assert math.exp(mean) == pytest.approx(result["metrics"]["pseudo_perplexity"], rel=1e-4)


def test_what_a_figure_is_of(settings, tmp_path):
    """The hash of the text is of the scored characters, in whatever order and rows; all that decides them stands beside it."""

    def said(*texts: str, **changes) -> dict:
        path = tmp_path / "these.jsonl"
        path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
        changed = dataclasses.replace(
            settings, input=[str(path)], results_dir=str(tmp_path / f"results{next(number)}"), **changes
        )
        result = pseudo_perplexity.main(changed)
        assert result["hyperparameters"].items() >= {"input": [str(path)], "held_out": 0.0, **changes}.items()
        assert len({cell["text"] for cell in result["cells"]}) == len(result["cells"])
        return result["hyperparameters"]

    number = iter(range(10))
    first = said(*TEXTS[:2], max_length=128, max_documents=0, unigram_input=[])["text"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pseudo_perplexity, "LENGTHS", (10, 128))
        assert said(*TEXTS[1::-1], mask_share=0.5, exact_units=7, unigram_input=settings.input)["text"] == first
    others = [said(*TEXTS[:2], max_length=8), said(*TEXTS[:2], max_documents=1), said("".join(TEXTS[:2]))]
    assert len({first, *(each["text"] for each in others)}) == 4


def test_the_result_of_another_text_stays(settings, tmp_path, monkeypatch):
    """Nothing is computed that could not be written."""
    pseudo_perplexity.main(settings)
    pseudo_perplexity.main(settings)
    monkeypatch.setattr(pseudo_perplexity, "tally", lambda *_: pytest.fail("it was scored"))
    (tmp_path / "texts.txt").write_text(TEXTS[0], encoding="utf-8")
    for changes, name in (({}, "text"), ({"max_length": 64}, "max_length")):
        with pytest.raises(InputError, match=rf"all-0\.json: a result whose {name} is .*--results_dir, .* another --name"):
            pseudo_perplexity.main(dataclasses.replace(settings, **changes))


def test_a_space_at_the_end_is_text(settings):
    """Of a whole document, so that a tokenizer without a token of it scores the same characters as others."""

    class Stripping:
        """Its last token ends before the space."""

        def __init__(self, tokenizer):
            self.tokenizer = tokenizer

        def __call__(self, text, **options):
            return self.tokenizer(text.rstrip(), **options)

    tokenizer, document = load_tokenizer(settings.model), {"text": TEXTS[1] + " \n"}
    whole, again, cut = (
        pseudo_perplexity.encode(each, document, length, "token")
        for each, length in ((tokenizer, 128), (Stripping(tokenizer), 128), (Stripping(tokenizer), 8))
    )
    assert whole.content == again.content == document["text"]
    assert document["text"].startswith(cut.content)
    assert 0 < len(cut.content) < len(TEXTS[1])


def test_characters_that_a_tokenizer_drops(settings, tmp_path):
    """They are said, and make no figure lower: bits are for the characters that tokens hold."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"今天气很好。"]
    backend = BertWordPieceTokenizer({entry: number for number, entry in enumerate(vocabulary)})
    shape = {"vocab_size": 11, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.BertForMaskedLM(transformers.BertConfig(**shape)).save_pretrained(tmp_path / "model")
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend._tokenizer, **names).save_pretrained(tmp_path / "model")
    settings.model, settings.trust_remote_code = str(tmp_path / "model"), False
    found = {}
    for text in ("今天天气很好。", "\u3000\u3000今天  天气\n很 好。"):
        (tmp_path / "text.jsonl").write_text(json.dumps({"text": text}), encoding="utf-8")
        given = dataclasses.replace(settings, input=[str(tmp_path / "text.jsonl")], name=f"text-{len(found)}")
        found[text] = pseudo_perplexity.main(given)
    plain, spaced = found.values()
    assert (plain["metrics"]["characters"], spaced["metrics"]["characters"]) == (7, 13)
    assert (plain["metrics"]["characters_in_no_token"], spaced["metrics"]["characters_in_no_token"]) == (0, 6)
    assert plain["metrics"]["bits_per_character"] == spaced["metrics"]["bits_per_character"]
    assert (plain["notes"], spaced["notes"].split(":")[0]) == ("", "6 characters are in no token")


def test_a_space_that_a_token_holds_is_not_dropped():
    """Where offsets leave out the space that the token begins with. Of two spaces one is dropped."""
    for token in ("Ġb", "▁b"):
        assert pseudo_perplexity.count_in_no_token("a b", ["a", token], np.array([[0, 1], [2, 3]])) == 0
        assert pseudo_perplexity.count_in_no_token("a  b", ["a", token], np.array([[0, 1], [3, 4]])) == 1
    assert pseudo_perplexity.count_in_no_token("a b", ["a", "b"], np.array([[0, 1], [2, 3]])) == 1
    assert pseudo_perplexity.count_in_no_token("ab", ["▁a", "▁b"], np.array([[0, 1], [1, 2]])) == 0


def test_weights_in_half_precision_are_computed_with_as_stated(settings, model_dir, tmp_path):
    """The dtype of a config is what its weights are stored in, and no word on what to compute in."""
    stored = tmp_path / "stored"
    shutil.copytree(model_dir, stored)
    weights = {name: tensor.bfloat16() for name, tensor in load_file(stored / "model.safetensors").items()}
    save_file(weights, stored / "model.safetensors", {"format": "pt"})
    config = json.loads((stored / "config.json").read_text())
    found = []
    for dtype in ("float32", "bfloat16"):
        (stored / "config.json").write_text(json.dumps(config | {"dtype": dtype, "torch_dtype": dtype}))
        settings.model = str(stored)
        found.append(pseudo_perplexity.main(settings)["metrics"]["pseudo_perplexity"])
    assert found[0] == found[1]


def test_before_training(settings):
    settings.random_init, settings.dtype = True, "bfloat16"
    first, again = (pseudo_perplexity.main(settings)["metrics"]["pseudo_perplexity"] for _ in range(2))
    assert first == again
    settings.seed = 1
    result = pseudo_perplexity.main(settings)
    assert result["metrics"]["pseudo_perplexity"] != first
    assert result["hyperparameters"]["random_init"]
    assert result["notes"] == "random weights"


@pytest.mark.parametrize("max_length", [128, 8])
def test_the_result(settings, model, model_dir, max_length):
    """Over all tokens of all documents at once, cut to max_length; bits for the characters that were scored."""
    settings.max_length = max_length
    result = pseudo_perplexity.main(settings)
    tokenizer, scored, tokens, characters = load_tokenizer(model_dir), [], [], 0
    for text in TEXTS:
        encoded = tokenizer(text, truncation=True, max_length=max_length, return_offsets_mapping=True)
        scored += by_definition(model, encoded["input_ids"])
        tokens += encoded["input_ids"][1:-1]
        characters += encoded["offset_mapping"][-2][1]
    metrics = result["metrics"]
    assert metrics["tokens"] == len(tokens) == len(scored)
    assert (metrics["characters"], metrics["characters_in_no_token"]) == (characters, 0)
    assert (characters == sum(map(len, TEXTS))) == (max_length == 128)
    assert metrics["pseudo_perplexity"] == pytest.approx(math.exp(-np.mean(scored)), rel=1e-5)
    bits = math.log2(metrics["pseudo_perplexity"]) * metrics["tokens"] / metrics["characters"]
    assert metrics["bits_per_character"] == pytest.approx(bits, abs=1e-3)
    shares = np.unique(tokens, return_counts=True)[1] / len(tokens)
    assert metrics["unigram_perplexity"] == pytest.approx(math.prod(shares**-shares), abs=1e-3)
    assert result["num_examples"] == len(TEXTS)


def test_the_result_file(settings, tmp_path):
    settings.name, settings.max_documents = "held_out", 2
    result = pseudo_perplexity.main(settings)
    assert json.loads((tmp_path / "results" / "held_out-all-0.json").read_text(encoding="utf-8")) == result
    assert result["num_examples"] == 2
    assert result["primary_metric"] == "pseudo_perplexity"
    assert result["primary_metric"] in result["metrics"]
    assert result["model"] == settings.model


@pytest.mark.parametrize("count", [1, 2, 50])
def test_unigram_perplexity_of_an_even_distribution(count):
    assert pseudo_perplexity.unigram_perplexity(np.repeat(np.arange(count), 7)) == pytest.approx(count)


def test_unigram_perplexity_by_hand():
    """Shares of 1/2, 1/4 and 1/4 have an entropy of 1.5 bits."""
    assert pseudo_perplexity.unigram_perplexity(np.array([9, 9, 3, 5])) == pytest.approx(2**1.5)


def refused(settings: pseudo_perplexity.Settings) -> str:
    with pytest.raises(InputError) as error:
        pseudo_perplexity.main(dataclasses.replace(settings))  # a new one, so that its bounds are checked
    assert "\n" not in str(error.value)
    assert not Path(settings.results_dir).exists()
    return str(error.value)


def test_no_input(settings):
    settings.input = []
    assert "--input" in refused(settings)


def test_empty_input(settings, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n\n", encoding="utf-8")
    settings.input = [str(tmp_path / "empty.txt")]
    assert "empty.txt" in refused(settings)


def test_a_missing_file(settings, tmp_path):
    settings.input.append(str(tmp_path / "none.txt"))
    assert "none.txt" in refused(settings)


def test_a_missing_model(settings):
    settings.model = "nowhere/at-all"
    assert "nowhere/at-all" in refused(settings)


@pytest.mark.parametrize("max_length", [129, 2, 0])
def test_lengths_that_leave_nothing_to_score_or_are_too_long(settings, max_length):
    """129 is more than the model takes; of 2 tokens none is text."""
    settings.max_length = max_length
    assert "max_length" in refused(settings)
