# Copyright 2026 The trl-cppo authors. Licensed under the Apache License, Version 2.0.
# SPDX-License-Identifier: Apache-2.0
"""A stand-in of the Hub that takes uploads, for the Hub's own client with `HF_ENDPOINT`; models still come from its cache."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Hub:
    """While this is open, what is pushed to `address` lands in `folder`, by repository."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: bytes) -> dict[str, Any] | None:
        """What the Hub says to a call of its API, or `None`: then the client takes its cache."""
        if path == "/api/repos/create":
            given = json.loads(body)
            name = "/".join(filter(None, [given.get("organization"), given["name"]]))
            return {"url": f"{self.address}/{name}", "id": name}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path == "/api/whoami-v2":
            return {"name": "your-name", "type": "user", "auth": {"accessToken": {"role": "write"}}, "orgs": []}
        parts = path.split("/")
        if parts[:3] != ["", "api", "models"] or len(parts) < 6:
            return None
        name, call = "/".join(parts[3:5]), parts[5]
        if call == "preupload":
            files = json.loads(body)["files"]
            return {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]}
        if call == "commit":
            self._keep(name, body)
            return {"commitOid": "0" * 40, "commitUrl": f"{self.address}/{name}/commit/{'0' * 40}", "success": True}
        return {"id": name, "sha": "0" * 40, "siblings": []}

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
            answer = hub.answer(self.path.split("?")[0], body)
            data = json.dumps(answer).encode() if answer is not None else b""
            self.send_response(500 if answer is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, *args):
            pass

    return Handler
