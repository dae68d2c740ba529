"""Packed rows -> a model to start pretraining from: what random weights learn first is counted instead.

Token embeddings come from which tokens stand near one another: the leading vectors of their positive pointwise mutual
information (Levy, Goldberg and Dagan 2015, https://aclanthology.org/Q15-1016). The decoder's bias is the logarithm of the
tokens' frequencies. All else is random. A small model that sees few tokens gains most by this: docs/pretraining.md.

    python train/initialise.py --data_dir runs/mine/packed_1024 --model_config train/configs/nano/model.json \\
        --output_dir runs/mine/initial
    accelerate launch train/pretrain.py PRESET.yaml --init_from runs/mine/initial
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import zh_modernbert.train.common.extras  # names the extra of a missing package
import zh_modernbert.train.common.openmp  # noqa: F401  # before torch is loaded

import numpy as np
import torch
from tqdm import tqdm

from zh_modernbert.modeling_zh_modernbert import ZhModernBertForMaskedLM
from zh_modernbert.train.common.cli import BaseSettings, InputError, run, setting
from zh_modernbert.train.common.stage import run_stage
from zh_modernbert.train.pretraining.set_up import read_model_config
from zh_modernbert.train.rows.masking import special_ids_of
from zh_modernbert.train.rows.packed import PackedRows
from zh_modernbert.train.tokenizer.loading import load_tokenizer

SMOOTHING = 0.75  # exponent of the contexts' frequencies, so that rare contexts do not rule (ibid., section 3.2)
CHUNK = 1 << 21  # tokens counted at once
ITERATIONS = 5


@dataclass
class Settings(BaseSettings):
    data_dir: str = setting(help="packed folder to count in")
    output_dir: str = setting(help="model folder to write")
    model_config: str = setting(help="JSON file of ZhModernBertConfig's fields")
    tokens: int = setting(30_000_000, "count in about so many, of rows spread evenly", least=1)
    window: int = setting(5, "tokens on either side that count as near", least=1, most=100)
    seed: int = setting(0, "of the random weights", least=0, most=2**63 - 1)


def read_chunks(rows: PackedRows, tokens: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ids, numbers of their documents) `(N,)` of rows spread evenly over the folder, some `CHUNK` tokens at once."""
    count = max(1, min(len(rows), tokens // rows.seq_len))
    per_chunk = max(1, CHUNK // rows.seq_len)
    for first in tqdm(range(0, count, per_chunk), desc="count", unit=" chunks"):
        chosen = [rows.row(place * len(rows) // count) for place in range(first, min(first + per_chunk, count))]
        lengths = np.concatenate([np.diff(bounds) for _, _, bounds in chosen])
        yield np.concatenate([ids for ids, _, _ in chosen]).astype(np.int64), np.repeat(np.arange(len(lengths)), lengths)


def count_pairs(ids: np.ndarray, documents: np.ndarray, counted: np.ndarray, window: int) -> torch.Tensor:
    """`(V, V)` sparse: how often one token stands before another of its document, at most `window` tokens apart.

    Args:
        ids, documents: `(N,)`. counted: `(V,)` bool, False for tokens that are left out.
    """
    size, pairs = len(counted), []
    for distance in range(1, window + 1):
        first, second = ids[:-distance], ids[distance:]
        kept = (documents[:-distance] == documents[distance:]) & counted[first] & counted[second]
        pairs.append(np.stack([first[kept], second[kept]]))
    places = torch.from_numpy(np.concatenate(pairs, axis=1))
    return torch.sparse_coo_tensor(places, torch.ones(places.shape[1]), (size, size), check_invariants=False).coalesce()


def positive_information(pairs: torch.Tensor) -> torch.Tensor:
    """Positive pointwise mutual information of symmetric counts `(V, V)`, symmetric and sparse.

    Contexts are smoothed, and the value of a pair is the mean of those with either token as the context.
    """
    (row, column), counts = pairs.indices(), pairs.values().double()
    tokens = torch.zeros(len(pairs), dtype=torch.float64).index_add_(0, row, counts)
    contexts = tokens**SMOOTHING
    expected = (tokens / tokens.sum()).log() + (contexts / contexts.sum()).log()
    information = (counts / counts.sum()).log() - (expected[row] + expected[column]) / 2
    kept = information > 0
    places, values = pairs.indices()[:, kept], information[kept].float()
    return torch.sparse_coo_tensor(places, values, pairs.shape, is_coalesced=True, check_invariants=False)


def embed(information: torch.Tensor, size: int) -> torch.Tensor:
    """`(V, size)` vectors whose products come near symmetric `information`, each of length 1; 0 for tokens without any.

    They are its leading eigenvectors, by subspace iteration (Halko, Martinsson and Tropp 2011, https://arxiv.org/abs/0909.4061).

    Raises:
        InputError: there are fewer tokens than `size`.
    """
    if len(information) < size:
        raise InputError(f"initialise: {len(information)} tokens have no vectors of {size}; choose a smaller hidden_size")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        matrix = information.to_sparse_csr()
    basis = torch.randn(len(information), size)
    for _ in tqdm(range(ITERATIONS), desc="embed", unit=" iterations"):
        basis, _ = torch.linalg.qr(matrix @ basis)
    values, rotation = torch.linalg.eigh(basis.T @ (matrix @ basis))
    return torch.nn.functional.normalize(basis @ rotation * values.clamp(min=0).sqrt(), dim=1)


@torch.no_grad()
def set_embeddings(model: ZhModernBertForMaskedLM, vectors: torch.Tensor, frequencies: np.ndarray) -> None:
    """Gives a random model the vectors `(V, H)`, as long as its own are, where they are not 0, and frequencies `(V,)`."""
    weight = model.model.embeddings.tok_embeddings.weight
    known = vectors.norm(dim=1) > 0.5
    length = weight.norm(dim=1).mean()
    weight[: len(vectors)][known] = length * vectors[known]
    if model.decoder.bias is not None:
        seen = torch.from_numpy(np.maximum(frequencies, 1).astype(np.float64))
        model.decoder.bias[: len(seen)] = (seen / seen.mean()).log().float()
        model.decoder.bias[len(seen) :] = -math.log(float(seen.mean()))


def build(settings: Settings, rows: PackedRows, folder: Path) -> dict:
    tokenizer = load_tokenizer(rows.tokenizer_dir)
    counted = ~np.isin(np.arange(rows.vocab_size), special_ids_of(tokenizer))
    pairs = torch.zeros(rows.vocab_size, rows.vocab_size, layout=torch.sparse_coo)
    frequencies = np.zeros(rows.vocab_size, np.int64)
    for ids, documents in read_chunks(rows, settings.tokens):
        pairs = (pairs + count_pairs(ids, documents, counted, settings.window)).coalesce()
        frequencies += np.bincount(ids, minlength=rows.vocab_size) * counted
    torch.manual_seed(settings.seed)
    model = ZhModernBertForMaskedLM(read_model_config(settings.model_config, rows.vocab_size, tokenizer))
    vectors = embed(positive_information((pairs + pairs.t()).coalesce()), model.config.hidden_size)
    set_embeddings(model, vectors, frequencies)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"tokens": int(frequencies.sum()), "pairs": pairs._nnz(), "embedded": int((vectors.norm(dim=1) > 0.5).sum())}


def main(settings: Settings) -> dict:
    return run_stage(settings, partial(build, settings, PackedRows(settings.data_dir)), [settings.model_config])


if __name__ == "__main__":
    run(main, Settings)
