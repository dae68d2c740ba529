"""Another model's byte-level BPE -> the same for Traditional Chinese, with this model's special tokens: system B's tokenizer.

Entries that are Simplified text become Traditional (OpenCC, by phrases) and keep their ids; all others keep ids and text.
A form that is there already keeps the id it has. The id set free takes another form of its entry (发: 發, then 髮), or what the
merges lack (里, which became 裡, is wanted for 公里), or a further form of any entry, or is named unused. Merges are rewritten
in their order, each in the place of the Simplified one, and text without Han characters is cut as before. [PAD] [UNK] [SEP]
[CLS] [MASK] come behind the entries there were.

No normaliser is kept, so that any text comes back as it was; NFC text gets the same ids with one or without.

Writes the tokenizer and `transfer.json`: per kind (changed, new, unused, and unreachable: no text leads to it) ids and text.

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

import opencc
from huggingface_hub import hf_hub_download
from tokenizers import Tokenizer, models
from transformers.convert_slow_tokenizer import bytes_to_unicode

from zh_modernbert.tokenization_zh_modernbert import ZhModernBertTokenizer, build_template
from zh_modernbert.train.common.cli import BaseSettings, InputError, one_line, run, setting
from zh_modernbert.train.common.files import read_json, require_folder, write_json
from zh_modernbert.train.common.stage import run_stage

# In the order in which system B's report names them.
NEW_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[SEP]", "[CLS]", "[MASK]")
VARIANTS = ("s2tw", "s2twp", "s2hk", "s2t")

_SPELLING = bytes_to_unicode()
_BYTES = {character: byte for byte, character in _SPELLING.items()}
_KANA = re.compile("[\u3040-\u30ff]")
# Where a character of U+3000 to U+9FFF begins: how tokens spell its first byte, which begins no other character.
_HAN_BYTE = re.compile("[ã-é]")
# Bytes of a broken character are half surrogates in Python's strings; OpenCC gets what is between.
_WHOLE_CHARACTERS = re.compile("[^\udc80-\udcff]+")


@dataclass
class Settings(BaseSettings):
    tokenizer: str = setting(help="folder or Hub id of a byte-level BPE tokenizer")
    output_dir: str = setting(help="tokenizer folder to write")
    hant_variant: str = setting("s2tw", "OpenCC's name of the Traditional that Simplified entries become", VARIANTS)


# --- text and its spelling ---


def spell(text: str) -> str:
    """`text` as tokens spell it, one character a byte."""
    return "".join(map(_SPELLING.__getitem__, text.encode("utf-8", "surrogateescape")))


def text_of(token: str, errors: str = "surrogateescape") -> str:
    """What a token spells; bytes that are no whole character are half surrogates, or what else `errors` says."""
    return bytes(map(_BYTES.__getitem__, token)).decode("utf-8", errors)


def traditional_characters() -> frozenset[str]:
    """Characters that are written otherwise in Simplified, by OpenCC's tables."""
    characters = [chr(code) for first, last in ((0x3400, 0x4DBF), (0x4E00, 0x9FFF)) for code in range(first, last + 1)]
    hant, hans = (opencc.OpenCC(config).convert("\n".join(characters)).split("\n") for config in ("s2t", "t2s"))
    return frozenset(c for c, same, other in zip(characters, hant, hans, strict=True) if c == same != other)


class TraditionalForms:
    """The Traditional forms of a text: what it becomes, then what else it may stand for; itself first where it stays.

    Text with Traditional characters or with kana stays: it is no Simplified Chinese.
    """

    def __init__(self, hant_variant: str):
        self.to_standard = opencc.OpenCC("s2t")
        self.converters = [opencc.OpenCC(name) for name in dict.fromkeys((hant_variant, *VARIANTS))]
        self.traditional = traditional_characters()
        self.characters = defaultdict(list)  # a character -> the Traditional ones that are written with it in Simplified
        text = "".join(sorted(self.traditional))
        for character, simplified in zip(text, opencc.OpenCC("t2s").convert(text), strict=True):
            self.characters[simplified].append(character)

    def __call__(self, text: str) -> list[str]:
        stays = _KANA.search(text) or self.traditional.intersection(text) or self.convert(self.to_standard, text) == text
        forms = [text] if stays else [self.convert(converter, text) for converter in self.converters]
        return list(dict.fromkeys([*forms, *self.characters[text]]))

    def convert(self, converter: opencc.OpenCC, text: str) -> str:
        return _WHOLE_CHARACTERS.sub(lambda match: converter.convert(match[0]), text)


# --- the vocabulary ---


