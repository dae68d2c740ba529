"""What the tabs compute: plain functions of models and texts, which raise `BadInputError` for what cannot be worked on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

MASK = "[MASK]"
MOST_MASKS, CANDIDATES = 20, 6
MOST_SENTENCES = 40
LONGEST_READ, WINDOW, STRIDE, LONGEST_ANSWER = 16_384, 2_048, 256, 48  # tokens
LONGEST_ATTENTION = 512  # tokens; the weights of all layers are in memory at once
SHARES = (0.5, 0.9)  # of the attention: what the bars show


class BadInputError(Exception):
    """What was typed cannot be worked on; the text says why and what to do, for the page."""


# --- the model ---


@dataclass(frozen=True)
class Model:
    """A model with its tokenizer. `head` is the end of its class's name, such as ForMaskedLM, or nothing."""

    name: str
    tokenizer: Any
    model: Any
    head: str

    @property
    def longest(self) -> int:
        return self.model.config.max_position_embeddings

    def encode(self, text: str, longest: int, what: str = "text") -> list[int]:
        """A text's tokens.

        Raises:
            BadInputError: there is no text, or there are more than `longest` tokens, naming `what` it is.
        """
        if not text.strip():
            raise BadInputError(f"There is no {what}. Write one above, or take an example.")
        ids = self.tokenizer(text, verbose=False)["input_ids"]
        if len(ids) > longest:
            raise BadInputError(f"The {what} is too long: {len(ids):,} tokens, and here {longest:,} are the most. Shorten it.")
        return ids

    def masked(self, text: str) -> str:
        """A text with the model's own mask for `MASK`."""
        return text.replace(MASK, self.tokenizer.mask_token)

    @torch.inference_mode()
    def run(self, ids: list[int], encoder: bool = False, **options) -> Any:
        """What the model, or its encoder alone, makes of one text."""
        model = self.model.base_model if encoder else self.model
        return model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), **options)


def load(name: str, trust_remote_code: bool) -> Model:
    """The model in a folder or on the Hub, on CPU, in fp32.

    Raises:
        BadInputError: it cannot be loaded.
    """
    if not Path(name).is_dir() and (name.count("/") > 1 or name.startswith((".", "/"))):  # no name on the Hub
        raise BadInputError(f"{name}: no such folder")
    try:
        return load_trusting(name, trust_remote_code)
    except Exception as error:  # transformers raises many kinds
        text = " ".join(str(error).split())
        if "trust_remote_code" in text:
            text = "it brings code of its own; read that, and if you trust it, --trust_remote_code true runs it"
        raise BadInputError(f"{name}: cannot be loaded: {text[:300]}") from error


def load_trusting(name: str, trust_remote_code: bool) -> Model:
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    config = transformers.AutoConfig.from_pretrained(name, **options)
    heads = [kind for kind in ("ForMaskedLM", "ForQuestionAnswering") if (config.architectures or [""])[0].endswith(kind)]
    auto_class = getattr(transformers, f"AutoModel{heads[0] if heads else ''}")
    # Of stock ModernBERT, eager alone gives attention weights. This project's model gives them with any backend.
    backend = "eager" if config.model_type == "modernbert" else "sdpa"
    model = auto_class.from_pretrained(name, use_safetensors=True, dtype=torch.float32, attn_implementation=backend, **options)
    tokenizer = transformers.AutoTokenizer.from_pretrained(name, **options)
    shown = Path(name).resolve().name if Path(name).is_dir() else name  # where a folder lies is nobody's business
    return Model(shown, tokenizer, model.eval(), heads[0] if heads else "")


def model_for(models: list[Model], head: str) -> Model:
    """The first model with this head.

    Raises:
        BadInputError: none has it.
    """
    for model in models:
        if model.head == head:
            return model
    wanted = {
        "ForMaskedLM": "a model as pretraining leaves it, with the head that fills masks",
        "ForQuestionAnswering": "a model that was fine-tuned for reading comprehension, as eval/mrc.py does",
    }
    raise BadInputError(f"{', '.join(model.name for model in models)} cannot do this. It takes {wanted[head]}.")


# --- what the tabs compute ---


def spell(token: str) -> str:
    """A token as people see it; a line break or a space as Python writes it."""
    if "\ufffd" in token:
        return "part of a character"
    return token if token.isprintable() and token.strip() else repr(token)


def fill_masks(model: Model, text: str) -> list[list[tuple[str, float]]]:
    """For each [MASK], the likeliest tokens and their probabilities, each mask by itself.

    Raises:
        BadInputError: there is no mask, or there are too many.
    """
    ids = model.encode(model.masked(text), model.longest)
    places = [place for place, token in enumerate(ids) if token == model.tokenizer.mask_token_id]
    if not 1 <= len(places) <= MOST_MASKS:
        said = f"There are {len(places)} masks" if places else "There is no mask"
        raise BadInputError(f"{said}. Write {MASK} where the model is to guess, at 1 to {MOST_MASKS} places.")
    likeliest = model.run(ids).logits[0, places].softmax(-1).topk(CANDIDATES)

    return [
        [(spell(model.tokenizer.decode([token])), share) for share, token in zip(shares, tokens, strict=True)]
        for shares, tokens in zip(likeliest.values.tolist(), likeliest.indices.tolist(), strict=True)
    ]


