"""Rank tokens: against a literal reference, on made-up cells full of ties and on real cells."""

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.corpus.ranks import rank_tokens
from scaling.corpus.tokens import SPECIAL

CELLS = 200


def _scores(counts, total, medians) -> dict[int, float]:
    """Score of each gene of a cell, in float64 and in this order of operations."""
    return {
        gene: float(count) / float(total) * 10_000.0 / float(medians[gene])
        for gene, count in enumerate(counts)
        if count > 0
    }


def _reference(counts, total, medians) -> list[int]:
    """Tokens of one cell, literally: the highest score first, of equal ones the lower token."""
    scores = _scores(counts, total, medians)
    return [gene + 2 for gene in sorted(scores, key=lambda gene: (-scores[gene], gene))]


def _as_geneformer(counts, total, medians) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and scores as the original sorts them: NumPy's default, unstable argsort."""
    gene = np.flatnonzero(counts)
    score = counts[gene] / total * 10_000.0 / medians[gene]
    order = np.argsort(-score)
    return gene[order] + 2, score[order]


def _tokens_of_cells(counts, totals, medians) -> list[list[int]]:
    tokens, lengths = rank_tokens(sp.csr_matrix(counts), totals, medians)
    assert tokens.dtype == np.uint16 and lengths.dtype == np.int64
    assert lengths.sum() == len(tokens) and len(lengths) == len(totals)
    return [cell.tolist() for cell in np.split(tokens, np.cumsum(lengths)[:-1])]


def test_known_answer():
    counts = np.array([[4.0, 0, 1, 9], [0, 0, 0, 0], [0, 3, 0, 3]])
    medians = np.array([2.0, 1.0, 0.25, 9.0])
    # cell 1: scores 4/2, 1/0.25 and 9/9; cell 3: 3/1 and 3/9 (each times 10,000 / total)
    assert len(SPECIAL) == 2
    assert _tokens_of_cells(counts, np.array([14.0, 5, 6]), medians) == [[4, 2, 5], [], [3, 5]]


@settings(max_examples=200)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=5),
    st.lists(st.sampled_from([0.5, 1.0, 3.0, 7.0]), min_size=6, max_size=6),
    st.integers(0, 5),
)
def test_ties_go_to_the_lower_token(rows, medians, elsewhere):
    counts, medians = np.array(rows, float), np.array(medians)
    totals = counts.sum(1) + elsewhere  # counts of genes without a token
    expected = [_reference(c, t, medians) for c, t in zip(counts, totals, strict=True)]
    assert _tokens_of_cells(counts, totals, medians) == expected


@pytest.fixture(scope="module", params=["kang_ifnb_2800", "pbmc_3_chemistries"])
def real_cells(request, real_data):
    """Counts [200, genes], totals over all genes and exact medians of cells of a real file."""
    data = anndata.read_h5ad(real_data / f"{request.param}.h5ad", backed="r")
    rows = np.sort(np.random.default_rng(0).choice(data.n_obs, CELLS, replace=False))
    counts = data.X[rows].toarray().astype(float)
    data.file.close()
    totals = counts.sum(1)
    counts = counts[:, counts.any(0)][:, ::3]  # a vocabulary never has all genes of a file
    scaled = counts / totals[:, None] * 10_000.0
    medians = np.array([np.median(gene[gene > 0]) if gene.any() else 1.0 for gene in scaled.T])
    return counts, totals, medians


def test_real_cells_as_the_literal_reference(real_cells):
    counts, totals, medians = real_cells
    ours = _tokens_of_cells(counts, totals, medians)
    cells = list(zip(counts, totals, strict=True))
    assert ours == [_reference(c, t, medians) for c, t in cells]

    # The order of operations and the precision show: else the line above would prove little.
    cancelled = [_reference(c, 10_000.0, medians) for c, _ in cells]
    single = [_single_precision(c, t, medians) for c, t in cells]
    assert sum(a != b for a, b in zip(ours, cancelled, strict=True)) > 0
    assert sum(a != b for a, b in zip(ours, single, strict=True)) > 0


def _single_precision(counts, total, medians) -> list[int]:
    gene = np.flatnonzero(counts)
    count, total, median = (np.float32(x) for x in (counts[gene], total, medians[gene]))
    score = count / total * np.float32(10_000) / median
    return (gene[np.lexsort((gene, -score))] + 2).tolist()


def test_real_cells_as_geneformer_but_for_ties(real_cells):
    counts, totals, medians = real_cells
    ties = 0
    for cell, ours in enumerate(_tokens_of_cells(counts, totals, medians)):
        theirs, score = _as_geneformer(counts[cell], totals[cell], medians)
        ends = [*(np.flatnonzero(np.diff(score)) + 1), len(score)]
        for start, end in zip([0, *ends], ends, strict=False):
            assert set(ours[start:end]) == set(theirs[start:end])
            ties += end - start > 1
    assert ties > 0
