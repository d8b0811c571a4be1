"""Inert stand-ins for what a pickle names: they remember a name and never act on it.

Source: specification of checkpoints, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cace_fast.checkpoint.limits import Refused, short

_MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that the file names; nothing is imported.

    See ``docs/developer/file_reader.md``.

    Attributes
    ----------
    module, name
        As written in the file, e.g. ``torch.nn.functional`` and ``silu``.
    """

    module: str
    name: str

    @property
    def path(self) -> str:
        """Dotted name (``docs/developer/file_reader.md``)."""
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True)
class Attribute:
    """A ``getattr`` that the file asks for; recorded, never performed.

    See ``docs/developer/file_reader.md``.

    Attributes
    ----------
    owner
        Class of the object whose attribute is asked for. The object itself is not kept: upstream's
        files ask for an attribute of the very object that holds the result.
    name
        Name of the attribute.
    """

    owner: Global
    name: str


@dataclass(slots=True, eq=False)
class Record:
    """An object of a known class: its name, constructor arguments and state, and no behaviour.

    See ``docs/developer/file_reader.md``.

    Attributes
    ----------
    module, name
        Module and name of the class, as written in the file.
    args
        Arguments the file gives at creation (``torch.device`` and ``numpy.dtype`` have some).
    state
        What the file would put into the object's ``__dict__``; None until the file gives it.
    """

    module: str
    name: str
    args: tuple[Any, ...] = ()
    state: Any = None

    @property
    def path(self) -> str:
        """Dotted name of the class (``docs/developer/file_reader.md``)."""
        return f"{self.module}.{self.name}"

    def __repr__(self) -> str:
        """Return the class name; a generated repr would walk the whole file."""
        return f"<record of {self.path}>"


_CLASSES = {
    "torch.nn.modules.container": {"ModuleList", "ModuleDict", "ParameterList", "Sequential"},
    "torch.nn.modules.linear": {"Linear", "Identity"},
    "torch.nn.modules.batchnorm": {"BatchNorm1d"},
}
# Every name below these may become a record: records are inert, and the classes that cace-fast
# cannot run are refused by name when the model is built.
_CLASS_PREFIXES = ("cace.", "les.", "__torch__.", "torch.nn.modules.activation.")
_FUNCTION_MODULES = {"torch.nn.functional", "torch._C._nn"}
_DTYPES = {"float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64"}
_NAMES = {
    ("torch._C", "_VariableFunctionsClass"),
    *(("torch", dtype) for dtype in (*_DTYPES, "uint8", "bool")),
}


def _is_dotted_name(text: str) -> bool:
    return len(text) <= _MAX_NAME and all(
        part.isidentifier() and part.isascii() for part in text.split(".")
    )


def find_global(module: str, name: str, known: frozenset[tuple[str, str]]) -> Global:
    """Return the inert stand-in of a class or function, if the file may name it.

    See ``docs/developer/file_reader.md``.

    Parameters
    ----------
    module, name
        As written in the file.
    known
        Further pairs that are allowed, for which the reader has a rule of its own.

    Raises
    ------
    Refused
        The name is malformed or not one that a model file needs.
    """
    if not (_is_dotted_name(module) and _is_dotted_name(name)):
        raise Refused(f"the file names {short(module)} {short(name)}, which is not a Python name")
    found = Global(module, name)
    if (module, name) in known or (module, name) in _NAMES or is_class(found):
        return found
    if module in _FUNCTION_MODULES and "." not in name:
        return found
    raise Refused(
        f"the file names {found.path}, which is not part of a CACE model; "
        "cace-fast neither imports nor calls it"
    )


def is_class(found: Global) -> bool:
    """Tell whether objects of this name become records (``docs/developer/file_reader.md``)."""
    if "." in found.name:
        return False
    return found.name in _CLASSES.get(found.module, ()) or f"{found.module}.".startswith(
        _CLASS_PREFIXES
    )
