from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from switchgear import Bus
from switchgear.config import Config, Settings, check_knobs, merge, resolve
from switchgear.errors import ConfigurationError
from switchgear.knobs import Batch, Breaker, DeadLetter, Rate, Retry

FULL = """
url = "${BROKER_URL:-sqlite:///dev.db}"
namespace = "prod."
grace = 10
provision = "check"

[bus.live]
url = "${REDIS_URL}"
grace = 5

[topics.orders]
partitions = 12
order = "key"
retention = 86400

[topics."shop.returns"]
partitions = 1

[subscriptions."orders.billing"]
order = "none"
concurrency = 64
delivery = "at_most_once"
start = 2030-01-01T00:00:00Z
timeout = 5
retry = { attempts = 10, cap = 300 }
dead_letter = { after = "park" }
lease = 3
max_handling = 60.5
window = 100
unhandled = "drop"
rate = { limit = 5 }
breaker = { ratio = 0.25 }

[subscriptions."shop.returns.archive"]
dead_letter = false
start = "earliest"
retry = { attempts = "unlimited" }
batch = { wait = 0.5 }
"""


def load(text: str = FULL, tmp: Path | None = None, *, bus: str = "main", **environ: str) -> Config:
    import tomllib

    return Config.load(tomllib.loads(text), bus=bus, environ=environ)


def mapping(document: dict[str, Any], **environ: str) -> Config:
    return Config.load(document, bus="main", environ=environ)


# ---- sources ---------------------------------------------------------------------------------------------------------


def test_without_any_source_all_is_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config.load(None, bus="main", environ={})
    assert config.value("grace", None, 25.0) == (25.0, "default")
    assert resolve("orders", "billing", {}, config)[0] == Settings()


