"""A hub on this machine: as much of its protocol as saving and fetching a folder needs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest


class Hub:
    """Repositories by name, each a list of commits, each a mapping from paths to bytes."""

    def __init__(self) -> None:
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.refuses = False  # as without a token
        self.address = ""

    def files(self, name: str) -> dict[str, bytes]:
        """The files of the last commit."""
        return self.repositories[name][-1]


def _commit(number: int) -> str:
    return f"{number:040x}"


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

        def answer(self, body: Any, status: int = 200, **headers: str) -> None:
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(raw)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(raw)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if hub.refuses:
                self.answer({"error": "Invalid username or password."}, 401)
            elif self.path == "/api/repos/create":
                told = json.loads(body)
                name = "/".join(filter(None, (told.get("organization"), told["name"])))
                hub.repositories.setdefault(name, [])
                self.answer({"url": f"{hub.address}/{name}", "id": name})
            elif self.path == "/api/validate-yaml":
                self.answer({"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                paths = [f["path"] for f in json.loads(body)["files"]]
                told = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]
                self.answer({"files": told})
            elif "/commit/" in self.path:
                name = self.path.removeprefix("/api/models/").split("/commit/")[0]
                commits = hub.repositories[name]
                files = dict(commits[-1]) if commits else {}
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                commits.append(files)
                oid = _commit(len(commits))
                url = f"{hub.address}/{name}/commit/{oid}"
                self.answer({"success": True, "commitOid": oid, "commitUrl": url})
            else:
                self.answer({"error": self.path}, 404)

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?/?", path)
            file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            found = api or file
            commits = hub.repositories.get(found[1]) if found else None
            if commits is None:
                self.answer({"error": "none"}, 404, X_Error_Code="RepoNotFound")
                return
            revision = (api[3] if api else file and file[2]) or "main"
            number = len(commits) if revision == "main" else int(revision, 16)
            files, oid = commits[number - 1], _commit(number)
            if api and api[2] == "tree":
                self.answer([_entry(p, raw) for p, raw in files.items()])
            elif api:
                names = [{"rfilename": p} for p in files]
                self.answer({"id": found[1], "modelId": found[1], "sha": oid, "siblings": names})
            elif file and file[3] in files:
                raw = files[file[3]]
                tag = f'"{hashlib.sha1(raw).hexdigest()}"'
                self.answer(raw, ETag=tag, X_Repo_Commit=oid)
            else:
                self.answer({"error": "none"}, 404, X_Error_Code="EntryNotFound")

        do_HEAD = do_GET

    return Handler


def _entry(path: str, raw: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(raw).hexdigest()
    return {"type": "file", "path": path, "size": len(raw), "oid": oid}


@contextmanager
def running() -> Iterator[Hub]:
    """Runs a hub in a thread."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub that huggingface_hub speaks with during a test."""
    constants = huggingface_hub.constants
    with running() as made:
        monkeypatch.setattr(constants, "ENDPOINT", made.address)
        template = made.address + constants.HUGGINGFACE_CO_URL_TEMPLATE.partition(".co")[2]
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.hf_api.api", huggingface_hub.HfApi(), raising=False)
        monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield made
        huggingface_hub.utils.close_session()
