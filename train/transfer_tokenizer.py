"""Another model's byte-level BPE -> the same for Traditional Chinese, with this model's special tokens: system B's tokenizer.

Entries that are Simplified text become Traditional (OpenCC, by phrases) and keep their ids. All other entries keep ids
and text. A Traditional form that is an entry already keeps its own id, and the id of the Simplified entry is free. A
free id takes, in this order: another form of its entry (发 becomes 發, or else 髮); an entry that merges need (里 became 裡,
but 公里 needs 里); another form of any entry. An id that nothing takes is named unused. Each merge is rewritten in its
place in the order. Text without Han characters is cut as before. [PAD] [UNK] [SEP] [CLS] [MASK] get ids after the
existing entries.

The normaliser is dropped, so that decoding gives back any text. NFC text has the same ids without it.

Writes the tokenizer and `transfer.json`, which lists ids and text of the entries that are changed, new, unused, or unreachable
(no text is cut into them).

    python train/transfer_tokenizer.py --tokenizer Qwen/Qwen2.5-0.5B --output_dir runs/system_b/tokenizer
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, pairwise
from operator import itemgetter
from pathlib import Path

import zh_modernbert.train.common.extras  # noqa: F401  # names the extra of a missing package

from huggingface_hub import hf_hub_download
from tokenizers import Tokenizer, models

from zh_modernbert.tokenization_zh_modernbert import ZhModernBertTokenizer, build_template
from zh_modernbert.train.common.cli import BaseSettings, InputError, describe, one_line, run, setting
from zh_modernbert.train.common.files import read_json, require_folder, write_json
from zh_modernbert.train.common.stage import run_stage
from zh_modernbert.train.corpus.characters import converter
from zh_modernbert.train.tokenizer.spelling import BYTES, spell, text_of

# In the order of system B's report.
NEW_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[SEP]", "[CLS]", "[MASK]")
VARIANTS = ("s2tw", "s2twp", "s2hk", "s2t")

_KANA = re.compile("[\u3040-\u30ff]")
# How tokens spell the first byte of a character from U+3000 to U+9FFF; no other character has such a byte.
_HAN_BYTE = re.compile("[ã-é]")
# `text_of` makes half surrogates of the bytes of an incomplete character. OpenCC gets the text between them.
_COMPLETE_CHARACTERS = re.compile("[^\udc80-\udcff]+")


@dataclass
class Settings(BaseSettings):
    tokenizer: str = setting(help="folder or Hub id of a byte-level BPE tokenizer")
    output_dir: str = setting(help="tokenizer folder to write")
    hant_variant: str = setting("s2tw", "OpenCC's name of the Traditional that Simplified entries become", VARIANTS)


# --- forms of a text ---


def traditional_characters() -> frozenset[str]:
    """Characters that have another form in Simplified, by OpenCC's tables, and are Traditional themselves."""
    characters = [chr(code) for first, last in ((0x3400, 0x4DBF), (0x4E00, 0x9FFF)) for code in range(first, last + 1)]
    hant, hans = (converter(config).convert("\n".join(characters)).split("\n") for config in ("s2t", "t2s"))
    return frozenset(c for c, same, other in zip(characters, hant, hans, strict=True) if c == same != other)


class TraditionalForms:
    """The Traditional forms of a text: first the form that it becomes, then others that it may stand for.

    Text with Traditional characters or with kana is no Simplified Chinese. It stays: its first form is itself.
    """

    def __init__(self, hant_variant: str):
        self.variants = list(dict.fromkeys((hant_variant, *VARIANTS)))
        self.traditional = traditional_characters()
        self.characters = defaultdict(list)  # Simplified character -> the Traditional ones that it stands for
        text = "".join(sorted(self.traditional))
        for character, simplified in zip(text, converter("t2s").convert(text), strict=True):
            self.characters[simplified].append(character)

    def __call__(self, text: str) -> list[str]:
        stays = _KANA.search(text) or self.traditional.intersection(text) or self.convert("s2t", text) == text
        forms = [text] if stays else [self.convert(variant, text) for variant in self.variants]
        return list(dict.fromkeys([*forms, *self.characters[text]]))

    def convert(self, config: str, text: str) -> str:
        return _COMPLETE_CHARACTERS.sub(lambda match: converter(config).convert(match[0]), text)


# --- the vocabulary ---


