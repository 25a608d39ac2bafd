"""`MODULE:BUS` to buses."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from types import ModuleType
from typing import Any

from switchgear import Bus, Misuse
from switchgear.bus import APPLICATION
from switchgear.errors import ConfigurationError, SwitchgearError


def load(targets: Sequence[str], urls: Sequence[str] = ()) -> list[Bus]:
    """The buses that the targets name, with the URLs of the command line. The working directory is on `sys.path`.

    Raises ConfigurationError for a target that leads to no bus, or a URL that belongs to none of them.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")
    buses = list({id(bus): bus for bus in map(_bus, targets)}.values())
    for bus, url in _assign(urls, buses):
        bus.override(url=url)
    return buses


def _bus(target: str) -> Bus:
    name, colon, path = target.partition(":")
    if not (colon and name and path):
        raise ConfigurationError(f"{target!r} names no bus: expected MODULE:BUS, for example shop.main:bus")
    if name.endswith(".py") or "/" in name:
        better = name.removesuffix(".py").strip("./").replace("/", ".")
        raise ConfigurationError(f"{target!r}: write the module's name and not its file: {better}:{path}")
    module = _module(name)
    found: Any = module
    for part in path.split("."):
        if not hasattr(found, part):
            raise ConfigurationError(f"{target!r}: {name} has no {path!r}{_candidates(module, path)}")
        found = getattr(found, part)
    if callable(found) and not isinstance(found, Bus):
        found = _called(target, found)
    if not isinstance(found, Bus):
        raise ConfigurationError(
            f"{target!r} is a {type(found).__qualname__} and no Bus, nor a function that makes one"
            f"{_candidates(module, path)}"
        )
    return found


def _called(target: str, factory: Any) -> Any:
    token = APPLICATION.set(target.partition(":")[0].rpartition(".")[2])
    try:
        return factory()
    except SwitchgearError:
        raise
    except Exception as error:
        _show(error)
        raise ConfigurationError(f"{target!r}: calling it without arguments raised {type(error).__name__}") from error
    finally:
        APPLICATION.reset(token)


def _module(name: str) -> ModuleType:
    token = APPLICATION.set(name.rpartition(".")[2])
    try:
        return importlib.import_module(name)
    except Misuse as error:  # a loop is running here, so an unguarded `bus.run()` ends up in this branch
        raise ConfigurationError(
            f"importing {name} did not only declare but ran something ({error}): "
            'put bus.run() under if __name__ == "__main__":'
        ) from None
    except SwitchgearError as error:
        raise type(error)(f"importing {name}{_line(error, name)}: {error}") from None
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigurationError(f"there is no module {name!r} here or among the installed packages") from None
        raise ConfigurationError(f"importing {name}{_line(error, name)}: {error}") from None
    except Exception as error:
        _show(error)
        raise ConfigurationError(f"importing {name} raised {type(error).__name__}") from error
    finally:
        APPLICATION.reset(token)


def _show(error: Exception) -> None:
    """The program's own traceback, without the frames of importing it."""
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename.startswith((__file__, "<frozen importlib")):
        frame = frame.tb_next
    traceback.print_exception(error.with_traceback(frame))


def _line(error: BaseException, name: str) -> str:
    """Where in the user's own module it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    tail = f"{name.replace('.', '/')}"
    own = [frame for frame in frames if frame.filename.endswith((f"{tail}.py", f"{tail}/__init__.py"))]
    return f", line {own[-1].lineno}" if own else ""


def _candidates(module: ModuleType, path: str) -> str:
    buses = [name for name, value in vars(module).items() if isinstance(value, Bus)]
    near = get_close_matches(path, [name for name in vars(module) if not name.startswith("_")], n=1)
    if buses:
        return f"; its buses: {', '.join(buses)}"
    return f"; did you mean {near[0]!r}?" if near else ""


def _assign(urls: Sequence[str], buses: Sequence[Bus]) -> list[tuple[Bus, str]]:
    named = {bus.name: bus for bus in buses}
    assigned: list[tuple[Bus, str]] = []
    for given in urls:
        name, equals, url = given.partition("=")
        if not equals or "://" in name:
            if len(buses) > 1:
                raise ConfigurationError(
                    f"--url is ambiguous with several buses: write --url NAME=URL; names: {', '.join(sorted(named))}"
                )
            assigned.append((buses[0], given))
        elif name in named:
            assigned.append((named[name], url))
        else:
            raise ConfigurationError(f"--url {name}=…: no bus of that name; names: {', '.join(sorted(named))}")
    return assigned
