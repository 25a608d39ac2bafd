"""Subscriptions that come and go while the program runs."""

from contextlib import AsyncExitStack

from switchgear import Bus, Router

bus = Bus("nats://localhost")
tenants: dict[str, AsyncExitStack] = {}
seen: list[tuple[str, str]] = []


async def watch(tenant: str) -> None:
    router = Router()

    @router.subscribe(f"tenant.{tenant}", group="watch")
    async def note(event: dict[str, str]) -> None:
        seen.append((tenant, event["what"]))

    stack = tenants[tenant] = AsyncExitStack()
    await stack.enter_async_context(bus.serving(router))


async def unwatch(tenant: str) -> None:
    await tenants.pop(tenant).aclose()  # handlers finish, then the group is left
