from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AsyncExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial, wraps
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import pytest

from switchgear import Bus, sync
from switchgear.driver import Delivery
from switchgear.envelope import Envelope
from switchgear.errors import CodecError, ConfigurationError
from switchgear.handlers import body_schema, check_signature, compile_batch, compile_handler, runs_in_thread
from switchgear.knobs import Depends, Header
from switchgear.message import Message
from switchgear.outcomes import Drop, Reject

if TYPE_CHECKING:
    Missing = Any


class Order(msgspec.Struct):
    id: str


class Paid(Order):
    pass


class Invoice(msgspec.Struct):
    id: str


class Services:
    """The real thing's contract, in the small."""

    def __init__(self) -> None:
        self.bus: Any = object()
        self.overrides: Mapping[Callable[..., Any], Callable[..., Any]] = {}
        self.pool = ThreadPoolExecutor(2, thread_name_prefix="handlers")
        self.stack = AsyncExitStack()
        self.facade = object()
        self.opened: dict[Callable[..., Any], object] = {}

    def sync_bus(self) -> object:
        return self.facade

    async def bus_scoped(self, provider: Callable[..., Any], open: Callable[[], Awaitable[object]]) -> object:
        if provider not in self.opened:
            self.opened[provider] = await open()
        return self.opened[provider]

    def bus_stack(self) -> AsyncExitStack:
        return self.stack

    def thread_pool(self) -> Executor:
        return self.pool


@pytest.fixture
def services() -> Iterator[Services]:
    found = Services()
    yield found
    found.pool.shutdown()


ORDER = Order("1")


def message(body: Any = ORDER, **headers: str) -> Message[Any]:
    delivery = Delivery(topic="orders", body=b"", media=None, key=None, lane="", token=1, deliveries=1, until=0.0)
    # An envelope that has been read already: no subscription is needed to read headers.
    return Message(_delivery=delivery, _body=body, _envelope=Envelope(id="7", headers=headers))


async def call(
    fn: Callable[..., Any], services: Services, given: Message[Any] | None = None, schema: Any = Order
) -> Any:
    handle = compile_handler(fn, where="orders.billing", schema=schema, services=services)
    return await handle(given if given is not None else message())


# ---- what is passed --------------------------------------------------------------------------------------------------


async def test_body_and_message_in_either_order(services: Services) -> None:
    given = message()

    async def body(order: Order) -> Any:
        return order

    async def whole(message: Message[Order]) -> Any:
        return message

    async def both(order: Order, message: Message) -> Any:
        return order, message

    async def reverse(message: Message[Order], order: Order) -> Any:
        return order, message

    async def named(*, message: Message[Order], order: Order) -> Any:
        return order, message

    async def bare(order) -> Any:  # type: ignore[no-untyped-def]
        return order

    assert await call(body, services, given) is ORDER
    assert await call(whole, services, given) is given
    assert await call(both, services, given) == (ORDER, given)
    assert await call(reverse, services, given) == (ORDER, given)
    assert await call(named, services, given) == (ORDER, given)
    assert await call(bare, services, given) is ORDER


async def test_common_signatures_cost_no_frame(services: Services) -> None:
    async def body(order: Order) -> None: ...
    async def whole(message: Message[Order]) -> None: ...
    async def both(order: Order, message: Message[Order]) -> None: ...
    async def tenant(order: Order, tenant: Annotated[str | None, Header("tenant")] = None) -> None: ...

    for fn in (body, whole, both, tenant):
        handle = compile_handler(fn, where="", schema=Order, services=services)
        coroutine: Any = handle(message())
        assert coroutine.cr_code is fn.__code__
        await coroutine
    assert compile_handler(whole, where="", schema=Order, services=services) is whole


async def test_the_running_bus_and_its_sync_facade(services: Services) -> None:
    async def handler(order: Order, bus: Bus, facade: sync.Bus) -> Any:
        return bus, facade

    assert await call(handler, services) == (services.bus, services.facade)


