"""Tables of counts -> stores of each family as they were meant, and what other libraries read."""

import contextlib
import gzip
import pathlib
import warnings
from collections.abc import Iterator

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp
import write_stores as write
import zarr
from odd_cells import GENE, TYPES, Cells

# Kind of store: its file, where the matrix stands, how it is laid out.
KINDS = (
    ("fuzzed.h5ad", "X", "csr"), ("fuzzed.h5ad", "X", "csc"), ("fuzzed.h5ad", "X", "dense"),
    ("fuzzed.h5ad", "raw/X", "csr"), ("fuzzed.h5ad", "raw/X", "csc"),
    ("fuzzed.h5ad", "layers/counts", "csr"), ("fuzzed.h5ad", "layers/counts", "dense"),
    ("fuzzed.h5", "matrix", "csr"), ("fuzzed.h5", "matrix", "csr"),
    ("fuzzed", "matrix.mtx.gz", "mtx"), ("fuzzed", "matrix.mtx", "mtx"), ("fuzzed", "", "mtx"),
    ("fuzzed.loom", "matrix", "dense"), ("fuzzed.loom", "matrix", "dense"),
    ("fuzzed.zarr", "X", "csr"), ("fuzzed.zarr", "X", "csc"), ("fuzzed.zarr", "X", "dense"),
)  # fmt: skip

SOMA = ("fuzzed", "ms/RNA/X/raw", "soma")  # slow to write, so not among the others


def typed(kind) -> bool:
    """Whether the store tells types of features, by which others than genes are left out."""
    return kind[0] == "fuzzed.h5" or kind[2] == "mtx" and kind[1] != "matrix.mtx"


def labelled(kind) -> bool:
    return kind[0] in ("fuzzed.h5ad", "fuzzed.zarr", "fuzzed.loom")


def write_store(rng, path: pathlib.Path, kind, cells: Cells) -> None:
    """Writes the cells as the kind says; types of numbers, compression and chunks are drawn."""
    cells.stored = cells.stored or str(rng.choice(_types(cells, kind)))
    if kind[2] == "mtx":
        _mtx(rng, path, kind, cells)
    elif kind[2] == "soma":
        _soma(path, cells)
    elif kind[0] == "fuzzed.loom":
        _loom(path, cells)
    else:
        _annotated(rng, path, kind, cells)
        if kind[2] in ("csr", "csc"):
            with group_of(path, kind) as group:
                for name in ("indptr", "indices"):
                    replace(group, name, group[name][:].astype(rng.choice(TYPES[2:4])))


def _types(cells, kind) -> list[str]:
    types, columns = [], (cells.counts, cells.entries[2])
    for name in TYPES if labelled(kind) else TYPES[2:8] + TYPES[9:]:
        with np.errstate(all="ignore"):
            if all(np.array_equal(c.astype(name).astype(float), c, True) for c in columns):
                types.append(name)
    return types


def _values(counts, stored) -> np.ndarray:
    if stored == "S":
        return counts.astype(str).astype("S")
    return counts * (1 + 1j) if stored == "complex128" else counts.astype(stored)


def _matrix(cells, layout):
    if layout == "dense":
        return _values(cells.counts, cells.stored)
    row, column, counts = cells.entries
    along, across = (row, column) if layout == "csr" else (column, row)
    shape = len(cells.names), len(cells.genes)
    order = np.argsort(along, kind="stable")
    sums = np.cumsum(np.bincount(along, minlength=shape[layout == "csc"]))
    made = (sp.csr_matrix if layout == "csr" else sp.csc_matrix)(shape, dtype=np.float64)
    # Set one by one: the constructors would copy what they hold to types of their own.
    made.data = _values(counts[order], cells.stored)
    made.indices, made.indptr = across[order], np.r_[0, sums].astype(np.int64)
    return made


