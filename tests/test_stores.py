"""Stores of every family, made by the field's own libraries: the same cells read the same."""

import concurrent.futures
import dataclasses
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import time

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import write_stores as write
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from test_build import SETTINGS

from scaling.corpus import build, readers
from scaling.corpus.stores import by_cell, hdf5, soma

CELLS, GENES = 90, 7
COUNTS = np.random.default_rng(1).poisson(0.6, (CELLS, GENES)).astype(np.int32)
COUNTS[[0, 40, CELLS - 1]] = 0  # cells without counts, where slices begin and end
PRIMARY = np.arange(CELLS) % 5 != 2
DATA = write.cells(COUNTS)
BARCODES, IDS = DATA.obs_names.tolist(), DATA.var_names.tolist()
SYMBOLS = DATA.var["feature_name"].tolist()


@pytest.fixture
def small_blocks(monkeypatch):
    """Copies by cell in many blocks and groups of cells; slices and batches of a few cells."""
    for module in (by_cell, *(m for m in readers.STORES if hasattr(m, "ENTRIES"))):
        monkeypatch.setattr(module, "ENTRIES", 16)
    monkeypatch.setattr("scaling.corpus.stores.loom.SLICE", 8)
    by_cell._done.clear()


def _read(source, size=readers.CHUNK_CELLS, rows=None) -> np.ndarray:
    """Counts [rows, genes], after checks of what chunks promise."""
    read = list(readers.chunks(source, rows, size))
    assert all(c.dtype == np.float64 and c.nnz == np.count_nonzero(c.toarray()) for _, c in read)
    expected = np.arange(len(source.obs)) if rows is None else rows
    assert np.concatenate([r for r, _ in read]).tolist() == list(expected)
    return np.concatenate([c.toarray() for _, c in read])


@pytest.mark.parametrize("name", write.STORES)
def test_the_same_cells_read_the_same(tmp_path, small_blocks, name):
    write.STORES[name](tmp_path / name, DATA)
    (path,) = readers.expand(str(tmp_path / name))
    source = readers.open_source(path)
    assert source.genes.tolist() == IDS and source.genes.dtype == object
    assert source.obs.index.tolist() == BARCODES
    assert source.name == name.split(".")[0]
    if not name.endswith(("mtx", "matrix", ".h5")):
        assert source.obs["donor"].astype(str).tolist() == DATA.obs["donor"].tolist()
    np.testing.assert_array_equal(_read(source), COUNTS)
    np.testing.assert_array_equal(_read(source, size=11), COUNTS)
    rows = np.array([0, 1, 10, 11, 40, 41, 77, CELLS - 1])
    np.testing.assert_array_equal(_read(source, size=11, rows=rows), COUNTS[rows])


def test_another_process_reads_chunks(tmp_path):
    names = ["v3.zarr", "csc.h5ad", "tenx.h5", "old_mtx", "cells.loom", "soma"]
    for name in names:
        write.STORES[name](tmp_path / name, DATA)
    before = set(tmp_path.rglob("*"))
    sources = [readers.open_source(tmp_path / name) for name in names]
    (tmp_path / "pickle").write_bytes(pickle.dumps(sources))
    code = (
        "import pickle, sys; from scaling.corpus import readers; from scaling.corpus.stores import"
        " by_cell; by_cell.stored_by_cell = None; sources = pickle.load(open(sys.argv[1], 'rb'))\n"
        "print([sum(int(c.sum()) for _, c in readers.chunks(source)) for source in sources])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "pickle")]
    done = subprocess.run(command, capture_output=True, text=True, env=_environment())
    assert done.stdout == f"{[int(COUNTS.sum())] * len(names)}\n", done.stderr
    (tmp_path / "pickle").unlink()
    assert set(tmp_path.rglob("*")) == before


def _environment(**more) -> dict:
    return {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1]), **more}