async def test_parameters_with_defaults_are_left_alone(services: Services) -> None:
    async def handler(
        order: Order, retries: int = 3, message: Message[Order] | None = None, *rest: int, **more: int
    ) -> Any:
        return order, retries, message, rest, more

    async def behind(order: Order, retries: int = 3, header: Annotated[str, Header("h")] = "none") -> Any:
        return order, retries, header

    async def optional(order: Order | None = None) -> Any:
        return order

    async def beside(message: Message[Order], retries: int = 3) -> Any:
        return retries

    assert await call(handler, services) == (ORDER, 3, None, (), {})
    assert await call(behind, services, message(h="x")) == (ORDER, 3, "x")
    assert await call(optional, services) is ORDER
    assert await call(beside, services) == 3


class Worker:
    async def method(self, order: Order) -> Any:
        return self, order

    @classmethod
    async def of_class(cls, order: Order) -> Any:
        return cls, order

    @staticmethod
    async def static(order: Order) -> Any:
        return order

    async def __call__(self, order: Order) -> Any:
        return order, self


async def test_methods_partials_objects_and_wrapped_functions(services: Services) -> None:
    worker = Worker()

    async def scaled(factor: int, order: Order) -> Any:
        return factor, order

    @wraps(scaled)
    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        return await scaled(3, *args, **kwargs)

    async def anything(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    assert await call(worker.method, services) == (worker, ORDER)
    assert await call(worker.of_class, services) == (Worker, ORDER)
    assert await call(worker.static, services) is ORDER
    assert await call(worker, services) == (ORDER, worker)
    assert await call(partial(scaled, 2), services) == (2, ORDER)
    assert await call(partial(scaled, factor=2), services) == (2, ORDER)
    assert await call(anything, services) == ((ORDER,), {})
    with pytest.raises(ConfigurationError, match="nothing is known to pass"):
        compile_handler(wrapped, where="", schema=Order, services=services)


# ---- headers ---------------------------------------------------------------------------------------------------------


async def test_headers_are_text_or_converted(services: Services) -> None:
    async def handler(
        order: Order,
        tenant: Annotated[str, Header("tenant")],
        size: Annotated[int, Header("size")],
        absent: Annotated[str | None, Header("absent")],
        default: Annotated[str, Header("default")] = "d",
    ) -> Any:
        return tenant, size, absent, default

    assert await call(handler, services, message(tenant="1", size="7")) == ("1", 7, None, "d")
    with pytest.raises(
        CodecError, match=r"the header 'tenant' is missing, and handler .*handler \(.*test_handlers.py:\d+\)"
    ):
        await call(handler, services, message())
    with pytest.raises(CodecError, match="the header 'size' is no int") as caught:
        await call(handler, services, message(tenant="1", size="s3cret"))
    assert "s3cret" not in str(caught.value)


# ---- plain functions -------------------------------------------------------------------------------------------------

context: ContextVar[str] = ContextVar("context")


async def test_a_def_handler_runs_in_a_thread_with_the_context(services: Services) -> None:
    def handler(order: Order, message: Message[Order]) -> Any:
        return threading.current_thread().name, context.get(), order, message

    context.set("here")
    given = message()
    name, seen, order, whole = await call(handler, services, given)
    assert name.startswith("handlers")
    assert (seen, order, whole) == ("here", ORDER, given)
    assert runs_in_thread(handler)
    assert not runs_in_thread(Worker())


async def test_a_def_that_hides_a_coroutine_function_is_awaited(services: Services) -> None:
    async def inner(order: Order) -> Any:
        return order

    def handler(order: Order) -> Any:
        return inner(order)

    assert await call(handler, services) is ORDER


async def test_a_stop_iteration_in_a_thread_is_an_error_and_no_hang(services: Services) -> None:
    def handler(order: Order) -> None:
        next(iter(()))

    with pytest.raises(RuntimeError, match="raised StopIteration"):
        await call(handler, services)


def length(body: Any) -> int:
    return len(body)


async def test_an_executor_gets_the_body_alone(services: Services) -> None:
    with ProcessPoolExecutor(1) as pool:
        one = compile_handler(length, where="", schema=str, services=services, executor=pool)
        several = compile_batch(length, where="", schema=str, services=services, executor=pool)
        assert await one(message("abc")) == 3
        assert await several([message("abc"), message("d")]) == 2


async def test_an_executor_takes_neither_coroutines_nor_other_arguments(services: Services) -> None:
    async def coroutine(order: Order) -> None: ...
    def more(order: Order, message: Message[Order]) -> None: ...

    with ThreadPoolExecutor(1) as pool:
        for fn, said in ((coroutine, "is async, executor="), (more, "asks for 'message'.*the body alone is passed")):
            with pytest.raises(ConfigurationError, match=said):
                compile_handler(fn, where="orders.billing", schema=Order, services=services, executor=pool)


# ---- dependencies ----------------------------------------------------------------------------------------------------

events: list[Any] = []


@pytest.fixture(autouse=True)
def no_events() -> None:
    events.clear()


def opening() -> Iterator[str]:
    """A plain generator: it runs in a thread."""
    try:
        yield threading.current_thread().name
        events.append("sync done")
    except BaseException as error:
        events.append(("sync failed", error))
        raise


async def outer(message: Message[Order], opened: Annotated[str, Depends(opening)]) -> AsyncIterator[tuple[str, str]]:
    try:
        yield message.id, opened
        events.append("outer done")
    except BaseException as error:
        events.append(("outer failed", error))
        raise


async def inner(pair: Annotated[tuple[str, str], Depends(outer)]) -> AsyncIterator[str]:
    try:
        yield pair[0]
        events.append("inner done")
    except BaseException as error:
        events.append(("inner failed", error))
        raise


async def test_generators_nest_once_per_message_and_end_in_reverse_before_the_call_does(services: Services) -> None:
    async def handler(
        order: Order, one: Annotated[str, Depends(inner)], two: Annotated[tuple[str, str], Depends(outer)]
    ) -> Any:
        events.append("handled")
        return one, two

    one, two = await call(handler, services)
    assert one == two[0] == "7"
    assert two[1].startswith("handlers")
    assert events == ["handled", "inner done", "outer done", "sync done"]


@pytest.mark.parametrize("error", [KeyError("x"), Reject("x"), asyncio.CancelledError("x"), StopAsyncIteration("x")])
async def test_generators_get_the_handlers_error_thrown_in(services: Services, error: BaseException) -> None:
    async def handler(order: Order, one: Annotated[str, Depends(inner)]) -> None:
        if not isinstance(error, StopAsyncIteration):
            raise error
        raise KeyError("x")

    with pytest.raises((type(error), KeyError)) as caught:
        await call(handler, services)
    assert [name for name, _ in events] == ["inner failed", "outer failed", "sync failed"]
    assert all(seen is caught.value for _, seen in events)


async def test_a_cancelled_handler_ends_its_generators(services: Services) -> None:
    started = asyncio.Event()

    async def handler(order: Order, one: Annotated[str, Depends(inner)]) -> None:
        started.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(call(handler, services))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [name for name, _ in events] == ["inner failed", "outer failed", "sync failed"]


async def swallowing(opened: Annotated[str, Depends(opening)]) -> AsyncIterator[None]:
    try:
        yield
    except KeyError:
        events.append("swallowed")


async def test_a_generator_cannot_make_a_failure_a_success(services: Services) -> None:
    async def handler(order: Order, one: Annotated[None, Depends(swallowing)]) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError) as caught:
        await call(handler, services)
    assert events == ["swallowed", ("sync failed", caught.value)]