def similarities(model: Model, sentences: list[str]) -> torch.Tensor:
    """`(N, N)` cosines of the sentences' vectors. A vector is the mean over the tokens.

    Raises:
        BadInputError: there are too few sentences, or too many.
    """
    if not 2 <= len(sentences) <= MOST_SENTENCES:
        raise BadInputError(f"Write 2 to {MOST_SENTENCES} sentences, one a line. There are {len(sentences)}.")
    texts = [model.encode(sentence, model.longest, f"sentence {number}") for number, sentence in enumerate(sentences, 1)]
    vectors = torch.stack([model.run(ids, encoder=True).last_hidden_state[0].mean(0) for ids in texts])
    vectors = torch.nn.functional.normalize(vectors, dim=-1)
    return vectors @ vectors.T


def find_answers(model: Model, question: str, text: str, count: int = 3) -> list[tuple[int, int, float]]:
    """The likeliest answers: their first character in the text, the one behind them, and their share of the probability.

    A text longer than a window is read in windows that overlap. Answers that overlap a likelier one are left out.

    Raises:
        BadInputError: there is no question or text, or one is too long.
    """
    window = min(WINDOW, model.longest)
    stride = min(STRIDE, window // 8)
    model.encode(question, window // 4, "question")
    model.encode(text, LONGEST_READ)
    parts = model.tokenizer(
        *(question, text),
        truncation="only_second",
        max_length=window,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    found: dict[tuple[int, int], float] = {}
    for number, ids in enumerate(parts["input_ids"]):
        outputs = model.run(ids)
        of_text = torch.tensor([kind == 1 for kind in parts.sequence_ids(number)])
        starts, ends = (
            logits[0].masked_fill(~of_text, -torch.inf).double() for logits in (outputs.start_logits, outputs.end_logits)
        )
        first, last = starts.topk(min(20, int(of_text.sum()))), ends.topk(min(20, int(of_text.sum())))
        for start, begin in zip(first.values.tolist(), first.indices.tolist(), strict=True):
            for end, stop in zip(last.values.tolist(), last.indices.tolist(), strict=True):
                if 0 <= stop - begin < LONGEST_ANSWER:
                    offsets = parts["offset_mapping"][number]
                    place = (offsets[begin][0], offsets[stop][1])
                    found[place] = max(found.get(place, -torch.inf), start + end)
    if not found:
        raise BadInputError("The model finds no answer. Ask in another way.")
    chosen: list[tuple[int, int, float]] = []
    shares = torch.tensor(list(found.values())).softmax(0).tolist()
    for share, (begin, end) in sorted(zip(shares, found, strict=True), key=lambda pair: -pair[0]):
        if begin < end and all(end <= other[0] or other[1] <= begin for other in chosen):
            chosen.append((begin, end, share))
    return chosen[:count]


@dataclass(frozen=True)
class Span:
    """How far one layer looks. Distances are in tokens.

    Attributes:
        reach: within which distance the `SHARES` of the attention lie, over all heads.
        alike: the same, if every token looked alike at all that it can see.
        heads: within which distance half of each head's attention lies.
        special: the share of the attention that [CLS] and [SEP] get, which is not in the rest.
    """

    full: bool
    reach: list[int]
    alike: list[int]
    heads: list[int]
    special: float


def attention_spans(model: Model, text: str) -> list[Span]:
    """How far each layer looks on a text, by its attention weights."""
    ids, config = model.encode(text, min(model.longest, LONGEST_ATTENTION)), model.model.config
    attentions = model.run(ids, encoder=True, output_attentions=True).attentions
    real = torch.tensor([token not in model.tokenizer.all_special_ids for token in ids])
    if not real.any():
        raise BadInputError("There is nothing in the text but special tokens. Write words.")
    place = torch.arange(len(ids))[real]
    distance = (place[:, None] - place).abs()

    def reach(weights: torch.Tensor) -> list[int]:
        """Of `(T, T)` weights: the least distances within which the shares lie."""
        by_distance = torch.zeros(len(ids), dtype=torch.float64)
        by_distance.index_add_(0, distance.flatten(), weights.double().flatten())
        shares = by_distance.cumsum(0) / by_distance.sum()
        return [int((shares >= share - 1e-9).nonzero()[0]) for share in SHARES]

    spans = []
    for kind, weights in zip(config.layer_types, attentions, strict=True):
        full, among = kind == "full_attention", weights[0][:, real][:, :, real]  # (A, T, T), of real tokens
        visible = torch.ones_like(distance) if full else (distance <= config.local_attention // 2).long()
        special = 1 - float(among.sum() / weights[0][:, real].sum())
        spans.append(Span(full, reach(among.sum(0)), reach(visible), [reach(head)[0] for head in among], special))
    return spans
