"""A store on disk -> the same store damaged.

Every entry of DAMAGES and WILD is a function (rng, path, kind) that changes a store of the kind in
place, and tells what must follow: "must" be refused, "may" be (else it reads as meant, or as other
libraries read it), or "" where the damage does not fit the kind. After those of WILD, which strike
anywhere, HDF5 itself may crash.
"""

import gzip
import pathlib

import h5py
import numpy as np
import write_stores as write
from odd_files import group_of, opened, replace


def _any_file(rng, path) -> pathlib.Path:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return files[rng.integers(len(files))]


def truncated(rng, path, kind):
    file = _any_file(rng, path)
    content = file.read_bytes()
    file.write_bytes(content[: rng.integers(len(content))])
    return "must" if path.is_file() or kind[2] == "mtx" else "may"


def end_cut(rng, path, kind):
    file = _any_file(rng, path)
    content = file.read_bytes()
    file.write_bytes(content[: -rng.integers(1, min(len(content), 9))])
    return "must" if path.is_file() or kind[2] == "mtx" else "may"


def something_else(rng, path, kind):
    other = _any_file(rng, path)
    content = other.read_bytes()
    contents = [b"", b"<!DOCTYPE html><html>\n404\n</html>\n", rng.bytes(5000), b"\0" * 5000]
    contents += [gzip.compress(content)]
    other.write_bytes(contents[rng.integers(len(contents))])
    return "must" if path.is_file() or kind[2] == "mtx" else "may"


def another_store(rng, path, kind):
    if path.is_dir():
        return ""
    (write.h5 if path.suffix == ".h5ad" else write.h5ad)(path, write.cells(rng.poisson(9, (9, 5))))
    return "must"


def bytes_changed(rng, path, kind):
    file = _any_file(rng, path)
    content = bytearray(file.read_bytes())
    for at in rng.integers(len(content), size=rng.choice([1, 1, 8, 64])):
        content[at] = rng.integers(256)
    file.write_bytes(content)
    return "may"


def a_hole_of_zeros(rng, path, kind):
    file = _any_file(rng, path)
    content = bytearray(file.read_bytes())
    start, stop = np.sort(rng.integers(len(content) + 1, size=2))
    content[start:stop] = bytes(int(stop - start))
    file.write_bytes(content)
    return "may"


def a_part_removed(rng, path, kind):
    if path.is_dir() and (path.suffix != ".zarr" or rng.random() < 0.5):
        _any_file(rng, path).unlink()
        return "may" if kind[2] != "mtx" else "must"
    with opened(path) as root:
        names = []
        if path.suffix == ".zarr":
            names = sorted(name for name, _ in root.members(max_depth=None))
        else:
            root.visit(names.append)
        del root[names[rng.integers(len(names))]]
    return "may"


def arrays_that_contradict(rng, path, kind):
    if kind[2] not in ("csr", "csc"):
        return ""
    with group_of(path, kind) as group:
        pointers, places = group["indptr"][:], group["indices"][:]
        length = pointers[-1]
        at = rng.integers(1, len(pointers) - 1)
        k = rng.integers(len(places))
        what = rng.integers(9)
        if what < 6:
            if what == 0:
                pointers[at] = length + rng.integers(1, 9)
            elif what == 1:
                pointers[at] = -1
            elif what == 2:
                pointers[0] += 1
            elif what == 3:
                pointers[-1] += rng.choice([-1, 1])
            elif what == 4:
                pointers = np.delete(pointers, at)
            else:
                pointers = np.insert(pointers, at, pointers[at])
            replace(group, "indptr", pointers)
        elif what < 8:
            places[k] = -1 if what == 6 else 10**6
            replace(group, "indices", places)
        else:
            name = ["data", "indices"][rng.integers(2)]
            replace(group, name, group[name][:-1])
    return "must"


def another_shape(rng, path, kind):
    more = rng.choice([-1, 1])
    axis = rng.integers(2)
    if kind[2] == "mtx":
        return ""
    with group_of(path, kind) as group:
        if kind[0] == "fuzzed.h5":
            group["shape"][axis] += more
        elif kind[2] == "dense":
            parent, _, name = kind[1].rpartition("/")
            cut = group[1:] if axis else group[:, 1:]
            with opened(path) as root:
                replace(root[parent] if parent else root, name, cut)
        else:
            shape = list(group.attrs["shape"])
            shape[axis] += int(more)
            group.attrs["shape"] = [int(n) for n in shape]
    return "must"


def another_encoding(rng, path, kind):
    if path.suffix not in (".h5ad", ".zarr"):
        return ""
    with group_of(path, kind) as group:
        if rng.random() < 0.3:
            del group.attrs["encoding-type"]
        else:
            names = ["csr_matrix", "csc_matrix", "array", "dataframe", "none such"]
            group.attrs["encoding-type"] = str(rng.choice(names))
    return "may"


def another_length_of_names(rng, path, kind):
    """A row less or more of cells or genes."""
    cells, less = rng.random() < 0.5, rng.random() < 0.5
    if kind[2] == "mtx":
        (file,) = path.glob("barcodes*" if cells else "[fg]e*")
        text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        lines = text.splitlines(keepends=True)
        lines = lines[:-1] if less else [*lines, b"new\ts\tGene Expression\n"]
        text = b"".join(lines)
        file.write_bytes(gzip.compress(text) if file.suffix == ".gz" else text)
        return "must"
    with opened(path) as root:
        if path.suffix == ".h5":
            name = "matrix/barcodes" if cells else "matrix/features/id"
        elif path.suffix == ".loom":
            name = "col_attrs/CellID" if cells else "row_attrs/Gene"
        else:
            name = "obs/_index" if cells else "raw/var/_index" if "raw" in kind[1] else "var/_index"
        parent, _, name = name.rpartition("/")
        values = root[parent][name][:]
        values = values[:-1] if less else np.append(values, np.array(["new"], values.dtype))
        text = isinstance(root, h5py.File) and values.dtype.kind == "O"
        replace(root[parent], name, values.astype(h5py.string_dtype()) if text else values)
    return "must"


def a_line_of_the_matrix(rng, path, kind):
    if kind[2] != "mtx":
        return ""
    (file,) = path.glob("matrix*")
    text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    lines = text.decode().splitlines()
    k = rng.integers(3, len(lines))
    gene, cell, count = lines[k].split()
    lines[k] = [
        f"{gene} {cell}", f"{gene} {cell} {count} 1", f"{gene} {cell} x", f"0 {cell} {count}",
        f"{gene} 0 {count}", f"{gene} 10000 {count}", f"10000 {cell} {count}", f"-1 {cell} {count}",
        f"{gene} {cell} -1000", f"{gene} {cell} nan", f"{gene} {cell} {2**40}", "", "%",
        f"{gene}.5 {cell} {count}", f"{gene} {cell} {count}\n{gene} {cell} 1",
    ][rng.integers(15)]
    if rng.random() < 0.2:
        lines[0] = lines[0].replace("general", "symmetric")
    text = ("\n".join(lines) + "\n").encode()
    file.write_bytes(gzip.compress(text) if file.suffix == ".gz" else text)
    return "must"


DAMAGES = (
    truncated, end_cut, end_cut, something_else, another_store, arrays_that_contradict,
    arrays_that_contradict, another_shape, another_encoding, another_length_of_names,
    a_line_of_the_matrix,
)  # fmt: skip
WILD = (bytes_changed, bytes_changed, a_hole_of_zeros, a_part_removed, truncated)


SOMA = (truncated, end_cut, something_else, a_part_removed)
