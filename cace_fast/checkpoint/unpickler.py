"""An opcode loop that reads the pickles of model files and can do nothing else.

It knows the opcodes that ``torch.save`` and ``torch.jit.save`` write (pickle protocol 2), makes
plain data, tensors and inert records, and refuses everything else. Python's own ``pickle`` is not
used: its ``Unpickler`` calls what a file names, and its memo is an array that a nine-byte file can
make gigabytes large.

Source: specification of checkpoints, section 3; docs/user/security.md.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from typing import Any

from cace_fast.checkpoint.limits import STRING_BYTES, Budget, Refused, short
from cace_fast.checkpoint.rebuild import check_key, give_state, rules
from cace_fast.checkpoint.records import Global, Record, find_global, is_class
from cace_fast.checkpoint.structure import check_structure
from cace_fast.checkpoint.tensors import STORAGE_DTYPES, Storage, TensorReader

# Bytes charged, above what CPython needs. Containers include what `check_structure` remembers.
_COST_STEP = 64  # a slot of the stack; also bounds the number of steps to some millions
_COST_CONTAINER = 512
_COST_LIST_ITEM = 24
_COST_DICT_ITEM = 192  # hash tables double, and are copied while they do
_COST_MEMO = 192
_COST_RECORD = 640
_COST_NUMBER = 64

_STEPS_BETWEEN_CLOCKS = 256
_MAX_NAME_LINE = 512


class Unpickler:
    """Reads one pickle (``docs/user/security.md``).

    Parameters
    ----------
    data
        The pickle.
    read_storage
        Called with a storage key and the number of bytes expected; returns them or raises
        `Refused`.
    budget
        What reading may cost.
    """

    def __init__(
        self, data: bytes, read_storage: Callable[[str, int], bytes], budget: Budget
    ) -> None:
        self._data, self._budget = data, budget
        self._tensors = TensorReader(read_storage, budget)
        self._rules = rules(self._tensors)
        self._known = frozenset(self._rules) | {("torch", name) for name in STORAGE_DTYPES}
        self._memo: dict[int, Any] = {}
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self.position = 0  # of the opcode being read
        self.opcode = "PROTO"
        self._next = 0

    def load(self) -> Any:
        """Return the object that the pickle describes (``docs/user/security.md``).

        Raises
        ------
        Refused
            The pickle is damaged, asks for something a model file has no need of, or costs too
            much. `position` and `opcode` then say where.
        """
        if self._data[:2] != b"\x80\x02":
            raise Refused("this is not a pickle of protocol 2, the one that torch writes")
        self._next = 2
        budget, table, n_steps = self._budget, _OPCODES, 0
        while True:
            self.position = self._next
            code = self._take(1)
            found = table.get(code)
            if found is None:
                self.opcode = _name_of(code)
                raise Refused("no model file needs this instruction")
            self.opcode, action = found
            budget.charge(_COST_STEP)
            n_steps += 1
            if n_steps % _STEPS_BETWEEN_CLOCKS == 0:
                budget.check_time()
            if action is None:
                break
            action(self)
        if self._marks or len(self._stack) != 1:
            raise Refused("the pickle ends with unfinished objects")
        if self._next != len(self._data):
            raise Refused(f"{len(self._data) - self._next} bytes follow the end of the pickle")
        result = self._stack.pop()
        check_structure(result, budget)
        return result

    # -- bytes, stack and memo ---------------------------------------------------------------

    def _take(self, n: int) -> bytes:
        taken = self._data[self._next : self._next + n]
        if len(taken) != n:
            raise Refused("the pickle ends in the middle of an instruction")
        self._next += n
        return taken

    def _line(self) -> str:
        end = self._data.find(b"\n", self._next, self._next + _MAX_NAME_LINE)
        if end < 0:
            raise Refused("a name is not ended by a line break")
        line = self._take(end + 1 - self._next)[:-1]
        if not line.isascii():
            raise Refused("a name is not plain ASCII")
        return line.decode("ascii")

    def _pop(self) -> Any:
        if not self._stack:
            raise Refused("an instruction takes a value from an empty stack")
        return self._stack.pop()

    def _top(self, kind: type, purpose: str) -> Any:
        if not self._stack or not isinstance(self._stack[-1], kind):
            found = short(self._stack[-1]) if self._stack else "nothing"
            raise Refused(f"{purpose} needs a {kind.__name__} but finds {found}")
        return self._stack[-1]

    def _pop_to_mark(self) -> list[Any]:
        if not self._marks:
            raise Refused("an instruction looks for a mark that is not there")
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _put(self, index: int) -> None:
        if not self._stack:
            raise Refused("an instruction remembers a value from an empty stack")
        self._budget.charge(_COST_MEMO)
        self._memo[index] = self._stack[-1]

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise Refused(f"value number {index} is recalled but was never remembered")
        self._stack.append(self._memo[index])

    # -- instructions ------------------------------------------------------------------------

    def _number(self, n_bytes: int, form: str) -> None:
        self._budget.charge(_COST_NUMBER)
        self._stack.append(struct.unpack(form, self._take(n_bytes))[0])

    def _long1(self) -> None:
        raw = self._take(self._take(1)[0])
        self._budget.charge(_COST_NUMBER + 2 * len(raw))
        self._stack.append(int.from_bytes(raw, "little", signed=True))

    def _text(self) -> None:
        (n_bytes,) = struct.unpack("<I", self._take(4))
        if n_bytes > min(STRING_BYTES, len(self._data) - self._next):
            raise Refused(f"a text claims to be {n_bytes} bytes long")
        self._budget.charge(_COST_NUMBER + 4 * n_bytes)  # up to four bytes per character
        try:
            self._stack.append(self._take(n_bytes).decode("utf-8"))
        except UnicodeDecodeError:
            raise Refused("a text is not valid UTF-8") from None

    def _mark(self) -> None:
        self._budget.charge(_COST_CONTAINER)
        self._marks.append(self._stack)
        self._stack = []

    def _container(self, kind: type) -> None:
        self._budget.charge(_COST_CONTAINER)
        self._stack.append(kind())

    def _tuple_of(self, n: int) -> None:
        if len(self._stack) < n:
            raise Refused(f"a tuple of {n} finds only {len(self._stack)} values")
        self._push_tuple(self._stack[len(self._stack) - n :], n)

    def _tuple(self) -> None:
        self._push_tuple(self._pop_to_mark(), 0)

    def _push_tuple(self, items: list[Any], n_pop: int) -> None:
        self._budget.charge(_COST_CONTAINER + 8 * len(items))
        if n_pop:
            del self._stack[-n_pop:]
        self._stack.append(tuple(items))

    def _append(self) -> None:
        item = self._pop()
        self._extend([item])

    def _extend(self, items: list[Any]) -> None:
        self._budget.charge(_COST_LIST_ITEM * len(items))
        self._top(list, "appending").extend(items)

    def _set_item(self) -> None:
        value = self._pop()
        self._set_items([self._pop(), value])

    def _set_items(self, items: list[Any]) -> None:
        target = self._top(dict, "setting entries")
        if len(items) % 2:
            raise Refused("dictionary entries come as an odd number of values")
        self._budget.charge(_COST_DICT_ITEM * len(items) // 2)
        for i in range(0, len(items), 2):
            check_key(items[i])
            target[items[i]] = items[i + 1]
            if i % _STEPS_BETWEEN_CLOCKS == 0:  # colliding keys make each step slow
                self._budget.check_time()

    def _global(self) -> None:
        module = self._line()
        self._budget.charge(_COST_CONTAINER)
        self._stack.append(find_global(module, self._line(), self._known))

    def _new_object(self) -> None:
        args, cls = self._pop(), self._pop()
        if not (isinstance(cls, Global) and is_class(cls)):
            raise Refused(f"an object is made of {_describe(cls)}, which is no class of a model")
        if args != ():
            raise Refused(f"a {cls.path} is made with arguments, which torch never writes")
        self._budget.charge(_COST_RECORD)
        self._stack.append(Record(cls.module, cls.name))

    def _reduce(self) -> None:
        args, function = self._pop(), self._pop()
        if type(args) is not tuple:
            raise Refused(f"a call of {_describe(function)} has no argument tuple")
        if not isinstance(function, Global):
            raise Refused(f"the file calls {_describe(function)}; nothing is called")
        rule = self._rules.get((function.module, function.name))
        if rule is None:
            raise Refused(f"the file calls {function.path}; nothing is called")
        # a rule makes at most one object, of the size of its arguments
        self._budget.charge(_COST_RECORD + sum(_cost_of_copy(arg) for arg in args[:8]))
        self._stack.append(rule(args))

    def _build(self) -> None:
        state = self._pop()
        if not self._stack:
            raise Refused("a state is given to nothing")
        give_state(self._stack[-1], state)

    def _persistent_id(self) -> None:
        self._stack.append(self._tensors.storage(self._pop()))


def _cost_of_copy(value: object) -> int:
    if isinstance(value, list | str):
        return _COST_DICT_ITEM * len(value)
    return 0


def _describe(value: object) -> str:
    if isinstance(value, Global | Record):
        return value.path
    return "a storage" if isinstance(value, Storage) else short(value)


def _name_of(code: bytes) -> str:
    """Return Python's name of an opcode that this reader does not know."""
    for name in pickle.__all__:
        if name.isupper() and getattr(pickle, name) == code:
            return name
    return f"0x{code[0]:02x}"


