"""A pickled dictionary -> a dict of strings to strings or numbers; nothing in the file is executed.

An unpickler calls what the file names and, even where names are restricted, lets it set attributes,
nest keys until hashing them ends the process, and ask for memory by a number. So the standard
library only splits the file into its opcodes here; the few that such a dictionary needs are
followed below, all others are refused, and no name of the file is ever looked up or called.
"""

import dataclasses
import pathlib
import pickletools
import warnings
from collections.abc import Iterator

import numpy as np

MAX_BYTES = 2**26  # of a file; Geneformer's largest dictionary takes 4 MB
MAX_STACK = 10_000  # values waiting for their dict; picklers hand over 1,000 pairs at a time
POINTER = b"version https://git-lfs.github.com/spec/"  # first line of a Git LFS pointer
SCALAR = {("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar")}
DTYPE = {("numpy", "dtype")}
NUMBERS = {f"{kind}{size}" for kind in "iuf" for size in (1, 2, 4, 8)} - {"f1"}
PUSH_ARGUMENT = {"SHORT_BINUNICODE", "BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"} | {
    "BINFLOAT", "SHORT_BINBYTES", "BINBYTES"}
PUSH_CONSTANT = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
NO_ACTION = {"PROTO", "FRAME", "STOP"}
REMEDY = (
    "download it from the model's repository again, or write your own as a dict of str to int, "
    "float or str with pickle.dump(..., protocol=4)"
)


@dataclasses.dataclass
class _Dtype:
    """What stands for numpy.dtype(code) while a file is read; BUILD sets its byte order."""

    code: str
    order: str = "<"


class _Name:
    """What stands for one of the two functions that a file may name."""


_SCALAR, _DTYPE = _Name(), _Name()
_PLAIN = (str, int, float)
_IN_TUPLES = (str, int, bytes, bool, type(None), _Dtype)


