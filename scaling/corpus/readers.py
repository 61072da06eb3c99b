"""An `.h5ad` path -> verified raw counts, read in chunks of cells and never whole."""

import contextlib
import dataclasses
import glob
import os
import pathlib
from collections.abc import Iterator

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import read_elem, sparse_dataset

CHUNK_CELLS = 1024


@dataclasses.dataclass(frozen=True)
class Source:
    """One file of raw counts.

    Attributes:
      path: the file.
      matrix: where its raw counts stand: "X", "raw.X" or "layers/<name>".
      genes: names of the matrix's columns, as the file gives them, object [genes]; "" for none.
      obs: the cells' annotations, one row a cell, indexed by the file's cell names.
    """

    path: pathlib.Path
    matrix: str
    genes: np.ndarray
    obs: pd.DataFrame

    @property
    def name(self) -> str:
        """Name of the data set: the file's name without its ending."""
        return self.path.stem


def expand(patterns: str) -> list[pathlib.Path]:
    """Files that a comma-separated list of paths and globs names, sorted, each once.

    Raises:
      ValueError: a pattern matches nothing, or two files share one name (the name is the data
        set's name and part of every cell's id).
    """
    paths: dict[pathlib.Path, None] = {}
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        found = sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise ValueError(f"no file matches {pattern!r}; give a path or a glob to .h5ad files")
        paths.update(dict.fromkeys(pathlib.Path(os.path.abspath(p)) for p in found))
    by_name: dict[str, pathlib.Path] = {}
    for path in paths:
        if path.stem in by_name:
            raise ValueError(f"{by_name[path.stem]} and {path} share one name; rename one of them")
        by_name[path.stem] = path
    return sorted(paths)


def open_source(path: pathlib.Path, *, layer: str = "", gene_column: str = "") -> Source:
    """Finds the raw counts of a file and reads all but the matrix.

    Args:
      path: an `.h5ad` file.
      layer: the layer that holds raw counts; "" looks in `.X`, then in `.raw.X`.
      gene_column: column of `.var` with the gene ids; "" takes the index.

    Raises:
      ValueError: unreadable or empty file, no raw counts, duplicate cell names, no such column.
    """
    with _opened(path) as file:
        obs, var = _table(file, path, "obs"), _table(file, path, "var")
        if len(obs) == 0 or len(var) == 0:
            raise ValueError(f"{path}: {len(obs)} cells x {len(var)} genes; nothing to read")
        if not obs.index.is_unique:
            twice = obs.index[obs.index.duplicated()][0]
            raise ValueError(
                f"{path}: cell name {twice!r} stands twice in .obs; call .obs_names_make_unique()"
            )
        tables = {"X": var} | ({"raw.X": _table(file, path, "raw/var")} if "raw" in file else {})
        matrix = _find_counts(file, path, layer, obs, tables)
        var = tables.get(matrix, var)
        if gene_column and gene_column not in var:
            raise ValueError(
                f"{path}: no column {gene_column!r} in .var (there are: {list(var.columns)}); "
                "set data.gene_column to one of them, or to '' for the index"
            )
        genes = var[gene_column] if gene_column else var.index
        return Source(path, matrix, _names(genes), obs)


def chunks(
    source: Source, rows: np.ndarray | None = None, size: int = CHUNK_CELLS
) -> Iterator[tuple[np.ndarray, sp.csr_matrix]]:
    """Reads counts in order: yields (rows [n], counts [n, genes] float64 CSR without zeros).

    Args:
      source: the file.
      rows: ascending row numbers to read; None reads all.
      size: cells a chunk spans in the file.

    Raises:
      ValueError: a value that is no raw count, named by cell and gene.
    """
    rows = np.arange(len(source.obs)) if rows is None else np.asarray(rows)
    with _opened(source.path) as file:
        matrix = _matrix(file, source.path, source.matrix)
        for start in range(0, len(source.obs), size):
            low, high = np.searchsorted(rows, (start, start + size))
            if low == high:
                continue
            counts = _rows(matrix, start, min(start + size, len(source.obs)), source)
            fault = _fault(counts)
            if fault:
                raise ValueError(_refusal(source, fault, start))
            wanted = rows[low:high]
            yield wanted, counts[wanted - start]


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[h5py.File]:
    # By element, as anndata's backed mode would read all layers and graphs into memory.
    try:
        file = h5py.File(path)
    except OSError as error:
        raise ValueError(_broken(path, error)) from error
    with file:
        yield file


