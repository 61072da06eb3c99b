"""Pickled dictionaries: what is read, and that nothing else is, nor executed."""

import builtins
import io
import os
import pickle
import pickletools
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.corpus import plain_pickle
from scaling.corpus.plain_pickle import read_dict

NUMBERS = sorted(plain_pickle.NUMBERS)
START, STOP = b"\x80\x04", b"."
EMPTY_DICT, MARK, SETITEMS, MEMO, REDUCE, BUILD = b"}", b"(", b"u", b"\x94", b"R", b"b"


def _text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def _named(module: str, name: str) -> bytes:
    return _text(module) + _text(name) + b"\x93"


def _one_value(value: bytes) -> bytes:
    """A pickle of {"a": what these opcodes leave}."""
    return START + EMPTY_DICT + MARK + _text("a") + value + SETITEMS + STOP


class _Calls:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class _Outer:
    class Inner:
        pass


@pytest.fixture
def file(tmp_path):
    def write(content) -> str:
        path = tmp_path / "token_dictionary.pkl"
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, 4))
        return path

    return write


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "content",
    [
        {},
        {"<pad>": 0, "ENSG1": -5, "c": 2**15, "d": 2**31 - 1, "e": -(2**70)},
        {"a": 0.1, "b": float("inf"), "c": -0.0},
        {"a": "ENSG1", "ENSG1": "ENSG1", "ß\ud7ff": "x" * 300, "": ""},
        {f"gene {k}": k for k in range(3_000)},
    ],
)
def test_plain_dicts_come_back(file, protocol, content):
    kind = type(next(iter(content.values()), 0))
    found = read_dict(file(pickle.dumps(content, protocol)), kind)
    assert list(found.items()) == list(content.items())
    assert all(type(value) is kind for value in found.values())


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("code", NUMBERS)
def test_numpy_scalars_come_back_as_the_number_they_hold(file, code, order, protocol):
    values = np.array([1, 0, 100, 7 if "u" in code else -7], order + code)
    if "f" in code:
        values = (values / 3).astype(order + code)
    content = {f"g{k}": value for k, value in enumerate(values)}
    found = read_dict(file(pickle.dumps(content, protocol)), float if "f" in code else int)
    assert list(found.values()) == values.tolist()


def test_both_names_of_the_scalar_constructor(file):
    content = pickle.dumps({"a": np.float64(0.1)}, 3)
    new = b"numpy._core.multiarray"
    assert new in content
    for name in (new, b"numpy.core.multiarray"):
        assert read_dict(file(content.replace(new, name)), float) == {"a": 0.1}


def test_the_real_dictionaries_as_python_reads_them(real_data):
    class Trusting(pickle.Unpickler):
        def find_class(self, module, name):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)

    paths = sorted(real_data.glob("geneformer_v*/*.pkl"))
    assert len(paths) == 7
    for path in paths:
        expected = Trusting(io.BytesIO(path.read_bytes())).load()
        kind = int if "token" in path.name else float if "median" in path.name else str
        assert read_dict(path, kind) == expected
        assert list(expected) == list(read_dict(path, kind))


def _deep_key(depth: int) -> bytes:
    return START + EMPTY_DICT + MARK + b"N" + b"\x85" * depth + _text("v") + SETITEMS + STOP


_SCALAR = _named("numpy.core.multiarray", "scalar")
_DTYPE = _named("numpy", "dtype")
_F8 = _DTYPE + _text("f8") + b"\x89\x88\x87" + REDUCE
_STATE = b"(K\x03" + _text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
_BYTES = b"C\x08" + struct.pack("<d", 0.5)
_GOOD = _one_value(_SCALAR + _F8 + _STATE + BUILD + _BYTES + b"\x86" + REDUCE)

