"""A model hub on loopback: a few repositories in memory, and a log of the requests."""

import hashlib
import json
import threading
from base64 import b64decode
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


def commit_of(label: str) -> str:
    """A commit hash that depends on the label only."""
    return hashlib.sha1(label.encode()).hexdigest()


@dataclass
class Repository:
    """Branches and tags, the files of each commit, and who may read them."""

    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    token: str | None = None  # private: hidden without it
    gated: bool = False  # listed, but its files are refused

    def commit(self, ref: str, files: dict[str, bytes]) -> str:
        """Point a branch or tag at a new commit."""
        sha = commit_of(repr((ref, sorted(files.items()))))
        self.refs[ref], self.commits[sha] = sha, files
        return sha


class FakeHub:
    """Serves `repositories`; `requests` lists (method, path, Authorization header).

    Uploads need the token "writes". `pushed` lists what each commit says of itself.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.broken: set[str] = set()  # kinds of request that are answered with 500
        self.pushed: list[dict[str, Any]] = []
        self.valid_cards = True
        self.ranges = True  # whether a part of a file can be asked for
        self.unsized: set[str] = set()  # repositories that answer such a request without a size
        self.sent = 0  # bytes of files
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            def do_HEAD(self) -> None:
                hub.answer(self)

            def do_POST(self) -> None:
                hub.accept(self)

            def log_message(self, format: str, *args: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False  # so that closing waits for them
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def fetched(self) -> set[str]:
        """Names of the files that were downloaded."""
        return {
            path.split("/", 5)[5]
            for method, path, _ in self.requests
            if method == "GET" and not path.startswith("/api/")
        }

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        authorization = request.headers.get("Authorization")
        self.requests.append((request.command or "", path, authorization))
        parts = path.strip("/").split("/")
        if parts[0] == "api":  # api/models/owner/name[/{revision,tree}/ref]
            kind, *ref_parts = parts[4:] or ["revision", "main"]
            repo_id, ref, name = "/".join(parts[2:4]), "/".join(ref_parts), ""
        else:  # owner/name/resolve/ref/file
            repo_id, kind, ref, name = "/".join(parts[:2]), parts[2], parts[3], "/".join(parts[4:])
        repository = self.repositories.get(repo_id)
        if kind in self.broken:
            return _send(request, 500)
        if authorization == "Bearer stale":
            message = "Invalid credentials in Authorization header"
            return _send(request, 401, {"X-Error-Message": message})
        if repository is None or repository.token not in (
            None,
            (authorization or "").removeprefix("Bearer "),
        ):
            return _send(request, 401, {"X-Error-Code": "RepoNotFound"})
        if kind == "tree" and ref.split("/")[0] in repository.refs and ref not in repository.refs:
            return _send(request, 404, {"X-Error-Code": "EntryNotFound"})  # there are no folders
        sha = repository.refs.get(ref, ref)
        if sha not in repository.commits:
            return _send(request, 404, {"X-Error-Code": "RevisionNotFound"})
        files = repository.commits[sha]
        if kind == "revision":
            siblings = [{"rfilename": each} for each in files]
            return _send(request, 200, body={"id": repo_id, "sha": sha, "siblings": siblings})
        if kind == "tree":
            tree = [
                {"type": "file", "path": each, "size": len(data), "oid": _oid(data)}
                for each, data in files.items()
            ]
            return _send(request, 200, body=tree)
        if repository.gated:
            return _send(request, 403, {"X-Error-Code": "GatedRepo"})
        if name not in files:
            return _send(request, 404, {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{_oid(files[name])}"', "X-Repo-Commit": sha}
        content, wanted = files[name], request.headers.get("Range")
        if wanted and repo_id in self.unsized:
            return _send(request, 200, headers, content, sized=False)
        if wanted and self.ranges:
            first, last = map(int, wanted.removeprefix("bytes=").split("-"))
            part = content[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
            self.sent += len(part)
            return _send(request, 206, headers, part)
        self.sent += len(content) if request.command == "GET" else 0
        return _send(request, 200, headers, content)

    def accept(self, request: BaseHTTPRequestHandler) -> None:
        """Answer the requests of an upload, as the hub does."""
        url = urlsplit(request.path)
        path, body = unquote(url.path), _body(request)
        self.requests.append(("POST", path, request.headers.get("Authorization")))
        if request.headers.get("Authorization") != "Bearer writes":
            return _send(request, 401, {"X-Error-Message": "Invalid username or password."})
        parts = path.strip("/").split("/")
        if path == "/api/validate-yaml":
            errors = [] if self.valid_cards else [{"message": "license must be known"}]
            return _send(request, 400 if errors else 200, body={"errors": errors, "warnings": []})
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repo_id = f"{wanted.get('organization') or 'someone'}/{wanted['name']}"
            known = repo_id in self.repositories
            if not known:
                self.repositories[repo_id] = Repository()
                self.repositories[repo_id].commit("main", {".gitattributes": b""})
            answer = {"url": f"{self.endpoint}/{repo_id}", "private": wanted.get("private")}
            return _send(request, 409 if known else 200, body=answer)
        repo_id, kind, ref = "/".join(parts[2:4]), parts[4], "/".join(parts[5:])
        repository = self.repositories[repo_id]
        if kind in self.broken:
            return _send(request, 500)
        if kind == "branch":
            known = ref in repository.refs
            repository.refs.setdefault(ref, repository.refs["main"])
            return _send(request, 409 if known else 200, body={})
        if ref not in repository.refs:
            return _send(request, 404, {"X-Error-Code": "RevisionNotFound"})
        if kind == "preupload":
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return _send(request, 200, body={"files": files})
        lines = [json.loads(line) for line in body.splitlines()]
        (header,) = [line["value"] for line in lines if line["key"] == "header"]
        new = [line["value"] for line in lines if line["key"] == "file"]
        files = {one["path"]: b64decode(one["content"]) for one in new}
        pull = "create_pr" in url.query
        target = "refs/pr/1" if pull else ref
        sha = repository.commit(target, repository.commits[repository.refs[ref]] | files)
        self.pushed.append({**header, "repo_id": repo_id, "ref": target, "files": files})
        answer = {"commitUrl": f"{self.endpoint}/{repo_id}/commit/{sha}", "commitOid": sha}
        if pull:
            answer["pullRequestUrl"] = f"{self.endpoint}/{repo_id}/discussions/1"
        return _send(request, 200, body=answer)


def _body(request: BaseHTTPRequestHandler) -> bytes:
    """The body of a request, which may come in chunks."""
    if request.headers.get("Transfer-Encoding") != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length") or 0))
    found = b""
    while size := int(request.rfile.readline(), 16):
        found += request.rfile.read(size)
        request.rfile.readline()
    request.rfile.readline()
    return found


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def _send(
    request: BaseHTTPRequestHandler,
    status: int,
    headers: dict[str, str] | None = None,
    body: Any = b"",
    sized: bool = True,
) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request.send_response(status)
    size = {"Content-Length": str(len(data))} if sized else {}
    for name, value in {**(headers or {}), **size}.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(data)
