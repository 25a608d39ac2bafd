"""What the documentation consists of: pages, and the fenced blocks of each.

A block's info string is its language, then `title="NAME"` for a file of that name, `from="PATH"` for a part of a file
that is there (relative to the page; a line `…` stands for lines left out), `terminal=NAME` for a command that goes on
running, `output` for what the Python above it printed. An HTML comment before a block may say
`not run: REASON`; one that begins with `setup` holds Python that runs and is not shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
REDIS = "redis://localhost"
"""How pages write the address of a Redis server; the tests put the one of their own in its place."""
KAFKA = "kafka://localhost"
"""The same for Kafka."""

_FENCE = re.compile(r"^( *)(`{3,})(.*)$")
_ATTRIBUTE = re.compile(r'(\w+)(?:="([^"]*)"|=(\S+))?')
_NOT_RUN = re.compile(r"^<!-- not run: (.+) -->$")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block, or hidden set-up (language "setup")."""

    page: Path
    line: int
    """Of its first line of content."""
    language: str
    text: str
    attributes: dict[str, str] = field(default_factory=dict[str, str])
    not_run: str | None = None
    """Why it is not executed."""

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """The README and every page of docs/."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


@cache
def blocks(page: Path) -> tuple[Block, ...]:
    """The blocks of a page, in order. Raises ValueError for a fence that is never closed."""
    lines = page.read_text(encoding="utf-8").splitlines()
    found: list[Block] = []
    reason: str | None = None
    n = 0
    while n < len(lines):
        line = lines[n]
        n += 1
        if said := _NOT_RUN.match(line.strip()):
            reason = said[1]
        elif line.strip() == "<!-- setup":
            end = next(i for i in range(n, len(lines)) if lines[i].strip() == "-->")
            found.append(Block(page, n + 1, "setup", "\n".join(lines[n:end]) + "\n"))
            n = end + 1
        elif fence := _FENCE.match(line):
            indent, ticks, info = len(fence[1]), fence[2], fence[3].strip()
            begin = n
            while n < len(lines) and lines[n].strip() != ticks:
                n += 1
            if n == len(lines):
                raise ValueError(f"{page}:{begin}: a block that is never closed")
            text = "\n".join(text_line[indent:] for text_line in lines[begin:n]) + "\n"
            n += 1
            language, _, rest = info.partition(" ")
            attributes = {name: quoted or plain for name, quoted, plain in _ATTRIBUTE.findall(rest)}
            found.append(Block(page, begin + 1, language, text, attributes, reason))
            reason = None
        elif line.strip():
            reason = None
    return tuple(found)


def prose(page: Path) -> str:
    """A page without its blocks and comments."""
    kept: list[str] = []
    fenced = ""
    for line in page.read_text(encoding="utf-8").splitlines():
        fence = _FENCE.match(line)
        if fence and not fenced:
            fenced = fence[2]
        elif fenced:
            if line.strip() == fenced:
                fenced = ""
        else:
            kept.append(line)
    return re.sub(r"<!--.*?-->", "", "\n".join(kept), flags=re.DOTALL)


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next of its level or above."""
    lines = text.splitlines()
    level = len(heading) - len(heading.lstrip("#"))
    begin = lines.index(heading) + 1
    for n in range(begin, len(lines)):
        found = re.match(r"(#+) ", lines[n])
        if found and len(found[1]) <= level:
            return "\n".join(lines[begin:n])
    return "\n".join(lines[begin:])


def table(text: str) -> dict[str, list[str]]:
    """The rows of all tables in a text: by what the first cell names in code, the other cells."""
    rows: dict[str, list[str]] = {}
    for line in text.splitlines():
        if not line.startswith("|"):
            continue
        first, *others = (cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|")))
        if named := re.match(r"`([^`]+)`", first):
            assert named[1] not in rows, f"{named[1]} has two rows"
            rows[named[1]] = others
    return rows
