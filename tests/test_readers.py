"""Reading counts: where they stand, how they are stored, in what chunks, from which files."""

import re

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scaling.corpus import readers

COUNTS = np.random.default_rng(0).poisson(0.7, (25, 6))
LOGGED = np.log1p(COUNTS)


def _write(path, counts, layers=None, raw=None, genes=None, **var) -> None:
    names = [f"g{k}" for k in range(counts.shape[1])]
    cells = pd.DataFrame({"donor": "d"}, index=[f"c{k}" for k in range(counts.shape[0])])
    data = anndata.AnnData(counts, cells, pd.DataFrame(var, index=names), layers=layers)
    if raw is not None:
        data.raw = anndata.AnnData(raw, cells, pd.DataFrame(index=genes or names))
    data.write_h5ad(path)


def _read(path, size=readers.CHUNK_CELLS, rows=None, **options) -> np.ndarray:
    source = readers.open_source(path, **options)
    read = list(readers.chunks(source, rows, size))
    assert all(c.dtype == np.float64 and c.nnz == np.count_nonzero(c.toarray()) for _, c in read)
    expected = np.arange(len(source.obs)) if rows is None else rows
    assert np.concatenate([r for r, _ in read]).tolist() == list(expected)
    return np.concatenate([c.toarray() for _, c in read])


@pytest.mark.parametrize("stored", [sp.csr_matrix, np.asarray])
@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.uint8])
def test_counts_stand_in_x(tmp_path, stored, dtype):
    _write(tmp_path / "a.h5ad", stored(COUNTS.astype(dtype)))
    np.testing.assert_array_equal(_read(tmp_path / "a.h5ad"), COUNTS)
    source = readers.open_source(tmp_path / "a.h5ad")
    assert (source.matrix, source.name) == ("X", "a")
    assert source.genes.tolist() == [f"g{k}" for k in range(6)]
    assert source.obs["donor"].tolist() == ["d"] * 25 and source.obs.index[3] == "c3"


@pytest.mark.parametrize("stored", [sp.csr_matrix, np.asarray])
def test_counts_stand_in_raw_with_genes_of_their_own(tmp_path, stored):
    genes = [f"raw{k}" for k in range(6)]
    path = tmp_path / "a.h5ad"
    _write(path, stored(LOGGED[:, :2]), raw=stored(COUNTS), genes=genes)
    source = readers.open_source(path)
    assert source.matrix == "raw.X" and source.genes.tolist() == genes
    np.testing.assert_array_equal(_read(path), COUNTS)


@pytest.mark.parametrize("stored", [sp.csr_matrix, np.asarray])
def test_counts_stand_in_a_named_layer(tmp_path, stored):
    path = tmp_path / "a.h5ad"
    _write(path, stored(LOGGED), layers={"counts": stored(COUNTS), "other": stored(COUNTS + 1)})
    np.testing.assert_array_equal(_read(path, layer="counts"), COUNTS)
    with pytest.raises(ValueError, match=r"(?s)\.X holds no raw.*data.layer=counts.*=other"):
        readers.open_source(path)


def test_a_file_without_x_has_counts_in_raw(tmp_path):
    path = tmp_path / "a.h5ad"
    _write(path, LOGGED, raw=sp.csr_matrix(COUNTS))
    with h5py.File(path, "r+") as file:
        del file["X"]
    np.testing.assert_array_equal(_read(path), COUNTS)
    with h5py.File(path, "r+") as file:
        del file["raw"]
    with pytest.raises(ValueError, match=r"a\.h5ad: \.X is empty"):
        readers.open_source(path)


def test_layers_and_graphs_are_not_read(tmp_path, monkeypatch):
    path, read = tmp_path / "a.h5ad", []
    _write(path, sp.csr_matrix(COUNTS), layers={"counts": sp.csr_matrix(COUNTS), "b": LOGGED})
    real = anndata.io.read_elem
    monkeypatch.setattr(anndata.io, "read_elem", lambda e: (read.append(e.name), real(e))[1])
    _read(path, layer="counts")
    assert set(read) == {"/obs", "/var"}


def test_stored_zeros_and_doubled_entries_are_no_surprise(tmp_path):
    path = tmp_path / "a.h5ad"
    stored = sp.csr_matrix((np.array([1.0, 0, 2, 3]), [4, 1, 0, 0], [0, 2, 4]), (2, 6))
    _write(path, stored)
    np.testing.assert_array_equal(_read(path), [[0, 0, 0, 0, 1, 0], [5, 0, 0, 0, 0, 0]])


