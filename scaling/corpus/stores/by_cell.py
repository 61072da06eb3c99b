"""Counts in any order -> a temporary copy stored by cell, made once in bounded memory.

A matrix stored by gene, or entry by entry, would have to be read whole for each chunk of cells.
Its entries are read twice instead: once to count those of each cell, once to write each to the
region of its group of cells; the groups, about ENTRIES entries each, are then sorted one by one.
Memory is that of ENTRIES entries and one number a cell, time grows with the number of entries.

The copies (item size of the counts + 4 bytes an entry, twice that while they are made) stand in a
folder of `tempfile`'s place, which TMPDIR names, and go when the process ends.
"""

import atexit
import contextlib
import dataclasses
import functools
import os
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Hashable, Iterator

import h5py
import numpy as np
import scipy.sparse as sp
from tqdm import tqdm

from scaling.corpus.stores import hdf5

ENTRIES = 2**21  # entries held in memory at a time
Block = tuple[np.ndarray, np.ndarray, np.ndarray]
_done: dict[Hashable, pathlib.Path] = {}
_writing = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Triplets:
    """A matrix whose entries come in an order of their own.

    Attributes:
      shape: (cells, genes).
      entries: their number, or a bound of it.
      dtype: of the counts.
      blocks: called, starts over: blocks of (cells, genes, counts), [n] each, n <= ENTRIES.
    """

    shape: tuple[int, int]
    entries: int
    dtype: np.dtype
    blocks: Callable[[], Iterator[Block]]


class CellRows:
    """CSR arrays `indptr`, `indices`, `data` of an HDF5 group, read by `[start:stop]`.

    Args:
      group: that holds them, a row a cell.
      genes: number of columns.
      columns: those to read, ascending; None reads all.
    """

    def __init__(self, group: h5py.Group, genes: int, columns: np.ndarray | None = None):
        self._group, self._genes, self._columns = group, genes, columns
        self.shape = (len(group["indptr"]) - 1, genes if columns is None else len(columns))

    def __getitem__(self, rows: slice) -> sp.csr_matrix:
        indptr = self._group["indptr"][rows.start : rows.stop + 1].astype(np.int64)
        ends = int(indptr[0]), int(indptr[-1])
        data, indices = (hdf5.span(self._group[name], *ends) for name in ("data", "indices"))
        shape = len(indptr) - 1, self._genes
        block = sp.csr_matrix((data, indices, indptr - indptr[0]), shape=shape)
        if self._columns is None:
            return block
        block.check_format(full_check=True)
        return block[:, self._columns]


def check_pointers(group, rows: int) -> None:
    """Raises a ValueError where `indptr` does not divide `data` and `indices` into the rows.

    Args:
      group: of HDF5 or zarr, with the three arrays.
      rows: that the matrix should have along its pointers.
    """
    pointers, entries = group["indptr"][:], group["data"].shape[0]
    indices = group["indices"].shape[0]
    if len(pointers) != rows + 1 or indices != entries:
        raise ValueError(
            f"{len(pointers)} indptr, {indices} indices, {entries} data for {rows} rows"
        )
    if pointers[0] != 0 or pointers[-1] != entries or (pointers[1:] < pointers[:-1]).any():
        raise ValueError("indptr does not divide data into rows")


@contextlib.contextmanager
def opened(copy: pathlib.Path, genes: int) -> Iterator[CellRows]:
    """A copy made by `stored_by_cell`, to read."""
    with h5py.File(copy) as file:
        yield CellRows(file, genes)


def stored_by_cell(triplets: Triplets, name: str, key: Hashable) -> pathlib.Path:
    """Writes the temporary copy, or finds the one that this process has made of the same matrix.

    Args:
      triplets: the matrix.
      name: of its file, for messages.
      key: names the matrix and the state of its file.

    Raises:
      ValueError: entries outside of the matrix, or no room for the copy.
    """
    with _writing:  # threads of one worker may ask for the same copy
        if key not in _done or not _done[key].exists():
            _done[key] = _copy(triplets, name)
        return _done[key]


def _copy(triplets: Triplets, name: str) -> pathlib.Path:
    folder = _folder(os.getpid())
    size = triplets.entries * (np.dtype(triplets.dtype).itemsize + 4 + 8)
    if size > shutil.disk_usage(folder).free:
        raise ValueError(
            f"{name}: needs {size / 1e9:.1f} GB of {folder} for a copy stored by cell, as it is "
            "not stored by cell itself; set TMPDIR to a place with room, or store it by cell"
        )
    copy = folder / f"{len(_done)}.h5"
    partial, scratch = copy.with_suffix(".partial"), copy.with_suffix(".scratch")
    try:
        with (
            h5py.File(partial, "w") as out,
            h5py.File(scratch, "w") as cells,
            tqdm(total=2 * triplets.entries, desc=f"by cell {name}", leave=False) as bar,
        ):
            _write(triplets, name, out, cells, bar)
        partial.rename(copy)
    finally:
        partial.unlink(missing_ok=True)
        scratch.unlink(missing_ok=True)
    return copy


@functools.cache
def _folder(process: int) -> pathlib.Path:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="counts-by-cell-"))

    def remove() -> None:
        if os.getpid() == process:  # a forked process leaves its parent's copies alone
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _write(triplets: Triplets, name: str, out: h5py.File, scratch: h5py.File, bar: tqdm) -> None:
    indptr = np.zeros(triplets.shape[0] + 1, np.int64)
    for cells, genes, _ in triplets.blocks():
        for numbers, length in zip((cells, genes), triplets.shape, strict=True):
            if ((numbers < 0) | (numbers >= length)).any():
                raise ValueError(
                    f"{name}: an entry lies outside of {triplets.shape[0]} cells x "
                    f"{triplets.shape[1]} genes; it may be damaged: copy or download it again"
                )
        np.add.at(indptr, cells + 1, 1)
        bar.update(len(cells))
    np.cumsum(indptr, out=indptr)
    entries = int(indptr[-1])
    data = out.create_dataset("data", entries, triplets.dtype)
    indices = out.create_dataset("indices", entries, np.int32)
    of_entry = scratch.create_dataset("cells", entries, np.int64)
    out["indptr"] = indptr
    firsts = np.unique(indptr[:-1] // ENTRIES, return_index=True)[1]  # cell that starts a group
    begins = indptr[firsts]
    filled = begins.copy()
    for block in triplets.blocks():
        group = np.searchsorted(firsts, block[0], side="right") - 1
        order = np.argsort(group, kind="stable")
        cells, genes, counts = (part[order] for part in block)
        ends = np.cumsum(np.bincount(group, minlength=len(firsts)))
        for k in np.unique(group):
            part = slice(ends[k - 1] if k else 0, ends[k])
            to = slice(filled[k], filled[k] + part.stop - part.start)
            of_entry[to], indices[to], data[to] = cells[part], genes[part], counts[part]
            filled[k] = to.stop
        bar.update(len(cells))
    for begin, end in zip(begins, [*begins[1:], entries], strict=True):
        order = np.argsort(of_entry[begin:end], kind="stable")
        indices[begin:end], data[begin:end] = indices[begin:end][order], data[begin:end][order]