def test_copies_by_cell_are_made_once_and_go_with_their_process(tmp_path):
    write.h5ad(tmp_path / "a.h5ad", DATA, sp.csc_matrix)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    code = (
        "import os, pathlib, sys; from scaling.corpus import readers\n"
        "here = pathlib.Path(os.environ['TMPDIR'])\n"
        "copies = lambda: sorted(p.name for p in here.rglob('*') if p.is_file())\n"
        "first = readers.open_source(sys.argv[1]); again = readers.open_source(sys.argv[1])\n"
        "assert first.by_cell == again.by_cell and copies() == ['0.h5'], copies()\n"
        "os.utime(sys.argv[1], (1, 1)); other = readers.open_source(sys.argv[1])\n"
        "assert other.by_cell != again.by_cell and copies() == ['0.h5', '1.h5'], copies()\n"
        "if not os.fork(): sys.exit()\n"
        "os.wait(); assert copies() == ['0.h5', '1.h5']; other.by_cell.unlink()\n"
        "print(sum(int(c.sum()) for _, c in readers.chunks(other)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.h5ad")]
    environment = _environment(TMPDIR=str(temporary))
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout == f"{COUNTS.sum()}\n", done.stderr
    assert not list(temporary.iterdir())


def test_no_room_for_a_copy(tmp_path, monkeypatch):
    write.h5ad(tmp_path / "a.h5ad", DATA, sp.csc_matrix)
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(by_cell.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"a\.h5ad: needs 0\.0 GB of .*set TMPDIR"):
        readers.open_source(tmp_path / "a.h5ad")


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 3), st.integers(0, 9)), max_size=60),
    st.integers(1, 20),
)
def test_entries_in_any_order_are_stored_by_cell(entries, size):
    cells, genes, counts = np.array(entries, np.int64).reshape(-1, 3).T

    def blocks():
        for start in range(0, len(cells), size):
            part = slice(start, start + size)
            yield cells[part], genes[part], counts[part]

    triplets = by_cell.Triplets((12, 4), len(cells), np.dtype(np.int64), blocks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_cell, "ENTRIES", size)
        copy = by_cell.stored_by_cell(triplets, "any", (size, *map(tuple, entries), object()))
    with by_cell.opened(copy, 4) as rows:
        found = rows[0:12]
    copy.unlink()
    expected = sp.coo_matrix((counts, (cells, genes)), (12, 4)).toarray()
    np.testing.assert_array_equal(found.toarray(), expected)


def test_layers_and_gene_columns(tmp_path):
    layers = {"counts": sp.csc_matrix(COUNTS)}
    logged = anndata.AnnData(np.log1p(COUNTS), DATA.obs, DATA.var, layers=layers)
    logged.write_h5ad(tmp_path / "a.h5ad")
    write.loom(tmp_path / "l.loom", DATA)
    source = readers.open_source(tmp_path / "a.h5ad", layer="counts", gene_column="feature_name")
    assert source.matrix == "layers/counts" and source.genes.tolist() == SYMBOLS
    np.testing.assert_array_equal(_read(source), COUNTS)
    source = readers.open_source(tmp_path / "l.loom", layer="twice", gene_column="Gene")
    assert source.matrix == "layers/twice" and source.genes.tolist() == SYMBOLS
    np.testing.assert_array_equal(_read(source), 2 * COUNTS)
    write.h5(tmp_path / "t.h5", DATA), write.mtx(tmp_path / "m", DATA)
    for path in (tmp_path / "t.h5", tmp_path / "m"):
        assert readers.open_source(path, gene_column="name").genes.tolist() == SYMBOLS
        with pytest.raises(ValueError, match=r"no layer 'raw' \(there are: \[\]\)"):
            readers.open_source(path, layer="raw")
    with pytest.raises(ValueError, match=r"l\.loom: no layer 'raw' \(there are: \['twice'\]\)"):
        readers.open_source(tmp_path / "l.loom", layer="raw")


def test_features_that_are_no_genes_are_left_out(tmp_path):
    kinds = [write.EXPRESSION, "Antibody Capture"] * 3 + [write.EXPRESSION]
    kept = np.flatnonzero([kind == write.EXPRESSION for kind in kinds])
    write.h5(tmp_path / "t.h5", DATA, kinds), write.mtx(tmp_path / "m", DATA, features=kinds)
    for path in (tmp_path / "t.h5", tmp_path / "m"):
        source = readers.open_source(path)
        assert source.genes.tolist() == [IDS[k] for k in kept]
        np.testing.assert_array_equal(_read(source, 13), COUNTS[:, kept])


