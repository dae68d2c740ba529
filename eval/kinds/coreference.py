"""Coreference by a head on any encoder: which spans are mentions, and which earlier mention each refers to.

The head is that of https://aclanthology.org/2021.acl-short.3: spans are scored by their first and last tokens, without a vector
of their own, so that a document of 8,192 tokens takes no more memory than its pairs of likely mentions. The loss is that of the
antecedents (https://aclanthology.org/D17-1018), and of what is a mention, so that little training data is enough to find any.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from zh_modernbert.eval.finetuning.training import Examples
from zh_modernbert.eval.kinds.kind import Kind
from zh_modernbert.eval.kinds.offsets import trimmed
from zh_modernbert.eval.metrics import coreference
from zh_modernbert.eval.tasks.rows import Row

WIDEST = 16  # tokens of a mention
KEPT = 0.4  # of the likeliest mentions, for each token
SIZE = 256  # of what a token is to the head
NONE = -100  # where there is no mention, as Trainer pads


class Side(nn.Module):
    """What tokens are to the head as first or last ones."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.dense = nn.Linear(hidden_size, SIZE)
        self.norm = nn.LayerNorm(SIZE)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.norm(F.gelu(self.dense(hidden_states)))


class CoreferenceModel(nn.Module):
    """An encoder with the head."""

    def __init__(self, encoder: PreTrainedModel):
        super().__init__()
        self.encoder = encoder
        size = encoder.config.hidden_size
        self.first, self.last = Side(size), Side(size)  # of a mention
        self.first_alone, self.last_alone = nn.Linear(SIZE, 1), nn.Linear(SIZE, 1)
        self.first_with_last = nn.Linear(SIZE, SIZE, bias=False)
        self.refers, self.referred = Side(2 * size), Side(2 * size)  # of a pair
        self.refers_to = nn.Linear(SIZE, SIZE, bias=False)

    def mention_scores(self, hidden_states: torch.Tensor, in_text: torch.Tensor) -> torch.Tensor:
        """`(T, H)` -> `(T, W)`: the score of the span from each token, of 1 to W tokens; -inf where it leaves the text."""
        first, last = self.first(hidden_states), self.last(hidden_states)
        # (T, W, SIZE): the last tokens of the spans from each token.
        lasts = F.pad(last, (0, 0, 0, WIDEST - 1)).unfold(0, WIDEST, 1).transpose(1, 2)
        together = torch.einsum("td,twd->tw", self.first_with_last(first), lasts) / SIZE**0.5
        alone = F.pad(self.last_alone(last).squeeze(-1), (0, WIDEST - 1)).unfold(0, WIDEST, 1)
        scores = self.first_alone(first) + alone + together
        inside = F.pad(in_text, (0, WIDEST - 1)).unfold(0, WIDEST, 1).cumprod(1).bool()
        return scores.masked_fill(~inside, -torch.inf)

    def pair_scores(self, hidden_states: torch.Tensor, spans: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Spans `(K, 2)` in order -> `(K, 1 + K)`: the score that each refers to none, and to each earlier one."""
        ends = hidden_states[spans].flatten(1)
        pairs = self.refers_to(self.refers(ends)) @ self.referred(ends).T / SIZE**0.5 + scores[:, None] + scores
        earlier = torch.ones_like(pairs).tril(-1).bool()
        return F.pad(pairs.masked_fill(~earlier, -torch.inf), (1, 0))

    def document(self, hidden_states: torch.Tensor, in_text: torch.Tensor, labels: torch.Tensor | None):
        """Links `(K, 3)` of one document: first and last token of a likely mention, and the number of the one it refers to, or
        -1; and the loss."""
        scores = self.mention_scores(hidden_states, in_text)
        count = min(int(KEPT * int(in_text.sum())) + 1, int(scores.isfinite().sum()))
        kept = scores.flatten().topk(count).indices.sort().values
        first = kept // WIDEST
        spans = torch.stack([first, first + kept % WIDEST], dim=1)
        pairs = self.pair_scores(hidden_states, spans, scores.flatten()[kept])
        links = torch.cat([spans, pairs.argmax(1, keepdim=True) - 1], dim=1)
        if labels is None:
            return links, None
        clusters = torch.zeros_like(scores, dtype=torch.long)  # the number of each span's cluster from 1, or 0
        labels = labels[labels[:, 0] != NONE]
        clusters[labels[:, 0], labels[:, 1] - labels[:, 0]] = labels[:, 2] + 1
        possible = scores.isfinite()
        are_mentions = (clusters > 0).float()[possible]
        mention_loss = F.binary_cross_entropy_with_logits(scores[possible], are_mentions, reduction="sum")
        number = clusters.flatten()[kept]
        right = (number[:, None] == number) & (number > 0) & pairs[:, 1:].isfinite()
        right = torch.cat([~right.any(1, keepdim=True), right], dim=1)
        pair_loss = pairs.logsumexp(1) - pairs.masked_fill(~right, -torch.inf).logsumexp(1)
        return links, (mention_loss + pair_loss.sum()) / in_text.sum()

    def forward(self, input_ids, attention_mask, in_text, labels=None) -> dict[str, torch.Tensor]:
        """Padded documents `(B, T)` -> `links` `(B, K, 3)`, and the loss where there are labels `(B, M, 3)`: first and last
        token and cluster of each mention."""
        hidden_states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
        found = [
            self.document(hidden_states[row], in_text[row], None if labels is None else labels[row])
            for row in range(len(input_ids))
        ]
        links = pad_sequence([links for links, _ in found], batch_first=True, padding_value=NONE)
        losses = [loss for _, loss in found if loss is not None]
        return {"links": links} | ({"loss": torch.stack(losses).mean()} if losses else {})


# --- documents to inputs ---


def token_of(offsets: list[tuple[int, int]]) -> dict[int, int]:
    """Place of a character -> the token that it is in."""
    return {place: token for token, (start, end) in reversed([*enumerate(offsets)]) for place in range(start, end)}


def encode(tokenizer: PreTrainedTokenizerBase, max_length: int, rows: list[Row]) -> Examples:
    """The windows of documents, one after another without overlap. Clusters of two windows are never one."""
    features, owners, offsets_of = [], [], []
    for owner, row in enumerate(rows):
        windows = tokenizer(
            row.values["text"],
            truncation=True,
            max_length=max_length,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        for ids, offsets, special in zip(
            windows["input_ids"], windows["offset_mapping"], windows["special_tokens_mask"], strict=True
        ):
            labels = labels_of(row.values["text"], row.values["clusters"], offsets)
            in_text = [1 - flag for flag in special]
            features.append({"input_ids": ids, "in_text": in_text, "labels": labels or [[NONE] * 3]})
            owners.append(owner)
            offsets_of.append(offsets)

    def decode(predictions: Any) -> list[list[list[tuple[int, int]]]]:
        """Of each document, its clusters by characters."""
        clusters: list[list[list[tuple[int, int]]]] = [[] for _ in rows]
        for owner, offsets, links in zip(owners, offsets_of, predictions, strict=True):
            clusters[owner] += clusters_of(rows[owner].values["text"], links[links[:, 0] != NONE].tolist(), offsets)
        return clusters

    return Examples(Dataset.from_list(features), [row.values["clusters"] for row in rows], decode)


def labels_of(text: str, clusters: list[list[tuple[int, int]]], offsets: list[tuple[int, int]]) -> list[list[int]]:
    """First and last token and cluster of each mention that a model can find.

    It cannot find one whose edges are within tokens or not in this window, nor one wider than `WIDEST`.
    """
    places, labels = token_of(offsets), []
    for number, cluster in enumerate(clusters):
        for start, end in cluster:
            first, last = places.get(start, 0), places.get(end - 1, 0)
            if trimmed(text, offsets[first][0], offsets[last][1]) == (start, end) and last - first < WIDEST:
                labels.append([first, last, number])
    return labels


def lost_mentions(examples: Examples) -> int:
    """How many mentions no model can find."""
    labelled = sum(label[0] != NONE for labels in examples.features["labels"] for label in labels)
    return sum(len(cluster) for clusters in examples.references for cluster in clusters) - labelled


def clusters_of(text: str, links: list[list[int]], offsets: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """What links join. A mention that is linked to none is left out, and so is white space.

    Tokens that differ in white space or in parts of a character are one mention, of the first cluster that has it.
    """
    mentions = [trimmed(text, offsets[first][0], offsets[last][1]) for first, last, _ in links]
    owner, clusters = {}, []
    for mention, (_, _, antecedent) in zip(mentions, links, strict=True):
        earlier = mentions[antecedent]
        if antecedent < 0 or mention in owner or mention == earlier or "" in (text[slice(*mention)], text[slice(*earlier)]):
            continue
        if earlier not in owner:
            owner[earlier] = len(clusters)
            clusters.append([earlier])
        owner[mention] = owner[earlier]
        clusters[owner[mention]].append(mention)
    return clusters


def collate(tokenizer: PreTrainedTokenizerBase, features: list[dict]) -> dict[str, torch.Tensor]:
    def padded(name: str, value: int) -> torch.Tensor:
        return pad_sequence([torch.tensor(each[name]) for each in features], batch_first=True, padding_value=value)

    return {
        "input_ids": padded("input_ids", getattr(tokenizer, "pad_token_id", None) or 0),
        "attention_mask": pad_sequence([torch.ones(len(each["input_ids"]), dtype=torch.long) for each in features], True),
        "in_text": padded("in_text", 0),
        "labels": padded("labels", NONE),
    }


def coreference_kind(tokenizer: PreTrainedTokenizerBase, max_length: int) -> Kind:
    return Kind(
        AutoModel,
        {},
        partial(encode, tokenizer, max_length),
        partial(collate, tokenizer),
        coreference.score,
        lambda train, scored: {},
        lambda answers, rows: [{**row.values, "clusters": found} for row, found in zip(rows, answers, strict=True)],
        around=CoreferenceModel,
    )
