"""What is sent to the Hub, in which order, and what is left of it when something fails."""

import os
import re
import subprocess
import sys

import pytest

from stand_in_hub import TOKEN, serve
from zh_modernbert.train.common.cli import InputError
from zh_modernbert.train.publishing.hub import check_card, check_repository, push

CARD = "---\nlanguage: zh\nlicense: mit\nlibrary_name: transformers\npipeline_tag: fill-mask\n---\n# 卡\n"
NAMES = {"README.md", "config.json", "model.safetensors", "model-00001-of-00002.safetensors"}
ENDPOINTS = {
    "validate": r"POST /api/validate-yaml",
    "look": r"GET /api/models/me/zh",
    "create": r"POST /api/repos/create",
    "branch": r"POST /api/models/me/zh/branch/.*|GET /api/models/me/zh/refs",  # where it may not be made: whether it is there
    "list": r"GET /api/models/me/zh/tree/.*",
    "modes": r"POST /api/models/me/zh/preupload/.*",
    "places": r"POST /me/zh\.git/info/lfs/objects/batch",
    "storage": r"PUT /storage/.*",
    "commit": r"POST /api/models/me/zh/commit/.*",
}


@pytest.fixture
def hub(monkeypatch):
    with serve(monkeypatch) as hub:
        yield hub


@pytest.fixture
def files(tmp_path):
    for name, content in {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 40}.items():
        (tmp_path / name).write_bytes(content)
    return {"README.md": CARD.encode(), **{path.name: path for path in tmp_path.iterdir()}}


def send(files, **options) -> str:
    return push("me/zh", files, NAMES.intersection, **options)


def contents(files) -> dict[str, bytes]:
    return {name: file if isinstance(file, bytes) else file.read_bytes() for name, file in files.items()}


def there(hub, branch="main") -> dict[str, bytes]:
    return {name: content for name, content in hub.branches["me/zh"][branch].items() if name != ".gitattributes"}


def asked(hub) -> list[str]:
    """The endpoints in the order of their first request."""
    names = [name for request in hub.asked for name, path in ENDPOINTS.items() if re.fullmatch(path, request)]
    assert len(names) == len(hub.asked), hub.asked
    return list(dict.fromkeys(names))


def test_one_commit_and_the_card_first(hub, files):
    assert send(files, private=True).endswith("/commit/1")
    assert there(hub) == contents(files)
    assert hub.private == {"me/zh": True}
    assert len(hub.commits) == 1
    assert asked(hub) == ["validate", "look", "create", "list", "modes", "places", "storage", "commit"]


def test_what_was_ours_goes_and_what_others_put_there_stays(hub, files):
    hub.add("me/zh", **{"model-00001-of-00002.safetensors": b"old", "LICENSE": b"theirs", "config.json": b"old"})
    send(files)
    assert there(hub) == contents(files) | {"LICENSE": b"theirs"}
    assert "create" not in asked(hub)
    send(files)
    assert len(hub.commits) == 1, "there was nothing new to commit"


def test_a_branch_of_its_own(hub, files):
    hub.add("me/zh", **{"config.json": b"of main"})
    for content in (b"{}", b"{ }"):
        files["config.json"] = content
        send(files, revision="run/step-5000")
        assert there(hub, "run/step-5000") == contents(files)
    assert there(hub) == {"config.json": b"of main"}


def test_a_public_repository_is_not_taken_for_a_private_one(hub, files):
    hub.add("me/zh")
    with pytest.raises(InputError, match="me/zh: exists and is public"):
        send(files, private=True)
    assert there(hub) == {}
    hub.private["me/zh"] = True
    send(files)
    assert there(hub) == contents(files)


