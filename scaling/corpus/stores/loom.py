"""`.loom` files -> attributes of columns (cells) and rows (genes), counts by cell.

A loom matrix is dense, genes x cells, in HDF5 chunks of 64 x 64: slices of columns are read, so
that each chunk is decompressed once. (https://linnarssonlab.org/loompy/format/)
"""

import contextlib
from collections.abc import Iterator

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scaling.corpus.stores import hdf5
from scaling.corpus.stores.contents import Address, Contents, broken, check_layer, suffix

KIND = ".loom file"
SLICE = 256  # cells read at a time, a multiple of the chunks' width
CELL_NAMES = ("obs_names", "CellID")  # the first is AnnData's
GENE_NAMES = ("var_names", "Accession", "Gene")


def recognises(path: Address) -> bool:
    """True of `.loom` files."""
    return suffix(path) == ".loom"


def tables(path: Address, layer: str) -> Contents:
    """Attributes of cells, named by obs_names or CellID, and genes: var_names, Accession or Gene.

    Attributes of more than one dimension are left out.
    """
    with hdf5.opened(path, KIND) as file:
        try:
            layers = list(file.get("layers", ()))
            obs = _attributes(file["col_attrs"], CELL_NAMES)
            var = _attributes(file["row_attrs"], GENE_NAMES)
        except Exception as error:  # h5py raises many kinds for a broken file
            raise ValueError(broken(path, KIND, error)) from error
    check_layer(path, layer, layers, "the main matrix")
    return Contents(obs, {f"layers/{layer}" if layer else "X": var}, layers)


@contextlib.contextmanager
def matrix(path: Address, name: str, obs: pd.DataFrame) -> Iterator["_Cells"]:
    """The matrix or a layer, cells first."""
    with hdf5.opened(path, KIND) as file:
        try:
            found = _Cells(file["matrix" if name == "X" else name])
        except Exception as error:  # as above
            raise ValueError(broken(path, KIND, error)) from error
        yield found


class _Cells:
    def __init__(self, dataset: h5py.Dataset):
        self._dataset, self.shape = dataset, dataset.shape[::-1]

    def __getitem__(self, rows: slice) -> sp.csr_matrix:
        starts = range(rows.start, rows.stop, SLICE)
        slices = (self._dataset[:, s : min(s + SLICE, rows.stop)] for s in starts)
        return sp.vstack([sp.csr_matrix(part.T) for part in slices], format="csr")


def _attributes(group: h5py.Group, names: tuple[str, ...]) -> pd.DataFrame:
    columns = {k: hdf5.column(v) for k, v in group.items() if v.ndim == 1}
    index = next((name for name in names if name in columns), None)
    if index is None:
        raise KeyError(f"none of {list(names)} in {group.name}")
    lengths = {k: len(v) for k, v in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"attributes of different lengths in {group.name}: {lengths}")
    table = pd.DataFrame(columns, index=np.asarray(columns[index]).astype(str).astype(object))
    return table.drop(columns="obs_names" if index == "obs_names" else [], errors="ignore")
