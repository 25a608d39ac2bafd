"""The reference pages name all that is there, with its true default, and nothing that is not."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Mapping
from typing import Any

import pytest
import typer.main

import switchgear
from switchgear import config, envelope, errors, settings, testing
from switchgear.cli.app import app
from switchgear.knobs import Batch, DeadLetter, Knobs, PublishOptions, Retry

from .pages import DOCS, ROOT, section, table

API = (DOCS / "reference/api.md").read_text(encoding="utf-8")
CONFIGURATION = (DOCS / "reference/configuration.md").read_text(encoding="utf-8")
COMMAND_LINE = (DOCS / "reference/command-line.md").read_text(encoding="utf-8")
CONFORMANCE = (DOCS / "reference/conformance.md").read_text(encoding="utf-8")
ERRORS = (DOCS / "reference/errors.md").read_text(encoding="utf-8")
OBSERVER = (DOCS / "reference/observer.md").read_text(encoding="utf-8")
WIRE = (DOCS / "reference/wire.md").read_text(encoding="utf-8")


def named(text: str) -> set[str]:
    """What the first cells of a text's tables name in code; a cell may name several."""
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name for cell in rows for name in re.findall(r"`([^`]+)`", cell)}


def defaults(text: str) -> dict[str, str]:
    """By name, what the tables say of defaults in code; rows that say it in words are left out."""
    return {name: cells[0].strip("`") for name, cells in table(text).items() if cells and cells[0].startswith("`")}


def first_table(text: str) -> str:
    """The first table of a text."""
    rows: list[str] = []
    for line in text.splitlines():
        if line.startswith("|"):
            rows.append(line)
        elif rows:
            break
    return "\n".join(rows)


def table_of(text: str, heading: str) -> str:
    """The table whose first column has this heading."""
    lines = text.splitlines()
    begin = next(n for n, line in enumerate(lines) if line.startswith(f"| `{heading}` | default |"))
    return first_table("\n".join(lines[begin:])).removeprefix(lines[begin])


# ---- public API -----------------------------------------------------------------------------------------------------


def test_every_public_name_is_there() -> None:
    assert named(first_table(API)) == set(switchgear.__all__)


def parameters(call: Any) -> dict[str, Any]:
    return {
        name: p.default
        for name, p in inspect.signature(call).parameters.items()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }


@pytest.mark.parametrize("cls", [switchgear.Topic, switchgear.Bus])
def test_constructors(cls: type) -> None:
    text = first_table(section(API, f"## {cls.__name__}"))
    real = parameters(cls)
    assert set(table(text)) == set(real)
    assert defaults(text) == {name: repr(value) for name, value in real.items()}


