"""Cells as an AnnData -> a store of each family, written by the field's own libraries."""

import gzip
import warnings

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp

EXPRESSION = "Gene Expression"


def cells(counts, primary=None) -> anndata.AnnData:
    """An AnnData of counts [cells, genes]: cells c0, ... with a donor, genes ENSG0, ... ."""
    n, genes = counts.shape
    obs = pd.DataFrame({"donor": [f"d{k % 3}" for k in range(n)]}, [f"c{k}" for k in range(n)])
    if primary is not None:
        obs["is_primary_data"] = primary
    ids = [f"ENSG{k}" for k in range(genes)]
    var = pd.DataFrame({"feature_name": [f"g{k}" for k in range(genes)]}, ids)
    return anndata.AnnData(sp.csr_matrix(counts), obs, var)


def h5ad(path, data, stored=sp.csr_matrix):
    data = data.copy()
    data.X = data.X.toarray() if stored is np.asarray else stored(data.X)
    data.write_h5ad(path)


def h5ad_raw(path, data):
    logged = anndata.AnnData(data.X.log1p(), data.obs, data.var)
    logged.raw = anndata.AnnData(sp.csc_matrix(data.X), data.obs, data.var)
    logged.write_h5ad(path)


def zarr(path, data, version=2, stored=sp.csr_matrix):
    data = data.copy()
    data.X = data.X.toarray() if stored is np.asarray else stored(data.X)
    with warnings.catch_warnings(), anndata.settings.override(zarr_write_format=version):
        warnings.simplefilter("ignore")  # on the formats to come
        data.write_zarr(path)


def h5(path, data, features=None):
    """The group `matrix`, as CellRanger 3 and later write it: genes x barcodes, CSC."""
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        _by_barcode(group, data)
        group["features/id"], group["features/name"] = _bytes(data.var_names), _symbols(data)
        group["features/feature_type"] = _bytes(features or [EXPRESSION] * data.n_vars)
        group["features/genome"] = _bytes(["GRCh38"] * data.n_vars)


def h5_of_genomes(path, data, genomes=("GRCh38",)):
    """A group a genome, as CellRanger 2 wrote them."""
    with h5py.File(path, "w") as file:
        for genome in genomes:
            group = file.create_group(genome)
            _by_barcode(group, data)
            group["genes"], group["gene_names"] = _bytes(data.var_names), _symbols(data)


def mtx(path, data, old=False, shuffled=False, features=None):
    """CellRanger's folder, that of its version 2 where `old`; `shuffled`: entries in any order."""
    path.mkdir()
    matrix = sp.csc_matrix(data.X.T).tocoo()
    order = np.arange(matrix.nnz)
    if shuffled:
        order = np.random.default_rng(0).permutation(order)
    entries = matrix.data[order], (matrix.row[order], matrix.col[order])
    scipy.io.mmwrite(path / "matrix.mtx", sp.coo_matrix(entries, matrix.shape))
    symbols = data.var.get("feature_name", data.var_names)
    table = pd.DataFrame({"id": data.var_names, "name": np.asarray(symbols)})
    if not old:
        table["type"] = features or EXPRESSION
    ending, name = ("", "genes") if old else (".gz", "features")
    options = {"sep": "\t", "header": False, "index": False}
    table.to_csv(path / f"{name}.tsv{ending}", **options)
    pd.DataFrame(data.obs_names).to_csv(path / f"barcodes.tsv{ending}", **options)
    if not old:
        content = (path / "matrix.mtx").read_bytes()
        (path / "matrix.mtx.gz").write_bytes(gzip.compress(content, 1))
        (path / "matrix.mtx").unlink()


def loom(path, data, **attributes):
    loompy = pytest.importorskip("loompy")
    columns = {"CellID": data.obs_names.to_numpy(str), "donor": data.obs["donor"].to_numpy(str)}
    rows = {"Gene": data.var["feature_name"].to_numpy(str)}
    rows["Accession"] = data.var_names.to_numpy(str)
    matrix = sp.coo_matrix(data.X.T)
    loompy.create(str(path), {"": matrix, "twice": matrix * 2}, rows, columns | attributes)


def soma(path, data, **names):
    pytest.importorskip("tiledbsoma")
    import tiledbsoma.io

    options = {"measurement_name": "RNA", "X_layer_name": "raw", "uns_keys": []}
    tiledbsoma.io.from_anndata(str(path), data, **options, **names)


def census(path, data):
    """Columns as in the CELLxGENE Census: genes in feature_id, no names of cells to know."""
    soma(path, data, obs_id_name="observation", var_id_name="feature_id")


STORES = {
    "csr.h5ad": h5ad,
    "csc.h5ad": lambda *a: h5ad(*a, sp.csc_matrix),
    "dense.h5ad": lambda *a: h5ad(*a, np.asarray),
    "raw.h5ad": h5ad_raw,
    "v2.zarr": zarr,
    "v3.zarr": lambda *a: zarr(*a, 3),
    "csc.zarr": lambda *a: zarr(*a, 3, sp.csc_matrix),
    "dense.zarr": lambda *a: zarr(*a, 2, np.asarray),
    "folder_of_zarr": zarr,
    "tenx.h5": h5,
    "old.h5": h5_of_genomes,
    "filtered_feature_bc_matrix": mtx,
    "old_mtx": lambda *a: mtx(*a, old=True),
    "shuffled_mtx": lambda *a: mtx(*a, shuffled=True),
    "cells.loom": loom,
    "soma": soma,
}


def _bytes(texts) -> np.ndarray:
    return np.array([str(text).encode() for text in texts], "S")


def _symbols(data) -> np.ndarray:
    return _bytes(data.var["feature_name"])


def _by_barcode(group, data) -> None:
    for name in ("data", "indices", "indptr"):
        group[name] = getattr(data.X, name)  # CSR of cells x genes is CSC of genes x barcodes
    group["shape"], group["barcodes"] = data.shape[::-1], _bytes(data.obs_names)