def test_the_file_is_the_arguments_else_the_environments_else_the_working_directorys(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("switchgear.toml", "env.toml", "argument.toml"):
        (tmp_path / name).write_text(f'namespace = "{name}."')

    def namespace(config: str | Path | None, **environ: str) -> tuple[str, str]:
        return Config.load(config, bus="main", environ=environ).value("namespace", None, "")

    assert namespace(None) == ("switchgear.toml.", "switchgear.toml")
    assert namespace(None, SWITCHGEAR_CONFIG="env.toml") == ("env.toml.", "env.toml")
    assert namespace(tmp_path / "argument.toml", SWITCHGEAR_CONFIG="env.toml") == (
        "argument.toml.",
        str(tmp_path / "argument.toml"),
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no configuration file"),
        (b"a = 1\nurl = ]", r"is no TOML: .*line 2"),
        (b"\xff", "is no TOML"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "other.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=said) as caught:
        Config.load(path, bus="main", environ={})
    assert "other.toml" in str(caught.value)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Config.load(tmp_path, bus="main", environ={})


# ---- url and values --------------------------------------------------------------------------------------------------


def test_the_url_of_the_highest_source_wins() -> None:
    live = load(bus="live", REDIS_URL="redis://r")
    assert live.url(None) == ("redis://r", "config= [bus.live]")
    assert load().url(None) == ("sqlite:///dev.db", "config=")
    assert load(BROKER_URL="redis://b").url(None) == ("redis://b", "config=")
    assert load(SWITCHGEAR_URL="redis://e").url(None) == ("redis://e", "environment SWITCHGEAR_URL")
    assert load(SWITCHGEAR_URL="redis://e").url("kafka://c") == ("kafka://c", "code")
    config = load(SWITCHGEAR_URL="redis://e")
    config.override(url="memory://")
    assert config.url("kafka://c") == ("memory://", "command line")


def test_no_url_says_the_ways_to_give_one() -> None:
    with pytest.raises(ConfigurationError, match=r"bus 'main' has no URL.*SWITCHGEAR_URL.*switchgear.toml.*--url"):
        mapping({}).url(None)


def test_for_values_the_file_goes_before_the_code() -> None:
    config = load()
    assert config.value("namespace", "code.", "") == ("prod.", "config=")
    assert config.value("grace", 3, 25.0) == (10.0, "config=")
    assert load(bus="live").value("grace", 3, 25.0) == (5.0, "config= [bus.live]")
    assert mapping({}).value("grace", timedelta(minutes=1), 25.0) == (60.0, "code")
    assert mapping({}).value("provision", None, "create") == ("create", "default")


def test_a_wrong_value_in_code_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"bus 'main': provision is 'maybe'; expected one of 'create'"):
        mapping({}).value("provision", "maybe", "create")


def test_what_a_file_says_of_a_topic() -> None:
    assert load().topic("orders") == {"partitions": 12, "order": "key", "retention": 86400.0}
    assert load().topic("shop.returns") == {"partitions": 1}
    assert load().topic("elsewhere") == {}


# ---- variables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "environ", "found"),
    [
        ("${A}", {"A": "x"}, "x"),
        ("-${A}-${B:-b}-", {"A": "x"}, "-x-b-"),
        ("${A:-}", {}, ""),
        ("${A:-d}", {"A": ""}, "d"),
        ("${A}", {"A": ""}, ""),
        ("$${A}", {"A": "x"}, "${A}"),
        ("$A", {"A": "x"}, "$A"),
        ("${A}", {"A": "${B}"}, "${B}"),
    ],
)
def test_variables_in_text(text: str, environ: dict[str, str], found: str) -> None:
    assert mapping({"namespace": text}, **environ).value("namespace", None, "") == (found, "config=")


def test_variables_stand_for_numbers_and_truths_too() -> None:
    section = {"concurrency": "${N:-4}", "lease": "${L}", "dead_letter": "${D}", "retry": {"attempts": "${A}"}}
    config = mapping({"subscriptions": {"orders.billing": section}}, L="2.5", D="false", A="7")
    settings, _ = resolve("orders", "billing", {}, config)
    assert (settings.concurrency, settings.lease, settings.dead_letter) == (4, 2.5, None)
    assert settings.retry == Retry(attempts=7)


def test_a_variable_that_is_not_set_is_named_when_it_is_needed() -> None:
    config = load()  # the other bus's REDIS_URL is not set, and this bus does not mind
    assert config.url(None)[0] == "sqlite:///dev.db"
    with pytest.raises(ConfigurationError, match=r"config= \[bus.live\]: url needs the environment variable REDIS_URL"):
        load(bus="live").url(None)


@pytest.mark.parametrize("text", ["${", "${1}", "${A", "${A:-x", "${}"])
def test_a_variable_that_is_not_closed(text: str) -> None:
    with pytest.raises(ConfigurationError, match="neither"):
        mapping({"namespace": text}, A="x").value("namespace", None, "")


def test_a_wrong_value_of_a_variable_is_found() -> None:
    config = mapping({"subscriptions": {"orders.billing": {"concurrency": "${N}"}}}, N="many")
    with pytest.raises(ConfigurationError, match="concurrency is 'many'; expected a whole number"):
        resolve("orders", "billing", {}, config)


# ---- what is not understood ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"urll": "x"}, r"config=: there is no key 'urll'; did you mean 'url'\?"),
        ({"topic": {}}, r"there is no key 'topic'; did you mean 'topics'\?"),
        ({"bus": {"live": {"graze": 1}}}, r"config= \[bus.live\]: there is no key 'graze'; did you mean 'grace'\?"),
        ({"topics": {"orders": {"partition": 1}}}, r"\[topics.orders\].*'partition'; did you mean 'partitions'\?"),
        ({"subscriptions": {"orders.billing": {"oder": "key"}}},
         r'config= \[subscriptions."orders.billing"\]: there is no key \'oder\'; did you mean \'order\'\?'),
        ({"subscriptions": {"orders.billing": {"retry": {"atempts": 3}}}}, r"no key retry.atempts; did you mean"),
        ({"subscriptions": {"orders.billing": {"retry": {"on": []}}}}, "no key retry.on"),
        ({"subscriptions": {"orders.billing": {"retry": {"atempts": "${N}"}}}}, "no key retry.atempts"),
        ({"subscriptions": {"orders.billing": {"zzz": "${N}"}}}, "no key 'zzz'; known: batch, breaker"),
        ({"subscriptions": {"orders.billing": {"inbox": "x"}}}, "inbox is an object and can be given in code alone"),
        ({"subscriptions": {"orders": {"billing": {}}}}, r'expected \[subscriptions."<topic>.<group>"\], in quotes'),
        ({"subscriptions": {"sg.x.billing": {}}}, "reserved for internal topics"),
        ({"subscriptions": {"orders.1": {}}}, "group name '1' is outside the grammar"),
        ({"topics": {"shop": {"orders": {"partitions": 1}}}}, r'needs quotes: \[topics."shop.orders"\]'),
        ({"topics": {"or": {}}}, "topic name 'or' is outside the grammar"),
        ({"topics": 1}, r"config= \[topics\] is 1; expected a table"),
        ({"bus": {"live": 1}}, r"config= \[bus.live\] is 1; expected a table"),
        ({"url": 1}, "url is 1; expected a broker URL"),
        ({"url": ""}, "url is ''; expected a broker URL"),
        ({"grace": "1m"}, "grace is '1m'; expected seconds"),
        ({"grace": math.inf}, "grace is inf; expected seconds"),
        ({"namespace": 1}, "namespace is 1; expected text"),
        ({"provision": "yes"}, "provision is 'yes'; expected one of 'create'"),
        ({"topics": {"orders": {"partitions": True}}}, "partitions is True; expected a whole number"),
        ({"topics": {"orders": {"retention": 0}}}, "retention is 0; expected seconds, more than 0"),
        ({"topics": {"orders": {"order": "keys"}}}, "order is 'keys'; expected one of 'none'"),
        ({"subscriptions": {"orders.billing": {"concurrency": "4"}}}, "concurrency is '4'; expected a whole number"),
        ({"subscriptions": {"orders.billing": {"retry": 3}}}, "retry is 3; expected a table such as { attempts = 10"),
        ({"subscriptions": {"orders.billing": {"retry": {"attempts": 0}}}}, "Retry with attempts of 1 or more"),
        ({"subscriptions": {"orders.billing": {"start": "yesterday"}}}, "start is 'yesterday'; expected 'new'"),
        ({"subscriptions": {"orders.billing": {"batch": {"size": 0}}}}, "expected Batch"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_named_with_its_place(document: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        mapping(document)


def test_a_wrong_url_shows_no_password() -> None:
    with pytest.raises(ConfigurationError) as caught:
        mapping({"bus": {"live": {"url": "redis://u:s3cret@h", "urrl": "redis://u:s3cret@h"}}})
    assert "s3cret" not in str(caught.value)


def test_sections_that_are_nearly_for_a_subscription_are_told() -> None:
    assert load().misspelt([("orders", "billing"), ("orders", "shipping"), ("orders", None)]) == []
    assert load().misspelt([("orders", "shipping")]) == []
    [said] = load().misspelt([("orders", "biling"), ("shop.returns", "archive")])
    assert said.startswith('config= [subscriptions."orders.billing"] is for no subscription of this program')
    assert said.endswith("; did you mean 'orders.biling'?")


async def test_a_misspelt_section_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    bus = Bus("memory://", name="app", config={"subscriptions": {"orders.biling": {"concurrency": 64}}})

    @bus.subscribe("orders", group="billing")
    async def bill(order: dict[str, str]) -> None: ...

    with caplog.at_level("WARNING", "switchgear"):
        async with bus.serving():
            pass
    assert '[subscriptions."orders.biling"] is for no subscription of this program; did you mean' in caplog.text


# ---- settings --------------------------------------------------------------------------------------------------------


def test_every_knob_that_toml_can_write() -> None:
    settings, origins = resolve("orders", "billing", {}, load())
    assert settings == Settings(
        order="none",
        concurrency=64,
        delivery="at_most_once",
        start=datetime(2030, 1, 1, tzinfo=UTC).timestamp(),
        timeout=5.0,
        retry=Retry(attempts=10, cap=300),
        dead_letter=DeadLetter(after="park"),
        lease=3.0,
        max_handling=60.5,
        window=100,
        unhandled="drop",
        rate=Rate(5),
        breaker=Breaker(ratio=0.25),
    )
    assert origins["concurrency"] == 'config= [subscriptions."orders.billing"]'
    assert origins["inbox"] == "default"


def test_the_file_goes_before_the_code_field_by_field() -> None:
    code = {"concurrency": 4, "retry": Retry(base=1.0, on=(KeyError,)), "lease": 9, "dead_letter": "failed-orders"}
    settings, origins = resolve("orders", "billing", code, load())
    assert settings.concurrency == 64
    assert settings.retry == Retry(attempts=10, base=1.0, cap=300, on=(KeyError,))
    assert settings.dead_letter == DeadLetter("failed-orders", after="park")
    assert origins["retry"] == 'config= [subscriptions."orders.billing"]'
    settings, origins = resolve("orders", "shipping", code, load())
    assert (settings.concurrency, settings.lease) == (4, 9.0)
    assert (origins["lease"], origins["window"]) == ("code", "default")
    assert set(origins) == set(Settings.__struct_fields__)


def test_a_batch_in_the_file_adjusts_that_of_the_code() -> None:
    settings, _ = resolve("shop.returns", "archive", {"batch": Batch(100)}, load())
    assert settings.batch == Batch(100, wait=0.5)
    assert settings.dead_letter is None
    assert settings.retry == Retry(attempts=None)
    with pytest.raises(ConfigurationError, match="handler takes single messages"):
        resolve("shop.returns", "archive", {}, load())


def test_an_incomplete_table_without_code_below_it() -> None:
    config = mapping({"subscriptions": {"orders.billing": {"rate": {"per": 2}}}})
    assert resolve("orders", "billing", {"rate": Rate(3)}, config)[0].rate == Rate(3, per=2)
    with pytest.raises(ConfigurationError, match=r"rate is incomplete; expected { limit = 50"):
        resolve("orders", "billing", {}, config)


def test_durations_come_as_seconds() -> None:
    code = {"lease": timedelta(minutes=1), "timeout": timedelta(seconds=2), "max_handling": 60}
    settings, _ = resolve("orders", "billing", code, mapping({}))
    assert (settings.lease, settings.timeout, settings.max_handling) == (60.0, 2.0, 60.0)


@pytest.mark.parametrize(
    ("value", "settled"),
    [(True, DeadLetter()), (False, None), ("other-topic", DeadLetter("other-topic")), (DeadLetter(after="stop"),) * 2],
)
def test_the_ways_to_write_a_dead_letter(value: object, settled: DeadLetter | None) -> None:
    assert resolve("orders", "billing", {"dead_letter": value}, mapping({}))[0].dead_letter == settled


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"oder": "key"}, r"there is no knob 'oder'; did you mean 'order'\?"),
        ({"order": "keys"}, "order is 'keys'; expected one of 'none', 'key', 'total'"),
        ({"concurrency": 0}, "concurrency is 0; expected a whole number, 1 or more"),
        ({"concurrency": True}, "concurrency is True"),
        ({"delivery": "once"}, "delivery is 'once'; expected one of 'at_least_once'"),
        ({"start": "now"}, "start is 'now'; expected 'new', 'earliest' or a datetime"),
        ({"start": datetime(2030, 1, 1)}, "a datetime with a time zone"),  # noqa: DTZ001
        ({"timeout": 0}, "timeout is 0; expected seconds"),
        ({"lease": "30"}, "lease is '30'; expected seconds"),
        ({"lease": math.inf}, "lease is inf"),
        ({"max_handling": math.nan}, "max_handling is nan"),
        ({"retry": 5}, "retry is 5; expected Retry"),
        ({"retry": Retry(attempts=0)}, "expected Retry with attempts of 1 or more"),
        ({"retry": Retry(base=-1)}, "base and cap in seconds"),
        ({"retry": Retry(on=KeyError)}, "a tuple of exception classes"),  # type: ignore[arg-type]
        ({"retry": Retry(on=(BaseException,))}, "a tuple of exception classes"),  # type: ignore[arg-type]
        ({"dead_letter": 1}, "dead_letter is 1; expected True, False"),
        ({"dead_letter": "a b"}, "topic name 'a b' is outside the grammar"),
        ({"dead_letter": DeadLetter(after="wait")}, "after='continue', 'park' or 'stop'"),  # type: ignore[arg-type]
        ({"window": 0}, "window is 0"),
        ({"unhandled": "ignore"}, "unhandled is 'ignore'"),
        ({"inbox": object()}, "expected an Inbox"),
        ({"breaker": Breaker(ratio=2)}, "expected Breaker"),
        ({"rate": Rate(0)}, "expected Rate"),
        ({"executor": 4}, "expected a concurrent.futures.Executor"),
        ({"middleware": print}, "expected a list of middlewares"),
        ({"middleware": [1]}, "expected a list of middlewares"),
        ({"tuning": [object()]}, "expected a list of tunings"),
        ({"batch": 5}, "expected Batch"),
    ],
)
def test_wrong_knobs_are_named_at_decoration(knobs: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        check_knobs(knobs, "subscribe('orders')")
    assert str(caught.value).startswith("subscribe('orders'): ")


def test_right_knobs_pass() -> None:
    with ThreadPoolExecutor(1) as pool:
        check_knobs({"executor": pool, "middleware": [lambda handle: handle], "tuning": [], "timeout": None}, "here")


def test_broadcast_has_no_dead_letters_no_inbox_and_no_order() -> None:
    settings, _ = resolve("orders", None, {"dead_letter": False, "order": "none"}, load())
    assert settings.dead_letter is None
    assert settings.concurrency == 16
    for knobs in ({"dead_letter": True}, {"dead_letter": "failed"}, {"order": "key"}):
        with pytest.raises(ConfigurationError, match=rf"{next(iter(knobs))} is set for broadcast \(group=None\)"):
            resolve("orders", None, knobs, mapping({}))


# ---- several handlers ------------------------------------------------------------------------------------------------


def test_handlers_of_one_group_add_up() -> None:
    merged = merge(
        [("a.py:1", {"concurrency": 8, "lease": 60}), ("b.py:2", {"lease": timedelta(minutes=1)})], "orders", "g"
    )
    assert merged == {"concurrency": 8, "lease": 60}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"concurrency": 8}, {"concurrency": 9}),
        ({"batch": Batch(5)}, {"batch": Batch(6)}),
        ({"lease": 3}, {"lease": 4}),
    ],
)
def test_conflicting_knobs_name_both_handlers(first: dict[str, object], second: dict[str, object]) -> None:
    name = next(iter(first))
    with pytest.raises(
        ConfigurationError, match=rf"subscription orders.billing: {name} is .* at a.py:1 and .* at b.py:2"
    ):
        merge([("a.py:1", first), ("b.py:2", second)], "orders", "billing")


def test_batches_and_single_messages_do_not_mix() -> None:
    with pytest.raises(ConfigurationError, match=r"b.py:2 takes batches and a.py:1 single messages"):
        merge([("a.py:1", {}), ("b.py:2", {"batch": Batch(5)})], "orders", "billing")
