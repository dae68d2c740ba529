"""Documents that are held out of training tokenizer and model, by a hash of their ids: the same share is the same documents."""

from collections.abc import Iterable

from tqdm import tqdm

from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.common.files import sha256
from zh_modernbert.train.corpus.source import Source, read_source


def is_held_out(document_id: str, share: float) -> bool:
    """Whether a document is held out, by its id alone. Parallel texts with the same id are held out together."""
    return int(sha256(document_id.encode())[:8], 16) < share * 2**32


def read_held_out(paths: Iterable[str], share: float) -> list[dict]:
    """The held-out documents of files and folders; all documents where `share` is 0.

    Raises:
        InputError: there is no such document.
    """
    documents = (document for path in paths for document in read_source(Source(path=path)))
    with tqdm(documents, desc="read", unit=" documents") as progress:
        found = [document for document in progress if not share or is_held_out(document["id"], share)]
    if not found:
        raise InputError(f"{', '.join(paths)}: no text in it{' that is held out' if share else ''}")
    return found