@pytest.mark.parametrize("status", [403, 500, 0], ids=["refused", "broken", "cut off"])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_any_request_may_fail_and_the_same_command_goes_on(hub, files, capfd, endpoint, status):
    """No commit is made then; one line says why, without token and without signatures."""
    hub.fail = lambda method, path: status if re.fullmatch(ENDPOINTS[endpoint], f"{method} {path}") else None
    with pytest.raises(InputError) as error:
        send(files, revision="step-5")
    text = str(error.value)
    assert text.startswith("me/zh: not sent: ")
    assert "\n" not in text
    assert hub.commits == []
    assert asked(hub)[-1] == endpoint
    hub.fail = lambda method, path: None
    send(files, revision="step-5")
    assert there(hub, "step-5") == contents(files)
    printed = "".join(capfd.readouterr())
    assert [secret for secret in (TOKEN, "Signature=secret") if secret in text + printed] == []


def test_a_commit_whose_answer_is_lost(hub, files):
    hub.fail = lambda method, path: -1 if "/commit/" in path else None
    with pytest.raises(InputError, match="not sent"):
        send(files)
    hub.fail = lambda method, path: None
    send(files)
    assert there(hub) == contents(files)
    assert len(hub.commits) == 1


def test_a_file_that_the_storage_has_is_not_sent_again(hub, files):
    hub.fail = lambda method, path: 403 if "/commit/" in path else None
    with pytest.raises(InputError):
        send(files)
    hub.fail, hub.asked = (lambda method, path: None), []
    send(files)
    assert "storage" not in asked(hub)


def test_a_card_that_the_hub_refuses(hub, files):
    files["README.md"] = CARD.replace("mit", "unheard-of").encode()
    with pytest.raises(InputError, match="license"):
        send(files)
    assert asked(hub) == ["validate"]


def test_in_a_process_of_its_own(hub, files):
    """The address is that of HF_ENDPOINT, the token that of HF_TOKEN, and neither torch nor transformers is needed."""
    code = """
import sys
from pathlib import Path
from zh_modernbert.train.publishing.hub import push
files = {name: Path(name) for name in ("config.json", "model.safetensors")}
commit = push("me/zh", files | {"README.md": sys.argv[1].encode()}, set, private=True)
print(commit, {"torch", "transformers"} & set(sys.modules))
"""
    folder = files["config.json"].parent
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", code, CARD]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=os.environ | environment)
    assert done.stdout.strip() == f"{hub.url}/me/zh/commit/1 set()", done.stderr
    assert there(hub) == contents(files)
    assert TOKEN not in done.stdout + done.stderr


def test_offline_is_offline(hub, files, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        send(files)
    assert hub.asked == []


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("# no header\n", "language is missing"),
        (CARD.replace("license: mit\n", ""), "license is missing"),
        (CARD.replace("pipeline_tag: fill-mask", "pipeline_tag:"), "pipeline_tag is missing"),
        (CARD.replace("language: zh", "language: zh-Hans"), "language_bcp47"),
        (CARD.replace("license: mit", "license: [mit"), "header is not one"),
        (CARD + f"HF_TOKEN={TOKEN} hf upload", "line 8 holds an access token"),
    ],
)
def test_cards_that_are_refused_before_anything_is_sent(hub, files, card, said):
    files["README.md"] = card.encode()
    with pytest.raises(InputError, match=said) as error:
        send(files)
    assert TOKEN not in str(error.value)
    assert hub.asked == []


@pytest.mark.parametrize("name", ["zh", "me/zh/x", "me/--zh", "me/zh.git", "me/中文", "-me/zh", "", "me/z h", "../zh"])
def test_names_that_the_hub_refuses(name):
    with pytest.raises(InputError, match="push_to_hub is"):
        check_repository(name, "main")


@pytest.mark.parametrize("name", ["", "a b", "-x", "a..b", "refs/pr/1", "x.lock", "x/", "a//b", "x~1", "@{0}", "x."])
def test_names_of_branches_that_git_refuses(name):
    with pytest.raises(InputError, match="revision is"):
        check_repository("me/zh", name)


def test_a_whole_card():
    check_card(CARD, "README.md")
