"""A broker that is a directory of files: root/TOPIC.topic/GROUP.group/VISIBLE-ID-FAILURES-OWNER.

A group has a folder in each topic that it reads, and in it a file for every message that it has not handled. A file is
visible from the instant on that its name begins with. A member takes a visible file by renaming it: the new name says
who holds it and until when. Renaming is atomic, so of several members one succeeds, and a member that was too slow
finds no file of the name that it gave.
"""

import asyncio
import contextlib
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, zip_longest
from pathlib import Path
from typing import TypeVar

import msgspec

from switchgear.driver import (
    Capabilities,
    Delivery,
    Fence,
    Headers,
    Outgoing,
    Revoked,
    Settlement,
    Subscription,
    Verdict,
)
from switchgear.errors import (
    ConfigurationError,
    Lost,
    MaybeSent,
    NotSent,
    Refused,
    SwitchgearError,
    TransportError,
    Unavailable,
    Unsupported,
)

LONGEST = 10 * 365 * 86400.0  # seconds; nothing here expires earlier
CAPABILITIES = Capabilities(
    groups=True,
    persistent=True,
    ack_durable=True,
    retry_delay=LONGEST,
    counting="exact",
    delay=LONGEST,
    lease_cap=LONGEST,
    fencing=True,
)
ERRORS: dict[type[OSError], type[SwitchgearError]] = {
    PermissionError: Refused,
    FileExistsError: ConfigurationError,  # the URL names a file
    NotADirectoryError: ConfigurationError,
}
"""What the system's errors are to us; every other is Unavailable, and worth another try."""
NAME = re.compile(r"(\d{17})-(\w+)-(\d+)-(\w*)")
POLL = 0.01  # seconds between two looks into the folders
T = TypeVar("T")


class Stored(msgspec.Struct, frozen=True):
    """The content of a file."""

    body: bytes
    media: bytes | None = None
    key: bytes | None = None
    headers: Headers = []
    time: float = 0.0


class Taken(msgspec.Struct):
    """A message that a member holds; `Delivery.native` of this transport."""

    file: Path
    stored: Stored


class DirectoryTransport:
    """Stores a message by linking one file into the folder of every group."""

    capabilities = CAPABILITIES

    def __init__(self, root: str) -> None:
        self.root = Path(root)
        self.sources: set[DirectorySource] = set()
        self.thread: ThreadPoolExecutor | None = None

    async def connect(self, deadline: float) -> None:
        self.thread = self.thread or ThreadPoolExecutor(1, "directory")
        await self.run(lambda: self.root.mkdir(parents=True, exist_ok=True))

    async def run(self, work: Callable[[], T]) -> T:
        """Files are read and written in a thread: the event loop is never held up."""
        if self.thread is None:
            raise Unavailable(f"directory://{self.root} is not connected")
        try:
            return await asyncio.get_running_loop().run_in_executor(self.thread, work)
        except OSError as error:
            raise ERRORS.get(type(error), Unavailable)(f"directory://{self.root}: {error.strerror}") from error

    async def send(self, batch: Sequence[Outgoing], deadline: float) -> Sequence[TransportError | None]:
        return await self.run(lambda: [self._send(message) for message in batch])

    def _send(self, message: Outgoing) -> TransportError | None:
        if message.body is None or len(message.body) > CAPABILITIES.body:
            return Refused(f"topic {message.topic!r}: a body is bytes, at most {CAPABILITIES.body} of them")
        now, id, linked = time.time(), secrets.token_hex(16), 0
        stored = Stored(message.body, message.media, message.key, message.headers, now)
        complete = self.root / id  # written where no member looks, so that none sees a part of it
        try:
            complete.write_bytes(msgspec.msgpack.encode(stored))
            for group in (self.root / f"{message.topic}.topic").glob("*.group"):
                (group / f"{instant(message.due or now)}-{id}-0-").hardlink_to(complete)
                linked += 1
        except UnicodeEncodeError as error:
            return because(error, Refused(f"topic {message.topic!r}: the name of a header can't be written as UTF-8"))
        except OSError as error:
            return because(error, (MaybeSent if linked else NotSent)(f"topic {message.topic!r}: {error.strerror}"))
        finally:
            with contextlib.suppress(OSError):
                complete.unlink()
        return None

    async def subscribe(self, subscription: Subscription, revoked: Revoked) -> "DirectorySource":
        if subscription.group is None or subscription.order or subscription.start != "new":
            raise Unsupported("a directory has groups that start at new: no broadcast, no order, no history")
        source = DirectorySource(self, subscription.group, subscription.lease)
        await source.assign(subscription.topics)
        self.sources.add(source)
        return source

    async def close(self) -> None:
        for source in list(self.sources):
            await source.close()
        if self.thread is not None:
            thread, self.thread = self.thread, None
            await asyncio.to_thread(thread.shutdown)


