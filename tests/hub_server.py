"""A server that speaks the part of the hub's interface that pushing and pulling use.

What it speaks was read off huggingface_hub 2.4: repositories, one commit as lines of JSON, large
files by LFS's basic transfer, and downloads by revision.
"""

from __future__ import annotations

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
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Repo:
    """A repository: its commits, each the whole of its files."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    def commit(self, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[oid] = files
        return oid


class Hub(ThreadingHTTPServer):
    """The hub, with what was asked of it."""

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token = token
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.uploads = 0
        self.refuse_uploads_after: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(token: str = "hf_secret") -> Iterator[Hub]:
    hub = Hub(token)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, code: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.token}"

    def _missing(self, code: str = "RepoNotFound") -> None:
        self._answer(404, {"error": "not found"}, {"X-Error-Code": code})

    def do_PUT(self) -> None:
        data, hub = self._body(), self.server
        if hub.refuse_uploads_after is not None and hub.uploads >= hub.refuse_uploads_after:
            self._answer(400, {"error": "broken off"})
            return
        hub.uploads += 1
        hub.objects[hashlib.sha256(data).hexdigest()] = data
        self._answer(200)

    def do_POST(self) -> None:
        body, path, hub = self._body(), unquote(urlsplit(self.path).path), self.server
        if path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
            return
        if not self._allowed():
            self._answer(401, {"error": "no token"})
            return
        if path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}"
            repo = Repo(given.get("visibility") != "public")
            hub.repos[name] = repo
            repo.commit({".gitattributes": b""})
            self._answer(200, {"url": f"{hub.url}/{name}"})
            return
        if found := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            objects = [self._upload(one) for one in json.loads(body)["objects"]]
            self._answer(200, {"transfer": "basic", "objects": objects})
            return
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|paths-info)/(.+)", path)
        if found is None or found[1] not in hub.repos:
            self._missing()
            return
        repo = hub.repos[found[1]]
        if found[2] == "preupload":
            files = [self._mode(one) for one in json.loads(body)["files"]]
            self._answer(200, {"files": files})
        elif found[2] == "commit":
            self._commit(found[1], repo, body)
        else:
            paths = parse_qs(body.decode())["paths"]
            files_ = repo.commits[repo.head if found[3] == "main" else found[3]]
            self._answer(
                200, json.dumps([_info(p, files_[p]) for p in paths if p in files_]).encode()
            )

    def _upload(self, one: dict[str, Any]) -> dict[str, Any]:
        known = {"oid": one["oid"], "size": one["size"]}
        if one["oid"] in self.server.objects:
            return known
        return known | {"actions": {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}}

    @staticmethod
    def _mode(one: dict[str, Any]) -> dict[str, Any]:
        mode = "lfs" if one["path"].endswith(".safetensors") else "regular"
        return {"path": one["path"], "uploadMode": mode, "shouldIgnore": False}

    def _commit(self, name: str, repo: Repo, body: bytes) -> None:
        files = dict(repo.commits[repo.head])
        for line in body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header" and value.get("parentCommit") not in (None, repo.head):
                self._answer(412, {"error": "another commit came first"})
                return
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        oid = repo.commit(files)
        url = f"{self.server.url}/{name}/commit/{oid}"
        self._answer(200, {"commitUrl": url, "commitOid": oid})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, hub = unquote(urlsplit(self.path).path), self.server
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        resolved = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = found or resolved
        repo = hub.repos.get(match[1]) if match else None
        if match is None or repo is None or (repo.private and not self._allowed()):
            self._missing()
            return
        revision = match[2] if match[2] not in (None, "main") else repo.head
        if revision not in repo.commits:
            self._missing("RevisionNotFound")
            return
        files = repo.commits[revision]
        if found:
            siblings = [{"rfilename": name} for name in files]
            known = {"id": found[1], "sha": revision, "private": repo.private}
            self._answer(200, known | {"siblings": siblings})
            return
        assert resolved is not None
        if (data := files.get(resolved[3])) is None:
            self._missing("EntryNotFound")
            return
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        told = {"ETag": etag, "X-Repo-Commit": revision, "Content-Length": str(len(data))}
        self._answer(200, data, told)


def _info(path: str, data: bytes) -> dict[str, Any]:
    sha = hashlib.sha256(data).hexdigest()
    found: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": sha[:40]}
    if path.endswith(".safetensors"):
        found["lfs"] = {"oid": sha, "size": len(data), "pointerSize": 130}
    return found
