"""Loading a tokenizer, and telling whether two are the same."""

from pathlib import Path

from tokenizers import Tokenizer

from zh_modernbert.tokenization_zh_modernbert import SPECIAL_TOKENS, ZhModernBertTokenizer
from zh_modernbert.train.common.cli import InputError, one_line
from zh_modernbert.train.common.files import read_json, require_folder, sha256


def load_tokenizer(folder: str | Path) -> ZhModernBertTokenizer:
    """The tokenizer in a folder.

    Raises:
        InputError: there is no tokenizer, or it lacks a special token.
    """
    folder = require_folder(folder, "tokenizer.json")
    try:
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises plain Exception
        raise InputError(f"{folder / 'tokenizer.json'}: not a tokenizer: {one_line(error)}") from error
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    for token in SPECIAL_TOKENS:
        if token not in special:
            raise InputError(f"{folder / 'tokenizer.json'}: {token} is no special token of it")
    return ZhModernBertTokenizer.from_backend(backend)


def fingerprint(folder: str | Path) -> str:
    """A hash of vocabulary and merges. It does not depend on how tokenizer.json writes them."""
    path = require_folder(folder, "tokenizer.json") / "tokenizer.json"
    model = read_json(path)["model"]
    vocab = sorted(model["vocab"].items(), key=lambda entry: entry[1])
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    return sha256(repr((vocab, merges)).encode())
