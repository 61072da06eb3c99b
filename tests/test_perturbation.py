"""Responses of unseen cell types: regressions and scores by hand, what leaks, what is missing."""

import anndata
import numpy as np
import pytest
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score, root_mean_squared_error

from scaling.evaluate import baselines, change_regressions, changes, perturbation
from scaling.evaluate.perturbation import stimulus_response

TYPES = tuple("abcdefgh")
GENES = 60


def responding_cells(seed=0, signal=1.0, types=TYPES, cells=30):
    """Types whose response is one shared part and a part linear in their embedding."""
    rng = np.random.default_rng(seed)
    z_TxD = rng.normal(size=(len(types), 3))
    response_TxG = rng.normal(size=GENES) + signal * z_TxD @ rng.normal(size=(3, GENES))
    label = np.repeat(np.arange(len(types)), 2 * cells)
    stimulated = np.tile(np.repeat([False, True], cells), len(types))
    level_TxG = 5 + rng.normal(size=(len(types), GENES))
    x_NxG = level_TxG[label] + stimulated[:, None] * response_TxG[label]
    x_NxG += rng.normal(0, 0.3, x_NxG.shape)
    z_NxD = z_TxD[label] + rng.normal(0, 0.05, (len(label), 3))
    z_NxD[stimulated] += 40  # only control cells may be looked at
    names = np.array(types)[label]
    return z_NxD, x_NxG, names, np.where(stimulated, "stim", "ctrl"), response_TxG


def respond(z_NxD, x_NxG, cell_type, condition, **options):
    return stimulus_response(z_NxD, x_NxG, cell_type, condition, "ctrl", "stim", **options)


@pytest.fixture(scope="module")
def plain():
    return respond(*responding_cells()[:4])


def value(scores, name, of=""):
    (found,) = [score for score in scores if (score.name, score.of) == (name, of)]
    return found


def test_ridge_against_each_penalty_tried_by_leaving_one_out():
    rng = np.random.default_rng(0)
    for n, d, noise in ((6, 3, 0.1), (7, 20, 1.0), (12, 4, 10.0)):
        z, test = rng.normal(2, 3, (n, d)), rng.normal(2, 3, (2, d))
        y = z @ rng.normal(size=(d, 9)) + 5 + noise * rng.normal(size=(n, 9))
        scale = np.square(z - z.mean(0)).sum(1).mean()
        errors = {}
        for penalty in change_regressions.PENALTIES * scale:
            errors[penalty] = 0.0
            for u in range(n):
                rest = np.arange(n) != u
                guess = Ridge(penalty).fit(z[rest], y[rest]).predict(z[[u]])
                errors[penalty] += np.square(guess - y[u]).sum()
        expected = Ridge(min(errors, key=errors.get)).fit(z, y).predict(test)
        found = change_regressions.ridge(z, y, test)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        np.testing.assert_allclose(change_regressions.ridge(100 * z + 7, y, 100 * test + 7), found)
    same = change_regressions.ridge(np.ones((5, 3)), y[:5], np.ones((1, 3)))
    np.testing.assert_allclose(same[0], y[:5].mean(0))


def test_components_against_a_dense_decomposition(monkeypatch):
    monkeypatch.setattr(change_regressions, "VARIABLE_GENES", 30)
    rng = np.random.default_rng(1)
    x_NxG = rng.gamma(1.0, np.linspace(0.1, 3, 50), (80, 50)) * (rng.random((80, 50)) < 0.6)
    rows = np.arange(0, 80, 2)
    genes = np.argsort(-x_NxG[rows].var(0))[:30]
    pca = PCA(29, svd_solver="full").fit(x_NxG[rows][:, genes])
    expected = pca.transform(x_NxG[:3, genes])
    found = change_regressions.cell_components(sparse.csr_matrix(x_NxG), rows, x_NxG[:3])
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-6)