def _annotated(rng, path, kind, cells) -> None:
    obs = pd.DataFrame(index=pd.Index(cells.names, dtype=object))
    if cells.labels is not None:
        obs["cell_type"] = cells.labels
    var = pd.DataFrame({"feature_name": "s"}, index=pd.Index(cells.genes, dtype=object))
    compression = rng.choice([None, "gzip"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on names that stand twice, and on formats to come
        data = anndata.AnnData(None, obs, var)
        if path.suffix == ".h5":
            data.X = _matrix(cells, "csr")
            write.h5(path, data, cells.kinds)
            return
        if path.suffix == ".zarr":
            with anndata.settings.override(zarr_write_format=int(rng.integers(2, 4))):
                data.write_zarr(path)
        else:
            data.write_h5ad(path)
        with opened(path) as root:
            matrix = _matrix(cells, kind[2])
            options = {}
            if path.suffix == ".h5ad" and compression:
                options = {"compression": compression}
            if kind[1] != "X":
                anndata.io.write_elem(root, "X", np.full(matrix.shape, 0.3))
            if kind[1] == "raw/X":
                root.create_group("raw")
                anndata.io.write_elem(root, "raw/var", var)
            anndata.io.write_elem(root, kind[1], matrix, dataset_kwargs=options)


def _loom(path, cells) -> None:
    with h5py.File(path, "w") as file:
        file["matrix"] = _matrix(cells, "dense").T
        file["layers/twice"] = np.zeros((len(cells.genes), len(cells.names)))
        texts = h5py.string_dtype()
        file["col_attrs/CellID"] = np.array(cells.names, object).astype(texts)
        file["row_attrs/Gene"] = np.array(cells.genes, object).astype(texts)
        if cells.labels is not None:
            labels = np.asarray(cells.labels)
            if labels.dtype.kind not in "fib":  # loom has no missing texts
                labels = np.array(["" if pd.isna(v) else str(v) for v in labels], object)
                labels = labels.astype(texts)
            file["col_attrs/cell_type"] = labels


def _soma(path, cells) -> None:
    # The index must be unique: names stand beside it.
    obs = pd.DataFrame({"obs_id": cells.names}, [f"i{k}" for k in range(len(cells.names))])
    var = pd.DataFrame({"var_id": cells.genes}, [f"i{k}" for k in range(len(cells.genes))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        data = anndata.AnnData(sp.csr_matrix(_values(cells.counts, cells.stored)), obs, var)
        write.soma(path, data, obs_id_name="row", var_id_name="column")


def _mtx(rng, path, kind, cells) -> None:
    path.mkdir()
    # A blank line is no barcode.
    cells.names = [name if name.strip() else "blank" for name in cells.names]
    row, column, counts = cells.entries
    whole = np.dtype(cells.stored).kind in "iub"
    end = str(rng.choice(["\n", "\r\n"]))
    number = "complex" if cells.stored == "complex128" else "integer" if whole else "real"
    header = f"%%MatrixMarket matrix coordinate {number} general"
    lines = [header, "%", f"{len(cells.genes)} {len(cells.names)} {len(row)}"]
    if cells.stored == "S":
        counts = [f"'{c}'" for c in counts]
    elif whole:
        counts = [int(c) for c in counts]
    lines += [f"{g + 1} {c + 1} {n}" for c, g, n in zip(row, column, counts, strict=True)]
    features = zip(cells.genes, cells.kinds, strict=True)
    tables = {
        "matrix.mtx": lines,
        "barcodes.tsv": cells.names,
        "genes.tsv" if kind[1] == "matrix.mtx" else "features.tsv": [
            f"{g}\ts" if kind[1] == "matrix.mtx" else f"{g}\ts\t{kind_of}"
            for g, kind_of in features
        ],
    }
    for name, content in tables.items():
        text = "".join(line + end for line in content).encode()
        if kind[1].endswith(".gz"):
            cut = rng.integers(len(text) + 1)  # bgzip writes members one after another, too
            text, name = gzip.compress(text[:cut]) + gzip.compress(text[cut:]), f"{name}.gz"
        (path / name).write_bytes(text)


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator:
    """An HDF5 file or a zarr store, to change."""
    if path.suffix != ".zarr":
        with h5py.File(path, "r+") as file:
            yield file
        return
    yield zarr.open_group(path, mode="r+", use_consolidated=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on formats to come
        zarr.consolidate_metadata(path)


@contextlib.contextmanager
def group_of(path: pathlib.Path, kind) -> Iterator:
    """Its matrix, to change."""
    with opened(path) as root:
        yield root[kind[1]]


def replace(group, name: str, values: np.ndarray) -> None:
    """Another array under the name, with the attributes of the old one."""
    attributes = dict(group[name].attrs)
    del group[name]
    create = group.create_dataset if isinstance(group, h5py.Group) else group.create_array
    array = create(name, data=values)
    array.attrs.update(attributes)


def read_by_others(path: pathlib.Path, kind) -> Cells | None:
    """What anndata, h5py (10x, loom) or SciPy (mtx) reads of a store, None if it cannot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            names, genes, matrix, labels = _read(path, kind)
            if sp.issparse(matrix):
                matrix.check_format(full_check=True)
                matrix = matrix.toarray()
            counts = np.asarray(matrix, np.float64)
        row, column = np.nonzero(counts)
        if counts.shape != (len(names), len(genes)):
            return None
    except Exception:  # each library raises its own kinds
        return None
    return Cells((row, column, counts[row, column]), names, genes, [GENE] * len(genes), labels)


def _read(path, kind):
    if path.suffix in (".h5ad", ".zarr"):
        data = (anndata.read_zarr if path.suffix == ".zarr" else anndata.read_h5ad)(path)
        of = data.raw if kind[1] == "raw/X" else data
        matrix = data.layers["counts"] if kind[1] == "layers/counts" else of.X
        labels = data.obs.get("cell_type")
        return list(data.obs_names), list(of.var_names), matrix, labels
    if kind[2] == "mtx":
        (matrix,), (features,), (names,) = (path.glob(n) for n in ("matrix*", "[fg]e*", "bar*"))
        table = [line.split("\t") for line in features.read_text().splitlines()]
        kept = [k for k, line in enumerate(table) if not typed(kind) or line[2] == GENE]
        counts = scipy.io.mmread(matrix).toarray().T[:, kept]
        return names.read_text().splitlines(), [table[k][0] for k in kept], counts, None
    with h5py.File(path) as file:
        if path.suffix == ".loom":
            names, genes = (file[n].asstr()[:] for n in ("col_attrs/CellID", "row_attrs/Gene"))
            labels = None
            if "cell_type" in file["col_attrs"]:
                labels = file["col_attrs/cell_type"]
                labels = labels.asstr()[:] if labels.dtype.kind == "O" else labels[:]
            return list(names), list(genes), file["matrix"][:].T, labels
        group = file["matrix"]
        names, genes, kinds = (
            group[n].asstr("utf-8")[:] for n in ("barcodes", "features/id", "features/feature_type")
        )
        arrays = (group[n][:] for n in ("data", "indices", "indptr"))
        matrix = sp.csr_matrix(tuple(arrays), tuple(group["shape"][:][::-1]))
        matrix.check_format(full_check=True)
        kept = np.flatnonzero(kinds == GENE)
        return list(names), list(genes[kept]), matrix.toarray()[:, kept], None
