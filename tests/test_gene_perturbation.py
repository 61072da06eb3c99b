"""Unseen perturbations and combinations: simulated screens of known answer, leaks, gaps."""

import numpy as np
import pytest

from scaling.evaluate import change_regressions, gene_perturbation
from scaling.evaluate.gene_perturbation import unseen_combinations, unseen_perturbations

GENES = np.array([f"g{i}" for i in range(40)])
SINGLES = GENES[:14]
PAIRS = [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11), (0, 12), (3, 13)]


def screen(seed=0, linear=1.0, shared=1.0, synergy=0.0, noise=0.1, cells=25):
    """Cells whose change is, per perturbed gene, a shared part and one linear in its embedding."""
    rng = np.random.default_rng(seed)
    z_VxD = rng.normal(size=(len(GENES), 3))
    per_gene = shared * rng.normal(size=len(GENES)) + linear * z_VxD @ rng.normal(size=(3, 40))
    base_G = 3 + rng.normal(size=len(GENES))
    sets = [()] * 4 + [(i,) for i in range(len(SINGLES))] + PAIRS
    label, x = [], []
    for genes in sets:
        change = per_gene[list(genes)].sum(0) if genes else np.zeros(len(GENES))
        if len(genes) == 2:
            change = change + synergy * rng.normal(size=len(GENES))
        label += ["+".join(GENES[list(genes)]) or "control"] * cells
        x.append(base_G + change + rng.normal(0, noise, (cells, len(GENES))))
    return z_VxD, GENES, np.concatenate(x), GENES, np.array(label)


def value(scores, name, of=""):
    (found,) = [score for score in scores if (score.name, score.of) == (name, of)]
    return found


@pytest.fixture
def predictions(monkeypatch):
    """Predictions of each call, by unit, in place of its scores."""
    seen = []

    def keep(units, genes, **options):
        seen.append({unit.name: unit.predicted for unit in units})
        return {}

    monkeypatch.setattr(gene_perturbation, "score_changes", keep)
    return seen


def test_changes_linear_in_the_embedding_are_found():
    singles = unseen_perturbations(*screen(), "control")
    assert set(singles) == {"embedding", "no_change", "training_mean", "pca_regression"}
    assert value(singles["embedding"], "r2").value > 0.97
    assert value(singles["embedding"], "r2_minus_training_mean").low > 0.1
    row = value(singles["embedding"], "pearson_top_20", "g3")
    assert row.low < row.value <= 1 and (row.n, row.interval) == (25, "cells")
    assert value(singles["embedding"], "r2").interval == "14 perturbations"
    assert "14 perturbations left out in 10 parts" in row.split
    pairs = unseen_combinations(*screen(), "control")
    assert value(pairs["embedding"], "r2").value > 0.97
    assert value(pairs["embedding"], "r2").interval == "8 combinations"


def test_additive_combinations_are_the_sum_of_singles(predictions):
    z, names, x, measured, label = screen(linear=0.0, shared=0.0)
    rng = np.random.default_rng(1)
    change = {name: rng.normal(size=40) for name in SINGLES}
    x = np.stack([np.full(40, 3.0) + sum(change.get(g, 0) for g in n.split("+")) for n in label])
    unseen_combinations(z, names, x, measured, label, "control")
    for name, predicted in predictions[0].items():
        expected = sum(change[gene] for gene in name.split("+"))
        np.testing.assert_allclose(predicted["additive"], expected, rtol=1e-6)
    assert {unit for unit in predictions[0]} == {"+".join(sorted(GENES[list(p)])) for p in PAIRS}


def test_the_additive_model_scores_one_where_it_is_true_and_less_where_not():
    found = unseen_combinations(*screen(noise=0.01), "control")
    assert value(found["additive"], "r2").value == pytest.approx(1, abs=1e-3)
    found = unseen_combinations(*screen(noise=0.01, synergy=1.0), "control")
    assert value(found["additive"], "r2").value < 0.95


@pytest.mark.parametrize("predictor", ["embedding", "pca_regression"])
def test_without_signal_the_training_mean_is_not_beaten(predictor):
    found = unseen_perturbations(*screen(linear=0.0, noise=0.5), "control")
    assert value(found["training_mean"], "r2").value > 0.9
    assert value(found[predictor], "r2_minus_training_mean").value < 0.005


def test_no_prediction_sees_the_cells_of_what_is_held_out(predictions):
    given = screen()
    changed = given[2].copy()
    changed[given[4] == "g3"] += 9 * np.random.default_rng(2).normal(size=40)
    alone = (*given[:2], changed, *given[3:])
    unseen_perturbations(*given, "control")
    unseen_perturbations(*alone, "control")
    before, after = predictions
    for predictor in before["g3"]:
        np.testing.assert_array_equal(before["g3"][predictor], after["g3"][predictor])
        if predictor != "no_change":
            assert any(not np.allclose(before[g][predictor], after[g][predictor]) for g in SINGLES)
    predictions.clear()
    together = given[2].copy()
    together[given[4] == "g2+g3"] += 9 * np.random.default_rng(2).normal(size=40)
    unseen_combinations(*given, "control")
    unseen_combinations(*given[:2], together, *given[3:], "control")
    before, after = predictions
    for predictor in before["g2+g3"]:
        np.testing.assert_array_equal(before["g2+g3"][predictor], after["g2+g3"][predictor])


def test_combinations_teach_nothing_of_single_genes(predictions):
    given = screen()
    single = np.char.find(given[4], "+") < 0
    unseen_perturbations(*given, "control")
    unseen_perturbations(*given[:2], given[2][single], given[3], given[4][single], "control")
    for name in SINGLES:
        for predictor, expected in predictions[1][name].items():
            np.testing.assert_allclose(predictions[0][name][predictor], expected)