class DirectorySource:
    """Receives and settles by renaming files."""

    capabilities = CAPABILITIES

    def __init__(self, transport: DirectoryTransport, group: str, lease: float) -> None:
        self.transport, self.group, self.lease = transport, group, lease
        self.owner = secrets.token_hex(8)
        self.folders: list[Path] = []

    async def assign(self, topics: Mapping[str, Fence | None]) -> None:
        self.folders = [self.transport.root / f"{topic}.topic" / f"{self.group}.group" for topic in topics]
        await self.transport.run(self._make)

    def _make(self) -> None:
        for folder in self.folders:
            folder.mkdir(parents=True, exist_ok=True)

    async def receive(self, limit: int, held: Collection[str] = ()) -> Sequence[Delivery]:
        loop = asyncio.get_running_loop()
        ends = loop.time() + 1.0
        while self in self.transport.sources:
            until = loop.time() + self.lease
            found = await self.transport.run(lambda: list(self._take(limit, until)))  # noqa: B023
            if self not in self.transport.sources:
                break  # closed meanwhile: what was found is given back
            if found or not limit or loop.time() >= ends:
                return found
            await asyncio.sleep(POLL)
        return []

    def _take(self, limit: int, until: float) -> Iterator[Delivery]:
        now = instant(time.time())
        lines = [sorted(file for file in messages(folder) if file.name < now) for folder in self.folders]
        in_turn = (file for turn in zip_longest(*lines) for file in turn if file)  # no topic starves another
        for file in islice(in_turn, limit):
            try:
                taken = Taken(ours := file.rename(moved(file, self.lease, self.owner)), read(ours))
            except FileNotFoundError:
                continue  # another member was quicker
            topic, stored = file.parent.parent.name.removesuffix(".topic"), taken.stored
            id, failures = parts(file)
            yield Delivery(
                topic=topic, body=stored.body, media=stored.media, key=stored.key, lane="", token=(topic, id),
                deliveries=failures + 1, until=until, native=taken,
            )  # fmt: skip

    async def settle(self, batch: Sequence[Settlement]) -> Sequence[TransportError | None]:
        return await self.transport.run(lambda: [self._settle(one) for one in batch])

    def _settle(self, one: Settlement) -> TransportError | None:
        taken = native(one.delivery)
        try:
            if taken.file.name < instant(time.time()):
                raise FileNotFoundError  # as good as taken by another
            match one.verdict:
                case Verdict.ACK:
                    taken.file.unlink()
                case Verdict.RETRY:
                    taken.file.rename(moved(taken.file, one.seconds, failed=1))
                case Verdict.EXTEND:
                    taken.file = taken.file.rename(moved(taken.file, one.seconds, self.owner))
                case Verdict.RELEASE:
                    taken.file.rename(moved(taken.file, 0))
        except FileNotFoundError:
            return Lost(f"{one.delivery.topic}: {self.position(one.delivery)} is no longer ours")
        return None

    def note(self, lane: str) -> str:
        return ""

    def headers(self, delivery: Delivery) -> Headers:
        return native(delivery).stored.headers

    def position(self, delivery: Delivery) -> str:
        return parts(native(delivery).file)[0]

    def time(self, delivery: Delivery) -> float:
        return native(delivery).stored.time

    async def close(self) -> None:
        if self in self.transport.sources:
            self.transport.sources.remove(self)
            await self.transport.run(self._give_back)

    def _give_back(self) -> None:
        for file in (file for folder in self.folders for file in messages(folder)):
            if file.name.endswith(self.owner):
                with contextlib.suppress(FileNotFoundError):  # its lease had ended, and another took it
                    file.rename(moved(file, 0))


def messages(folder: Path) -> Iterator[Path]:
    """The files of a group that are messages, and nothing else that lies there."""
    return (file for file in folder.iterdir() if NAME.fullmatch(file.name))


def instant(seconds: float) -> str:
    """Unix seconds as text that sorts as they do."""
    return f"{int(seconds * 1e6):017d}"


def parts(file: Path) -> tuple[str, int]:
    """A message's id, and how often it has failed."""
    _, id, failures, _ = file.name.split("-")
    return id, int(failures)


def moved(file: Path, seconds: float, owner: str = "", failed: int = 0) -> Path:
    """The file's next name: visible again after `seconds`."""
    id, failures = parts(file)
    return file.with_name(f"{instant(time.time() + seconds)}-{id}-{failures + failed}-{owner}")


def read(file: Path) -> Stored:
    """Whatever a file holds, it is a message."""
    content = file.read_bytes()
    try:
        return msgspec.msgpack.decode(content, type=Stored)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Stored(content)


def native(delivery: Delivery) -> Taken:
    assert isinstance(delivery.native, Taken)
    return delivery.native


def because(cause: Exception, error: TransportError) -> TransportError:
    error.__cause__ = cause
    return error