def rename(tokens: Iterable[str], forms: Callable[[str], list[str]]) -> tuple[dict[str, str | None], list[str]]:
    """What each token that does not stay becomes, None where all its forms are taken; and the forms that no token took.

    A token that stays keeps its form, and a form that two become goes to the first of them.
    """
    of_token = {token: [spell(form) for form in forms(text_of(token))] for token in tokens if _HAN_BYTE.search(token)}
    renamed = {token: None for token, candidates in of_token.items() if candidates[0] != token}
    taken = {token for token in tokens if token not in renamed}
    for take in (slice(1), slice(1, None)):  # a token's first form comes before any other's second
        for token in renamed:
            if renamed[token] is None:
                renamed[token] = next((form for form in of_token[token][take] if form not in taken), None)
                taken.add(renamed[token])
    left = dict.fromkeys(form for candidates in of_token.values() for form in candidates[1:] if form not in taken)
    return renamed, list(left)


class Merges:
    """A BPE's merges in their order, over tokens as they are spelled.

    What is added comes last and so takes effect only where nothing before it does: a token that can be reached stays so.
    """

    def __init__(self):
        self.ranks: dict[tuple[str, str], int] = {}

    def add(self, left: str, right: str) -> None:
        self.ranks.setdefault((left, right), len(self.ranks))

    def split(self, token: str) -> list[str]:
        """What BPE makes of the spelled text."""
        parts = list(token)
        while len(parts) > 1:
            rank, place = min((self.ranks.get(pair, math.inf), place) for place, pair in enumerate(pairwise(parts)))
            if rank == math.inf:
                break
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        return parts

    def join(self, token: str) -> None:
        """Makes the spelled text one token."""
        while len(parts := self.split(token)) > 1:
            self.add(*parts[:2])

    def reach(self, token: str) -> bool:
        """Makes the spelled text one token where that takes one merge, besides those that make its characters from bytes."""
        if len(parts := self.split(token)) > 2:
            for character in "".join(_WHOLE_CHARACTERS.findall(text_of(token))):
                self.join(spell(character))
            parts = self.split(token)
        if len(parts) <= 2:
            self.join(token)
        return len(parts) <= 2


def rewrite(merges: Iterable[tuple[str, str]], renamed: dict[str, str | None]) -> Merges:
    """The merges that make the renamed tokens, each in its old place."""
    rewritten, waiting = Merges(), []
    for left, right in merges:
        token = renamed.get(left + right, left + right)
        if token is None:
            continue
        if not _HAN_BYTE.search(left + right):
            rewritten.add(left, right)
        elif not rewritten.reach(token):
            waiting.append(token)
    for token in waiting:  # by now its parts may be there that came after it; what still lacks is made
        rewritten.join(token)
    return rewritten


@dataclass
class Transfer:
    """Entries with their ids, merges, and what became of the old entries."""

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
        forms: a text's forms, the one to take first; a text that stays comes first itself.
    """
    renamed, further = rename(sorted(vocab, key=vocab.get), forms)
    rewritten = rewrite(merges, renamed)
    entries = {renamed.get(token, token): token_id for token, token_id in vocab.items()}
    entries.pop(None, None)
    entries |= added
    size = 1 + max(entries.values())
    free = sorted(set(range(size)).difference(entries.values()))

    def lacking() -> list[str]:
        return list(dict.fromkeys(left + right for left, right in rewritten.ranks if left + right not in entries))

    room = len(free) - len(lacking())
    for form in further:  # a phrase only of two parts that are there: one of three would bring a piece of itself along
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
    """The `tokenizer.json` in a folder, or that of a Hub id, fetched where it is not yet here.

    Raises:
        InputError: there is none.
    """
    if Path(source).is_dir():
        return require_folder(source, "tokenizer.json") / "tokenizer.json"
    try:
        return Path(hf_hub_download(source, "tokenizer.json"))
    except (OSError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InputError(f"{source}: no such folder, nor to be had from the Hub: {reason}") from error


def read_tokenizer(path: Path) -> dict:
    """What a `tokenizer.json` holds.

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
    require(spelled >= _BYTES.keys(), "some of the 256 bytes are no entries")
    odd = min((token for token in spelled if not _BYTES.keys() >= set(token)), default=None)
    require(odd is None, f"the entry {odd!r} is not spelled in bytes")
    return written


def transfer_tokenizer(written: dict, hant_variant: str) -> tuple[Tokenizer, Transfer]:
    """The tokenizer that a `tokenizer.json` holds, moved to Traditional."""
    model, added = written["model"], {token["content"]: token for token in written.get("added_tokens", [])}
    vocab = {token: token_id for token, token_id in model["vocab"].items() if token not in added}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    new_ids = count(1 + max(chain(vocab.values(), (token["id"] for token in added.values()))))
    for content in NEW_SPECIAL_TOKENS:
        if content not in added:
            added[content] = {"id": next(new_ids), "content": content, **flags}
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    # The added tokens become entries of the model too: else they would be given other ids where entries lie behind them.
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
    """Entries that their own text does not become; for an entry that ends inside a character, its own bytes."""
    plain = Tokenizer(backend.model)
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    found = []
    for token in sorted(backend.get_vocab().keys() - added, key=backend.token_to_id):
        text = text_of(token)
        tokenizer, text = (backend, text) if _WHOLE_CHARACTERS.fullmatch(text) else (plain, token)
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
