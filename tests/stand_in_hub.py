"""A stand-in for the Hub on this machine: the endpoints that sending a model needs, with each request checked."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_" + "Secret0123" * 4


def blob_id(content: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class StandInHub:
    """Repositories by name, each with branches of files; large files by their hash; what was asked; what is to fail.

    `fail(method, path)` gives the status to answer with, 0 to break the connection before the request is worked on, -1 to break
    it when the work is done, or None to answer as ever.
    """

    def __init__(self):
        self.url = ""
        self.private: dict[str, bool] = {}
        self.branches: dict[str, dict[str, dict[str, bytes]]] = {}
        self.commits: list[dict] = []
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.wrong: list[str] = []
        self.fail: Callable[[str, str], int | None] = lambda method, path: None

    def add(self, repository: str, private: bool = False, **files: bytes) -> None:
        self.private[repository] = private
        self.branches[repository] = {"main": {".gitattributes": b"*.safetensors filter=lfs\n", **files}}

    def answer(self, method: str, path: str, body: bytes, url: str) -> tuple[int, object]:
        """Status and JSON for one request."""
        asked = json.loads(body) if body and path.startswith("/api/") and "/commit/" not in path else {}
        if path == "/api/validate-yaml":
            return self.validate(asked)
        if path == "/api/repos/create":
            self.add(f"{asked['organization']}/{asked['name']}", asked.get("visibility") == "private")
            return 200, {"url": f"{url}/{asked['organization']}/{asked['name']}"}
        if path.startswith("/storage/"):
            self.large[path.removeprefix("/storage/")] = body
            return 200, {}
        if match := re.fullmatch(r"/(.+/.+)\.git/info/lfs/objects/batch", path):
            return 200, {"objects": [self.place(large, url) for large in json.loads(body)["objects"]]}
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)(?:/([^/]+))?)?", path)
        if not match:
            return 404, {}
        repository, what, revision = match[1], match[2], unquote(match[3] or "main")
        if repository not in self.branches:
            return 404, {"error": "Repository not found"}
        branches = self.branches[repository]
        if what == "branch":
            known = revision in branches
            branches.setdefault(revision, dict(branches["main"]))
            return (409 if known else 200), {}
        files = branches[revision]
        if what == "refs":
            return 200, {
                "branches": [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": "0" * 40} for name in branches],
                "tags": [],
            }
        if what == "tree":
            return 200, [
                {"type": "file", "path": name, "size": len(files[name]), "oid": blob_id(files[name])} for name in files
            ]
        if what == "preupload":
            return 200, {"files": [self.mode(file, files) for file in asked["files"]]}
        if what == "commit":
            return self.commit(files, [json.loads(line) for line in body.splitlines()], f"{url}/{repository}")
        return 200, {"id": repository, "private": self.private[repository], "sha": "0" * 40}

    def validate(self, asked: dict) -> tuple[int, object]:
        fields = yaml.safe_load(asked["content"].split("---\n")[1])
        if asked["repoType"] == "model" and fields["license"] != "unheard-of":
            return 200, {}
        return 400, {"errors": [{"message": '"license" must be one of the Hub\'s'}]}

    def place(self, large: dict, url: str) -> dict:
        known = large["oid"] in self.large
        upload = {"upload": {"href": f"{url}/storage/{large['oid']}?Signature=secret"}}
        return {"oid": large["oid"], "size": large["size"]} | ({} if known else {"actions": upload})

    def mode(self, file: dict, files: dict[str, bytes]) -> dict:
        path, large = file["path"], file["path"].endswith((".safetensors", ".onnx"))
        there = {path: (hashlib.sha256(files[path]).hexdigest() if large else blob_id(files[path]))} if path in files else {}
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": there.get(path)}

    def commit(self, files: dict[str, bytes], lines: list[dict], url: str) -> tuple[int, object]:
        changed = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                changed[value["path"]] = self.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        files |= changed
        self.commits.append(changed)
        return 200, {"commitUrl": f"{url}/commit/{len(self.commits)}", "commitOid": "1" * 40, "success": True}

    def check(self, method: str, path: str, authorization: str | None) -> None:
        """The token goes with every request to a repository, and never to the storage, which is another's machine."""
        needed = path.startswith(("/api/models/", "/api/repos/")) or ".git/" in path
        if needed != (authorization == f"Bearer {TOKEN}") and path != "/api/validate-yaml":
            self.wrong.append(f"{method} {path}: authorization {authorization!r}")


@contextmanager
def serve(monkeypatch):
    """A stand-in to which the Hub's library talks within the block."""
    hub = StandInHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def work(self):
            path, url = urlsplit(self.path).path, f"http://{self.headers['Host']}"
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            known = not path.startswith("/api/agent-harnesses")  # which the library asks for itself
            if known:
                hub.asked.append(f"{self.command} {path}")
                hub.check(self.command, path, self.headers.get("Authorization"))
            status = hub.fail(self.command, path)
            if status == 0:
                self.close_connection = True
                return
            done, value = hub.answer(self.command, path, body, url) if status in (None, -1) else (status, {"error": "no"})
            if status == -1:
                self.close_connection = True
                return
            content = json.dumps(value).encode()
            self.send_response(done)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Type", "application/json")
            if value == {"error": "Repository not found"}:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_HEAD = work  # noqa: N815

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_URL_HOSTS", {"127.0.0.1"})
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_DISABLE_XET", True
    )  # what it sends by is compiled, with its own hosts
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its tries
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        assert hub.wrong == []
