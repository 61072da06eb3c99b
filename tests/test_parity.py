"""Tokens of real cells with Geneformer's dictionaries, against its formula written plainly.

A cell's genes that are in the dictionary, by falling counts / all counts * 10,000 / median in
float64. Its sort is unstable, so genes of one score may stand in any order among themselves.
"""

import io
import pickle

import anndata
import numpy as np
import pandas as pd
import pytest

from scaling.corpus import columns, dictionaries, pieces, readers
from scaling.corpus.encodings import pad

CELLS = 150
# Genes that fit beside V2's <cls> and <eos>, which stand around a cell in the model's input.
LENGTH = {"geneformer_v1": 2_048, "geneformer_v2": 4_094}
# Symbols, ids, and cells of which some take other tokens in single precision.
FILES = ["kang_ifnb_2800", "onek1k_40_donors", "pbmc_3_chemistries"]
LONG = pytest.param("mixology_5_lines", marks=pytest.mark.slow)  # more genes than a model reads


class _Trusting(pickle.Unpickler):
    """Python's own, for the files of the real data; the module's old name warns."""

    def find_class(self, module, name):
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _dictionary(folder, kind: str) -> dict:
    (path,) = folder.glob(f"{kind}*.pkl")
    return _Trusting(io.BytesIO(path.read_bytes())).load()


def _ids_by_hand(names, tokens: dict, table: pd.DataFrame, renamed: dict) -> list[str]:
    """Gene id of each column; of a symbol's ids the lowest in the dictionary, else the lowest."""
    ids = {}
    for symbol, i in zip(table["gene_name"], table["ensembl_id"], strict=True):
        best = ids.get(symbol, i)
        ids[symbol] = min(best, i, key=lambda one: (one not in tokens, one))
    found = [n.split(".")[0] if n.startswith("ENSG0") else ids.get(n, "") for n in names]
    return [renamed.get(i, i) for i in found]


def _geneformer(counts, ids: list[str], tokens: dict, medians: dict) -> tuple[list, list]:
    """Tokens and scores of one cell, by falling score; counts float64 [genes of the file]."""
    n_counts = counts.sum()
    by_gene: dict[str, float] = {}
    for k in np.flatnonzero(counts):
        if ids[k] in tokens and ids[k] in medians:
            by_gene[ids[k]] = by_gene.get(ids[k], 0.0) + counts[k]
    genes = list(by_gene)
    x, factor = np.array([by_gene[g] for g in genes]), np.array([medians[g] for g in genes])
    score = x / n_counts * 10_000 / factor
    order = np.argsort(-score)
    return [int(tokens[genes[k]]) for k in order], score[order].tolist()


@pytest.fixture(scope="module", params=sorted(LENGTH))
def dictionary(request, real_data):
    folder = real_data / request.param
    return request.param, folder, _dictionary(folder, "token"), _dictionary(folder, "gene_median")


@pytest.mark.parametrize("name", [*FILES, LONG])
def test_tokens_of_real_cells_are_geneformers_but_for_ties(real_data, dictionary, name):
    version, folder, tokens, medians = dictionary
    table = real_data / "gene_labels" / "gene_info_table.csv"
    path = real_data / f"{name}.h5ad"
    renamed = _dictionary(folder, "ensembl_mapping") if version == "geneformer_v2" else {}
    data = anndata.read_h5ad(path, backed="r")
    rows = np.sort(np.random.default_rng(0).choice(data.n_obs, CELLS, replace=False))
    counts, names = data.X[rows].toarray().astype(np.float64), list(data.var_names)
    data.file.close()
    by_hand = _ids_by_hand(names, tokens, pd.read_csv(table), renamed)

    genes, source = dictionaries.read_vocabulary(folder), readers.open_source(path)
    ids = columns.gene_ids([source], str(table), genes)[name]
    assert [i if i in tokens else None for i in by_hand] == [
        i if i in tokens else None for i in ids
    ]
    cells = []
    for _, found, lengths, _ in pieces.encode(source, ids, genes):
        cells += [cell.tolist() for cell in np.split(found, np.cumsum(lengths)[:-1])]

    for ours, of_cell in zip([cells[row] for row in rows], counts, strict=True):
        theirs, score = _geneformer(of_cell, by_hand, tokens, medians)
        assert len(ours) == len(theirs) > 0
        score_of = dict(zip(theirs, score, strict=True))
        # Equal scores at every rank, before and after the cut: only ties can differ.
        assert [score_of[token] for token in ours] == score
        assert len(set(ours)) == len(ours)
        cut = LENGTH[version]
        different = [a for a, b in zip(ours[:cut], theirs[:cut], strict=True) if a != b]
        assert all(score.count(score_of[token]) > 1 for token in different)
        around, length = genes.around, cut + len(genes.around)
        read = pad([np.array(ours)], length, around)[0].tolist()
        wrapped = [*around[:1], *ours[:cut], *around[1:]]
        assert read == wrapped + [0] * (length - len(wrapped))
    assert genes.around == ((2, 3) if version == "geneformer_v2" else ())
    if name == "mixology_5_lines":
        assert max(len(cell) for cell in cells) > LENGTH[version]


def test_retired_ids_and_symbols_reach_tokens(real_data):
    """What V2's mapping adds: cells whose genes stand under retired ids."""
    genes = dictionaries.read_vocabulary(real_data / "geneformer_v2")
    tokens = _dictionary(real_data / "geneformer_v2", "token")
    mapping = _dictionary(real_data / "geneformer_v2", "ensembl_mapping")
    for old, new in genes.renamed.items():
        assert mapping[old] == new and old not in tokens
        assert genes.genes[tokens[new] - 4] == new
