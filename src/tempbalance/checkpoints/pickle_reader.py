"""Read a pickle without building an object: no function is called with what a file says.

A pickle becomes dictionaries, lists, tuples, strings and numbers; the caller says what stands for a function call. The
loader of torch hashes and builds what it reads, so that a short file (a dictionary key of nested tuples) can make it
hang or crash, and it does not tell where in a file a tensor is. ``pickletools`` of Python describes the operations.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from tempbalance.errors import CheckpointError, CorruptFileError

__all__ = ["Global", "fill", "read_pickle"]

_MOST_DIGITS = 1024  # bytes of an integer
_KEYS = frozenset({str, int, float, bool, bytes, type(None)})


class Global(NamedTuple):
    """The name of a function or class; it is never imported."""

    name: str


def read_pickle(
    file: BinaryIO, size: int, most: int, *, name: Callable[[str], Global], call: Callable[[Any, Any], Any],
    load: Callable[[Any], Any],
) -> Any:  # fmt: skip
    """Return what one pickle holds; the file is at its beginning, and afterwards at its end.

    It may have ``most`` operations. ``name`` returns a function or class of a name, or raises if it is not allowed;
    ``call`` returns what a function would return for a tuple of arguments; ``load`` returns what a persistent id stands
    for.

    Raises:
        CheckpointError: It has more operations, or a dictionary with keys that are neither names nor numbers.
        CorruptFileError: It is damaged; some damage makes Python raise other errors.

    Example:
        >>> import io, pickle
        >>> data = pickle.dumps({"a": [1, 2.5, None]})
        >>> read_pickle(io.BytesIO(data), len(data), 100, name=Global, call=print, load=print)
        {'a': [1, 2.5, None]}
    """
    machine = _Machine(file, size, name, call, load)
    read, operations = file.read, _OPERATIONS
    for _ in range(most):
        code = read(1)
        if code == b".":
            return machine.stack.pop()
        run = operations.get(code)
        if run is None:
            raise CorruptFileError("it has an unknown operation, or ends too early")
        run(machine)
    raise CheckpointError(f"it has more than {most} values beside its weights")


def fill(target: Any, items: Sequence[Any]) -> Any:
    """Return a dictionary with keys and values added. Only names and numbers are hashed, and tuples of them.

    Raises:
        CheckpointError: A key is something else.
    """
    for key, value in zip(items[::2], items[1::2], strict=True):
        parts = key if type(key) is tuple else (key,)
        if any(isinstance(part, Global | dict) for part in parts):  # an object, such as a dtype, names no tensor
            continue
        if not _KEYS.issuperset(map(type, parts)):
            raise CheckpointError("it has a dictionary whose keys are neither names nor numbers")
        target[key] = value
    return target


@dataclass(slots=True)
class _Machine:
    """The stack of a pickle, and its operations."""

    file: BinaryIO
    size: int
    name: Callable[[str], Global]
    call: Callable[[Any, Any], Any]
    load: Callable[[Any], Any]
    stack: list[Any] = field(default_factory=list)
    marks: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def take(self, count: int) -> bytes:
        found = self.file.read(count) if count <= self.size else b""
        if len(found) != count:
            raise CorruptFileError("it ends too early")
        return found

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def integer(self, count: int) -> int:
        if count > _MOST_DIGITS:
            raise CorruptFileError(f"it has an integer of {count} bytes")
        return int.from_bytes(self.take(count), "little", signed=True)

    def decimal(self) -> int | bool:
        """Read an integer in digits, as Python 2 writes those of more than 32 bits, or a truth value."""
        line = self.line()
        return {"00": False, "01": True}[line] if line in {"00", "01"} else int(line)

    def text(self, count: int) -> str:
        return self.take(count).decode("utf-8", "surrogatepass")

    def line(self) -> str:
        return self.file.readline(self.size).rstrip(b"\n").decode()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        """Begin a group."""
        self.marks.append(self.stack)
        self.stack = []

    def group(self) -> list[Any]:
        """Remove and return the values of a group."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def last(self, count: int) -> tuple[Any, ...]:
        """Remove and return the last values."""
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        return items

    def extend(self, items: list[Any]) -> None:
        """Add items to the list that is the last value; other objects stay as they are."""
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def fill(self, items: Sequence[Any]) -> None:
        """Add keys and values to the dictionary that is the last value."""
        fill(self.stack[-1], items)


_OPERATIONS: dict[bytes, Callable[[_Machine], object]] = {
    b"\x80": lambda m: m.take(1),  # version
    b"\x95": lambda m: m.take(8),  # length of a frame
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"J": lambda m: m.push(m.number("<i")),
    b"I": lambda m: m.push(m.decimal()),
    b"G": lambda m: m.push(m.number(">d")),
    b"\x8a": lambda m: m.push(m.integer(m.number("<B"))),
    b"\x8b": lambda m: m.push(m.integer(m.number("<I"))),
    b"X": lambda m: m.push(m.text(m.number("<I"))),
    b"\x8c": lambda m: m.push(m.text(m.number("<B"))),
    b"\x8d": lambda m: m.push(m.text(m.number("<Q"))),
    b"U": lambda m: m.push(m.text(m.number("<B"))),  # a string of Python 2
    b"T": lambda m: m.push(m.text(m.number("<I"))),
    b"C": lambda m: m.push(m.take(m.number("<B"))),
    b"B": lambda m: m.push(m.take(m.number("<I"))),
    b"\x8e": lambda m: m.push(m.take(m.number("<Q"))),
    b"\x96": lambda m: m.push(m.take(m.number("<Q"))),
    b")": lambda m: m.push(()),
    b"\x85": lambda m: m.push(m.last(1)),
    b"\x86": lambda m: m.push(m.last(2)),
    b"\x87": lambda m: m.push(m.last(3)),
    b"(": _Machine.mark,
    b"t": lambda m: m.push(tuple(m.group())),
    b"]": lambda m: m.push([]),
    b"l": lambda m: m.push(m.group()),
    b"a": lambda m: m.extend([m.stack.pop()]),
    b"e": lambda m: m.extend(m.group()),
    b"\x8f": lambda m: m.push([]),  # a set: its items are not hashed
    b"\x90": lambda m: m.extend(m.group()),
    b"\x91": lambda m: m.push(m.group()),
    b"}": lambda m: m.push({}),
    b"d": lambda m: m.push(fill({}, m.group())),
    b"s": lambda m: m.fill(m.last(2)),
    b"u": lambda m: m.fill(m.group()),
    b"0": lambda m: m.stack.pop(),
    b"1": _Machine.group,
    b"2": lambda m: m.push(m.stack[-1]),
    b"q": lambda m: m.memo.__setitem__(m.number("<B"), m.stack[-1]),
    b"r": lambda m: m.memo.__setitem__(m.number("<I"), m.stack[-1]),
    b"\x94": lambda m: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    b"h": lambda m: m.push(m.memo[m.number("<B")]),
    b"j": lambda m: m.push(m.memo[m.number("<I")]),
    b"c": lambda m: m.push(m.name(f"{m.line()}.{m.line()}")),
    b"\x93": lambda m: m.push(m.name(".".join(m.last(2)))),
    b"R": lambda m: m.push(m.call(*m.last(2))),
    b"\x81": lambda m: m.push(m.call(*m.last(2))),  # the same for a class
    b"b": lambda m: m.stack.pop(),  # the state of an object
    b"Q": lambda m: m.push(m.load(m.stack.pop())),
}