def test_scores_of_a_type_by_hand(monkeypatch):
    kept = []
    original = perturbation.score_changes

    def spy(units, *rest, **options):
        kept.extend(units)
        return original(units, *rest, **options)

    monkeypatch.setattr(perturbation, "score_changes", spy)
    z, x, cell_type, condition, _ = responding_cells()
    found = respond(z, x, cell_type, condition)
    assert {len(scores) for scores in found.values()} == {5 + 5 * 8 + 5, 5 + 5 * 8}
    at = {unit.name: unit for unit in kept}
    for name in TYPES:
        sides = [x[(cell_type == name) & (condition == side)].mean(0) for side in ("ctrl", "stim")]
        true = sides[1] - sides[0]
        top = np.argsort(-np.abs(true))[:20]
        for predictor in ("embedding", "training_mean", "nearest_type", "pca_regression"):
            guess = at[name].predicted[predictor]
            expected = {
                "r2": r2_score(true, guess),
                "pearson": np.corrcoef(true, guess)[0, 1],
                "rmse": root_mean_squared_error(true, guess),
                "r2_top_20": r2_score(true[top], guess[top]),
                "pearson_top_20": np.corrcoef(true[top], guess[top])[0, 1],
            }
            for score, wanted in expected.items():
                row = value(found[predictor], score, name)
                assert row.value == pytest.approx(wanted, rel=1e-6)
                assert row.low < row.value < row.high
                assert (row.n, row.interval) == (60, "cells")
    for score in changes.SCORES:
        of = [value(found["embedding"], score, name).value for name in TYPES]
        mean = [value(found["training_mean"], score, name).value for name in TYPES]
        assert value(found["embedding"], score).value == pytest.approx(np.mean(of))
        row = value(found["embedding"], f"{score}_minus_training_mean")
        assert row.value == pytest.approx(np.mean(of) - np.mean(mean))
        assert row.low < row.value < row.high and row.interval == "8 cell types" and row.n == 480


def test_what_is_linear_in_the_embedding_is_found(plain):
    found = plain
    assert value(found["embedding"], "r2").value > 0.98
    assert value(found["embedding"], "r2_minus_training_mean").low > 0.2
    assert value(found["no_change"], "r2").value < 0
    assert value(found["no_change"], "rmse").value > 1
    # The embedding is in no gene: expression cannot know the response.
    assert value(found["pca_regression"], "r2").value < 0.7


def test_a_predictor_alone_has_the_scores_that_it_has_beside_others(plain):
    alone = respond(*responding_cells()[:4], predictors=("embedding",))
    assert set(alone) == {"embedding", "training_mean"}
    for name, scores in alone.items():
        numbers, beside = (
            np.array([(s.value, s.low, s.high) for s in of], float) for of in (scores, plain[name])
        )
        np.testing.assert_allclose(numbers, beside, rtol=1e-9)


def test_one_response_of_all_types_is_the_training_mean():
    found = respond(*responding_cells(signal=0.0)[:4])
    assert value(found["training_mean"], "r2").value > 0.98
    difference = value(found["embedding"], "r2_minus_training_mean").value
    assert -0.02 < difference < 0.002


def test_an_embedding_of_noise_is_no_better_than_the_training_mean():
    z, *rest = responding_cells()[:4]
    found = respond(np.random.default_rng(9).normal(size=z.shape), *rest)
    assert value(found["embedding"], "r2_minus_training_mean").value < 0.02


def test_no_prediction_sees_the_stimulated_cells_of_the_type(monkeypatch):
    seen = []

    def spy(units, genes, **options):
        seen.append({unit.name: unit.predicted for unit in units})
        return {}

    monkeypatch.setattr(perturbation, "score_changes", spy)
    z, x, cell_type, condition, _ = responding_cells()
    respond(z, x, cell_type, condition)
    held = (cell_type == "c") & (condition == "stim")
    x, z = x.copy(), z.copy()
    x[held], z[held] = np.random.default_rng(5).gamma(2.0, 9.0, (held.sum(), GENES)), -7.0
    respond(z, x, cell_type, condition)
    before, after = seen
    for predictor in perturbation.PREDICTORS:
        np.testing.assert_array_equal(before["c"][predictor], after["c"][predictor])
        if predictor != "no_change":
            others = sum(not np.allclose(before[t][predictor], after[t][predictor]) for t in "abd")
            assert others or predictor == "nearest_type"


def test_a_constant_prediction_has_no_correlation(plain):
    found = plain
    for row in [row for row in found["no_change"] if row.name.startswith("pearson")]:
        assert row.value is None and row.low is None and row.note
    assert "same for all genes" in value(found["no_change"], "pearson", "a").note
    assert "8 of 8 cell types have no value" in value(found["no_change"], "pearson").note
    assert value(found["no_change"], "r2", "a").value <= 0


def test_types_of_few_cells_are_left_out_and_named():
    z, x, cell_type, condition, _ = responding_cells()
    few = np.flatnonzero((cell_type == "b") & (condition == "stim"))[:-19]
    one_side = np.flatnonzero((cell_type == "g") & (condition == "ctrl"))
    kept = np.setdiff1d(np.arange(len(x)), np.concatenate([few, one_side]))
    found = respond(z[kept], x[kept], cell_type[kept], condition[kept])
    assert {row.of for row in found["embedding"]} == {"", *"acdefh"}
    assert "b (30 + 19), g (0 + 30)" in value(found["embedding"], "r2").note
    alone = respond(*(a[np.isin(cell_type, list("acdefh"))] for a in (z, x, cell_type, condition)))
    for mine, other in zip(found["pca_regression"], alone["pca_regression"], strict=True):
        assert mine.value == pytest.approx(other.value, rel=1e-6)


