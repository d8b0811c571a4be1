"""What REDUCE and BUILD may do: a closed table of rules, none of which calls into the file.

Source: specification of checkpoints, sections 3 and 10.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from cace_fast.checkpoint.limits import Refused, short
from cace_fast.checkpoint.records import Attribute, Global, Record
from cace_fast.checkpoint.tensors import TensorReader

_KEY_LEAVES = 64
_SCALARS = (str, int, float, type(None))
# numpy's kinds with their sizes, and the formats of struct
_NUMPY_FORMATS = {
    "b1": "?",
    "i1": "b",
    "u1": "B",
    "i2": "h",
    "u2": "H",
    "i4": "i",
    "u4": "I",
    "i8": "q",
    "u8": "Q",
    "f4": "f",
    "f8": "d",
}

Rule = Callable[[tuple[Any, ...]], Any]


def check_key(key: object) -> None:
    """Refuse a dictionary key or set element that could be slow to hash.

    Tuples hash recursively and without a cache, so deep or much-shared ones would exhaust the
    C stack or the clock (``docs/user/security.md``).

    Raises
    ------
    Refused
        If the key is a tuple of more than 64 parts, or holds something else than texts and numbers.
    """
    leaves, todo = 0, [(key, 0)]
    while todo:
        item, depth = todo.pop()
        leaves += 1
        if leaves > _KEY_LEAVES or depth > 3:
            raise Refused("a dictionary key is a tuple of too many parts")
        if type(item) is tuple:
            if len(item) > _KEY_LEAVES:
                raise Refused("a dictionary key is a tuple of too many parts")
            todo += [(part, depth + 1) for part in item]
        elif not isinstance(item, _SCALARS):
            raise Refused(f"{short(item)} stands where a dictionary key belongs")


def rules(tensors: TensorReader) -> dict[tuple[str, str], Rule]:
    """Return the function for every global that REDUCE may meet.

    See ``docs/developer/file_reader.md``.

    Each raises `Refused` for arguments of other kinds than torch writes.
    """
    table: dict[tuple[str, str], Rule] = {
        ("collections", "OrderedDict"): _ordered_dict,
        ("collections", "Counter"): lambda args: _one(args, dict),
        ("torch", "device"): lambda args: Record("torch", "device", args),
        ("torch", "Size"): lambda args: _one(args, tuple),
        ("torch._utils", "_rebuild_tensor_v2"): tensors.tensor,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch.jit._pickle", "restore_type_tag"): _typed,
        ("numpy", "dtype"): lambda args: Record("numpy", "dtype", args),
        ("_codecs", "encode"): _bytes,
    }
    for builtins in ("__builtin__", "builtins"):
        table[builtins, "set"] = _set
        table[builtins, "getattr"] = _attribute
    for numpy in ("numpy.core.multiarray", "numpy._core.multiarray"):
        table[numpy, "scalar"] = _numpy_scalar
    for kind in ("int", "double", "bool", "tensor"):
        table["torch.jit._pickle", f"build_{kind}list"] = lambda args: _one(args, list)
    return table


def give_state(target: object, state: object) -> None:
    """Give a record its state as BUILD asks, without calling ``__setstate__``.

    See ``docs/developer/file_reader.md``.

    Raises
    ------
    Refused
        If the target takes no state, has one, or the state is of a wrong kind.
    """
    if isinstance(target, OrderedDict):
        return  # torch attaches version numbers to state dicts; they have no meaning here
    if not isinstance(target, Record):
        raise Refused(f"the file gives a state to {short(target)}, which has none")
    if target.state is not None:
        raise Refused(f"the file gives the state of {target.path} twice")
    if target.path == "numpy.dtype":
        if type(state) is not tuple:
            raise Refused("the state of a numpy dtype is not a tuple")
    elif type(state) is not dict or not all(type(key) is str for key in state):
        raise Refused(f"the state of {target.path} is not a dictionary of named attributes")
    target.state = state


def _one(args: tuple[Any, ...], kind: type) -> Any:
    if len(args) == 1 and type(args[0]) is kind:
        return args[0]
    raise Refused(f"expected one {kind.__name__} as the only argument")


def _ordered_dict(args: tuple[Any, ...]) -> OrderedDict[Any, Any]:
    if args:
        raise Refused("an OrderedDict is made with arguments, which torch never writes")
    return OrderedDict()


def _set(args: tuple[Any, ...]) -> set[Any]:
    items = _one(args, list)
    for item in items:
        check_key(item)
    return set(items)


def _attribute(args: tuple[Any, ...]) -> Attribute:
    match args:
        case (Record() | Global() as owner, str(name)) if name.isidentifier() and len(name) < 100:
            return Attribute(Global(owner.module, owner.name), name)
    raise Refused("getattr is asked of something that is no upstream object")


def _parameter(args: tuple[Any, ...]) -> torch.nn.Parameter:
    match args:
        case (torch.Tensor() as data, bool(trainable), _):
            floating = data.is_floating_point()
            return torch.nn.Parameter(data, requires_grad=trainable and floating)
    raise Refused("a parameter is not made of a tensor, a truth value and hooks")


def _typed(args: tuple[Any, ...]) -> Any:
    match args:
        case (value, str()):
            return value
    raise Refused("a type tag does not come with one value and one type")


def _bytes(args: tuple[Any, ...]) -> bytes:
    match args:
        case (str(text), "latin1" | "latin-1"):
            try:
                return text.encode("latin-1")
            except UnicodeEncodeError:
                raise Refused("bytes are written as text that is not latin-1") from None
    raise Refused("bytes are not written as latin-1 text")


def _numpy_scalar(args: tuple[Any, ...]) -> bool | int | float:
    match args:
        case (Record("numpy", "dtype", (str(code), *_), state), bytes(raw)):
            form = _NUMPY_FORMATS.get(code)
            order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
            if form is None or order not in ("<", "|"):
                raise Refused(f"a numpy number of type {short(code)}, byte order {short(order)}")
            if len(raw) != struct.calcsize(f"<{form}"):
                raise Refused(f"a numpy number of type {code} has {len(raw)} bytes")
            if form == "?":
                return raw != b"\0"
            number: int | float = struct.unpack(f"<{form}", raw)[0]
            return number
    raise Refused("a numpy number is not made of a dtype and bytes")
