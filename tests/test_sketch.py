"""Bins of cells: whole numbers, principal axes, and what they hold still for."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scaling.corpus import sketch, subsets
from scaling.corpus.shards import Corpus
from scaling.corpus.vocabulary import Vocabulary


def _positions(codes: np.ndarray) -> np.ndarray:
    """The four positions of each code, taken apart bit by bit."""
    bits = (codes[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    by_axis = bits.reshape(len(codes), sketch.BITS, sketch.AXES)[:, :, ::-1]
    return (by_axis * (1 << np.arange(sketch.BITS, dtype=np.uint64))[:, None]).sum(1)


def test_rank_weights_fall_by_rank_at_one_length(tiny_corpus):
    rows = np.array([5, 0, 77])
    weights = sketch.rank_weights(tiny_corpus, rows).toarray()
    assert weights.dtype == np.int64 and weights.shape == (3, len(tiny_corpus.vocabulary))
    for cell, tokens in zip(weights, tiny_corpus.tokens(rows, 300), strict=True):
        ranked = tokens[tokens > 0]
        by_rank = np.arange(2048, 2048 - len(ranked), -1)
        wanted = by_rank * (2**15 / np.linalg.norm(by_rank))
        np.testing.assert_allclose(cell[ranked], wanted, rtol=2e-3)
        assert cell.sum() == cell[ranked].sum()


def test_components_are_the_principal_ones():
    rng = np.random.default_rng(0)
    spread = np.linalg.qr(rng.normal(size=(40, 3)))[0] * [400, 200, 100]
    cells = 1000 + rng.normal(size=(300, 3)) @ spread.T + rng.normal(size=(300, 40)) * 3
    weights = np.clip(cells, 1, 2048).astype(np.int64)
    start = rng.choice([-1, 1], (40, 3))
    found = sketch.components(sp.csr_matrix(weights), start)
    assert found.dtype == np.int64
    axes = np.linalg.svd(weights - weights.mean(0), full_matrices=False)[2][:3]
    cosines = np.abs((axes * (found / np.linalg.norm(found, axis=0)).T).sum(1))
    assert (cosines > 0.999).all()
    assert np.linalg.norm(found, axis=0) == pytest.approx(2.0**20, rel=1e-4)


@pytest.mark.parametrize("cells", [np.eye(2, dtype=int)[np.arange(1000) % 2], np.eye(1000)])
def test_components_of_the_longest_cells_stay_within_64_bits(cells):
    weights = (cells * 2**15).astype(np.int64)
    start = np.where(np.arange(weights.shape[1]) % 2, 1, -1)[:, None]
    found = sketch.components(sp.csr_matrix(weights), start)
    exact = sketch.components(_Exact(sp.csr_matrix(weights)), start.astype(object))
    assert found.any() and found.tolist() == exact.tolist()


class _Exact:
    """A sparse matrix in Python's numbers, which cannot overflow and no library rounds."""

    def __init__(self, weights: sp.csr_matrix):
        self._entries, self._rows = weights.tocoo(), weights.shape[0]
        self._sparse = weights

    @property
    def T(self):  # noqa: N802 (NumPy's name)
        return _Exact(self._sparse.T)

    def __matmul__(self, other):
        found = np.zeros((self._rows, other.shape[1]), object)
        each = zip(self._entries.row, self._entries.col, self._entries.data.tolist(), strict=True)
        for row, column, value in each:
            found[row] += value * other[column].astype(object)
        return found


def test_cells_that_do_not_differ_share_a_bin():
    same = sp.csr_matrix(np.ones((5, 9), np.int64))
    assert not sketch.components(same, np.ones((9, 4), np.int64)).any()


def test_bins_are_the_same_on_every_machine(tiny_corpus):
    pool = tiny_corpus.obs["split"].to_numpy() == "pool"
    codes = sketch.bins(tiny_corpus)
    assert codes.dtype == np.uint64 and not codes[~pool].any() and codes[pool].all()
    assert codes is sketch.bins(tiny_corpus)  # read once
    rows = np.flatnonzero(pool)
    exact = _exact_positions(tiny_corpus, rows)
    assert _positions(codes[rows]).tolist() == exact.tolist()
    assert len(set(codes[rows].tolist())) > 0.9 * len(rows)


def _exact_positions(corpus, rows):
    """Positions by Python's own numbers: no library decides a bit."""
    ids = corpus.obs["cell_id"].to_numpy()[rows]
    reference = subsets.order(ids, 0)[:1000]
    start = sketch._start(corpus.vocabulary).astype(object)
    weights = sketch.rank_weights(corpus, rows)
    loadings = sketch.components(_Exact(weights[reference]), start)
    placed = _Exact(weights) @ loadings
    centre = placed[reference].sum(0) // len(reference)
    widest = int(abs(placed[reference] - centre).max())
    scaled = (placed - centre) // 2 ** max(widest.bit_length() - 14, 0)
    return np.clip((scaled + 65536 // 3).astype(np.int64), 0, 65535).astype(np.uint64)


def test_a_corpus_that_grew_keeps_the_bins_where_the_reference_cells_stay(tiny_corpus, monkeypatch):
    monkeypatch.setattr(sketch, "REFERENCE_CELLS", 60)
    pool = np.flatnonzero(tiny_corpus.obs["split"] == "pool")
    ranked = pool[subsets.order(tiny_corpus.obs["cell_id"].to_numpy()[pool], 0)]
    grown = sketch.bins(dataclasses.replace(tiny_corpus))
    for new, same in ((ranked[60:100], True), (ranked[:40], False)):
        split = tiny_corpus.obs["split"].to_numpy(copy=True)
        split[new] = "not there yet"
        before = dataclasses.replace(tiny_corpus, obs=tiny_corpus.obs.assign(split=split))
        old = np.setdiff1d(pool, new)
        assert (sketch.bins(before)[old] == grown[old]).all() == same


class _Planted(Corpus):
    """1,000 cells of one set of genes and ten of another."""

    def cells(self, rows):
        return [np.random.default_rng(r).permutation(60) + 2 + 60 * (r >= 1000) for r in rows]


def test_a_sketch_reaches_the_few_cells_that_lie_apart():
    obs = pd.DataFrame({"cell_id": [f"cell {k}" for k in range(1010)], "split": "pool"})
    genes = Vocabulary(tuple(f"g{k}" for k in range(120)), np.ones(120))
    bins = sketch.bins(_Planted(None, {}, genes, obs))
    for seed in range(5):
        found = subsets.nested(obs, 40, seed, "sketch", bins)
        assert (found >= 1000).any()
    many, few = (set((part >> np.uint64(56)).tolist()) for part in (bins[:1000], bins[1000:]))
    assert not many & few


def test_special_tokens_carry_no_sign_however_many_there_are():
    genes = ("ENSG1", "ENSG2", "ENSG3")
    two = Vocabulary(genes, np.ones(3))
    four = Vocabulary(genes, np.ones(3), ("<pad>", "<mask>", "<cls>", "<eos>"))
    starts = sketch._start(two), sketch._start(four)
    assert [len(start) for start in starts] == [len(two), len(four)]
    assert not starts[0][:2].any() and not starts[1][:4].any() and starts[0][2:].all()
    np.testing.assert_array_equal(starts[0][2:], starts[1][4:])
