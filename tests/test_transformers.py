"""What users of transformers do with any model: Trainer, PEFT, pipelines. Each gives what the model gives alone."""

import math
import re
import warnings
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    DataCollatorForMultipleChoice,
    DataCollatorForTokenClassification,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.modeling_outputs import TokenClassifierOutput

from tiny import HEADS, IGNORED, LOSS_CASES, assert_close, build
from zh_modernbert.modeling_zh_modernbert import ZhModernBertModel
from zh_modernbert.train.tokenizer.loading import load_tokenizer

TEXTS = [
    "工程师研究新的计算机程序，但是没有人知道。",
    "圖書館！",
    "学生发表一本关于历史的书，大家都很高兴。老师计划参加北京的会议（见第１２页）。",
    "Python 3.12 的文档😀",
    "气象台讨论了明天的天气预报。",
    "這家公司終於完成了軟體。",
    "她",
    "我们的邻居认真地修改鸡蛋和面条，气象台正在准备经济发展的问题！",
]
MODEL_PAGE = Path(__file__).resolve().parent.parent / "docs" / "model.md"
NAMES = {"O": 0, "B-ORG": 1, "I-ORG": 2}


@pytest.fixture(scope="module")
def tokenizer(stages):
    return load_tokenizer(stages / "tokenizer")


def build_for(head, **changes):
    return build(HEADS[head], vocab_size=512, **changes)


# --- Trainer ----------------------------------------------------------------------------------------------------------


def make_examples(case, tokenizer):
    """Sixteen examples of unequal lengths and numbers of labels, and what makes batches of them."""
    examples = []
    for index, text in enumerate(TEXTS * 2):
        ids = tokenizer(text + "！" * index)["input_ids"]
        example = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        if case == "QuestionAnswering":
            example |= {"start_positions": 1 + index % 2, "end_positions": len(ids) - 1}
        elif case == "MultipleChoice":
            other = tokenizer(text, TEXTS[0])["input_ids"]
            example = {"input_ids": [ids, other], "attention_mask": [[1] * len(ids), [1] * len(other)], "labels": index % 2}
        elif case == "single-label":
            example["labels"] = IGNORED if index % 5 == 0 else index % 3
        elif case == "multi-label":
            example["labels"] = [float(index % 2), 1.0, float(index % 3 == 0)]
        elif case == "regression":
            example["labels"] = index / 8
        else:
            every = 1 + index % 4
            example["labels"] = [token % 3 if place % every == 0 else IGNORED for place, token in enumerate(ids)]
        examples.append(example)
    collator = {
        "MaskedLM": DataCollatorForTokenClassification,
        "TokenClassification": DataCollatorForTokenClassification,
        "MultipleChoice": DataCollatorForMultipleChoice,
    }.get(LOSS_CASES[case][0], DataCollatorWithPadding)
    return examples, collator(tokenizer)


