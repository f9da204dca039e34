"""A stand-in of the Hub on loopback: as much of its HTTP interface as making, filling and reading a model takes.

Weights (`*.safetensors`) go through Git LFS's batch interface, other files through the commit itself, as on the Hub.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from huggingface_hub.utils import validate_repo_id

TOKEN = "hf_of_the_stand_in"
OWNER = "me"
DROP = "drop"


@dataclass
class Commit:
    """A state of a branch: all of its files, and which of them the commit brought."""

    message: str
    files: dict[str, bytes]
    brought: set[str]

    @property
    def sha(self) -> str:
        content = [f"{name} {hashlib.sha1(data).hexdigest()}" for name, data in sorted(self.files.items())]
        return hashlib.sha1("\n".join([self.message, *content]).encode()).hexdigest()


@dataclass
class Repository:
    """Branches, each a list of commits; the last one counts."""

    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=lambda: {"main": [Commit("initial commit", {}, set())]})

    def at(self, revision: str) -> Commit | None:
        commits = [commit for branch in self.branches.values() for commit in branch if commit.sha == revision]
        return self.branches[revision][-1] if revision in self.branches else next(iter(commits), None)


@dataclass
class Hub:
    """
    What the stand-in holds, and how it shall fail.

    Args:
        endpoint (`str`): its address.
        failures (`dict[str, int | str]`): the name of a route in `ROUTES`, and the status that it answers with or
            `DROP`, which closes the connection without an answer.
        requests (`list[str]`): the names of the routes that were asked, in order.
    """

    endpoint: str
    failures: dict[str, int | str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    repositories: dict[str, Repository] = field(default_factory=dict)
    storage: dict[str, bytes] = field(default_factory=dict)


REPO = r"(?P<repo>[\w.-]+/[\w.-]+?)"
ROUTES = {
    "create": ("POST", r"/api/repos/create"),
    "validate": ("POST", r"/api/validate-yaml"),
    "branch": ("POST", rf"/api/models/{REPO}/branch/(?P<revision>[^/]+)"),
    "tree": ("GET", rf"/api/models/{REPO}/tree/(?P<revision>[^/]+)"),
    "info": ("GET", rf"/api/models/{REPO}(/revision/(?P<revision>[^/]+))?"),
    "preupload": ("POST", rf"/api/models/{REPO}/preupload/(?P<revision>[^/]+)"),
    "batch": ("POST", rf"/{REPO}\.git/info/lfs/objects/batch"),
    "store": ("PUT", r"/lfs/(?P<oid>\w+)"),
    "commit": ("POST", rf"/api/models/{REPO}/commit/(?P<revision>[^/]+)"),
    "head": ("HEAD", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)"),
    "resolve": ("GET", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)"),
}
# The storage behind the Hub takes an address that it handed out itself, and a check of metadata needs no account.
OPEN = ("store", "validate")


class _Refused(Exception):
    def __init__(self, status: int, message: str, **answer: Any):
        super().__init__(message)
        self.status, self.answer = status, answer


class _Handler(BaseHTTPRequestHandler):
    server: "_Server"

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            name, values = self._route()
            hub = self.server.hub
            hub.requests.append(name)
            if hub.failures.get(name) == DROP:
                return
            if name in hub.failures:
                raise _Refused(int(hub.failures[name]), "told to fail")
            self._check_token(name, values.get("repo"))
            getattr(self, f"_{name}")(body, **values)
        except _Refused as refusal:
            self._answer({"error": str(refusal), **refusal.answer}, refusal.status, {"X-Error-Message": str(refusal)})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _route(self) -> tuple[str, dict[str, str]]:
        path = urlsplit(self.path).path
        for name, (method, pattern) in ROUTES.items():
            match = re.fullmatch(pattern, path)
            if method == self.command and match:
                return name, {key: unquote(value) for key, value in match.groupdict(default="main").items()}
        raise _Refused(404, f"no route for {self.command} {path}")

    def _check_token(self, name: str, repo: str | None) -> None:
        stored = self.server.hub.repositories.get(repo or "")
        public = stored is not None and not stored.private and self.command in ("GET", "HEAD")
        if name not in OPEN and not public and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Refused(401, "Invalid username or password.")
        if repo is not None and not repo.startswith(f"{OWNER}/"):
            raise _Refused(403, "You have no right to write there.")

    def _answer(self, content: Any = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _repository(self, repo: str) -> Repository:
        if repo not in self.server.hub.repositories:
            raise _Refused(404, "Repository not found")
        return self.server.hub.repositories[repo]

    def _at(self, repo: str, revision: str) -> Commit:
        commit = self._repository(repo).at(revision)
        if commit is None:
            raise _Refused(404, f"Invalid rev id: {revision}")
        return commit

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked['organization'] or OWNER}/{asked['name']}"
        hub = self.server.hub
        url = f"{hub.endpoint}/{repo}"
        if not repo.startswith(f"{OWNER}/"):
            raise _Refused(403, "You have no right to create a repository there.")
        if repo in hub.repositories:
            raise _Refused(409, "You already created this model repo", url=url)
        hub.repositories[repo] = Repository(asked.get("visibility") == "private" or bool(asked.get("private")))
        self._answer({"url": url})

    def _validate(self, body: bytes) -> None:
        data = yaml.safe_load(json.loads(body)["content"].split("---")[1])
        errors = []
        try:
            if "base_model" in data:
                validate_repo_id(data["base_model"])
        except ValueError as error:
            errors.append({"message": f'"base_model" is no model id: {error}'})
        self._answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _branch(self, body: bytes, repo: str, revision: str) -> None:
        branches = self._repository(repo).branches
        if revision in branches:
            raise _Refused(409, "Reference already exists")
        branches[revision] = list(branches["main"])
        self._answer({})

    def _tree(self, body: bytes, repo: str, revision: str) -> None:
        files = self._at(repo, revision).files
        self._answer(
            [{"type": "file", "path": name, "size": len(data), "oid": _oid(data)} for name, data in files.items()]
        )

    def _info(self, body: bytes, repo: str, revision: str) -> None:
        commit = self._at(repo, revision)
        siblings = [{"rfilename": name} for name in commit.files]
        self._answer({"id": repo, "modelId": repo, "sha": commit.sha, "siblings": siblings})

    def _preupload(self, body: bytes, repo: str, revision: str) -> None:
        stored, answers = self._at(repo, revision).files, []
        for asked in json.loads(body)["files"]:
            lfs, data = _is_lfs(asked["path"]), stored.get(asked["path"])
            known = {} if data is None else {"oid": hashlib.sha256(data).hexdigest() if lfs else _oid(data)}
            mode = "lfs" if lfs else "regular"
            answers.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, **known})
        self._answer({"files": answers})

    def _batch(self, body: bytes, repo: str) -> None:
        self._repository(repo)
        objects = []
        for asked in json.loads(body)["objects"]:
            actions = {"actions": {"upload": {"href": f"{self.server.hub.endpoint}/lfs/{asked['oid']}"}}}
            objects.append(asked | ({} if asked["oid"] in self.server.hub.storage else actions))
        self._answer({"transfer": "basic", "objects": objects})

    def _store(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refused(400, "the content is not the one that was announced")
        self.server.hub.storage[oid] = body
        self._answer({})

    def _commit(self, body: bytes, repo: str, revision: str) -> None:
        header, *operations = (json.loads(line) for line in body.splitlines())
        brought = {}
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                brought[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                brought[value["path"]] = self.server.hub.storage[value["oid"]]
            else:
                raise _Refused(400, f"no {operation['key']} here")
        files = {**self._at(repo, revision).files, **brought}
        commit = Commit(header["value"]["summary"], files, set(brought))
        self._repository(repo).branches[revision].append(commit)
        self._answer({"commitUrl": f"{self.server.hub.endpoint}/{repo}/commit/{commit.sha}", "commitOid": commit.sha})

    def _resolve(self, body: bytes, repo: str, revision: str, path: str) -> None:
        commit = self._at(repo, revision)
        headers = {"X-Repo-Commit": commit.sha}
        if path not in commit.files:
            missing = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self._answer({"error": "Entry not found"}, 404, headers | missing)
        data = commit.files[path]
        return self._answer(data, headers=headers | {"ETag": f'"{_oid(data)}"'})

    _head = _resolve


class _Server(ThreadingHTTPServer):
    hub: Hub


def _is_lfs(path: str) -> bool:
    return path.endswith(".safetensors")


def _oid(data: bytes) -> str:
    """As git names a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Starts the stand-in on a free port, in a thread, and ends it with the block."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.hub
        finally:
            server.shutdown()
            thread.join()
