# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""A stand-in of the Hub that takes uploads, for the Hub's own client with `HF_ENDPOINT`; models come from its cache."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0" * 40


class Hub:
    """
    While this is open, what is pushed to `address` lands in `folder`, by repository. The client asks it which files there
    are, and has those of `cache` already.
    """

    def __init__(self, folder: Path, cache: Path):
        self.folder = folder
        self.cache = cache
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: bytes) -> dict[str, Any] | list[Any]:
        """What the Hub says to a call of its API."""
        if path == "/api/repos/create":
            given = json.loads(body)
            name = "/".join(filter(None, [given.get("organization"), given["name"]]))
            return {"url": f"{self.address}/{name}", "id": name}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path == "/api/whoami-v2":
            return {"name": "your-name", "type": "user", "auth": {"accessToken": {"role": "write"}}, "orgs": []}
        parts = path.split("/")
        name, call = "/".join(parts[3:5]), parts[5] if len(parts) > 5 else None
        if call == "preupload":
            files = json.loads(body)["files"]
            return {
                "files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            }
        if call == "commit":
            self._keep(name, body)
            return {"commitOid": COMMIT, "commitUrl": f"{self.address}/{name}/commit/{COMMIT}", "success": True}
        return [] if call == "tree" else {"id": name, "sha": COMMIT, "siblings": []}

    def has(self, path: str) -> bool:
        """Whether there is the file of a repository, `/ORG/NAME/resolve/REVISION/FILE`."""
        _, organization, name, _, _, *file = path.split("/")
        snapshot = self.cache / "hub" / f"models--{organization}--{name}" / "snapshots" / COMMIT
        return snapshot.joinpath(*file).is_file()

    def _keep(self, name: str, body: bytes) -> None:
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                file = self.folder / name / entry["value"]["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(base64.b64decode(entry["value"]["content"]))


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self._reply(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

        def do_GET(self):
            self._reply(b"")

        do_HEAD = do_GET

        def _reply(self, body: bytes) -> None:
            path = self.path.split("?")[0]
            file = not path.startswith("/api/")
            data = b"" if file else json.dumps(hub.answer(path, body)).encode()
            if not file or hub.has(path):
                self.send_response(200)
                self.send_header("ETag", COMMIT)
                self.send_header("X-Repo-Commit", COMMIT)
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    return Handler
