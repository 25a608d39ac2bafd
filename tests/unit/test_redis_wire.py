"""Every failure of the client is one of our errors, and says what to do."""

from __future__ import annotations

import ssl

import pytest
from redis import exceptions as client

from switchgear.errors import ConfigurationError, MaybeSent, NotFound, NotSent, Refused, Unavailable
from switchgear_redis.wire import failure, refusal

AT = "redis://host:6379/0"


@pytest.mark.parametrize(
    ("said", "error", "advice"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", NotSent, "out of memory"),
        ("READONLY You can't write against a read only replica.", Refused, "let the URL name the primary"),
        ("LOADING Redis is loading the dataset in memory", Unavailable, "loading"),
        ("MISCONF Redis is configured to save RDB snapshots", NotSent, "cannot save"),
        ("WRONGTYPE Operation against a key", Refused, "no stream"),
        ("NOPERM User app has no permissions", Refused, "lacks the right"),
        ("NOGROUP No such key", NotFound, "no such group"),
        ("ERR something else", Refused, "something else"),
        (client.OutOfMemoryError("command not allowed"), NotSent, "out of memory"),
        (client.ReadOnlyError("You can't write"), Refused, "primary"),
        (client.MasterDownError("Link with MASTER is down"), Unavailable, "primary is down"),
        (client.ResponseError("NOREPLICAS Not enough good replicas to write."), NotSent, "min-replicas-to-write"),
    ],
)
def test_replies(said: str | client.RedisError, error: type[Exception], advice: str) -> None:
    made = refusal(AT, said)
    assert type(made) is error
    assert advice in str(made)
    assert AT in str(made)


def test_broken_connections() -> None:
    lost = client.ConnectionError("Connection closed by server.")
    assert type(failure(AT, lost, sent=False)) is Unavailable
    assert type(failure(AT, lost, sent=True)) is MaybeSent
    assert "timeout" in str(failure(AT, TimeoutError(), sent=True))


def test_definite_answers_are_definite_after_sending_too() -> None:
    assert type(failure(AT, client.BusyLoadingError("loading"), sent=True)) is Unavailable
    assert type(failure(AT, client.AuthenticationError("invalid username-password pair"), sent=True)) is Refused


def test_tls_that_cannot_work_is_no_weather() -> None:
    outer = client.ConnectionError("Error 1 connecting")
    outer.__context__ = untrusted = ssl.SSLCertVerificationError("x")
    untrusted.verify_message = "self-signed certificate in certificate chain"
    made = failure(AT, outer, sent=False)
    assert type(made) is ConfigurationError
    assert "?ca=" in str(made)


def test_wrong_database() -> None:
    assert type(failure(AT, client.ConnectionError("Invalid Database"), sent=False)) is ConfigurationError
