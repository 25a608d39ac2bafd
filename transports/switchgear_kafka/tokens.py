"""OAuth tokens from the endpoint of an identity provider: the client credentials grant (RFC 6749, section 4.4).

Knows no Kafka client: `get` is for those that await a token, `current` for those that call back from a thread.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import ssl
import threading
import time
import urllib.error
import urllib.request
from typing import Any, NamedTuple
from urllib.parse import quote_plus, urlencode

from switchgear.errors import Refused, SwitchgearError, Unavailable

TIMEOUT = 10.0  # seconds for an answer
LIFETIME = 300.0  # seconds, of a token whose endpoint says nothing
SPENT = 0.8  # of its lifetime, after which a token is renewed
LARGEST = 1 << 20  # bytes of an answer


class Token(NamedTuple):
    """What is shown to the broker."""

    value: str
    expires: float
    """Unix seconds."""


class Tokens:
    """Of one client; a token is used until most of its lifetime is over."""

    def __init__(
        self, endpoint: str, user: str, secret: str, *, scope: str | None = None, ca: str | None = None
    ) -> None:
        self._endpoint, self._scope, self._ca = endpoint, scope, ca
        login = f"{quote_plus(user)}:{quote_plus(secret)}".encode()
        self._login = f"Basic {base64.b64encode(login).decode()}"
        self._lock = threading.Lock()
        self._token: Token | None = None
        self._renew = 0.0

    async def get(self) -> Token:
        """A token that is good for a while. Raises Refused (id or secret), Unavailable."""
        token = self._good()
        return token if token is not None else await asyncio.to_thread(self.current)

    def current(self) -> Token:
        """The same; waits in this thread for the endpoint."""
        with self._lock:
            token = self._good()
            if token is None:
                began = time.time()
                token = self._token = self._ask(began)
                self._renew = began + SPENT * (token.expires - began)
            return token

    def _good(self) -> Token | None:
        return self._token if self._token is not None and time.time() < self._renew else None

    def _ask(self, now: float) -> Token:
        form = {"grant_type": "client_credentials"} | ({"scope": self._scope} if self._scope else {})
        request = urllib.request.Request(  # noqa: S310  (the URL was checked to be HTTP)
            self._endpoint, urlencode(form).encode(),
            {"Authorization": self._login, "Accept": "application/json"},
        )  # fmt: skip
        context = ssl.create_default_context()
        if self._ca is not None:
            context.load_verify_locations(self._ca)
        opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _Nowhere())
        try:
            with opener.open(request, timeout=TIMEOUT) as answer:
                return _token(answer.read(LARGEST), now, self._endpoint)
        except urllib.error.HTTPError as error:
            raise self._refused(error) from error
        except (OSError, http.client.HTTPException) as error:  # URLError is one of them
            raise Unavailable(f"token_endpoint {self._endpoint} cannot be reached: {error}") from error

    def _refused(self, error: urllib.error.HTTPError) -> SwitchgearError:
        with error:
            if error.code >= 500 or error.code == 429:
                return Unavailable(f"token_endpoint {self._endpoint} answers {error.code} {error.reason}")
            try:
                reason = json.loads(error.read(LARGEST)).get("error", error.reason)
            except (ValueError, AttributeError, OSError):
                reason = error.reason
        return Refused(
            f"token_endpoint {self._endpoint} answers {error.code} {reason}: check the client's id and secret, which "
            "are user and password of the URL, and scope="
        )


class _Nowhere(urllib.request.HTTPRedirectHandler):
    """Id and secret go to the endpoint and nowhere else."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _token(body: bytes, now: float, endpoint: str) -> Token:
    try:
        answer = json.loads(body)
        value, lifetime = answer["access_token"], float(answer.get("expires_in", LIFETIME))
    except (ValueError, TypeError, KeyError, AttributeError):
        value, lifetime = None, 0.0
    if not isinstance(value, str) or not value:
        raise Refused(f"token_endpoint {endpoint} answers without an access_token: is it the right URL?")
    return Token(value, now + lifetime)
