"""A store of raw counts -> verified counts, read in chunks of cells and never whole.

Stores are `.h5ad`, `.zarr`, `.loom`, CellRanger's `.h5` and `matrix.mtx` folders, and SOMA
experiments; how each is laid out is told in `scaling/corpus/stores`. Hugging Face data sets of
ready tokens are opened here, too, and read by `stores/tokenised.py`.
"""

import contextlib
import dataclasses
import glob
import os
import pathlib
from collections.abc import Iterator

import numba
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scaling.corpus.stores import anndata_store, by_cell, loom, mtx, soma, tenx, tokenised
from scaling.corpus.stores.contents import Address, remote

CHUNK_CELLS = 1024
ENDINGS = (".h5ad", ".zarr", ".loom", ".h5", ".soma", tokenised.ENDING)
STORES = (tenx, mtx, loom, soma, anndata_store)  # in the order to ask; the last takes any file


@dataclasses.dataclass(frozen=True)
class Source:
    """One store of raw counts. Another process may read chunks of it, too.

    Attributes:
      path: the file or folder; a str where it is a remote address.
      matrix: where its raw counts stand: "X", "raw.X", "layers/<name>", or 'X["raw"]' of SOMA;
        "input_ids" where it has ready tokens instead.
      genes: names of the matrix's columns, as the store gives them, object [genes]; "" for none.
      obs: the cells' annotations, one row a cell, indexed by the store's cell names.
      by_cell: a temporary copy of the counts, where the store has them in another order than by
        cell; it goes with the process that opened the source.
    """

    path: Address
    matrix: str
    genes: np.ndarray
    obs: pd.DataFrame
    by_cell: pathlib.Path | None = None

    @property
    def name(self) -> str:
        """Name of the data set: the store's name without its ending."""
        return name_of(self.path)

    @property
    def tokenised(self) -> bool:
        """Whether it has ready tokens, and neither counts nor genes."""
        return self.matrix == tokenised.TOKENS

    @property
    def is_h5ad(self) -> bool:
        """Whether it is one `.h5ad` file of this machine, which can be copied as it is."""
        endings = (".zarr", ".loom", ".h5")
        return not remote(self.path) and self.path.is_file() and self.path.suffix not in endings


def name_of(path: Address) -> str:
    """Name of a path's data set, see `Source`; of a folder without a known ending all of it."""
    last = pathlib.PurePath(str(path))
    whole = last.suffix not in ENDINGS and (remote(path) or pathlib.Path(path).is_dir())
    return last.name if whole else last.stem


def expand(patterns: str) -> list[Address]:
    """Stores that a comma-separated list of paths and globs names, sorted, each once.

    Remote addresses (`s3://`, `gs://`, ...) are taken as they are.

    Raises:
      ValueError: a pattern matches nothing, or two stores share one name (the name is the data
        set's name and part of every cell's id).
    """
    paths: dict[Address, None] = {}
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        if remote(pattern):
            paths[pattern] = None
            continue
        found = sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise ValueError(
                f"no file matches {pattern!r}; give a path or a glob to stores of counts "
                "(.h5ad, .zarr, .loom, 10x .h5 or matrix.mtx folder, SOMA experiment, data set of "
                "tokens)"
            )
        paths.update(dict.fromkeys(pathlib.Path(os.path.abspath(p)) for p in found))
    by_name: dict[str, Address] = {}
    for path in paths:
        name = name_of(path)
        if name in by_name:
            raise ValueError(
                f"{by_name[name]} and {path} share one name; rename one of them, or name a link"
            )
        by_name[name] = path
    return sorted(paths, key=str)


def stamp(path: Address) -> list:
    """State of a store, to tell later whether it has changed: [path, bytes, newest change in ns].

    Of a folder over all of its files; a remote store is stamped by its address alone.

    Raises:
      ValueError: it is gone, or a link to nothing.
    """
    if remote(path):
        return [path, 0, 0]
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    try:
        stats = [file.stat() for file in files]
    except OSError as error:
        raise ValueError(f"{path}: no file ({error}); give one that is there and stays") from error
    size, changed = sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
    return [str(path), size, changed]


