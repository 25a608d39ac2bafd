"""What a `redis://` URL may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from switchgear.errors import ConfigurationError
from switchgear.plugins import open_transport, split
from switchgear_redis import RedisTuning
from switchgear_redis.tuning import parse


def test_everything_in_one_url(tmp_path: Path) -> None:
    pem = tmp_path / "a b.pem"
    pem.touch()
    url = f"rediss://app:p%40ss%2F@redis.example:7000/3?maxlen=1000&keep=60&timeout=2.5&wait=2&ca={pem}&namespace=x."
    s = parse(split(url))
    assert (s.host, s.port, s.db, s.user, s.password, s.tls) == ("redis.example", 7000, 3, "app", "p@ss/", True)
    assert s.tuning == RedisTuning(maxlen=1000, keep=60.0, timeout=2.5)
    assert (s.wait, s.waitaof, s.ca, s.verify) == (2, None, str(pem), True)
    assert s.address == "rediss://redis.example:7000/3"
    assert "p@ss" not in repr(s)


def test_defaults() -> None:
    s = parse(split("redis://localhost"))
    assert (s.port, s.db, s.user, s.password, s.tls, s.wait) == (6379, 0, None, None, False, 0)
    assert s.tuning == RedisTuning()
    assert parse(split("redis://[::1]")).address == "redis://[::1]:6379/0"


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("maxlenn=3", "unknown option 'maxlenn'; did you mean 'maxlen'?"),
        ("zzz=3", "unknown option 'zzz'; known: maxlen, keep, timeout"),
        ("maxlen=-1", "maxlen='-1' is no whole number"),
        ("maxlen=0", "maxlen is 0; expected 1 message or more"),
        ("keep=soon", "keep='soon' is no number of seconds"),
        ("timeout=0", "timeout is 0.0; expected more than 0 seconds"),
        ("ca=/x.pem", "'ca' is an option of TLS; write rediss://"),
        ("verify=no", "'verify' is an option of TLS; write rediss://"),
        ("wait=all", "wait='all' is no whole number"),
    ],
)
def test_wrong_options_are_named(query: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        open_transport(f"redis://user:secret@host/0?{query}")
    assert says in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://host/orders", "expected the number of a database"),
        ("rediss://host?ca=/nowhere.pem", "ca='/nowhere.pem' is no file"),
        ("rediss://host?verify=maybe", "verify='maybe'; expected yes or no"),
        ("rediss://host?cert={pem}", "takes both 'cert' and 'key'"),
    ],
)
def test_wrong_urls(url: str, says: str, tmp_path: Path) -> None:
    pem = tmp_path / "x.pem"
    pem.touch()
    with pytest.raises(ConfigurationError, match=says):
        open_transport(url.format(pem=pem))


def test_object_wins_over_url() -> None:
    transport = open_transport("redis://localhost?maxlen=5", [RedisTuning(maxlen=7)])
    assert transport._settings.tuning.maxlen == 7  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match="connections is 1; expected 2 or more"):
        open_transport("redis://localhost", [RedisTuning(connections=1)])


def test_missing_client_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [n for n in sys.modules if n.startswith("switchgear_redis.") and not n.endswith("tuning")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hiredis", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'switchgear\[redis\]'"):
        open_transport("redis://localhost")
