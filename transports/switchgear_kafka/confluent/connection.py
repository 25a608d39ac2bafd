"""How a client of confluent-kafka proves who it is, and whom it talks to."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError

from switchgear_kafka.tokens import Tokens
from switchgear_kafka.tuning import Settings

TOKEN = 60.0  # seconds after which a token is read from its file again


def connection(settings: Settings, heard: Callable[[KafkaError], None]) -> dict[str, Any]:
    """The configuration that every client takes; `heard` is told errors of no request. It logs nothing."""
    found: dict[str, Any] = {
        "bootstrap.servers": ",".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in settings.servers
        ),
        "security.protocol": ("SASL_" if settings.sasl else "") + ("SSL" if settings.tls else "PLAINTEXT"),
        "client.id": "switchgear",
        "allow.auto.create.topics": False,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1000,
        "log_level": 0,
        "error_cb": heard,
    }
    if settings.sasl:
        found["sasl.mechanism"] = settings.sasl
    if settings.tokens is not None:
        found["oauth_cb"] = _endpoint(settings.tokens)
    elif settings.token_file:
        found["oauth_cb"] = _tokens(Path(settings.token_file))
    elif settings.sasl:
        found |= {"sasl.username": settings.user, "sasl.password": settings.password}
    if settings.tls:
        found["enable.ssl.certificate.verification"] = settings.verify
        found["ssl.endpoint.identification.algorithm"] = "https" if settings.verify else "none"
        if settings.ca:
            found["ssl.ca.location"] = settings.ca
        if settings.cert and settings.key:
            found |= {"ssl.certificate.location": settings.cert, "ssl.key.location": settings.key}
    return found


def _tokens(path: Path) -> Callable[[str], tuple[str, float]]:
    def token(_config: str) -> tuple[str, float]:
        return path.read_text(encoding="ascii").strip(), time.time() + TOKEN

    return token


def _endpoint(tokens: Tokens) -> Callable[[str], tuple[str, float]]:
    def token(_config: str) -> tuple[str, float]:
        return tokens.current()

    return token
