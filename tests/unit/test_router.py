"""Declaring subscriptions: what is wrong is said where it is written."""

from __future__ import annotations

from typing import Any

import pytest

from switchgear import Batch, Bus, ConfigurationError, Message, Router, Topic

orders = Topic("orders", dict)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"topic": "x"}, "topic name 'x' is outside the grammar"),
        ({"topic": 5}, "expected a Topic or a topic's name"),
        ({"group": "a.b"}, "group name 'a.b' is outside the grammar"),
        ({"group": 5}, "group name 5"),
        ({"concurency": 5}, "did you mean 'concurrency'"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"retry": 5}, "retry is 5"),
        ({"timeout": "soon"}, "timeout is 'soon'"),
        ({"batch": 5}, "batch is 5"),
        ({"batch": Batch(0)}, "Batch"),
        ({"batch": Batch(5), "to": "other"}, "exclude each other"),
        ({"to": "x"}, "outside the grammar"),
    ],
)
def test_wrong_declarations(arguments: dict[str, Any], says: str) -> None:
    given: dict[str, Any] = {"topic": orders, "group": "g", **arguments}
    router = Router()
    with pytest.raises(ConfigurationError, match=says):

        @router.subscribe(given.pop("topic"), **given)
        async def handle(order: dict[str, int]) -> None: ...

    assert router._all() == []


def unresolved(order: NowhereDefined) -> None:  # type: ignore[name-defined]  # noqa: F821
    ...


def two_bodies(order: dict[str, int], other: dict[str, int]) -> None: ...


async def test_an_annotation_that_cannot_be_resolved_is_said_at_the_start() -> None:
    """Not before: what it names may be defined further down in the module."""
    bus = Bus("memory://", config={})
    bus.subscribe(orders, group="g")(unresolved)
    with pytest.raises(ConfigurationError, match="NowhereDefined"):
        async with bus.serving():
            pytest.fail("it serves")


@pytest.mark.parametrize("fn", [two_bodies, 5])
def test_a_signature_that_cannot_be_resolved(fn: Any) -> None:
    router = Router()
    with pytest.raises(ConfigurationError):
        router.subscribe(orders, group="g")(fn)
    assert router._all() == []


def test_the_function_comes_back_unchanged() -> None:
    async def handle(order: dict[str, int]) -> None: ...

    assert Router().subscribe(orders, group="g")(handle) is handle


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ({"concurrency": 4}, {"concurrency": 8}, "concurrency is 4 .* 8"),
        ({"lease": 10}, {"lease": 20}, "lease"),
    ],
)
async def test_conflicting_knobs_of_one_group_name_both_handlers(
    first: dict[str, Any], second: dict[str, Any], says: str
) -> None:
    bus = Bus("memory://", config={})

    @bus.subscribe(Topic("orders", dict, type="a"), group="g", **first)
    async def one(order: dict[str, int]) -> None: ...

    @bus.subscribe(Topic("orders", dict, type="b"), group="g", **second)
    async def two(order: dict[str, int]) -> None: ...

    with pytest.raises(ConfigurationError, match=says) as caught:
        async with bus.serving():
            pytest.fail("it serves")
    assert "one" in str(caught.value)
    assert "two" in str(caught.value)


async def test_two_handlers_of_one_type_and_group_are_an_error() -> None:
    bus = Bus("memory://", config={})
    for _ in range(2):

        @bus.subscribe(orders, group="g")
        async def handle(order: dict[str, int]) -> None: ...

    with pytest.raises(ConfigurationError, match="take the same messages"):
        async with bus.serving():
            pytest.fail("it serves")


async def test_conflicting_declarations_of_one_topic_are_an_error() -> None:
    bus = Bus("memory://", config={})

    @bus.subscribe(Topic("orders", dict, type="a", order="key"), group="g")
    async def one(order: dict[str, int]) -> None: ...

    @bus.subscribe(Topic("orders", dict, type="b", order="total"), group="g")
    async def two(order: dict[str, int], message: Message[Any]) -> None: ...

    with pytest.raises(ConfigurationError, match=r"order='key'.*order='total'"):
        async with bus.serving():
            pytest.fail("it serves")
