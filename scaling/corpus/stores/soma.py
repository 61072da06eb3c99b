"""TileDB-SOMA experiments, as the CELLxGENE Census has them -> tables, counts by cell.

Read are `obs`, `ms["RNA"].var` and `ms["RNA"].X["raw"]`.
(https://chanzuckerberg.github.io/cellxgene-census/cellxgene_census_docsite_schema.html)
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scaling.corpus.stores.contents import Address, Contents, broken, check_layer, remote, suffix

KIND = "SOMA experiment"
MEASUREMENT, RAW = "RNA", "raw"
CELL_NAMES = ("obs_id", "soma_joinid")  # the Census names cells by their join id alone
GENE_NAMES = ("var_id", "feature_id")
BUFFER_BYTES = 2**26  # of each column that a read holds
CACHE_BYTES = 2**30  # that TileDB may hold in all


def recognises(path: Address) -> bool:
    """True of folders of TileDB, and of remote addresses without one of the other endings."""
    if remote(path):
        return suffix(path) not in (".h5ad", ".zarr", ".h5", ".loom")
    return (path / "__tiledb_group.tdb").exists() or (path / "__group").is_dir()


def tables(path: Address, layer: str, primary_only: bool) -> Contents:
    """`obs`, with its `soma_joinid`, and `var`.

    Args:
      path: of the experiment.
      layer: of X; "" is "raw".
      primary_only: leave out the cells whose `is_primary_data` is false, where there is such a
        column; the Census holds those a second time.
    """
    with _opened(path) as experiment:
        try:
            layers = list(experiment.ms[MEASUREMENT].X.keys())
            primary = primary_only and "is_primary_data" in experiment.obs.keys()
            cells = {"value_filter": "is_primary_data == True"} if primary else {}
            obs = _indexed(experiment.obs.read(**cells).concat().to_pandas(), CELL_NAMES)
            var = experiment.ms[MEASUREMENT].var.read().concat().to_pandas()
            var = _indexed(var, GENE_NAMES)
        except Exception as error:  # TileDB raises its own kinds
            raise ValueError(broken(path, KIND, error)) from error
    check_layer(path, layer, layers, f'X["{RAW}"]')
    if not layer and RAW not in layers:
        raise ValueError(f"{path}: no layer {RAW!r} (there are: {layers}); set data.layer")
    return Contents(obs, {f"layers/{layer}" if layer else f'X["{RAW}"]': var}, layers)


@contextlib.contextmanager
def matrix(path: Address, name: str, obs: pd.DataFrame) -> Iterator["_Cells"]:
    """The counts of the cells of `obs`, in its order."""
    with _opened(path) as experiment:
        try:
            measurement = experiment.ms[MEASUREMENT]
            var = measurement.var.read(column_names=["soma_joinid"]).concat().to_pandas()
            layer = measurement.X[name.removeprefix("layers/") if "/" in name else RAW]
            found = _Cells(layer, obs["soma_joinid"].to_numpy(), np.sort(var["soma_joinid"]))
        except Exception as error:  # as above
            raise ValueError(broken(path, KIND, error)) from error
        yield found


class _Cells:
    def __init__(self, layer, cells: np.ndarray, genes: np.ndarray):
        self._layer, self._cells, self._genes = layer, cells, genes
        self.shape = (len(cells), len(genes))

    def __getitem__(self, rows: slice) -> sp.csr_matrix:
        import pyarrow as pa

        cells = self._cells[rows]
        parts = [
            [table[f"soma_{part}"].to_numpy() for part in ("dim_0", "dim_1", "data")]
            for table in self._layer.read((pa.array(cells), slice(None))).tables()
        ]
        row, column, counts = (np.concatenate(part) for part in zip(*parts, strict=True))
        at = np.searchsorted(self._genes, column)
        if not np.isin(column, self._genes).all():
            raise ValueError("counts of genes that var has not")
        return sp.csr_matrix(
            (counts, (np.searchsorted(cells, row), at)), shape=(len(cells), len(self._genes))
        )


@contextlib.contextmanager
def _opened(path: Address) -> Iterator:
    try:
        import tiledbsoma
    except ImportError as error:
        raise ValueError(f"{path}: {error}; pip install 'scaling[soma]'") from error
    budget = {"soma.init_buffer_bytes": BUFFER_BYTES, "sm.mem.total_budget": CACHE_BYTES}
    context = tiledbsoma.SOMATileDBContext(tiledb_config=budget)
    try:
        experiment = tiledbsoma.open(str(path), context=context)
    except Exception as error:  # as above
        raise ValueError(broken(path, KIND, error)) from error
    with experiment:
        if not isinstance(experiment, tiledbsoma.Experiment):
            raise ValueError(
                f"{path}: a {type(experiment).__name__}, no {KIND}; name the folder that has "
                "obs and ms (of the Census: census_data/homo_sapiens)"
            )
        yield experiment


def _indexed(table: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    table = table.sort_values("soma_joinid")
    index = next((name for name in names if name in table), None)
    if index is None:
        raise KeyError(f"none of the columns {list(names)}")
    return table.set_index(pd.Index(table[index].astype(str).astype(object), name=None))