@pytest.mark.parametrize("size", [1, 7, 25, 26])
def test_rows_and_chunk_sizes(tmp_path, size):
    path = tmp_path / "a.h5ad"
    _write(path, sp.csr_matrix(COUNTS))
    np.testing.assert_array_equal(_read(path, size), COUNTS)
    rows = np.array([0, 6, 7, 20, 24])
    np.testing.assert_array_equal(_read(path, size, rows), COUNTS[rows])


@pytest.mark.parametrize("value", [-1.0, 0.5, np.nan, np.inf, -np.inf, 2.0**31])
@pytest.mark.parametrize("stored", [sp.csr_matrix, np.asarray])
def test_a_later_chunk_is_checked_too(tmp_path, value, stored):
    path = tmp_path / "a.h5ad"
    counts = COUNTS.astype(float)
    counts[0] = counts[17, :5] = 0  # an empty row and entries before the fault
    counts[17, 5] = value
    _write(path, stored(counts))
    whole = re.escape(f"{path}: .X holds no raw counts: {value!r} in cell 'c17', gene 'g5'")
    with pytest.raises(ValueError, match=whole):
        readers.open_source(path)
    source = readers.Source(path, "X", np.array([f"g{k}" for k in range(6)], object),
                            pd.DataFrame(index=[f"c{k}" for k in range(25)]))
    with pytest.raises(ValueError, match=whole):
        list(readers.chunks(source, size=4))


def test_the_gene_column_and_its_holes(tmp_path):
    path = tmp_path / "a.h5ad"
    ids = pd.Categorical(["ENSG1", None, "ENSG2", None, "ENSG1", "ENSG3"])
    _write(path, COUNTS, ensembl=ids, entrez=[11, 12, 13, 14, 15, 16])
    source = readers.open_source(path, gene_column="ensembl")
    assert source.genes.tolist() == ["ENSG1", "", "ENSG2", "", "ENSG1", "ENSG3"]
    assert readers.open_source(path, gene_column="entrez").genes[0] == "11"
    with pytest.raises(ValueError, match=r"no column 'gene' in \.var .*'ensembl', 'entrez'"):
        readers.open_source(path, gene_column="gene")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.99, 1.0])
def test_a_truncated_file(tmp_path, share):
    path = tmp_path / "a.h5ad"
    _write(path, sp.csr_matrix(np.tile(COUNTS, (20, 1))))
    content = path.read_bytes()
    path.write_bytes(content[: min(int(len(content) * share), len(content) - 1)])
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*truncated: copy or download"):
        list(readers.chunks(readers.open_source(path)))


@pytest.mark.parametrize("group", ["obs", "var", "X/indptr", "X/data", "X/indices", "raw/var"])
def test_a_file_that_lacks_a_part(tmp_path, group):
    path = tmp_path / "a.h5ad"
    _write(path, sp.csr_matrix(LOGGED), raw=sp.csr_matrix(COUNTS))
    with h5py.File(path, "r+") as file:
        del file[group]
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*copy or download it again"):
        list(readers.chunks(readers.open_source(path)))


def test_globs_and_lists_name_each_file_once(tmp_path, monkeypatch):
    names = ["b.h5ad", "a.h5ad", "more/c.h5ad", "more/deep/d.h5ad"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    paths = sorted(tmp_path / name for name in names)
    assert readers.expand(f"{tmp_path}/**/*.h5ad") == paths
    assert readers.expand(f" {tmp_path}/b.h5ad,{tmp_path}/*.h5ad , ") == paths[:2]
    monkeypatch.chdir(tmp_path)
    assert readers.expand("more/../b.h5ad,b.h5ad") == [tmp_path / "b.h5ad"]
    assert readers.expand("") == []


def test_a_link_keeps_its_own_name(tmp_path):
    (tmp_path / "0f3a").touch()
    (tmp_path / "blood.h5ad").symlink_to(tmp_path / "0f3a")
    assert [path.stem for path in readers.expand(f"{tmp_path}/*.h5ad")] == ["blood"]


def test_lists_that_name_nothing_or_one_name_twice(tmp_path):
    with pytest.raises(ValueError, match=r"no file matches .*none\*\.h5ad.*give a path or a glob"):
        readers.expand(f"{tmp_path}/none*.h5ad")
    (tmp_path / "x").mkdir()
    for path in (tmp_path / "a.h5ad", tmp_path / "x" / "a.h5ad"):
        path.touch()
    with pytest.raises(ValueError, match="a.h5ad and .*a.h5ad share one name; rename"):
        readers.expand(f"{tmp_path}/**/*.h5ad")
