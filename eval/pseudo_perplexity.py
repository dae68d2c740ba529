"""Pseudo-perplexity of a masked language model on text (https://arxiv.org/abs/1910.14659), exact: every token is masked once.

Pseudo-perplexity is exp(-mean of log P(token | the rest of its document)) over all tokens. Bits per character come from the
same sum. The perplexity of a unigram model on the same tokens stands beside it: what is possible without context.

    python eval/pseudo_perplexity.py --model runs/quickstart/model --trust_remote_code true \
        --input runs/quickstart/held_out_hans.jsonl --unigram_input runs/quickstart/dedup
"""

import math
import time
from dataclasses import dataclass

import zh_modernbert.train.common.openmp  # noqa: F401  # before torch is loaded

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForMaskedLM, AutoTokenizer

from zh_modernbert.eval.tasks.results import write_result
from zh_modernbert.train.common.cli import BaseSettings, InputError, describe, run, setting
from zh_modernbert.train.common.model_folder import load_by_auto_class
from zh_modernbert.train.corpus.source import Source, read_source


@dataclass
class Settings(BaseSettings):
    model: str = setting(help="model folder or Hub id")
    trust_remote_code: bool = setting(False, "run the code that the model's folder brings")
    input: list[str] = setting([], "text files or folders, as for train/sources.py")
    unigram_input: list[str] = setting([], "text that the unigram model is fitted on; the scored text itself where empty")
    name: str = setting("pseudo_perplexity", "what the result is called")
    max_length: int = setting(128, "documents are cut to so many tokens, with the special ones", least=3)
    max_documents: int = setting(0, "score only so many, the first; 0 scores all", least=0)
    batch_tokens: int = setting(8192, "tokens computed at once", least=1)
    results_dir: str = setting("results", "where the result file goes")


@torch.inference_mode()
def log_probabilities(model, ids: torch.Tensor, positions: torch.Tensor, mask_id: int, batch_tokens: int) -> torch.Tensor:
    """`(P,)` float64: log P of the token at each of P positions of a document `(T,)`, with that token alone masked."""
    results = []
    for part in positions.split(max(batch_tokens // len(ids), 1)):
        rows = torch.arange(len(part), device=ids.device)
        masked = ids.repeat(len(part), 1)
        masked[rows, part] = mask_id
        labels = torch.full_like(masked, -100)
        labels[rows, part] = ids[part]
        logits = model(input_ids=masked, attention_mask=torch.ones_like(masked), labels=labels).logits
        if logits.ndim == 3:  # a model without sparse_prediction gives logits everywhere
            logits = logits[rows, part]
        results.append(logits.double().log_softmax(-1)[rows, ids[part]])
    return torch.cat(results)


def unigram_perplexity(tokens: np.ndarray, fitted_on: np.ndarray | None = None, vocab_size: int = 0) -> float:
    """The perplexity of `tokens` under a unigram model.

    The model has the frequencies of `fitted_on`, with one added for each of `vocab_size` entries. Without `fitted_on` it has
    the frequencies of `tokens` themselves. Then no unigram model has a lower perplexity, and for short texts it is far too low.
    """
    counts = np.bincount(tokens) if fitted_on is None else np.bincount(fitted_on, minlength=vocab_size) + 1
    return float(np.exp(-np.log(counts[tokens] / counts.sum()).mean()))


def token_ids(tokenizer, paths: list[str]) -> np.ndarray:
    """All token ids of the documents in `paths`, without special tokens."""
    texts = [document["text"] for path in paths for document in read_source(Source(path=path))]
    return np.array([token for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] for token in ids], dtype=np.int64)


def load(settings: Settings):
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.model, trust_remote_code=settings.trust_remote_code)
    except Exception as error:  # transformers and tokenizers raise many kinds
        raise InputError(f"{settings.model}: cannot be loaded: {describe(error)}") from error
    model = load_by_auto_class(AutoModelForMaskedLM, settings.model, trust_remote_code=settings.trust_remote_code)
    if hasattr(model.config, "sparse_prediction"):
        model.config.sparse_prediction = True  # logits at the masked token only
    longest = getattr(model.config, "max_position_embeddings", settings.max_length)
    if settings.max_length > longest:
        raise InputError(f"max_length is {settings.max_length}, longer than the model's max_position_embeddings ({longest})")
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # pyright: ignore[reportArgumentType]  # transformers' `to` hides its `self`
    return tokenizer, model.eval()


def main(settings: Settings) -> dict:
    started = time.perf_counter()
    if not settings.input:
        raise InputError("pseudo_perplexity: no input; give --input FILE ...")
    documents = [document for path in settings.input for document in read_source(Source(path=path))]
    documents = documents[: settings.max_documents or None]
    if not documents:
        raise InputError(f"{', '.join(settings.input)}: no text in it")
    tokenizer, model = load(settings)
    fitted_on = token_ids(tokenizer, settings.unigram_input) if settings.unigram_input else None
    log_probability, characters, tokens, documents_scored = 0.0, 0, [], 0
    with tqdm(documents, desc=settings.name, unit=" documents") as progress:
        for document in progress:
            encoded = tokenizer(
                document["text"],
                truncation=True,
                max_length=settings.max_length,
                return_offsets_mapping=True,
                return_special_tokens_mask=True,
            )
            ids = torch.tensor(encoded["input_ids"], device=model.device)
            positions = (torch.tensor(encoded["special_tokens_mask"]) == 0).nonzero().flatten().to(model.device)
            if not len(positions):
                continue
            scored = log_probabilities(model, ids, positions, tokenizer.mask_token_id, settings.batch_tokens)
            log_probability += float(scored.sum())
            tokens.extend(ids[positions].tolist())
            characters += max(end for _, end in encoded["offset_mapping"])
            documents_scored += 1
            progress.set_postfix(perplexity=f"{math.exp(-log_probability / len(tokens)):.1f}")
    result = {
        "task": settings.name,
        "split": "all",
        "model": settings.model,
        "primary_metric": "pseudo_perplexity",
        "metrics": {
            "pseudo_perplexity": round(math.exp(-log_probability / len(tokens)), 3),
            "unigram_perplexity": round(unigram_perplexity(np.array(tokens), fitted_on, len(tokenizer)), 3),
            "bits_per_character": round(-log_probability / math.log(2) / characters, 4),
            "tokens": len(tokens),
            "characters": characters,
        },
        "num_examples": documents_scored,
        "seed": 0,
        "hyperparameters": {"max_length": settings.max_length},
        "notes": "",
        "runtime_seconds": round(time.perf_counter() - started, 1),
    }
    write_result(settings.results_dir, result)
    return result


if __name__ == "__main__":
    run(main, Settings)
