"""What a `kafka://` URL says; needs no Kafka client."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from switchgear.errors import ConfigurationError, TransportNotFound
from switchgear.plugins import hookimpl

if TYPE_CHECKING:
    from switchgear.driver import Transport

    from .tokens import Tokens

PORT = 9092
CLIENTS: Final = {"aiokafka": "aiokafka", "confluent": "confluent_kafka"}
"""The clients, and the modules that they are."""
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")


@dataclass(frozen=True)
class KafkaTuning:
    """Settings for `kafka://`, ignored by every other transport; each is an option of the URL too."""

    acks: Literal["all", "1"] = "all"
    """Who confirms a publish: "all" in-sync replicas, or "1", the leader alone: no idempotence, less durable."""
    linger: float = 0.0
    """Seconds that a batch waits before it is sent, in which the next one gathers."""
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"
    group_instance_id: str | None = None
    """Static membership: a member that comes back under this name within the session timeout keeps its partitions."""
    group_protocol: Literal["classic", "consumer"] = "classic"
    """How members share partitions: by rounds of the whole group, or "consumer" (KIP-848): as the broker says, member
    by member, with `client=confluent` alone; how long a lease is, is then the broker's to say."""
    client_rack: str | None = None
    """Where this client is, so that it may read from the nearest replica."""
    replication: int | None = None
    """Replicas of topics that Switchgear creates; None: the broker's default."""
    compacted: tuple[str, ...] = ()
    """Physical names of topics that Switchgear creates compacted: of each key the last message stays."""
    registry: str = "sg.registry"
    """The compacted topic of one partition that keeps topic plans and parked keys."""
    rebalance: float = 30.0
    """Seconds that handlers may go on when a rebalance takes their partition away; the group waits for them."""
    timeout: float = 5.0
    """Seconds to connect, and to wait for an answer where the caller sets no deadline."""

    @property
    def scheme(self) -> str:
        """The URL scheme that this is for."""
        return "kafka"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where the cluster is and how to talk to it."""

    servers: tuple[tuple[str, int], ...]
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    verify: bool = True
    sasl: str | None = None
    token_file: str | None = None
    tokens: Tokens | None = field(default=None, repr=False, compare=False)
    client: str = "aiokafka"
    tuning: KafkaTuning = KafkaTuning()

    @property
    def address(self) -> str:
        """The URL without user, password and options."""
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.servers)
        return f"{'kafka+ssl' if self.tls else 'kafka'}://{hosts}"


@hookimpl
def open_transport(scheme: str, url: SplitResult, tuning: Sequence[object]) -> Transport | None:
    """The transport of a `kafka://` or `kafka+ssl://` URL; a tuning object takes the place of all that the URL tunes.

    Raises ConfigurationError for an option that is unknown or wrong, TransportNotFound without the client.
    """
    if scheme not in ("kafka", "kafka+ssl"):
        return None
    settings = parse(url)
    for given in tuning:
        if isinstance(given, KafkaTuning):
            settings = replace(settings, tuning=check(given, settings.address))
    return _opened(scheme, settings)


def _opened(scheme: str, settings: Settings) -> Transport:
    """Import the engine that is asked for, and no other."""
    if settings.tuning.group_protocol == "consumer" and settings.client != "confluent":
        raise ConfigurationError(f"{settings.address}: group_protocol=consumer takes client=confluent")
    try:
        if settings.client == "confluent":
            from .confluent.transport import opened
        else:
            from .aiokafka_engine import opened
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in CLIENTS.values():
            raise
        extra = "kafka" if settings.client == "aiokafka" else f"kafka-{settings.client}"
        raise TransportNotFound(
            f"{scheme}:// with client={settings.client} needs that client: pip install 'switchgear[{extra}]'"
        ) from error
    return opened(settings)


def parse(url: SplitResult) -> Settings:
    """Read a URL. Raises ConfigurationError, naming the option and the nearest known one."""
    login, _, hosts = url.netloc.rpartition("@")
    user, colon, password = login.partition(":")
    base = Settings(
        servers=tuple(_server(host) for host in hosts.split(",")), tls=url.scheme == "kafka+ssl",
        user=unquote(user) if user else None, password=unquote(password) if colon else None,
    )  # fmt: skip
    at = base.address
    if url.path.strip("/"):
        raise ConfigurationError(f"{at}: the path {url.path!r} means nothing here: topics are named in the program")
    readers: dict[str, Callable[[str, str, str], Any]] = {
        "linger": _seconds, "rebalance": _seconds, "timeout": _seconds, "replication": _whole,
        "compacted": lambda _at, _name, value: tuple(one for one in value.split(",") if one),
    }  # fmt: skip
    tunable = [f.name for f in fields(KafkaTuning)]
    texts = ("ca", "cert", "key", "verify", "sasl", "token_file", "token_endpoint", "scope")
    tuned: dict[str, Any] = {}
    own: dict[str, str] = {}
    for name, value in parse_qsl(url.query, keep_blank_values=True):
        if name == "namespace":  # the bus's own
            continue
        if name in tunable:
            tuned[name] = readers[name](at, name, value) if name in readers else value
        elif name in texts:
            own[name] = value
        elif name == "client":
            if value not in CLIENTS:
                raise ConfigurationError(f"{at}: client={value!r}; expected one of {', '.join(CLIENTS)}")
            own[name] = value
        else:
            known = [*tunable, *texts, "client"]
            from difflib import get_close_matches

            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ConfigurationError(f"{at}: unknown option {name!r}; {hint}")
    return _secured(replace(base, tuning=check(KafkaTuning(**tuned), at)), own)


def _secured(base: Settings, own: dict[str, str]) -> Settings:
    at = base.address
    if not base.tls and (odd := [name for name in ("ca", "cert", "key", "verify") if name in own]):
        raise ConfigurationError(f"{at}: {odd[0]!r} is an option of TLS; write kafka+ssl:// to use it")
    for name in ("ca", "cert", "key", "token_file"):
        if name in own and not Path(own[name]).is_file():
            raise ConfigurationError(f"{at}: {name}={own[name]!r} is no file")
    if ("cert" in own) != ("key" in own):
        raise ConfigurationError(f"{at}: a client certificate takes both 'cert' and 'key'")
    sasl = own.get("sasl")
    if sasl is None and ("token_file" in own or "token_endpoint" in own):
        sasl = "OAUTHBEARER"
    elif sasl is None and base.user is not None:
        sasl = "PLAIN"
    if sasl is not None and sasl not in MECHANISMS:
        raise ConfigurationError(f"{at}: sasl={sasl!r}; expected one of {', '.join(MECHANISMS)}")
    if sasl == "OAUTHBEARER" and ("token_file" in own) == ("token_endpoint" in own):
        raise ConfigurationError(
            f"{at}: sasl=OAUTHBEARER takes either token_file=, a file that holds the token, or token_endpoint=, a URL "
            "that gives one"
        )
    if sasl is not None and sasl != "OAUTHBEARER" and (base.user is None or base.password is None):
        raise ConfigurationError(f"{at}: sasl={sasl} takes user and password: write kafka://user:password@host")
    return replace(
        base, ca=own.get("ca"), cert=own.get("cert"), key=own.get("key"), sasl=sasl, token_file=own.get("token_file"),
        verify=_yes(at, "verify", own.get("verify", "yes")), tokens=_tokens(base, own),
        client=own.get("client", "aiokafka"),
    )  # fmt: skip


def _tokens(base: Settings, own: dict[str, str]) -> Tokens | None:
    endpoint = own.get("token_endpoint")
    if endpoint is None:
        if "scope" in own:
            raise ConfigurationError(f"{base.address}: 'scope' is asked for with a token: it takes token_endpoint=")
        return None
    if urlsplit(endpoint).scheme not in ("https", "http") or not urlsplit(endpoint).hostname:
        raise ConfigurationError(f"{base.address}: token_endpoint={endpoint!r} is no https:// URL")
    if base.user is None or base.password is None:
        raise ConfigurationError(
            f"{base.address}: token_endpoint= takes the client's id and secret: write kafka://id:secret@host"
        )
    from .tokens import Tokens

    return Tokens(endpoint, base.user, base.password, scope=own.get("scope"), ca=own.get("ca"))


def check(tuning: KafkaTuning, at: str) -> KafkaTuning:
    """The tuning itself. Raises ConfigurationError for a value out of range."""
    for name, ok, expected in (
        ("acks", tuning.acks in ("all", "1"), "'all' or '1'"),
        ("linger", tuning.linger >= 0, "0 seconds or more"),
        ("compression", tuning.compression in ("none", "gzip", "snappy", "lz4", "zstd"),
         "none, gzip, snappy, lz4 or zstd"),
        ("replication", tuning.replication is None or tuning.replication > 0, "1 replica or more"),
        ("group_protocol", tuning.group_protocol in ("classic", "consumer"), "classic or consumer"),
        ("registry", bool(tuning.registry), "the name of a topic"),
        ("rebalance", tuning.rebalance > 0, "more than 0 seconds"),
        ("timeout", tuning.timeout > 0, "more than 0 seconds"),
    ):  # fmt: skip
        if not ok:
            raise ConfigurationError(f"{at}: {name} is {getattr(tuning, name)!r}; expected {expected}")
    return tuning


def _server(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    return unquote(parts.hostname or "localhost"), parts.port or PORT


def _whole(at: str, name: str, value: str) -> int:
    if not value.isdecimal():
        raise ConfigurationError(f"{at}: {name}={value!r} is no whole number")
    return int(value)


def _seconds(at: str, name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ConfigurationError(f"{at}: {name}={value!r} is no number of seconds") from None


def _yes(at: str, name: str, value: str) -> bool:
    words = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
    if value.lower() not in words:
        raise ConfigurationError(f"{at}: {name}={value!r}; expected yes or no")
    return words[value.lower()]
