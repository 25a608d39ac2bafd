"""The bus: what a program publishes to and subscribes on. It wires the parts; each part is a file of its own."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from datetime import datetime
from os import PathLike
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Unpack, overload

from .clock import Clock
from .config import Config
from .errors import ConfigurationError, Misuse, SwitchgearError, TransportError, Unsupported
from .health import Health
from .knobs import PUBLISH, Middleware, PublishOptions, Tuning
from .message import Message, handling
from .observer import Observer
from .router import Declared, Router, as_topic
from .topic import Topic
from .units import Seconds, instant, seconds

if TYPE_CHECKING:
    from typing_extensions import TypeForm
    from typing_extensions import TypeVar as TypeVarDefault

    from .consumer import Consumer as Engine
    from .core import Core
    from .driver import Outgoing, Transport
    from .pull import Consumer
    from .writing import Writer

    D = TypeVarDefault("D", default=Any)
else:
    D = TypeVar("D")

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger("switchgear")

YIELD_EVERY = 128  # publishes without waiting, after which the loop may turn
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,79}")
PUBLISH_MANY = 1000  # publishes of one publish_many that wait at once


APPLICATION: ContextVar[str | None] = ContextVar("switchgear_application", default=None)
"""The module that the command line is importing: its buses are named after it, as if it were the main module."""


class Bus(Router):
    """One application on one broker.

    `url` names the broker (left out: configuration decides); `name`, by default the main module's name, is the
    application: CloudEvents source, reply address, `[bus.NAME]`. `namespace` goes before every name on the broker.
    `grace` bounds the shutdown. `provision` says whether missing topics and groups are created, only checked, or left
    alone. Raises ConfigurationError for an unreadable configuration; nothing is connected before the bus is opened.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        name: str | None = None,
        namespace: str = "",
        config: str | PathLike[str] | Mapping[str, Any] | None = None,
        grace: Seconds = 25.0,
        provision: Literal["create", "check", "off"] = "create",
        middleware: Sequence[Middleware] = (),
        observers: Sequence[Observer] = (),
        tuning: Sequence[Tuning] = (),
    ) -> None:
        super().__init__()
        self.name = _main_name() if name is None else _checked_name(name)
        self._code: dict[str, Any] = {
            "url": url, "namespace": namespace or None, "grace": None if grace == 25.0 else seconds(grace),
            "provision": None if provision == "create" else provision,
        }  # fmt: skip
        if provision not in ("create", "check", "off"):
            raise ConfigurationError(f"Bus: provision is {provision!r}; expected 'create', 'check' or 'off'")
        if url is not None and not isinstance(url, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"Bus: the URL is {type(url).__name__}; expected text such as 'sqlite:///app.db'")
        for item in tuning:
            if not isinstance(getattr(item, "scheme", None), str):
                raise ConfigurationError(f"Bus: tuning holds {item!r}; expected a transport's tuning, e.g. KafkaTuning")
        self._config_source = config
        self._config: Config | None = None
        self._override: str | None = None
        self._middleware = tuple(middleware)
        self._observers = tuple(observers)
        self._tuning = tuple(tuning)
        self._open: Core | None = None
        self._users = 0
        self._opening = asyncio.Lock()
        self._lock_loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Task[None] | None = None
        self._closed = False
        self._end_at: float | None = None
        """The deadline of everything that ends from now on, on the loop's clock; set by `run` when told to stop."""
        self._inline = 0
        self._abandoned = False
        """Whether a `def` handler was still running when the bus was closed: its thread cannot be ended."""
        self._test_clock: Clock | None = None
        self._test_overrides: Mapping[Callable[..., Any], Callable[..., Any]] | None = None
        self._test_taps: list[Any] = []

    def __repr__(self) -> str:
        return f"Bus(name={self.name!r})"

    # ---- configuration --------------------------------------------------------------------------------------------

    def override(self, *, url: str) -> None:
        """Use this URL whatever code and configuration say (`--url`, tests). Raises Misuse while the bus is open."""
        if self._open is not None:
            raise Misuse("the bus is open: its URL cannot be changed any more")
        self._override = url

    def _configuration(self) -> Config:
        if self._config is None:
            self._config = Config.load(self._config_source, bus=self.name)
        if self._override is not None:
            self._config.override(url=self._override)
        return self._config

    def _value(self, key: Literal["namespace", "grace", "provision"], default: Any) -> Any:
        return self._configuration().value(key, self._code[key], default)[0]

    @property
    def url(self) -> str:
        """The broker's URL as resolved from code, environment and file. Raises ConfigurationError if there is none."""
        return self._configuration().url(self._code["url"])[0]

    @property
    def namespace(self) -> str:
        """What goes before every name on the broker."""
        if self._open is not None:
            return self._open_namespace
        return self._resolve_namespace(self.url)

    def _resolve_namespace(self, url: str) -> str:
        from urllib.parse import parse_qs

        given = parse_qs(url.partition("?")[2]).get("namespace")
        return given[0] if given else str(self._value("namespace", ""))

    @property
    def _grace(self) -> float:
        return seconds(self._value("grace", 25.0))

    def _settings(self) -> list[tuple[str, object, str]]:
        from .plugins import redact

        config = self._configuration()
        url, origin = config.url(self._code["url"])
        found: list[tuple[str, object, str]] = [("url", redact(url), str(origin))]
        for key, default in (("namespace", ""), ("grace", 25.0), ("provision", "create")):
            value, came = config.value(key, self._code[key], default)
            found.append((key, value, str(came)))
        return found

    def _sync_facade(self) -> Any:
        from .sync import Bus as SyncBus

        return SyncBus.attached(self, self._running().loop)

    # ---- life -----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Open to publish, request and pull. Raises what makes connecting pointless; a broker that is merely away is
        tried again in the background, and publishes wait for it within their timeouts."""
        await self._acquire()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        core = self._open
        if core is not None:
            await self._release(core, self._deadline())
        if exc is None and core is not None and core.link.terminal is not None:
            raise core.link.unavailable()

    async def close(self) -> None:
        """Close now, within `grace`: drain, flush, leave. Idempotent. Raises Misuse in another event loop."""
        if self._open is not None:
            self._running()
            self._users = 0
            await self._shut(self._deadline())
        self._closed = True

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._grace if self._end_at is None else self._end_at

    async def _acquire(self) -> Core:
        loop = asyncio.get_running_loop()
        if self._open is not None and self._open.loop is not loop:
            raise Misuse("the bus is open in another event loop: open a bus of its own in each loop")
        while self._closing is not None and handling.get() is None:  # a handler may still need what is being closed
            await asyncio.wait([self._closing])
        async with self._lock_of(loop):
            if self._open is None:
                self._open = await self._start()
                self._closed = False
            self._users += 1
            return self._open

    def _lock_of(self, loop: asyncio.AbstractEventLoop) -> asyncio.Lock:
        if self._lock_loop is not loop:
            self._lock_loop = loop
            self._opening = asyncio.Lock()
        return self._opening

    async def _start(self) -> Core:
        config = self._configuration()
        url, _ = config.url(self._code["url"])
        self._open_namespace = self._resolve_namespace(url)
        self._provision = str(self._value("provision", "create"))
        from .core import Core

        core = Core(self, _without_namespace(url), self._tuning, config, self._test_clock)
        if self._test_overrides is not None:
            core.overrides = self._test_overrides
        try:
            await core.open()
        except BaseException:
            await core.close(core.loop.time())
            raise
        return core

    async def _release(self, core: Core, deadline: float) -> None:
        if core is self._open:
            self._users -= 1
            if self._users <= 0:
                await self._shut(deadline)

    async def _shut(self, deadline: float) -> None:
        """Close once, whoever asks; a cancelled asker leaves the closing to go on."""
        core = self._open
        if core is None:
            return
        if self._closing is None:
            self._closing = core.loop.create_task(self._close_core(core, deadline))
        await asyncio.shield(self._closing)

    async def _close_core(self, core: Core, deadline: float) -> None:
        try:
            await core.close(deadline)
        finally:
            self._open, self._closing, self._closed = None, None, True

    @asynccontextmanager
    async def _core(self) -> AsyncGenerator[Core]:
        """The open core, opened for the while if need be."""
        core = await self._acquire()
        try:
            yield core
        finally:
            await self._release(core, self._deadline())

    @property
    def transport(self) -> Transport:
        """The open driver. Raises Misuse while the bus is not open."""
        return self._running().transport

    def _running(self) -> Core:
        core = self._open
        if core is None:
            raise Misuse(
                "the bus is closed" if self._closed else "the bus is not open: use `async with bus:` or `bus.serving()`"
            )
        if core.loop is not asyncio.get_running_loop():
            raise Misuse("the bus is open in another event loop: open a bus of its own in each loop")
        return core

    def serving(self, *routers: Router) -> AbstractAsyncContextManager[None]:
        """Run subscriptions while inside: ready on enter, drained on exit.

        Without routers those of the bus itself; with routers just theirs, which adds and removes them at run time.
        Raises, on enter, what makes a subscription impossible, and on exit what ended one for good.
        """
        return self._serving(routers)

    @asynccontextmanager
    async def _serving(self, routers: Sequence[Router]) -> AsyncGenerator[None]:
        declared: list[Declared] = []
        for router in routers or (self,):
            declared.extend(router._all())
        core = await self._acquire()
        consumers: list[Engine] = []
        try:
            await core.reached()
            assembled = await core.assemble(declared)
            if not routers:
                for said in core.config.misspelt([(one.topic.name, one.group) for one in declared]):
                    log.warning("%s", said)
            await core.prepare(assembled)
            consumers = [core.add(one) for one in assembled]
            await core.joined(consumers)
            yield
            failed = next((c.failure for c in consumers if c.failure is not None), None)
            if failed is not None:
                raise failed
        finally:
            deadline = self._deadline()
            if consumers:
                await asyncio.gather(*(core.remove(c, deadline) for c in consumers if c in core.consumers))
            await self._release(core, deadline)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain within `grace`; see `switchgear.run`."""
        from .runtime import run

        run(self)

    def health(self) -> Health:
        """Alive and ready, and the state of each subscription in words. Callable from any thread."""
        core = self._open
        if core is None:
            return Health(
                live=not self._closed, ready=False, detail={"broker": "closed" if self._closed else "not open"}
            )
        return core.health()

    # ---- publish --------------------------------------------------------------------------------------------------

    async def publish(self, topic: Topic[T] | str, value: T, **options: Unpack[PublishOptions]) -> str:
        """Publish one value; returns its id when the broker has stored it.

        Many tasks publishing at once is the quick way: their messages leave together. `timeout` (30 s) covers waiting,
        sending and retries. Raises Unavailable (no connection), NotSent (certainly not stored), MaybeSent (no answer),
        Refused (size, rights, header), CodecError, Misuse (the bus is not open).
        """
        core = self._open
        if core is None or core.thread != get_ident() or not core.running():
            core = self._running()
        writer = core.writers.get(topic)
        if writer is None or options or handling.get() is not None:
            return await self._publish(core, topic, value, options)
        out = writer.plain(value)
        if core.immediate:
            (error,) = await core.transport.send((out,), core.time() + PUBLISH)
            if error is not None:
                raise error
            self._inline += 1
            if self._inline >= YIELD_EVERY:  # a transport that never waits must not starve the loop
                self._inline = 0
                await asyncio.sleep(0)
        else:
            publisher = core.publisher
            assert publisher is not None
            if publisher.quiet():
                await publisher.send_alone(out, writer.chain(out), core.time() + PUBLISH)
            else:
                await publisher.put(out, writer.chain(out), core.time() + PUBLISH)
        if core.watched:
            self._told(core, writer, value)
        return out.dedup  # type: ignore[return-value]

    async def _publish(self, core: Core, topic: Topic[Any] | str, value: object, options: PublishOptions) -> str:
        """Publish what has options, has a message before it, or is the first of its topic."""
        timeout = seconds(options["timeout"]) if "timeout" in options else PUBLISH
        deadline = core.loop.time() + timeout
        parent = _parent()
        again = options.get("retry_indeterminate", True)
        delay = options.get("delay")
        if delay is not None:
            await core.announce(instant(delay, core.clock.now()), deadline)

        def hand_over(writer: Writer) -> tuple[Writer, str, Outgoing, asyncio.Future[None] | None]:
            out = writer.message(value, options, parent)
            assert out.dedup is not None
            id_ = out.dedup
            if out.due is not None:
                out = core.delays.placed(out, writer.target(out))
            return writer, id_, out, core.hand_over(writer, out, deadline, again)

        found = core.writers.get(topic)
        writer, id_, out, stored = (
            hand_over(found) if found is not None else await core.first(topic, hand_over, deadline)
        )
        await (stored or core.send_now(out, deadline))
        if out.due is not None:
            core.due_soon(out.due)
        if core.watched:
            self._told(core, writer, value)
        return id_

    def _told(self, core: Core, writer: Writer, value: object) -> None:
        core.count("published", writer.topic.name, None, 1)
        for tap in core.taps:
            tap("published", writer.topic.name, None, value)

    @overload
    async def publish_many(
        self, topic: Topic[T] | str, values: Iterable[T], *, id: Callable[[T], str] | None = None,
        timeout: Seconds = ..., return_exceptions: Literal[False] = False,
    ) -> list[str]: ...  # fmt: skip
    @overload
    async def publish_many(
        self, topic: Topic[T] | str, values: Iterable[T], *, id: Callable[[T], str] | None = None,
        timeout: Seconds = ..., return_exceptions: Literal[True],
    ) -> list[str | TransportError]: ...  # fmt: skip
    async def publish_many(
        self, topic: Topic[T] | str, values: Iterable[T], *, id: Callable[[T], str] | None = None,
        timeout: Seconds = PUBLISH, return_exceptions: bool = False,
    ) -> Any:  # fmt: skip
        """Publish many values, as many at once as the buffer takes; returns their ids in order.

        `id` gives each value its own. All are tried; then what failed is raised as an ExceptionGroup, unless
        `return_exceptions`, which puts each TransportError in its place (what is no TransportError, such as a value
        that cannot be encoded, is raised all the same). `timeout` is each message's.
        """
        core = self._running()
        within = seconds(timeout)
        parent = _parent()
        results: list[Any] = []
        waiting: list[tuple[int, object, asyncio.Future[None]]] = []
        writer = core.writers.get(topic) or await core.writer(topic, core.loop.time() + within)

        async def collect() -> None:
            if waiting:
                await asyncio.wait([stored for _, _, stored in waiting])
            for at, value, stored in waiting:
                error = stored.exception()
                if error is not None:
                    results[at] = error
                elif core.watched:
                    self._told(core, writer, value)
            waiting.clear()

        try:
            for value in values:
                at = len(results)
                options: PublishOptions = {} if id is None else {"id": id(value)}
                deadline = core.loop.time() + within
                results.append(None)
                try:
                    out = writer.message(value, options, parent)
                    results[at] = out.dedup
                    publisher = await core.connected(deadline)
                    if publisher.full():
                        await publisher.room(deadline)
                    stored = core.hand_over(writer, out, deadline)
                    if stored is not None:
                        waiting.append((at, value, stored))
                    else:
                        await core.send_now(out, deadline)
                        if core.watched:
                            self._told(core, writer, value)
                        if at % YIELD_EVERY == YIELD_EVERY - 1:
                            await asyncio.sleep(0)
                except SwitchgearError as error:
                    results[at] = error
                if len(waiting) >= PUBLISH_MANY:
                    await collect()
            await collect()
        finally:  # after an error of the caller's own, or when cancelled: what has not left is not sent
            for _, _, stored in waiting:
                stored.cancel()
        failed = [r for r in results if isinstance(r, Exception)]
        if failed and not (return_exceptions and all(isinstance(error, TransportError) for error in failed)):
            raise ExceptionGroup(f"{len(failed)} of {len(results)} messages were not published", failed)
        return results

    async def request(self, topic: Topic[T] | str, value: T, reply: TypeForm[R], *, timeout: Seconds = 10.0) -> R:
        """Publish a request and wait for its answer, decoded as `reply`.

        At most once: a lost answer is a RequestTimeout. Raises RequestFailed with the responder's reason, Unsupported
        where the broker has no broadcast.
        """
        core = self._running()
        within = seconds(timeout)
        deadline = core.loop.time() + within
        parent = _parent()
        declared = as_topic(topic)
        if declared.envelope != "cloudevents":
            raise ConfigurationError(
                f"topic {declared.name!r}: a request needs envelope='cloudevents', which carries its return address"
            )
        replies = await core.listening(deadline)

        def hand_over(writer: Writer) -> tuple[Writer, Outgoing, asyncio.Future[None] | None]:
            out = replies.ask(writer.message(value, {}, parent))
            return writer, out, core.hand_over(writer, out, deadline)

        found = core.writers.get(topic)
        writer, out, stored = hand_over(found) if found is not None else await core.first(topic, hand_over, deadline)
        assert out.dedup is not None
        try:
            await (stored or core.send_now(out, deadline))
            if core.watched:
                self._told(core, writer, value)
            answer: R = await replies.wait(out.dedup, reply, deadline, within, declared.name)
            return answer
        finally:
            replies.forget(out.dedup)

    async def cancel(self, topic: Topic[Any] | str, id: str) -> bool:
        """Take back a delayed message that is not yet due; False when there is none (any more).

        Raises Unsupported where the broker cannot.
        """
        from .driver import Scheduling

        core = self._running()
        transport = core.transport
        if not isinstance(transport, Scheduling) or not transport.capabilities.delay:
            raise Unsupported(
                f"{core.scheme}:// cannot take back a delayed message: let the handler see whether it is still wanted"
            )
        declared = as_topic(topic)
        deadline = core.loop.time() + PUBLISH
        plan = await core.plan(declared, deadline)
        await core.reached(deadline)
        for name in plan.physical:
            if await transport.cancel(name, id):
                return True
        return False

    # ---- pull -----------------------------------------------------------------------------------------------------

    def consumer(
        self,
        topic: Topic[D] | str,
        *,
        group: str | None,
        start: Literal["new", "earliest"] | datetime = "new",
        idle: Seconds | None = None,
    ) -> AbstractAsyncContextManager[Consumer[D]]:
        """Pull messages one by one: `async for message in consumer`, and settle each with its own methods.

        `idle` ends the iteration when nothing has come for so many seconds. What is left unsettled at the end returns
        to the group.
        """
        from .pull import pulling

        return pulling(
            self, as_topic(topic), isinstance(topic, str), group, start, None if idle is None else seconds(idle)
        )


