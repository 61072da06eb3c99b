"""The sketch of medians: within its bound, the same however cells are cut, exact when asked."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.corpus.medians import BUCKETS, HIGHEST, LOWEST, Sketch, edge, exact

GENES = 7


def _draw(seed: int, cells: int) -> tuple[sp.csr_matrix, np.ndarray]:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(np.geomspace(0.3, 900, GENES), (cells, GENES)) * rng.integers(1, 4)
    counts[0] += 1
    return sp.csr_matrix(counts.astype(float)), counts.sum(1) * rng.uniform(1, 3, cells)


def _wanted(counts, totals) -> np.ndarray:
    values = counts.toarray() / totals[:, None] * 10_000
    return np.array([np.median(v[v > 0]) for v in values.T])


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 60))
def test_a_median_is_within_the_bound_and_the_exact_one_exact(seed, cells):
    counts, totals = _draw(seed, cells)
    sketch, genes = Sketch(GENES), np.arange(GENES)
    sketch.add(counts, totals)
    wanted = _wanted(counts, totals)
    assert (np.abs(sketch.medians(genes) - wanted) <= wanted / 128).all()
    values = np.sort((counts.toarray() / totals[:, None] * 10_000).T)
    calls = []

    def chunks():
        calls.append(1)
        for at in range(0, cells, 7):
            yield totals[at : at + 7], counts[at : at + 7]

    for limit in (1, 10, 10**6):
        calls.clear()
        np.testing.assert_array_equal(exact(sketch, genes[::-1], chunks, limit)[::-1], wanted)
        assert len(calls) == 1 or limit < 10**6
    assert (sketch.detected() == (values > 0).sum(1)).all()


def test_the_middle_of_an_odd_number_is_within_1_in_128():
    counts, totals = _draw(3, 41)
    counts.data[:] = np.maximum(counts.data, 1)
    sketch = Sketch(GENES)
    sketch.add(counts, totals)
    odd = np.flatnonzero(sketch.detected() % 2)
    assert len(odd)
    found, wanted = sketch.medians(odd), _wanted(counts, totals)[odd]
    assert (np.abs(found / wanted - 1) <= 1 / 128).all() and (found != wanted).any()


def test_the_order_of_cells_and_cuts_changes_nothing():
    counts, totals = _draw(0, 50)
    whole, parts = Sketch(GENES), Sketch(GENES)
    whole.add(counts, totals)
    for rows in np.array_split(np.random.default_rng(1).permutation(50), 6):
        part = Sketch(GENES, len(rows))
        part.add(counts[rows], totals[rows])
        assert part.counts.dtype == np.uint16
        parts.add_sparse(*part.sparse())
    np.testing.assert_array_equal(parts.counts, whole.counts)
    whole.add(counts[20:], totals[20:], sign=-1)
    first = Sketch(GENES)
    first.add(counts[:20], totals[:20])
    np.testing.assert_array_equal(first.counts, whole.counts)


@pytest.mark.parametrize(("cells", "dtype"), [(65_535, np.uint16), (65_536, np.int32)])
def test_as_many_cells_as_said_fit_a_bucket(cells, dtype):
    sketch = Sketch(1, cells)
    sketch.add(sp.csr_matrix(np.ones((cells, 1))), np.ones(cells))
    assert sketch.counts.dtype == dtype and sketch.counts.max() == cells == sketch.detected()


def test_values_out_of_range_stand_at_the_ends():
    sketch = Sketch(2)
    sketch.add(sp.csr_matrix([[1.0, 5.0], [0, 3.0]]), np.array([1e12, 1e-3]))
    assert sketch.counts[0, 0] == 1 and sketch.counts[1, BUCKETS - 1] == 1
    assert sketch.counts[1, 0] == 1 and sketch.counts.sum() == 3


def test_buckets_cover_the_range_in_steps_of_1_in_128():
    edges = edge(np.arange(BUCKETS + 1))
    assert edges[0] == LOWEST and edges[-1] == HIGHEST
    assert edges[1:] / edges[:-1] - 1 == pytest.approx(1 / 128, rel=0.51)
    assert (edges[1:] / edges[:-1] - 1).max() <= 1 / 128