def train(model, examples, collator, folder, **arguments):
    """Two updates of eight examples by plain gradient descent; what changed, by name."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    settings = {"per_device_train_batch_size": 8, "max_steps": 2, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
    settings |= {"lr_scheduler_type": "constant", "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    arguments = TrainingArguments(folder, use_cpu=True, **settings | arguments)
    Trainer(model, arguments, data_collator=collator, train_dataset=examples).train()
    return {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("case", LOSS_CASES)
def test_gradient_accumulation_under_trainer(case, tokenizer, tmp_path):
    head, changes = LOSS_CASES[case]
    data = make_examples(case, tokenizer)
    whole = train(build_for(head, **changes), *data, tmp_path)
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    accumulated = train(build_for(head, **changes), *data, tmp_path, **parts)
    largest = max(change.abs().max() for change in whole.values())
    assert largest > 1e-2
    for name, change in whole.items():
        assert (accumulated[name] - change).abs().max() <= 1e-6, name


def test_packed_batches_under_trainer(tokenizer, tmp_path):
    examples, collator = make_examples("MaskedLM", tokenizer)
    for example in examples:
        example["labels"][0] = IGNORED  # as transformers' collator of packed rows does
    padded = train(build_for("MaskedLM"), examples, collator, tmp_path)
    # Without the bounds, which it leaves out unless asked, a row would be one document.
    packed = train(build_for("MaskedLM"), examples, DataCollatorWithFlattening(return_flash_attn_kwargs=True), tmp_path)
    for name, change in padded.items():
        assert (packed[name] - change).abs().max() <= 1e-6, name


def test_noise_on_the_embeddings_under_trainer(tokenizer, tmp_path):
    data = make_examples("MaskedLM", tokenizer)
    plain = train(build_for("MaskedLM"), *data, tmp_path)
    noisy = train(build_for("MaskedLM"), *data, tmp_path, neftune_noise_alpha=5.0)
    differences = [(noisy[name] - change).abs().max() for name, change in plain.items()]
    assert 1e-4 < max(differences) < math.inf


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_under_trainer(reentrant, tokenizer, tmp_path, monkeypatch):
    calls = []
    layer = type(build_for("MaskedLM").model.layers[0].attn)
    original = layer.forward
    monkeypatch.setattr(layer, "forward", lambda *arguments, **more: calls.append(1) or original(*arguments, **more))
    data = make_examples("MaskedLM", tokenizer)
    plain = train(build_for("MaskedLM"), *data, tmp_path)
    once = len(calls)
    checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    checkpointed = train(build_for("MaskedLM"), *data, tmp_path, **checkpointing)
    assert len(calls) == 3 * once  # every layer computed again
    for name, change in plain.items():
        assert (checkpointed[name] - change).abs().max() <= 1e-6, name


@pytest.mark.parametrize("case", ["single-label", "TokenClassification", "QuestionAnswering", "MultipleChoice"])
def test_predictions_of_trainer(case, tokenizer, tmp_path):
    head, changes = LOSS_CASES[case]
    model = build_for(head, **changes)
    examples, collator = make_examples(case, tokenizer)
    arguments = TrainingArguments(tmp_path, use_cpu=True, report_to="none", disable_tqdm=True, per_device_eval_batch_size=3)
    found = Trainer(model, arguments, data_collator=collator).predict(examples)
    logits = found.predictions if isinstance(found.predictions, tuple) else (found.predictions,)
    for row, example in enumerate(examples):
        with torch.no_grad():
            alone = model(**collator([example]))
        for predicted, name in zip(logits, [name for name in alone if "logits" in name], strict=True):
            expected = alone[name][0]
            assert_close(torch.tensor(predicted[row])[: len(expected)], expected)  # what follows are pads


# --- PEFT -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "task", "saved"),
    [("MaskedLM", None, None), ("single-label", "SEQ_CLS", ["head", "classifier"])],
    ids=["MaskedLM", "SequenceClassification"],
)
def test_lora(case, task, saved, tokenizer, tmp_path):
    head, changes = LOSS_CASES[case]
    examples, collator = make_examples(case, tokenizer)
    batch = collator(examples[:3])
    config = peft.LoraConfig(task_type=task, r=2, target_modules=["Wqkv", "Wi", "Wo"], modules_to_save=saved)
    model = peft.get_peft_model(build_for(head, **changes), config)
    with torch.no_grad():
        before = model.eval()(**batch).logits
        assert torch.equal(before, build_for(head, **changes)(**batch).logits)
    for name, change in train(model, examples, collator, tmp_path / "train").items():
        assert (change != 0).any() == ("lora_" in name or "modules_to_save" in name), name

    with torch.no_grad():
        trained = model.eval()(**batch).logits
        assert (trained - before).abs().max() > 1e-3
        model.save_pretrained(tmp_path / "adapter")
        for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"):
            assert "lora_" in name or any(part in name for part in saved or ()), name
        loaded = peft.PeftModel.from_pretrained(build_for(head, **changes), tmp_path / "adapter").eval()
        assert torch.equal(loaded(**batch).logits, trained)
        merged = loaded.merge_and_unload()
        assert type(merged) is HEADS[head]
        assert_close(merged(**batch).logits, trained)


# --- pipelines --------------------------------------------------------------------------------------------------------


def run_pipeline(task, model, tokenizer, inputs, **arguments):
    """The answers to each input, and to all of them in padded batches of three."""
    run = pipeline(task, model=model, tokenizer=tokenizer, device="cpu")
    return [run(one, **arguments) for one in inputs], run(inputs, batch_size=3, **arguments)


def assert_same_answers(actual, expected):
    """Equal, numbers to single precision."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key in expected:
            assert_same_answers(actual[key], expected[key])
    elif isinstance(expected, list):
        assert len(actual) == len(expected)
        for pair in zip(actual, expected, strict=True):
            assert_same_answers(*pair)
    else:
        assert actual == (expected if isinstance(expected, str) else pytest.approx(expected, rel=1e-4))


