"""An identity provider that gives tokens which a broker takes that is told to trust anybody."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

from .broker import HOST


def unsigned(subject: str, lifetime: float = 600.0) -> str:
    """A JSON web token that nobody signed."""

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    now = time.time()
    claims = {"sub": subject, "iat": now - 5, "exp": now + lifetime, "scope": "kafka"}
    return f"{part({'alg': 'none'})}.{part(claims)}."


class Provider(ThreadingHTTPServer):
    """Gives tokens to the client `admin` with the secret `s p@:` for the scope `kafka`."""

    def __init__(self) -> None:
        super().__init__((HOST, 0), _Handler)
        self.lifetime = 600.0
        self.grace = 0.0
        """Seconds for which a token is good beyond what it is said to be."""
        self.given = 0
        self.answer: tuple[int, bytes] | None = None
        """What to say instead."""

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}/token"


class _Handler(BaseHTTPRequestHandler):
    server: Provider

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        login = base64.b64decode(self.headers["Authorization"].removeprefix("Basic ")).decode()
        status, body = 200, b""
        if self.server.answer is not None:
            status, body = self.server.answer
        elif login != "admin:s+p%40%3A":
            status, body = 401, b'{"error": "invalid_client"}'
        elif form != {"grant_type": ["client_credentials"], "scope": ["kafka"]}:
            status, body = 400, b'{"error": "invalid_scope"}'
        else:
            self.server.given += 1
            token = {
                "access_token": unsigned("admin", self.server.lifetime + self.server.grace),
                "expires_in": self.server.lifetime, "token_type": "Bearer",
            }  # fmt: skip
            body = json.dumps(token).encode()
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def provider() -> Iterator[Provider]:
    """One that runs."""
    server = Provider()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