ATTACKS = {
    "os.system": (pickle.dumps({"a": _Calls(os.system, "touch executed")}, 4), "'system'.*'posix'"),
    "os.system of protocol 0": (b"cposix\nsystem\n(S'touch executed'\ntR.", "'system'.*'posix'"),
    "eval": (pickle.dumps({"a": _Calls(eval, "1")}, 4), "'eval' of the module 'builtins'"),
    "getattr": (pickle.dumps({"a": _Calls(getattr, "", "join")}, 4), "'getattr' of the module"),
    "nested class": (pickle.dumps({"a": _Outer.Inner}, 4), r"'_Outer\.Inner' of the module"),
    "dotted name": (_one_value(_named("numpy", "dtype.type.mro")), r"'dtype\.type\.mro' of"),
    "numpy's load": (_one_value(_named("numpy", "load")), "'load' of the module 'numpy'"),
    "unused name": (START + _named("os", "system") + b"0" + EMPTY_DICT + STOP, "'system'"),
    "INST": (b"(S'touch executed'\nios\nsystem\n.", "more than a dict"),
    "OBJ": (START + MARK + _DTYPE + b"o" + STOP, "more than a dict"),
    "NEWOBJ": (_one_value(_DTYPE + b")\x81"), "more than a dict"),
    "EXT1": (START + b"\x82\x01" + STOP, "more than a dict"),
    "persistent id": (START + _text("id") + b"Q" + STOP, "more than a dict"),
    "persistent id of protocol 0": (b"Pid\n.", "more than a dict"),
    "list": (pickle.dumps({"a": [1]}, 4), "more than a dict"),
    "set": (pickle.dumps({"a": {1}}, 4), "more than a dict"),
    "bytearray": (pickle.dumps({"a": bytearray(b"x")}, 5), "more than a dict"),
    "buffer": (START + b"\x97" + STOP, "more than a dict"),
    "object dtype": (pickle.dumps({"a": np.array([object], "O").dtype}, 4), r"dtype\('O8'\)"),
    "void scalar": (pickle.dumps({"a": np.void(b"abc")}, 4), r"dtype\('V3'\)"),
    "text scalar": (pickle.dumps({"a": np.str_("x")}, 4), r"dtype\('U1'\)"),
    "long double": (pickle.dumps({"a": np.longdouble(1)}, 4), r"dtype\('f16'\)"),
    "fields": (pickle.dumps({"a": np.zeros(1, [("x", "f8")])[0]}, 4), r"dtype\('V8'\)"),
    "array": (pickle.dumps({"a": np.zeros(2)}, 4), "'_reconstruct' of the module"),
    "dtype alone": (pickle.dumps({"a": np.dtype("f8")}, 4), "no string with"),
    "dtype with fields": (_GOOD.replace(b"NNNJ", b"N}NJ"), "nests values"),
    "dtype with metadata": (_GOOD.replace(b"K\x00t", b"K\x00Nt"), "sets the state of"),
    "dtype with flags": (_GOOD.replace(b"K\x00t", b"K\x3ft"), "no number of fixed size"),
    "scalar of other length": (
        _GOOD.replace(b"C\x08", b"C\x07").replace(b"?\x86", b"\x86"), "calls something else"),
    "call of a string": (_one_value(_text("x") + b")" + REDUCE), "calls something else"),
    "call of a scalar": (_one_value(_SCALAR + b")" + REDUCE), "calls something else"),
    "call of a dict": (_one_value(b"})" + REDUCE), "calls something else"),
    "state of the constructor": (
        _one_value(_SCALAR + b"N}" + _text("__defaults__") + b")s\x86" + BUILD), "no string with"),
    "state of a function": (_one_value(_SCALAR + b"}" + BUILD), "sets the state of"),
    "state of a dict": (START + b"}}" + BUILD + STOP, "sets the state of"),
    "state of a scalar": (_GOOD[:-2] + _STATE + BUILD + SETITEMS + STOP, "sets the state of"),
    "huge memo": (START + b"}r\xff\xff\xff\x7f" + STOP, "numbers its values up to 2147483647"),
    "a deep key": (_deep_key(500_000), "nests values in tuples"),
    "a deep stack": (START + MARK * 20_000 + STOP, "more than 10000 values wait"),
    "many values": (START + b"}" * 20_000 + STOP, "more than 10000 values wait"),
    "itself": (START + b"}\x94(" + _text("a") + b"h\x00" + SETITEMS + STOP, "no string with"),
    "a dict inside": (pickle.dumps({"a": {}}, 4), "no string with"),
    "bytes": (pickle.dumps({"a": b"x"}, 4), "no string with"),
    "None": (pickle.dumps({"a": None}, 4), "no string with"),
    "True": (pickle.dumps({"a": True}, 4), "no string with"),
    "a tuple": (pickle.dumps({"a": (1, 2)}, 4), "no string with"),
    "a number as key": (pickle.dumps({1: 2}, 4), "no string with"),
    "a key without value": (START + b"}(" + _text("a") + SETITEMS + STOP, "has no value"),
    "items of a string": (START + _text("a") + b"(NNu" + STOP, "no dict"),
    "no dict": (pickle.dumps("a", 4), "something else than one dict"),
    "two dicts": (START + b"}}" + STOP, "something else than one dict"),
    "an open mark": (START + b"}(" + STOP, "something else than one dict"),
    "nothing": (START + STOP, "something else than one dict"),
    "a mark above the stack": (START + b"}((000uu" + STOP, "more than a dict"),
    "an empty stack": (START + REDUCE + STOP, "damaged: REDUCE at byte 2"),
    "no mark": (START + b"}u" + STOP, "damaged: SETITEMS"),
    "a memo that is not there": (START + b"h\x05" + STOP, "damaged: BINGET"),
    "unhashable names": (START + b"}}\x93" + STOP, "damaged: STACK_GLOBAL"),
    "empty": (b"", "truncated, damaged or no pickle"),
    "text": (b"gene,token\nENSG1,2\n", "truncated|more than a dict"),
    "opcode 255": (START + b"\xff" + STOP, "truncated, damaged or no pickle"),
    "an odd escape": (START + b"P\\\x00\n" + STOP, "more than a dict|PERSID"),
    "huge string": (START + b"\x8d" + b"\xff" * 7 + b"\x7f", "truncated, damaged"),
}