def test_fill_mask(tokenizer):
    texts = [text[:3] + "[MASK]" + text[4:] for text in TEXTS if len(text) > 3]
    model = build_for("MaskedLM")
    alone, batched = run_pipeline("fill-mask", model, tokenizer, texts, top_k=3)
    assert_same_answers(batched, alone)
    for text, answers in zip(texts, alone, strict=True):
        encoding = tokenizer(text, return_tensors="pt")
        place = encoding["input_ids"][0] == tokenizer.mask_token_id
        best = model(**encoding).logits[0, place][0].softmax(-1).topk(3)
        assert [answer["token"] for answer in answers] == best.indices.tolist()
        assert [answer["score"] for answer in answers] == pytest.approx(best.values.tolist(), rel=1e-4)


def test_text_classification(tokenizer):
    model = build_for("SequenceClassification", num_labels=3)
    alone, batched = run_pipeline("text-classification", model, tokenizer, TEXTS, top_k=None)
    assert_same_answers(batched, alone)
    for text, answers in zip(TEXTS, alone, strict=True):
        expected = model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1)
        for answer in answers:
            assert answer["score"] == pytest.approx(expected[model.config.label2id[answer["label"]]].item(), rel=1e-4)


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_token_classification(strategy, tokenizer):
    names = {"label2id": NAMES, "id2label": {index: name for name, index in NAMES.items()}}
    model = build_for("TokenClassification", num_labels=3, **names)
    arguments = {"aggregation_strategy": strategy, "ignore_labels": []}
    with warnings.catch_warnings():  # for some strategies a word is what stands between spaces; offsets are exact all the same
        warnings.filterwarnings("ignore", "Tokenizer does not support real words")
        alone, batched = run_pipeline("token-classification", model, tokenizer, TEXTS, **arguments)
    assert_same_answers(batched, alone)
    for text, entities in zip(TEXTS, alone, strict=True):
        reached = 0
        for entity in entities:
            # Nothing is ignored, so the entities cover the text; bytes of one character share its place.
            assert entity["start"] in (reached, reached - 1)
            reached = entity["end"]
            if strategy != "none" and "\ufffd" not in entity["word"]:
                assert text[entity["start"] : entity["end"]] == entity["word"]
        assert reached == len(text)
    assert {entity["entity" if strategy == "none" else "entity_group"] for entities in alone for entity in entities} > {"O"}


ENTITIES = {
    "工程师在Washington研究历史，学生在北京。": {"工程师": "PER", "Washington": "LOC", "北京": "LOC"},
    "工程師在Washington研究歷史，學生在臺灣㐂。": {"工程師": "PER", "Washington": "LOC", "臺灣㐂": "LOC"},
}


def tagger_that_knows(text, tokenizer, doubtful):
    """A model that tags this text as `ENTITIES` has it, but for the last `doubtful` characters of the Latin word: O, hardly."""
    labels = ["O", *(f"{place}-{kind}" for kind in ("PER", "LOC") for place in "BI")]
    encoding = tokenizer(text, return_offsets_mapping=True)
    logits = torch.zeros(len(encoding["input_ids"]), len(labels))
    begun = set()
    for row, (start, end) in zip(logits, encoding["offset_mapping"], strict=True):
        row[0] = 5.0
        for entity, kind in ENTITIES[text].items():
            first = text.index(entity)
            if first <= start < end <= first + len(entity):
                row[0] = 0.0
                row[labels.index(f"{'I' if entity in begun else 'B'}-{kind}")] = 5.0
                begun.add(entity)
                if entity.isascii() and start >= first + len(entity) - doubtful:
                    row[0] = 5.1
    names = {"label2id": {label: i for i, label in enumerate(labels)}, "id2label": dict(enumerate(labels))}
    model = build_for("TokenClassification", num_labels=len(labels), **names)
    model.forward = lambda input_ids, **more: TokenClassifierOutput(logits=logits[None])
    return model


