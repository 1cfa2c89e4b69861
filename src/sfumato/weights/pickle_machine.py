"""A pickle interpreter that can build tensors' descriptions and plain containers, and cannot run anything.

A pickle is a program for a small stack machine (documented in CPython's `pickletools`). This one imports nothing and
calls nothing: a name in the pickle is compared with the short list `ALLOWED`, and what stands for a call there is a
function of this file that checks its arguments and returns plain data. Every other name, and every opcode that makes
objects in another way, is `UnsafeCheckpoint`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from sfumato.errors import CheckpointError, UnsafeCheckpoint
from sfumato.weights.pickle_values import (
    KINDS,
    MAX_SIZE,
    STORAGES,
    Inert,
    Name,
    StorageRef,
    TensorRef,
    describe,
    view_problem,
)

# One opcode makes at most about a hundred bytes of Python objects, text grows at most fourfold: together within 64 MB.
MAX_PICKLE_BYTES = 8 * 2**20
MAX_OPCODES = 300_000  # Stable Diffusion v1 with EMA and optimiser states needs about 200,000
MAX_INTEGER_BYTES = 16
MAX_LINE = 1024  # names and numbers in the textual opcodes
MAX_KEY = 512

_INERT = Inert()


class _Mark:
    """What MARK leaves on the stack."""


_MARK = _Mark()


class PickleMachine:
    """Runs the pickle at byte `start` of `data`; `path` is only for messages. After `run`, `position` is behind it.

    `storages` collects every storage the pickle mentions, by key; `left` counts the instructions it may still use.
    """

    def __init__(self, data: bytes, *, path: Path, start: int = 0, limit: int = MAX_OPCODES) -> None:
        self.storages: dict[str, StorageRef] = {}
        self.position = start
        self.left = limit
        self._data = data
        self.path = path
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The pickled object. Raises `UnsafeCheckpoint` (naming what it asked for) or `CheckpointError` (damaged)."""
        while (opcode := self._take(1)) != b".":
            self.left -= 1
            if self.left < 0:
                raise self.unsafe(f"its pickle has more than {MAX_OPCODES} instructions")
            try:
                handler = _OPCODES[opcode]
            except KeyError:
                what = _REFUSED.get(opcode, f"holds the unknown instruction 0x{opcode.hex()}")
                raise self.unsafe(f"its pickle {what}") from None
            handler(self)
        if len(self._stack) != 1:
            raise self.damaged(f"its pickle ends with {len(self._stack)} objects instead of one")
        return self._pop()

    def unsafe(self, reason: str) -> UnsafeCheckpoint:
        return UnsafeCheckpoint(f"{self.path}: refused, nothing of it was run: {reason}")

    def damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: damaged: {reason} (at byte {self.position})")

    # -- reading the program

    def _take(self, count: int) -> bytes:
        taken = self._data[self.position : self.position + count]
        if len(taken) != count:
            raise self.damaged("its pickle is cut off")
        self.position += count
        return taken

    def _line(self) -> str:
        stop = self._data.find(b"\n", self.position, self.position + MAX_LINE)
        if stop < 0:
            raise self.damaged(f"its pickle has a line without an end within {MAX_LINE} bytes")
        line = self._data[self.position : stop]
        self.position = stop + 1
        return self._text(line)

    def _text(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.damaged("its pickle has text that is not UTF-8") from None

    def _unsigned(self, width: int) -> int:
        return int.from_bytes(self._take(width), "little")

    def _decimal(self, text: str) -> int:
        try:
            if len(text) > 40:
                raise ValueError("too long")
            return int(text, 10)
        except ValueError:
            raise self.damaged(f"its pickle has {text[:40]!r} where a number must be") from None

    # -- the stack

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise self.damaged("its pickle takes from an empty stack")
        return self._stack.pop()

    def _top(self) -> Any:
        value = self._pop()
        self._stack.append(value)
        return value

    def _pop_to_mark(self) -> list[Any]:
        stack = self._stack
        for index in range(len(stack) - 1, -1, -1):
            if stack[index] is _MARK:
                values = stack[index + 1 :]
                del stack[index:]
                return values
        raise self.damaged("its pickle has no mark where one is needed")

    def _discard(self) -> None:
        if not self._stack:
            raise self.damaged("its pickle takes from an empty stack")
        self._stack.pop()  # unlike elsewhere, this may be a mark

    def _discard_to_mark(self) -> None:
        self._pop_to_mark()

    # -- opcodes that make plain data

    def _proto(self) -> None:
        version = self._unsigned(1)
        if version > 5:
            raise self.damaged(f"its pickle is of protocol {version}; 0 to 5 are known")

    def _frame(self) -> None:
        self._take(8)  # frames only help readers that buffer

    def _long(self, width: int) -> None:
        size = self._unsigned(width)
        if size > MAX_INTEGER_BYTES:
            raise self.unsafe(f"its pickle has an integer of {size} bytes")
        self._push(int.from_bytes(self._take(size), "little", signed=True))

    def _long_line(self) -> None:
        self._push(self._decimal(self._line().removesuffix("L")))

    def _int_line(self) -> None:
        line = self._line()
        self._push({"00": False, "01": True}.get(line) if line in ("00", "01") else self._decimal(line))

    def _float_line(self) -> None:
        line = self._line()
        try:
            self._push(float(line))
        except ValueError:
            raise self.damaged(f"its pickle has {line[:40]!r} where a number must be") from None

    def _float(self) -> None:
        self._push(struct.unpack(">d", self._take(8))[0])

    def _unicode(self, width: int) -> None:
        self._push(self._text(self._take(self._unsigned(width))))

    def _unicode_line(self) -> None:
        self._push(self._line())

    def _bytes(self, width: int) -> None:
        self._take(self._unsigned(width))
        self._push(_INERT)  # nothing we build is made of bytes

    def _string_line(self) -> None:
        line = self._line()
        if len(line) < 2 or line[0] != line[-1] or line[0] not in "'\"" or "\\" in line:
            raise self.damaged("its pickle has a badly quoted string")
        self._push(line[1:-1])

    def _tuple(self, count: int) -> None:
        self._push(tuple(reversed([self._pop() for _ in range(count)])))

    def _tuple_to_mark(self) -> None:
        self._push(tuple(self._pop_to_mark()))

    def _list_to_mark(self) -> None:
        self._push(self._pop_to_mark())

    def _dict_to_mark(self) -> None:
        values = self._pop_to_mark()
        self._push({})
        self._set_items(values)

    # -- opcodes that fill containers

    def _append(self) -> None:
        value = self._pop()
        self._target(list).append(value)

    def _appends(self) -> None:
        values = self._pop_to_mark()
        self._target(list).extend(values)

    def _setitem(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _setitems(self) -> None:
        self._set_items(self._pop_to_mark())

    def _set_items(self, values: list[Any]) -> None:
        target = self._target(dict)
        if len(values) % 2:
            raise self.damaged("its pickle sets a key without a value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # Only keys whose hash is cheap: hashing a deeply nested tuple would overflow the C stack.
            if not isinstance(key, (str, int, float, Name, type(None))) or (
                isinstance(key, str) and len(key) > MAX_KEY
            ):
                raise self.unsafe(f"a dictionary key is {describe(key)}")
            target[key] = value

    def _target(self, kind: type) -> Any:
        target = self._top()
        if type(target) is not kind:
            raise self.unsafe(f"its pickle fills {describe(target)} as if it were {KINDS[kind]}")
        return target

    # -- the memo

    def _put(self, index: int) -> None:
        self._memo[index] = self._top()

    def _memoize(self) -> None:
        self._memo[len(self._memo)] = self._top()

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise self.damaged(f"its pickle refers to object {index}, which it never made")
        self._push(self._memo[index])

    # -- names, and what stands for calls

    def _global_line(self) -> None:
        module = self._line()
        self._push(self._allowed(module, self._line()))

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise self.unsafe(f"it asks for a global by {describe(module)} and {describe(name)} instead of a name")
        self._push(self._allowed(module, name))

    def _allowed(self, module: str, name: str) -> Name:
        allowed = Name(module, name)
        if allowed not in ALLOWED:
            shown = f"{module[:80]}.{name[:80]}"
            shown = shown if shown.isprintable() else ascii(shown)  # it may try to write to the user's terminal
            raise self.unsafe(f"it asks for {shown}, which a file of tensors has no use for")
        return allowed

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        call = ALLOWED.get(function) if isinstance(function, Name) else None
        if call is None or not isinstance(arguments, tuple):
            raise self.unsafe(f"it calls {describe(function)} with {describe(arguments)}")
        self._push(call(self, arguments))

    def _build(self) -> None:
        """Attributes of an OrderedDict (`_metadata` of a state dict) and of a NumPy dtype: not needed, dropped."""
        self._pop()
        target = self._top()
        if not isinstance(target, (dict, Inert)):
            raise self.unsafe(f"it sets attributes of {describe(target)}")

    def _persistent(self) -> None:
        match self._pop():
            case ("storage", Name() as kind, str() as key, str(), int() as numel, *rest) if rest in ([], [None]):
                dtype = STORAGES.get(kind.name) if kind.module == "torch" else None
                if dtype is None:
                    raise self.unsafe(f"storage {key[:40]!r} is of the kind {kind}")
                if not key or len(key) > 64 or not 0 <= numel <= MAX_SIZE:
                    raise self.unsafe(f"storage {key[:40]!r} claims {numel} elements")
                storage = StorageRef(key, dtype, numel)
                if self.storages.setdefault(key, storage) != storage:
                    raise self.unsafe(f"storage {key!r} is described in two ways that disagree")
                self._push(storage)
            case other:
                raise self.unsafe(f"its pickle refers to something outside it by {describe(other)}, not to a storage")

    def _rebuild_tensor(self, arguments: tuple[Any, ...]) -> TensorRef:
        """torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata])."""
        match arguments:
            case (StorageRef() as storage, int() as offset, tuple() as shape, tuple() as strides, *rest) if (
                len(rest) <= 3
            ):
                if problem := view_problem(storage, offset, shape, strides):
                    raise self.unsafe(f"a tensor {problem}")
                return TensorRef(storage, offset, shape, strides)
        raise self.unsafe(f"it rebuilds a tensor from {', '.join(describe(value) for value in arguments[:4])}")

    def _rebuild_parameter(self, arguments: tuple[Any, ...]) -> TensorRef:
        """torch._utils._rebuild_parameter(data, requires_grad, hooks)."""
        match arguments:
            case (TensorRef() as tensor, _, _):
                return tensor
        raise self.unsafe(f"it rebuilds a parameter from {', '.join(describe(value) for value in arguments[:3])}")

    def _empty_dict(self, arguments: tuple[Any, ...]) -> dict[Any, Any]:
        if arguments:
            raise self.unsafe("it makes an OrderedDict from arguments")
        return {}

    def _nothing_of(self, _: tuple[Any, ...]) -> Inert:
        return _INERT


Call = Callable[[PickleMachine, tuple[Any, ...]], Any]

_SCALARS = (
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),  # how protocol 2 spells the bytes of a NumPy scalar
    ("torch", "Size"),
)

ALLOWED: Final[dict[Name, Call | None]] = {
    Name("collections", "OrderedDict"): PickleMachine._empty_dict,
    Name("torch._utils", "_rebuild_tensor_v2"): PickleMachine._rebuild_tensor,
    Name("torch._utils", "_rebuild_tensor"): PickleMachine._rebuild_tensor,
    Name("torch._utils", "_rebuild_parameter"): PickleMachine._rebuild_parameter,
    **{Name("torch", kind): None for kind in STORAGES},
    # Numbers beside the weights (step, best score) in files PyTorch Lightning wrote: data we drop.
    **{Name(module, name): PickleMachine._nothing_of for module, name in _SCALARS},
    # The published v1 files have this class itself as a key under "callbacks". It is never made or looked into.
    Name("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"): None,
}
"""Every global a pickle may mention. None: may be mentioned, not called."""


_M = PickleMachine
_OPCODES: Final[dict[bytes, Callable[[PickleMachine], None]]] = {
    b"\x80": _M._proto,
    b"\x95": _M._frame,
    b"(": lambda m: m._push(_MARK),
    b"0": _M._discard,
    b"1": _M._discard_to_mark,
    b"2": lambda m: m._push(m._top()),
    b"N": lambda m: m._push(None),
    b"\x88": lambda m: m._push(True),
    b"\x89": lambda m: m._push(False),
    b"I": _M._int_line,
    b"L": _M._long_line,
    b"J": lambda m: m._push(int.from_bytes(m._take(4), "little", signed=True)),
    b"K": lambda m: m._push(m._unsigned(1)),
    b"M": lambda m: m._push(m._unsigned(2)),
    b"\x8a": lambda m: m._long(1),
    b"\x8b": lambda m: m._long(4),
    b"F": _M._float_line,
    b"G": _M._float,
    b"S": _M._string_line,
    b"V": _M._unicode_line,
    b"X": lambda m: m._unicode(4),
    b"\x8c": lambda m: m._unicode(1),
    b"\x8d": lambda m: m._unicode(8),
    b"T": lambda m: m._bytes(4),
    b"U": lambda m: m._bytes(1),
    b"B": lambda m: m._bytes(4),
    b"C": lambda m: m._bytes(1),
    b"\x8e": lambda m: m._bytes(8),
    b")": lambda m: m._tuple(0),
    b"\x85": lambda m: m._tuple(1),
    b"\x86": lambda m: m._tuple(2),
    b"\x87": lambda m: m._tuple(3),
    b"t": _M._tuple_to_mark,
    b"]": lambda m: m._push([]),
    b"l": _M._list_to_mark,
    b"}": lambda m: m._push({}),
    b"d": _M._dict_to_mark,
    b"a": _M._append,
    b"e": _M._appends,
    b"s": _M._setitem,
    b"u": _M._setitems,
    b"p": lambda m: m._put(m._decimal(m._line())),
    b"q": lambda m: m._put(m._unsigned(1)),
    b"r": lambda m: m._put(m._unsigned(4)),
    b"\x94": _M._memoize,
    b"g": lambda m: m._get(m._decimal(m._line())),
    b"h": lambda m: m._get(m._unsigned(1)),
    b"j": lambda m: m._get(m._unsigned(4)),
    b"c": _M._global_line,
    b"\x93": _M._stack_global,
    b"R": _M._reduce,
    b"b": _M._build,
    b"Q": _M._persistent,
}

_REFUSED: Final[dict[bytes, str]] = {
    b"i": "makes an object of a class (INST)",
    b"o": "makes an object of a class (OBJ)",
    b"\x81": "makes an object of a class (NEWOBJ)",
    b"\x92": "makes an object of a class (NEWOBJ_EX)",
    b"\x82": "asks for a registered extension (EXT1)",
    b"\x83": "asks for a registered extension (EXT2)",
    b"\x84": "asks for a registered extension (EXT4)",
    b"P": "refers to something outside it by text (PERSID)",
    b"\x8f": "makes a set",
    b"\x90": "fills a set",
    b"\x91": "makes a frozen set",
    b"\x96": "makes a bytearray",
    b"\x97": "asks for a buffer outside it",
    b"\x98": "asks for a buffer outside it",
}
