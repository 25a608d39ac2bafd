"""How a client of Kafka proves who it is, and whom it talks to."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from aiokafka import errors as kafka
from aiokafka.abc import AbstractTokenProvider

from switchgear.errors import Refused, Unavailable

from . import tls
from .tuning import Settings

if TYPE_CHECKING:
    from .tokens import Tokens  # brings in http.client: only who fetches tokens is to pay for it


class Connection(TypedDict):
    """The arguments that every client of aiokafka takes for connecting."""

    bootstrap_servers: list[str]
    security_protocol: str
    ssl_context: ssl.SSLContext | None
    sasl_mechanism: str
    sasl_plain_username: str | None
    sasl_plain_password: str | None
    sasl_oauth_token_provider: AbstractTokenProvider | None


class TokenFile(AbstractTokenProvider):
    """A token that somebody else keeps fresh in a file."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    async def token(self) -> str:
        """What the file holds now."""
        try:
            return self._path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise kafka.AuthenticationFailedError(f"token_file {str(self._path)!r}: {error}") from error


class Endpoint(AbstractTokenProvider):
    """A token of an identity provider, told in the client's own errors: it tries again after no others."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def token(self) -> str:
        """One that is good for a while."""
        try:
            return (await self._tokens.get()).value
        except Refused as error:
            raise kafka.AuthenticationFailedError(str(error)) from error
        except Unavailable as error:
            raise kafka.KafkaConnectionError(str(error)) from error


def connection(settings: Settings) -> Connection:
    """Read certificates and secrets. Raises ConfigurationError for files that hold none."""
    protocol = "SASL_" if settings.sasl else ""
    return Connection(
        bootstrap_servers=[f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in settings.servers],
        security_protocol=protocol + ("SSL" if settings.tls else "PLAINTEXT"),
        ssl_context=tls.context(settings) if settings.tls else None,
        sasl_mechanism=settings.sasl or "PLAIN",
        sasl_plain_username=settings.user,
        sasl_plain_password=settings.password,
        sasl_oauth_token_provider=_tokens(settings),
    )


def _tokens(settings: Settings) -> AbstractTokenProvider | None:
    if settings.tokens is not None:
        return Endpoint(settings.tokens)
    return TokenFile(settings.token_file) if settings.token_file else None
