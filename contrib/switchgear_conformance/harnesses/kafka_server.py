"""Apache Kafka in KRaft mode, one node or several, from the jars of Maven Central."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from switchgear_conformance.harness import BrokerFailed, NotRun
from switchgear_conformance.server import HOST, Recipe, Server

from .wheels import cached

VERSION = "4.4.0"
POM = f"""<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>conformance</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>2.25.5</version>
    </dependency>
  </dependencies>
</project>
"""
LOGGING = """rootLogger.level = INFO
rootLogger.appenderRef.stdout.ref = STDOUT
appender.stdout.type = Console
appender.stdout.name = STDOUT
appender.stdout.layout.type = PatternLayout
appender.stdout.layout.pattern = [%d] %p %m (%c)%n
"""
ONE_NODE = {
    "auto.create.topics.enable": "false",
    "broker.heartbeat.interval.ms": "200",
    "broker.session.timeout.ms": "1000",  # so long a node that was killed waits for its former life to end
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "log.cleaner.dedupe.buffer.size": "16777216",
    "num.partitions": "2",
    "offsets.topic.num.partitions": "4",
    "offsets.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
}
"""What makes one node small and quick to start; without the internal topics' factors of one it would serve no group."""
CLUSTER_ID = base64.urlsafe_b64encode(uuid.UUID("5f0c6f0e-1d0d-4d64-9a0a-5be3d1b6f6c1").bytes).decode().rstrip("=")
JVM = ("-Xms256m", "-Xmx256m", "-XX:+UseG1GC", "-XX:MaxDirectMemorySize=64m", "-XX:TieredStopAtLevel=1",
       "-Xshare:auto", "-Djava.awt.headless=true")  # fmt: skip
ARCHIVE = "classes.jsa"


def kafka(
    settings: Mapping[str, str] | None = None, *, advertised: str | None = None, listener: str = "PLAINTEXT",
    scram: Sequence[tuple[str, str]] = (), number: int = 1, controller: int | None = None, proxy: str | None = None,
    folders: int = 1, java_options: Sequence[str] | None = None,
) -> Recipe:  # fmt: skip
    """One node. `settings` go over those above.

    `advertised` is the "host:port" that clients are told, by default its own; `listener` the security protocol of the
    port for clients (nodes talk to each other on another); `scram` users and passwords made before the first start.
    Partitions are spread over `folders`, as over disks: one that fails takes its own with it, and the node goes on.
    `proxy` is the "host:port" that clients are told who come by the last of its ports, one more than it has otherwise.
    Of a cluster, node 1 is the controller; the others have a `number` and the port of its `controller`, the third of
    its ports. `java_options` are by default what lets it start quickly.

    Raises NotRun where this machine lacks Java, or the jars and Maven to fetch them.
    """
    java, build = _java()
    jars = _jars()
    if java_options is None:
        java_options = (f"-XX:SharedArchiveFile={_classes(build)}",)

    def command(ports: Sequence[int], data: Path) -> Sequence[str]:
        client, inside, own, *proxied = ports
        listeners = {"CLIENT": f"{HOST}:{client}", "INSIDE": f"{HOST}:{inside}"}
        told = {**listeners, "CLIENT": advertised or listeners["CLIENT"]}
        protocols = {"CLIENT": listener, "INSIDE": "PLAINTEXT", "CONTROLLER": "PLAINTEXT"}
        if controller is None:
            listeners["CONTROLLER"] = f"{HOST}:{own}"
        if proxy is not None:
            listeners["PROXIED"], told["PROXIED"], protocols["PROXIED"] = f"{HOST}:{proxied[0]}", proxy, listener
        options = {
            **ONE_NODE,
            "process.roles": "broker,controller" if controller is None else "broker",
            "node.id": str(number),
            "controller.quorum.voters": f"1@{HOST}:{controller or own}",
            "listeners": ",".join(f"{name}://{address}" for name, address in listeners.items()),
            "advertised.listeners": ",".join(f"{name}://{address}" for name, address in told.items()),
            "listener.security.protocol.map": ",".join(f"{name}:{each}" for name, each in protocols.items()),
            "inter.broker.listener.name": "INSIDE",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": ",".join(str(data / f"logs{n or ''}") for n in range(folders)),
            "metadata.log.dir": str(data / "metadata"),  # a node without it ends, and any other folder may fail
            **(settings or {}),
        }
        properties = data / "server.properties"
        properties.write_text("".join(f"{name}={value}\n" for name, value in options.items()))
        logging = data / "log4j2.properties"
        logging.write_text(LOGGING)
        users = [word for user, password in scram for word in
                 ("--add-scram", f"SCRAM-SHA-256=[name={user},password={password}]",
                  "--add-scram", f"SCRAM-SHA-512=[name={user},password={password}]")]  # fmt: skip
        started = (data / "logs" / "meta.properties").exists()
        load = [*java_options, f"-Dlog4j2.configurationFile={logging}", "-cp", f"{jars}/*"]
        if not started:
            done = subprocess.run(
                [java, "-Xmx64m", "-XX:TieredStopAtLevel=1", *load, "kafka.tools.StorageTool", "format", "-t",
                 CLUSTER_ID, "-c", str(properties), *users],
                capture_output=True, text=True,
            )  # fmt: skip
            if done.returncode != 0:
                raise BrokerFailed(f"Kafka could not format {data}:\n{done.stdout}{done.stderr}")
        return [java, *JVM, *load, "kafka.Kafka", str(properties)]

    return Recipe(
        name=f"kafka{number}", version=VERSION, command=command, ports=3 if proxy is None else 4, patience=60.0,
        url=lambda ports: f"kafka://{advertised or f'{HOST}:{ports[0]}'}",
        ready=lambda ports, said: "Kafka Server started" in said,
    )  # fmt: skip