_Action = Callable[[Unpickler], None]

_OPCODES: dict[bytes, tuple[str, _Action | None]] = {
    b".": ("STOP", None),
    b"N": ("NONE", lambda self: self._stack.append(None)),
    b"\x88": ("NEWTRUE", lambda self: self._stack.append(True)),
    b"\x89": ("NEWFALSE", lambda self: self._stack.append(False)),
    b"K": ("BININT1", lambda self: self._number(1, "<B")),
    b"M": ("BININT2", lambda self: self._number(2, "<H")),
    b"J": ("BININT", lambda self: self._number(4, "<i")),
    b"G": ("BINFLOAT", lambda self: self._number(8, ">d")),
    b"\x8a": ("LONG1", Unpickler._long1),
    b"X": ("BINUNICODE", Unpickler._text),
    b"(": ("MARK", Unpickler._mark),
    b"]": ("EMPTY_LIST", lambda self: self._container(list)),
    b"}": ("EMPTY_DICT", lambda self: self._container(dict)),
    b")": ("EMPTY_TUPLE", lambda self: self._push_tuple([], 0)),
    b"\x85": ("TUPLE1", lambda self: self._tuple_of(1)),
    b"\x86": ("TUPLE2", lambda self: self._tuple_of(2)),
    b"\x87": ("TUPLE3", lambda self: self._tuple_of(3)),
    b"t": ("TUPLE", Unpickler._tuple),
    b"a": ("APPEND", Unpickler._append),
    b"e": ("APPENDS", lambda self: self._extend(self._pop_to_mark())),
    b"s": ("SETITEM", Unpickler._set_item),
    b"u": ("SETITEMS", lambda self: self._set_items(self._pop_to_mark())),
    b"q": ("BINPUT", lambda self: self._put(self._take(1)[0])),
    b"r": ("LONG_BINPUT", lambda self: self._put(struct.unpack("<I", self._take(4))[0])),
    b"h": ("BINGET", lambda self: self._get(self._take(1)[0])),
    b"j": ("LONG_BINGET", lambda self: self._get(struct.unpack("<I", self._take(4))[0])),
    b"c": ("GLOBAL", Unpickler._global),
    b"\x81": ("NEWOBJ", Unpickler._new_object),
    b"R": ("REDUCE", Unpickler._reduce),
    b"b": ("BUILD", Unpickler._build),
    b"Q": ("BINPERSID", Unpickler._persistent_id),
}