async def committing(one: Annotated[str, Depends(outer)]) -> AsyncIterator[None]:
    yield
    raise OSError("commit failed")


async def dropping(one: Annotated[str, Depends(outer)]) -> AsyncIterator[None]:
    raise Drop("duplicate")
    yield


async def translating() -> AsyncIterator[None]:
    try:
        yield
    except KeyError as error:
        raise Reject("no such key") from error


async def never() -> AsyncIterator[None]:
    if events:
        yield


async def twice() -> AsyncIterator[None]:
    yield
    yield


entered, go = threading.Event(), threading.Event()


def slow() -> Iterator[None]:
    entered.set()
    go.wait(5)
    try:
        yield
    finally:
        events.append("closed")


async def test_an_error_at_the_end_is_the_handlers(services: Services) -> None:
    async def handler(order: Order, one: Annotated[None, Depends(committing)]) -> str:
        return "fine"

    with pytest.raises(OSError, match="commit failed") as caught:
        await call(handler, services)
    assert events == [("outer failed", caught.value), ("sync failed", caught.value)]


async def test_a_provider_may_raise_an_outcome_and_may_replace_an_error(services: Services) -> None:
    async def untouched(order: Order, one: Annotated[None, Depends(dropping)]) -> None:
        events.append("handled")

    async def failing(order: Order, one: Annotated[None, Depends(translating)]) -> None:
        raise KeyError("x")

    with pytest.raises(Drop, match="duplicate"):
        await call(untouched, services)
    assert [name for name, _ in events] == ["outer failed", "sync failed"]
    with pytest.raises(Reject, match="no such key"):
        await call(failing, services)


