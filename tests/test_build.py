"""`.h5ad` files to a corpus, end to end, against a literal reference."""

import dataclasses
import hashlib
import json
import os
import pickle

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scaling import prepare
from scaling.corpus import build, readers, subsets
from scaling.corpus.vocabulary import Vocabulary

SETTINGS = build.CorpusSettings(
    h5ad="", score_on="", gene_names="", gene_column="", layer="", vocabulary="", min_cells=1,
    primary_only=True, cell_type="", donor="", batch="", assay="", keep={}, held_out=0.25,
    split_seed=0, cells_per_shard=7, medians="exact", workers=1, scheduler="", draw=0,
)


def _counts(cells=30, genes=8, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(1.2, (cells, genes))


def _write(path, counts, genes=None, layers=None, raw=None, **obs):
    genes = genes or [f"g{k}" for k in range(counts.shape[1])]
    cells = pd.DataFrame(obs, index=[f"c{k}" for k in range(counts.shape[0])])
    names = pd.DataFrame({"symbol": pd.Categorical(genes)}, [f"n{k}" for k in range(len(genes))])
    data = anndata.AnnData(counts, cells, names, layers=layers)
    if raw is not None:
        data.raw = anndata.AnnData(raw, cells, names)
    data.write_h5ad(path)
    return path


def _build(out, **changes):
    return build.build(dataclasses.replace(SETTINGS, gene_column="symbol", **changes), out)


def _frame(name, counts, genes=None) -> pd.DataFrame:
    genes = genes or [f"g{k}" for k in range(counts.shape[1])]
    return pd.DataFrame(counts, [f"{name}:c{k}" for k in range(len(counts))], genes)


def _assert_as_reference(corpus, frame, min_cells=1, totals=None, vocabulary=None) -> None:
    """Compares a corpus with counts [cells, gene ids], cell by cell and gene by gene."""
    frame = frame.fillna(0.0)
    totals = frame.sum(axis=1) if totals is None else totals
    assert corpus.obs["cell_id"].tolist() == frame.index.tolist()
    medians = vocabulary or {}
    pool = frame[(corpus.obs["split"] == "pool").to_numpy()]
    for gene in [] if vocabulary else sorted(frame.columns):
        cells = pool.index[pool[gene] > 0]
        if len(cells) >= min_cells:
            scaled = [pool[gene][cell] / totals[cell] * 10_000.0 for cell in cells]
            medians[gene] = np.median(scaled)
    assert list(corpus.vocabulary.genes) == list(medians)
    assert corpus.vocabulary.medians.tolist() == list(medians.values())
    token = {gene: k + 2 for k, gene in enumerate(medians)}
    for row, (cell, counts) in enumerate(frame.iterrows()):
        score = {g: counts[g] / totals[cell] * 10_000.0 / medians[g] for g in token if counts[g]}
        expected = [token[g] for g in sorted(score, key=lambda g: (-score[g], token[g]))]
        assert corpus.tokens([row], len(token))[0, : len(expected)].tolist() == expected
        assert corpus.obs["length"][row] == len(expected) > 0
        assert corpus.obs["total"][row] == totals[cell]


@pytest.mark.parametrize("stored", [sp.csr_matrix, np.asarray])
@pytest.mark.parametrize("matrix", ["X", "raw.X", "layers/raw"])
def test_end_to_end(tmp_path, stored, matrix):
    counts = stored(_counts()), stored(_counts(20, 6, 1))
    for name, c in zip("ab", counts, strict=True):
        where = {"X": {}, "raw.X": {"raw": c}, "layers/raw": {"layers": {"raw": c}}}[matrix]
        genes = [f"g{k + (name == 'b') * 5}" for k in range(c.shape[1])]
        donor = [f"{name}{k % 4}" for k in range(c.shape[0])]
        _write(tmp_path / f"{name}.h5ad", np.log1p(c) if where else c, genes, **where, d=donor)
    layer = matrix.partition("/")[2]
    changes = {"h5ad": f"{tmp_path}/a.h5ad,{tmp_path}/*.h5ad", "layer": layer, "donor": "d"}
    corpus = _build(tmp_path / "corpus", **changes)
    frames = _frame("a", _counts()), _frame("b", _counts(20, 6, 1), [f"g{k}" for k in range(5, 11)])
    _assert_as_reference(corpus, pd.concat(frames))

    manifest = json.loads((corpus.folder / "manifest.json").read_text())
    assert manifest["settings"] == dataclasses.replace(
        SETTINGS, gene_column="symbol", **changes
    ).content()
    assert manifest["vocabulary"] == {"hash": corpus.vocabulary.hash, "tokens": 13}
    assert manifest["cells"] == corpus.obs["split"].value_counts().to_dict()
    assert manifest["tokens"] == corpus.obs["length"].sum() == sum((c > 0).sum() for c in counts)
    assert [f["matrix"] for f in manifest["files"]] == [matrix] * 2
    assert [(f["name"], f["cells"], f["genes"]) for f in manifest["files"]] == [
        ("a", 30, 8), ("b", 20, 6)]
    written = {path.name for path in corpus.folder.iterdir()} - {"manifest.json"}
    assert written == set(manifest["checksums"]) and len(written) == 3 + 8
    for name, checksum in manifest["checksums"].items():
        content = (corpus.folder / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == checksum
    assert corpus.obs["donor"].tolist() == [f"a{k % 4}" for k in range(30)] + [
        f"b{k % 4}" for k in range(20)]


@pytest.fixture
def many(tmp_path) -> tuple[str, pd.DataFrame]:
    """A file of 90 cells with few genes each, and its counts."""
    counts = np.random.default_rng(3).poisson(np.geomspace(0.02, 8, 40), (90, 40))
    counts[:, 0] = 0
    groups = {"d": [f"d{k % 9}" for k in range(90)], "b": [f"b{k % 5}" for k in range(90)]}
    return str(_write(tmp_path / "m.h5ad", sp.csr_matrix(counts), **groups)), _frame("m", counts)


@pytest.mark.parametrize("values", [1, 40, 2**28])
def test_medians_are_exact_in_one_pass_or_many(tmp_path, monkeypatch, many, values):
    monkeypatch.setattr(build, "MEDIAN_VALUES", values)
    _assert_as_reference(_build(tmp_path / "corpus", h5ad=many[0], min_cells=4), many[1], 4)


def test_the_size_of_chunks_changes_nothing(tmp_path, monkeypatch, many):
    whole = _build(tmp_path / "whole", h5ad=many[0])
    monkeypatch.setattr(readers.chunks, "__defaults__", (None, 8))
    parts = _build(tmp_path / "parts", h5ad=many[0])
    assert whole.manifest["checksums"] == parts.manifest["checksums"]


@pytest.mark.parametrize("column", ["donor", "batch", "cell"])
def test_held_out_cells_do_not_shape_the_vocabulary(tmp_path, many, column):
    path, frame = many
    groups = {"donor": {"donor": "d"}, "batch": {"batch": "b"}, "cell": {}}[column]
    before = _build(tmp_path / "before", h5ad=path, **groups)
    assert before.manifest["split_by"] == column
    held_out = (before.obs["split"] == "held_out").to_numpy()
    assert 0.25 * 90 - 1 <= held_out.sum() < 45
    if column != "cell":
        assert not set(before.obs[column][held_out]) & set(before.obs[column][~held_out])
    labels = {name: before.obs[name].tolist() for name in groups}
    changed = frame.to_numpy().copy()
    changed[held_out] = changed[held_out] * 2 + 1
    hashes = []
    for cells in (held_out, ~held_out):
        counts = np.where(cells[:, None], frame.to_numpy() * 2 + 1, frame.to_numpy())
        _write(path, sp.csr_matrix(counts), **labels)
        options = {name: name for name in groups}
        after = _build(tmp_path / f"after{len(hashes)}", h5ad=path, **options)
        assert (after.obs["split"] == before.obs["split"]).all()
        hashes.append(after.vocabulary.hash)
    assert hashes[0] == before.vocabulary.hash != hashes[1]


def test_cells_to_score_on_are_held_out_whole(tmp_path, many):
    genes = [f"g{k}" for k in range(30, 50)]
    other = _write(tmp_path / "o.h5ad", _counts(12, 20, 5), genes, type=list("xxyyzz") * 2)
    corpus = _build(tmp_path / "c", h5ad=many[0], score_on=str(other), cell_type="type")
    assert (corpus.obs["split"] == "held_out").tolist() == [False] * 90 + [True] * 12
    assert corpus.manifest["split_by"] == "file"
    assert set(corpus.vocabulary.genes) <= set(many[1].columns)
    assert corpus.obs["cell_type"].tolist() == [""] * 90 + list("xxyyzz") * 2
    files = {file["name"]: file for file in corpus.manifest["files"]}
    assert (files["o"]["genes"], files["o"]["genes_mapped"]) == (20, 10)
    covered = _counts(12, 20, 5)[:, :10].sum() / _counts(12, 20, 5).sum()
    assert files["o"]["counts_covered"] == pytest.approx(covered, rel=1e-12)


def test_symbols_and_ids_meet_in_one_vocabulary(tmp_path):
    ids = ["ENSG3.2", "ENSG1.1", "ENSG1.2", "ENSG5"]
    symbols = ["HLA-B", "CD4", "unknown", "HLA-B"]
    a, b = _counts(12, 4, 1) + 1, _counts(8, 4, 2) + 1
    _write(tmp_path / "a.h5ad", a, ids)
    _write(tmp_path / "b.h5ad", b, symbols)
    table = tmp_path / "table.csv"
    table.write_text("gene_name,ensembl_id\nHLA-B,ENSG2\nHLA-B,ENSG3.9\nCD4,ENSG1\nX,ENSG5\n")
    corpus = _build(tmp_path / "c", h5ad=f"{tmp_path}/*.h5ad", gene_names=str(table))
    frame = pd.concat([
        pd.DataFrame({"ENSG1": a[:, 1] + a[:, 2], "ENSG3": a[:, 0], "ENSG5": a[:, 3]}),
        pd.DataFrame({"ENSG1": b[:, 1], "ENSG3": b[:, 0] + b[:, 3]}),
    ])
    frame.index = [f"a:c{k}" for k in range(12)] + [f"b:c{k}" for k in range(8)]
    totals = pd.Series(np.concatenate([a.sum(1), b.sum(1)]), frame.index)  # unknown counts too
    _assert_as_reference(corpus, frame, totals=totals)
    assert [f["genes_mapped"] for f in corpus.manifest["files"]] == [4, 3]
    np.testing.assert_array_equal(
        corpus.counts(np.arange(20)).toarray(), frame.fillna(0).to_numpy())


def test_genes_without_a_name_are_no_gene(tmp_path):
    counts = _counts(20, 4) + 1
    path = _write(tmp_path / "a.h5ad", counts, ["CD4", np.nan, "CD8A", np.nan])
    corpus = _build(tmp_path / "c", h5ad=str(path))
    frame = _frame("a", counts[:, [0, 2]], ["CD4", "CD8A"])
    _assert_as_reference(corpus, frame, totals=pd.Series(counts.sum(1), frame.index))


def test_a_given_vocabulary_is_kept(tmp_path, many):
    given = {"g39": 2.0, "nowhere": 1.0, "g30": 0.125}
    Vocabulary(tuple(given), np.array(list(given.values()))).save(tmp_path / "v.json")
    corpus = _build(tmp_path / "c", h5ad=many[0], vocabulary=str(tmp_path / "v.json"))
    frame, totals = many[1][["g39", "g30"]].assign(nowhere=0), many[1].sum(axis=1)
    frame = frame[(frame > 0).any(axis=1)]
    _assert_as_reference(corpus, frame, totals=totals, vocabulary=given)


def test_a_folder_of_dictionaries_gives_its_tokens(tmp_path):
    tokens = {"<pad>": 0, "<mask>": 1, "<cls>": 2, "<eos>": 3, "ENSG3": 4, "ENSG1": 5, "ENSG9": 6}
    medians = {"ENSG1": 2.0, "ENSG2": 1.0, "ENSG3": 0.5, "ENSG9": 1.0}
    renamed = {"ENSG7": "ENSG1", "ENSG1": "ENSG1"}
    contents = {"token": tokens, "gene_median": medians}
    (tmp_path / "d").mkdir()
    for kind, content in contents.items():
        (tmp_path / "d" / f"{kind}_dictionary_x.pkl").write_bytes(pickle.dumps(content, 4))
    (tmp_path / "d" / "ensembl_mapping_dict_x.pkl").write_bytes(pickle.dumps(renamed, 4))
    counts = _counts(20, 5, 3) + 1
    _write(tmp_path / "a.h5ad", counts, ["ENSG1.4", "ENSG2", "ENSG3", "ENSG7.1", "ENSG5"])
    corpus = _build(tmp_path / "c", h5ad=f"{tmp_path}/a.h5ad", vocabulary=f"{tmp_path}/d")
    for row, cell in enumerate(counts):
        scores = {5: (cell[0] + cell[3]) / cell.sum() * 10_000.0 / 2.0}
        scores[4] = cell[2] / cell.sum() * 10_000.0 / 0.5
        expected = sorted(scores, key=lambda token: (-scores[token], token))
        assert corpus.tokens([row], 6)[0].tolist() == [2, *expected, 3, 0, 0]
        assert corpus.tokens([row], 3)[0].tolist() == [2, expected[0], 3]
    assert len({tuple(corpus.tokens([row], 3)[0]) for row in range(20)}) == 2
    assert corpus.lengths(np.arange(20)).tolist() == [4] * 20
    assert corpus.vocabulary.special == ("<pad>", "<mask>", "<cls>", "<eos>")
    np.testing.assert_array_equal(
        corpus.counts([3, 0]).toarray()[:, 1], counts[[3, 0]][:, [0, 3]].sum(1))
    (file,) = corpus.manifest["files"]
    assert (file["genes_mapped"], file["genes_summed"], file["genes"]) == (3, 2, 5)
    covered = counts[:, [0, 2, 3]].sum() / counts.sum()
    assert file["counts_covered"] == pytest.approx(covered, rel=1e-12)


def test_the_report_says_what_became_of_genes_and_cells(tmp_path):
    counts = _counts(30, 6, 1) + 1
    counts[:, 3] = 0
    counts[4] = 0  # no count
    counts[5], counts[6, :4], counts[6, 4:] = [9, 0, 0, 0, 0, 0], 0, 7  # no gene of the vocabulary
    held_out = counts[10:16] + 1
    held_out[0], held_out[1] = counts[20], counts[4]
    _write(tmp_path / "p.h5ad", counts, ["", "g1", "g2", "g1", "g4", "x"], k=["a"] * 28 + ["b"] * 2)
    _write(tmp_path / "h.h5ad", held_out, ["", "g1", "g2", "g1", "g4", "x"])
    Vocabulary(("g1", "g2"), np.ones(2)).save(tmp_path / "v.json")
    corpus = _build(
        tmp_path / "c", h5ad=f"{tmp_path}/p.h5ad", score_on=f"{tmp_path}/h.h5ad",
        vocabulary=f"{tmp_path}/v.json", keep={"p": {"k": "a"}})
    file = {f["name"]: f for f in corpus.manifest["files"]}["p"]
    cells = {name: value for name, value in file.items() if name.startswith("cells")}
    assert cells == {
        "cells": 28, "cells_filtered": 2, "cells_without_genes": 3, "cells_without_counts": 1,
        "cells_kept_from_training": 1,
    }
    genes = {name: value for name, value in file.items() if name.startswith("genes")}
    assert genes == {"genes": 6, "genes_without_id": 1, "genes_mapped": 3, "genes_summed": 2}
    assert file["counts"] == counts[:28].sum()
    covered = counts[:28, [1, 2, 3]].sum() / counts[:28].sum()
    assert file["counts_covered"] == pytest.approx(covered, rel=1e-12)
    printed = prepare.describe(corpus)
    assert "3 of 6 genes" in printed and "without an id: 1, summed with others: 2;" in printed
    assert "2 cells by filter or draw, 3 without genes of the vocabulary (1 without" in printed


def test_kept_cells(tmp_path, many):
    corpus = _build(tmp_path / "c", h5ad=many[0], keep={"m": {"b": "b3"}, "elsewhere": {"x": "y"}})
    _assert_as_reference(corpus, many[1][3::5])
    assert corpus.obs["row"].tolist() == list(range(3, 90, 5))
    assert corpus.manifest["files"][0]["cells_filtered"] == 72


def test_identical_counts_across_the_split_are_kept_from_subsets(tmp_path):
    pool, held_out = _counts(20, 9, 1), _counts(9, 9, 2)
    pool[[4, 11]], pool[3] = held_out[5], pool[2]
    pool[7] = held_out[8] = 0  # cells without counts are left out, and alike in nothing
    pool = np.concatenate([pool, np.zeros((20, 1), int)], 1)  # a gene that only one file has
    _write(tmp_path / "p.h5ad", sp.csr_matrix(pool))
    _write(tmp_path / "h.h5ad", held_out)
    corpus = _build(tmp_path / "c", h5ad=f"{tmp_path}/p.h5ad", score_on=f"{tmp_path}/h.h5ad")
    duplicates = corpus.obs["cell_id"][corpus.obs["split"] == "duplicate"].tolist()
    assert duplicates == ["p:c4", "p:c11"]
    assert corpus.manifest["identical_across_split"] == 2
    assert corpus.manifest["identical_in_pool"] == 1
    assert corpus.manifest["cells"] == {"pool": 17, "duplicate": 2, "held_out": 8}
    assert [f["cells_without_genes"] for f in corpus.manifest["files"]] == [1, 1]
    chosen = corpus.obs["cell_id"][subsets.nested(corpus.obs, 17, 0)]
    assert not set(chosen) & set(duplicates) and chosen.str.startswith("p:").all()


@pytest.mark.parametrize("table", ["gene_names", "vocabulary"])
def test_a_table_that_changed_makes_another_corpus(tmp_path, many, table):
    genes = tuple(f"g{k}" for k in range(30, 40))
    Vocabulary(genes, np.ones(10)).save(tmp_path / "vocabulary")
    lines = ["gene_name,ensembl_id", *(f"{gene},{gene}" for gene in genes)]
    (tmp_path / "gene_names").write_text("\n".join(lines))
    given = {"h5ad": many[0], table: str(tmp_path / table)}
    _build(tmp_path / "c", **given)
    _build(tmp_path / "c", **given)
    with open(tmp_path / table, "a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match="built with other inputs"):
        _build(tmp_path / "c", **given)


def test_the_same_settings_open_it_again_and_others_are_refused(tmp_path, many):
    first = _build(tmp_path / "c", h5ad=many[0])
    stamp = (first.folder / "manifest.json").stat()
    again = _build(tmp_path / "c", h5ad=many[0])
    assert (again.folder / "manifest.json").stat() == stamp
    assert again.vocabulary.hash == first.vocabulary.hash and again.obs.equals(first.obs)
    with pytest.raises(ValueError, match=r"other settings \(min_cells was \d+, now 2\); give"):
        _build(tmp_path / "c", h5ad=many[0], min_cells=2)
    os.utime(many[0], ns=(1, 1))
    with pytest.raises(ValueError, match="built with other inputs.*give another --workdir"):
        _build(tmp_path / "c", h5ad=many[0])


def test_whole_numbers_read_the_same_with_a_missing_one_among_them(tmp_path):
    _write(tmp_path / "a.h5ad", _counts(), d=[k % 3 for k in range(30)])
    _write(tmp_path / "b.h5ad", _counts(seed=1), d=[None if k == 4 else k % 3 for k in range(30)])
    _write(tmp_path / "c.h5ad", _counts(seed=2), d=[k % 3 / 2 for k in range(30)])
    corpus = _build(tmp_path / "c", h5ad=f"{tmp_path}/*.h5ad", donor="d")
    found = {name: set(part) for name, part in corpus.obs.groupby("dataset")["donor"]}
    assert found == {"a": {"0", "1", "2"}, "b": {"", "0", "1", "2"}, "c": {"0.0", "0.5", "1.0"}}


def test_a_pool_that_is_held_out_whole_is_told(tmp_path):
    _write(tmp_path / "a.h5ad", _counts())
    (tmp_path / "b.h5ad").hardlink_to(tmp_path / "a.h5ad")
    given = {"h5ad": f"{tmp_path}/a.h5ad", "score_on": f"{tmp_path}/b.h5ad"}
    with pytest.raises(ValueError, match="no training cell is left: 30 equal a held-out cell"):
        _build(tmp_path / "c", **given)


def test_another_corpus_gives_its_vocabulary(tmp_path, many):
    first = _build(tmp_path / "c", h5ad=many[0])
    again = _build(tmp_path / "d", h5ad=many[0], vocabulary=str(first.folder))
    assert again.vocabulary.hash == first.vocabulary.hash


def test_cells_are_kept_by_whole_numbers_too(tmp_path):
    _write(tmp_path / "a.h5ad", _counts(), plate=[None if k == 4 else k % 3 for k in range(30)])
    corpus = _build(tmp_path / "c", h5ad=f"{tmp_path}/a.h5ad", keep={"a": {"plate": "2"}})
    assert set(corpus.obs["row"]) == set(range(2, 30, 3))
