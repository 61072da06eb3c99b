"""`.h5ad` files and `.zarr` stores of AnnData -> tables of cells and genes, counts by cell."""

import contextlib
from collections.abc import Iterator

import h5py
import numpy as np
import pandas as pd
import zarr

from scaling.corpus.stores import hdf5
from scaling.corpus.stores.by_cell import ENTRIES, Block, CellRows, Triplets, check_pointers
from scaling.corpus.stores.contents import Address, Contents, broken, check_layer, remote, suffix

Group = h5py.Group | zarr.Group
ZARR_FILES = ("zarr.json", ".zgroup", ".zattrs")


def recognises(path: Address) -> bool:
    """True of zarr folders, and of every file: it is read as `.h5ad`."""
    return remote(path) or path.is_file() or not path.exists() or _is_zarr(path)


def tables(path: Address, layer: str) -> Contents:
    """`.obs` and `.var`; with the `.var` of `.raw`, where `layer` is "" and there is a `.raw`."""
    with _opened(path) as root:
        obs, var = _table(root, path, "obs"), _table(root, path, "var")
        layers = list(root.get("layers", ()))
        check_layer(path, layer, layers, ".X and .raw.X")
        if layer:
            return Contents(obs, {f"layers/{layer}": var}, layers)
        matrices = {"X": var}
        if isinstance(root.get("raw"), Group):
            matrices["raw.X"] = _table(root, path, "raw/var")
        return Contents(obs, matrices, layers)


@contextlib.contextmanager
def matrix(path: Address, name: str, obs: pd.DataFrame) -> Iterator:
    """The stored matrix, dense, CSR or (as triplets) CSC; None where there is none."""
    from anndata.io import sparse_dataset  # here, as it takes most of a second

    with _opened(path) as root:
        try:
            element = root.get(name.replace("raw.X", "raw/X"))
            found = sparse_dataset(element) if isinstance(element, Group) else element
            if found is not element:
                check_pointers(element, found.shape[found.format == "csc"])
            if isinstance(element, zarr.Group):
                _check_chunks(element)
            if isinstance(element, h5py.Group) and found.format == "csr":
                found = CellRows(element, found.shape[1])
            if getattr(found, "format", "csr") == "csc":
                found = _triplets(element, found.shape, path)
        except Exception as error:  # h5py, zarr and anndata raise many kinds for a broken store
            raise ValueError(broken(path, _kind(path), error)) from error
        yield found


def _is_zarr(path: Address) -> bool:
    if suffix(path) == ".zarr":
        return True
    return not remote(path) and any((path / name).is_file() for name in ZARR_FILES)


def _kind(path: Address) -> str:
    return "zarr store" if _is_zarr(path) else ".h5ad file"


@contextlib.contextmanager
def _opened(path: Address) -> Iterator[Group]:
    # By element, as anndata's backed mode would read all layers and graphs into memory.
    if not _is_zarr(path):
        with hdf5.opened(path, _kind(path)) as file:
            yield file
        return
    try:
        store = zarr.storage.FsspecStore.from_url(path, read_only=True) if remote(path) else path
        root = zarr.open_group(store, mode="r")
    except Exception as error:  # zarr and each file system of fsspec raise their own kinds
        raise ValueError(broken(path, _kind(path), error)) from error
    yield root


def _table(root: Group, path: Address, name: str) -> pd.DataFrame:
    from anndata.io import read_elem  # here, as it takes most of a second

    try:
        table = read_elem(root[name])
    except Exception as error:  # as above
        raise ValueError(broken(path, _kind(path), error)) from error
    if not isinstance(table, pd.DataFrame):
        raise ValueError(f"{path}: .{name} is no table; write the file anew with anndata >= 0.8")
    return table


def _check_chunks(element: zarr.Group) -> None:
    # zarr reads a chunk that is not there as zeros; of these arrays anndata writes every chunk.
    for name in ("data", "indices"):
        missing = element[name].nchunks - element[name].nchunks_initialized
        if missing > 0:
            raise ValueError(f"{missing} chunks of {element.path}/{name} are missing")


def _triplets(element: Group, shape: tuple[int, int], path: Address) -> Triplets:
    data, genes = element["data"], np.arange(shape[1], dtype=np.int32)
    entries = data.shape[0]

    def blocks() -> Iterator[Block]:
        pointers = element["indptr"][:].astype(np.int64)
        for start in range(0, entries, ENTRIES):
            stop = min(start + ENTRIES, entries)
            try:
                cells, counts = element["indices"][start:stop].astype(np.int64), data[start:stop]
            except Exception as error:  # as above
                raise ValueError(broken(path, _kind(path), error)) from error
            yield cells, np.repeat(genes, np.diff(np.clip(pointers, start, stop))), counts

    return Triplets(shape, entries, data.dtype, blocks)