def test_10x_files_of_the_public_reader(tmp_path):
    import scanpy

    write.h5(tmp_path / "t.h5", DATA), write.h5_of_genomes(tmp_path / "old.h5", DATA)
    write.mtx(tmp_path / "m", DATA)
    for name, read in (("t.h5", scanpy.read_10x_h5), ("old.h5", scanpy.read_10x_h5),
                       ("m", scanpy.read_10x_mtx)):
        theirs, source = read(tmp_path / name), readers.open_source(tmp_path / name)
        np.testing.assert_array_equal(_read(source), theirs.X.toarray())
        assert source.obs.index.tolist() == theirs.obs_names.tolist()
        assert source.genes.tolist() == theirs.var["gene_ids"].tolist()


def test_counts_of_several_genomes(tmp_path):
    write.h5_of_genomes(tmp_path / "a.h5", DATA, ("GRCh38", "mm10"))
    with pytest.raises(ValueError, match=r"a\.h5: counts of \['GRCh38', 'mm10'\]; set data\.layer"):
        readers.open_source(tmp_path / "a.h5")
    source = readers.open_source(tmp_path / "a.h5", layer="mm10")
    np.testing.assert_array_equal(_read(source), COUNTS)


@pytest.mark.parametrize("census", [False, True])
def test_only_primary_cells_of_soma_unless_asked_otherwise(tmp_path, census):
    made = write.census if census else write.soma
    made(tmp_path / "s", write.cells(COUNTS, PRIMARY))
    source = readers.open_source(tmp_path / "s")
    names = [str(k) if census else f"c{k}" for k in range(CELLS)]
    assert source.obs.index.tolist() == [n for n, p in zip(names, PRIMARY, strict=True) if p]
    assert source.matrix == 'X["raw"]' and source.genes.tolist() == IDS
    assert source.obs["soma_joinid"].tolist() == np.flatnonzero(PRIMARY).tolist()
    np.testing.assert_array_equal(_read(source, 7), COUNTS[PRIMARY])
    every = readers.open_source(tmp_path / "s", primary_only=False, gene_column="feature_name")
    assert every.obs.index.tolist() == names and every.genes.tolist() == SYMBOLS
    np.testing.assert_array_equal(_read(every, 7), COUNTS)


def test_a_corpus_of_several_kinds_of_stores(tmp_path):
    write.h5ad(tmp_path / "a.h5ad", write.cells(COUNTS + 1))
    write.zarr(tmp_path / "b.zarr", write.cells(COUNTS + 2))
    write.soma(tmp_path / "c", write.cells(COUNTS + 3, PRIMARY))
    write.mtx(tmp_path / "d", write.cells(COUNTS + 4))
    changes = {"h5ad": f"{tmp_path}/[a-d]*", "cells_per_shard": 1000}
    given = dataclasses.replace(SETTINGS, **changes)
    corpus = build.build(given, tmp_path / "out" / "corpus")
    kinds = {n: int((corpus.obs["dataset"] == n).sum()) for n in "abcd"}
    assert kinds == {"a": CELLS, "b": CELLS, "c": PRIMARY.sum(), "d": CELLS}
    picked = np.random.default_rng(0).permutation(len(corpus.obs))[:50]
    rows = corpus.obs["row"].to_numpy()[picked]
    added = corpus.obs["dataset"].map({"a": 1, "b": 2, "c": 3, "d": 4}).to_numpy()[picked]
    cells = np.where(added == 3, np.flatnonzero(PRIMARY)[rows % PRIMARY.sum()], rows)
    np.testing.assert_array_equal(corpus.counts(picked).toarray(), COUNTS[cells] + added[:, None])
    (tmp_path / "b.zarr" / "X" / "more").touch()  # a change within a store is one of the inputs
    with pytest.raises(ValueError, match="built with other inputs"):
        build.build(given, tmp_path / "out" / "corpus")


