"""CellRanger's `.h5` files -> barcodes, features, counts by cell.

Read are the features of the type "Gene Expression"; antibodies, guides and peaks are left out.
Genes are named by their ids; the column `name` has their symbols.
"""

import contextlib
from collections.abc import Iterator

import h5py
import numpy as np
import pandas as pd

from scaling.corpus.stores import hdf5
from scaling.corpus.stores.by_cell import CellRows, check_pointers
from scaling.corpus.stores.contents import Address, Contents, broken, check_layer, suffix

KIND = "10x .h5 file"
GENES, ARRAYS = "Gene Expression", ("barcodes", "data", "indices", "indptr", "shape")


def recognises(path: Address) -> bool:
    """True of `.h5` files."""
    return suffix(path) == ".h5"


def tables(path: Address, layer: str) -> Contents:
    """Barcodes, and features with `name`, `feature_type`, `genome` as far as they are given.

    `layer` names the genome where a file of CellRanger before version 3 has several.
    """
    with hdf5.opened(path, KIND) as file:
        try:
            genomes = [] if "matrix" in file else sorted(n for n, g in file.items() if _full(g))
        except Exception as error:  # h5py raises many kinds for a broken file
            raise ValueError(broken(path, KIND, error)) from error
        check_layer(path, layer, genomes, "its one matrix")
        if len(genomes) > 1 and not layer:
            raise ValueError(f"{path}: counts of {genomes}; set data.layer to one of them")
        name = f"layers/{layer}" if layer else "X"
        try:
            group = _group(file, name)
            barcodes, features = hdf5.column(group["barcodes"]), _features(group)
        except Exception as error:  # as above
            raise ValueError(broken(path, KIND, error)) from error
        return Contents(pd.DataFrame(index=barcodes), {name: features[is_gene(features)]}, genomes)


@contextlib.contextmanager
def matrix(path: Address, name: str, obs: pd.DataFrame) -> Iterator[CellRows]:
    """The counts of genes."""
    with hdf5.opened(path, KIND) as file:
        try:
            group = _group(file, name)
            features, shape = _features(group), group["shape"][:]
            # The file's shape is genes x barcodes, compressed by barcode: rows here are cells.
            if len(shape) != 2 or shape[0] != len(features):
                raise ValueError(f"shape {shape.tolist()}, {len(features)} features")
            check_pointers(group, shape[1])
            found = CellRows(group, len(features), np.flatnonzero(is_gene(features)))
        except Exception as error:  # as above
            raise ValueError(broken(path, KIND, error)) from error
        yield found


def _full(group) -> bool:
    return isinstance(group, h5py.Group) and all(name in group for name in ARRAYS)


def _group(file: h5py.File, name: str) -> h5py.Group:
    if name.startswith("layers/"):
        return file[name.removeprefix("layers/")]
    if "matrix" in file:
        return file["matrix"]
    genomes = [group for group in file.values() if _full(group)]
    if not genomes:
        raise KeyError("no group 'matrix', nor one of a genome")
    return genomes[0]


def _features(group: h5py.Group) -> pd.DataFrame:
    if "features" not in group:
        columns = {"name": hdf5.column(group["gene_names"])}
        return pd.DataFrame(columns, index=hdf5.column(group["genes"]))
    part = group["features"]
    names = [n for n in ("name", "feature_type", "genome") if n in part]
    return pd.DataFrame({n: hdf5.column(part[n]) for n in names}, index=hdf5.column(part["id"]))


def is_gene(features: pd.DataFrame) -> np.ndarray:
    """Which features are genes, bool [features]; all where no types are given."""
    if "feature_type" not in features:
        return np.ones(len(features), bool)
    return (features["feature_type"] == GENES).to_numpy()
