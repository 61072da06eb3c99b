"""CellRanger's `matrix.mtx` folders -> barcodes, features, counts as triplets.

Genes are named, and other features left out, as in `tenx.py`.
"""

import contextlib
import gzip
import pathlib
import zlib
from collections.abc import Iterator

import numpy as np
import pandas as pd

from scaling.corpus.stores.by_cell import Block, Triplets
from scaling.corpus.stores.contents import Address, Contents, broken, check_layer, remote
from scaling.corpus.stores.tenx import is_gene

KIND = "10x folder"
FEATURES = ("features.tsv.gz", "features.tsv", "genes.tsv.gz", "genes.tsv")
BARCODES = ("barcodes.tsv.gz", "barcodes.tsv")
MATRIX = ("matrix.mtx.gz", "matrix.mtx")
ENTRIES = 2**19  # lines parsed at a time
BROKEN = (OSError, EOFError, ValueError, zlib.error)


def recognises(path: Address) -> bool:
    """True of folders with a `matrix.mtx` or `matrix.mtx.gz`."""
    return not remote(path) and any((path / name).is_file() for name in MATRIX)


def tables(path: pathlib.Path, layer: str) -> Contents:
    """Barcodes, and features with `name` and `feature_type` as far as they are given."""
    check_layer(path, layer, [], "its one matrix")
    barcodes, features = _read_tables(path)
    return Contents(pd.DataFrame(index=barcodes), {"X": features[is_gene(features)]}, [])


@contextlib.contextmanager
def matrix(path: pathlib.Path, name: str, obs: pd.DataFrame) -> Iterator[Triplets]:
    """The counts of genes."""
    with _stream(path) as (shape, entries, dtype, _):
        pass
    features = _read_tables(path)[1]
    if shape[1] != len(features):
        raise ValueError(
            f"{path}: {shape[1]} rows in the matrix, {len(features)} features; "
            "copy or download the folder again"
        )
    yield _triplets(path, features, (shape[0], entries, dtype))


def _find(path: pathlib.Path, names: tuple[str, ...]) -> pathlib.Path:
    for name in names:
        if (path / name).is_file():
            _check_end(path / name)
            return path / name
    raise ValueError(f"{path}: none of {', '.join(names)}; copy or download the folder again")


def _check_end(file: pathlib.Path) -> None:
    # A text that was cut in its last line still reads, with another number or name at the end.
    with open(file, "rb") as content:
        size = content.seek(0, 2)
        content.seek(max(size - 1, 0))
        if file.suffix != ".gz" and size and content.read() != b"\n":
            raise ValueError(
                f"{file}: its last line has no end; it may be truncated: copy or download it "
                "again, or end the line where it is whole"
            )


def _read_tables(path: pathlib.Path) -> tuple[np.ndarray, pd.DataFrame]:
    files = _find(path, BARCODES), _find(path, FEATURES)
    read = {"sep": "\t", "header": None, "dtype": str, "keep_default_na": False, "quoting": 3}
    tables = []
    for file in files:
        try:
            tables.append(pd.read_csv(file, **read))
        except pd.errors.EmptyDataError:
            tables.append(pd.DataFrame({0: []}, dtype=str))
        except BROKEN as error:
            raise ValueError(broken(file, f"table of a {KIND}", error)) from error
    barcodes, features = tables
    columns = {k: n for k, n in enumerate(("id", "name", "feature_type")) if k in features}
    features = features[list(columns)].rename(columns=columns).set_index("id")
    return barcodes[0].to_numpy(object), features


@contextlib.contextmanager
def _stream(path: pathlib.Path) -> Iterator[tuple[tuple[int, int], int, np.dtype, object]]:
    """Shape (cells, features), entries, dtype and the open text after the header."""
    file = _find(path, MATRIX)
    with gzip.open(file, "rt") if file.suffix == ".gz" else open(file) as text:
        try:
            banner = text.readline().lower().split()
            line = text.readline()
            while line.startswith("%") or (line and not line.strip()):
                line = text.readline()
            features, cells, entries = map(int, line.split())
            kind = " ".join(banner[:3] + banner[4:])
            if kind != "%%matrixmarket matrix coordinate general":
                raise ValueError(f"{kind!r} is no general coordinate matrix")
            dtype = np.dtype({"integer": np.int64, "real": np.float64}[banner[3]])
        except (*BROKEN, KeyError) as error:
            raise ValueError(broken(file, "MatrixMarket file", error)) from error
        yield (cells, features), entries, dtype, text


def _triplets(path: pathlib.Path, features: pd.DataFrame, header: tuple) -> Triplets:
    cells, entries, dtype = header
    genes = is_gene(features)
    column = np.where(genes, np.cumsum(genes) - 1, -1)
    types = {"feature": np.int64, "cell": np.int64, "count": dtype}

    def parts() -> Iterator[pd.DataFrame]:
        with _stream(path) as (_, _, _, text):
            options = {"sep": " ", "header": None, "names": list(types), "dtype": types}
            try:
                yield from pd.read_csv(text, chunksize=ENTRIES, **options)
            except pd.errors.EmptyDataError:
                return
            except BROKEN as error:
                raise ValueError(broken(path, KIND, error)) from error

    def blocks() -> Iterator[Block]:
        read = 0
        for part in parts():
            read += len(part)
            feature = part["feature"].to_numpy() - 1
            if ((feature < 0) | (feature >= len(features))).any():
                raise ValueError(
                    f"{path}: an entry's row is none of the {len(features)} features; "
                    "copy or download the folder again"
                )
            kept = column[feature] >= 0
            yield (
                part["cell"].to_numpy()[kept] - 1,
                column[feature[kept]].astype(np.int32),
                part["count"].to_numpy()[kept],
            )
        if read != entries:
            raise ValueError(
                f"{path}: {read} entries in the matrix, its header says {entries}; it may be "
                "truncated: copy or download it again"
            )

    return Triplets((cells, int(genes.sum())), entries, dtype, blocks)