def test_values_that_are_no_counts_are_named(tmp_path):
    counts = COUNTS.astype(np.float64)
    counts[50, 3] = 0.5
    data = write.cells(counts)
    write.h5ad(tmp_path / "a.h5ad", data, sp.csc_matrix), write.zarr(tmp_path / "b.zarr", data, 3)
    write.mtx(tmp_path / "c", data)
    for name in ("a.h5ad", "b.zarr", "c"):
        with pytest.raises(ValueError, match=rf"{name}: \.X holds no raw .* 0\.5 in cell 'c50'"):
            readers.open_source(tmp_path / name)


@pytest.mark.parametrize("name", ["csr.h5ad", "csc.h5ad", "tenx.h5", "cells.loom"])
def test_remote_hdf5_files(tmp_path, name):
    fsspec = pytest.importorskip("fsspec")
    write.STORES[name](tmp_path / name, DATA)
    address = f"memory://stores/{name}"
    fsspec.filesystem("memory").pipe(address, (tmp_path / name).read_bytes())
    assert readers.expand(f"{tmp_path}/{name[:1]}*, {address}.2") == [
        tmp_path / name, f"{address}.2"
    ]
    (path,) = readers.expand(address)
    source = readers.open_source(path)
    assert source.path == address and source.name == name.split(".")[0]
    np.testing.assert_array_equal(_read(source, 20), COUNTS)
    with pytest.raises(ValueError, match=r"memory://stores/none\.h5ad: not a readable \.h5ad"):
        readers.open_source("memory://stores/none.h5ad")


@pytest.mark.parametrize("version", [2, 3])
def test_remote_zarr_stores(tmp_path, version):
    fsspec = pytest.importorskip("fsspec")
    write.zarr(tmp_path / "a.zarr", DATA, version)
    address = f"memory://zarr{version}/a.zarr"
    fsspec.filesystem("memory").put(str(tmp_path / "a.zarr"), address, recursive=True)
    source = readers.open_source(address)
    assert source.genes.tolist() == IDS and source.name == "a"
    np.testing.assert_array_equal(_read(source, 20), COUNTS)
    with pytest.raises(ValueError, match=r"none\.zarr: not a readable zarr store"):
        readers.open_source("memory://stores/none.zarr")


@pytest.mark.parametrize("address", ["s3://bucket/a.h5ad", "gs://bucket/a.loom", "s3://b/a.zarr"])
def test_packages_that_are_missing_are_named(address, monkeypatch):
    pytest.importorskip("fsspec")
    for package in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, package, None)
    package = "s3fs" if address.startswith("s3") else "gcsfs"
    with pytest.raises(ValueError, match=rf"{address}: .*{package}.*scaling\[remote\]"):
        readers.open_source(address)
    monkeypatch.setitem(sys.modules, "tiledbsoma", None)
    with pytest.raises(ValueError, match=r"s3://c/homo_sapiens: .*tiledbsoma.*scaling\[soma\]"):
        readers.open_source("s3://c/homo_sapiens")


def _truncate(path: pathlib.Path, share: float = 0.6) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def _largest(folder: pathlib.Path) -> pathlib.Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("name", write.STORES)
def test_truncated_stores(tmp_path, name):
    path = tmp_path / name
    write.STORES[name](path, DATA)
    damaged = path
    if path.is_dir():
        damaged = next(path.glob("matrix.mtx*"), None) or next(path.glob("X/data/[0-9c]*"), None)
        damaged = damaged or next(path.glob("X/[0-9c]*"), None) or _largest(path / "ms/RNA/X/raw")
        damaged = damaged if damaged.is_file() else _largest(damaged)
    _truncate(damaged)
    with pytest.raises(ValueError, match=f"{path}.*copy or download (it|the folder) again"):
        list(readers.chunks(readers.open_source(path)))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("part", ["data", "indices", "indptr"])
def test_a_zarr_store_that_lacks_a_chunk(tmp_path, version, part):
    write.zarr(tmp_path / "a.zarr", DATA, version)
    chunks = tmp_path / "a.zarr" / "X" / part
    shutil.rmtree(chunks / "c") if version == 3 else (chunks / "0").unlink()
    with pytest.raises(ValueError, match=r"a\.zarr: .*copy or download it again"):
        readers.open_source(tmp_path / "a.zarr")


