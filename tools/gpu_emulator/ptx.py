"""Reads PTX, the assembly language of NVIDIA GPUs, as Triton and nvcc write it.

Only kernels (``.entry``) are read. What the machine cannot execute is refused later, by name, when
an instruction is decoded (`gpu_emulator.instructions`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

WIDTHS = {
    "pred": 1, "b8": 8, "u8": 8, "s8": 8, "b16": 16, "u16": 16, "s16": 16,
    "b32": 32, "u32": 32, "s32": 32, "f32": 32, "b64": 64, "u64": 64, "s64": 64, "f64": 64,
}  # fmt: skip


class PtxError(Exception):
    """The program cannot be read or did what it must not, such as a load outside its arrays."""


@dataclass(frozen=True)
class Register:
    """A register: its number within the kernel and its width in bits (1: a predicate)."""

    index: int
    width: int


@dataclass(frozen=True)
class Literal:
    """A constant: an integer, or the bits of a floating-point number of ``width`` bits."""

    value: int
    width: int = 0


@dataclass(frozen=True)
class Symbol:
    """A name: a label, a special register such as ``%tid.x``, a parameter, or shared memory."""

    name: str


@dataclass(frozen=True)
class Address:
    """``[base + offset]``, offset in bytes."""

    base: Register | Symbol | Literal
    offset: int


@dataclass(frozen=True)
class Group:
    """``{a, b}``: several registers, ``a|b``: two results; ``None`` for ``_`` (discarded)."""

    items: tuple[Register | Symbol | Literal | None, ...]


Operand = Register | Literal | Symbol | Address | Group | None


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name split at the dots, guard, operands, and where it comes from."""

    parts: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Register | None
    negated: bool
    text: str
    location: str

    @property
    def name(self) -> str:
        """The first part of the name."""
        return self.parts[0]

    @property
    def type(self) -> str:
        """The last part of the name."""
        return self.parts[-1]

    def error(self, message: str) -> PtxError:
        """Return an error that shows the instruction and its line in the kernel's source."""
        return PtxError(f"{message}: '{self.text}'" + (f" ({self.location})" * bool(self.location)))


@dataclass
class Kernel:
    """A kernel: parameters in order with their types, and instructions with their labels.

    ``threads`` is the number of threads of a program (0: the kernel leaves it open), ``shared`` the
    byte offset of each array in shared memory, ``shared_bytes`` what they take together;
    ``open_shared`` tells that an array without a length follows them.
    """

    name: str
    parameters: dict[str, str] = field(default_factory=dict)
    threads: int = 0
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    register_widths: list[int] = field(default_factory=list)
    shared: dict[str, int] = field(default_factory=dict)
    shared_bytes: int = 0
    open_shared: bool = False

    def add_shared(self, statement: str) -> None:
        """Give an array in shared memory its place."""
        found = re.search(
            r"\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d*)\])?", statement
        )
        if not found:
            raise PtxError(f"cannot read the declaration '{statement}'")
        align, kind, name, length = found.groups()
        step = int(align or WIDTHS[kind] // 8)
        start = -(-self.shared_bytes // step) * step
        self.shared[name] = start
        self.open_shared |= length == ""
        count = 1 if length is None else int(length or 0)
        self.shared_bytes = start + count * WIDTHS[kind] // 8


class _Scopes:
    """The registers that are visible at a place; blocks in braces may declare their own."""

    def __init__(self, widths: list[int]) -> None:
        self.widths = widths
        self.names: list[dict[str, Register]] = [{}]

    def declare(self, statement: str) -> None:
        kind, names = re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", statement, re.S).groups()  # type: ignore[union-attr]
        if kind not in WIDTHS:
            raise PtxError(f"registers of type .{kind} are not emulated: '{statement}'")
        for name in names.split(","):
            stem, _, count = name.strip().partition("<")
            numbered = [f"{stem}{i}" for i in range(int(count.rstrip(">")))] if count else [stem]
            for one in numbered:
                self.names[-1][one] = Register(len(self.widths), WIDTHS[kind])
                self.widths.append(WIDTHS[kind])

    def find(self, name: str) -> Register | None:
        return next((scope[name] for scope in reversed(self.names) if name in scope), None)


def _literal(text: str) -> Literal | None:
    if found := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})|0[dD]([0-9a-fA-F]{16})", text):
        single, double = found.groups()
        return Literal(int(single or double, 16), 32 if single else 64)
    if found := re.fullmatch(r"(-?)(0[xX][0-9a-fA-F]+|0[bB][01]+|0[0-7]+|\d+)U?", text):
        sign, digits = found.groups()
        octal = re.fullmatch(r"0[0-7]+", digits)
        value = int(digits, 8) if octal else int(digits, 0)
        return Literal(-value if sign else value)
    return None


def _atom(text: str, scopes: _Scopes) -> Register | Symbol | Literal | None:
    text = text.strip()
    if text == "_":
        return None
    return scopes.find(text) or _literal(text) or Symbol(text)