async def test_a_generator_yields_exactly_once(services: Services) -> None:
    async def with_never(order: Order, one: Annotated[None, Depends(never)]) -> None: ...
    async def with_twice(order: Order, one: Annotated[None, Depends(twice)]) -> None: ...

    with pytest.raises(RuntimeError, match="didn't yield"):
        await call(with_never, services)
    with pytest.raises(RuntimeError, match="didn't stop"):
        await call(with_twice, services)


@dataclass
class Settings:
    tenant: Annotated[str, Header("tenant")]
    limit: int = 10


async def settings_name(settings: Annotated[Settings, Depends(Settings)]) -> str:
    return settings.tenant


def thread_name() -> str:
    return threading.current_thread().name


async def test_classes_coroutines_and_functions_provide(services: Services) -> None:
    async def handler(
        settings: Annotated[Settings, Depends(Settings)],
        name: Annotated[str, Depends(settings_name)],
        thread: Annotated[str, Depends(thread_name)],
        order: Order,
    ) -> Any:
        return settings, name, thread, order

    settings, name, thread, order = await call(handler, services, message(tenant="north"))
    assert settings == Settings("north", 10)
    assert (name, order) == ("north", ORDER)
    assert thread.startswith("handlers")


async def test_a_def_handler_has_dependencies_too(services: Services) -> None:
    def handler(order: Order, one: Annotated[str, Depends(inner)]) -> str:
        return one

    assert await call(handler, services) == "7"
    assert events == ["inner done", "outer done", "sync done"]


async def engine(bus: Bus) -> AsyncIterator[object]:
    events.append("opened")
    yield bus
    events.append("closed")


async def session(engine: Annotated[object, Depends(engine, scope="bus")]) -> object:
    return engine


async def test_a_bus_scoped_dependency_opens_once_and_closes_with_the_bus(services: Services) -> None:
    async def handler(
        order: Order, one: Annotated[object, Depends(engine, scope="bus")], two: Annotated[object, Depends(session)]
    ) -> Any:
        return one, two

    handle = compile_handler(handler, where="", schema=Order, services=services)
    assert await handle(message()) == await handle(message()) == (services.bus, services.bus)
    assert events == ["opened"]
    await services.stack.aclose()
    assert events == ["opened", "closed"]


async def test_an_override_stands_in_with_dependencies_of_its_own(services: Services) -> None:
    async def fake(tenant: Annotated[str, Header("tenant")]) -> str:
        return f"fake {tenant}"

    async def handler(order: Order, one: Annotated[str, Depends(inner)]) -> Any:
        return one

    services.overrides = {inner: fake}
    assert await call(handler, services, message(tenant="north")) == "fake north"
    assert events == []