@pytest.mark.parametrize(
    ("part", "remove"),
    [("barcodes.tsv.gz", True), ("features.tsv.gz", True), ("barcodes.tsv.gz", False),
     ("features.tsv.gz", False), ("matrix.mtx.gz", False)],
)
def test_10x_folders_that_are_not_whole(tmp_path, part, remove):
    write.mtx(tmp_path / "m", DATA)
    file = tmp_path / "m" / part
    file.unlink() if remove else _truncate(file)
    with pytest.raises(ValueError, match=rf"{tmp_path}/m.*{part if remove else 'again'}"):
        readers.open_source(tmp_path / "m")


def _lines(path, change) -> None:
    file = path / "matrix.mtx"
    file.write_text("\n".join(change(file.read_text().splitlines())) + "\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-3], r"entries in the matrix, its header says"),
        (lambda lines: [*lines[:-1], f"{GENES + 1} 1 5"], f"none of the {GENES} features"),
        (lambda lines: [*lines[:-1], f"1 {CELLS + 1} 5"], "an entry lies outside of"),
        (lambda lines: [*lines[:-1], "0 1 5"], f"none of the {GENES} features"),
        (lambda lines: [*lines[:-1], "1 0 5"], "an entry lies outside of"),
        (lambda lines: [*lines[:-1], "1 x 5"], "not a readable 10x folder"),
        (lambda lines: ["%%MatrixMarket matrix array real general", *lines[1:]], "MatrixMarket"),
        (lambda lines: lines[:1], "not a readable MatrixMarket file"),
        (lambda lines: [s.replace(f"{GENES} {CELLS}", f"{GENES} 9") for s in lines], "the shape"),
        (lambda lines: [s.replace(f"{GENES} {CELLS}", f"9 {CELLS}") for s in lines], "9 rows in"),
    ],
)
def test_matrices_that_contradict_themselves(tmp_path, change, message):
    write.mtx(tmp_path / "m", DATA, old=True)
    _lines(tmp_path / "m", change)
    with pytest.raises(ValueError, match=rf"{tmp_path}/m.*{message}"):
        readers.open_source(tmp_path / "m")


def test_shapes_that_do_not_fit(tmp_path):
    write.h5(tmp_path / "t.h5", DATA)
    with h5py.File(tmp_path / "t.h5", "r+") as file:
        file["matrix/shape"][1] = CELLS + 1
    with pytest.raises(ValueError, match=rf"t\.h5: not a readable 10x .* for {CELLS + 1} rows"):
        readers.open_source(tmp_path / "t.h5")
    write.h5(tmp_path / "i.h5", DATA)
    with h5py.File(tmp_path / "i.h5", "r+") as file:
        file["matrix/indices"][5] = GENES
    with pytest.raises(ValueError, match=r"i\.h5: cells 0-90 of X cannot be read"):
        readers.open_source(tmp_path / "i.h5")
    write.loom(tmp_path / "l.loom", DATA)
    for group, name in (("col_attrs", "donor"), ("row_attrs", "Gene")):
        with h5py.File(tmp_path / "l.loom", "r+") as file:
            values = file[group][name][:-1]
            del file[group][name]
            file[group][name] = values
        with pytest.raises(ValueError, match=r"l\.loom: not a readable .*different lengths"):
            readers.open_source(tmp_path / "l.loom")


@pytest.mark.parametrize("stored", [sp.csr_matrix, sp.csc_matrix])
@pytest.mark.parametrize(
    ("part", "at", "value"),
    [("indptr", 0, 1), ("indptr", 5, 10_000), ("indptr", -1, 3), ("indices", 5, 10_000)],
)
def test_sparse_arrays_that_contradict_each_other(tmp_path, stored, part, at, value):
    write.h5ad(tmp_path / "a.h5ad", DATA, stored)
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        array = file["X"][part]
        array[at % len(array)] = value
    with pytest.raises(ValueError, match=r"a\.h5ad.*copy or download it again"):
        readers.open_source(tmp_path / "a.h5ad")