def rename(tokens: Iterable[str], forms: Callable[[str], list[str]]) -> tuple[dict[str, str | None], list[str]]:
    """New names of the tokens that do not stay, None where all forms of a token are taken; and the forms that no token took.

    A token that stays keeps its name. A form that two tokens could take goes to the first of them.
    """
    of_token = {token: [spell(form) for form in forms(text_of(token))] for token in tokens if _HAN_BYTE.search(token)}
    renamed: dict[str, str | None] = {token: None for token, candidates in of_token.items() if candidates[0] != token}
    taken = {token for token in tokens if token not in renamed}
    for take in (slice(1), slice(1, None)):  # first forms of all tokens, then other forms
        for token in renamed:
            if renamed[token] is None:
                for form in of_token[token][take]:
                    if form not in taken:
                        renamed[token] = form
                        taken.add(form)
                        break
    left = dict.fromkeys(form for candidates in of_token.values() for form in candidates[1:] if form not in taken)
    return renamed, list(left)


class Merges:
    """The merges of a BPE in their order, over spelled tokens.

    Merges are only added at the end. BPE applies earlier merges first, so a token that it could make before, it can make still.
    """

    def __init__(self):
        self.ranks: dict[tuple[str, str], int] = {}

    def add(self, left: str, right: str) -> None:
        self.ranks.setdefault((left, right), len(self.ranks))

    def split(self, token: str) -> list[str]:
        """The tokens into which BPE cuts the spelled text."""
        parts = list(token)
        while len(parts) > 1:
            rank, place = min((self.ranks.get(pair, math.inf), place) for place, pair in enumerate(pairwise(parts)))
            if rank == math.inf:
                break
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        return parts

    def join(self, token: str) -> None:
        """Adds the merges that make the spelled text one token."""
        while len(parts := self.split(token)) > 1:
            self.add(*parts[:2])

    def join_if_near(self, token: str) -> bool:
        """Adds the merges that make the spelled text one token, if at most one is missing once its characters are tokens.

        Returns whether the text is one token now.
        """
        if len(parts := self.split(token)) > 2:
            for character in "".join(_COMPLETE_CHARACTERS.findall(text_of(token))):
                self.join(spell(character))
            parts = self.split(token)
        if len(parts) <= 2:
            self.join(token)
        return len(parts) <= 2


def rewrite(merges: Iterable[tuple[str, str]], renamed: dict[str, str | None]) -> Merges:
    """The merges of the renamed tokens, each in the place of the merge that it replaces."""
    rewritten, waiting = Merges(), []
    for left, right in merges:
        token = renamed.get(left + right, left + right)
        if token is None:
            continue
        if not _HAN_BYTE.search(left + right):
            rewritten.add(left, right)
        elif not rewritten.join_if_near(token):
            waiting.append(token)
    for token in waiting:  # merges that came later may have made its parts by now; the missing ones are added
        rewritten.join(token)
    return rewritten


@dataclass
class Transfer:
    """The new vocabulary and merges, and the entries that changed, are new, or have no use."""

    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    changed: list[str]
    new: list[str]
    unused: list[str]


def transfer(
    vocab: dict[str, int], merges: list[tuple[str, str]], added: dict[str, int], forms: Callable[[str], list[str]]
) -> Transfer:
    """A vocabulary of spelled tokens, moved to Traditional.

    Args:
        added: tokens beside the vocabulary, which keep their ids.
        forms: returns the forms of a text, the preferred one first; for a text that stays this is the text itself.
    """
    renamed, further = rename(sorted(vocab, key=vocab.__getitem__), forms)
    rewritten = rewrite(merges, renamed)
    entries = {form: token_id for token, token_id in vocab.items() if (form := renamed.get(token, token)) is not None}
    entries |= added
    size = 1 + max(entries.values())
    free = sorted(set(range(size)).difference(entries.values()))

    def lacking() -> list[str]:
        return list(dict.fromkeys(left + right for left, right in rewritten.ranks if left + right not in entries))

    room = len(free) - len(lacking())
    for form in further:  # a character at any cost; a phrase only of two tokens: of three, it would add a useless entry
        cost = len(rewritten.split(form)) - 1
        if 0 < cost <= (room if len(text_of(form)) == 1 else min(room, 1)):
            rewritten.join(form)
            room -= cost
    new = lacking()
    unused = [f"[unused{token_id}]" for token_id in free[len(new) :]]
    entries |= zip([*new, *unused], chain(free, count(size)), strict=False)
    changed = [form for token, form in renamed.items() if form not in (None, token)]
    return Transfer(entries, list(rewritten.ranks), changed, new, unused)


# --- the tokenizer ---


def find_tokenizer(source: str) -> Path:
    """The path of the `tokenizer.json` in a folder or of a Hub id, downloaded unless it is in the cache.

    Raises:
        InputError: there is none.
    """
    if Path(source).is_dir():
        return require_folder(source, "tokenizer.json") / "tokenizer.json"
    try:
        return Path(hf_hub_download(source, "tokenizer.json"))
    except (OSError, ValueError) as error:
        raise InputError(f"{source}: no such folder, nor to be had from the Hub: {describe(error)}") from error