def test_names_may_be_written_in_any_order(predictions):
    *given, label = screen()
    written = label.copy().astype("U20")
    halves = [np.flatnonzero(label == "g2+g3")[:10], np.flatnonzero(label == "g5")]
    written[halves[0]], written[halves[1]] = "g3+g2", "g5+control"
    for names in (label, written):
        unseen_perturbations(*given, names, "control")
        unseen_combinations(*given, names, "control")
    for plain, other in ((0, 2), (1, 3)):
        assert list(predictions[plain]) == list(predictions[other])
        for name, predicted in predictions[plain].items():
            for predictor, expected in predicted.items():
                np.testing.assert_allclose(predictions[other][name][predictor], expected)


def test_genes_that_a_predictor_lacks_are_said():
    z, names, x, measured, label = screen()
    measured = np.where(measured == "g4", "renamed", measured)
    found = unseen_perturbations(z[names != "g2"], names[names != "g2"], x, measured, label,
                                 "control")
    row = value(found["embedding"], "r2", "g2")
    assert row.value is None and row.note == "no embedding of g2"
    assert value(found["pca_regression"], "r2", "g4").note == "no expression of g4"
    assert value(found["training_mean"], "r2", "g2").value is not None
    for name in ("r2", "r2_minus_training_mean"):
        mean = value(found["embedding"], name)
        assert mean.interval == "13 perturbations" and mean.n == 13 * 25
        assert "1 of 14 perturbations have no value" in mean.note
    assert value(found["training_mean"], "r2").interval == "14 perturbations"
    nothing = unseen_perturbations(z, np.char.add("x", names), x, measured, label, "control")
    assert value(nothing["embedding"], "r2").value is None
    assert value(nothing["training_mean"], "r2").value is not None


def test_perturbations_of_few_cells_are_left_out():
    *given, label = screen()
    label[np.flatnonzero(label == "g0")[:6]] = ""
    found = unseen_perturbations(*given, label, "control")
    assert "g0" not in {row.of for row in found["embedding"]}
    assert "1 perturbations of fewer than 20 cells left out" in value(found["embedding"], "r2").note
    pairs = unseen_combinations(*given, label, "control")
    assert not {"g0+g1", "g0+g12"} & {row.of for row in pairs["additive"]}
    none = unseen_combinations(*given, np.char.replace(label, "+", "_"), "control")
    for scores in none.values():
        assert all(row.value is None and "0 combinations with 20" in row.note for row in scores)


def test_bilinear_against_the_normal_equations(monkeypatch):
    """The linear system of all entries of W at once, and the penalty by a loop over folds."""
    rng = np.random.default_rng(4)
    control_G, change_UxG = rng.normal(3, 1, 30), rng.normal(size=(12, 30))
    columns_U, columns_T = [[i] for i in range(11)] + [[11, 12]], [[13], [14, 15]]

    def direct(change, columns, tests, penalty):
        y = np.vstack([change, np.zeros(30)]).T
        mean = y + control_G[:, None]
        u, s, _ = np.linalg.svd(mean - mean.mean(0), full_matrices=False)
        k = min(10, len(change) + 1)
        g = (u * s)[:, :k]
        p = np.stack([g[c].mean(0) for c in columns] + [np.zeros(k)])
        b = y.mean(1, keepdims=True)
        left, right = g.T @ g + penalty * np.eye(k), p.T @ p + penalty * np.eye(k)
        w = np.linalg.solve(np.kron(left, right), (g.T @ (y - b) @ p).ravel()).reshape(k, k)
        return np.stack([g @ w @ g[c].mean(0) for c in tests]) + b.T

    for penalty in (0.01, 0.1, 1000.0):
        monkeypatch.setattr(change_regressions, "BILINEAR_PENALTIES", np.array([penalty]))
        found = change_regressions.bilinear(change_UxG, control_G, columns_U, columns_T, seed=0)
        expected = direct(change_UxG, columns_U, columns_T, penalty)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_the_penalty_is_that_of_the_inner_folds(monkeypatch):
    """Noise alone: the largest penalty. A change that P tells, and no noise: the smallest."""
    chosen = []
    original = change_regressions._bilinear

    def spy(*given):
        chosen.append(given[-1])
        return original(*given)

    monkeypatch.setattr(change_regressions, "_bilinear", spy)
    rng = np.random.default_rng(5)
    columns = [[i] for i in range(20)]
    control_G = rng.normal(3, 1, 60)
    change_regressions.bilinear(rng.normal(size=(20, 60)), control_G, columns, [[0]], seed=0)
    assert len(chosen) == 6 and chosen[-1] == [1000.0]
    g_G = rng.normal(size=60)
    change_regressions.bilinear(np.outer(g_G[:20], g_G), g_G, columns, [[0]], seed=0)
    assert chosen[-1] < [10.0]


@pytest.mark.parametrize(
    ("place", "broken", "message"),
    [
        (0, np.ones((3, 2)), "genes of shape"),
        (1, np.array(["a"] * 40), "1 names: drop repeats"),
        (3, np.array(["a", "b"]), "2 names of 40 genes"),
        (4, np.array(["a"]), "one per cell"),
        (4, np.array(["g1"] * 650), "0 cells are of the control"),
    ],
)
def test_bad_input_is_refused(place, broken, message):
    given = list(screen())
    given[place] = broken
    with pytest.raises(ValueError, match=message):
        unseen_perturbations(*given, "control")