async def test_a_thread_that_opens_something_while_cancelled_closes_it(services: Services) -> None:
    async def handler(order: Order, one: Annotated[None, Depends(slow)]) -> None: ...

    task = asyncio.ensure_future(call(handler, services))
    await asyncio.get_running_loop().run_in_executor(None, entered.wait)
    task.cancel()
    asyncio.get_running_loop().call_soon(go.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert events == ["closed"]


# ---- batches ---------------------------------------------------------------------------------------------------------


async def test_batches_of_bodies_and_of_messages(services: Services) -> None:
    batch = [message(Order("1")), message(Order("2"))]

    async def bodies(orders: list[Order]) -> Any:
        return orders

    async def messages(batch: list[Message[Order]], limit: int = 3) -> Any:
        return batch

    async def both(
        messages: list[Message[Order]], orders: list[Order], one: Annotated[str, Depends(thread_name)]
    ) -> Any:
        return messages, orders, one

    def plain(orders: list[Order]) -> Any:
        return orders

    async def run(fn: Callable[..., Any]) -> Any:
        return await compile_batch(fn, where="", schema=Order, services=services)(batch)

    assert await run(bodies) == [Order("1"), Order("2")]
    assert await run(messages) is batch
    assert (await run(both))[:2] == (batch, [Order("1"), Order("2")])
    assert await run(plain) == [Order("1"), Order("2")]


def a_batch_of_one(order: Order) -> None: ...
def a_batch_with_one_message(orders: list[Order], message: Message[Order]) -> None: ...
def a_batch_with_a_header(orders: list[Order], tenant: Annotated[str, Header("tenant")]) -> None: ...
def a_batch_with_a_message_beneath(orders: list[Order], pair: Annotated[Any, Depends(outer)]) -> None: ...
def a_batch_of_others(orders: list[Invoice]) -> None: ...


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (a_batch_of_one, r"'order' must be list\[…\] of bodies or of Message, not Order"),
        (a_batch_with_one_message, r"'message' must be list\[Message\[…\]\], not one Message"),
        (a_batch_with_a_header, "'tenant' is the header of one message"),
        (a_batch_with_a_message_beneath, "asks for the message .'message'. and is used by a batch handler"),
        (a_batch_of_others, "takes Invoice as 'orders', and the topic carries Order"),
    ],
)
def test_what_a_batch_cannot_have(services: Services, fn: Callable[..., Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        compile_batch(fn, where="orders.billing", schema=Order, services=services)
    with pytest.raises(ConfigurationError, match=said):
        check_signature(fn, schema=Order, batch=True)


# ---- what cannot be served -------------------------------------------------------------------------------------------


def circle_a(b: Annotated[Any, Depends(lambda: None)]) -> None: ...
def circle_b(a: Annotated[Any, Depends(circle_a)]) -> None: ...


circle_a.__annotations__["b"] = Annotated[Any, Depends(circle_b)]


async def needs_message(message: Message[Order]) -> str:
    return message.id


def bus_of_message(message: Message[Order]) -> None: ...
def bus_of_header(tenant: Annotated[str, Header("tenant")]) -> None: ...
def bus_of_scope(one: Annotated[str, Depends(thread_name)]) -> None: ...
def needs_anything(what: int) -> None: ...


def two_bodies(order: Order, other: Order) -> None: ...
def nothing() -> None: ...
def in_a_circle(order: Order, one: Annotated[None, Depends(circle_b)]) -> None: ...
def uses_bus_of_message(order: Order, one: Annotated[None, Depends(bus_of_message, scope="bus")]) -> None: ...
def uses_bus_of_header(order: Order, one: Annotated[None, Depends(bus_of_header, scope="bus")]) -> None: ...
def uses_bus_of_scope(order: Order, one: Annotated[None, Depends(bus_of_scope, scope="bus")]) -> None: ...
def uses_needs_anything(order: Order, one: Annotated[None, Depends(needs_anything)]) -> None: ...
def header_itself(order: Order, tenant: Annotated[str, Header]) -> None: ...
def no_type(order: Order) -> None: ...
def a_generator(order: Order) -> Iterator[None]:
    yield


no_type.__annotations__["order"] = "list["


async def an_async_generator(order: Order) -> AsyncIterator[None]:
    yield


def others(order: Invoice) -> None: ...
def message_of_others(message: Message[Invoice]) -> None: ...


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (two_bodies, "nothing is known to pass for parameter 'other': annotate it as Message, Bus, Annotated"),
        (nothing, "takes neither the body nor the Message"),
        (in_a_circle, r"dependencies go in a circle: circle_b \(.*\) → circle_a \(.*\) → circle_b"),
        (uses_bus_of_message, "bus_of_message.* has scope=\"bus\" and its parameter 'message' is made per message"),
        (uses_bus_of_header, "bus_of_header.* has scope=\"bus\" and its parameter 'tenant' is made per message"),
        (uses_bus_of_scope, "bus_of_scope.* has scope=\"bus\" and its parameter 'one' is made per message"),
        (uses_needs_anything, "dependency needs_anything .*: nothing is known to pass for parameter 'what'"),
        (header_itself, r"'tenant' is annotated with Header itself: write Annotated\[…, Header\(…\)\]"),
        (no_type, "the annotation of parameter 'order' is no type"),
        (a_generator, "yields: a handler returns"),
        (an_async_generator, "yields: a handler returns"),
        (others, "takes Invoice as 'order', and the topic carries Order"),
        (message_of_others, "takes Invoice as 'message', and the topic carries Order"),
    ],
)
def test_what_cannot_be_served_is_said_at_decoration_and_at_start(
    services: Services, fn: Callable[..., Any], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        check_signature(fn, schema=Order)
    assert f"{fn.__name__} (" in str(caught.value) or "dependenc" in str(caught.value)
    assert "test_handlers.py:" in str(caught.value)
    with pytest.raises(ConfigurationError, match=said):
        compile_handler(fn, where="orders.billing", schema=Order, services=services)


async def test_a_name_may_be_defined_further_down_but_must_be_there_at_the_start(services: Services) -> None:
    async def handler(order: Missing) -> None: ...
    async def later(order: Later) -> Any:
        return order

    check_signature(handler)
    check_signature(later)
    assert await call(later, services, schema=Any) is ORDER
    with pytest.raises(
        ConfigurationError,
        match=r"handler .*handler \(.*test_handlers.py:\d+\): the annotation of parameter 'order' cannot be resolved: "
        r"name 'Missing' is not defined. Define or import it at module level",
    ):
        await call(handler, services, schema=Any)


class Later(msgspec.Struct):
    id: str


def wider(order: Order | None) -> None: ...
def base(order: Order) -> None: ...
def number(size: float) -> None: ...
def anything(value: Any) -> None: ...
def an_object(value: object) -> None: ...


@pytest.mark.parametrize(
    ("fn", "schema"),
    [
        (wider, Order), (wider, Order | None), (base, Paid), (number, int), (anything, Order), (an_object, Order | int),
        (base, Any), (others, dict[str, Any]), (others, Annotated[Invoice, "x"]),
    ],
)  # fmt: skip
def test_a_handler_may_take_more_than_the_topic_carries(fn: Callable[..., Any], schema: Any) -> None:
    check_signature(fn, schema=schema)


@pytest.mark.parametrize(("fn", "schema"), [(base, Order | Invoice), (base, Order | None), (number, str), (wider, int)])
def test_a_handler_may_not_take_less_than_the_topic_carries(fn: Callable[..., Any], schema: Any) -> None:
    with pytest.raises(ConfigurationError, match="and the topic carries"):
        check_signature(fn, where="orders.billing", schema=schema)


def list_of(orders: list[Order]) -> None: ...
def messages_of(messages: list[Message[Order]]) -> None: ...
def whole(message: Message[Order]) -> None: ...
def bare(message: Message) -> None: ...
def silent(order, message: Message) -> None: ...  # type: ignore[no-untyped-def]
def bare_list(orders: list) -> None: ...  # type: ignore[type-arg]


@pytest.mark.parametrize(
    ("fn", "batch", "schema"),
    [
        (base, False, Order), (whole, False, Order), (bare, False, Any), (silent, False, Any), (list_of, True, Order),
        (messages_of, True, Order), (bare_list, True, Any), (list_of, False, list[Order]),
    ],
)  # fmt: skip
def test_the_body_type_that_a_handler_tells(fn: Callable[..., Any], batch: bool, schema: Any) -> None:
    assert body_schema(fn, batch) == schema