def test_the_scalar_that_attacks_are_made_of_is_good(file):
    assert read_dict(file(_GOOD), float) == {"a": 0.5}


def test_the_byte_order_is_the_dtypes(file):
    number = struct.pack("<d", 0.1)
    little = _GOOD.replace(struct.pack("<d", 0.5), number)
    big = little.replace(number, number[::-1]).replace(_text("<"), _text(">"))
    assert read_dict(file(little), float) == read_dict(file(big), float) == {"a": 0.1}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_refused(file, attack, monkeypatch, tmp_path):
    content, message = ATTACKS[attack]
    monkeypatch.chdir(tmp_path)
    path = file(content)
    with monkeypatch.context() as patch, pytest.raises(ValueError) as refusal:
        for module, name in ((os, "system"), (builtins, "eval"), (pickle, "loads")):
            patch.setattr(module, name, lambda *_: pytest.fail("executed"))
        read_dict(path, int)
    assert re.match(f"(?s){re.escape(str(path))}: .*({message})", str(refusal.value))
    assert "download it" in str(refusal.value) and len(str(refusal.value)) < 600
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_attacks_are_attacks(tmp_path):
    """Python's own unpickler runs the first one."""
    path = tmp_path / "a.pkl"
    path.write_bytes(ATTACKS["os.system"][0])
    subprocess.run([sys.executable, "-c", "import pickle; pickle.load(open('a.pkl', 'rb'))"],
                   cwd=tmp_path, check=True)
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", [int, float, str])
def test_values_of_another_kind_are_named(file, kind):
    content = {"a": {int: 1, float: 1.0, str: "1"}[kind], "b": {int: 2.0, float: "2", str: 2}[kind]}
    with pytest.raises(ValueError, match=f"value of 'b' is '?2.*no {kind.__name__};"):
        read_dict(file(content), kind)


def test_a_git_lfs_pointer_is_named(file):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 788424\n"
    with pytest.raises(ValueError, match="pkl: a Git LFS pointer.*git lfs pull"):
        read_dict(file(pointer), int)


def test_a_file_that_is_not_there_or_too_long(tmp_path, file, monkeypatch):
    with pytest.raises(ValueError, match="none.pkl: cannot be read"):
        read_dict(tmp_path / "none.pkl", int)
    monkeypatch.setattr(plain_pickle, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="longer than the 100 bytes"):
        read_dict(file({"a" * 100: 1}), int)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.9999])
def test_truncated_files_are_named(file, share):
    content = pickle.dumps({f"g{k}": np.float64(k) for k in range(3_000)}, 4)
    path = file(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: truncated, damaged or no"):
        read_dict(path, float)


OPCODES = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]


@settings(max_examples=600)
@given(
    st.lists(st.one_of(st.sampled_from([*OPCODES, _SCALAR, _F8, _STATE]), st.binary(max_size=9))),
    st.integers(0, len(_GOOD)),
    st.integers(0, 8),
)
def test_whatever_the_bytes_plain_values_or_a_refusal(tmp_path_factory, opcodes, at, cut):
    path = tmp_path_factory.getbasetemp() / "any.pkl"
    for content in (START + b"".join(opcodes), _GOOD[:at] + b"".join(opcodes) + _GOOD[at + cut :]):
        path.write_bytes(content)
        for kind in (int, float, str):
            try:
                found = read_dict(path, kind)
            except ValueError as error:
                assert str(error).startswith(str(path))
            else:
                assert type(found) is dict
                assert all(type(k) is str and type(v) is kind for k, v in found.items())
