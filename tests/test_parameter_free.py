"""Ranks, ANOVA, components and regression of the parameter-free baseline, each against a library's
own on the dense matrix."""

import anndata
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import sparse
from scipy.stats import norm, rankdata
from sklearn.decomposition import PCA
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler

from scaling.evaluate import parameter_free


def literal(counts_NxG: np.ndarray) -> np.ndarray:
    """The source's steps in their order, one cell at a time."""
    out = np.zeros(counts_NxG.shape)
    for i, row in enumerate(counts_NxG.astype(float)):
        share = row / row.sum() if row.sum() else row
        score = norm.ppf(rankdata(share, method="average") / (len(row) + 1))
        if np.ptp(row) > 0:
            out[i] = score / np.linalg.norm(score)
    return out


def dense(counts_NxG: np.ndarray) -> np.ndarray:
    x_NxG, zero_N = parameter_free.normal_scores(sparse.csr_matrix(counts_NxG))
    return x_NxG.toarray() + zero_N[:, None]


def cells(n: int, genes: int = 60, classes: int = 3, seed: int = 0):
    """Counts whose classes express genes of their own, some genes silent, some cells empty."""
    rng = np.random.default_rng(seed)
    class_N = rng.integers(0, classes, n)
    mean_CxG = rng.gamma(0.5, 2.0, (classes, genes))
    counts = rng.poisson(mean_CxG[class_N]).astype(np.int32)
    counts[:, ::9] = 0
    counts[n // 2] = 0
    return sparse.csr_matrix(counts), np.array([f"type {c}" for c in class_N])


@given(arrays.arrays(np.int32, st.tuples(st.integers(1, 6), st.integers(2, 12)),
                     elements=st.integers(0, 4)))  # fmt: skip
def test_scores_are_scipys_with_ties_and_empty_cells(counts_NxG):
    np.testing.assert_allclose(dense(counts_NxG), literal(counts_NxG), atol=1e-12)


def test_scores_by_hand():
    counts = np.array([[0, 5, 0, 5, 9], [0, 0, 0, 0, 0], [2, 2, 2, 2, 2], [4, 1, 3, 5, 2]])
    expected = norm.ppf(np.array([1.5, 3.5, 1.5, 3.5, 5]) / 6)
    np.testing.assert_allclose(dense(counts)[0], expected / np.linalg.norm(expected), atol=1e-12)
    assert (dense(counts)[1:3] == 0).all()
    assert np.linalg.norm(dense(counts)[3]) == pytest.approx(1)


def test_stored_zeros_double_entries_and_disorder_change_nothing():
    plain = sparse.csr_matrix(np.array([[0, 3, 1, 0], [2, 0, 0, 2]]))
    odd = sparse.csr_matrix(
        (np.array([1, 2, 0, 1, 2, 2, 0]), np.array([2, 1, 0, 1, 3, 0, 2]), np.array([0, 4, 7])),
        shape=(2, 4),
    )
    before = odd.data.copy()
    np.testing.assert_allclose(dense(odd), dense(plain))
    assert (odd.data == before).all()


def test_values_need_not_be_integers():
    values = np.random.default_rng(0).gamma(1.0, 1.0, (4, 30)) * (np.arange(30) % 3 > 0)
    np.testing.assert_allclose(dense(values), literal(values), atol=1e-12)


def test_genes_are_those_of_scikit_learns_f_test(monkeypatch):
    monkeypatch.setattr(parameter_free, "CHUNK_CELLS", 32)
    counts, labels = cells(150)
    labels[::10] = ""
    fitted = parameter_free.fit(counts, labels, n_genes=20)
    expressed = np.flatnonzero(counts.toarray().sum(0))
    assert len(expressed) < 60
    known = labels != ""
    score_G, _ = f_classif(literal(counts.toarray())[known], labels[known])
    best = expressed[np.argsort(-score_G[expressed])[:20]]
    assert fitted.genes.tolist() == sorted(best)


def test_f_statistic_is_scikit_learns():
    counts, labels = cells(90, classes=4)
    found_G = parameter_free._moments(counts, labels).f_statistic()
    expected_G, _ = f_classif(literal(counts.toarray()), labels)
    np.testing.assert_allclose(found_G, expected_G, rtol=1e-9)


@pytest.mark.parametrize("gram", [1_000, 1])  # the products' and the iterative decomposition
@pytest.mark.parametrize("n", [45, 300])  # fewer cells than genes, and more
def test_components_are_scikit_learns_on_the_dense_matrix(monkeypatch, gram, n):
    monkeypatch.setattr(parameter_free, "CHUNK_CELLS", 32)
    monkeypatch.setattr(parameter_free, "GRAM", gram)
    counts, labels = cells(n)
    fitted = parameter_free.fit(counts, labels, n_components=8)
    expressed = np.flatnonzero(counts.toarray().sum(0))
    assert fitted.genes.tolist() == expressed.tolist()  # 20,000 or fewer: all that are expressed
    scaler = StandardScaler()
    standard = scaler.fit_transform(literal(counts.toarray())[:, expressed])
    pca = PCA(8, whiten=True, svd_solver="full").fit(standard)
    np.testing.assert_allclose(fitted.components_DxG, pca.components_, atol=1e-7)
    out = parameter_free.apply(fitted, counts)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, pca.transform(standard), atol=1e-4)
    other, _ = cells(70, seed=5)
    expected = pca.transform(scaler.transform(literal(other.toarray())[:, expressed]))
    np.testing.assert_allclose(parameter_free.apply(fitted, other), expected, atol=1e-3, rtol=1e-3)
    assert out.std(0, ddof=1) == pytest.approx(np.ones(8), abs=1e-3)