def open_source(
    path: Address, *, layer: str = "", gene_column: str = "", primary_only: bool = True
) -> Source:
    """Finds the raw counts of a store and reads all but the matrix.

    Counts that are not stored by cell (CSC of AnnData, `matrix.mtx`) are copied to a temporary
    file by cell, see `stores/by_cell.py`.

    Args:
      path: a store, see above.
      layer: the layer that holds raw counts; "" looks in `.X`, then in `.raw.X` (AnnData), in the
        main matrix (loom, 10x) or in X["raw"] (SOMA).
      gene_column: column of `.var` with the gene ids; "" takes the index.
      primary_only: of a SOMA experiment, leave out the cells that `is_primary_data` marks as
        copies of others.

    Raises:
      ValueError: unreadable or empty store, no raw counts, duplicate cell names, no such column,
        a library or package that the store needs is missing.
    """
    path = path if remote(path) else pathlib.Path(path)
    if tokenised.recognises(path):
        return Source(path, tokenised.TOKENS, np.empty(0, object), tokenised.annotations(path))
    store = _store(path)
    found = store.tables(path, layer, primary_only) if store is soma else store.tables(path, layer)
    obs = found.obs
    genes = len(next(iter(found.matrices.values())))
    if len(obs) == 0 or genes == 0:
        raise ValueError(f"{path}: {len(obs)} cells x {genes} genes; nothing to read")
    if not obs.index.is_unique:
        twice = obs.index[obs.index.duplicated()][0]
        raise ValueError(
            f"{path}: cell name {twice!r} stands twice in .obs; make the names unique "
            "(of an AnnData: .obs_names_make_unique())"
        )
    refusals = []
    for name, var in found.matrices.items():
        source = Source(path, name, _names(var.index), obs)
        with store.matrix(path, name, obs) as matrix:
            if matrix is None or not matrix.shape:
                refusals.append(f"{path}: .{name} is empty")
                continue
            if tuple(matrix.shape) != (len(obs), len(var)):
                refusals.append(
                    f"{path}: .{name} has the shape {tuple(matrix.shape)} for {len(obs)} cells x "
                    f"{len(var)} genes; write the file anew"
                )
                continue
            if isinstance(matrix, by_cell.Triplets):
                source = dataclasses.replace(source, by_cell=_copied(source, matrix))
        with _opened(source) as rows:
            fault = _fault(_rows(rows, 0, min(CHUNK_CELLS, len(obs)), source))
        if fault is None:
            return dataclasses.replace(source, genes=_gene_names(path, var, gene_column))
        refusals.append(_refusal(source, fault, 0))
    others = [f"data.layer={name}" for name in found.layers if name != layer]
    hint = f"; other layers: {', '.join(others)}" if others else ""
    raise ValueError("\n".join(refusals) + hint)


def chunks(
    source: Source, rows: np.ndarray | None = None, size: int = CHUNK_CELLS
) -> Iterator[tuple[np.ndarray, sp.csr_matrix]]:
    """Reads counts in order: yields (rows [n], counts [n, genes] float64 CSR without zeros).

    Args:
      source: the store.
      rows: ascending row numbers to read; None reads all.
      size: cells a chunk spans in the store, at most, counted from the first row.

    Raises:
      ValueError: a value that is no raw count, named by cell and gene.
    """
    rows = np.arange(len(source.obs)) if rows is None else np.asarray(rows)
    if not len(rows):
        return
    end = int(rows[-1]) + 1
    with _opened(source) as matrix:
        for start in range(int(rows[0]), end, size):
            low, high = np.searchsorted(rows, (start, start + size))
            if low == high:
                continue
            counts = _rows(matrix, start, min(start + size, end), source)
            fault = _fault(counts)
            if fault:
                raise ValueError(_refusal(source, fault, start))
            wanted = rows[low:high]
            yield wanted, counts if len(wanted) == counts.shape[0] else counts[wanted - start]


