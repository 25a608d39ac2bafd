"""`switchgear tail`: watch a topic."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .execute import execute
from .options import Json, Url

if TYPE_CHECKING:
    from switchgear import Bus, Message


def tail(
    topic: Annotated[str, typer.Argument(help="The topic's name.")],
    start: Annotated[
        str,
        typer.Option(
            "--from",
            help="new, earliest, an instant (2026-05-01T12:30, without a zone it is local time) "
            "or how long ago (90s, 15m, 2h, 1d).",
            metavar="new|earliest|TIME",
        ),
    ] = "new",
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, help="Stop after so many messages.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            help="Only messages whose field has this value; dots go deeper: customer.id=42. Several must all hold.",
            metavar="FIELD=VALUE",
        ),
    ] = None,
    idle: Annotated[float | None, typer.Option("--idle", min=0.1, help="Stop after so many silent seconds.")] = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Print messages as they are published, until interrupted.

    It reads beside all groups and takes nothing away from them. With --json one line a message. Of an internal topic,
    such as the dead letters of a group (sg.dlq.TOPIC.GROUP), it prints what is stored, with the reason, and ends.
    """
    execute(_tail(url, topic, start, count, where or [], idle, json))


async def _tail(
    url: str | None, name: str, start: str, count: int | None, where: list[str], idle: float | None, json: bool
) -> None:
    from switchgear import Bus, Topic

    from .fields import condition, matches
    from .output import print_json

    conditions = [condition(text) for text in where]
    if name.startswith("sg."):
        from .internal import stored_messages

        async with Bus(url, name="switchgear") as bus:
            left = count
            async for found, value, kind in stored_messages(bus, name, None if start == "new" else when(start)):
                if not all(kind == "json" and matches(value, field, wanted) for field, wanted in conditions):
                    continue
                print_json(found.record(value, kind)) if json else print(found.line(value, kind), flush=True)
                if left is not None and (left := left - 1) == 0:
                    return
        return
    begin = when(start)
    left = count
    # Raw bytes: what does not decode is worth seeing as well.
    topic = Topic(name, bytes, codec="application/octet-stream")
    async with Bus(url, name="switchgear") as bus:
        await _must_exist(bus, name)
        async with bus.consumer(topic, group=None, start=begin, idle=idle) as messages:
            async for message in messages:
                value, kind = body(message.data)
                if not all(kind == "json" and matches(value, field, wanted) for field, wanted in conditions):
                    continue
                if json:
                    print_json(record(message, value, kind))
                else:
                    print(line(message), flush=True)
                if left is not None:
                    left -= 1
                    if left == 0:
                        return


async def _must_exist(bus: Bus, name: str) -> None:
    """Reading would make the topic, and settle its order for good. Raises NotFound, with the nearest that exists."""
    from difflib import get_close_matches

    from switchgear.errors import NotFound
    from switchgear.plugins import redact

    from .stored import planned, stored_topics

    found = await stored_topics(bus)
    names = [info.name for info in found or () if not info.name.startswith("sg.")]
    if found is None or name in names or await planned(bus, name):
        return
    near = get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "; it is made by its first publisher, or by switchgear provision"
    raise NotFound(f"there is no topic {name!r} on {redact(bus.url)}{hint}")


def when(text: str, option: str = "--from") -> Literal["new", "earliest"] | datetime:
    """What `--from` and its like mean. Raises ConfigurationError."""
    from datetime import UTC, timedelta

    from switchgear.errors import ConfigurationError

    if text == "new":
        return "new"
    if text == "earliest":
        return "earliest"
    number, unit = text[:-1], text[-1:]
    if unit in ("s", "m", "h", "d") and number.replace(".", "", 1).isdecimal():
        scale = {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
        return datetime.now(UTC) - timedelta(seconds=float(number) * scale)
    try:
        return datetime.fromisoformat(text).astimezone()  # without a zone: local time
    except ValueError:
        raise ConfigurationError(
            f"{option} {text!r}: expected new, earliest, an instant as 2026-05-01T12:30, or how long ago as 15m"
        ) from None


def body(data: bytes | None) -> tuple[Any, Literal["json", "text", "base64", "tombstone"]]:
    """A body as far as it can be read, whatever it was declared to be."""
    import base64

    import msgspec

    if data is None:
        return None, "tombstone"
    try:
        return msgspec.json.decode(data), "json"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return data.decode(), "text"
    except UnicodeDecodeError:
        return base64.b64encode(data).decode(), "base64"


def record(message: Message[Any], value: Any, kind: str) -> dict[str, object]:
    """What `--json` prints of a message."""
    import msgspec

    return {
        "topic": message.topic,
        "id": message.id,
        "time": message.time,
        "type": message.type,
        "key": message.key if message.key is None else printable(message.key),
        "headers": {name: printable(text) for name, text in message.headers.items()},
        "body": msgspec.Raw(message.data) if kind == "json" and message.data else value,
        "encoding": kind,
    }


def line(message: Message[Any]) -> str:
    """What is printed of a message: when, key, body."""
    value, kind = body(message.data)
    shown = (message.data or b"").decode() if kind == "json" else f"({kind})" if value is None else f"({kind}) {value}"
    key = "-" if message.key is None else message.key
    clean = "".join(char if char.isprintable() else repr(char)[1:-1] for char in f"{key}  {shown}")
    return f"{message.time.astimezone():%Y-%m-%d %H:%M:%S}  {clean}"


def printable(text: str) -> str:
    """Text that came as bytes which are not UTF-8 holds surrogates, which no output takes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