def read_tokenizer(path: Path) -> dict:
    """The contents of a `tokenizer.json`.

    Raises:
        InputError: it is no byte-level BPE.
    """
    written = read_json(path)
    try:
        model = Tokenizer.from_str(json.dumps(written)).model
    except Exception as error:  # tokenizers raises plain Exception
        raise InputError(f"{path}: not a tokenizer: {one_line(error)}") from error

    def require(condition: bool, what: str):
        if not condition:
            raise InputError(f"{path}: {what}; only a byte-level BPE such as Qwen2.5's can be moved to Traditional")

    require(isinstance(model, models.BPE), f"its model is {type(model).__name__}")
    for part in ("pre_tokenizer", "decoder"):
        require('"ByteLevel"' in json.dumps(written.get(part)), f"its {part} is not ByteLevel")
    require('"add_prefix_space": true' not in json.dumps(written.get("pre_tokenizer")), "its pre_tokenizer adds a space")
    require(not model.continuing_subword_prefix and not model.end_of_word_suffix, "its model marks parts of words")
    added = {token["content"] for token in written.get("added_tokens", [])}
    spelled = written["model"]["vocab"].keys() - added
    require(spelled >= BYTES.keys(), "some of the 256 bytes are no entries")
    odd = min((token for token in spelled if not BYTES.keys() >= set(token)), default=None)
    require(odd is None, f"the entry {odd!r} is not spelled in bytes")
    return written


def transfer_tokenizer(written: dict, hant_variant: str) -> tuple[Tokenizer, Transfer]:
    """The tokenizer with the contents of a `tokenizer.json`, moved to Traditional."""
    model, added = written["model"], {token["content"]: token for token in written.get("added_tokens", [])}
    vocab = {token: token_id for token, token_id in model["vocab"].items() if token not in added}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    new_ids = count(1 + max(chain(vocab.values(), (token["id"] for token in added.values()))))
    for content in NEW_SPECIAL_TOKENS:
        if content not in added:
            added[content] = {"id": next(new_ids), "content": content, **flags}
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    merges = [(left, right) for left, right in pairs]
    # Added tokens become entries of the model too. Otherwise tokenizers would number them anew, after the last entry.
    moved = transfer(vocab, merges, {content: token["id"] for content, token in added.items()}, TraditionalForms(hant_variant))
    backend = Tokenizer.from_str(
        json.dumps(
            {
                **written,
                "truncation": None,
                "padding": None,
                "normalizer": None,
                "added_tokens": [{**token, "special": True} for token in sorted(added.values(), key=itemgetter("id"))],
                "post_processor": None,
                "model": {**model, "vocab": moved.vocab, "merges": moved.merges},
            }
        )
    )
    backend.post_processor = build_template(moved.vocab["[CLS]"], moved.vocab["[SEP]"])
    return backend, moved


def unreachable(backend: Tokenizer) -> list[str]:
    """Entries that the tokenizer does not make of their own text, or of their own bytes where these are no complete text."""
    plain = Tokenizer(backend.model)
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    found, vocab = [], backend.get_vocab()
    for token in sorted(vocab.keys() - added, key=vocab.__getitem__):
        text = text_of(token)
        tokenizer, text = (backend, text) if _COMPLETE_CHARACTERS.fullmatch(text) else (plain, token)
        if tokenizer.encode(text, add_special_tokens=False).ids != [backend.token_to_id(token)]:
            found.append(token)
    return found


def build(settings: Settings, path: Path, folder: Path) -> dict:
    backend, moved = transfer_tokenizer(read_tokenizer(path), settings.hant_variant)

    def listed(tokens: Iterable[str]) -> dict[int, str]:
        return {moved.vocab[token]: text_of(token, "backslashreplace") for token in tokens}

    report = {
        "changed": listed(moved.changed),
        "new": listed(moved.new),
        "unused": listed(moved.unused),
        "unreachable": listed(token for token in unreachable(backend) if token not in moved.unused),
    }
    ZhModernBertTokenizer.from_backend(backend).save_pretrained(folder)
    write_json(folder / "transfer.json", report)
    return {"vocab_size": backend.get_vocab_size(), **{name: len(entries) for name, entries in report.items()}}


def main(settings: Settings) -> dict:
    path = find_tokenizer(settings.tokenizer)
    return run_stage(settings, partial(build, settings, path), [path])


if __name__ == "__main__":
    run(main, Settings)