def _store(path: Address):
    for store in STORES:
        if store.recognises(path):
            return store
    raise ValueError(
        f"{path}: a folder that is no .zarr store, no 10x folder (matrix.mtx.gz, features.tsv.gz, "
        "barcodes.tsv.gz), no SOMA experiment and no saved data set of tokens; name one of these"
    )


@contextlib.contextmanager
def _opened(source: Source) -> Iterator:
    """The counts, to be read by `[start:stop]`."""
    copy = source.by_cell
    if copy is None or not copy.exists():
        with _store(source.path).matrix(source.path, source.matrix, source.obs) as matrix:
            if not isinstance(matrix, by_cell.Triplets):
                yield matrix
                return
            copy = _copied(source, matrix)
    with by_cell.opened(copy, len(source.genes)) as rows:
        yield rows


def _copied(source: Source, matrix: by_cell.Triplets) -> pathlib.Path:
    key = (*stamp(source.path), source.matrix)
    return by_cell.stored_by_cell(matrix, str(source.path), key)


def _gene_names(path: Address, var: pd.DataFrame, gene_column: str) -> np.ndarray:
    if gene_column and gene_column not in var:
        raise ValueError(
            f"{path}: no column {gene_column!r} in .var (there are: {list(var.columns)}); "
            "set data.gene_column to one of them, or to '' for the index"
        )
    return _names(var[gene_column] if gene_column else var.index)


def _names(genes: pd.Series | pd.Index) -> np.ndarray:
    return genes.astype(object).where(genes.notna(), "").astype(str).to_numpy(object)


def _rows(matrix, start: int, stop: int, source: Source) -> sp.csr_matrix:
    try:
        counts = sp.csr_matrix(matrix[start:stop], dtype=np.float64)
        counts.check_format(full_check=True)
    except Exception as error:  # a truncated chunk of the store surfaces here
        raise ValueError(
            f"{source.path}: cells {start}-{stop} of {source.matrix} cannot be read ({error}); "
            "the file may be damaged: copy or download it again"
        ) from error
    # Tidied only where it has to be: sorting the genes of each cell costs more than ranking them.
    twice, zero = untidy(counts.indptr, counts.indices, counts.data, counts.shape[1])
    if twice:
        counts.sum_duplicates()
    if zero:
        counts.eliminate_zeros()
    return counts


@numba.njit(cache=True, nogil=True)
def untidy(indptr, indices, data, genes):
    """Whether a gene stands twice in a cell, and whether a zero is stored."""
    twice, zero = False, False
    last = np.full(genes, -1, np.int64)
    for cell in range(len(indptr) - 1):
        for k in range(indptr[cell], indptr[cell + 1]):
            twice |= last[indices[k]] == cell
            zero |= data[k] == 0
            last[indices[k]] = cell
    return twice, zero


def _fault(counts: sp.csr_matrix) -> tuple[int, int, float] | None:
    """(row, column, value) of the first entry that is no raw count, or None."""
    at = _first_fault(counts.data)
    if at < 0:
        return None
    row = int(np.searchsorted(counts.indptr, at, side="right")) - 1
    return row, int(counts.indices[at]), float(counts.data[at])


@numba.njit(cache=True, nogil=True)
def _first_fault(data):
    for k in range(len(data)):
        if not (data[k] >= 0 and data[k] == np.floor(data[k]) and data[k] < 2**31):
            return k
    return -1


def _refusal(source: Source, fault: tuple[int, int, float], start: int) -> str:
    row, column, value = fault
    return (
        f"{source.path}: .{source.matrix} holds no raw counts: {value!r} in cell "
        f"{source.obs.index[start + row]!r}, gene {source.genes[column]!r}. Raw counts are finite "
        "integers from 0 to 2^31; normalised or logged values cannot be ranked. Give the file "
        "with the raw counts in .X or .raw.X, or name their layer with data.layer"
    )
