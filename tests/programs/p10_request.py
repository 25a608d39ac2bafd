"""Ask and answer."""

import msgspec

from switchgear import Bus, Reject, RequestFailed, RequestTimeout, Topic


class Quote(msgspec.Struct):
    city: str


class Price(msgspec.Struct):
    city: str
    postage: float


quotes = Topic("quotes", Quote)
bus = Bus("nats://localhost")


@bus.subscribe(quotes, group="tariff")
async def tariff(quote: Quote) -> Price:
    if not quote.city:
        raise Reject("no city")
    return Price(quote.city, 4.2)


async def ask(city: str) -> float:
    async with bus:
        try:
            return (await bus.request(quotes, Quote(city), Price, timeout=5)).postage
        except RequestTimeout:
            return -1
        except RequestFailed as error:
            raise SystemExit(str(error)) from error
