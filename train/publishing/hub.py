"""Sending a model's files to the Hub: checks before anything is sent, and one commit.

Only `push` opens a connection. The token is the one that the Hub's own library finds, in HF_TOKEN or where `hf auth login` put
it. It goes to the Hub, and shows nowhere else.
"""

import re
from collections.abc import Callable, Collection
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from zh_modernbert.train.common.cli import InputError, describe

TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
CARD_FIELDS = ("language", "license", "library_name", "pipeline_tag")
# The Hub's names of languages have no script in them; scripts stand in `language_bcp47`.
LANGUAGE = re.compile(r"[a-z]{2,3}")


def check_repository(repository: str, revision: str) -> None:
    """Checks the names of a repository, with its owner, and of a branch.

    Raises:
        InputError: the Hub, or git, would refuse one.
    """
    try:
        validate_repo_id(repository)
    except ValueError as error:
        raise InputError(f"push_to_hub is {repository!r}; the Hub refuses it: {describe(error)}") from error
    if "/" not in repository:
        raise InputError(f"push_to_hub is {repository!r}; it must name the owner too, such as me/{repository}")
    parts = revision.split("/")
    plain = all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", part) for part in parts)
    if not plain or ".." in revision or parts[0] == "refs" or any(part.endswith((".lock", ".")) for part in parts):
        raise InputError(f"revision is {revision!r}; it must be the name of a branch, such as main or step-5000")


def check_no_token(text: str, where: str) -> None:
    """Raises InputError, which names `where` and the line, if a text has something like an access token in it."""
    for number, line in enumerate(text.splitlines(), 1):
        if TOKEN.search(line):
            raise InputError(f"{where}: line {number} holds an access token of the Hub; take it out, and make a new one")


def check_card(card: str, where: str) -> None:
    """Checks what can be checked of a card without the Hub: its header is YAML with the needed fields, and it has no token.

    Raises:
        InputError: something is missing or must not be there, naming it and `where`.
    """
    check_no_token(card, where)
    try:
        fields = ModelCard(card, ignore_metadata_errors=False).data.to_dict()
    except Exception as error:  # YAML and the Hub's library raise many kinds
        raise InputError(f"{where}: its header is not one of a card: {describe(error)}") from error
    for name in CARD_FIELDS:
        if not fields.get(name):
            raise InputError(f"{where}: {name} is missing in its header, which the Hub needs")
    languages = fields["language"] if isinstance(fields["language"], list) else [fields["language"]]
    for language in languages:
        if not LANGUAGE.fullmatch(str(language)):
            raise InputError(f"{where}: language is {language!r}; the Hub takes zh, and zh-Hans in language_bcp47")


def without_secrets(text: str) -> str:
    """A text without tokens, and without what follows the ? of a link, where signatures stand."""
    if token := get_token():
        text = text.replace(token, "***")
    return re.sub(r"\?[^\s'\"]*", "?***", TOKEN.sub("***", text))


def push(
    repository: str,
    files: dict[str, Path | bytes],
    ours: Callable[[Collection[str]], set[str]],
    revision: str = "main",
    private: bool = False,
) -> str:
    """Makes a branch of a model repository hold `files`, in one commit. Repository and branch are made if missing.

    Files of the repository that are not in `files` are deleted if `ours` has their names: shards of an earlier model, for one.
    Others stay.

    Args:
        ours: of the names of all files that are there, those that belong to what is sent here.

    Returns:
        The commit's address.

    Raises:
        InputError: a name or the card is refused, before anything is sent; or the Hub cannot be reached, or refuses something.
    """
    check_repository(repository, revision)
    card = files["README.md"]
    text = card.decode() if isinstance(card, bytes) else card.read_text(encoding="utf-8")
    check_card(text, "README.md")
    api = HfApi()
    try:
        ModelCard(text).validate()
        make_repository(api, repository, private)
        if revision != "main":
            api.create_branch(repository, branch=revision, exist_ok=True)
        stale = sorted(ours(api.list_repo_files(repository, revision=revision)) - files.keys())
        changes = [CommitOperationAdd(name, content) for name, content in sorted(files.items())]
        deletions = [CommitOperationDelete(name) for name in stale]
        commit = api.create_commit(
            repository, [*changes, *deletions], commit_message="Model, tokenizer, code and card", revision=revision
        )
    except InputError:
        raise
    except Exception as error:  # the Hub's library, and those that it stands on, raise many kinds
        text = without_secrets(describe(error))
        raise InputError(f"{repository}: not sent: {text}; the same command goes on from what has arrived") from error
    return commit.commit_url


def make_repository(api: HfApi, repository: str, private: bool) -> None:
    """Makes the repository if it is missing. `private` cannot make one private that exists.

    Raises:
        InputError: it should be private, and is there for all to see.
    """
    try:
        found = api.model_info(repository)
    except RepositoryNotFoundError:
        api.create_repo(repository, private=private or None, exist_ok=True)  # None: as its owner's settings say
        return
    if private and not found.private:
        raise InputError(f"{repository}: exists and is public; make it private on the Hub first, or leave private out")