def _broken(path: pathlib.Path, error: Exception) -> str:
    return (
        f"{path}: not a readable .h5ad file ({type(error).__name__}: {error}); "
        "it may be truncated: copy or download it again"
    )


def _table(file: h5py.File, path: pathlib.Path, name: str) -> pd.DataFrame:
    try:
        table = read_elem(file[name])
    except Exception as error:  # h5py and anndata raise many kinds for a broken file
        raise ValueError(_broken(path, error)) from error
    if not isinstance(table, pd.DataFrame):
        raise ValueError(f"{path}: .{name} is no table; write the file anew with anndata >= 0.8")
    return table


def _names(genes: pd.Series | pd.Index) -> np.ndarray:
    return genes.astype(object).where(genes.notna(), "").astype(str).to_numpy(object)


def _matrix(file: h5py.File, path: pathlib.Path, matrix: str):
    """The stored matrix, not read yet; None where there is none."""
    try:
        element = file.get(matrix.replace("raw.X", "raw/X"))
        return sparse_dataset(element) if isinstance(element, h5py.Group) else element
    except Exception as error:  # as above
        raise ValueError(_broken(path, error)) from error


def _rows(matrix, start: int, stop: int, source: Source) -> sp.csr_matrix:
    try:
        block = matrix[start:stop]
    except Exception as error:  # a truncated chunk of the HDF5 file surfaces here
        raise ValueError(
            f"{source.path}: cells {start}-{stop} of {source.matrix} cannot be read ({error}); "
            "the file may be damaged: copy or download it again"
        ) from error
    counts = sp.csr_matrix(block, dtype=np.float64)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts


def _fault(counts: sp.csr_matrix) -> tuple[int, int, float] | None:
    """(row, column, value) of the first entry that is no raw count, or None."""
    bad = ~((counts.data >= 0) & (counts.data == np.floor(counts.data)) & (counts.data < 2**31))
    if not bad.any():
        return None
    at = int(np.argmax(bad))
    row = int(np.searchsorted(counts.indptr, at, side="right")) - 1
    return row, int(counts.indices[at]), float(counts.data[at])


def _find_counts(
    file: h5py.File, path: pathlib.Path, layer: str, obs: pd.DataFrame, genes: dict
) -> str:
    layers = list(file.get("layers", ()))
    if layer and layer not in layers:
        raise ValueError(
            f"{path}: no layer {layer!r} (there are: {layers}); set data.layer to one "
            "of them, or to '' to look in .X and .raw.X"
        )
    refusals = []
    for name in [f"layers/{layer}"] if layer else genes:
        matrix, var = _matrix(file, path, name), genes.get(name, genes["X"])
        if matrix is None or not matrix.shape:
            refusals.append(f"{path}: .{name} is empty")
            continue
        if matrix.shape != (len(obs), len(var)):
            refusals.append(
                f"{path}: .{name} has the shape {matrix.shape} for {len(obs)} cells x {len(var)} "
                "genes; write the file anew"
            )
            continue
        if getattr(matrix, "format", "csr") == "csc":
            refusals.append(
                f"{path}: .{name} is stored by gene (CSC), which cannot be read cell by cell; "
                "store it by cell: adata.X = adata.X.tocsr()"
            )
            continue
        source = Source(path, name, _names(var.index), obs)
        fault = _fault(_rows(matrix, 0, min(CHUNK_CELLS, len(obs)), source))
        if fault is None:
            return name
        refusals.append(_refusal(source, fault, 0))
    others = [f"data.layer={name}" for name in layers if name != layer]
    hint = f"; other layers: {', '.join(others)}" if others else ""
    raise ValueError("\n".join(refusals) + hint)


def _refusal(source: Source, fault: tuple[int, int, float], start: int) -> str:
    row, column, value = fault
    return (
        f"{source.path}: .{source.matrix} holds no raw counts: {value!r} in cell "
        f"{source.obs.index[start + row]!r}, gene {source.genes[column]!r}. Raw counts are finite "
        "integers from 0 to 2^31; normalised or logged values cannot be ranked. Give the file "
        "with the raw counts in .X or .raw.X, or name their layer with data.layer"
    )