def _java() -> tuple[str, str]:
    """The program, and its build."""
    java = shutil.which("java")
    if java is None:
        raise NotRun("no java on the PATH: apt-get install openjdk-17-jre-headless")
    said = subprocess.run([java, "-version"], capture_output=True, text=True).stderr
    found = re.search(r'version "(\d+)', said)
    if found is None or int(found[1]) < 17:
        raise NotRun(f"Kafka {VERSION} takes Java 17 or newer; {java} says {said.splitlines()[:1]}")
    build = re.search(r"\(build ([\w.+-]+)", said)
    return java, build[1] if build else found[1]


def _jars() -> Path:
    """The folder of Kafka's jars; fetched at first use. Raises NotRun where Maven can't get them."""

    def fetch(target: Path) -> None:
        maven = shutil.which("mvn")
        if maven is None:
            raise NotRun("no mvn on the PATH to fetch Kafka's jars with: apt-get install maven")
        pom = target.with_name("pom.xml")
        pom.write_text(POM)
        done = subprocess.run(
            [maven, "-q", "-B", "-ntp", "-f", str(pom), "dependency:copy-dependencies", "-DincludeScope=runtime",
             f"-DoutputDirectory={target}"],
            capture_output=True, text=True, env={**os.environ, "MAVEN_OPTS": "-Xmx256m"},
        )  # fmt: skip
        if done.returncode != 0:
            raise NotRun(f"Maven could not fetch Kafka {VERSION}: {(done.stdout + done.stderr).strip()[-500:]}")

    return cached(f"kafka-{VERSION}", fetch)


def _classes(build: str) -> Path:
    """An archive of the classes that a node loads, by which it starts in half the time; made at first use.

    Java goes on without it where it does not fit.
    """

    def learn(target: Path) -> None:
        target.mkdir()
        with tempfile.TemporaryDirectory() as folder:
            server = Server(kafka(java_options=(f"-XX:ArchiveClassesAtExit={target / ARCHIVE}",)), Path(folder))
            try:
                server.start()
                server.stop()
            finally:
                server.close()

    return cached(f"kafka-{VERSION}-classes-{build}", learn) / ARCHIVE
