"""How the conformance kit gets a broker: a folder of its own."""

from dataclasses import dataclass

from switchgear_conformance import Harness, Setup


@dataclass(frozen=True)
class Directory:
    """Nothing runs, so there is nothing to end."""

    url: str
    version: str = "a folder"

    def close(self) -> None:
        """The kit removes the folder."""


def start(setup: Setup) -> Directory:
    return Directory(setup.url or f"directory://{setup.folder}/broker")


directory = Harness(
    name="directory",
    start=start,
    embedded=True,
    storage="left to the operating system: no fsync",
    dead=lambda url: "directory:///dev/null",
    native="switchgear_directory.transport.Taken",
)