def test_too_few_types_are_said():
    z, x, cell_type, condition, _ = responding_cells(types=TYPES[:3])
    found = respond(z, x, cell_type, condition)
    for scores in found.values():
        assert [row.name for row in scores] == list(changes.SCORES)
        assert all(row.value is None and "3 cell types in both" in row.note for row in scores)
    found = respond(*responding_cells(types=TYPES[:4])[:4])
    row = value(found["embedding"], "r2")  # four units are too few to resample
    assert row.value is not None and row.low is None and row.interval == ""
    assert row.note.endswith("no interval")


def test_unknown_names_and_silent_genes_do_not_count(plain):
    z, x, cell_type, condition, _ = responding_cells()
    silent = np.hstack([x, np.zeros((len(x), 5))])
    silent[:4, -1] = 3.0  # shown by less than 1 % of 480 cells
    more = [np.concatenate([a, a[:9]]) for a in (z, silent, cell_type, condition)]
    more[2][-9:-4], more[3][-4:] = "", "other"
    found = respond(*more)
    assert value(found["embedding"], "r2").note == "60 genes"
    for name in ("r2", "pearson", "rmse_minus_training_mean"):
        assert value(found["embedding"], name).value == pytest.approx(
            value(plain["embedding"], name).value, rel=1e-6
        )


def test_donors_are_drawn_where_five_are_known():
    z, x, cell_type, condition, _ = responding_cells()
    donors = np.array(list("uvwxyz"))[np.arange(len(x)) % 6]
    found = respond(z, x, cell_type, condition, donors=donors)
    assert value(found["embedding"], "r2", "a").interval == "6 donors"
    row = value(found["embedding"], "r2")
    assert row.interval == "8 cell types" and "6 donors, whose types" in row.note


@pytest.mark.slow
@pytest.mark.parametrize(("offset", "per_side"), [(1.0, 100), (0.05, 40)])
def test_intervals_of_a_type_hold_the_score_at_its_number_of_cells(offset, per_side):
    """Root mean squared error of a prediction too large by an offset: the offset and the noise.

    Where noise is most of it, plain percentiles of resamples lie above the value itself.
    """
    rng, held = np.random.default_rng(3), 0
    treated = np.arange(2 * per_side) >= per_side
    for seed in range(40):
        x_NxG = rng.normal(1.0, 1.0, (2 * per_side, 30)) + np.outer(treated, np.linspace(-1, 1, 30))
        predicted = {"training_mean": np.zeros(30), "far": np.linspace(-1, 1, 30) + offset}
        unit = changes.HeldOut("u", sparse.csr_matrix(x_NxG), treated, predicted)
        options = {"unit": "units", "split": "", "note": "", "seed": seed}
        scores = changes.score_changes([unit], np.arange(30), **options)
        row = value(scores["far"], "rmse", "u")
        held += row.low <= np.sqrt(offset**2 + 2 / per_side) <= row.high
        assert row.low < row.value < row.high
    assert 34 <= held


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"z_NxD": np.ones((3, 2))}, "embedding of shape"),
        ({"z_NxD": np.full((480, 2), np.nan)}, "embedding holds NaN"),
        ({"x_NxG": np.full((480, 4), np.inf)}, "expression holds NaN"),
        ({"cell_type": ["a"]}, "one per cell"),
        ({"condition": ["ctrl"] * 480}, "must be two of the conditions"),
        ({"donors": ["d"]}, "one per cell"),
        ({"x_NxG": np.zeros((480, 4))}, "0 of 4 genes are shown"),
    ],
)
def test_bad_input_is_refused(broken, message):
    z, x, cell_type, condition, _ = responding_cells()
    good = {"z_NxD": z, "x_NxG": x, "cell_type": cell_type, "condition": condition}
    with pytest.raises(ValueError, match=message):
        respond(**(good | broken))


@pytest.mark.slow
def test_interferon_response_of_blood(real_data):
    cells = anndata.read_h5ad(real_data / "kang_ifnb_2800.h5ad")
    counts = sparse.csr_matrix(cells.X)
    label, condition = cells.obs["cell_type"].to_numpy(str), cells.obs["batch"].to_numpy(str)
    pca = baselines.fit_pca(counts[condition == "CTRL"])
    found = stimulus_response(
        baselines.apply_pca(pca, counts), baselines.log_normalise(counts), label, condition,
        "CTRL", "STIM",
    )
    mean = value(found["training_mean"], "pearson")
    assert mean.interval == "10 cell types" and "Eryth (6 + 2), Mk (18 + 28)" in mean.note
    assert 0.5 < mean.low < mean.value < mean.high < 1
    assert value(found["no_change"], "r2").value < 0 < value(found["training_mean"], "r2").value
    isg = value(found["training_mean"], "pearson_top_20", "CD14 Mono")
    assert isg.value > 0.5
