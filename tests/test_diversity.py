"""Diversity against closed forms, and as a run's subset gets it."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from scaling.corpus import diversity, sketch, subsets


@given(st.integers(1, 9), st.integers(1, 20))
def test_equal_types_have_the_entropy_of_their_number(types, each):
    labels = np.repeat([f"type {k}" for k in range(types)], each)
    assert diversity.shannon(labels) == pytest.approx(np.log(types), abs=1e-12)
    assert diversity.gini_simpson(labels) == pytest.approx(1 - 1 / types)


def test_unequal_types():
    labels = ["a", "a", "a", "b"]
    assert diversity.shannon(labels) == pytest.approx(np.log(4) - 0.75 * np.log(3))
    assert diversity.gini_simpson(labels) == pytest.approx(2 * 0.75 * 0.25)


def test_one_type_is_no_diversity_at_all():
    assert diversity.shannon(["a"] * 7) == diversity.gini_simpson(["a"] * 7) == 0


@given(st.integers(1, 30))
def test_vendi_counts_orthogonal_cells_whatever_their_length(cells):
    assert diversity.vendi(np.full((cells, 3), 7)) == pytest.approx(1)
    lengths = np.arange(1, cells + 1)
    assert diversity.vendi(np.diag(lengths)) == pytest.approx(cells)
    assert diversity.vendi(sp.csr_matrix(np.repeat(np.diag(lengths), 3, 0))) == (
        pytest.approx(cells)
    )


def test_vendi_of_two_cells_at_an_angle():
    cosine = 0.6  # eigenvalues of K / 2: (1 +- cosine) / 2
    shares = np.array([0.8, 0.2])
    found = diversity.vendi(np.array([[1.0, 0.0], [cosine, 0.8]]))
    assert found == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


def test_no_labels_and_cells_without_features_are_refused():
    for measure in (diversity.shannon, diversity.gini_simpson):
        with pytest.raises(ValueError, match="no labels"):
            measure([])
    with pytest.raises(ValueError, match="1 of 3 cells have no features"):
        diversity.vendi(np.array([[1, 0], [0, 0], [2, 3]]))


def test_of_subset_measures_the_rows_asked_for(tiny_corpus):
    types = tiny_corpus.obs["cell_type"].to_numpy()
    one = np.flatnonzero(types == types[0])[:5]
    found = diversity.of_subset(tiny_corpus, one)
    assert found["shannon_cell_type"] == found["gini_simpson_cell_type"] == 0
    assert found["shannon_dataset"] == found["gini_simpson_dataset"] == 0
    wanted = diversity.vendi(sketch.rank_weights(tiny_corpus, one))
    assert found["vendi"] == pytest.approx(wanted)
    mixed = diversity.of_subset(tiny_corpus, np.arange(len(types)))
    assert mixed["shannon_cell_type"] == diversity.shannon(types)
    assert 1 < found["vendi"] < mixed["vendi"] < len(types)


def test_cells_without_labels_are_left_out_or_leave_none(tiny_corpus, monkeypatch):
    rows = np.arange(40)
    labels = np.where(rows < 30, "", np.where(rows % 2, "a", "b"))
    some = tiny_corpus.obs.iloc[rows].assign(cell_type=labels)
    monkeypatch.setitem(tiny_corpus.__dict__, "obs", some)
    assert diversity.of_subset(tiny_corpus, rows)["gini_simpson_cell_type"] == 0.5
    assert diversity.of_subset(tiny_corpus, rows[:30])["gini_simpson_cell_type"] is None


def test_vendi_takes_the_cells_of_least_hash_whatever_the_order(tiny_corpus, monkeypatch):
    monkeypatch.setattr(diversity, "VENDI_CELLS", 20)
    rows = np.arange(200)
    least = subsets.order(tiny_corpus.obs["cell_id"].to_numpy()[rows], 0)[:20]
    found = diversity.of_subset(tiny_corpus, rows)["vendi"]
    assert found == pytest.approx(diversity.of_subset(tiny_corpus, rows[::-1])["vendi"])
    wanted = diversity.vendi(sketch.rank_weights(tiny_corpus, least))
    assert found == pytest.approx(wanted)