@pytest.mark.parametrize("stored", [sp.csr_matrix, sp.csc_matrix])
def test_counts_that_no_row_holds(tmp_path, stored):
    write.h5ad(tmp_path / "a.h5ad", DATA, stored)
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        pointers = file["X/indptr"]
        pointers[len(pointers) // 2 :] = pointers[len(pointers) // 2]
    with pytest.raises(ValueError, match=r"a\.h5ad: not a readable .*indptr does not divide"):
        readers.open_source(tmp_path / "a.h5ad")


def test_duplicate_barcodes_and_names_that_are_missing(tmp_path):
    twice = np.array(["c1", *BARCODES[1:]])
    write.loom(tmp_path / "l.loom", DATA, CellID=twice)
    write.h5(tmp_path / "t.h5", DATA), write.mtx(tmp_path / "m", DATA)
    with h5py.File(tmp_path / "t.h5", "r+") as file:
        file["matrix/barcodes"][0] = b"c1"
    pd.Series(twice).to_csv(tmp_path / "m/barcodes.tsv.gz", header=False, index=False)
    for name in ("l.loom", "t.h5", "m"):
        with pytest.raises(ValueError, match=rf"{tmp_path / name}: cell name 'c1' stands twice"):
            readers.open_source(tmp_path / name)
    with h5py.File(tmp_path / "l.loom", "r+") as file:
        del file["col_attrs/CellID"]
    with pytest.raises(ValueError, match=r"l\.loom: .*none of \['obs_names', 'CellID'\]"):
        readers.open_source(tmp_path / "l.loom")


def test_empty_matrices(tmp_path):
    write.mtx(tmp_path / "m", DATA, old=True)
    (tmp_path / "m/barcodes.tsv").write_text("")
    with pytest.raises(ValueError, match=rf"{tmp_path}/m: 0 cells x {GENES} genes; nothing"):
        readers.open_source(tmp_path / "m")
    empty = anndata.AnnData(sp.csc_matrix((0, 3)))
    empty.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match=r"a\.h5ad: 0 cells x 3 genes"):
        readers.open_source(tmp_path / "a.h5ad")
    nothing = write.cells(np.zeros_like(COUNTS))
    for name in ("csr.h5ad", "csc.h5ad", "v3.zarr", "tenx.h5", "old_mtx", "cells.loom", "soma"):
        write.STORES[name](tmp_path / name, nothing)
        assert not _read(readers.open_source(tmp_path / name)).any()


