"""Apache Kafka as a child process: one node in KRaft mode, for both clients."""

from __future__ import annotations

import importlib.util
import resource
from collections.abc import Sequence

from switchgear_conformance.harness import Address, Harness, NotRun, Setup
from switchgear_conformance.server import HOST, Server

from .kafka_server import kafka as recipe

STORAGE = "log.flush.interval.messages unset: to disk when the system writes it; replication 1"
POWERS = frozenset({"kill", "pause", "restart", "proxy", "disk"})
ROOM = 2 << 20  # bytes of a file while there is no room
FOLDERS = 24  # more than a topic has partitions: a node whose every folder failed ends
REBALANCE = "?rebalance=8"  # seconds: of a handler that never ends, the group waits for most of it
SETTINGS = {"log.index.size.max.bytes": str(1 << 20)}  # whose file is made in this size, room or not


class KafkaServer(Server):
    """One node. Where proxies stand before it, it listens for them on a port of its own and tells their address.

    Also Fillable.
    """

    def __init__(self, setup: Setup, options: str) -> None:
        proxy = ",".join(f"{host}:{port}" for host, port in setup.advertise)
        super().__init__(recipe(SETTINGS, proxy=proxy or None, folders=FOLDERS), setup.folder)
        self._options = options

    @property
    def url(self) -> str:
        return f"kafka://{HOST}:{self.ports[0]}{self._options}"

    @property
    def upstream(self) -> Sequence[Address]:
        return [(HOST, self.ports[-1])]

    def through(self, addresses: Sequence[Address]) -> str:
        ((host, port),) = addresses
        return f"kafka://{host}:{port}{self._options}"

    def fill(self) -> None:
        """Let no file grow beyond a size: what would fails as on a full disk, and takes its folder offline."""
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (ROOM, resource.RLIM_INFINITY))

    def free(self) -> None:
        """Restart without that: a folder that failed stays offline until then."""
        self.restart()


def _start(setup: Setup, options: str = "") -> KafkaServer:
    server = KafkaServer(setup, REBALANCE + options)
    try:
        server.start()
    except BaseException:
        server.close()
        raise
    return server


def _aiokafka(setup: Setup) -> KafkaServer:
    _needs("aiokafka", "kafka")
    return _start(setup)


def _confluent(setup: Setup) -> KafkaServer:
    _needs("confluent_kafka", "kafka-confluent")
    return _start(setup, "&client=confluent")


def _needs(client: str, extra: str) -> None:
    if importlib.util.find_spec(client) is None:
        raise NotRun(f"{client} is not installed: pip install 'switchgear[{extra}]'")


kafka = Harness(
    name="kafka", start=_aiokafka, storage=STORAGE, native="aiokafka.structs.ConsumerRecord", powers=POWERS,
)  # fmt: skip
kafka_confluent = Harness(
    name="kafka-confluent", start=_confluent, storage=STORAGE, native="confluent_kafka.cimpl.Message", powers=POWERS,
)  # fmt: skip