def test_components_without_variance_are_dropped():
    counts, labels = cells(12)
    few = parameter_free.fit(counts, labels)
    assert few.components_DxG.shape[0] == 11
    twice = parameter_free.fit(sparse.vstack([counts[:5]] * 2, format="csr"))
    assert twice.components_DxG.shape[0] == 4
    assert np.isfinite(parameter_free.apply(twice, counts)).all()


def test_fitting_twice_gives_the_same_and_sees_training_cells_only():
    counts, labels = cells(200)
    first = parameter_free.fit(counts[:100], labels[:100], n_genes=30)
    again = parameter_free.fit(
        sparse.csr_matrix(counts.toarray()[:100]), labels[:100], n_genes=30
    )
    assert (first.genes == again.genes).all()
    assert (first.components_DxG == again.components_DxG).all()
    alone = np.vstack([parameter_free.apply(first, counts[i]) for i in range(100, 105)])
    together = parameter_free.apply(first, counts[100:])[:5]
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_without_labels_all_expressed_genes_are_kept():
    counts, labels = cells(80)
    expressed = np.flatnonzero(counts.toarray().sum(0)).tolist()
    for names in (None, np.full(80, ""), np.full(80, "one")):
        assert parameter_free.fit(counts, names, n_genes=10).genes.tolist() == expressed


def test_classifier_is_the_balanced_regression():
    rng = np.random.default_rng(3)
    labels = np.where(np.arange(400) < 380, "many", "few")
    x_NxD = rng.normal(size=(400, 2)) + 1.2 * (labels == "few")[:, None]
    names = labels.copy()
    names[::7] = ""
    predicted = parameter_free.classify(x_NxD, names, x_NxD).labels
    known = names != ""
    weight = np.where(labels == "few", 1 / (labels[known] == "few").mean(), 1.0)
    weight[labels == "many"] = 1 / (labels[known] == "many").mean()
    plain = LogisticRegression(max_iter=5_000).fit(
        x_NxD[known], labels[known], sample_weight=weight[known] / 2
    )
    assert (predicted == plain.predict(x_NxD)).mean() > 0.99
    unbalanced = LogisticRegression().fit(x_NxD[known], labels[known])
    found, missed = ((p == "few")[labels == "few"].mean() for p in
                     (predicted, unbalanced.predict(x_NxD)))  # fmt: skip
    assert found > missed + 0.2


def test_refusals_say_what_is_wrong():
    counts, labels = cells(30)
    fitted = parameter_free.fit(counts, labels)
    with pytest.raises(ValueError, match="59 genes given, 60 at fitting"):
        parameter_free.apply(fitted, counts[:, :59])
    with pytest.raises(ValueError, match="at least two"):
        parameter_free.fit(counts[:1])
    with pytest.raises(ValueError, match="give one per cell"):
        parameter_free.fit(counts, labels[:9])
    with pytest.raises(ValueError, match="none of 3 genes varies"):
        parameter_free.fit(sparse.csr_matrix(np.ones((4, 3))))
    with pytest.raises(ValueError, match="none of 3 genes varies"):
        parameter_free.fit(sparse.csr_matrix((4, 3)))
    with pytest.raises(ValueError, match="pass a scipy CSR"):
        parameter_free.normal_scores(counts.toarray())
    with pytest.raises(ValueError, match="negative, NaN"):
        parameter_free.normal_scores(sparse.csr_matrix(np.array([[1.0, -1.0]])))
    with pytest.raises(ValueError, match="1 class"):
        parameter_free.classify(np.ones((3, 2)), np.array(["a", "a", ""]), np.ones((1, 2)))


@pytest.mark.slow
def test_on_real_cells_it_names_types_across_the_stimulus(real_data):
    found = anndata.read_h5ad(real_data / "kang_ifnb_2800.h5ad")
    counts, labels = sparse.csr_matrix(found.X), found.obs["cell_type"].to_numpy(str)
    train = found.obs["batch"].to_numpy() == "CTRL"
    fitted = parameter_free.fit(counts[train], labels[train])
    sides = (parameter_free.apply(fitted, counts[side]) for side in (train, ~train))
    predicted = parameter_free.classify(next(sides), labels[train], next(sides)).labels
    classes = np.unique(labels[~train])
    score = f1_score(labels[~train], predicted, labels=classes, average="macro")
    assert score == pytest.approx(0.728, abs=0.02)
    shuffled = np.random.default_rng(0).permutation(labels[~train])
    assert f1_score(shuffled, predicted, labels=classes, average="macro") < 0.12
