"""What a `kafka://` URL says."""

from __future__ import annotations

from pathlib import Path

import pytest

from switchgear.errors import ConfigurationError
from switchgear.plugins import split
from switchgear_kafka.tuning import KafkaTuning, Settings, check, parse


def read(url: str) -> Settings:
    return parse(split(url))


def test_servers() -> None:
    assert read("kafka://").servers == (("localhost", 9092),)
    assert read("kafka://a,b:9094,[::1]:9095").servers == (("a", 9092), ("b", 9094), ("::1", 9095))
    assert read("kafka://a,b:9094,[::1]:9095").address == "kafka://a:9092,b:9094,[::1]:9095"
    assert read("kafka+ssl://a").address == "kafka+ssl://a:9092"
    with pytest.raises(ConfigurationError, match="malformed broker URL"):
        read("kafka://a:9092,b:port")


def test_login() -> None:
    found = read("kafka://bob:p%40ss@a,b?sasl=SCRAM-SHA-256")
    assert (found.user, found.password, found.sasl) == ("bob", "p@ss", "SCRAM-SHA-256")
    assert read("kafka://bob:secret@a").sasl == "PLAIN"
    assert read("kafka://a").sasl is None
    assert "p@ss" not in repr(found)


def test_every_field_of_the_tuning_is_an_option() -> None:
    found = read(
        "kafka://a?acks=1&linger=0.005&compression=zstd&group_instance_id=i&client_rack=r&replication=3&compacted=a,b"
        "&registry=rows&rebalance=5&timeout=2&namespace=n."
    )
    assert found.tuning == KafkaTuning(
        acks="1", linger=0.005, compression="zstd", group_instance_id="i", client_rack="r", replication=3,
        compacted=("a", "b"), registry="rows", rebalance=5.0, timeout=2.0,
    )  # fmt: skip


def test_token_and_certificates(tmp_path: Path) -> None:
    file = tmp_path / "f.pem"
    file.write_text("x")
    found = read(f"kafka+ssl://a?token_file={file}&ca={file}&cert={file}&key={file}&verify=no")
    assert (found.sasl, found.token_file, found.ca, found.verify) == ("OAUTHBEARER", str(file), str(file), False)


def test_a_token_endpoint_takes_user_and_password_for_itself() -> None:
    found = read("kafka://id:s%20cret@a?token_endpoint=https://id.example/token&scope=kafka")
    assert found.sasl == "OAUTHBEARER"
    assert found.tokens is not None
    assert "cret" not in repr(found)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("kafka://a?acs=1", "unknown option 'acs'; did you mean 'acks'"),
        ("kafka://a?acks=2", "acks is '2'; expected 'all' or '1'"),
        ("kafka://a?compression=brotli", "expected none, gzip"),
        ("kafka://a?replication=x", "no whole number"),
        ("kafka://a?rebalance=0", "expected more than 0 seconds"),
        ("kafka://a?timeout=soon", "no number of seconds"),
        ("kafka://a/orders", "topics are named in the program"),
        ("kafka://a?ca=x", r"write kafka\+ssl://"),
        ("kafka+ssl://a?ca=/nowhere", "is no file"),
        ("kafka+ssl://a?verify=maybe", "expected yes or no"),
        ("kafka://a?sasl=KERBEROS", "expected one of PLAIN"),
        ("kafka://a?sasl=PLAIN", "takes user and password"),
        ("kafka://a?sasl=OAUTHBEARER", "takes either token_file="),
        ("kafka://a?token_endpoint=https://id.example/token", "write kafka://id:secret@host"),
        ("kafka://i:s@a?token_endpoint=/token", "is no https:// URL"),
        ("kafka://a?scope=x", "takes token_endpoint="),
        ("kafka://a?client=java", "expected one of aiokafka, confluent"),
    ],
)
def test_what_is_wrong_is_named(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        read(url)


def test_a_certificate_without_its_key(tmp_path: Path) -> None:
    file = tmp_path / "f.pem"
    file.write_text("x")
    with pytest.raises(ConfigurationError, match="both 'cert' and 'key'"):
        read(f"kafka+ssl://a?cert={file}")


def test_a_tuning_object_is_checked_too() -> None:
    with pytest.raises(ConfigurationError, match="replication is 0; expected 1 replica or more"):
        check(KafkaTuning(replication=0), "kafka://a")