@pytest.mark.parametrize("text", ENTITIES)
def test_entities_are_found_in_both_scripts(text, tokenizer):
    expected = [(kind, text.index(entity), text.index(entity) + len(entity)) for entity, kind in ENTITIES[text].items()]
    (example,) = re.findall(r"```python\n([^`]*class EntityPipeline.*?)```", MODEL_PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    exec(example, names)

    def find(doubtful, strategy, pipeline_class=None):
        model = tagger_that_knows(text, tokenizer, doubtful)
        run = pipeline("token-classification", model=model, tokenizer=tokenizer, pipeline_class=pipeline_class, device="cpu")
        found = run(text, aggregation_strategy=strategy)
        return [(entity["entity_group"], entity["start"], entity["end"]) for entity in found]

    assert find(0, "simple") == expected
    assert find(2, "simple") != expected
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Tokenizer does not support real words")
        for strategy in ("first", "average", "max"):
            assert find(0, strategy) != expected, "transformers can do it by itself: shorten the page"
            assert find(2, strategy, names["EntityPipeline"]) == expected


def test_feature_extraction(tokenizer):
    model = build(ZhModernBertModel, vocab_size=512)
    alone, batched = run_pipeline("feature-extraction", model, tokenizer, TEXTS, return_tensors=True)
    for text, one, many in zip(TEXTS, alone, batched, strict=True):
        expected = model(**tokenizer(text, return_tensors="pt")).last_hidden_state
        assert_close(one, expected)
        real = expected.shape[1]
        assert_close(many[:, :real], expected)
        assert (many[:, real:] == 0).all()


def test_zero_shot_classification(tokenizer):
    names = {0: "contradiction", 1: "neutral", 2: "entailment"}
    labels = {"label2id": {name: index for index, name in names.items()}, "id2label": names}
    model = build_for("SequenceClassification", num_labels=3, **labels)
    topics, template = ["天气", "历史书"], "这是关于{}的。"
    arguments = {"candidate_labels": topics, "hypothesis_template": template}
    alone, batched = run_pipeline("zero-shot-classification", model, tokenizer, TEXTS, **arguments)
    assert_same_answers(batched, alone)
    for text, answer in zip(TEXTS, alone, strict=True):
        pairs = [model(**tokenizer(text, template.format(topic), return_tensors="pt")).logits[0, 2] for topic in topics]
        expected = dict(zip(topics, torch.stack(pairs).softmax(0).tolist(), strict=True))
        assert dict(zip(answer["labels"], answer["scores"], strict=True)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("side", ["right", "left"])
def test_answers_are_learned_and_read_off(side, stages, tmp_path):
    # transformers 5 has no pipeline for this any more; the best span among the context's tokens is read off by hand.
    tokenizer = load_tokenizer(stages / "tokenizer")
    tokenizer.padding_side = side
    answers = ["工程师", "圖書館", "老师", "3.12", "气象台", "這家公司", "她", "我们的邻居"]
    encoding = tokenizer(["谁？"] * len(TEXTS), TEXTS, padding=True, return_offsets_mapping=True)
    examples = []
    for row, (text, answer) in enumerate(zip(TEXTS, answers, strict=True)):
        first = text.index(answer)
        start, end = (encoding.char_to_token(row, place, 1) for place in (first, first + len(answer) - 1))
        examples.append({name: encoding[name][row] for name in ("input_ids", "attention_mask")})
        examples[-1] |= {"start_positions": start, "end_positions": end}
    model, collator = build_for("QuestionAnswering"), DataCollatorWithPadding(tokenizer)
    train(model, examples, collator, tmp_path, max_steps=20, optim="adamw_torch", learning_rate=1e-2)
    with torch.no_grad():
        outputs = model.eval()(**collator(examples))
    for row, (text, answer) in enumerate(zip(TEXTS, answers, strict=True)):
        outside = torch.tensor([sequence != 1 for sequence in encoding.sequence_ids(row)])
        spans = outputs.start_logits[row, :, None] + outputs.end_logits[row].masked_fill(outside, -torch.inf)
        start, end = divmod(spans.masked_fill(outside[:, None], -torch.inf).triu().argmax().item(), len(outside))
        assert text[encoding["offset_mapping"][row][start][0] : encoding["offset_mapping"][row][end][1]] == answer


def test_pipelines_with_token_type_ids(stages):
    tokenizer = load_tokenizer(stages / "tokenizer")
    model = build_for("SequenceClassification", num_labels=3)
    expected = run_pipeline("text-classification", model, tokenizer, TEXTS)
    tokenizer.model_input_names = [*tokenizer.model_input_names, "token_type_ids"]
    assert "token_type_ids" in tokenizer(TEXTS)
    assert_same_answers([*run_pipeline("text-classification", model, tokenizer, TEXTS)], [*expected])