def public(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_") and not isinstance(getattr(cls, name), type)}


def test_methods_of_a_bus() -> None:
    text = section(API, "## Bus")
    assert named(text) - set(parameters(switchgear.Bus.__init__)) | {"namespace"} == public(switchgear.Bus)


def test_attributes_of_a_message() -> None:
    assert named(section(API, "## Message")) == public(switchgear.Message)


def test_options_of_publish() -> None:
    assert named(section(API, "## Options of publish")) == set(PublishOptions.__annotations__)


def test_knobs_and_their_defaults() -> None:
    text = first_table(section(API, "## Knobs of a subscription"))
    assert named(text) == set(Knobs.__annotations__)
    real = settings.Settings()
    shown = {name: getattr(real, name) for name in defaults(text)}
    shown.update({"retry": "Retry()", "dead_letter": True})  # what the code resolves them to
    assert real.retry == Retry()
    assert real.dead_letter == DeadLetter()
    written = {name: value if name == "retry" else repr(value) for name, value in shown.items()}
    assert defaults(text) == written


@pytest.mark.parametrize("cls", [Retry, DeadLetter, Batch])
def test_values_of_knobs(cls: Any) -> None:
    text = table_of(API, cls.__name__)
    fields = dataclasses.fields(cls)
    assert named(text) == {field.name for field in fields}
    given = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
    written = {name: repr(value).replace("<class 'Exception'>", "Exception") for name, value in given.items()}
    assert defaults(text) == written


def test_other_modules_have_what_is_said() -> None:
    rows = [line.split("|")[1:3] for line in section(API, "## Other modules").splitlines() if line.startswith("| `")]
    seen: set[str] = set()
    for modules, contents in rows:
        loaded = [importlib.import_module(name) for name in re.findall(r"`([\w.]+)`", modules)]
        seen.update(module.__name__ for module in loaded)
        for name in re.findall(r"`(\w+)[(`]", contents):
            assert any(hasattr(module, name) for module in loaded) or hasattr(testing.memory, name), name
    assert {"switchgear.sync", "switchgear.testing", "switchgear_sql"} <= seen


# ---- configuration --------------------------------------------------------------------------------------------------


def test_keys_of_a_bus() -> None:
    text = section(CONFIGURATION, "## Top of the file, and `[bus.NAME]`")
    assert set(table(text)) == set(config._BUS)
    shown = {name: cells[1].strip("`") for name, cells in table(text).items() if cells[1]}
    real = parameters(switchgear.Bus.__init__)
    assert shown == {name: repr(real[name]).replace("'", '"') for name in shown}


def test_keys_of_a_topic() -> None:
    from switchgear.plans import PARTITIONS

    text = section(CONFIGURATION, "## `[topics.NAME]`")
    assert set(table(text)) == set(config._TOPIC)
    assert table(text)["partitions"][1] == f"`{PARTITIONS}`"


def test_keys_of_a_subscription() -> None:
    text = section(CONFIGURATION, '## `[subscriptions."TOPIC.GROUP"]`')
    rows = table(text)
    assert set(rows) == set(settings.KNOBS) - settings.IN_CODE_ALONE
    real = settings.Settings()
    for name, (kind, default) in rows.items():
        if fields := settings._TABLES.get(name):
            told = set(re.findall(r"`(\w+)`", kind.partition("table: ")[2]))
            assert told == {field.name for field in dataclasses.fields(fields) if field.name != "on"}
        elif default.startswith("`"):
            assert default.strip("`") == str(getattr(real, name)) or default.strip("`") == f'"{getattr(real, name)}"'
        else:
            assert getattr(real, name) is None
    retry = Retry()
    assert rows["retry"][1] == f"`{{ attempts = {retry.attempts}, base = {retry.base}, cap = {retry.cap} }}`"
    for name in settings.IN_CODE_ALONE:
        assert f"`{name}`" in text


def test_variables_of_the_environment() -> None:
    used: set[str] = set()
    for path in (ROOT / "core/switchgear").rglob("*.py"):
        used.update(re.findall(r"\"(SWITCHGEAR_[A-Z]+)\"", path.read_text(encoding="utf-8")))
    assert set(table(section(CONFIGURATION, "## Environment"))) == used


# ---- command line ---------------------------------------------------------------------------------------------------

GROUP: Any = typer.main.get_command(app)
COMMANDS: Mapping[str, Any] = GROUP.commands


def test_every_command_is_there() -> None:
    assert {re.sub(r"[\[\]`]|\(.*", "", name) for name in linked(first_table(COMMAND_LINE))} == set(COMMANDS)


def linked(text: str) -> list[str]:
    return re.findall(r"(?m)^\| (\[`\w+`\]\(#\w+\))", text)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_options_of_a_command(name: str) -> None:
    command = COMMANDS[name]
    text = section(COMMAND_LINE, f"## {name}")
    options = {p.opts[0]: p for p in command.params if p.opts[0].startswith("--") and p.opts[0] != "--help"}
    told = table(first_table(text)) if options else {}
    assert set(told) == set(options)
    for option, (meaning,) in told.items():
        parameter = options[option]
        for other in parameter.opts[1:]:
            assert f"`{other}`" in meaning
        if parameter.default not in (None, False, []) and not isinstance(parameter.default, str):
            assert str(parameter.default).removesuffix(".0") in meaning
        if isinstance(parameter.default, str):
            assert f"`{parameter.default}`" in meaning
    arguments = [p for p in command.params if not p.opts[0].startswith("--")]
    for argument in arguments:
        assert str(argument.metavar or argument.name).upper().strip(".[]") in text


def test_help_is_what_the_options_were_read_from() -> None:
    from typer.testing import CliRunner

    for name, command in COMMANDS.items():
        shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
        assert shown.exit_code == 0
        for parameter in command.params:
            if parameter.opts[0].startswith("--"):
                assert parameter.opts[0] in shown.output


def test_exit_codes() -> None:
    from switchgear.cli.app import EXIT_CODES

    told = re.findall(r"(?m)^\| (\d+) \| (.+) \|$", COMMAND_LINE)
    assert EXIT_CODES.removeprefix("Exit codes: ").split(" · ") == [f"{code} {meaning}" for code, meaning in told]


# ---- the conformance kit --------------------------------------------------------------------------------------------


def test_every_case_of_the_catalogue_is_there() -> None:
    from .catalogue import lines, written

    assert written(CONFORMANCE) == lines(), "python -m tests.docs.catalogue writes the table"


def test_every_gate_is_explained() -> None:
    from switchgear_conformance.gates import DRIVER
    from switchgear_conformance.harness import POWERS

    assert named(section(CONFORMANCE, "## Gates")) == {*DRIVER, "dead_letter", *(f"ctl:{power}" for power in POWERS)}


def test_the_harness_is_there() -> None:
    from switchgear_conformance.harness import POWERS, Harness, Setup

    text = section(CONFORMANCE, "## The harness")
    for cls in (Harness, Setup):
        assert named(table_of(text, cls.__name__)) == {field.name for field in dataclasses.fields(cls)}
        given = {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}
        shown = defaults(table_of(text, cls.__name__))
        assert shown == {name: repr(value).replace("'", '"') for name, value in given.items()}
    powers = table(first_table(section(text, "### Powers")))
    assert set(powers) == set(POWERS)
    for power, protocol in POWERS.items():
        methods = {name for name in vars(protocol) if not name.startswith("_")}
        assert set(re.findall(r"`(\w+)[`(]", powers[power][0])) == methods, power


def test_the_report_is_there() -> None:
    from switchgear_conformance.case import Outcome
    from switchgear_conformance.report import Report, Result

    text = section(CONFORMANCE, "## The report")
    assert named(section(text, "### Outcomes")) == {outcome.value for outcome in Outcome}
    assert named(section(text, "### Fields")) == {field.name for field in dataclasses.fields(Report)} | {"tiers"}
    assert named(section(text, "### Fields of a result")) == {field.name for field in dataclasses.fields(Result)}


def test_the_history_is_there() -> None:
    from switchgear_conformance.verify import history
    from switchgear_conformance.verify.supervise import FAULTS
    from switchgear_conformance.verify.verdict import Verdict

    text = section(CONFORMANCE, "## The history of a workload")
    assert named(section(text, "### Fields of a line")) == set(history.Event.__struct_fields__)
    kinds = {value for name, value in vars(history).items() if name.isupper() and isinstance(value, str)}
    assert named(section(text, "### Kinds of lines")) == kinds
    assert named(section(text, "### The verdict")) == set(Verdict.__struct_fields__)
    assert named(section(text, "### Faults")) == set(FAULTS)


def test_what_the_proxy_does_is_there() -> None:
    from switchgear_conformance.proxy import Line

    faults = public(Line) - {"open", "close", "connect", "forward", "accepted", "must_have_been_used", "addresses"}
    assert named(section(CONFORMANCE, "## The proxy")) == faults


# ---- errors, events, headers ----------------------------------------------------------------------------------------


def every_error() -> dict[str, type[BaseException]]:
    return {name: cls for name, cls in vars(errors).items() if isinstance(cls, type)}


def test_the_tree_of_errors() -> None:
    def draw(cls: type, indent: str = "") -> list[str]:
        children = [c for c in every_error().values() if c.__bases__[0] is cls]
        lines: list[str] = []
        for n, child in enumerate(children):
            last = n == len(children) - 1
            lines.append(f"{indent}{'└── ' if last else '├── '}{child.__name__}")
            lines += draw(child, indent + ("    " if last else "│   "))
        return lines

    block = re.search(r"```text\n(SwitchgearError\n.*?)```", ERRORS, re.DOTALL)
    assert block is not None
    drawn = block[1].rstrip().splitlines()
    assert sorted(drawn[1:]) == sorted(draw(errors.SwitchgearError))


def test_what_to_do_about_every_error() -> None:
    rows = table(ERRORS.partition("## From publish")[0])
    assert set(rows) == set(every_error())
    assert all(len(cells) == 2 and all(cells) for cells in rows.values())


def test_events() -> None:
    doc = switchgear.Observer.__doc__ or ""
    stable = re.search(r"Event names are stable: (.*?)\.", doc, re.DOTALL)
    assert stable is not None
    rows = table(OBSERVER)
    assert set(rows) == set(re.split(r",\s+", stable[1]))
    counted: set[str] = set()
    for path in (ROOT / "core/switchgear").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        counted.update(name for name in rows if re.search(rf"(count|Skip)\([^)]*\"{name}\"", text))
    assert {name for name, (when,) in rows.items() if not when.startswith("reserved")} <= counted | {"unhandled"}
    assert not {name for name, (when,) in rows.items() if when.startswith("reserved")} & counted


def test_attributes_on_the_wire() -> None:
    assert named(section(WIRE, "## Envelope")) == (envelope.ATTRIBUTES | envelope.OURS) - {
        "datacontenttype", "dataschema", "subject",
    }  # fmt: skip


# ---- transports -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "module", "cls"),
    [
        ("memory", "switchgear_memory", "MemoryTuning"),
        ("sqlite", "switchgear_sqlite", "SqliteTuning"),
        ("redis", "switchgear_redis", "RedisTuning"),
    ],
)
def test_options_of_a_transport(page: str, module: str, cls: str) -> None:
    text = (DOCS / f"how-to/{page}.md").read_text(encoding="utf-8")
    told = defaults(first_table(section(text, "## URL and options")))
    for field in dataclasses.fields(getattr(importlib.import_module(module), cls)):
        assert told.pop(field.name) == str(field.default).lower(), field.name
    of_the_url = {"wait", "verify"} if page == "redis" else set[str]()
    assert set(told) == of_the_url


