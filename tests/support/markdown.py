"""Reading the documentation: its commands and its links."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!\!)\[[^\]]*\]\((?P<target>[^)\s]+)\)|!\[[^\]]*\]\((?P<image>[^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block of code: the words after the fence, the code, its first line in the file."""

    info: tuple[str, ...]
    code: str
    line: int


def blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    return [
        Block(tuple(m["info"].split()), m["body"], text.count("\n", 0, m.start()) + 2)
        for m in _FENCE.finditer(text)
    ]


def commands(text: str) -> list[Block]:
    """Return the blocks of shell commands to run: ```bash, without ``no-run`` on the fence."""
    return [b for b in blocks(text) if b.info[:1] == ("bash",) and "no-run" not in b.info]


def links(text: str) -> list[str]:
    """Return the targets of all links and pictures outside fenced blocks, in order."""
    prose = _FENCE.sub("", text)
    return [m["target"] or m["image"] for m in _LINK.finditer(prose)]


def anchors(text: str) -> set[str]:
    """Return the anchors that a page's headings make, by the rule of the usual git hosts."""
    prose = _FENCE.sub("", text)
    titles = re.findall(r"^#+ +(.*?)[ \t]*$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}