def test_folders_and_experiments_of_something_else(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(ValueError, match=rf"{tmp_path}/x: a folder that is no .* name one"):
        readers.open_source(tmp_path / "x")
    zarr.open_group(tmp_path / "g.zarr", mode="w")
    with pytest.raises(ValueError, match=r"g\.zarr: not a readable zarr store"):
        readers.open_source(tmp_path / "g.zarr")
    write.soma(tmp_path / "s", DATA)
    with pytest.raises(ValueError, match="ms: a Collection, no SOMA experiment; name the folder"):
        readers.open_source(tmp_path / "s" / "ms")
    with pytest.raises(ValueError, match=r"s: no layer 'counts' \(there are: \['raw'\]\)"):
        readers.open_source(tmp_path / "s", layer="counts")
    shutil.rmtree(tmp_path / "s" / "obs")
    with pytest.raises(ValueError, match=f"s: not a readable {soma.KIND}"):
        readers.open_source(tmp_path / "s")


def test_folders_keep_their_whole_name(tmp_path):
    write.mtx(tmp_path / "run.v1", DATA)
    assert readers.open_source(tmp_path / "run.v1").name == "run.v1"
    write.mtx(tmp_path / "run.v2", DATA)
    assert len(readers.expand(f"{tmp_path}/run.*")) == 2


PEAK = """
import sys
from scaling.corpus import readers
source = readers.open_source(sys.argv[1])
total = sum(int(counts.sum()) for _, counts in readers.chunks(source))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(len(source.obs), total, int(peak.split()[1]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="peaks are not told")
@pytest.mark.parametrize(
    "name",
    ["csr.h5ad", "csc.h5ad", "dense.h5ad", "v3.zarr", "csc.zarr", "tenx.h5",
     "filtered_feature_bc_matrix", "cells.loom", "soma"],
)
def test_ten_times_the_cells_take_little_more_memory(tmp_path, name):
    rng, peaks = np.random.default_rng(0), []
    for cells in (20_000, 200_000):
        genes = np.arange(0, 400, 4) + rng.integers(0, 4, (cells, 100))  # 100 a cell
        counts = rng.integers(1, 10, genes.size, np.int32)
        matrix = counts, genes.ravel(), np.arange(0, genes.size + 1, 100)
        data = write.cells(sp.csr_matrix(matrix, (cells, 400)))
        write.STORES[name](tmp_path / name, data)
        command = [sys.executable, "-c", PEAK, str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, env=_environment())
        assert done.returncode == 0, done.stderr
        *read, peak = map(int, done.stdout.split())
        assert read == [cells, counts.sum()]
        peaks.append(peak)
        shutil.rmtree(tmp_path / name) if (tmp_path / name).is_dir() else (tmp_path / name).unlink()
    # The counts of the larger store alone are 216 MB more; names and annotations of cells are read.
    assert peaks[1] - peaks[0] < 110, f"peaks of {peaks} MB"


@pytest.mark.parametrize("options", [
    {}, {"chunks": (7,)}, {"chunks": (7,), "compression": "gzip"}, {"compression": "lzf"},
    {"chunks": (7,), "compression": "gzip", "shuffle": True},
    {"chunks": (7,), "compression": "gzip", "fletcher32": True},
    {"chunks": (64,), "compression": "gzip", "compression_opts": 9, "maxshape": (None,)},
])
@pytest.mark.parametrize("dtype", ["<i4", ">i8", "<f4", "<u2"])
def test_spans_are_what_hdf5_reads(tmp_path, options, dtype):
    values = np.arange(50).astype(dtype)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        dataset = file.create_dataset("x", data=values, **options)
        for start, stop in ((0, 50), (0, 0), (6, 8), (7, 14), (49, 50), (13, 41)):
            found = hdf5.span(dataset, start, stop)
            assert (found.dtype.kind, found.itemsize) == (values.dtype.kind, values.itemsize)
            np.testing.assert_array_equal(found, values[start:stop])


def test_spans_over_chunks_that_are_out_of_the_ordinary(tmp_path):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        options = {"chunks": (10,), "compression": "gzip", "fillvalue": 3}
        dataset = file.create_dataset("x", (40,), "i4", **options)
        dataset[:10], dataset[30:] = 1, 2
        dataset.id.write_direct_chunk((20,), np.full(10, 5, "<i4").tobytes(), filter_mask=1)
        np.testing.assert_array_equal(hdf5.span(dataset, 5, 35), dataset[5:35])
        assert hdf5.span(dataset, 5, 35).tolist() == [1] * 5 + [3] * 10 + [5] * 10 + [2] * 5
        dataset.id.write_direct_chunk((0,), b"no gzip at all")
        with pytest.raises(OSError, match="inflate|filter"):
            hdf5.span(dataset, 0, 40)


def test_chunks_of_gzip_are_unpacked_here(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        values = np.arange(40)
        dataset = file.create_dataset("x", data=values, chunks=(10,), compression="gzip")
        monkeypatch.setattr(h5py.Dataset, "__getitem__", None)
        assert hdf5.span(dataset, 3, 38).tolist() == list(range(3, 38))


def test_threads_share_one_copy_by_cell():
    calls, matrix = [], sp.random(40, 6, 0.5, random_state=0).tocoo()

    def blocks():
        calls.append(1)
        time.sleep(0.05)
        yield matrix.row.astype(np.int64), matrix.col, matrix.data

    triplets = by_cell.Triplets(matrix.shape, matrix.nnz, matrix.dtype, blocks)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        asked = [(triplets, "m", "shared by threads")] * 4
        assert len(set(pool.map(by_cell.stored_by_cell, *zip(*asked, strict=True)))) == 1
    assert len(calls) == 2  # once to count, once to write
