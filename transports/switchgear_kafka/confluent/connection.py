"""How a client of confluent-kafka proves who it is, and whom it talks to."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from confluent_kafka import KafkaError

from switchgear.errors import Refused
from switchgear_kafka.tokens import Tokens
from switchgear_kafka.tuning import Settings

T = TypeVar("T")
TOKEN = 60.0  # seconds after which a token is read from its file again


def connection(settings: Settings, heard: Callable[[KafkaError], None]) -> dict[str, Any]:
    """The configuration that every client takes; `heard` is told errors of no request. It logs nothing."""
    silent = logging.Logger("librdkafka", logging.CRITICAL + 1)  # noqa: LOG001  (nobody is to find and configure it)
    found: dict[str, Any] = {
        "bootstrap.servers": ",".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in settings.servers
        ),
        "security.protocol": ("SASL_" if settings.sasl else "") + ("SSL" if settings.tls else "PLAINTEXT"),
        "client.id": "switchgear",
        "allow.auto.create.topics": False,
        "socket.timeout.ms": round(max(settings.tuning.timeout, 1.0) * 1000),  # else a dead line is used for a minute
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1000,
        "log_level": 0,
        "logger": silent,  # else fatal errors go to stderr
        "error_cb": heard,
    }
    if settings.sasl:
        found["sasl.mechanism"] = settings.sasl
    if settings.tokens is not None:
        found["oauth_cb"] = _endpoint(settings.tokens)
    elif settings.token_file:
        found["oauth_cb"] = _file(settings.token_file)
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


async def made(settings: Settings, make: Callable[[], T]) -> T:
    """A client. One that shows tokens waits for its first while it is made: a thread does that."""
    return await asyncio.to_thread(make) if settings.sasl == "OAUTHBEARER" else make()


async def token(settings: Settings) -> None:
    """Find out whether there is one: the client would not tell what is wrong. Raises Refused, Unavailable."""
    if settings.tokens is not None:
        await settings.tokens.get()
    elif settings.token_file:
        try:
            _read(settings.token_file)
        except (OSError, UnicodeDecodeError) as error:
            raise Refused(f"{settings.address}: token_file {settings.token_file!r}: {error}") from error


def _read(path: str) -> str:
    return Path(path).read_text(encoding="ascii").strip()


def _file(path: str) -> Callable[[str], tuple[str, float]]:
    def current(_config: str) -> tuple[str, float]:
        return _read(path), time.time() + TOKEN

    return current


def _endpoint(tokens: Tokens) -> Callable[[str], tuple[str, float]]:
    def current(_config: str) -> tuple[str, float]:
        return tokens.current()

    return current
