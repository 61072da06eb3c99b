"""Classifiers on expression: fitted and tuned on training cells alone; figures of real cells."""

import anndata
import numpy as np
import pytest
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from scaling.evaluate import baselines, classifiers
from scaling.evaluate.label_scores import Predictions, score_labels


def expression(n: int = 240, classes: int = 3, genes: int = 60, seed: int = 0):
    """Counts of cells whose types each raise genes of their own, and the types."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    rate = np.full((classes, genes), 2.0)
    for c in range(classes):
        rate[c, 5 * c : 5 * c + 5] = 8.0
    counts = sparse.csr_matrix(rng.poisson(rate[labels]).astype(np.int32))
    return counts, np.array([f"type {c}" for c in labels])


@pytest.fixture(scope="module")
def fitted():
    counts, labels = expression()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifiers, "TREES", 20)
        return classifiers.fit(counts[:120], None, labels[:120], seed=0)


def test_separable_types_are_named_and_the_majority_is_at_its_share(fitted):
    counts, labels = expression(n=480)
    found = classifiers.classify(
        fitted, counts[240:], None, labels[240:], train_labels=labels[:120], split="halves"
    )
    values = {name: {s.name: s for s in scores if not s.of} for name, scores in found.items()}
    assert set(values) == set(classifiers.NAMES)
    for name in ("logistic", "random_forest", "svm"):
        assert values[name]["accuracy"].low > 0.9, name
        assert "chosen" in values[name]["accuracy"].note and "tried" in values[name]["brier"].note
        assert values[name]["accuracy"].split == "halves"
    majority = values["majority"]
    assert majority["accuracy"].value == pytest.approx(1 / 3, abs=0.01)
    assert majority["macro_f1"].value == pytest.approx(1 / 6, abs=0.01)
    assert majority["overconfidence"].value == pytest.approx(0, abs=0.01)
    assert "nothing to tune" in majority["accuracy"].note
    assert values["svm"]["brier"].value is None


def test_shuffled_test_labels_give_chance(fitted):
    counts, labels = expression(n=960, seed=1)
    shuffled = np.random.default_rng(2).permutation(labels)
    found = classifiers.classify(fitted, counts, None, shuffled, train_labels=labels[:120])
    for name, scores in found.items():
        values = {s.name: s for s in scores if not s.of}
        assert values["accuracy"].low <= 1 / 3 <= values["accuracy"].high, name
        if name != "majority":
            assert values["macro_f1"].low <= 1 / 3 <= values["macro_f1"].high, name


def test_a_test_cell_is_named_the_same_whatever_is_tested_beside_it(fitted):
    counts, _ = expression(seed=3)
    beside = sparse.vstack([counts[:50], 40 * counts[50:, ::-1]], format="csr")
    for name, classifier in fitted.items():
        alone, found = classifier.predict(counts, None), classifier.predict(beside, None)
        assert alone.labels[:50].tolist() == found.labels[:50].tolist()
        assert classifier.predict(counts[:1], None).labels[0] == alone.labels[0]
        if name != "svm":
            np.testing.assert_allclose(
                alone.probabilities[:50], found.probabilities[:50], atol=1e-6
            )


def test_totals_are_those_over_all_measured_genes(fitted):
    counts, _ = expression(seed=4)
    total = np.asarray(counts.sum(1)).ravel()
    logistic = fitted["logistic"]
    same, thin = logistic.predict(counts, total), logistic.predict(counts, 50 * total)
    assert np.array_equal(same.probabilities, logistic.predict(counts, None).probabilities)
    assert not np.allclose(same.probabilities, thin.probabilities)


def test_inner_folds_keep_donors_whole_then_batches_then_class_shares():
    labels = np.array(["a", "b"] * 30)
    donors = np.repeat(["d1", "d2", "d3", "d4", "d5", "d6"], 10)
    batches = np.repeat(["x", "y"], 30)
    for what, given, units, k in (
        ("donors", (donors, batches), donors, 3),
        ("batches", (None, batches), batches, 2),
        ("batches", (np.where(donors == "d1", "", donors), batches), batches, 2),
        ("batches", (np.full(60, "d"), batches), batches, 2),
        ("cells", (None, np.full(60, "x")), None, 3),
        ("cells", (None, None), None, 3),
    ):
        folds, how = classifiers.inner_folds(labels, *given, seed=0)
        assert how == f"{k} inner folds of {what} of the training cells" and len(folds) == k
        assert sorted(np.concatenate([held for _, held in folds])) == list(range(60))
        for rows, held in folds:
            assert not set(rows) & set(held)
            if units is not None:
                assert not set(units[rows]) & set(units[held])
            else:
                assert (labels[held] == "a").sum() == 10


def test_donors_of_one_type_each_leave_cells_to_be_divided():
    labels = np.array(["a"] * 10 + ["b"] * 10)
    folds, how = classifiers.inner_folds(labels, labels, None, seed=0)
    assert "folds of cells" in how and len(folds) == 3
    for groups in (None, np.array(["x", "y"])):
        assert classifiers.inner_folds(np.array(["a", "b"]), None, groups, seed=0)[0] == []
    pairs, batches = np.array(["a", "a", "b", "b"] * 2), np.repeat(["x", "y", "z", "w"], 2)
    pairs[4:] = ["c", "c", "d", "d"]
    for rows, held in classifiers.inner_folds(pairs, None, batches, seed=0)[0]:
        assert len(set(pairs[rows])) > 1 and len(held)


def test_a_type_of_one_cell_is_fitted_and_untunable_cells_are_said(monkeypatch):
    monkeypatch.setattr(classifiers, "TREES", 10)
    counts, labels = expression(61)
    labels[60] = "single"
    found = classifiers.fit(counts, None, labels, names=("logistic",))["logistic"]
    assert "single" in found.model.classes_
    two = classifiers.fit(counts[:2], None, labels[:2], names=("random_forest",))
    assert two["random_forest"].note.startswith("not tuned: no inner split")


def test_bad_input_is_named():
    counts, labels = expression(20)
    with pytest.raises(ValueError, match="19 labels for 20 cells"):
        classifiers.fit(counts, None, labels[:19])
    with pytest.raises(ValueError, match="20 training cells of 1 cell type"):
        classifiers.fit(counts, None, np.full(20, "a"))
    with pytest.raises(ValueError, match="no classifier 'knn'"):
        classifiers.fit(counts, None, labels, names=("knn",))


def values_of(labels, named, train_labels) -> tuple[float, float]:
    scores = score_labels(labels, Predictions(named), train_labels=train_labels)
    return tuple(s.value for s in scores[:2])


@pytest.mark.slow
def test_real_cells_give_the_figures_of_their_description(real_data):
    """Measured apart from this code, with genes and components of all cells, test cells too."""
    cells = anndata.read_h5ad(real_data / "kang_ifnb_2800.h5ad")
    labels = cells.obs["cell_type"].to_numpy(str)
    stimulated = cells.obs["batch"].to_numpy(str) == "STIM"
    x_NxG = baselines.apply_hvg(baselines.fit_hvg(cells.X), cells.X).astype(float)
    x_NxG = np.clip(StandardScaler().fit_transform(x_NxG), -10, 10)
    x_NxD = PCA(30, svd_solver="arpack", random_state=0).fit_transform(x_NxG)

    def scored(fit, test):
        model = LogisticRegression(max_iter=5_000).fit(x_NxD[fit], labels[fit])
        return values_of(labels[test], model.predict(x_NxD[test]), labels[fit])

    folds = [scored(fit, test) for fit, test in StratifiedKFold(5).split(x_NxD, labels)]
    assert np.mean(folds, axis=0) == pytest.approx([0.927, 0.897], abs=0.02)
    assert scored(stimulated, ~stimulated)[1] == pytest.approx(0.794, abs=0.02)
    assert scored(~stimulated, stimulated)[1] == pytest.approx(0.814, abs=0.02)


@pytest.mark.slow
def test_fitted_on_one_condition_alone_real_cells_are_harder(real_data):
    """What genes and components of the other condition's cells were worth in the figures above."""
    cells = anndata.read_h5ad(real_data / "kang_ifnb_2800.h5ad")
    labels = cells.obs["cell_type"].to_numpy(str)
    fit = cells.obs["batch"].to_numpy(str) == "CTRL"
    found = classifiers.fit(cells.X[fit], None, labels[fit], names=("majority", "logistic"))
    scores = classifiers.classify(
        found, cells.X[~fit], None, labels[~fit], train_labels=labels[fit]
    )
    value = {name: {s.name: s.value for s in of if not s.of} for name, of in scores.items()}
    assert value["majority"]["accuracy"] == pytest.approx(np.mean(labels[~fit] == "CD14 Mono"))
    assert 0.6 < value["logistic"]["macro_f1"] < 0.814
