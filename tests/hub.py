"""A stand-in for the Hugging Face hub's HTTP API on loopback: repositories, LFS uploads and commits."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def made(*names: str, private: bool = True) -> dict[str, Any]:
    """A repository with files of these names, which somebody has put there."""
    titles = dict.fromkeys(names, "Upload by hand")
    files = dict.fromkeys(names, b"mine")
    return {"private": private, "files": files, "titles": titles, "message": "", "commit": "0" * 40}


@dataclass
class Hub:
    """What the server holds; `token` is the one that may write."""

    token: str = "hf_test"
    url: str = ""
    repos: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Repository -> {"private": bool, "files": {name: bytes}, "message": str}.

    "titles" are those of the last commit of each file, and "commit" is the last commit of all.
    """
    large: dict[str, bytes] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    broken: bool = False
    """Whether every request ends in an error of the server."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        if self.begin():
            return
        place = self.path.partition("?")[0].removeprefix("/api/models/").removesuffix("/revision/main")
        repo, _, commit = place.partition("/tree/")
        if repo not in self.hub.repos:
            self.send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return
        found = self.hub.repos[repo]
        if commit:
            assert commit == found["commit"]
            self.send(200, [self.entry(found, name) for name in found["files"]])
            return
        siblings = [{"rfilename": name} for name in (".gitattributes", *found["files"])]
        told = {"_id": "0", "id": repo, "private": found["private"], "sha": found["commit"]}
        self.send(200, {**told, "siblings": siblings})

    @staticmethod
    def entry(repo: dict[str, Any], name: str) -> dict[str, Any]:
        """A file of a repository, as the hub lists it with `expand`."""
        last = {"id": repo["commit"], "title": repo["titles"][name], "date": "2026-01-02T03:04:05.000Z"}
        size = len(repo["files"][name])
        return {"type": "file", "path": name, "size": size, "oid": "0" * 40, "lastCommit": last}

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.begin():
            return
        place = self.path.partition("?")[0]
        if place == "/api/repos/create":
            asked = json.loads(body)
            owner = asked.get("organization") or "me"
            repo = f"{owner}/{asked['name']}"
            private = asked.get("private", asked.get("visibility") == "private")
            self.hub.repos[repo] = made(private=private)
            self.send(200, {"url": f"{self.hub.url}/{repo}"})
        elif "/preupload/" in place:
            names = [each["path"] for each in json.loads(body)["files"]]
            kind = [{"path": n, "uploadMode": self.mode(n), "shouldIgnore": False} for n in names]
            self.send(200, {"files": kind})
        elif place.endswith("/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            self.send(200, {"transfer": "basic", "objects": objects})
        elif "/commit/" in place:
            self.commit(place.removeprefix("/api/models/").partition("/commit/")[0], body)
        else:
            self.send(200, {"errors": [], "warnings": []})

    def do_PUT(self) -> None:
        if "content-length" in self.headers:
            content = self.rfile.read(int(self.headers["content-length"]))
        else:
            content = b"".join(self.chunks())
        digest = hashlib.sha256(content).hexdigest()
        assert self.path == f"/lfs/{digest}"
        self.hub.large[digest] = content
        self.send(200, {})

    def chunks(self) -> Iterator[bytes]:
        """The parts of a body that comes in chunks."""
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def commit(self, repo: str, body: bytes) -> None:
        found = self.hub.repos[repo]
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                if value.get("parentCommit", found["commit"]) != found["commit"]:
                    self.send(412, {"error": "A commit has happened since"})
                    return
                found["message"] = value["summary"]
                continue
            if item["key"] == "deletedFile":
                del found["files"][value["path"]], found["titles"][value["path"]]
                continue
            content = self.hub.large[value["oid"]] if item["key"] == "lfsFile" else value["content"]
            found["files"][value["path"]] = (
                content if isinstance(content, bytes) else base64.b64decode(content)
            )
            found["titles"][value["path"]] = found["message"]
        sha = found["commit"] = f"{int(found['commit'], 16) + 1:040x}"
        self.send(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{sha}", "commitOid": sha})

    def begin(self) -> bool:
        """Note the request; answer it here if it is refused."""
        self.hub.calls.append(f"{self.command} {self.path.partition('?')[0]}")
        if self.hub.broken:
            self.send(500, {"error": "out of order"})
        elif self.headers.get("authorization") != f"Bearer {self.hub.token}":  # a signed address needs none
            self.send(401, {"error": "Invalid credentials"})
        else:
            return False
        return True

    @staticmethod
    def mode(name: str) -> str:
        return "lfs" if name.endswith((".safetensors", ".gguf")) else "regular"

    def send(self, code: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The server on a free port until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