def test_options_of_redis_alone() -> None:
    from urllib.parse import urlsplit

    from switchgear_redis.tuning import parse

    text = (DOCS / "how-to/redis.md").read_text(encoding="utf-8")
    with pytest.raises(switchgear.ConfigurationError) as error:
        parse(urlsplit("redis://localhost?zzzzzz=1"))
    known = set(str(error.value).partition("known: ")[2].split(", "))
    assert named(first_table(section(text, "## URL and options"))) == known | {"namespace"}


# ---- the tutorial ---------------------------------------------------------------------------------------------------


def test_the_tutorial_ends_with_the_demo() -> None:
    """The shop that a reader writes is the demo's: the same messages, topics and handlers."""
    import ast

    from .pages import blocks

    class Counting(ast.NodeTransformer):
        def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
            return None if ast.unparse(node).startswith("store.event(") else node  # the demo's live table

    def parts(source: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for node in Counting().visit(ast.parse(source)).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name != "create":
                found[node.name] = ast.unparse(node)
            elif isinstance(node, ast.Assign):
                found[ast.unparse(node.targets[0])] = ast.unparse(node.value)
        return found

    written = [b.text for b in blocks(DOCS / "tutorial/shop.md") if b.attributes.get("title") == "shop.py"][-1]
    demo = (ROOT / "core/switchgear/demo/shop.py").read_text(encoding="utf-8")
    assert parts(written) == parts(demo)
