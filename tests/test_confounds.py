"""How much of an embedding sequencing depth explains: scikit-learn's regressions, known truths."""

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from scaling.evaluate.confounds import NAMES, depth_shares


def draw(n: int = 300):
    rng = np.random.default_rng(0)
    detected = rng.integers(50, 2_000, n)
    totals = detected * rng.integers(2, 5, n)
    return rng, detected, totals


def test_shares_are_those_of_a_regression_of_all_dimensions():
    rng, detected, totals = draw()
    x_NxD = rng.normal(5, 2, (300, 7)) + np.outer(np.log(detected), rng.normal(size=7))
    covariates = detected, totals
    for score, covariate in zip(depth_shares(x_NxD, *covariates), covariates, strict=True):
        log_Nx1 = np.log(covariate)[:, None]
        fitted = LinearRegression().fit(log_Nx1, x_NxD).predict(log_Nx1)
        np.testing.assert_allclose(score.value, fitted.var(0).sum() / x_NxD.var(0).sum(), 1e-9)
        assert score.low < score.value < score.high and score.n == 300


def test_intervals_are_those_of_repeated_cells():
    rng, detected, totals = draw(40)
    x_NxD = rng.normal(size=(40, 3)) + np.log(detected)[:, None]
    found = depth_shares(x_NxD, detected, totals, seed=1)[0]
    draws = []
    for _ in range(2_000):
        cells = rng.integers(0, 40, 40)
        log_Nx1 = np.log(detected[cells])[:, None]
        fitted = LinearRegression().fit(log_Nx1, x_NxD[cells]).predict(log_Nx1)
        draws.append(fitted.var(0).sum() / x_NxD[cells].var(0).sum())
    wanted = np.quantile(draws, [0.025, 0.975])
    np.testing.assert_allclose([found.low, found.high], wanted, atol=0.05)


def test_an_embedding_of_depth_alone_and_one_without():
    rng, detected, totals = draw(5_000)
    depth = np.log(detected)[:, None] * [1.0, -3.0]
    assert depth_shares(depth, detected, totals)[0].value == pytest.approx(1)
    assert depth_shares(rng.normal(size=(5_000, 4)), detected, totals)[0].value < 0.01


def test_what_cannot_be_computed_says_so():
    rng, detected, totals = draw()
    x_NxD = rng.normal(size=(300, 4))
    of_detected, of_counts = depth_shares(x_NxD, np.full(300, 9), np.full(300, np.nan))
    assert of_detected.value is of_counts.value is None
    assert (of_detected.name, of_counts.name) == NAMES
    assert "same in all cells" in of_detected.note and "not known" in of_counts.note
    constant = depth_shares(np.ones((300, 4)), detected, totals)[0]
    assert constant.value is None and "embedding" in constant.note
    few = depth_shares(x_NxD[:9], detected[:9], totals[:9])
    assert [(s.value, s.note) for s in few] == [(None, "9 cells, 10 needed")] * 2
    with pytest.raises(ValueError, match="one per cell"):
        depth_shares(x_NxD, detected[:-1], totals)
    x_NxD[3, 2] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        depth_shares(x_NxD, detected, totals)