def _parent() -> Message[Any] | None:
    """The message that is being handled here, whose correlation and trace a publish goes on with."""
    parent = handling.get()
    return parent if parent is not None and parent._reading is not None else None


def _without_namespace(url: str) -> str:
    """The URL as the transport sees it: `namespace` is ours."""
    from urllib.parse import parse_qsl, urlencode

    base, question, query = url.partition("?")
    if not question or "namespace=" not in query:
        return url
    rest = urlencode([(name, value) for name, value in parse_qsl(query, keep_blank_values=True) if name != "namespace"])
    return f"{base}?{rest}" if rest else base


def _checked_name(name: str) -> str:
    if not NAME.fullmatch(str(name)):
        raise ConfigurationError(
            f"Bus: name is {name!r}; expected a letter, then letters, digits, '_', '.', '-', at most 80 in all"
        )
    return name


def _main_name() -> str:
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    given = APPLICATION.get()
    if given is not None:
        name = given
    elif spec is not None and spec.name:
        name = spec.name.removesuffix(".__main__").rpartition(".")[2]
    else:
        path = getattr(main, "__file__", None)
        name = os.path.splitext(os.path.basename(path))[0] if path else "app"  # noqa: PTH119, PTH122  (pathlib is slow)
    clean = re.sub(r"[^A-Za-z0-9_-]", "-", name).strip("-_") or "app"
    return (clean if clean[0].isalpha() else f"app-{clean}")[:80]