def _operand(text: str, scopes: _Scopes) -> Operand:
    if text.startswith("["):
        base, offset = re.fullmatch(r"\[\s*([^\s+\]]+)\s*(?:\+\s*(-?\w+)\s*)?\]", text).groups()  # type: ignore[union-attr]
        atom = _atom(base, scopes)
        assert atom is not None
        return Address(atom, int(offset or "0", 0))
    if text.startswith("{"):
        return Group(tuple(_atom(t, scopes) for t in text.strip("{}").split(",")))
    if "|" in text:
        return Group(tuple(_atom(t, scopes) for t in text.split("|")))
    return _atom(text, scopes)


def _statements(body: str) -> list[str]:
    """Split at semicolons; braces that open or close a scope and labels stand alone."""
    found, rest = [], 0
    pattern = re.compile(r"\s*(?:([{}])|([$\w]+):(?!:)|((?:[^;{}]|\{[^{};]*\})+);)")
    while match := pattern.match(body, rest):
        brace, label, statement = match.groups()
        found.append(brace or (f"{label}:" if label else statement.strip()))
        rest = match.end()
    if body[rest:].strip():
        raise PtxError(f"cannot read '{body[rest:].strip()[:60]}'")
    return found


def _instruction(statement: str, scopes: _Scopes, location: str) -> Instruction:
    guard, negated, rest = None, False, statement
    if found := re.match(r"@(!?)(%?[\w$]+)\s+", statement):
        guard, negated, rest = scopes.find(found[2]), found[1] == "!", statement[found.end() :]
        if guard is None or guard.width != 1:
            raise PtxError(f"the guard of '{statement}' is no predicate register")
    name, _, operands = rest.replace("\t", " ").partition(" ")
    pieces = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", operands)
    return Instruction(
        tuple(name.split(".")),
        tuple(_operand(piece, scopes) for piece in pieces),
        guard,
        negated,
        " ".join(statement.split()),
        location,
    )


def _body(kernel: Kernel, body: str) -> None:
    scopes = _Scopes(kernel.register_widths)
    location = ""
    for statement in _statements(body):
        if statement == "{":
            scopes.names.append({})
        elif statement == "}":
            scopes.names.pop()
        elif statement.endswith(":"):
            kernel.labels[statement[:-1]] = len(kernel.instructions)
        elif statement.startswith(".reg"):
            scopes.declare(statement)
        elif statement.startswith(".loc "):
            location = statement.partition(" ")[2].strip()
        elif statement.startswith(".shared"):
            kernel.add_shared(statement)
        elif statement.startswith(".local"):
            raise PtxError(f"local memory (a stack) is not emulated: '{statement}'")
        elif not statement.startswith((".pragma", ".file")):
            kernel.instructions.append(_instruction(statement, scopes, location))


def _closing(text: str, start: int) -> int:
    """Return where the brace closes that opens at ``start``."""
    depth = 0
    for match in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if match.group() == "{" else -1
        if depth == 0:
            return match.start()
    raise PtxError("a brace is not closed")


def _plain(text: str) -> str:
    """Drop comments; a ``.loc`` line keeps the place in the source that its comment names."""
    text = re.sub(r"^\s*\.loc\b[^\n]*?//\s*(\S+)[^\n]*$", r".loc \1;", text, flags=re.M)
    text = re.sub(r"^\s*\.loc\s+(\d+) (\d+)[^\n;]*$", r".loc file \1, line \2;", text, flags=re.M)
    return re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.S)


def parse(text: str) -> dict[str, Kernel]:
    """Read the kernels of a PTX module.

    Parameters
    ----------
    text
        The module.

    Returns
    -------
    dict of str to Kernel
        By name, in the order of the text.

    Raises
    ------
    PtxError
        The text holds no kernel, or something that cannot be read.
    """
    text, kernels, end, outside = _plain(text), {}, 0, ""
    for match in re.finditer(r"\.entry\s+([\w$]+)\s*(?:\(([^)]*)\))?([^{;]*)\{", text):
        kernel = kernels[match[1]] = Kernel(match[1])
        for parameter in filter(None, (p.strip() for p in (match[2] or "").split(","))):
            kind, name = re.match(r"\.param\s+\.(\w+).*?([\w$]+)$", parameter, re.S).groups()  # type: ignore[union-attr]
            kernel.parameters[name] = kind
        if threads := re.search(r"\.(?:reqntid|maxntid)\s+(\d+)((?:\s*,\s*1)*)\s*$|$", match[3]):
            kernel.threads = int(threads[1] or 0)
        outside += text[end : match.start()]
        end = _closing(text, match.end() - 1)
        for statement in re.findall(r"(?:^|[\n;])[^\n;]*?(\.shared[^;]*);", outside):
            kernel.add_shared(statement)
        _body(kernel, text[match.end() : end])
    if not kernels:
        raise PtxError("the text holds no kernel (.entry)")
    return kernels