def read_dict(path: pathlib.Path, kind: type) -> dict:
    """Reads a pickled dict, of protocol 2 or later.

    NumPy scalars of the fixed dtypes i1-i8, u1-u8, f2-f8 come back as the Python number that
    they hold, exactly.

    Args:
      path: the file.
      kind: what its values are: int, float or str.

    Raises:
      ValueError: unreadable, truncated, a Git LFS pointer, or anything but such a dict.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    try:
        if data.startswith(POINTER):
            raise ValueError("a Git LFS pointer, not the file itself: run git lfs pull there")
        if len(data) > MAX_BYTES:
            raise ValueError(f"longer than the {MAX_BYTES} bytes that a dictionary may have")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in texts, which are refused
            found = _follow(data)
        for key, value in found.items():
            if type(value) is not kind:
                raise ValueError(
                    f"its value of {key!r} is {value!r:.40}, no {kind.__name__}; is it another "
                    "of the dictionaries?"
                )
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {REMEDY}") from error
    return found


def _opcodes(data: bytes) -> Iterator[tuple[str, object, int]]:
    try:
        for opcode, argument, at in pickletools.genops(data):
            yield opcode.name, argument, at
    except ValueError as error:
        raise ValueError(f"truncated, damaged or no pickle ({error})") from error


def _follow(data: bytes) -> dict:
    """Follows the opcodes of a flat dict, each as the pickle protocol defines it."""
    stack, marks, memo = [], [], {}
    for name, argument, at in _opcodes(data):
        try:
            _step(name, argument, stack, marks, memo, len(data))
        except (IndexError, KeyError, TypeError) as error:
            raise ValueError(f"damaged: {name} at byte {at} has nothing to work on") from error
        except ValueError as error:
            raise ValueError(f"{error} ({name} at byte {at})") from error
        if len(stack) + len(marks) > MAX_STACK:
            raise ValueError(f"more than {MAX_STACK} values wait for their dict at byte {at}")
    if len(stack) != 1 or marks or type(stack[0]) is not dict:
        raise ValueError("it holds something else than one dict")
    return stack[0]


def _step(name: str, argument, stack: list, marks: list, memo: dict, size: int) -> None:
    if name in PUSH_ARGUMENT:
        stack.append(argument)
    elif name in PUSH_CONSTANT:
        stack.append(PUSH_CONSTANT[name])
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in ("BINPUT", "LONG_BINPUT"):
        if argument >= size:
            raise ValueError(f"it numbers its values up to {argument}, but has {size} bytes")
        memo[argument] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name == "EMPTY_DICT":
        stack.append({})
    elif name == "MARK":
        marks.append(len(stack))
    elif name in ("SETITEM", "SETITEMS"):
        items = _cut(stack, marks.pop() if name == "SETITEMS" else len(stack) - 2)
        _set_items(stack[-1], items)
    elif name in TUPLES or name == "TUPLE":
        start = marks.pop() if name == "TUPLE" else len(stack) - TUPLES[name]
        stack.append(_flat_tuple(_cut(stack, start)))
    elif name in ("GLOBAL", "STACK_GLOBAL"):
        named = argument.split(" ") if name == "GLOBAL" else _cut(stack, len(stack) - 2)
        stack.append(_stand_in(*named))
    elif name == "REDUCE":
        function, arguments = _cut(stack, len(stack) - 2)
        stack.append(_result(function, arguments))
    elif name == "BUILD":
        state = stack.pop()
        _set_order(stack[-1], state)
    elif name not in NO_ACTION:
        raise ValueError("it holds more than a dict of strings and numbers")


def _cut(stack: list, start: int) -> list:
    """Takes the values from `start` on off the stack."""
    if not 0 <= start <= len(stack):
        raise IndexError(start)
    taken = stack[start:]
    del stack[start:]
    return taken


def _set_items(target: object, items: list) -> None:
    if type(target) is not dict or len(items) % 2:
        raise ValueError("items are set on something that is no dict, or a key has no value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) is not str or type(value) not in _PLAIN:
            raise ValueError(
                f"{_shown(key)} -> {_shown(value)} is no string with a string or number"
            )
        target[key] = value


def _flat_tuple(values: list) -> tuple:
    if any(type(value) not in _IN_TUPLES for value in values):
        raise ValueError("it nests values in tuples")
    return tuple(values)


def _stand_in(module: str, name: str) -> _Name:
    if (module, name) in SCALAR:
        return _SCALAR
    if (module, name) in DTYPE:
        return _DTYPE
    raise ValueError(
        f"it wants to call {_shown(name)} of the module {_shown(module)}, which no dictionary "
        "needs and nothing here does; do not open it with other software"
    )


def _result(function: object, arguments: object) -> _Dtype | int | float:
    if function is _DTYPE and type(arguments) is tuple and arguments:
        if arguments[0] not in NUMBERS:
            raise ValueError(f"numpy.dtype({_shown(arguments[0])}) is no number of fixed size")
        return _Dtype(arguments[0])
    if function is _SCALAR and type(arguments) is tuple and len(arguments) == 2:
        kind, raw = arguments
        if type(kind) is _Dtype and type(raw) is bytes:
            dtype = np.dtype(kind.order + kind.code)
            if len(raw) == dtype.itemsize:
                return np.frombuffer(raw, dtype)[0].item()
    raise ValueError("it calls something else than numpy.dtype or a NumPy scalar's constructor")


def _set_order(target: object, state: object) -> None:
    plain = (None, None, None, -1, -1, 0)  # no subarray, no fields, no flags
    if type(target) is not _Dtype or type(state) is not tuple or len(state) != 8:
        raise ValueError("it sets the state of something else than a numpy.dtype")
    if state[0] != 3 or state[1] not in ("<", ">", "|") or state[2:] != plain:
        raise ValueError("its numpy.dtype has a state that no number of fixed size has")
    target.order = state[1]


def _shown(value: object) -> str:
    return f"{value!r:.40}" if type(value) in (*_PLAIN, bytes, bool, type(None)) else "an object"
